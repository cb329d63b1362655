"""A real node: container runtime, kubelet and kube-proxy, on the machine that `enter` makes."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.acceptance.eventually import eventually
from tests.cluster.certificates import LOOPBACK
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubectl import Document
from tests.cluster.processes import Processes

ADDRESS = os.environ.get("HEADRACE_TEST_NODE")
"""Set by `init`; None elsewhere."""
NAME = "node0"
PODS = "10.244.0.0/24"
DNS_SERVICE = "10.96.0.10"
SOCKET = "/run/containerd/containerd.sock"
READY_SECONDS = 60.0
IMPORT_SECONDS = 180.0


class Machine:
    """As a context it starts the node, and ends it when left; the API server must run."""

    def __init__(self, control_plane: ControlPlane, images: Path) -> None:
        assert ADDRESS is not None, "only inside tests/cluster/node/enter"
        self._control_plane = control_plane
        self._images = images
        self._home = control_plane.home / "node"
        self._home.mkdir()
        self._processes = Processes(self._home)
        self._runtime_config = self._write("containerd.toml", _runtime(self._home))
        self._write("cni/10-bridge.conflist", json.dumps(NETWORK))

    def __enter__(self) -> Self:
        try:
            self.start_runtime()
            self._import()
            self._start_kubelet()
            self._start_proxy()
            self._await_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ask(self, path: str) -> Document:
        """An answer of the API server to its administrator."""
        return self._control_plane.ask(path)

    def start_runtime(self) -> None:
        """As systemd does where it died: what ran under it goes on."""
        self._processes.start("containerd", "/usr/bin/containerd", "--config", str(self._runtime_config))
        eventually(self._runtime_answers, seconds=READY_SECONDS, what="containerd answers")

    def kill_runtime(self) -> None:
        """The daemon alone: containers hang on shims of their own."""
        self._processes.kill("containerd")

    def stop(self) -> None:
        """The node's own processes; what pods run ends with the machine."""
        self._processes.stop()
        # Images are no logs.
        shutil.rmtree(self._home / "containerd", ignore_errors=True)

    def process(self, pod: Document, program: str) -> int:
        """The process id, as the node counts, of the first of a pod's processes whose command line holds `program`.

        A shell that has started it is not it.
        """
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                groups = (entry / "cgroup").read_text()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue  # gone meanwhile
            if f"pod{pod['metadata']['uid']}" in groups and program in command and not command.startswith("bash "):
                found.append(int(entry.name))
        assert found, f"no process of {pod['metadata']['name']} runs {program}"
        return min(found)

    def _runtime_answers(self) -> bool:
        assert not self._processes.ended("containerd"), self._processes.last_words("containerd")
        return subprocess.run(("ctr", "version"), capture_output=True, timeout=20, check=False).returncode == 0  # noqa: S607  `enter` looked for it

    def _import(self) -> None:
        words = ("ctr", "-n", "k8s.io", "images", "import", "--no-unpack", str(self._images))
        done = subprocess.run(words, capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-2000:]}"

    def _start_kubelet(self) -> None:
        authority = self._control_plane.authority
        serving = authority.server("kubelet", NAME, str(ADDRESS))
        user = self._control_plane.user_file("kubelet", authority.client(f"system:node:{NAME}", "system:nodes"))
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "containerRuntimeEndpoint": f"unix://{SOCKET}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "podLogsDir": str(self._home / "pod-logs"),
            "oomScoreAdj": 0,  # lower takes a capability that a machine within a machine may lack
            "failSwapOn": False,
            # Nothing could be pulled again.
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "resolvConf": "/dev/null",
        }
        self._processes.start(
            "kubelet",
            str(self._control_plane.programs.path("kubelet")),
            f"--config={self._write('kubelet.json', json.dumps(config))}",
            f"--kubeconfig={user}",
            f"--hostname-override={NAME}",
            f"--node-ip={ADDRESS}",
            f"--root-dir={self._home / 'kubelet'}",
        )

    def _start_proxy(self) -> None:
        user = self._control_plane.user_file("kube-proxy", self._control_plane.authority.client("system:kube-proxy"))
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(user)},
            "hostnameOverride": NAME,
            "clusterCIDR": PODS,
            "oomScoreAdj": 0,
            # The kernel's table is not ours to size.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "healthzBindAddress": f"{LOOPBACK}:10256",
            "metricsBindAddress": f"{LOOPBACK}:10249",
        }
        self._processes.start(
            "kube-proxy",
            str(self._control_plane.programs.path("kube-proxy")),
            f"--config={self._write('kube-proxy.json', json.dumps(config))}",
        )

    def _await_ready(self) -> None:
        kubectl = self._control_plane.kubectl()
        path = '{.status.conditions[?(@.type=="Ready")].status}'

        def ready() -> bool:
            for name in ("kubelet", "kube-proxy"):
                assert not self._processes.ended(name), self._processes.last_words(name)
            return kubectl.attempt("get", "node", NAME, f"--output=jsonpath={path}").stdout == "True"

        eventually(ready, seconds=READY_SECONDS, what="the node is ready")

    def _write(self, name: str, content: str) -> Path:
        path = self._home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path


NETWORK = {
    "cniVersion": "0.4.0",
    "name": "bridge",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isDefaultGateway": True,
            "hairpinMode": True,
            "ipMasq": False,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "dataDir": "/run/cni"},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def _runtime(home: Path) -> str:
    return f"""\
version = 2
root = "{home}/containerd"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    BinaryName = "{shutil.which("runc")}"
    SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{home}/cni"
"""

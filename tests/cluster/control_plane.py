"""A real Kubernetes control plane: etcd, API server, controllers, scheduler, and kwok where nodes are pretended.

On loopback there is no container and no kubelet: kwok writes what a kubelet would report, so pods become ready and
nothing ever runs. tests/cluster/node puts a real node beside it.
"""

import json
import shutil
import ssl
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from headrace.local.ports import FreePorts
from tests.cluster import certificates
from tests.cluster.certificates import ADMINISTRATORS, LOOPBACK, Authority
from tests.cluster.kubectl import Document, Kubectl
from tests.cluster.processes import Processes

SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
HPA_SYNC_SECONDS = 0.5
"""How often autoscalers look where nodes are pretended; 15 s by default."""
FAST_MOTION = (
    # See tests/cluster/scaling.py for what the manifests' own times become.
    f"--horizontal-pod-autoscaler-sync-period={int(HPA_SYNC_SECONDS * 1000)}ms",
    "--horizontal-pod-autoscaler-cpu-initialization-period=1s",
    "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
)


@dataclass(frozen=True)
class Programs:
    """What `tests/cluster/build/build` makes."""

    home: Path

    def path(self, name: str) -> Path:
        return self.home / "bin" / name

    @property
    def stages(self) -> Path:
        return self.home / "kwok" / "stages.yaml"

    @property
    def definitions(self) -> Path:
        return self.home / "crds"

    @property
    def complete(self) -> bool:
        return all(self.path(name).exists() for name in ("etcd", "kwok", "kube-apiserver", "kubectl"))


@dataclass
class ControlPlane:
    """The processes, from the first to the last; as a context it starts them, and ends them when left."""

    programs: Programs
    home: Path
    address: str = LOOPBACK
    """Where pods find the API server; on loopback there are none that run, and kwok plays the kubelets."""

    def __post_init__(self) -> None:
        self.home.mkdir(parents=True)
        self._processes = Processes(self.home)
        keys = self.home / "keys"
        keys.mkdir(mode=0o700)
        ports = FreePorts(LOOPBACK)
        self._ports = {name: ports.take() for name in ("etcd", "peer", "api", "controllers", "scheduler", "kwok")}
        self.authority = Authority(keys, "authority")
        # The aggregator is told apart from users by an authority of its own.
        self._front_proxy = Authority(keys, "front-proxy-authority")
        names = ("localhost", "kubernetes.default", "kubernetes.default.svc", LOOPBACK, API_SERVICE, self.address)
        self._serving = self.authority.server("serving", *dict.fromkeys(names))
        self._accounts = certificates.service_account_key(keys)
        self._proxy_client = self._front_proxy.client("front-proxy-client")
        self._admin = self.authority.client("admin", ADMINISTRATORS)
        self._trusting = ssl.create_default_context(cafile=str(self.authority.certificate))
        self._trusting.load_cert_chain(self._admin.certificate, self._admin.key)
        self.server = f"https://{LOOPBACK}:{self._ports['api']}"
        self.kubeconfig = self.user_file("admin", self._admin)

    def __enter__(self) -> Self:
        try:
            self._start_all()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ask(self, path: str) -> Document:
        """An answer of the API server to its administrator, without a process for it."""
        with urllib.request.urlopen(self.server + path, timeout=20, context=self._trusting) as answer:  # noqa: S310  ours
            found: Document = json.load(answer)
            return found

    def kubectl(self) -> Kubectl:
        """The client of the same version, as administrator."""
        return Kubectl(self.programs.path("kubectl"), self.kubeconfig, self.home / "kubectl-cache")

    def stop(self) -> None:
        """End everything at once."""
        self._processes.stop()
        shutil.rmtree(self.home / "etcd", ignore_errors=True)

    def _start_all(self) -> None:
        etcd = f"http://{LOOPBACK}:{self._ports['etcd']}"
        self._start("etcd", *self._etcd(etcd))
        self._wait("etcd", f"{etcd}/health")
        self._start("kube-apiserver", *self._api_server(etcd))
        self._wait("kube-apiserver", f"{self.server}/readyz")
        self._start("kube-controller-manager", *self._controllers())
        self._start("kube-scheduler", *self._scheduler())
        if self._pretending:
            self._start("kwok", *self._kwok())
        self._wait("kube-controller-manager", f"https://{LOOPBACK}:{self._ports['controllers']}/healthz")
        self._wait("kube-scheduler", f"https://{LOOPBACK}:{self._ports['scheduler']}/healthz")
        if self._pretending:
            self._wait("kwok", f"http://{LOOPBACK}:{self._ports['kwok']}/healthz")

    @property
    def _pretending(self) -> bool:
        return self.address == LOOPBACK

    def _etcd(self, client: str) -> tuple[str, ...]:
        peer = f"http://{LOOPBACK}:{self._ports['peer']}"
        return (
            f"--data-dir={self.home / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nothing here outlives the run
            "--log-level=warn",
        )

    def _api_server(self, etcd: str) -> tuple[str, ...]:
        return (
            f"--etcd-servers={etcd}",
            f"--secure-port={self._ports['api']}",
            *self._reachable(),
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",  # so that it is the namespace that refuses
            f"--client-ca-file={self.authority.certificate}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._accounts.certificate}",
            f"--service-account-signing-key-file={self._accounts.key}",
            f"--requestheader-client-ca-file={self._front_proxy.certificate}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={self._proxy_client.certificate}",
            f"--proxy-client-key-file={self._proxy_client.key}",
            "--profiling=false",
        )

    def _reachable(self) -> tuple[str, ...]:
        if self._pretending:
            # The reconciler refuses to announce a loopback address.
            return (
                f"--bind-address={LOOPBACK}",
                f"--advertise-address={LOOPBACK}",
                "--endpoint-reconciler-type=none",
            )
        kubelet = self.authority.client("kube-apiserver-kubelet-client", ADMINISTRATORS)
        return (
            "--bind-address=0.0.0.0",  # kubectl's way, and the pods'
            f"--advertise-address={self.address}",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            f"--kubelet-certificate-authority={self.authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            "--enable-aggregator-routing=true",  # it has no kube-proxy's rules to go by
        )

    def _controllers(self) -> tuple[str, ...]:
        return (
            *self._component("controllers", "system:kube-controller-manager"),
            f"--service-account-private-key-file={self._accounts.key}",
            f"--root-ca-file={self.authority.certificate}",
            "--use-service-account-credentials=true",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--node-monitor-grace-period=5m",  # a busy machine is no dead node
            *(FAST_MOTION if self._pretending else ()),
        )

    def _scheduler(self) -> tuple[str, ...]:
        return (
            *self._component("scheduler", "system:kube-scheduler"),
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
        )

    def _component(self, name: str, user: str) -> tuple[str, ...]:
        file = self.user_file(name, self.authority.client(user))
        return (
            f"--kubeconfig={file}",
            f"--authentication-kubeconfig={file}",
            f"--authorization-kubeconfig={file}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self._ports[name]}",
            f"--tls-cert-file={self._serving.certificate}",
            f"--tls-private-key-file={self._serving.key}",
            "--leader-elect=false",
        )

    def _kwok(self) -> tuple[str, ...]:
        port = self._ports["kwok"]
        return (
            f"--kubeconfig={self.user_file('kwok', self.authority.client('kwok', ADMINISTRATORS))}",
            f"--config={self.programs.stages}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=120",
            f"--server-address={LOOPBACK}:{port}",
            f"--node-ip={LOOPBACK}",
            f"--node-port={port}",
            "--cidr=10.244.0.0/16",
        )

    def user_file(self, name: str, client: certificates.Pair) -> Path:
        """A kubeconfig for whoever holds this certificate."""
        path = self.home / f"{name}.kubeconfig"
        return certificates.kubeconfig(path, server=self.server, authority=self.authority.certificate, client=client)

    def _start(self, name: str, *options: str) -> None:
        self._processes.start(name, str(self.programs.path(name)), *options)

    def _wait(self, name: str, url: str) -> None:
        self._processes.wait(name, url, self._trusting)


@dataclass(frozen=True)
class Pool:
    """Nodes of one kind; `count` in each zone."""

    name: str
    count: int
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()


GPU = {"nvidia.com/gpu.present": "true"}
ZONES = 3
POOLS = (
    Pool("common", 8),
    Pool("gpu", 1, GPU, ("nvidia.com/gpu",)),
    Pool("spot", 1, {**GPU, "karpenter.sh/capacity-type": "spot"}, ("nvidia.com/gpu", "headrace.dev/spot")),
)
ROOM = {"cpu": "64", "memory": "512Gi", "pods": "250", "ephemeral-storage": "4Ti"}
GPUS = {"nvidia.com/gpu": "64"}

STORAGE_CLASS = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "kwok-volume", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": "kwok.x-k8s.io/volume",
    "volumeBindingMode": "Immediate",
}
"""The one whose claims kwok's stages fulfil."""


def furnish(kubectl: Kubectl) -> None:
    """Add nodes that exist only as objects, and volumes for whoever claims one; returns once all nodes are ready."""
    nodes = [_node(pool, zone, number) for pool in POOLS for zone in range(ZONES) for number in range(pool.count)]
    kubectl.apply([STORAGE_CLASS, *nodes])
    kubectl.run("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s", seconds=70)


def _node(pool: Pool, zone: int, number: int) -> Document:
    name = f"{pool.name}-{zone}-{number}"
    room = {**ROOM, **(GPUS if GPU.items() <= pool.labels.items() else {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": f"zone-{zone}",
                **pool.labels,
            },
        },
        "spec": {"taints": [{"key": key, "value": "true", "effect": "NoSchedule"} for key in pool.taints]},
        "status": {"allocatable": room, "capacity": room},
    }

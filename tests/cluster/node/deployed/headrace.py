"""The local overlay on a cluster: what tests do to it, and what they ask of it."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from headrace.runtime.scraped import samples
from tests.acceptance.eventually import eventually
from tests.cluster.kubectl import FIELD_MANAGER, Document, Kubectl
from tests.cluster.node.deployed.load import Load, LoadAlone, load, load_alone

HERE = Path(__file__).parent
NAMESPACE = "headrace"
GATEWAY, TRITON, ENVOY, KAFKA = "headrace-gateway", "headrace-triton", "headrace-envoy", "headrace-kafka"
DEPLOYMENTS = (KAFKA, GATEWAY, TRITON, ENVOY)
LOADS_AT_ONCE = 'string_value: "0"'
ADDRESS = "headrace-gateway:8001"
ENVOY_ADDRESS = "headrace-envoy:8000"
ADMIN_PORTS = {GATEWAY: 8002, TRITON: 8004}
RUNNING = {GATEWAY: "headrace_gateway_calls_waiting", TRITON: "headrace_router_running"}
"""What tells how many calls a pod has under way."""
BUSY_SECONDS = 60.0
LOOK_SECONDS = 5.0
"""How long kubectl waits for a deployment before the images are looked at again."""
UNFOUND = frozenset({"ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})
"""What a container waits for where its image is not to be had."""
REMEDY = "load build/cluster/images.tar into the nodes (docs/howto/test-on-kubernetes.md, a cluster of yours)"


@dataclass(frozen=True)
class Part:
    """A container of a deployment, and what tells its process."""

    deployment: str
    container: str
    program: str
    """A part of its command line."""


PARTS = {
    part.container: part
    for part in (
        Part(GATEWAY, "gateway", "-m gateway"),
        Part(TRITON, "router", "-m router"),
        Part(TRITON, "triton", "tritonserver"),
        Part(KAFKA, "kafka", "kafka.Kafka"),
    )
}


class ImageMissingError(Exception):
    """A pod waits for an image that no node has and no registry gives."""


class Headrace:
    """Everything of one deployment, by its names."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl

    def deploy(self, folder: Path = HERE, *, seconds: float) -> None:
        """Apply it, as its README says, and wait until all of it is ready. Fails at once where an image is missing."""
        words = ("apply", "--server-side", f"--field-manager={FIELD_MANAGER}", "--kustomize", str(folder))
        self.kubectl.run(*words)
        for name in DEPLOYMENTS:
            eventually(partial(self._has_rolled_out, name), seconds=seconds, what=f"{name} is ready")
        self.run("wait", "--for=condition=Ready", "pod/caller", "--timeout=60s", seconds=70)

    def exists(self) -> bool:
        """Whether the cluster has the namespace."""
        return self.kubectl.attempt("get", "namespace", NAMESPACE).returncode == 0

    def remove(self) -> None:
        """Returns once nothing of it is left: pods that drain take their time."""
        self.kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=600s", seconds=610)

    def run(self, *words: str, given: str = "", seconds: float = 60.0) -> str:
        """Call kubectl in the namespace."""
        return self.kubectl.run("--namespace", NAMESPACE, *words, given=given, seconds=seconds)

    def call(self, *command: str, given: str = "", seconds: float = 60.0) -> str:
        """Run a command in the caller's pod, and return what it prints."""
        stdin = ("--stdin",) if given else ()
        return self.run("exec", *stdin, "caller", "--", *command, given=given, seconds=seconds)

    @contextmanager
    def load(self, *options: str, address: str = ADDRESS, wait: bool = True) -> Iterator[Load]:
        """Stock clients call through the Service within the block."""
        with load(self.kubectl, NAMESPACE, "--url", address, *options, wait=wait) as running:
            yield running

    def load_alone(self, *options: str) -> AbstractContextManager[LoadAlone]:
        """The same without a connection to the caller meanwhile."""
        return load_alone(self.call, ADDRESS, *options)

    def metric(self, pod: Document, name: str, **labels: str) -> float:
        """The sum of those of a pod's series that have these labels, as the pod tells it now; 0 where it has none."""
        port = ADMIN_PORTS[pod["metadata"]["labels"]["app.kubernetes.io/name"]]
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:{port}/proxy/metrics"
        told = samples(self.kubectl.run("get", "--raw", path))
        return sum(number.value for number in told if number.name == name and labels.items() <= set(number.labels))

    def total(self, deployment: str, name: str, **labels: str) -> float:
        """The same of all of a deployment's pods."""
        return sum(self.metric(pod, name, **labels) for pod in self.pods(deployment))

    def busiest(self, deployment: str, model: str) -> Document:
        """The pod that has most of a model's calls under way; some pod has."""

        def most() -> Document | None:
            running = [(self.metric(pod, RUNNING[deployment], model=model), pod) for pod in self.pods(deployment)]
            calls, pod = max(running, key=lambda found: found[0])
            return pod if calls else None

        return eventually(most, seconds=BUSY_SECONDS, what=f"a pod of {deployment} has calls of {model}")

    def scale(self, name: str, replicas: int, *, seconds: float = 180.0) -> None:
        """So many pods, all of them ready."""
        self.run("scale", f"deployment/{name}", f"--replicas={replicas}")
        self.await_rollout(name, seconds=seconds)

    def await_rollout(self, name: str, *, seconds: float = 300.0) -> None:
        self.run("rollout", "status", f"deployment/{name}", f"--timeout={int(seconds)}s", seconds=seconds + 10)

    def _has_rolled_out(self, name: str) -> bool:
        if missing := images_missing(self.kubectl.items("pods", "--namespace", NAMESPACE)):
            raise ImageMissingError(f"not to be had: {', '.join(missing)}; {REMEDY}")
        self.await_rollout(name, seconds=LOOK_SECONDS)
        return True

    def restart(self, name: str, *, seconds: float = 300.0) -> None:
        """Replace every pod by a new one, as an upgrade does."""
        self.run("rollout", "restart", f"deployment/{name}")
        self.await_rollout(name, seconds=seconds)

    def pods(self, name: str) -> list[Document]:
        """A deployment's pods that are not on their way out, the oldest first."""
        found = self.kubectl.items("pods", "--namespace", NAMESPACE, f"--selector=app.kubernetes.io/name={label(name)}")
        staying = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(staying, key=lambda pod: pod["metadata"]["creationTimestamp"])

    def await_gone(self, name: str, uids: set[str], *, seconds: float) -> None:
        """Until none of these pods is left, those on their way out included."""
        words = ("pods", "--namespace", NAMESPACE, f"--selector=app.kubernetes.io/name={label(name)}")
        eventually(
            lambda: not uids & {pod["metadata"]["uid"] for pod in self.kubectl.items(*words)},
            seconds=seconds,
            what=f"the old pods of {name} are gone",
        )

    def await_restart(self, pod: Document, container: str, *, seconds: float) -> None:
        """Until the container was started once more than `pod` tells, and the pod is ready."""

        def started_again() -> bool:
            now = self.kubectl.get("pod", "--namespace", NAMESPACE, pod["metadata"]["name"])
            return restarts(now, container) > restarts(pod, container) and is_ready(now)

        eventually(started_again, seconds=seconds, what=f"{container} is started again, and ready")

    def await_unready(self, pod: Document, *, seconds: float) -> Document:
        """Until the pod takes no part any more, and how it was then."""

        def unready() -> Document | None:
            now = self.kubectl.get("pod", "--namespace", NAMESPACE, pod["metadata"]["name"])
            return None if is_ready(now) else now

        return eventually(unready, seconds=seconds, what=f"{pod['metadata']['name']} is unready")

    @contextmanager
    def slow_to_load(self, seconds: int) -> Iterator[None]:
        """The model `slow` takes so long to load, in pods that start within the block."""
        self._apply_model(load_seconds=seconds)
        try:
            yield
        finally:
            self._apply_model(load_seconds=0)
            self.await_rollout(TRITON)

    def _apply_model(self, *, load_seconds: int) -> None:
        """As an operator does: the same files with another setting, in a map of its own name, which rolls the pods."""
        model = HERE / "models" / "slow"
        settings = (model / "config.pbtxt").read_text()
        assert LOADS_AT_ONCE in settings
        name = f"headrace-model-slow-{load_seconds}"
        made = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "data": {
                "config.pbtxt": settings.replace(LOADS_AT_ONCE, f'string_value: "{load_seconds}"'),
                "model.py": (model / "1" / "model.py").read_text(),
            },
        }
        self.kubectl.apply([made])
        patch = {"spec": {"template": {"spec": {"volumes": [{"name": "slow", "configMap": {"name": name}}]}}}}
        self.run("patch", "deployment", TRITON, f"--patch={json.dumps(patch)}")

    def await_ready(self, name: str, count: int, *, seconds: float) -> None:
        """Until exactly so many of a deployment's pods are ready."""
        eventually(
            lambda: sum(is_ready(pod) for pod in self.pods(name)) == count,
            seconds=seconds,
            what=f"{count} ready pods of {name}",
        )


def status(pod: Document, container: str) -> Document:
    """Of a container, a sidecar's too."""
    states = [*pod["status"].get("containerStatuses", ()), *pod["status"].get("initContainerStatuses", ())]
    found: Document = next(state for state in states if state["name"] == container)
    return found


def images_missing(pods: list[Document]) -> list[str]:
    """The images that containers wait for in vain."""
    states = (
        state
        for pod in pods
        for kind in ("initContainerStatuses", "containerStatuses")
        for state in pod.get("status", {}).get(kind, ())
    )
    return sorted({state["image"] for state in states if state["state"].get("waiting", {}).get("reason") in UNFOUND})


def label(name: str) -> str:
    """A deployment's pods' name label."""
    return "kafka" if name == KAFKA else name


def is_ready(pod: Document) -> bool:
    """Whether the pod takes part."""
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"].get("conditions", ())
    )


def restarts(pod: Document, container: str) -> int:
    """How often a container was started again."""
    count: int = status(pod, container)["restartCount"]
    return count

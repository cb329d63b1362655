"""deploy/k8s as a cluster gets it: what there is to apply, rendered into a namespace, and the pods in it."""

import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.cluster.kubectl import Document, Kubectl

ROOT = Path(__file__).parents[2] / "deploy" / "k8s"
OVERLAYS = ("local", "production", "production-spot", "staging")
COMPONENTS = (
    "envoy",
    "gpu",
    "kafka-strimzi",
    "keda",
    "model-store",
    "monitoring",
    "network-policies",
    "postgres",
    "redis",
    "spot",
    "tls",
)
"""What must be there; what else is found is tested too."""

NEEDS = {"envoy-tls": ("envoy", "tls"), "keda-strimzi": ("keda", "kafka-strimzi")}
"""Components that change what other components brought, with those."""

STRICT = {"pod-security.kubernetes.io/enforce": "restricted"}


@dataclass(frozen=True)
class Case:
    """Something that is applied as a whole: an overlay, or the base with one component."""

    name: str
    resources: Path
    components: tuple[Path, ...] = ()

    @property
    def namespace(self) -> str:
        """A namespace of its own, so that cases stand beside each other."""
        return f"headrace-test-{self.name}"

    def render(self, kubectl: Kubectl, folder: Path) -> list[Document]:
        """Every object, in the case's namespace. The namespace itself is one of them."""
        home = folder / self.name
        home.mkdir(parents=True)
        (home / "kustomization.yaml").write_text(
            json.dumps(
                {
                    "apiVersion": "kustomize.config.k8s.io/v1beta1",
                    "kind": "Kustomization",
                    "namespace": self.namespace,
                    "resources": [os.path.relpath(self.resources, home)],
                    "components": [os.path.relpath(component, home) for component in self.components],
                }
            )
        )
        documents = [document for document in yaml.safe_load_all(kubectl.run("kustomize", str(home))) if document]
        for volume in of_kind(documents, "PersistentVolume"):
            # kustomize knows every other place that names a namespace.
            volume["spec"]["claimRef"]["namespace"] = self.namespace
        return documents


def overlays() -> list[Case]:
    """Each environment."""
    found = sorted((ROOT / "overlays").glob("*/kustomization.yaml"))
    return [Case(path.parent.name, path.parent) for path in found if not _is_component(path)]


def components() -> list[Case]:
    """The base with each feature alone, or with what the feature can't be without."""
    home = ROOT / "components"
    found = [path.parent for path in sorted(home.rglob("kustomization.yaml")) if _is_component(path)]
    return [
        Case(
            "with-" + "-".join(path.relative_to(home).parts),
            ROOT / "base",
            (*(home / needed for needed in NEEDS.get(path.name, ())), path),
        )
        for path in found
    ]


def _is_component(path: Path) -> bool:
    return bool(yaml.safe_load(path.read_text())["kind"] == "Component")


def group(document: Document) -> str:
    """The API group of an object; empty for the core's."""
    version: str = document["apiVersion"]
    return version.rpartition("/")[0]


def of_kind(documents: Iterable[Document], *kinds: str) -> list[Document]:
    """Those of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def pods(documents: Iterable[Document]) -> Iterator[Document]:
    """Each pod template as a pod of its own: an admission of the workload says nothing about its pods."""
    for document in documents:
        match document["kind"]:
            case "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job":
                template = document["spec"]["template"]
            case "CronJob":
                template = document["spec"]["jobTemplate"]["spec"]["template"]
            case "Kafka":
                yield from _of_strimzi(document)
                continue
            case _:
                continue
        spec = copy.deepcopy(template["spec"])
        if document["kind"] in {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"}:
            spec.setdefault("restartPolicy", "Always")
        for claim in document["spec"].get("volumeClaimTemplates", ()):
            spec.setdefault("volumes", []).append({"name": claim["metadata"]["name"], "emptyDir": {}})
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                **copy.deepcopy(template.get("metadata", {})),
                "name": f"{document['metadata']['name']}-{document['kind'].lower()}",
                "namespace": document["metadata"]["namespace"],
            },
            "spec": spec,
        }


def _of_strimzi(kafka: Document) -> Iterator[Document]:
    """What its operator makes, as far as a Kafka says how safe it is: by default that is not safe enough."""
    containers = {
        "kafka": {"initContainers": ["initContainer"], "containers": ["kafkaContainer"]},
        "entityOperator": {"containers": ["topicOperatorContainer", "userOperatorContainer"]},
    }
    for part, kinds in containers.items():
        told = copy.deepcopy(kafka["spec"][part]["template"])
        made = {
            kind: [{"name": name.lower(), "image": "strimzi", **told[name]} for name in names]
            for kind, names in kinds.items()
        }
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{kafka['metadata']['name']}-{part.lower()}-strimzi",
                "namespace": kafka["metadata"]["namespace"],
            },
            # Its operator gives the accounts; a token is not what is looked at.
            "spec": {**told["pod"], **made, "automountServiceAccountToken": False},
        }


def _first_container(pod: Document) -> Document:
    found: Document = pod["spec"]["containers"][0]
    return found


def _security(pod: Document, **changed: object) -> None:
    _first_container(pod).setdefault("securityContext", {}).update(changed)


def _as_root(pod: Document) -> None:
    _security(pod, runAsNonRoot=False, runAsUser=0)


def _privileged(pod: Document) -> None:
    _security(pod, privileged=True, allowPrivilegeEscalation=True)


def _with_escalation(pod: Document) -> None:
    _security(pod, allowPrivilegeEscalation=True)


def _with_a_capability(pod: Document) -> None:
    _security(pod, capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]})


def _with_all_capabilities(pod: Document) -> None:
    _security(pod, capabilities={})


def _without_seccomp(pod: Document) -> None:
    _security(pod, seccompProfile={"type": "Unconfined"})


def _on_the_hosts_network(pod: Document) -> None:
    pod["spec"]["hostNetwork"] = True


def _among_the_hosts_processes(pod: Document) -> None:
    pod["spec"]["hostPID"] = True


def _on_a_port_of_the_host(pod: Document) -> None:
    ports = _first_container(pod).setdefault("ports", [])
    ports.append({"name": "of-the-host", "containerPort": 31999, "hostPort": 31999})


def _with_the_hosts_files(pod: Document) -> None:
    pod["spec"].setdefault("volumes", []).append({"name": "of-the-host", "hostPath": {"path": "/"}})


SPOILT: dict[str, Callable[[Document], None]] = {
    "as-root": _as_root,
    "privileged": _privileged,
    "with-escalation": _with_escalation,
    "with-a-capability": _with_a_capability,
    "with-all-capabilities": _with_all_capabilities,
    "without-seccomp": _without_seccomp,
    "on-the-hosts-network": _on_the_hosts_network,
    "among-the-hosts-processes": _among_the_hosts_processes,
    "on-a-port-of-the-host": _on_a_port_of_the_host,
    "with-the-hosts-files": _with_the_hosts_files,
}
"""Ways to make a pod bad; each alone is one that `restricted` refuses."""


def spoilt(pod: Document) -> Iterator[Document]:
    """A bad copy of a pod for each way to spoil it."""
    for name, spoil in SPOILT.items():
        bad = copy.deepcopy(pod)
        bad["metadata"]["name"] += f"-{name}"
        spoil(bad)
        yield bad

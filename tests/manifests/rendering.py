"""Renders overlays and sets of components with kustomize, and knows what pods there are and what they are told."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.parts import missing

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("local", "staging", "production", "production-spot")

SETS: Mapping[str, Sequence[str]] = {
    "base": (),
    "tls": ("tls",),
    "keda": ("keda", "monitoring"),
    "database": ("database", "postgres"),
    "strimzi": ("kafka-strimzi",),
    "nfs": ("model-store/nfs", "network-policies"),
    "gpu": ("gpu", "model-store/s3"),
    "spot": ("spot",),
    "envoy": ("envoy", "network-policies"),
    "redis": ("redis",),
    "canary": (
        "canary",
        "database",
        "postgres",
        "kafka-strimzi",
        "redis",
        "envoy",
        "tls",
        "envoy-tls",
        "gpu",
        "model-store/s3",
        "monitoring",
        "network-policies",
    ),
    "blue-green": (
        "blue-green",
        "database",
        "kafka-strimzi",
        "redis",
        "tls",
        "gpu",
        "model-store/s3",
        "monitoring",
        "network-policies",
        "keda",
        "keda-strimzi",
    ),
}
"""Components on the base, in an order that holds, with the images pinned."""

ON_LOCAL = "local-guarded"
"""The local overlay with network policies, the one case with a broker's pod of ours."""

CASES = (*OVERLAYS, *SETS, ON_LOCAL)

Json = dict[str, Any]  # Any: what an object of Kubernetes holds


@dataclass(frozen=True)
class Pod:
    """A pod template, and the object that makes pods of it."""

    owner: Json
    labels: Mapping[str, str]
    spec: Json

    @property
    def name(self) -> str:
        """Its owner's kind and name."""
        return f"{self.owner['kind']}/{self.owner['metadata']['name']}"

    @property
    def component(self) -> str:
        """What it is to the others."""
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def sidecars(self) -> list[Json]:
        """Init containers that stay."""
        return [each for each in self.spec.get("initContainers", ()) if each.get("restartPolicy") == "Always"]

    @property
    def containers(self) -> list[Json]:
        """All of them."""
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]

    @property
    def lasting(self) -> list[Json]:
        """Those that run for as long as the pod does; none in a job's pod."""
        return [] if self.owner["kind"] == "Job" else [*self.sidecars, *self.spec["containers"]]

    def container(self, name: str) -> Json:
        """One of them."""
        return next(each for each in self.containers if each["name"] == name)


class Manifests:
    """What a cluster would be given."""

    def __init__(self, name: str, objects: list[Json]) -> None:
        self.name = name
        self.objects = objects

    def of(self, *kinds: str) -> list[Json]:
        """All objects of these kinds."""
        return [each for each in self.objects if each["kind"] in kinds]

    def find(self, kind: str, name: str) -> Json | None:
        """One object, by its whole name."""
        return next((each for each in self.of(kind) if each["metadata"]["name"] == name), None)

    @cached_property
    def pods(self) -> list[Pod]:
        """Every pod template."""
        return [
            Pod(owner, template["metadata"].get("labels", {}), template["spec"])
            for owner in self.of("Deployment", "StatefulSet", "DaemonSet", "Job")
            for template in [owner["spec"]["template"]]
        ]

    def environment(self, container: Json) -> dict[str, str]:
        """What a container finds in its environment, as the kubelet would put it there."""
        found: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            found |= self._data(source["configMapRef"]["name"])
        for entry in container.get("env", ()):
            if "value" in entry:
                found[entry["name"]] = _expanded(entry["value"], found)
            elif (field := entry["valueFrom"].get("fieldRef")) is not None:
                found[entry["name"]] = {"status.podIP": "10.1.2.3"}[field["fieldPath"]]
            elif (key := entry["valueFrom"].get("configMapKeyRef")) is not None:
                found[entry["name"]] = self._data(key["name"])[key["key"]]
        return found

    def _data(self, name: str) -> dict[str, str]:
        found = self.find("ConfigMap", name)
        return {} if found is None else found.get("data", {})


def _expanded(value: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: known.get(match[1], match[0]), value)


def render(folder: Path) -> list[Json]:
    """What kustomize makes of a folder. Fails with what kustomize said."""
    if (kustomize := shutil.which("kustomize")) is not None:
        command = [kustomize, "build", str(folder)]
    elif (kubectl := shutil.which("kubectl")) is not None:
        command = [kubectl, "kustomize", str(folder)]
    else:
        missing("kustomize", "install kubectl (its `kustomize` command is enough) or kustomize")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each is not None]


def render_set(components: Sequence[str], scratch: Path, *, root: str = "base") -> list[Json]:
    """The base, or what else is the root, with these components."""
    # kustomize takes folders by relative paths alone.
    relative = [os.path.relpath(K8S / path, scratch) for path in (root, *components)]
    kustomization = {
        "namespace": "headrace",
        "labels": [{"pairs": {"app.kubernetes.io/part-of": "headrace"}}],  # as every overlay does
        "resources": relative[:1],
        "components": relative[1:],
    }
    (scratch / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return render(scratch)


def strings(value: object) -> Iterator[str]:
    """Every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from strings(each)

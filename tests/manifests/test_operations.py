"""Canary and blue-green, with the patches of their pages: they do what is said, and every rule holds meanwhile."""

import os
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.rendering import K8S, ROOT, SETS, Json, Manifests, render
from tests.manifests.test_rules import RULES

HOWTO = ROOT / "docs" / "howto"
Operation = Callable[[str, list[Json]], Manifests]


def patches(page: str, section: str) -> list[Json]:
    """The patches of a page's section, in its order."""
    found: list[Json] = []
    for said in blocks(page, section):
        found += said["patches"] if isinstance(said, dict) else said
    return found


def blocks(page: str, section: str) -> list[Any]:  # Any: YAML of any kind
    """What a section tells an overlay to have."""
    text = (HOWTO / page).read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {section}\n")
    assert found, section
    shown = re.findall(r"(?:^(?: {4,}.*)?\n)+", rest.partition("\n## ")[0], re.MULTILINE)
    return [yaml.safe_load(textwrap.dedent(block)) for block in shown if "- target:" in block]


@pytest.fixture(params=["s3", "nfs"])
def store(request: pytest.FixtureRequest) -> str:
    """Where models come from: the pages' patches hold for either."""
    return str(request.param)


@pytest.fixture
def operate(tmp_path: Path, store: str) -> Operation:
    """A set of components with patches on top."""

    def make(case: str, wanted: list[Json]) -> Manifests:
        components = [each.replace("model-store/s3", f"model-store/{store}") for each in SETS[case]]
        paths = ["base", *(f"components/{each}" for each in components), "overlays/images"]
        relative = [os.path.relpath(K8S / path, tmp_path) for path in paths]
        kustomization = {
            "namespace": "headrace",
            "labels": [{"pairs": {"app.kubernetes.io/part-of": "headrace"}}],
            "resources": relative[:1],
            "components": relative[1:],
            "patches": wanted,
        }
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return Manifests(case, render(tmp_path))

    return make


def test_a_canary_runs_another_revision_and_its_gateway_waits_for_it(operate: Operation) -> None:
    manifests = operate("canary", patches("canary.md", "Begin"))
    pods = {pod.name.partition("/")[2]: pod for pod in manifests.pods}

    revisions = {
        name: manifests.environment(pods[name].container("models"))["REVISION"]
        for name in ("headrace-triton", "headrace-triton-canary")
    }
    assert revisions == {"headrace-triton": "1", "headrace-triton-canary": "2"}
    assert pods["headrace-gateway-canary"].owner["spec"]["replicas"] == 0
    assert broken(manifests) == []


def test_a_canary_stands_behind_the_same_services(operate: Operation) -> None:
    manifests = operate("canary", [])
    service = manifests.find("Service", "headrace-gateway")
    assert service is not None

    behind = {p.name for p in manifests.pods if service["spec"]["selector"].items() <= p.labels.items()}
    assert behind == {"Deployment/headrace-gateway", "Deployment/headrace-gateway-canary"}
    pools = {p.name: p.labels["headrace.dev/pool"] for p in manifests.pods if "canary" in p.name}
    assert set(pools.values()) == {"canary"}


def test_a_canary_without_a_store_mounts_another_model(tmp_path: Path) -> None:
    """On the local overlay, whose own patches must reach the second pool too."""
    deploy = tmp_path / "deploy" / "k8s"
    shutil.copytree(K8S, deploy)
    overlay = deploy / "overlays" / "local"
    shutil.copytree(overlay / "models" / "simple", overlay / "models" / "simple-2")
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text(encoding="utf-8"))
    (told,) = blocks("canary.md", "Without a model store")
    for name, entries in told.items():
        kustomization[name] += entries
    kustomization["components"].insert(0, "../../components/canary")
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")

    manifests = Manifests("local with a canary", render(overlay))
    mounted = {
        pod.name.partition("/")[2]: next(each for each in pod.spec["volumes"] if each["name"] == "models")["configMap"]
        for pod in manifests.pods
        if pod.component == "router"
    }
    names = {name: re.sub(r"-[a-z0-9]{10}$", "", each["name"]) for name, each in mounted.items()}
    assert names == {"headrace-triton": "headrace-model-simple", "headrace-triton-canary": "headrace-model-simple-2"}
    assert all(manifests.find("ConfigMap", each["name"]) for each in mounted.values())
    assert broken(manifests) == []


def test_blue_green_switches_the_gateways_alone(operate: Operation) -> None:
    manifests = operate("blue-green", patches("upgrade.md", "Blue-green"))
    served = {
        pod.name.partition("/")[2]: pod.labels["headrace.dev/pool"]
        for pod in manifests.pods
        if pod.component in {"gateway", "router"}
    }

    assert served == {"headrace-gateway": "green", "headrace-triton": "default", "headrace-triton-green": "green"}
    green = next(pod for pod in manifests.pods if pod.name.endswith("-green"))
    assert manifests.environment(green.container("models"))["REVISION"] == "2"
    assert broken(manifests) == []


def broken(manifests: Manifests) -> list[str]:
    """What breaks a rule."""
    return [f"{rule.__name__}: {each}" for rule in RULES for each in rule(manifests)]

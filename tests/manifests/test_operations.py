"""Canary and blue-green, with the patches of their pages: they do what is said, and every rule holds meanwhile."""

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.manifests.rendering import K8S, ROOT, SETS, Json, Manifests, render
from tests.manifests.test_rules import RULES

HOWTO = ROOT / "docs" / "howto"
Operation = Callable[[str, list[Json]], Manifests]


def patches(page: str) -> list[Json]:
    """The patches of a page, in its order."""
    text = (HOWTO / page).read_text(encoding="utf-8")
    found: list[Json] = []
    for block in re.findall(r"(?:^(?: {4,}.*)?\n)+", text, re.MULTILINE):
        if "- target:" in block:
            said = yaml.safe_load(textwrap.dedent(block))
            found += said["patches"] if isinstance(said, dict) else said
    return found


@pytest.fixture
def operate(tmp_path: Path) -> Operation:
    """A set of components with patches on top."""

    def make(case: str, wanted: list[Json]) -> Manifests:
        paths = ["base", *(f"components/{each}" for each in SETS[case]), "overlays/images"]
        relative = [os.path.relpath(K8S / path, tmp_path) for path in paths]
        kustomization = {
            "namespace": "headrace",
            "resources": relative[:1],
            "components": relative[1:],
            "patches": wanted,
        }
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
        return Manifests(case, render(tmp_path))

    return make


def test_a_canary_runs_another_revision_and_its_gateway_waits_for_it(operate: Operation) -> None:
    manifests = operate("canary", patches("canary.md"))
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


def test_blue_green_switches_the_gateways_alone(operate: Operation) -> None:
    manifests = operate("blue-green", patches("upgrade.md"))
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

"""The pages on operating Headrace in a cluster name only what there is."""

import re
from pathlib import Path

import pytest
import typer.main

from gateway.errors import leaves
from headrace.cli import app
from tests.manifests.rendering import K8S, ROOT
from tests.manifests.scaling import exported

PAGES = [
    ROOT / "docs" / "howto" / f"{name}.md"
    for name in (
        "add-a-model",
        "canary",
        "deploy",
        "drain-a-node",
        "lose-a-zone",
        "rotate-keys-and-certificates",
        "scale",
        "upgrade",
    )
]
ALL = [*PAGES, *sorted(K8S.rglob("README.md")), ROOT / "deploy" / "images" / "README.md"]
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")

ids = pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))


@ids
def test_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.])(deploy/[\w/.-]+[\w-]|tests/manifests)", text))
    named |= {
        f"deploy/k8s/{each}" for each in re.findall(r"(?<![\w/.])((?:components|overlays)/[a-z][\w/.-]*\w)", text)
    }

    assert {each for each in named if not (ROOT / each).exists()} == set()


@ids
def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = set(getattr(typer.main.get_command(app), "commands", ()))

    assert set(re.findall(r"(?:`|^ *)headrace ([a-z]+)", text, re.MULTILINE)) <= known


@ids
def test_metrics_settings_and_reasons_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    settings = {each.rstrip("_") for each in re.findall(r"HEADRACE_[A-Z_]+", text)} - {"HEADRACE"}
    metrics = {each for each in re.findall(r"\bheadrace_[a-z_]+[a-z]", text) if not each.startswith("headrace_window")}
    codes = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)`", text))
    reasons = codes - {"NOT_SERVING", "KIND_AUTO", "HEADRACE_GATEWAY_PORT"}

    assert {each for each in settings if each not in SETTINGS} <= {"HEADRACE_GATEWAY_PORT"}
    assert metrics <= exported()
    assert {each for each in reasons if not each.startswith(("HEADRACE_", "STRIMZI_"))} <= {
        leaf.reason for leaf in leaves()
    }


@ids
def test_named_objects_are_rendered_somewhere(page: Path) -> None:
    """`deployment/…` and `job …` of commands are names of manifests."""
    text = page.read_text(encoding="utf-8")
    known = {
        name
        for path in K8S.rglob("*.yaml")
        for name in re.findall(r"name: (headrace-[a-z-]+)", path.read_text(encoding="utf-8"))
    }
    known |= {f"{name}-{suffix}" for name in known for suffix in ("canary", "green")}

    named = set(re.findall(r"(?:deployment|kafka|service|job|pdb)[/ ](headrace-[a-z-]+)", text))
    assert named <= known

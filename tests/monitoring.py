"""Reads deploy/monitoring as Prometheus and Grafana would: its queries, and the metrics and labels in them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "monitoring"
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
RULES = sorted((FOLDER / "rules").glob("*.yaml"))
TESTS = sorted((FOLDER / "rules" / "tests").glob("*.yaml"))
CONFIGS = sorted(FOLDER.glob("prometheus*.yaml"))

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "on", "without", "ignoring", "group_left", "group_right"}


@dataclass(frozen=True)
class Query:
    """One expression, and where it stands."""

    where: str
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Rule:
    """A rule as the file has it."""

    file: str
    name: str
    expr: str
    whole: dict[str, Any]

    @property
    def conditions(self) -> list[str]:
        """What each can fire for: an `or` on a line of its own stands between whole conditions."""
        return re.split(r"\nor\n", self.expr)


def read(path: Path) -> Any:
    """A file of YAML."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def rules(kind: str) -> tuple[Rule, ...]:
    """Every `record` or `alert`."""
    return tuple(
        Rule(path.name, rule[kind], rule["expr"].strip(), rule)
        for path in RULES
        for group in read(path)["groups"]
        for rule in group["rules"]
        if kind in rule
    )


def panels(path: Path) -> list[dict[str, Any]]:
    """A dashboard's panels, without the headings."""
    return [panel for panel in json.loads(path.read_text(encoding="utf-8"))["panels"] if panel["type"] != "row"]


def dashboard_queries() -> Iterator[Query]:
    """What the panels ask."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield Query(f"{path.stem}: {panel['title']}", target["expr"], target["legendFormat"])


def rule_queries() -> Iterator[Query]:
    """What the rules ask."""
    for rule in (*rules("record"), *rules("alert")):
        yield Query(f"{rule.file}: {rule.name}", rule.expr)


def documented_queries() -> Iterator[Query]:
    """What the page on capacity tells to ask: the indented lines that name a metric, formulas aside."""
    page = FOLDER.parents[1] / "docs" / "howto" / "capacity-planning.md"
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("    ") and re.search(r"headrace[_:]|process_", line):
            yield Query(f"{page.stem}: {line.strip()}", line.strip())


def selectors(expr: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every metric that is asked for, with the value of each label that is matched."""
    bare = re.sub(r"\b(by|on|without|ignoring)\s*\([^)]*\)", " ", expr)
    for found in re.finditer(rf"(?<![\w:.$\"])({_NAME})\s*(\{{[^}}]*\}}|\()?|\"[^\"]*\"|\[[^\]]*\]", bare):
        name, after = found[1], found[2] or ""
        if name and name not in _WORDS and after != "(":
            yield name, dict(re.findall(rf'({_NAME})\s*(?:=~|!~|!=|=)\s*"([^"]*)"', after))


def grouped(expr: str) -> set[str]:
    """The labels that an expression aggregates by or matches on."""
    return {label for inside in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expr) for label in re.findall(_NAME, inside)}

"""Prometheus' own tool reads the rules and the scrape configurations, and runs the tests of the rules."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.monitoring import CONFIGS, FOLDER, RULES, TESTS
from tests.parts import missing

SECONDS = 100.0


@pytest.fixture(scope="module")
def promtool() -> str:
    """Debian's, or any other."""
    found = shutil.which("promtool") or shutil.which("promtool", path="/usr/bin")
    return found or missing("promtool", "install Debian's package `prometheus`")


def run(*command: str | Path) -> str:
    """What it said; it ended well."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_valid(promtool: str) -> None:
    said = run(promtool, "check", "rules", "--lint=all", "--lint-fatal", *RULES)

    assert said.count("SUCCESS") == len(RULES)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_the_tests_of_the_rules_pass(promtool: str, path: Path) -> None:
    assert "SUCCESS" in run(promtool, "test", "rules", path)


def test_a_rule_that_never_fires_fails_its_test(promtool: str, tmp_path: Path) -> None:
    """The tests of the rules would notice."""
    (tmp_path / "tests").mkdir()
    for path in RULES:
        text = re.sub(r"expr: up\{job=\"headrace-router\"\} == 0", "expr: up == 7", path.read_text())
        (tmp_path / path.name).write_text(text)
    [tests] = [path for path in TESTS if path.stem == "alerts_test"]
    copied = tmp_path / "tests" / tests.name
    copied.write_text(tests.read_text())

    done = subprocess.run(
        [promtool, "test", "rules", str(copied)], capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert done.returncode != 0
    assert "HeadraceRouterDown" in done.stdout + done.stderr


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_scrape_configuration_is_valid(promtool: str, path: Path, tmp_path: Path) -> None:
    # Debian builds Prometheus without Kubernetes: who finds the targets is left out.
    text = path.read_text().replace("kubernetes_sd_configs:\n      - role: pod\n", "static_configs: []\n")
    copied = tmp_path / path.name
    copied.write_text(text.replace("rules/*.yaml", f"{FOLDER}/rules/*.yaml"))

    assert "SUCCESS" in run(promtool, "check", "config", copied)

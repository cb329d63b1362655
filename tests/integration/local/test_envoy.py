"""Envoy's configuration, judged by the real Envoy."""

import subprocess
from pathlib import Path

import pytest

from headrace.local import envoy
from headrace.local.program import Program


def made(home: Path, **other: object) -> Program:
    configuration = envoy.configuration(
        host="127.0.0.1",
        port=8000,
        admin_port=9901,
        gateways=[("127.0.0.1", 8001), ("::1", 8011)],
        max_message_bytes=64 << 20,
    )
    return envoy.program(name="envoy", home=home, configuration=configuration | other)


def validated(program: Program) -> subprocess.CompletedProcess[str]:
    command = [*program.argv, "--mode", "validate"]
    return subprocess.run(command, cwd=program.cwd, capture_output=True, text=True, timeout=30, check=False)


def test_envoy_takes_the_configuration(tmp_path: Path) -> None:
    judged = validated(made(tmp_path))

    assert judged.returncode == 0, judged.stderr
    assert "Deprecated" not in judged.stderr


def test_the_judgement_is_worth_something(tmp_path: Path) -> None:
    assert validated(made(tmp_path, admin={"no": "such field"})).returncode != 0


def test_where_envoy_is_missing_the_next_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(envoy.EnvoyMissingError, match="pip install"):
        made(tmp_path)

"""`headrace gateway`, `router` and `aggregator`: the way into the processes, up to their own word on the settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.cli.processes import Process


@pytest.mark.parametrize("process", Process)
def test_a_file_of_the_users_is_never_taken_for_a_process(tmp_path: Path, process: Process) -> None:
    """What lies in the folder that the command is typed in is no part of Headrace."""
    (tmp_path / f"{process.value}.py").write_text("print('a file of the user runs')")

    done = subprocess.run(
        [sys.executable, "-P", "-m", "headrace.cli", process.value],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "HEADRACE_" in done.stderr


@pytest.mark.parametrize("process", Process)
def test_what_the_environment_says_of_malloc_and_grpc_wins(monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    """The core of gRPC can be debugged through `headrace gateway`."""
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda _path, argv, environ: started.append((argv, environ)))
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)

    CliRunner().invoke(app, [process.value])

    [(argv, environ)] = started
    assert argv[1:] == ["-P", "-m", process.value]
    assert environ["GRPC_VERBOSITY"] == "DEBUG"
    assert environ["MALLOC_TRIM_THRESHOLD_"] == str(1 << 32)


def test_the_settings_of_an_aggregator_can_be_printed_and_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its password's file is named, and not shown."""
    (tmp_path / "password").write_text("very secret")
    stated = {
        "HEADRACE_DATABASE__URL": "postgresql://headrace@db:5432/headrace?sslmode=require",
        "HEADRACE_DATABASE__PASSWORD_FILE": str(tmp_path / "password"),
        "HEADRACE_AGGREGATOR__RETENTION_DAYS": "100",
    }
    for name, value in stated.items():
        monkeypatch.setenv(name, value)

    done = CliRunner().invoke(app, ["config", "aggregator"])

    assert done.exit_code == 0, done.output
    printed = dict(line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#"))
    assert stated.items() <= printed.items()
    assert printed["HEADRACE_AGGREGATOR__ADMIN__PORT"] == "8005"
    assert "very secret" not in done.stdout


def test_an_aggregator_without_a_database_is_told_what_to_set() -> None:
    done = CliRunner().invoke(app, ["config", "aggregator"])

    assert done.exit_code == 2
    assert "HEADRACE_DATABASE__URL" in done.stderr

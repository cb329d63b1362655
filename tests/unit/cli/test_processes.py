"""`headrace gateway` and `headrace router`: the way into the processes, up to their own word on the settings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli import processes
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


def test_what_the_environment_says_of_malloc_and_grpc_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core of gRPC can be debugged through `headrace gateway`."""
    started: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda _path, _argv, environ: started.append(environ))
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)

    processes._gateway()

    assert started[0]["GRPC_VERBOSITY"] == "DEBUG"
    assert started[0]["MALLOC_TRIM_THRESHOLD_"] == str(1 << 32)

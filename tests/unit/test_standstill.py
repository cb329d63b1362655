"""Which tests are run again after the machine stood still."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standstill import RUNS

ROOT = Path(__file__).parents[2]
STORY = '''
import os, subprocess
from pathlib import Path

import pytest

RUNS = Path(__file__).with_name("runs")


def begun():
    """Which run this is, from 1 on."""
    with RUNS.open("a") as runs:
        runs.write("x")
    return len(RUNS.read_text())


def stand_still():
    """The whole process, for longer than counts as a standstill."""
    stop = f"kill -STOP {os.getpid()}; sleep 1.5; kill -CONT {os.getpid()}"
    subprocess.run(["sh", "-c", stop], check=True)
'''


def told(folder: Path, test: str, *more: str) -> tuple[str, int]:
    """What pytest says of a test, and how often it was run."""
    (folder / "pytest.ini").touch()
    (folder / "test_story.py").write_text(STORY + test)
    options = [
        "-p",
        "tests.standstill",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        "-c",
        "pytest.ini",
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *more, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr, len((folder / "runs").read_text())


def test_a_test_that_failed_while_the_machine_stood_still_is_run_again_on_new_parts(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
@pytest.fixture(scope="session")
def part():
    part = []
    yield part
    assert len(part) == 1


def test_spoilt(part):
    part.append(1)
    if begun() == 1:
        stand_still()
        assert 1 == 2, "it broke"
    assert len(part) == 1
""",
    )

    assert runs == 2, out
    assert "1 passed in" in out, out
    assert re.search(r"test_spoilt: the machine stood still for [1-9]\.\d s: AssertionError: it broke", out), out


def test_a_part_that_could_not_be_set_up_while_the_machine_stood_still_is_set_up_again(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
@pytest.fixture(scope="module")
def part():
    if begun() == 1:
        stand_still()
        raise OSError("it broke")


def test_spoilt(part):
    pass
""",
    )

    assert (runs, "1 passed in" in out, "OSError: it broke" in out) == (2, True, True), out


def test_what_a_standstill_broke_may_fail_in_the_next_test(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
def test_lucky():
    stand_still()


def test_spoilt():
    assert begun() == 2
""",
    )

    assert (runs, "2 passed in" in out) == (2, True), out


def test_a_run_again_has_an_end_too(tmp_path: Path) -> None:
    out, _ = told(
        tmp_path,
        """
def test_hangs():
    if begun() == 1:
        stand_still()
        assert False
    import time
    time.sleep(60)
""",
        "--timeout=4",
    )

    assert "1 failed in" in out, out
    assert "Timeout" in out, out


@pytest.mark.parametrize("how", ["in a cluster", "to the first failure"])
def test_what_is_not_to_be_run_again_is_run_once(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "cluster" if how == "in a cluster" else tmp_path
    folder.mkdir(exist_ok=True)
    out, runs = told(
        folder,
        """
def test_spoilt():
    begun()
    stand_still()
    assert False
""",
        *([f"--rootdir={tmp_path}"] if how == "in a cluster" else ["-x"]),
    )

    assert (runs, "1 failed" in out) == (1, True), out


def test_what_fails_while_the_machine_runs_is_run_once(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
def test_wrong():
    begun()
    assert False
""",
    )

    assert (runs, "1 failed in" in out, "stood still" in out) == (1, True, False), out


def test_what_fails_each_time_fails(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
def test_wrong():
    begun()
    stand_still()
    assert False
""",
    )

    assert runs == RUNS, out
    assert "1 failed in" in out, out


def test_a_standstill_excuses_one_run(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
def test_wrong():
    if begun() == 1:
        stand_still()
    assert False
""",
    )

    assert runs == 2, out
    assert "1 failed in" in out, out


@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_failure_of_clean_up_counts_whatever_the_machine_did(tmp_path: Path, scope: str) -> None:
    """It may tell of all the tests before."""
    out, runs = told(
        tmp_path,
        f"""
@pytest.fixture(scope="{scope}")
def part():
    yield
    assert False, "left behind"


def test_spoilt(part):
    begun()
    stand_still()
    assert False


def test_next():
    pass
""",
    )

    assert (runs, "run again" in out) == (1, False), out
    assert "1 failed, 1 passed, 1 error in" in out, out


def test_what_passes_is_run_once_however_the_machine_stood(tmp_path: Path) -> None:
    out, runs = told(
        tmp_path,
        """
def test_lucky():
    begun()
    stand_still()
""",
    )

    assert (runs, "1 passed in" in out, "run again" in out) == (1, True, False), out

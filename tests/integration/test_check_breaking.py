"""`scripts/check-breaking` says what it compared with, and never takes a missing history for a good comparison."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check-breaking"
# Whoever runs the tests may have settings of their own.
ENV = {name: value for name, value in os.environ.items() if name != "BASE"} | {
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(folder: Path, *words: str) -> None:
    subprocess.run(
        ["/usr/bin/env", "git", "-C", str(folder), *words], env=ENV, check=True, capture_output=True, timeout=30
    )


def commit(checkout: Path, subject: str) -> None:
    (checkout / "protos" / "a.proto").write_text(subject)
    git(checkout, "add", "buf.yaml", "protos")
    git(checkout, "commit", "--message", subject)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository on main, with one commit."""
    made = tmp_path / "checkout"
    (made / "protos").mkdir(parents=True)
    (made / "buf.yaml").touch()
    git(tmp_path, "init", "--initial-branch", "main", str(made))
    commit(made, "first")
    return made


def shallow(checkout: Path, branch: str) -> Path:
    """A clone as CI makes it: one commit of one branch."""
    made = checkout.with_name("clone")
    git(checkout, "clone", "--depth", "1", "--single-branch", "--branch", branch, f"file://{checkout}", str(made))
    return made


def check(checkout: Path) -> tuple[int, list[str]]:
    """Exit status and lines, with a stand-in for buf that shows what it was to compare with."""
    buf = checkout.with_name("buf")
    buf.write_text('#!/bin/sh\ncat "$3/protos/a.proto"\n')
    buf.chmod(0o700)
    (checkout / "build" / "protos").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [SCRIPT, buf, "build/protos"],
        cwd=checkout,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def test_a_branch_is_compared_with_main(checkout: Path) -> None:
    git(checkout, "switch", "--create", "branch")
    commit(checkout, "second")

    status, (said, compared) = check(checkout)

    assert (status, compared) == (0, "first")
    assert "main, " in said
    assert said.endswith("first")


def test_main_is_compared_with_the_commit_before(checkout: Path) -> None:
    commit(checkout, "second")

    assert check(checkout)[1][-1] == "first"


def test_what_is_not_committed_is_compared_with_the_last_commit(checkout: Path) -> None:
    (checkout / "protos" / "a.proto").write_text("changed")

    assert check(checkout)[1][-1] == "first"


def test_a_main_whose_past_is_missing_is_said(checkout: Path) -> None:
    commit(checkout, "second")

    status, (said,) = check(shallow(checkout, "main"))

    assert (status, "too shallow" in said) == (0, True)


def test_a_clone_without_main_is_said(checkout: Path) -> None:
    git(checkout, "switch", "--create", "branch")

    status, (said,) = check(shallow(checkout, "branch"))

    assert (status, "neither origin/main nor main" in said) == (0, True)


def test_the_first_commit_has_nothing_before_it(checkout: Path) -> None:
    status, (said,) = check(checkout)

    assert (status, "compared with nothing: main has one commit" in said) == (0, True)

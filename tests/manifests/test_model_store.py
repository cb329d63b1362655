"""The scripts that fetch a revision of the models: what is whole is taken, all else keeps the pod from starting."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests.rendering import K8S
from tests.parts import missing

STORE = K8S / "components" / "model-store"
FILES = {"simple/config.pbtxt": "name: 'simple'", "simple/1/model.py": "pass", "two words/1/model.plan": "x"}
# Has the remote at hand: what it is told is `--config FILE sync … FROM TO`.
FAKE_RCLONE = """#!/bin/bash
rm -rf "${@: -1}"/* && cp -R "${@: -2:1}/." "${@: -1}/"
"""

Run = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def revision(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "1"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    sums = [f"{hashlib.sha256(text.encode()).hexdigest()}  ./{name}\n" for name, text in FILES.items()]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder


@pytest.fixture(params=["s3 by a fake", "s3 by rclone", "nfs"])
def fetch(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """The script of one kind of store, its folders in the test's own."""
    kind, _, client = request.param.partition(" by ")
    config = tmp_path / "rclone.conf"
    places = {
        "target=/models": f"target='{tmp_path}/models'",
        "/etc/headrace/model-store/rclone.conf": f"'{config}'",
        "/store/": f"{tmp_path}/store/",
    }
    text = (STORE / {"s3": "s3/sync.sh", "nfs": "nfs/check.sh"}[kind]).read_text()
    assert "target=/models" in text
    for place, own in places.items():
        text = text.replace(place, own)
    script = tmp_path / "fetch.sh"
    script.write_text(text)
    models = tmp_path / "models"
    models.mkdir()
    (models / "left over").write_text("from before")
    environment = {"PATH": os.environ["PATH"], "SOURCE": str(tmp_path / "store"), "REVISION": "1"}
    if client == "a fake":
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "rclone").write_text(FAKE_RCLONE)
        (tools / "rclone").chmod(0o755)
        environment["PATH"] = f"{tools}:{environment['PATH']}"
    elif client == "rclone":
        if shutil.which("rclone") is None:
            missing("rclone", "apt-get install rclone")
        config.write_text(f"[store]\ntype = alias\nremote = {tmp_path}/store\n")
        environment["SOURCE"] = "store:"

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["/bin/sh", str(script)], env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_whole_revision_is_taken(fetch: Run, revision: Path, tmp_path: Path) -> None:
    done = fetch()

    assert done.returncode == 0, done.stderr
    models = tmp_path / "models"
    found = {str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()}
    assert found == {*FILES, "SHA256SUMS"}
    assert "3 files are as listed" in done.stdout
    assert revision.exists()


def test_a_changed_file_is_refused(fetch: Run, revision: Path) -> None:
    (revision / "simple/1/model.py").write_text("import os")

    assert fetch().returncode != 0


def test_a_missing_file_is_refused(fetch: Run, revision: Path) -> None:
    (revision / "simple/config.pbtxt").unlink()

    assert fetch().returncode != 0


def test_a_file_that_is_not_listed_is_refused(fetch: Run, revision: Path) -> None:
    (revision / "simple/1/sitecustomize.py").write_text("import os")

    done = fetch()

    assert done.returncode == 1
    assert "does not list" in done.stderr


def test_a_revision_without_a_list_is_refused(fetch: Run, revision: Path) -> None:
    (revision / "SHA256SUMS").unlink()

    done = fetch()

    assert done.returncode == 1
    assert "no SHA256SUMS" in done.stderr

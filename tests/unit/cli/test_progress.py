"""What `headrace up` says to people once it is ready."""

from pathlib import Path

import pytest

from headrace.cli.progress import TextLines
from headrace.local import state
from headrace.local.stack import Ready


def told(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> str:
    endpoints = state.Endpoints(
        grpc=["127.0.0.1:8001"], http="", envoy_admin="", admin=[], reply=[], kafka="", triton=[], router_admin=[]
    )
    description = state.Description(
        pid=1,
        started=1,
        ready=True,
        state_dir=str(state_dir),
        key_file="",
        database="",
        policy_file="",
        endpoints=endpoints,
    )
    TextLines().ready(Ready(description=description, key="k", sample_key="s", seconds=1.0))
    return capsys.readouterr().out


def test_other_commands_are_told_with_the_state_folder_that_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert "From another shell: headrace status, headrace top, headrace models, " in told(tmp_path / "headrace", capsys)
    assert f"headrace status --state-dir '{tmp_path}/my own', " in told(tmp_path / "my own", capsys)

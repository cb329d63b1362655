"""The state folder: one stack at a time, private secrets, a description that survives its writer."""

import os
from pathlib import Path

import pytest

from headrace.local import state
from headrace.local.probe import Probe

ENDPOINTS = state.Endpoints(
    grpc=["a:1"],
    http="a:5",
    envoy_admin="a:6",
    admin=["a:2"],
    reply=["a:3"],
    kafka="a:4",
    triton=[],
    router_admin=[],
)


def description(*, pid: int, started: int) -> state.Description:
    component = state.ComponentRecord(
        name="router-0",
        state="ready",
        probe=Probe(kind="http", host="127.0.0.1", port=1, path="/readyz"),
        ports={"admin": 1},
        pid=7,
        restarts=3,
    )
    return state.Description(
        pid=pid,
        started=started,
        ready=True,
        state_dir="/s",
        key_file="/s/key",
        database="sqlite:////s/headrace.db",
        policy_file="/s/tenants.yaml",
        endpoints=ENDPOINTS,
        components=[component],
    )


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = description(pid=os.getpid(), started=state.start_time(os.getpid()) or 0)

    state.describe(tmp_path, written)

    assert state.described(tmp_path) == written
    assert written.running


def test_a_process_that_only_shares_the_number_is_not_the_stack(tmp_path: Path) -> None:
    state.describe(tmp_path, description(pid=os.getpid(), started=1))

    found = state.described(tmp_path)

    assert found is not None
    assert not found.running


def test_a_description_of_another_version_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / state.DESCRIPTION).write_text('{"pid": 1}')

    with pytest.raises(state.StateError, match="start it again"):
        state.described(tmp_path)


def test_where_no_stack_was_there_is_no_description(tmp_path: Path) -> None:
    assert state.described(tmp_path) is None


def test_a_secret_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    secret = state.kept_secret(tmp_path / "key", prefix="hr_dev_")

    assert secret.startswith("hr_dev_")
    assert len(secret) > 32
    assert state.kept_secret(tmp_path / "key", prefix="hr_dev_") == secret
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_folder_holds_one_stack_at_a_time(tmp_path: Path) -> None:
    with (
        state.locked(tmp_path),
        pytest.raises(state.AlreadyRunningError, match=f"pid {os.getpid()}"),
        state.locked(tmp_path),
    ):
        pass

    with state.locked(tmp_path):
        pass


def test_a_state_folder_that_cannot_be_made_is_told_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(state.StateError, match="--state-dir"), state.locked(tmp_path / "file" / "state"):
        pass

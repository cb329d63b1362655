"""Which database a command means, and the policy file beside it, whose word counts."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.local import state
from headrace.store.engine import Store

POLICY = """\
tenants:
  sample: {models: [simple], quotas: {calls_per_day: 5}}
"""
BROKEN = POLICY.replace("models", "modles")


@dataclass(frozen=True)
class Folder:
    """A state folder, and the environment of who gives commands."""

    path: Path
    env: dict[str, str | None]

    def run(self, *words: str) -> tuple[int, str, str]:
        done = CliRunner(env=self.env).invoke(app, [*words, f"--state-dir={self.path}"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    def runs(self, database: str, policy: Path | None = None) -> None:
        """As a `headrace up` that runs from it would have done."""
        made = state.Endpoints(
            grpc=[], http="", envoy_admin="", admin=[], reply=[], kafka="", triton=[], router_admin=[]
        )
        description = state.Description(
            pid=os.getpid(),
            started=state.start_time(os.getpid()) or 0,
            ready=True,
            state_dir=str(self.path),
            key_file="",
            database=database,
            policy_file=str(policy or self.path / "tenants.yaml"),
            endpoints=made,
        )
        state.describe(self.path, description)


def database(path: Path) -> str:
    """One with tables."""
    url = f"sqlite:///{path}"
    store = Store(url)
    store.upgrade()
    store.close()
    return url


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "state"
    path.mkdir()
    database(path / "headrace.db")
    (path / "tenants.yaml").write_text(POLICY)
    unset = dict.fromkeys(("HEADRACE_DATABASE__URL", "HEADRACE_GATEWAY__POLICY_FILE"))
    return Folder(path, {**unset, "XDG_STATE_HOME": str(tmp_path)})


def test_the_option_wins_then_the_stack_that_runs_then_the_environment_then_the_folder(
    folder: Folder, tmp_path: Path
) -> None:
    def has_tenants(*words: str) -> list[str]:
        return [each["name"] for each in json.loads(folder.run("tenants", "list", "--json", *words)[1])]

    urls = {name: database(tmp_path / f"{name}.db") for name in ("option", "stack", "environment")}
    for name, url in urls.items():
        assert folder.run("tenants", "create", name, "--database", url)[0] == 0
    assert folder.run("tenants", "create", "folder")[0] == 0

    assert has_tenants() == ["folder"]
    folder.env["HEADRACE_DATABASE__URL"] = urls["environment"]
    assert has_tenants() == ["environment"]
    folder.runs(urls["stack"])
    assert has_tenants() == ["stack"]
    assert has_tenants("--database", urls["option"]) == ["option"]


def test_what_names_a_database_that_is_none_is_told_by_its_name(folder: Folder) -> None:
    folder.env["HEADRACE_DATABASE__URL"] = "postgresql://u:hunter2@db/x"

    status, _, err = folder.run("tenants", "list")

    assert status == 2
    assert err.startswith("headrace: HEADRACE_DATABASE__URL must hold no password")
    assert "hunter2" not in err


@pytest.mark.parametrize("command", ["create", "change", "disable", "enable"])
@pytest.mark.parametrize("runs", [True, False])
def test_a_tenant_of_the_policy_file_is_changed_there(folder: Folder, command: str, runs: bool) -> None:
    if runs:
        folder.runs(f"sqlite:///{folder.path}/headrace.db")
    words = ["--concurrency", "1"] if command in {"create", "change"} else []

    status, out, err = folder.run("tenants", command, "sample", *words)

    assert (status, out) == (2, "")
    assert f"tenant sample is in {folder.path}/tenants.yaml, whose word counts: change it there" in err
    assert folder.run("tenants", "create", "acme")[0] == 0
    assert folder.run("database", "log", "--json")[1].count('"act"') == 1


def test_the_policy_file_that_is_named_counts(folder: Folder, tmp_path: Path) -> None:
    """By the environment of the stack that runs, or by that of the command where none does."""
    named, of_the_stack = tmp_path / "named.yaml", tmp_path / "of_the_stack.yaml"
    named.write_text("tenants: {named: {models: []}}")
    of_the_stack.write_text("tenants: {running: {models: []}}")
    folder.env["HEADRACE_GATEWAY__POLICY_FILE"] = str(named)

    assert str(named) in folder.run("tenants", "create", "named")[2]
    folder.runs(f"sqlite:///{folder.path}/headrace.db", of_the_stack)
    assert str(of_the_stack) in folder.run("tenants", "create", "running")[2]
    assert folder.run("tenants", "create", "named")[0] == 0


def test_a_database_that_is_named_has_nothing_to_do_with_this_machines_stack(folder: Folder, tmp_path: Path) -> None:
    done = CliRunner(env={**folder.env, "XDG_STATE_HOME": str(tmp_path / "xdg")})
    url = database(tmp_path / "other.db")
    (tmp_path / "xdg" / "headrace").mkdir(parents=True)
    (tmp_path / "xdg" / "headrace" / "tenants.yaml").write_text(POLICY)

    assert done.invoke(app, ["tenants", "create", "sample", "--database", url]).exit_code == 0


def test_a_key_of_a_tenant_of_the_policy_file_is_made_without_a_word(folder: Folder) -> None:
    assert folder.run("keys", "create", "sample")[2] == "The key, shown only now:\n"
    assert "is not granted `admin`" in folder.run("keys", "create", "sample", "--admin")[2]
    assert "`allow` in its policy file grants it" in folder.run("keys", "create", "sample", "--admin")[2]


def test_limits_of_a_tenant_of_the_database_are_shown_beside_a_policy_that_is_broken(folder: Folder) -> None:
    folder.run("tenants", "create", "acme", "--concurrency", "7")
    (folder.path / "tenants.yaml").write_text(BROKEN)

    status, out, err = folder.run("limits", "show", "acme")

    assert (status, "concurrency  7" in out) == (0, True)
    assert "tenants.yaml has mistakes, which `headrace policy check` tells" in err
    status, _, err = folder.run("limits", "show", "sample")
    assert (status, "it may call nothing" in err) == (2, False)


def test_a_policy_that_is_gone_holds_for_gateways_that_run(folder: Folder) -> None:
    (folder.path / "tenants.yaml").unlink()
    assert "it may call nothing" in folder.run("limits", "show", "sample")[2]
    folder.runs(f"sqlite:///{folder.path}/headrace.db")

    status, _, err = folder.run("limits", "show", "sample")

    assert status == 2
    assert "tenants.yaml is gone: gateways that run go on with what they read of it last" in err
    assert "it may call nothing" not in err


def test_quotas_are_shown_without_what_is_used_where_the_database_is_away(folder: Folder) -> None:
    away = "postgresql://u@127.0.0.1:1/x"

    status, out, err = folder.run(
        "limits", "show", "sample", "--policy", f"{folder.path}/tenants.yaml", "--database", away
    )

    assert (status, [line.split()[-2:] for line in out.splitlines()]) == (
        0,
        [["LIMIT", "VALUE"], ["calls_per_day", "5"], ["warn_at", "0.8"]],
    )
    assert "what is used of quotas is not known" in err
    assert "USED  LEFT" in folder.run("limits", "show", "sample")[1]

"""`headrace policy check` and `headrace limits show`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.local.tenants import POLICY, kept_tenants

GOOD = """\
tenants:
  acme:
    models: [simple, "text_*"]
    limits: {calls_per_second: 1234567, request_bytes: 4194305}
    each_key: {calls_per_second: 0.5}
gateway: {concurrency: 5000}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / POLICY
    path.write_text(GOOD)
    return path


def run(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
    env = {"HEADRACE_DATABASE__URL": None, "HEADRACE_GATEWAY__POLICY_FILE": None, "XDG_STATE_HOME": "/nowhere"}
    done = CliRunner(env=env).invoke(app, words, input=stdin)
    return done.exit_code, done.stdout, done.stderr


def test_a_good_policy_is_told_tenant_by_tenant(file: Path) -> None:
    status, out, _ = run("policy", "check", str(file))

    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["TENANT", "ALLOWED", "PRIORITY", "MODELS"],
        ["acme", "infer", "metadata", "normal", "simple", "text_*"],
    ]


def test_every_mistake_is_told_and_the_status_is_2(file: Path) -> None:
    file.write_text(GOOD.replace("models:", "modles:").replace("concurrency: 5000", "concurrency: 0"))

    status, out, err = run("policy", "check", str(file))

    assert (status, out) == (2, "")
    assert "line 3: tenants.acme.modles: no such field" in err
    assert "line 6: gateway.concurrency" in err
    assert "Traceback" not in err


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for file, why in ((tmp_path / "none.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        assert run("policy", "check", str(file)) == (2, "", f"headrace: {file}: {why}\n")


def test_a_policy_is_read_from_stdin() -> None:
    assert run("policy", "check", "-", stdin=GOOD)[0] == 0
    assert run("policy", "check", "-", stdin="tenants: {a: }")[2].startswith("headrace: -: line 1: tenants.a: expected")


def test_limits_are_shown_in_full_with_whose_they_are(file: Path) -> None:
    status, out, _ = run("limits", "show", "acme", "--state-dir", str(file.parent))

    assert status == 0
    assert [line.split()[-2:] for line in out.splitlines()[1:]] == [
        ["calls_per_second", "1234567"],
        ["request_bytes", "4194305"],
        ["calls_per_second", "0.5"],
        ["concurrency", "5000"],
    ]


def test_a_tenant_that_is_not_there_is_told(file: Path) -> None:
    status, _, err = run("limits", "show", "nobody", "--policy", str(file))

    assert status == 2
    assert "no tenant nobody in" in err


def test_the_sample_of_tenants_is_made_once_and_is_the_users_from_then_on(tmp_path: Path) -> None:
    made = kept_tenants(tmp_path)

    assert run("policy", "check", str(made.policy_file))[0] == 0
    assert made.sample_key.startswith("hr_sample_")
    assert made.sample_key.removeprefix("hr_sample_") not in made.keys_file.read_text()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    made.policy_file.write_text(GOOD)
    assert kept_tenants(tmp_path) == made
    assert made.policy_file.read_text() == GOOD

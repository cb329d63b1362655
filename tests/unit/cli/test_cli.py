"""The command line: help, keys, settings, and how wrong use ends."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.identity import KeyFile
from headrace.cli import app
from headrace.local.doctor import Finding, examine
from headrace.local.examples import examples

COMMANDS = [
    "up",
    "status",
    "models",
    "infer",
    "gateway",
    "router",
    "aggregator",
    "config",
    "doctor",
    "prepare",
    "keys new",
    "tenants create",
    "tenants change",
    "database log",
    "top",
]


@pytest.fixture
def cli() -> CliRunner:
    return CliRunner(env={"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(cli: CliRunner, command: str) -> None:
    done = cli.invoke(app, [*command.split(), "--help"])

    assert done.exit_code == 0
    assert f"headrace {command}" in done.output.split("For example:")[1]


def test_the_overview_names_every_command(cli: CliRunner) -> None:
    done = cli.invoke(app, ["--help"])

    assert all(command.split()[0] in done.output for command in COMMANDS)


def test_the_version_is_the_distributions(cli: CliRunner) -> None:
    assert re.fullmatch(r"headrace \d+\.\d+\.\d+\S*\n", cli.invoke(app, ["--version"]).output)


def test_a_new_key_is_known_to_the_gateway_by_its_entry_alone(cli: CliRunner, tmp_path: Path) -> None:
    done = cli.invoke(app, ["keys", "new", "--tenant", "billing", "--id", "b-1", "--admin"])
    key = re.search(r"hr_b-1_\S+", done.stderr)
    (tmp_path / "keys.toml").write_text(done.stdout)

    assert key is not None
    caller = KeyFile(tmp_path / "keys.toml")(key[0])
    assert caller is not None
    assert (caller.tenant, caller.key_id, caller.roles) == ("billing", "b-1", frozenset({"admin"}))
    secret = key[0].split("_", 2)[2]
    assert tomllib.loads(done.stdout)["keys"]["b-1"]["secret_sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in done.stdout


@pytest.mark.parametrize("arguments", [["--tenant", "no spaces"], ["--tenant", "t", "--id", "under_score"]])
def test_a_key_that_the_gateway_would_refuse_is_not_made(cli: CliRunner, arguments: list[str]) -> None:
    done = cli.invoke(app, ["keys", "new", *arguments])

    assert done.exit_code == 2
    assert done.stdout == ""


def test_config_prints_settings_that_can_be_set(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("very secret")
    monkeypatch.setenv("HEADRACE_REPLY_TRUST__SECRET_FILE", str(tmp_path / "secret"))

    done = cli.invoke(app, ["config", "router"])

    assert done.exit_code == 0
    assert "HEADRACE_ROUTER__TRITON__ADDRESS=127.0.0.1:8001" in done.stdout.splitlines()
    assert f"HEADRACE_REPLY_TRUST__SECRET_FILE={tmp_path / 'secret'}" in done.stdout.splitlines()
    assert "very secret" not in done.stdout


def test_what_config_prints_of_a_gateway_is_the_same_settings(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sections that have names of the operator's choice, and texts in JSON, too."""
    (tmp_path / "secret").write_text("very secret")
    issuer = "HEADRACE_GATEWAY__IDENTITY__TOKEN_ISSUERS__CORP__"
    stated = {
        "HEADRACE_REPLY_TRUST__SECRET_FILE": str(tmp_path / "secret"),
        "HEADRACE_GATEWAY__REPLY__ADVERTISED_HOST": "gateway",
        "HEADRACE_GATEWAY__IDENTITY__ORDER": '["tokens", "key_file"]',
        f"{issuer}ISSUER": "https://corp",
        f"{issuer}AUDIENCE": "us",
        f"{issuer}JWKS_URL": "https://corp/keys",
        f"{issuer}ROLE_MAP": '{"Head of Corp": "admin"}',
    }
    for name, value in stated.items():
        monkeypatch.setenv(name, value)

    done = cli.invoke(app, ["config", "gateway"])

    assert done.exit_code == 0, done.stderr
    printed = dict(line.split("=", 1) for line in done.stdout.splitlines() if not line.startswith("#"))
    assert stated.items() <= printed.items()
    for name, value in printed.items():
        monkeypatch.setenv(name, value)
    assert cli.invoke(app, ["config", "gateway"]).stdout == done.stdout


def test_config_names_every_wrong_setting_at_once(cli: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TYPO", "1")
    monkeypatch.setenv("HEADRACE_GATEWAY__GRPC__PORT", "many")

    done = cli.invoke(app, ["config", "gateway"])

    assert done.exit_code == 2
    assert "HEADRACE_TYPO: no such setting" in done.stderr
    assert "HEADRACE_GATEWAY__GRPC__PORT" in done.stderr


@pytest.mark.parametrize("command", [["models"], ["infer", "simple", "1"], ["status"], ["top"]])
def test_without_a_stack_it_is_said_how_to_get_one(cli: CliRunner, tmp_path: Path, command: list[str]) -> None:
    done = cli.invoke(app, [*command, "--state-dir", str(tmp_path)])

    assert done.exit_code == 1
    assert "headrace up" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_contradicting_options_of_up_are_one_line_and_start_nothing(cli: CliRunner, tmp_path: Path) -> None:
    done = cli.invoke(app, ["up", "--triton", "a:1", "--replicas", "2", "--state-dir", str(tmp_path / "state")])

    assert done.exit_code == 2
    assert done.stderr.startswith("headrace: --replicas")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(("name", "text"), [("tenants.yaml", "tenants: {a: {}}\n"), ("keys.toml", "[keys.a]\n")])
def test_tenants_and_keys_with_a_mistake_start_nothing(cli: CliRunner, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    done = cli.invoke(app, ["up", f"--state-dir={tmp_path}"])

    assert done.exit_code == 2
    assert str(tmp_path / name) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_repository_that_is_not_there_is_one_line(cli: CliRunner, tmp_path: Path) -> None:
    options = ["--grpc-port=18001", "--admin-port=18002", f"--state-dir={tmp_path}", "--model-repository=/nowhere"]

    done = cli.invoke(app, ["up", *options])

    assert done.exit_code == 2
    assert "/nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_printed_calls_survive_any_key_that_a_shell_would_mangle() -> None:
    python, _, grpcurl, perf_analyzer = examples("127.0.0.1:8001", "127.0.0.1:8000", 'it\'s $HOME `x` "y"')

    assert """'authorization: Bearer it'"'"'s $HOME `x` "y"'""" in grpcurl.command
    # perf_analyzer would send a space after the colon as part of the value.
    assert "authorization:Bearer" in perf_analyzer.command
    assert "<<'EOF'" in python.command
    compile(python.command.split("<<'EOF'\n")[1].removesuffix("EOF"), "example", "exec")


def test_the_doctor_has_a_remedy_for_all_that_is_needed_and_missing(tmp_path: Path) -> None:
    findings = list(examine(state_dir=tmp_path, cache=tmp_path, ports=(29003,), host="127.0.0.1"))

    assert {"system", "python", "java", "port 29003"} <= {finding.subject for finding in findings}
    assert [finding for finding in findings if not finding.ok and finding.needed and not finding.remedy] == []
    jars = next(finding for finding in findings if finding.subject.startswith("Kafka"))
    assert jars == Finding(
        jars.subject,
        ok=False,
        text="45 of 45 jars are not here yet",
        remedy="`headrace up` fetches them, or now: headrace prepare",
        needed=False,
    )

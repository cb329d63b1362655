"""The plan of a stack: ports and settings of every process."""

import contextlib
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator.settings import AggregatorSettings
from gateway.settings import GatewaySettings
from headrace.local import plan, ports
from headrace.local.database import PASSWORD_FILE
from headrace.local.options import UpOptions, UsageError
from headrace.local.ports import FreePorts, holder, is_free
from headrace.local.supervisor import Component
from headrace.runtime.settings import ProcessSettings
from router.settings import RouterSettings


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are planned here by the hundred, and never listened on."""
    monkeypatch.setattr(ports, "_claim", lambda _: True)


@pytest.fixture
def options(tmp_path: Path) -> UpOptions:
    free = FreePorts("127.0.0.1")
    return UpOptions(
        state_dir=tmp_path,
        grpc_port=free.take(),
        http_port=free.take(),
        admin_port=free.take(),
        replicas=2,
        gateways=2,
    )


@pytest.fixture
def secrets(tmp_path: Path) -> plan.Secrets:
    for name in ("key", "secret", "keys.toml", "tenants.yaml"):
        (tmp_path / name).write_text("x")
    return plan.Secrets(
        key_file=tmp_path / "key",
        reply_secret_file=tmp_path / "secret",
        tenant_keys_file=tmp_path / "keys.toml",
        policy_file=tmp_path / "tenants.yaml",
    )


def test_no_port_is_given_twice_and_the_named_ones_are_the_first_gateways(options: UpOptions) -> None:
    made = plan.make_plan(options)

    ports = [port for spec in (*made.gateways, *made.routers, *made.tritons, made.broker) for port in _ports(spec)]
    assert len(ports) == len(set(ports)) == 2 * 3 + 2 + 2 * 3 + 2
    assert options.http_port not in ports
    assert (made.gateways[0].grpc_port, made.gateways[0].admin_port) == (options.grpc_port, options.admin_port)


def test_every_router_has_a_triton_of_its_own(options: UpOptions) -> None:
    made = plan.make_plan(options)

    assert [router.triton for router in made.routers] == [f"127.0.0.1:{triton.grpc_port}" for triton in made.tritons]


def test_what_runs_elsewhere_is_not_started(tmp_path: Path) -> None:
    options = UpOptions(state_dir=tmp_path, broker="kafka:9092", triton=("gpu-1:8001", "gpu-2:8001"))

    made = plan.make_plan(_on_free_ports(options))

    assert made.broker is None
    assert made.tritons == ()
    assert [router.triton for router in made.routers] == ["gpu-1:8001", "gpu-2:8001"]
    assert made.endpoints.kafka == "kafka:9092"
    assert made.endpoints.triton == [{"grpc": "gpu-1:8001"}, {"grpc": "gpu-2:8001"}]


def test_a_busy_port_is_refused_by_name(options: UpOptions) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", options.admin_port))):
        with pytest.raises(UsageError, match=rf"port {options.admin_port} is in use by .*--admin-port"):
            plan.make_plan(options)
        assert not is_free("127.0.0.1", options.admin_port)
        assert holder(options.admin_port) is not None

    assert is_free("127.0.0.1", options.admin_port)


def test_an_address_that_this_machine_does_not_have_is_refused(options: UpOptions) -> None:
    elsewhere = UpOptions(**{**vars(options), "host": "192.0.2.1"})

    with pytest.raises(UsageError, match=r"can't listen on 192\.0\.2\.1"):
        plan.make_plan(elsewhere)


@pytest.mark.parametrize("process", ["gateway", "router"])
def test_the_settings_given_to_a_process_are_settings_that_it_knows(
    options: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, process: str
) -> None:
    made = plan.make_plan(options)
    settings: ProcessSettings
    if process == "gateway":
        program = plan.gateway_component(made, made.gateways[1], secrets, cwd=tmp_path).make_program()
    else:
        program = plan.router_component(made, made.routers[1], secrets, cwd=tmp_path).make_program()
    for name, value in program.env.items():
        monkeypatch.setenv(name, value)

    settings = GatewaySettings.load() if process == "gateway" else RouterSettings.load()

    assert isinstance(settings, GatewaySettings | RouterSettings)
    assert settings.kafka.bootstrap_servers == made.kafka
    assert settings.reply_trust.secret_file == secrets.reply_secret_file
    if isinstance(settings, GatewaySettings):
        assert settings.gateway.grpc.port == made.gateways[1].grpc_port
        assert settings.gateway.reply.host == "127.0.0.1"
    else:
        assert settings.router.triton.address == made.routers[1].triton
    assert program.env["MALLOC_MMAP_THRESHOLD_"] == str(1 << 30)


def test_the_settings_given_to_the_aggregator_are_settings_that_it_knows(
    options: UpOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = plan.make_plan(options)
    program = plan.aggregator_component(made, made.aggregator, cwd=tmp_path).make_program()
    for name, value in program.env.items():
        monkeypatch.setenv(name, value)

    settings = AggregatorSettings.load()

    assert settings.kafka.bootstrap_servers == made.kafka
    assert settings.database.url == made.database == f"sqlite:///{tmp_path}/headrace.db"
    assert settings.aggregator.admin.port == made.aggregator.admin_port
    assert settings.aggregator.admin.host == "127.0.0.1"
    assert settings.aggregator.id == "aggregator"


def test_the_users_own_wishes_about_logging_win(
    options: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADRACE_LOG__FORMAT", "json")
    made = plan.make_plan(options)

    program = plan.gateway_component(made, made.gateways[0], secrets, cwd=tmp_path).make_program()

    assert "HEADRACE_LOG__FORMAT" not in program.env


@pytest.fixture
def elsewhere(tmp_path: Path) -> UpOptions:
    """A stack on a broker that others may use too."""
    return _on_free_ports(UpOptions(state_dir=tmp_path / "one", broker="kafka:9092", replicas=2, gateways=2))


def test_stacks_on_one_broker_never_share_an_id(
    elsewhere: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two processes that announce one key take each other for a restart, and calls fail by turns."""
    first = _ids(elsewhere, secrets)
    of_another_folder = _ids(replace(elsewhere, state_dir=tmp_path / "two"), secrets)
    monkeypatch.setattr(socket, "gethostname", lambda: "another-host")
    of_another_host = _ids(elsewhere, secrets)

    ids = [*first, *of_another_folder, *of_another_host]
    assert len(ids) == len(set(ids)) == 3 * 4


def test_a_stack_keeps_its_ids_from_start_to_start(elsewhere: UpOptions, secrets: plan.Secrets) -> None:
    assert _ids(elsewhere, secrets) == _ids(_on_free_ports(elsewhere), secrets)


def test_ids_on_a_broker_of_ones_own_are_plain(options: UpOptions, secrets: plan.Secrets) -> None:
    assert _ids(options, secrets) == ["gateway-0", "gateway-1", "router-0", "router-1"]


def test_the_users_own_id_wins_where_one_process_takes_it(
    elsewhere: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_GATEWAY__ID", "mine")
    monkeypatch.setenv("HEADRACE_ROUTER__ID", "mine")

    assert _ids(replace(elsewhere, gateways=1, replicas=1), secrets) == ["mine", "mine"]
    assert "mine" not in _ids(elsewhere, secrets)


def test_a_stack_comes_up_where_triton_has_no_model_ready(
    elsewhere: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty Triton that is attached, or broken models, are mended while it runs; unless the user wants to wait."""

    def routers() -> set[bool]:
        return {each.router.ready_without_models for each in _settings(elsewhere, secrets) if hasattr(each, "router")}

    assert routers() == {True}
    monkeypatch.setenv("HEADRACE_ROUTER__READY_WITHOUT_MODELS", "false")
    assert routers() == {False}


def test_the_users_own_reply_secret_wins(
    elsewhere: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With one secret for both, two stacks can serve one pool together."""
    (tmp_path / "shared").write_text("x")
    monkeypatch.setenv("HEADRACE_REPLY_TRUST__SECRET_FILE", str(tmp_path / "shared"))

    assert {settings.reply_trust.secret_file for settings in _settings(elsewhere, secrets)} == {tmp_path / "shared"}


def test_the_users_pool_reaches_gateways_and_routers(
    elsewhere: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How stacks on one broker are kept apart."""
    monkeypatch.setenv("HEADRACE_POOL__NAME", "mine")

    assert {settings.pool.name for settings in _settings(elsewhere, secrets)} == {"mine"}


def test_a_password_that_nothing_here_is_opened_with_reaches_no_process(
    options: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may be exported for other commands; a process refuses to start with one that it has no use for."""
    (tmp_path / "password").write_text("x")
    named = (PASSWORD_FILE, plan.REDIS_PASSWORD_FILE)
    for name in named:
        monkeypatch.setenv(name, str(tmp_path / "password"))

    def reached(options: UpOptions) -> list[set[str]]:
        made = plan.make_plan(options)
        programs = (
            plan.gateway_component(made, made.gateways[0], secrets, cwd=tmp_path).make_program(),
            plan.aggregator_component(made, made.aggregator, cwd=tmp_path).make_program(),
        )
        return [set(named) & program.environment(os.environ).keys() for program in programs]

    assert reached(options) == [set(), set()]
    assert reached(replace(options, database="postgresql://u@db/x", redis="redis:6379")) == [set(named), set(named)]
    monkeypatch.setenv(plan.REDIS_URL, "redis://elsewhere")
    assert reached(options)[0] == {plan.REDIS_PASSWORD_FILE}


def test_the_policy_in_force_is_the_users_own_where_there_is_one(
    secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert plan.policy_file(secrets, cwd=tmp_path) == secrets.policy_file
    monkeypatch.setenv("HEADRACE_GATEWAY__POLICY_FILE", "mine.yaml")
    assert plan.policy_file(secrets, cwd=tmp_path) == tmp_path / "mine.yaml"


def test_what_the_environment_says_of_malloc_and_grpc_wins(
    options: UpOptions, secrets: plan.Secrets, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRPC_VERBOSITY", "DEBUG")
    made = plan.make_plan(options)

    program = plan.gateway_component(made, made.gateways[0], secrets, cwd=tmp_path).make_program()

    assert "GRPC_VERBOSITY" not in program.env


def test_a_file_in_the_state_folder_is_never_taken_for_a_process(
    options: UpOptions, secrets: plan.Secrets, tmp_path: Path
) -> None:
    """It may be any folder of the user's."""
    made = plan.make_plan(options)
    programs = (
        plan.gateway_component(made, made.gateways[0], secrets, cwd=tmp_path).make_program(),
        plan.router_component(made, made.routers[0], secrets, cwd=tmp_path).make_program(),
    )

    assert [program.argv[1:] for program in programs] == [("-P", "-m", "gateway"), ("-P", "-m", "router")]


def test_gateways_stop_before_routers_and_routers_before_what_they_use() -> None:
    assert plan.GATEWAY_RANK < plan.ROUTER_RANK < plan.TRITON_RANK < plan.BROKER_RANK


def _ports(spec: object) -> list[int]:
    return [value for name, value in vars(spec).items() if name.endswith("port")]


def _settings(options: UpOptions, secrets: plan.Secrets) -> list[GatewaySettings | RouterSettings]:
    """What each gateway and each router reads."""
    made = plan.make_plan(options)
    parts: list[tuple[Component, type[GatewaySettings | RouterSettings]]] = [
        *((plan.gateway_component(made, each, secrets, cwd=Path()), GatewaySettings) for each in made.gateways),
        *((plan.router_component(made, each, secrets, cwd=Path()), RouterSettings) for each in made.routers),
    ]
    found = []
    for component, kind in parts:
        with pytest.MonkeyPatch.context() as environment:
            for name, value in component.make_program().env.items():
                environment.setenv(name, value)
            found.append(kind.load())
    return found


def _ids(options: UpOptions, secrets: plan.Secrets) -> list[str | None]:
    loaded = _settings(options, secrets)
    return [each.gateway.id if isinstance(each, GatewaySettings) else each.router.id for each in loaded]


def _on_free_ports(options: UpOptions) -> UpOptions:
    free = FreePorts("127.0.0.1")
    return UpOptions(**{**vars(options), "grpc_port": free.take(), "admin_port": free.take()})

"""Processes that are started wrongly, or before what they need: one line that says what to do, and no traceback."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from headrace.local import broker as kafka
from headrace.local import leash
from headrace.local.models import bundled
from headrace.local.ports import FreePorts
from headrace.runtime.lifecycle import NATIVE_ENVIRONMENT
from tests.acceptance.calls import client, refused, simple, sums, until_callable
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import get, metric
from tests.acceptance.stack import KEY, Stack, headrace, started_stack
from tests.integration.broker_fixture import started_broker
from tests.integration.triton_fixture import BROKEN_MODELS, TEST_MODELS
from tests.integration.triton_proxy import triton_proxy

HOST = "127.0.0.1"
USAGE = 2
SECONDS = 30.0


class Files:
    """Files that settings may name."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key = self._write("key", KEY)
        self.secret = self._write("secret", "a shared secret")
        self.other_secret = self._write("other-secret", "not the shared secret")
        self.empty = self._write("empty", "\n")
        self.not_toml = self._write("keys.toml", "[keys\n")
        self.missing = home / "missing"
        self.folder = home

    def _write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text)
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def gateway_settings(files: Files, *, kafka_port: int) -> dict[str, str]:
    ports = FreePorts(HOST)
    return {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": f"{HOST}:{kafka_port}",
        "HEADRACE_REPLY_TRUST__SECRET_FILE": str(files.secret),
        "HEADRACE_GATEWAY__ID": "gateway-under-test",
        "HEADRACE_GATEWAY__DRAIN__NOTICE_SECONDS": "0",  # no balancer needs the time to look elsewhere
        "HEADRACE_GATEWAY__IDENTITY__DEVELOPMENT_KEY_FILE": str(files.key),
        **{
            f"HEADRACE_GATEWAY__{part}__{name}": value
            for part in ("GRPC", "REPLY", "ADMIN")
            for name, value in (("HOST", HOST), ("PORT", str(ports.take())))
        },
    }


def router_settings(files: Files, *, kafka_port: int, triton: str) -> dict[str, str]:
    return {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": f"{HOST}:{kafka_port}",
        "HEADRACE_REPLY_TRUST__SECRET_FILE": str(files.secret),
        "HEADRACE_ROUTER__ID": "router-under-test",
        "HEADRACE_ROUTER__TRITON__ADDRESS": triton,
        "HEADRACE_ROUTER__ADMIN__HOST": HOST,
        "HEADRACE_ROUTER__ADMIN__PORT": str(FreePorts(HOST).take()),
    }


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """A process' environment, with what it would otherwise execute itself anew for: twice the time to start."""
    return {**os.environ, **NATIVE_ENVIRONMENT, **settings}


# Imports what takes a process a second to import, begins nothing, and forks: a process for each line that it reads.
FORKING = """
import json, os, runpy, sys
import gateway.app, router.app
for line in sys.stdin:
    module, env, says = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.clear()
        os.environ.update(env)
        out = os.open(says, os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
RefusalOf = Callable[[str, Mapping[str, str]], list[str]]


@pytest.fixture(scope="module")
def refusal_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RefusalOf]:
    """The lines that a gateway or a router says before it ends, which it must do with status 2."""
    says = tmp_path_factory.mktemp("refusals") / "says"
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # no thread may run where it forks
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forking:
        stdin, stdout = forking.stdin, forking.stdout
        assert stdin is not None
        assert stdout is not None

        def refusal(module: str, settings: Mapping[str, str]) -> list[str]:
            says.unlink(missing_ok=True)
            print(json.dumps([module, environment(settings), str(says)]), file=stdin, flush=True)
            status, said = int(stdout.readline()), says.read_text()
            assert status == USAGE, said
            assert "Traceback" not in said
            return said.splitlines()

        yield refusal


# Settings.


@pytest.mark.parametrize("module", ["gateway", "router"])
@pytest.mark.parametrize("name", ["HEADRACE_GATWAY__ID", "HEADRACE_KAFKA__BOOTSTRAP_SERVER", "HEADRACE_NONSENSE"])
def test_an_unknown_setting_is_an_error(files: Files, refusal_of: RefusalOf, module: str, name: str) -> None:
    settings = {
        "gateway": gateway_settings(files, kafka_port=1),
        "router": router_settings(files, kafka_port=1, triton=f"{HOST}:1"),
    }[module]

    (line,) = refusal_of(module, settings | {name: "x"})

    assert name in line
    assert "no such setting" in line


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"HEADRACE_GATEWAY__DEADLINES__DEFAULT_SECONDS": "700"}, ["HEADRACE_GATEWAY__DEADLINES"]),
        ({"HEADRACE_GATEWAY__GRPC__PORT": "70000"}, ["HEADRACE_GATEWAY__GRPC__PORT"]),
        ({"HEADRACE_GATEWAY__GRPC__PORT": "eight"}, ["HEADRACE_GATEWAY__GRPC__PORT"]),
        ({"HEADRACE_GATEWAY__ID": "not a name"}, ["HEADRACE_GATEWAY__ID"]),
        ({"HEADRACE_POOL__NAME": "Not_A_Label"}, ["HEADRACE_POOL__NAME"]),
        ({"HEADRACE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, ["HEADRACE_KAFKA"]),
        ({"HEADRACE_KAFKA__SASL_USERNAME": "me"}, ["HEADRACE_KAFKA"]),
        ({"HEADRACE_KAFKA__SSL_CA_FILE": "{missing}"}, ["HEADRACE_KAFKA__SSL_CA_FILE"]),
        ({"HEADRACE_GATEWAY__GRPC__TLS_KEY_FILE": "{secret}"}, ["HEADRACE_GATEWAY__GRPC"]),
        ({"HEADRACE_REPLY_TRUST__TLS_CA_FILE": "{secret}"}, ["HEADRACE_REPLY_TRUST"]),
        ({"HEADRACE_REPLY_TRUST__SECRET_FILE": "{missing}"}, ["HEADRACE_REPLY_TRUST__SECRET_FILE"]),
        ({"HEADRACE_REPLY_TRUST__SECRET_FILE": "{folder}"}, ["HEADRACE_REPLY_TRUST__SECRET_FILE"]),
        ({"HEADRACE_REPLY_TRUST__SECRET_FILE": "{empty}"}, ["empty"]),
        ({"HEADRACE_GATEWAY__IDENTITY__DEVELOPMENT_KEY_FILE": "{empty}"}, ["empty"]),
        ({"HEADRACE_GATEWAY__IDENTITY__KEY_FILE": "{not_toml}"}, ["keys.toml"]),
        ({"HEADRACE_GATEWAY__REPLY__HOST": "0.0.0.0"}, ["HEADRACE_GATEWAY__REPLY"]),  # noqa: S104  to be refused
        (
            {"HEADRACE_GATEWAY__REPLY__HOST": "0.0.0.0", "HEADRACE_GATEWAY__REPLY__ADVERTISED_HOST": "10.0.0.1"},  # noqa: S104
            ["HEADRACE_REPLY_TRUST"],
        ),
        (
            {"HEADRACE_LOG__LEVEL": "LOUD", "HEADRACE_GATEWAY__ADMIN__PORT": "-1", "HEADRACE_TOPICS__PARTITIONS": "3"},
            ["HEADRACE_TOPICS__PARTITIONS", "HEADRACE_LOG__LEVEL", "HEADRACE_GATEWAY__ADMIN__PORT"],
        ),
    ],
    ids=lambda value: next(iter(value)).removeprefix("HEADRACE_") if isinstance(value, dict) else "",
)
def test_every_bad_setting_is_named_on_a_line_of_its_own(
    files: Files, refusal_of: RefusalOf, wrong: Mapping[str, str], names: list[str]
) -> None:
    settings = {name: value.format(**vars(files)) for name, value in wrong.items()}

    lines = refusal_of("gateway", gateway_settings(files, kafka_port=1) | settings)

    assert len(lines) == len(names)
    assert all(any(name in line for line in lines) for name in names), lines


def test_a_secret_in_the_wrong_place_is_not_printed(files: Files, refusal_of: RefusalOf) -> None:
    """A value where a file's name belongs may be the secret itself."""
    settings = gateway_settings(files, kafka_port=1) | {"HEADRACE_GATEWAY__GRPC__PORT": "hr_x_s3cret"}

    assert "s3cret" not in "".join(refusal_of("gateway", settings))


@pytest.mark.parametrize(
    "wrong",
    [
        {"HEADRACE_ROUTER__WINDOW__MINIMUM": "9", "HEADRACE_ROUTER__WINDOW__MAXIMUM": "8"},
        {"HEADRACE_ROUTER__REPLY__ALLOWED_GATEWAYS": "300.0.0.0/8"},
        {"HEADRACE_REPLY_TRUST__SECRET_FILE": ""},
    ],
    ids=["window", "network", "secret"],
)
def test_a_router_s_bad_settings_are_named(files: Files, refusal_of: RefusalOf, wrong: dict[str, str]) -> None:
    (line,) = refusal_of("router", router_settings(files, kafka_port=1, triton=f"{HOST}:1") | wrong)

    assert "HEADRACE_ROUTER" in line or "HEADRACE_REPLY_TRUST" in line


@pytest.mark.parametrize("module", ["gateway", "router"])
def test_a_process_without_any_settings_says_what_it_needs(module: str) -> None:
    """Started as an operator starts it, all by itself."""
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "HEADRACE_REPLY_TRUST" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("part", ["GRPC", "REPLY", "ADMIN"])
def test_a_busy_port_is_named(files: Files, refusal_of: RefusalOf, part: str) -> None:
    settings = gateway_settings(files, kafka_port=1)
    port = int(settings[f"HEADRACE_GATEWAY__{part}__PORT"])

    with listening(port):
        lines = refusal_of("gateway", settings)

    (line,) = (line for line in lines if ".cc:" not in line)  # gRPC's core says it in its own words, too
    assert str(port) in line
    assert part.lower() in line.lower()


@contextmanager
def listening(port: int) -> Iterator[None]:
    with socket.create_server((HOST, port)):
        yield


# `headrace up`.


def up(home: Path, *options: str) -> str:
    """What `headrace up` says on stderr when it refuses to start; its ports are free ones, whatever else runs here."""
    ports = FreePorts(HOST)
    chosen = [word for name in ("grpc", "http", "admin") for word in (f"--{name}-port", str(ports.take()))]
    done = subprocess.run(
        headrace("up", "--state-dir", str(home / "state"), *chosen, *options),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == USAGE, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model-repository", "{missing}"), "model repository"),
        (("--model-repository", "{empty_folder}"), "model repository"),
        (("--model-repository", "{file}"), "model repository"),
        (("--api-key", "a\tb"), "--api-key"),
        (("--replicas", "0"), "--replicas"),
        (("--grpc-port", "70000"), "--grpc-port"),
        (("--grpc-port", "8000", "--http-port", "8000"), "must differ"),
        (("--triton", "nowhere"), "--triton"),
        (("--triton", "a:1", "--replicas", "2"), "--triton"),
        (("--broker", "nowhere"), "--broker"),
        (("--nonsense",), "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_up_refuses_bad_options(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    places = {"missing": tmp_path / "missing", "empty_folder": tmp_path / "folder", "file": tmp_path / "file"}

    assert said in up(tmp_path, *(option.format(**places) for option in options))


def test_up_names_a_busy_port_and_the_option(tmp_path: Path) -> None:
    port = FreePorts(HOST).take()

    with listening(port):
        said = up(tmp_path, "--grpc-port", str(port))

    assert f"port {port} is in use" in said
    assert "--grpc-port" in said


def test_broken_models_are_told_and_the_others_serve(tmp_path: Path) -> None:
    """One whose config can't be parsed, and one whose code fails: the index tells Triton's reason, where it has one."""
    repository = tmp_path / "repository"
    failing = repository / "crashing" / "1"
    failing.mkdir(parents=True)
    (failing / "model.py").write_text("raise RuntimeError('the weights are not here')\n")
    (failing.parent / "config.pbtxt").write_text('backend: "python"\ninstance_group [ { kind: KIND_CPU } ]\n')
    for model in (TEST_MODELS / "echo", bundled() / "simple", BROKEN_MODELS / "broken"):
        (repository / model.name).symlink_to(model)

    with started_stack(tmp_path, "--model-repository", str(repository)) as stack, client(stack.grpc) as gateway:
        until_callable(stack)

        assert sums(gateway.infer(simple()))[0] == 1
        asked = oip.RepositoryIndexRequest()
        index = {each.name: each for each in gateway.ask("RepositoryIndex", asked).models}
        with client(stack.triton, ()) as triton:
            assert index == {each.name: each for each in triton.ask("RepositoryIndex", asked).models}
        assert index.keys() == {"simple", "echo", "broken", "crashing"}
        assert "the weights are not here" in index["crashing"].reason
        for name in ("broken", "crashing"):
            with refused(grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY"):
                gateway.infer(oip.ModelInferRequest(model_name=name))


# What is away at the start.


@contextmanager
def process(module: str, settings: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway or a router by itself; afterwards it has left in order, without a traceback."""
    command = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), sys.executable, "-m", module]
    with log.open("wb") as out:
        started = subprocess.Popen(command, env=environment(settings), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield started
        stop(started)
        assert started.returncode == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        started.kill()
        started.wait()


def stop(started: subprocess.Popen[bytes]) -> None:
    started.send_signal(signal.SIGTERM)
    started.wait(SECONDS)


def says(address: str) -> str:
    """What /readyz says; nothing while nobody answers."""
    try:
        return get(address, "/readyz")[1]
    except OSError:
        return ""


def test_a_gateway_waits_for_its_broker_and_says_so(
    files: Files, broker_install: kafka.BrokerInstall, tmp_path: Path
) -> None:
    """It refuses calls with a reason meanwhile, can be stopped, and goes on by itself when the broker comes."""
    ports = FreePorts(HOST)
    port = ports.take()
    settings = gateway_settings(files, kafka_port=port)
    admin = f"{HOST}:{settings['HEADRACE_GATEWAY__ADMIN__PORT']}"
    address = f"{HOST}:{settings['HEADRACE_GATEWAY__GRPC__PORT']}"
    with process("gateway", settings, tmp_path / "gateway.log") as started, client(address) as gateway:
        eventually(lambda: "broker" in says(admin), seconds=SECONDS, what="/readyz says that the broker is away")
        assert get(admin, "/livez")[0] == 200
        assert get(admin, "/readyz")[0] == 503
        with refused(grpc.StatusCode.UNAVAILABLE, "GATEWAY_STARTING"):
            gateway.infer(simple(), seconds=30)
        assert not gateway.ask("ServerReady", oip.ServerReadyRequest()).ready

        home = tmp_path / "broker"
        kafka.prepare_storage(broker_install, home, port=port, controller_port=ports.take(), sasl=None)
        with started_broker(broker_install, home, port):
            eventually(lambda: get(admin, "/readyz")[0] == 200, seconds=SECONDS, what="the gateway is ready")
            stop(started)  # with a broker, to which it can say goodbye at once


@pytest.mark.parametrize("module", ["gateway", "router"])
def test_a_process_that_waits_for_its_broker_can_be_stopped(files: Files, module: str, tmp_path: Path) -> None:
    settings = {
        "gateway": gateway_settings(files, kafka_port=1),
        "router": router_settings(files, kafka_port=1, triton=f"{HOST}:1"),
    }[module]
    admin = f"{HOST}:{settings[f'HEADRACE_{module.upper()}__ADMIN__PORT']}"

    with process(module, settings, tmp_path / "log"):
        eventually(lambda: "broker" in says(admin), seconds=SECONDS, what="/readyz says that the broker is away")


def test_a_stack_waits_for_its_triton_and_says_so(triton_address: str, tmp_path: Path) -> None:
    port = FreePorts(HOST).take()
    with started_stack(tmp_path, "--triton", f"{HOST}:{port}") as stack:
        stack.wait_for(
            lambda event: event.get("event") == "note" and str(port) in event["text"],
            seconds=SECONDS,
            what="it is said that Triton does not answer",
        )
        stack.wait_for(
            lambda event: event.get("name") == "gateway-0" and event.get("state") == "ready",
            seconds=SECONDS,
            what="the gateway is ready without it",
        )
        with triton_proxy(triton_address, port=port):
            until_callable(stack, seconds=SECONDS)
            with client(stack.grpc) as gateway:
                assert sums(gateway.infer(simple()))[0] == 1
                stack.stop()


# Who may not attach.


def test_a_router_with_a_wrong_secret_is_refused_and_harms_nobody(files: Files, stack: Stack, tmp_path: Path) -> None:
    kafka_port = int(stack.ready["kafka"].rpartition(":")[2])
    settings = router_settings(files, kafka_port=kafka_port, triton=f"{HOST}:1")
    settings["HEADRACE_REPLY_TRUST__SECRET_FILE"] = str(files.other_secret)
    log = tmp_path / "router.log"

    with process("router", settings, log), client(stack.grpc) as gateway:
        eventually(lambda: "refused" in log.read_text(), seconds=SECONDS, what="its log says that it is refused")
        assert [sums(gateway.infer(simple(value=value)))[0] for value in range(20)] == list(range(20))
        assert metric(stack.ready["admin"][0], "headrace_gateway_routers_live") == 1

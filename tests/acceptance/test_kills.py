"""`kill -9` of any part while the stack runs: what it had is run by what takes its place, and the stack heals."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import FEW_MODELS, Client, client, ended, held, simple, slow, sums, until_callable, with_key
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import metric
from tests.acceptance.stack import HEAL_SECONDS, LONG_DRAIN, Stack, started_stack

PATIENCE_SECONDS = 45.0
"""Less than the deadline of the calls, and enough for a busy machine."""
SILENT_SECONDS = 45.0
"""Enough for silence to be taken for death."""
CALL_SECONDS = 120.0
PATIENT = {**LONG_DRAIN, "HEADRACE_GATEWAY__OWNER_WAIT_SECONDS": str(CALL_SECONDS)}
"""Settings for a stack of which the only router may take longer to come back than calls usually wait for one."""
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def lasting(_parts: None, few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of its own for the tests that kill."""
    options = ("--model-repository", str(few_models))
    with started_stack(tmp_path_factory.mktemp("battered"), *options, env=PATIENT) as running:
        yield running


@pytest.fixture
def battered(lasting: Stack) -> Stack:
    """The stack, healed: what one test kills, or what died in it, is not the next one's business."""
    until_callable(lasting, FEW_MODELS)
    return lasting


@pytest.fixture
def gateway(battered: Stack) -> Iterator[Client]:
    with client(battered.grpc) as made:
        yield made


def running(stack: Stack, gateway: Client, request: Any = None) -> "grpc.Future[Any]":
    """A call that Triton works on."""
    call = gateway.begin(slow(100_000) if request is None else request, seconds=CALL_SECONDS)
    router = stack.ready["router_admin"][0]
    eventually(lambda: metric(router, "headrace_router_running") >= 1, seconds=30, what="Triton runs the call")
    return call


def republished(stack: Stack, reason: str) -> float:
    return metric(stack.ready["admin"][0], "headrace_gateway_republished_total", reason=reason)


def answers_again(gateway: Client) -> None:
    """A call is answered; until then each waits, or is refused as one that may be tried again."""

    def call() -> bool:
        try:
            return sums(gateway.infer(simple(value=3), seconds=HEAL_SECONDS))[0] == 3
        except grpc.RpcError as error:
            how = ended(error)
            assert how.code is grpc.StatusCode.UNAVAILABLE, how
            return False

    assert eventually(call, seconds=HEAL_SECONDS, what="a call is answered again")


def test_triton_is_killed(battered: Stack, gateway: Client, tmp_path: Path) -> None:
    """What it ran is run by the one that takes its place, as there is no other."""
    release, before = tmp_path / "release", republished(battered, "TRITON_LOST")
    call = running(battered, gateway, held(release))

    since = battered.kill("triton-0")

    eventually(
        lambda: republished(battered, "TRITON_LOST") == before + 1, seconds=PATIENCE_SECONDS, what="it is tried again"
    )
    battered.until_back("triton-0", since)
    release.touch()
    assert call.result(timeout=HEAL_SECONDS).raw_output_contents
    answers_again(gateway)


def test_the_router_is_killed(battered: Stack, gateway: Client, tmp_path: Path) -> None:
    """What it had is run by the one that takes its place, as there is no other."""
    release, before = tmp_path / "release", republished(battered, "ROUTER_LOST")
    call = running(battered, gateway, held(release))

    since = battered.kill("router-0")
    battered.until_back("router-0", since)
    release.touch()

    assert call.result(timeout=HEAL_SECONDS).raw_output_contents
    assert republished(battered, "ROUTER_LOST") == before + 1
    answers_again(gateway)


def test_the_only_router_restarts_and_no_caller_notices(battered: Stack, gateway: Client, tmp_path: Path) -> None:
    """What it runs it answers; what waits is run when it is back."""
    release, router = tmp_path / "release", battered.ready["router_admin"][0]
    calls = [gateway.begin(held(release), seconds=CALL_SECONDS) for _ in range(2)]
    calls += [gateway.begin(slow(1), seconds=CALL_SECONDS) for _ in range(20)]
    eventually(lambda: metric(router, "headrace_router_waiting") >= 1, seconds=30, what="calls run, and others wait")

    since = battered.kill("router-0", signal.SIGTERM)
    release.touch()
    battered.until_back("router-0", since)

    assert all(call.result(timeout=CALL_SECONDS).raw_output_contents for call in calls)
    answers_again(gateway)


def test_a_call_of_a_sequence_is_not_run_anew(battered: Stack, gateway: Client) -> None:
    """The state that it would need is gone."""
    request = slow(100_000)
    request.parameters["sequence_id"].int64_param = 7
    call = running(battered, gateway, request)

    since = battered.kill("router-0")

    error = call.exception(timeout=PATIENCE_SECONDS)
    assert isinstance(error, grpc.RpcError)
    how = ended(error)
    assert (how.code, how.reason) == (grpc.StatusCode.ABORTED, "SEQUENCE_LOST"), how
    battered.until_back("router-0", since)
    answers_again(gateway)


def test_the_router_hangs(battered: Stack, gateway: Client, tmp_path: Path) -> None:
    """Nothing breaks, and it announces nothing: its calls are taken from it, and it may have them again later."""
    release = tmp_path / "release"
    call = running(battered, gateway, held(release))
    router, admin = battered.ready["router_admin"][0], battered.ready["admin"][0]

    battered.kill("router-0", signal.SIGSTOP)
    try:
        eventually(
            lambda: metric(admin, "headrace_gateway_calls_unowned", model="slow") == 1,
            seconds=SILENT_SECONDS,
            what="the call waits for another router",
        )
    finally:
        battered.kill("router-0", signal.SIGCONT)
    release.touch()

    assert call.result(timeout=HEAL_SECONDS).raw_output_contents
    answers_again(gateway)
    eventually(lambda: metric(router, "headrace_router_running") == 0, seconds=HEAL_SECONDS, what="nothing runs")


def test_the_gateway_is_killed(battered: Stack, gateway: Client) -> None:
    """Its callers' connections go with it; what they asked for is not run on for nobody."""
    call = running(battered, gateway)
    router = battered.ready["router_admin"][0]

    since = battered.kill("gateway-0")

    error = call.exception(timeout=PATIENCE_SECONDS)
    assert isinstance(error, grpc.RpcError)
    assert ended(error).code is grpc.StatusCode.UNAVAILABLE
    battered.until_back("gateway-0", since)
    answers_again(gateway)
    eventually(lambda: metric(router, "headrace_router_running") == 0, seconds=HEAL_SECONDS, what="nothing runs")


def test_the_broker_is_killed(battered: Stack, gateway: Client, tmp_path: Path) -> None:
    """Answers do not go through the log: what runs is answered while the broker does nothing, and before it is back.

    What can't be published is refused with a reason.
    """
    release = tmp_path / "release"
    call = gateway.begin(held(release), seconds=CALL_SECONDS)
    router = battered.ready["router_admin"][0]
    eventually(lambda: metric(router, "headrace_router_running") >= 1, seconds=30, what="Triton runs the call")

    battered.kill("broker", signal.SIGSTOP)
    try:
        into_the_dark = gateway.begin(simple(), seconds=CALL_SECONDS)
        release.touch()
        assert call.result(timeout=CALL_SECONDS).raw_output_contents
    finally:
        since = battered.kill("broker")

    battered.until_back("broker", since)
    error = into_the_dark.exception(timeout=HEAL_SECONDS)
    assert error is None or (isinstance(error, grpc.RpcError) and ended(error).reason == "LOG_UNAVAILABLE"), error
    answers_again(gateway)


def test_what_was_unloaded_stays_unloaded_when_triton_comes_back(battered: Stack, gateway: Client) -> None:
    gateway.ask("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="recording"))
    try:
        since = battered.kill("triton-0")
        battered.until_back("triton-0", since)
        until_callable(battered, ["simple", "echo"])

        eventually(lambda: not is_ready(gateway, "recording"), seconds=HEAL_SECONDS, what="it is unloaded again")
        with client(battered.triton, ()) as triton:
            eventually(lambda: not is_ready(triton, "recording"), seconds=HEAL_SECONDS, what="in Triton too")
            assert is_ready(triton, "simple")
    finally:
        gateway.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="recording"))
    assert is_ready(gateway, "recording")


def is_ready(asked: Client, model: str) -> bool:
    return bool(asked.ask("ModelReady", oip.ModelReadyRequest(name=model)).ready)


def test_watchers_of_a_model_hear_of_its_death_and_return(battered: Stack) -> None:
    """Also after one of them has left, which makes grpcio's own servicer silent for the others."""
    with client(battered.grpc) as leaving, client(battered.grpc) as first, client(battered.grpc) as second:
        watches = [watch(each, "simple") for each in (leaving, first, second)]
        whole = watch(first, "")
        assert [next(each).status for each in (*watches, whole)] == [SERVING] * 4
        watches.pop(0).cancel()

        since = battered.kill("triton-0")

        assert [next(each).status for each in watches] == [NOT_SERVING] * 2
        battered.until_back("triton-0", since)
        assert [next(each).status for each in watches] == [SERVING] * 2
        for each in (*watches, whole):
            each.cancel()


def watch(watcher: Client, service: str) -> Any:
    stub: Any = health_pb2_grpc.HealthStub(watcher.channel)  # its types lack Watch
    asked = health_pb2.HealthCheckRequest(service=service)
    return stub.Watch(asked, timeout=CALL_SECONDS, metadata=with_key())

"""A call ends at its deadline or with its caller, and is not executed for nobody afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import Client, Raw, ended, held, slow
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import metric
from tests.acceptance.stack import Stack

SLOW_WINDOW = 2
"""How many calls of `slow` the router hands to Triton at once, by the model's own config."""
SECONDS = 30.0


@contextmanager
def full_window(stack: Stack, gateway: Client, release: Path) -> Iterator[None]:
    """Hold all of `slow` in the block: what is sent there waits in the queue. Afterwards all is quiet."""
    eventually(lambda: waiting(stack) == 0, seconds=SECONDS, what="nobody waits")
    calls = [gateway.begin(held(release), seconds=100) for _ in range(SLOW_WINDOW)]
    router = stack.ready["router_admin"][0]
    try:
        eventually(
            lambda: metric(router, "headrace_router_running") >= SLOW_WINDOW, seconds=SECONDS, what="the window is full"
        )
        yield
    finally:
        release.touch()
    for call in calls:
        call.result()
    eventually(lambda: metric(router, "headrace_router_waiting") == 0, seconds=SECONDS, what="nothing waits")
    eventually(lambda: metric(router, "headrace_router_running") == 0, seconds=SECONDS, what="nothing runs")


def begun(gateway: Client) -> int:
    """How many requests `slow` has begun, this one among them; all that it was given before have ended."""
    answer = gateway.infer(slow(1))
    place = [output.name for output in answer.outputs].index("BEGUN")
    return int.from_bytes(answer.raw_output_contents[place], "little")


def waiting(stack: Stack) -> float:
    return metric(stack.ready["admin"][0], "headrace_gateway_calls_waiting")


def until_forgotten(stack: Stack, gateway: Client) -> None:
    """Wait until only what fills the window is waited for, and the router knows that nobody waits for the others."""
    eventually(lambda: waiting(stack) == SLOW_WINDOW, seconds=SECONDS, what="the waiters of the others are gone")
    gateway.ask("LogSettings", oip.LogSettingsRequest())  # goes down the stream behind their cancellations


def test_a_call_ends_at_its_deadline(stack: Stack, gateway: Client) -> None:
    """Triton is told to stop as well: the model does not go on for the 100 seconds that were asked for."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.infer(slow(100_000), seconds=0.5)

    assert ended(caught.value).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gateway.infer(slow(1), seconds=SECONDS).raw_output_contents
    eventually(lambda: waiting(stack) == 0, seconds=SECONDS, what="nobody waits")


def test_an_expired_call_is_never_run(stack: Stack, gateway: Client, tmp_path: Path) -> None:
    before = begun(gateway)
    skipped_before = skipped(stack)

    with full_window(stack, gateway, tmp_path / "release"):
        # So long that a busy machine too has published them before their time is over: the router counts them then.
        queued = [gateway.begin(slow(1), seconds=3) for _ in range(3)]
        for call in queued:
            error = call.exception()
            assert isinstance(error, grpc.RpcError)
            assert ended(error).code is grpc.StatusCode.DEADLINE_EXCEEDED
        until_forgotten(stack, gateway)

    assert begun(gateway) == before + SLOW_WINDOW + 1
    assert skipped(stack) >= skipped_before + len(queued), "they were counted, as the one or the other"


def skipped(stack: Stack) -> float:
    """Records that the router did not run because their time was over or their caller had gone."""
    router = stack.ready["router_admin"][0]
    return sum(metric(router, "headrace_router_records_total", outcome=outcome) for outcome in ("expired", "cancelled"))


def test_a_cancelled_call_in_the_queue_is_never_run(stack: Stack, gateway: Client, tmp_path: Path) -> None:
    before = begun(gateway)

    with full_window(stack, gateway, tmp_path / "release"):
        queued = [gateway.begin(slow(1)) for _ in range(5)]
        eventually(lambda: waiting(stack) == SLOW_WINDOW + 5, seconds=SECONDS, what="all calls wait")
        for call in queued:
            call.cancel()
        until_forgotten(stack, gateway)

    assert begun(gateway) == before + SLOW_WINDOW + 1


def test_a_cancelled_call_is_cancelled_in_triton(stack: Stack, gateway: Client) -> None:
    """`slow` looks whether its request was cancelled, so that the next call need not wait for 100 seconds."""
    call = gateway.begin(slow(100_000), seconds=100)
    router = stack.ready["router_admin"][0]
    eventually(lambda: metric(router, "headrace_router_running") == 1, seconds=SECONDS, what="it runs")

    call.cancel()

    assert gateway.infer(slow(1), seconds=SECONDS).raw_output_contents


def test_a_caller_who_hangs_up_is_forgotten(stack: Stack) -> None:
    """No cancellation is sent here: the connection is simply gone."""
    with Client(stack.grpc).channel as channel:
        leaving: Raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        call = leaving.future(slow(100_000).SerializeToString(), timeout=100, metadata=(("x-api-key", "dev"),))
        eventually(lambda: waiting(stack) == 1, seconds=SECONDS, what="the call waits")

    assert call.code() is grpc.StatusCode.CANCELLED
    eventually(lambda: waiting(stack) == 0, seconds=SECONDS, what="its waiter is gone")

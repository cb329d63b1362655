"""The calls that wait: what is held of them, counted and bounded. What happens to them: `test_delivery`."""

import asyncio

import pytest

from gateway.calls import Call, WaitingCalls, log_refusal
from gateway.errors import (
    DeadlineExceeded,
    GatewayFull,
    LogFull,
    LogUnavailable,
    Refusal,
    RequestTooLarge,
    ShuttingDown,
)
from headrace.bus.protocols import (
    LogError,
    LogFullError,
    LogUnavailableError,
    Outcome,
    RecordTooLargeError,
    RouterKey,
    TopicPartition,
)

A, B = RouterKey("a", 1), RouterKey("b", 2)
PATIENCE_SECONDS = 30.0

LOG_ERRORS: dict[type[LogError], type[Refusal]] = {
    LogFullError: LogFull,
    LogUnavailableError: LogUnavailable,
    RecordTooLargeError: RequestTooLarge,
}


def waiting(calls: WaitingCalls, *, call_id: bytes = b"1", sent_to: RouterKey | None = A, size: int = 1) -> Call:
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    call = Call(call_id, "simple", TopicPartition("topic.simple", 0), sent_to, 0, answer)
    calls.begin(call, size)
    return call


async def test_what_is_held_is_bounded_and_counted() -> None:
    calls = WaitingCalls(max_calls=2, max_bytes=10)
    first = waiting(calls, size=4)
    with pytest.raises(GatewayFull):
        waiting(calls, call_id=b"large", size=7)
    second = waiting(calls, call_id=b"2", sent_to=B, size=4)
    with pytest.raises(GatewayFull):
        waiting(calls, call_id=b"3", size=1)

    assert (len(calls), calls.request_bytes, calls.full()) == (2, 8, True)
    assert calls.outstanding == {A: 1, B: 1}
    calls.end(first, 4)
    calls.end(second, 4)
    assert (len(calls), calls.request_bytes, calls.full(), calls.outstanding) == (0, 0, False, {})


async def test_a_call_that_goes_elsewhere_is_outstanding_there() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    call = waiting(calls)
    calls.owners_changed({"simple"}, lambda *_: B)
    assert list(call.routers) == [A, B]

    calls.assign(call, TopicPartition("topic.simple", 3), B)
    assert (call.place.partition, list(call.routers), calls.outstanding) == (3, [B], {B: 1})
    calls.assign(call, call.place, None)
    assert (list(call.routers), calls.outstanding) == ([], {})

    calls.end(call, 1)
    assert calls.outstanding == {}


async def test_the_last_call_that_ends_drains_them() -> None:
    calls = WaitingCalls(max_calls=2, max_bytes=2)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await calls.drained()
    first, second = waiting(calls, call_id=b"1"), waiting(calls, call_id=b"2")
    draining = asyncio.create_task(calls.drained())

    calls.end(first, 1)
    await asyncio.wait({draining}, timeout=0)
    assert not draining.done()
    calls.end(second, 1)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await draining


async def test_a_call_ends_once_whatever_comes_later() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    ended, running = waiting(calls, call_id=b"1"), waiting(calls, call_id=b"2")
    ended.answer.set_result(b"answer")
    abandoned: list[Call] = []

    calls.expire(ended)
    calls.refuse_all(ShuttingDown, abandoned.append)
    calls.expire(running)

    assert ended.answer.result() == b"answer"
    assert abandoned == [running]
    assert isinstance(running.answer.exception(), ShuttingDown)
    assert (calls.waiting(b"1"), list(calls)) == (None, [])


async def test_a_deadline_ends_a_call() -> None:
    calls = WaitingCalls(max_calls=1, max_bytes=1)
    call = waiting(calls)

    calls.expire(call)

    assert isinstance(call.answer.exception(), DeadlineExceeded)


async def test_what_waits_is_told_by_model() -> None:
    now = 10.0
    calls = WaitingCalls(max_calls=9, max_bytes=9, clock=lambda: now)
    first = waiting(calls)
    now = 13.0
    waiting(calls, call_id=b"2", sent_to=None)
    now = 15.0

    [(model, told)] = calls.by_model().items()

    assert model == first.model
    assert (told.calls, told.unowned, told.oldest_seconds) == (2, 1, 5.0)
    calls.end(first, 1)
    assert calls.by_model()[model].oldest_seconds == 2.0


@pytest.mark.parametrize(("error", "refusal"), LOG_ERRORS.items())
def test_what_the_log_says_is_told_in_whole_sentences(error: type[LogError], refusal: type[Refusal]) -> None:
    told = log_refusal(error("a broker's own words"))

    assert type(told) is refusal
    assert "broker's own words" not in told.message
    assert "the that" not in told.message
    assert "{" not in told.message

"""The calls that wait: whatever happens to them, in whatever order."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.calls import TAKE_OVER_SECONDS, Call, WaitingCalls, log_refusal
from gateway.errors import DeadlineExceeded, GatewayFull, LogFull, LogUnavailable, Refusal, RequestTooLarge, RouterLost
from headrace.bus.protocols import (
    Failure,
    LogError,
    LogFullError,
    LogUnavailableError,
    Outcome,
    RecordTooLargeError,
    RouterKey,
    TopicPartition,
)
from headrace.bus.v1.reply_pb2 import ModelServerStatus

A, B, C = RouterKey("a", 1), RouterKey("b", 2), RouterKey("c", 3)
MODELS = ("simple", "slow")
PARTITIONS = 2
MAX_CALLS, MAX_BYTES = 6, 100
PATIENCE_SECONDS = 5.0

LOG_ERRORS: dict[type[LogError], type[Refusal]] = {
    LogFullError: LogFull,
    LogUnavailableError: LogUnavailable,
    RecordTooLargeError: RequestTooLarge,
}


@dataclass
class Known:
    """What a call should look like."""

    call: Call
    size: int
    routers: list[RouterKey] = field(default_factory=list)
    kept_until: float | None = None
    end: Outcome | type[Refusal] | None = None


class Waiting(RuleBasedStateMachine):
    """Everything that may happen to calls, against a plain account of what should come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.calls = WaitingCalls(max_calls=MAX_CALLS, max_bytes=MAX_BYTES)
        self.known: dict[bytes, Known] = {}
        self.now = 0.0
        self.begun = 0
        self.strays = 0

    def teardown(self) -> None:
        while self.known:
            self.end(0)
        self.as_told()
        self.loop.close()

    def pick(self, at: int) -> Known:
        return list(self.known.values())[at % len(self.known)]

    @rule(
        model=st.sampled_from(MODELS),
        partition=st.integers(0, PARTITIONS - 1),
        router=st.sampled_from((A, B, None)),
        size=st.integers(0, 60),
    )
    def begin(self, model: str, partition: int, router: RouterKey | None, size: int) -> None:
        self.begun += 1
        call_id = self.begun.to_bytes(16)
        place = TopicPartition(f"topic.{model}", partition)
        call = Call(call_id, model, place, router, 0, self.loop.create_future())
        fits = len(self.known) < MAX_CALLS and sum(known.size for known in self.known.values()) + size <= MAX_BYTES
        if fits:
            self.calls.begin(call, size)
            self.known[call_id] = Known(call, size, [] if router is None else [router])
        else:
            with pytest.raises(GatewayFull):
                self.calls.begin(call, size)

    @precondition(lambda self: self.known)
    @rule(at=st.integers(0, MAX_CALLS))
    def end(self, at: int) -> None:
        known = self.pick(at)
        self.calls.end(known.call, known.size)
        del self.known[known.call.call_id]
        if isinstance(known.end, type):
            assert isinstance(known.call.answer.exception(), known.end)

    @precondition(lambda self: self.known)
    @rule(
        at=st.integers(0, MAX_CALLS),
        attempt=st.integers(1, 3),
        outcome=st.binary() | st.sampled_from(Failure) | st.builds(ModelServerStatus, code=st.integers(1, 16)),
    )
    def answer(self, at: int, attempt: int, outcome: Outcome) -> None:
        known = self.pick(at)
        self.calls.answered(known.call.call_id, attempt, outcome)
        if known.end is None:
            known.end = outcome
        else:
            self.strays += 1

    @rule()
    def answer_nobody(self) -> None:
        self.calls.answered(bytes(16), 1, b"")
        self.strays += 1

    @precondition(lambda self: self.known)
    @rule(at=st.integers(0, MAX_CALLS))
    def expire(self, at: int) -> None:
        known = self.pick(at)
        self.calls.expire(known.call)
        known.end = known.end if known.end is not None else DeadlineExceeded

    @precondition(lambda self: self.known)
    @rule(at=st.integers(0, MAX_CALLS), error=st.sampled_from(sorted(LOG_ERRORS, key=str)))
    def fail_to_publish(self, at: int, error: type[LogError]) -> None:
        known = self.pick(at)
        self.calls.publish_failed(known.call.call_id, error())
        known.end = known.end if known.end is not None else LOG_ERRORS[error]

    @rule(error=st.sampled_from(sorted(LOG_ERRORS, key=str)))
    def fail_to_publish_what_nobody_waits_for(self, error: type[LogError]) -> None:
        self.calls.publish_failed(bytes(16), error())

    @rule(router=st.sampled_from((A, B, C)))
    def lose(self, router: RouterKey) -> None:
        ends = [known for known in self.known.values() if router in known.routers and known.end is None]
        self.abandons(ends, lambda abandon: self.calls.router_lost(router, abandon))

    @rule(router=st.sampled_from((A, B, C)), served=st.sets(st.sampled_from(MODELS)))
    def leave(self, router: RouterKey, served: set[str]) -> None:
        for known in self.known.values():
            if known.routers == [router]:
                known.kept_until = self.now + TAKE_OVER_SECONDS
            known.routers = [other for other in known.routers if other != router]
        ends = self.ends(served)
        self.abandons(ends, lambda abandon: self.calls.router_left(router, self.now, served.__contains__, abandon))

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.5, 2.0)), served=st.sets(st.sampled_from(MODELS)))
    def advance(self, seconds: float, served: set[str]) -> None:
        self.now += seconds
        ends = self.ends(served)
        self.abandons(ends, lambda abandon: self.calls.advance(self.now, served.__contains__, abandon))

    def ends(self, served: set[str]) -> list[Known]:
        """What is kept for a next owner, and will have none."""
        return [
            known
            for known in self.known.values()
            if known.end is None
            and known.kept_until is not None
            and not known.routers
            and (known.kept_until <= self.now or known.call.model not in served)
        ]

    @rule()
    def refuse_all(self) -> None:
        ends = [known for known in self.known.values() if known.end is None]
        self.abandons(ends, lambda abandon: self.calls.refuse_all(RouterLost, abandon))

    def abandons(self, ends: list[Known], tell: Callable[[Callable[[Call], None]], None]) -> None:
        abandoned: list[Call] = []
        tell(abandoned.append)
        assert sorted(abandoned, key=lambda call: call.call_id) == [known.call for known in ends]
        for known in ends:
            known.end = RouterLost

    @rule(
        models=st.sets(st.sampled_from(MODELS)),
        owners=st.fixed_dictionaries(
            {
                (model, partition): st.sampled_from((A, B, C, None))
                for model in MODELS
                for partition in range(PARTITIONS)
            }
        ),
    )
    def move(self, models: set[str], owners: dict[tuple[str, int], RouterKey | None]) -> None:
        self.calls.owners_changed(models, lambda model, partition: owners[model, partition])
        for known in self.known.values():
            owner = owners[known.call.model, known.call.place.partition]
            if known.call.model in models and owner is not None and owner not in known.routers:
                known.routers.append(owner)

    @invariant()
    def as_told(self) -> None:
        """Counts are those of the calls that wait, and every call has ended as it should, or not yet."""
        assert len(self.calls) == len(self.known)
        assert self.calls.request_bytes == sum(known.size for known in self.known.values())
        assert self.calls.full() == (len(self.known) == MAX_CALLS or self.calls.request_bytes == MAX_BYTES)
        sent_to = [known.call.sent_to for known in self.known.values() if known.call.sent_to is not None]
        assert self.calls.outstanding == Counter(sent_to)
        assert self.calls.strays == self.strays
        for known in self.known.values():
            assert known.call.routers == tuple(known.routers)
            answer = known.call.answer
            assert answer.done() == (known.end is not None)
            if isinstance(known.end, type):
                assert type(answer.exception()) is known.end
            elif known.end is not None:
                assert answer.result() == known.end


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def waiting(calls: WaitingCalls, *, call_id: bytes = b"1", sent_to: RouterKey | None = A) -> Call:
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    call = Call(call_id, "simple", TopicPartition("topic.simple", 0), sent_to, 0, answer)
    calls.begin(call, 1)
    return call


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


async def test_a_lost_router_ends_what_it_may_have_had_and_each_is_abandoned() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    had, may_have = waiting(calls, call_id=b"1"), waiting(calls, call_id=b"2", sent_to=B)
    calls.owners_changed({"simple"}, lambda *_: A)
    others = [waiting(calls, call_id=b"3", sent_to=B), waiting(calls, call_id=b"4", sent_to=None)]
    abandoned: list[Call] = []

    calls.router_lost(A, abandoned.append)

    assert abandoned == [had, may_have]
    assert [type(call.answer.exception()) for call in abandoned] == [RouterLost, RouterLost]
    assert not any(call.answer.done() for call in others)


def nobody(_model: str) -> bool:
    return False


def another(_model: str) -> bool:
    return True


async def test_a_router_that_leaves_ends_only_what_nobody_took_over_or_will() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    taken_over = waiting(calls, call_id=b"1")
    calls.owners_changed({"simple"}, lambda *_: B)
    not_taken_over = waiting(calls, call_id=b"2")
    abandoned: list[Call] = []

    calls.router_left(A, 0.0, nobody, abandoned.append)

    assert abandoned == [not_taken_over]
    assert isinstance(not_taken_over.answer.exception(), RouterLost)
    assert not taken_over.answer.done()
    calls.router_left(B, 0.0, nobody, abandoned.append)
    assert isinstance(taken_over.answer.exception(), RouterLost)


async def test_what_a_router_leaves_behind_is_kept_for_its_next_owner_for_a_while() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    taken_over, left_alone = waiting(calls, call_id=b"1"), waiting(calls, call_id=b"2")
    left_alone.place = TopicPartition("topic.simple", 1)
    abandoned: list[Call] = []

    calls.router_left(A, 10.0, another, abandoned.append)
    calls.owners_changed({"simple"}, lambda _, partition: B if partition == 0 else None)
    calls.advance(10.0 + TAKE_OVER_SECONDS - 0.1, another, abandoned.append)
    assert abandoned == []
    calls.advance(10.0 + TAKE_OVER_SECONDS, another, abandoned.append)

    assert abandoned == [left_alone]
    assert isinstance(left_alone.answer.exception(), RouterLost)
    assert taken_over.routers == (B,)
    assert not taken_over.answer.done()


async def test_what_was_taken_over_and_left_again_is_kept_from_then_on() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    call = waiting(calls)
    abandoned: list[Call] = []

    calls.router_left(A, 0.0, another, abandoned.append)
    calls.owners_changed({"simple"}, lambda *_: B)
    calls.router_left(B, 1.5, another, abandoned.append)
    calls.advance(TAKE_OVER_SECONDS, another, abandoned.append)
    assert abandoned == []
    calls.advance(1.5 + TAKE_OVER_SECONDS, another, abandoned.append)

    assert abandoned == [call]


async def test_a_call_that_ended_while_it_was_kept_is_not_lost_as_well() -> None:
    calls = WaitingCalls(max_calls=9, max_bytes=9)
    call = waiting(calls)

    calls.router_left(A, 0.0, another, lambda _: pytest.fail("it is kept"))
    calls.answered(call.call_id, 1, b"late")
    calls.end(call, 1)
    calls.advance(TAKE_OVER_SECONDS, another, lambda _: pytest.fail("nobody waits for it any more"))

    assert call.answer.result() == b"late"


async def test_an_answer_for_a_caller_who_left_is_a_stray() -> None:
    calls = WaitingCalls(max_calls=1, max_bytes=1)
    call = waiting(calls)
    call.answer.cancel()

    calls.answered(call.call_id, 1, b"late")
    calls.router_lost(A, lambda _: pytest.fail("nobody waits for it, so nobody is told"))

    assert calls.strays == 1


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


async def test_a_call_that_nobody_has_yet_outlives_every_router() -> None:
    """It waits in the log of a pool that sleeps."""
    calls = WaitingCalls(max_calls=1, max_bytes=1)
    call = waiting(calls, sent_to=None)

    calls.router_lost(A, lambda _: pytest.fail("it was not with anybody"))
    calls.router_left(A, 0.0, nobody, lambda _: pytest.fail("it was not with anybody"))

    assert not call.answer.done()


@pytest.mark.parametrize(("error", "refusal"), LOG_ERRORS.items())
def test_what_the_log_says_is_told_in_whole_sentences(error: type[LogError], refusal: type[Refusal]) -> None:
    told = log_refusal(error("a broker's own words"))

    assert type(told) is refusal
    assert "broker's own words" not in told.message
    assert "the that" not in told.message
    assert "{" not in told.message

"""A call from its first attempt to its end: whatever becomes of routers, model servers and the log, in any order."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tritonclient.grpc import service_pb2 as oip

from gateway.calls import Call, WaitingCalls
from gateway.delivery import TAKE_OVER_SECONDS, Delivery, DeliveryTerms
from gateway.errors import LogUnavailable, RouterLost, SequenceLost, TritonLost
from gateway.registry import Registry
from headrace.bus.envelope import envelope_base, read_envelope
from headrace.bus.protocols import (
    Failure,
    LogError,
    LogFullError,
    LogUnavailableError,
    Outcome,
    RouterKey,
    TopicPartition,
)
from headrace.bus.topics import request_topic
from headrace.bus.v1.announcement_pb2 import (
    ROUTER_STATE_LEAVING,
    ROUTER_STATE_READY,
    ROUTER_STATE_SERVER_AWAY,
    RouterState,
)
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from tests.unit.gateway.announcing import GATEWAY, INCARNATION, POOL, description, heartbeat

A, B, C = RouterKey("a", 1), RouterKey("b", 2), RouterKey("c", 3)
MODELS = ("simple", "slow")
PARTITIONS = 8
WAIT_SECONDS = 30.0
EXPIRES = 1 << 50
ENVELOPE = envelope_base(method=METHOD_MODEL_INFER, reply_address="127.0.0.1:7", reply_incarnation=7)
STATUS = ModelServerStatus(code=3, message="no")


def request(sequence: int | str | None = None, model: str = "simple") -> bytes:
    message = oip.ModelInferRequest(model_name=model)
    if isinstance(sequence, int):
        message.parameters["sequence_id"].int64_param = sequence
    elif sequence is not None:
        message.parameters["sequence_id"].string_param = sequence
    return bytes(message.SerializeToString())


@dataclass
class Log:
    """Takes records, all or none, and keeps those back that are large: they can be withdrawn."""

    published: dict[bytes, list[tuple[int, TopicPartition]]] = field(default_factory=dict)
    waiting: dict[bytes, int] = field(default_factory=dict)
    withdrawn: set[tuple[bytes, int]] = field(default_factory=set)
    keep_back: bool = False
    refuses: LogError | None = None

    def publish(
        self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes, *, attempt: int = 1
    ) -> None:
        told = read_envelope(envelope)
        assert (told.call_id, told.attempt, told.expire_time_unix_micros) == (call_id, attempt, EXPIRES)
        assert payload
        if self.refuses is not None:
            raise self.refuses
        assert call_id not in self.waiting, "an attempt that waits is withdrawn before the next one comes"
        if self.keep_back:
            self.waiting[call_id] = attempt
        self.published.setdefault(call_id, []).append((attempt, place))

    def withdraw(self, call_id: bytes) -> bool:
        attempt = self.waiting.pop(call_id, None)
        if attempt is not None:
            self.withdrawn.add((call_id, attempt))
        return attempt is not None

    def attempts(self, call_id: bytes) -> list[int]:
        return [attempt for attempt, _ in self.published.get(call_id, [])]


class Hub:
    """Remembers what routers were told not to run."""

    heard_at: dict[RouterKey, float] = {}  # noqa: RUF012  never filled

    def __init__(self) -> None:
        self.cancelled: dict[bytes, int] = {}

    def cancel(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        assert expire_time_unix_micros == EXPIRES
        assert attempt >= self.cancelled.get(call_id, 0)
        self.cancelled[call_id] = attempt

    async def administer(self, router: RouterKey, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        raise NotImplementedError


class Bench:
    """A gateway's delivery between a log and a hub that remember, and a registry that is told what to see."""

    def __init__(self, make_future: Callable[[], asyncio.Future[Outcome]], *, attempts: int = 3) -> None:
        self.make_future = make_future
        self.registry = Registry(pool=POOL, gateway_id=GATEWAY, incarnation=INCARNATION)
        self.calls = WaitingCalls(max_calls=1000, max_bytes=1 << 20)
        self.log, self.hub = Log(), Hub()
        self.now = 0.0
        self.beats = 0
        self.begun = 0
        self.delivery = Delivery(
            terms=DeliveryTerms(pool=POOL, pool_may_sleep=False, attempts=attempts, owner_wait_seconds=WAIT_SECONDS),
            registry=self.registry,
            calls=self.calls,
            publisher=self.log,
            hub=self.hub,
            clock=lambda: self.now,
        )
        self.registry.subscribe(self.delivery.models_changed)

    def says(
        self,
        router: RouterKey,
        *partitions: int,
        state: RouterState = ROUTER_STATE_READY,
        models: tuple[str, ...] = MODELS,
    ) -> None:
        """What a router announces: its state, and the partitions that it has of every model."""
        self.beats += 1
        self.registry.apply(*heartbeat(router, self.beats, state), self.now)
        for model in models:
            self.registry.apply(*description(router, model=model, partitions=partitions), self.now)

    def router(self, router: RouterKey, *partitions: int) -> None:
        """A router that lives."""
        self.registry.attached(router)
        self.says(router, *partitions)

    def dies(self, router: RouterKey) -> None:
        self.registry.detached(router)
        self.delivery.router_lost(router)

    def leaves(self, router: RouterKey) -> None:
        """It says goodbye: what it began is answered."""
        self.says(router, state=ROUTER_STATE_LEAVING)
        self.registry.detached(router)
        self.delivery.router_left(router)

    def call(self, model: str = "simple", sequence: int | str | None = None) -> Call:
        """A call begins. Raises a refusal where nobody takes it."""
        self.begun += 1
        call_id = self.begun.to_bytes(16)
        envelope = ENVELOPE + Envelope(call_id=call_id, expire_time_unix_micros=EXPIRES).SerializeToString()
        place, router = self.delivery.place(self.registry.models[model])
        payload = request(sequence, model)
        call = Call(call_id, model, place, router, EXPIRES, self.make_future(), envelope, payload)
        self.calls.begin(call, len(payload))
        self.delivery.publish(call)
        return call

    def end(self, call: Call) -> None:
        self.calls.end(call, len(call.request))

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.delivery.advance(self.now)


def refused(call: Call) -> type[BaseException] | None:
    error = call.answer.exception() if call.answer.done() else None
    return None if error is None else type(error)


# Whatever happens.


class Attempts(RuleBasedStateMachine):
    """Everything that may happen to calls and those who run them. Each call ends once, and no attempt is left over."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench = Bench(self.loop.create_future)
        self.waiting: list[Call] = []
        self.answered: dict[bytes, int] = {}
        """The attempt whose answer counts, of calls that had one."""

    def teardown(self) -> None:
        while self.waiting:
            self.end(0)
        assert self.bench.calls.outstanding == {}
        self.bench.passes(WAIT_SECONDS)
        assert not self.bench.delivery._homeless
        assert not self.bench.delivery._untaken
        self.loop.close()

    def pick(self, at: int) -> Call:
        return self.waiting[at % len(self.waiting)]

    def losing(self, lose: Callable[[], None], may_be: Callable[[Call], bool]) -> None:
        """What is lost gets another attempt, or ends; nothing else changes."""
        before = {call.call_id: (call.attempt, call.answer.done()) for call in self.waiting}
        lose()
        for call in self.waiting:
            attempt, done = before[call.call_id]
            if done:
                assert call.attempt == attempt
            elif call.attempt != attempt or call.answer.done():
                assert may_be(call)
                assert call.attempt in {attempt, attempt + 1}

    @rule(model=st.sampled_from(MODELS), sequence=st.sampled_from((None, None, 0, 7, "s")), kept_back=st.booleans())
    def begin(self, model: str, sequence: int | str | None, kept_back: bool) -> None:
        known = self.bench.registry.models.get(model)
        if known is None or not known.ready:
            return
        self.bench.log.keep_back = kept_back
        self.waiting.append(self.bench.call(model, sequence))
        self.bench.log.keep_back = False

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 20))
    def send(self, at: int) -> None:
        """It is a record's turn."""
        self.bench.log.waiting.pop(self.pick(at).call_id, None)

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 20))
    def end(self, at: int) -> None:
        """The caller has its answer, or hangs up."""
        call = self.pick(at)
        if not call.answer.done():
            self.bench.delivery.abandon(call)
            call.answer.cancel()
        elif call.call_id not in self.answered:
            assert call.answer.exception() is not None
        self.bench.end(call)
        self.waiting.remove(call)
        self.nothing_of_it_is_left(call)

    def nothing_of_it_is_left(self, call: Call) -> None:
        """Every attempt that was published and not answered is cancelled, or never sent."""
        last = self.answered.get(call.call_id)
        for attempt in self.bench.log.attempts(call.call_id):
            taken_back = (call.call_id, attempt) in self.bench.log.withdrawn
            assert attempt == last or taken_back or attempt <= self.bench.hub.cancelled.get(call.call_id, 0), attempt

    @precondition(lambda self: self.waiting)
    @rule(
        at=st.integers(0, 20),
        back=st.integers(0, 2),
        outcome=st.sampled_from((b"", b"x", STATUS, *Failure)),
    )
    def answer(self, at: int, back: int, outcome: Outcome) -> None:
        call = self.pick(at)
        attempts = [
            attempt
            for attempt in self.bench.log.attempts(call.call_id)
            if (call.call_id, attempt) not in self.bench.log.withdrawn
            and self.bench.log.waiting.get(call.call_id) != attempt
        ]
        if not attempts:
            return
        attempt = attempts[-1 - back % len(attempts)]
        was_done, newest, strays = call.answer.done(), call.attempt, self.bench.calls.strays
        self.bench.delivery.answered(call.call_id, attempt, outcome)
        is_loss = outcome in {Failure.TRITON_LOST, Failure.ROUTER_LEFT} if isinstance(outcome, Failure) else False
        if was_done or (isinstance(outcome, Failure) and attempt < newest):
            assert self.bench.calls.strays == strays + 1
            assert (call.answer.done(), call.attempt) == (was_done, newest)
        elif is_loss:
            assert call.answer.done() or call.attempt == newest + 1
        else:
            assert call.answer.result() == outcome
            self.answered[call.call_id] = attempt

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 20), back=st.integers(0, 2), error=st.sampled_from((LogFullError, LogUnavailableError)))
    def fail_to_publish(self, at: int, back: int, error: type[LogError]) -> None:
        call = self.pick(at)
        attempt = max(1, call.attempt - back)
        was_done, was_homeless = call.answer.done(), call in self.bench.delivery._homeless
        if was_homeless and attempt == call.attempt:
            return  # it is not published
        self.bench.log.waiting.pop(call.call_id, None)
        self.bench.delivery.publish_failed(call.call_id, attempt, error())
        assert call.answer.done() == (was_done or attempt == call.attempt)
        if call.answer.done() and not was_done:
            self.bench.delivery.abandon(call)  # as the caller's end does: it may have happened

    @rule(router=st.sampled_from((A, B, C)))
    def die(self, router: RouterKey) -> None:
        had = {call.call_id for call in self.waiting if router in call.routers}
        self.losing(lambda: self.bench.dies(router), lambda call: call.call_id in had)
        assert not any(router in call.routers for call in self.waiting if not call.answer.done())

    @rule(router=st.sampled_from((A, B, C)))
    def leave(self, router: RouterKey) -> None:
        self.losing(lambda: self.bench.leaves(router), lambda _: True)

    @rule(router=st.sampled_from((A, B, C)))
    def attach(self, router: RouterKey) -> None:
        self.bench.registry.attached(router)

    @rule(
        router=st.sampled_from((A, B, C)),
        state=st.sampled_from((ROUTER_STATE_READY, ROUTER_STATE_READY, ROUTER_STATE_SERVER_AWAY, ROUTER_STATE_LEAVING)),
        partitions=st.sets(st.integers(0, 3)),
    )
    def say(self, router: RouterKey, state: RouterState, partitions: set[int]) -> None:
        self.losing(lambda: self.bench.says(router, *partitions, state=state), lambda _: True)

    @rule(seconds=st.sampled_from((0.0, 0.5, 2.0, 20.0)))
    def advance(self, seconds: float) -> None:
        self.losing(lambda: self.bench.passes(seconds), lambda _: True)

    @invariant()
    def as_promised(self) -> None:
        bench = self.bench
        assert len(bench.calls) == len(self.waiting)
        sent_to = [call.sent_to for call in self.waiting if call.sent_to is not None]
        assert bench.calls.outstanding == Counter(sent_to)
        for call in self.waiting:
            attempts = bench.log.attempts(call.call_id)
            assert attempts == list(range(1, len(attempts) + 1)), "each attempt once, in order"
            assert len(attempts) <= 3
            if call.request == request(7, call.model) or call.request == request("s", call.model):
                assert attempts == [1], "a sequence is not moved"
            for attempt in attempts:
                if attempt < call.attempt:
                    taken_back = (call.call_id, attempt) in bench.log.withdrawn
                    assert taken_back or bench.hub.cancelled.get(call.call_id, 0) >= attempt, "no stale copy runs"
            if call.answer.done():
                continue
            newest_is_out = attempts[-1] == call.attempt
            assert newest_is_out != (call in bench.delivery._homeless), "it is under way, or waits for an owner"
            if newest_is_out:
                assert bench.hub.cancelled.get(call.call_id, 0) < call.attempt, "what is under way is not cancelled"
            else:
                model = bench.registry.models.get(call.model)
                assert model is None or not model.ready, "it goes as soon as it has where to go"
                until, _ = bench.delivery._homeless[call]
                assert bench.now <= until <= bench.now + WAIT_SECONDS
            assert not (call.routers and call in bench.delivery._homeless)


TestAttempts = Attempts.TestCase
TestAttempts.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# What it means for one call.


@pytest.fixture
async def bench() -> Bench:
    """Two routers that live, each with a partition of every model."""
    made = Bench(asyncio.get_running_loop().create_future)
    made.router(A, 0)
    made.router(B, 1)
    return made


@pytest.fixture
async def alone() -> Bench:
    """One router that lives."""
    made = Bench(asyncio.get_running_loop().create_future)
    made.router(A, 0)
    return made


def sent_to(bench: Bench, router: RouterKey) -> Call:
    """A call that went to this router."""
    while True:
        call = bench.call()
        if call.sent_to == router:
            return call


PLACE = {A: TopicPartition(request_topic(POOL, "interactive", "simple"), 0)}
PLACE[B] = PLACE[A]._replace(partition=1)


async def test_a_call_whose_router_died_goes_to_another_and_its_first_attempt_is_cancelled(bench: Bench) -> None:
    call = sent_to(bench, A)

    bench.dies(A)

    assert bench.log.published[call.call_id] == [(1, PLACE[A]), (2, PLACE[B])]
    assert bench.hub.cancelled == {call.call_id: 1}
    bench.delivery.answered(call.call_id, 2, b"answer")
    assert call.answer.result() == b"answer"
    assert bench.hub.cancelled == {call.call_id: 1}, "what is answered is not cancelled"
    assert bench.delivery.republished == Counter(ROUTER_LOST=1)


async def test_a_call_that_another_router_may_have_is_left_alone(bench: Bench) -> None:
    call = sent_to(bench, B)

    bench.dies(A)

    assert bench.log.attempts(call.call_id) == [1]


@pytest.mark.parametrize("failure", [Failure.TRITON_LOST, Failure.ROUTER_LEFT])
async def test_an_attempt_that_its_router_gives_up_goes_to_another(bench: Bench, failure: Failure) -> None:
    """That router looks as live as ever, and the least loaded of all."""
    call, other = sent_to(bench, A), sent_to(bench, B)

    bench.delivery.answered(call.call_id, 1, failure)

    assert bench.log.published[call.call_id][1] == (2, PLACE[B])
    assert bench.log.attempts(other.call_id) == [1]
    assert bench.delivery.republished == Counter([failure.name])


async def test_with_one_router_alone_a_call_goes_back_to_it(alone: Bench) -> None:
    """Its model server is started anew, and begins what waits."""
    call = alone.call()

    alone.delivery.answered(call.call_id, 1, Failure.TRITON_LOST)

    assert alone.log.published[call.call_id] == [(1, PLACE[A]), (2, PLACE[A])]


async def test_what_the_model_server_said_is_never_tried_again(bench: Bench) -> None:
    call = bench.call()

    bench.delivery.answered(call.call_id, 1, ModelServerStatus(code=14, message="unavailable"))

    assert bench.log.attempts(call.call_id) == [1]
    assert call.answer.done()


async def test_where_nobody_is_left_a_call_waits_for_somebody(alone: Bench) -> None:
    call = alone.call()

    alone.dies(A)
    alone.passes(WAIT_SECONDS - 1)
    assert not call.answer.done()
    assert alone.log.attempts(call.call_id) == [1]
    alone.router(C, 5)

    assert alone.log.published[call.call_id][1] == (2, PLACE[A]._replace(partition=5))
    assert call.routers == (C,)
    alone.passes(WAIT_SECONDS)
    assert not call.answer.done(), "its deadline is what ends it now"


async def test_a_call_waits_in_the_log_while_the_group_settles(alone: Bench) -> None:
    """A router that took a dead one's place is live before it has partitions."""
    call = alone.call()
    alone.dies(A)

    alone.router(C)
    assert alone.log.attempts(call.call_id) == [1, 2]
    assert (call.sent_to, call.routers) == (None, ())
    [_, (_, place)] = alone.log.published[call.call_id]
    alone.says(C, *range(PARTITIONS))

    assert call.routers == (C,)
    assert call.place == place


@pytest.mark.parametrize("loses", ["router", "triton"])
async def test_a_call_that_finds_nobody_in_time_hears_why_it_was_lost(alone: Bench, loses: str) -> None:
    call = alone.call()
    if loses == "router":
        alone.dies(A)
    else:
        alone.says(A, state=ROUTER_STATE_SERVER_AWAY)
        alone.delivery.answered(call.call_id, 1, Failure.TRITON_LOST)

    alone.passes(WAIT_SECONDS)

    assert refused(call) is (RouterLost if loses == "router" else TritonLost)


async def test_attempts_are_bounded(bench: Bench) -> None:
    """A request that kills its model server kills no more than so many."""
    call = bench.call()

    for attempt in (1, 2):
        bench.delivery.answered(call.call_id, attempt, Failure.TRITON_LOST)
        assert not call.answer.done()
    bench.delivery.answered(call.call_id, 3, Failure.TRITON_LOST)

    assert refused(call) is TritonLost
    assert bench.log.attempts(call.call_id) == [1, 2, 3]
    assert bench.hub.cancelled == {call.call_id: 3}


@pytest.mark.parametrize("failure", [Failure.TRITON_LOST, Failure.ROUTER_LEFT, None])
async def test_with_one_attempt_a_lost_call_ends_at_once(failure: Failure | None) -> None:
    bench = Bench(asyncio.get_running_loop().create_future, attempts=1)
    bench.router(A, 0)
    bench.router(B, 1)
    call = sent_to(bench, A)

    if failure is None:
        bench.dies(A)
    else:
        bench.delivery.answered(call.call_id, 1, failure)

    assert refused(call) is (TritonLost if failure is Failure.TRITON_LOST else RouterLost)


async def test_the_first_answer_counts_and_the_newer_attempt_is_cancelled(bench: Bench) -> None:
    """A stream that broke is attached again, and the answer that was on its way comes after all."""
    call = sent_to(bench, A)
    bench.dies(A)
    bench.router(A, 0)

    bench.delivery.answered(call.call_id, 1, b"first")
    bench.delivery.answered(call.call_id, 2, b"second")

    assert call.answer.result() == b"first"
    assert bench.hub.cancelled == {call.call_id: 2}
    assert bench.calls.strays == 1


async def test_an_answer_ends_a_call_that_waits_for_somebody(alone: Bench) -> None:
    call = alone.call()
    alone.dies(A)

    alone.delivery.answered(call.call_id, 1, b"late")
    alone.router(A, 0)

    assert call.answer.result() == b"late"
    assert alone.log.attempts(call.call_id) == [1]


@pytest.mark.parametrize("failure", Failure)
async def test_a_word_on_an_attempt_that_was_given_up_changes_nothing(bench: Bench, failure: Failure) -> None:
    call = sent_to(bench, A)
    bench.dies(A)

    bench.delivery.answered(call.call_id, 1, failure)

    assert not call.answer.done()
    assert bench.log.attempts(call.call_id) == [1, 2]
    assert bench.calls.strays == 1


async def test_a_delivery_that_fails_late_ends_only_the_attempt_that_it_was_of(bench: Bench) -> None:
    call = sent_to(bench, A)
    bench.dies(A)

    bench.delivery.publish_failed(call.call_id, 1, LogUnavailableError())
    assert not call.answer.done()
    bench.delivery.publish_failed(call.call_id, 2, LogUnavailableError())

    assert refused(call) is LogUnavailable


async def test_a_log_that_does_not_take_an_attempt_ends_the_call(bench: Bench) -> None:
    call = sent_to(bench, A)
    bench.log.refuses = LogUnavailableError()

    bench.dies(A)

    assert refused(call) is LogUnavailable
    assert bench.calls.delivery_failures["LOG_UNAVAILABLE"] == 1


async def test_what_was_never_sent_is_withdrawn_and_not_cancelled(bench: Bench) -> None:
    bench.log.keep_back = True
    call = sent_to(bench, A)

    bench.dies(A)

    assert bench.log.withdrawn == {(call.call_id, 1)}
    assert bench.hub.cancelled == {}
    assert bench.log.waiting[call.call_id] == 2


@pytest.mark.parametrize("sequence", [7, "session"])
@pytest.mark.parametrize("loses", ["router", "triton"])
async def test_a_sequence_is_not_moved(bench: Bench, sequence: int | str, loses: str) -> None:
    call = bench.call(sequence=sequence)
    assert call.sent_to is not None

    if loses == "router":
        bench.dies(call.sent_to)
    else:
        bench.delivery.answered(call.call_id, 1, Failure.TRITON_LOST)

    assert refused(call) is SequenceLost
    assert bench.log.attempts(call.call_id) == [1]
    assert bench.hub.cancelled == {call.call_id: 1}


@pytest.mark.parametrize("sequence", [0, ""])
async def test_a_sequence_without_a_name_is_none(bench: Bench, sequence: int | str) -> None:
    call = bench.call(sequence=sequence)
    assert call.sent_to is not None

    bench.dies(call.sent_to)

    assert bench.log.attempts(call.call_id) == [1, 2]


# Who leaves in order.


async def test_what_a_router_leaves_behind_is_its_next_owners(bench: Bench) -> None:
    """The record is in the log as it was: nothing is published again."""
    call = sent_to(bench, A)

    bench.leaves(A)
    bench.passes(TAKE_OVER_SECONDS - 0.1)
    bench.says(B, 0, 1)
    bench.passes(TAKE_OVER_SECONDS)

    assert call.routers == (B,)
    assert bench.log.attempts(call.call_id) == [1]
    assert bench.hub.cancelled == {}


async def test_what_nobody_takes_over_in_time_is_published_again(bench: Bench) -> None:
    call = sent_to(bench, A)

    bench.leaves(A)
    bench.passes(TAKE_OVER_SECONDS)

    assert bench.log.published[call.call_id] == [(1, PLACE[A]), (2, PLACE[B])]
    assert bench.delivery.republished == Counter(ROUTER_LEFT=1)


async def test_what_was_taken_over_and_left_again_is_kept_from_then_on(bench: Bench) -> None:
    call = sent_to(bench, A)
    bench.router(C, 2)

    bench.leaves(A)
    bench.says(B, 0, 1)
    bench.passes(1.5)
    bench.leaves(B)
    bench.passes(TAKE_OVER_SECONDS - 0.1)
    assert bench.log.attempts(call.call_id) == [1]
    bench.passes(0.1)

    assert bench.log.attempts(call.call_id) == [1, 2]
    assert call.routers == (C,)


async def test_what_the_only_router_leaves_behind_waits_for_the_next_one(alone: Bench) -> None:
    call = alone.call()

    alone.leaves(A)
    assert not call.answer.done()
    alone.router(C, 0)

    assert alone.log.attempts(call.call_id) == [1, 2]
    assert call.routers == (C,)


async def test_a_call_that_nobody_has_yet_outlives_every_router(alone: Bench) -> None:
    """It waits in the log: for the group to settle, or for a pool to wake."""
    alone.says(A)
    call = alone.call()

    alone.leaves(A)
    alone.dies(B)
    alone.passes(2 * WAIT_SECONDS)

    assert not call.answer.done()
    assert alone.log.attempts(call.call_id) == [1]


# Model servers that are away.


async def test_what_waits_at_a_router_whose_model_server_is_away_goes_to_another(bench: Bench) -> None:
    call, other = sent_to(bench, A), sent_to(bench, B)

    bench.says(A, 0, state=ROUTER_STATE_SERVER_AWAY)

    assert bench.log.published[call.call_id] == [(1, PLACE[A]), (2, PLACE[B])]
    assert bench.log.attempts(other.call_id) == [1]


async def test_where_all_model_servers_are_away_calls_wait_where_they_are(alone: Bench) -> None:
    call = alone.call()

    alone.says(A, 0, state=ROUTER_STATE_SERVER_AWAY)
    alone.passes(2 * WAIT_SECONDS)
    assert not call.answer.done()
    assert alone.log.attempts(call.call_id) == [1]
    alone.router(B, 1)

    assert alone.log.published[call.call_id][1] == (2, PLACE[B])


async def test_the_last_attempt_waits_for_a_model_server_that_is_away() -> None:
    bench = Bench(asyncio.get_running_loop().create_future, attempts=1)
    bench.router(A, 0)
    bench.router(B, 1)
    call = sent_to(bench, A)

    bench.says(A, 0, state=ROUTER_STATE_SERVER_AWAY)

    assert not call.answer.done()


async def test_a_loss_of_many_calls_is_one_line(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    calls = [bench.call() for _ in range(20)]
    had = sum(call.sent_to == A for call in calls)

    with caplog.at_level(logging.INFO, "gateway.delivery"):
        bench.dies(A)

    [line] = caplog.records
    assert (vars(line)["event"], vars(line)["calls"], vars(line)["reason"]) == ("calls_lost", had, "ROUTER_LOST")

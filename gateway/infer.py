"""ModelInfer: the call path. Route by a few fields, publish the bytes as they came, wait, answer with bytes.

The delivery promise is kept here, with `gateway.delivery`: while the caller waits the gateway holds the call; it is
answered once, refused with a reason, or expired at its deadline, and a caller who leaves takes the call out of the
queue.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import grpc
import grpc.aio

from gateway.admission import Admission, Gate
from gateway.calls import Call, WaitingCalls
from gateway.compression import is_packed, unpacked
from gateway.delivery import Delivery
from gateway.errors import (
    AnswerTooLarge,
    DeadlineExceeded,
    GatewayFull,
    GatewayStarting,
    Internal,
    LogUnavailable,
    ModelNameInvalid,
    ModelUnknown,
    Refusal,
    RequestTooLarge,
)
from gateway.forwarding import forwarded
from gateway.identity import Caller
from gateway.registry import Model, Registry
from gateway.routing_fields import routing_fields
from gateway.statistics import mean_seconds
from gateway.status import abort, quota_metadata, rate_metadata, unforeseen
from gateway.tally import CANCELLED, OK, TRITON, Entry, Tally
from gateway.traces import CallTrace, CallTraces
from headrace.bus.envelope import envelope_base
from headrace.bus.protocols import Failure, LogError
from headrace.bus.topics import UnnameableModelError
from headrace.bus.usage import UsageMeter
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope
from headrace.bus.v1.reply_pb2 import ModelServerStatus

METHOD = "/inference.GRPCInferenceService/ModelInfer"
CALL_ID_BYTES = 16
_IDS_A_DRAW = 256

Context = grpc.aio.ServicerContext[bytes, bytes]
Proof = Callable[[Context], None]
"""Raises a CredentialRefused where the caller is not any more who it was when the call began."""

_UNSENDABLE = re.compile(rb"[^\x20-\x7e]")
"""gRPC ends a call as INTERNAL rather than send these in a text."""
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_FAILURES: dict[Failure, Callable[[], Refusal]] = {  # those that are no loss: see gateway.delivery
    Failure.EXPIRED: DeadlineExceeded,
    Failure.ANSWER_TOO_LARGE: AnswerTooLarge,
    Failure.BAD_RECORD: Internal,
    Failure.INTERNAL: Internal,
    Failure.GATEWAY_FULL: GatewayFull,
}


def random_ids() -> Callable[[], bytes]:
    """Gives 128 random bits at each call. Drawn from the system in bulk: a draw is a system call."""
    drawn: list[bytes] = []

    def next_id() -> bytes:
        if not drawn:
            bulk = os.urandom(CALL_ID_BYTES * _IDS_A_DRAW)
            drawn.extend(bulk[at : at + CALL_ID_BYTES] for at in range(0, len(bulk), CALL_ID_BYTES))
        return drawn.pop()

    return next_id


async def pass_on(outcome: bytes | ModelServerStatus, context: Context) -> bytes:
    """Give the caller what Triton answered, its own errors with their code, text and metadata unchanged."""
    if isinstance(outcome, bytes):
        return outcome
    await context.abort(
        _CODES.get(outcome.code, grpc.StatusCode.UNKNOWN),
        outcome.message,
        tuple(
            (
                entry.key,
                entry.value if entry.key.endswith("-bin") else _UNSENDABLE.sub(b"?", entry.value).decode("ascii"),
            )
            for entry in outcome.trailing_metadata
        ),
    )
    raise AssertionError("abort returned")


class Translation(NamedTuple):
    """A call in another form: what it is judged by, and how its request and its answer are translated.

    Translating takes its time, so it is done for who may call, and within the call.
    """

    model: str
    read: Callable[[], Awaitable[bytes]]
    """Makes the ModelInferRequest. Raises refusals."""
    write: Callable[[bytes], Awaitable[bytes]]
    """Makes the answer of a ModelInferResponse. Raises refusals."""


class Answer(Protocol):
    """The method, for one caller."""

    async def __call__(self, request: bytes, context: Context, translation: Translation | None = None) -> bytes:
        """Answer a request: a ModelInferRequest, or whatever the translation knows."""
        ...


@dataclass(frozen=True, kw_only=True)
class CallTerms:
    """What holds for every call of this gateway."""

    reply_address: str
    incarnation: int
    default_deadline_seconds: float
    maximum_deadline_seconds: float
    max_message_bytes: int


class ModelInfer:
    """Answers ModelInfer."""

    def __init__(
        self,
        *,
        terms: CallTerms,
        registry: Registry,
        calls: WaitingCalls,
        delivery: Delivery,
        admission: Admission,
        usage: UsageMeter,
        traces: CallTraces | None = None,
    ) -> None:
        """Without `traces` no call is traced."""
        self._traces = traces
        self._usage = usage
        self._admission = admission
        self._terms = terms
        self._registry = registry
        self._calls = calls
        self._delivery = delivery
        self._envelope_base = envelope_base(
            method=METHOD_MODEL_INFER,
            reply_address=terms.reply_address,
            reply_incarnation=terms.incarnation,
        )
        self._call_ids = random_ids()
        self._loop = asyncio.get_running_loop()  # asked once: on Python 3.11 each question is a system call
        self.tally = Tally()
        self.ended = self.tally.reasons
        """See Tally.reasons."""

    def handler(self, caller: Caller, prove: Proof = lambda _: None) -> Answer:
        """The method, for one caller. `prove` is asked once the body is there: that may be long after who it was."""
        base = self._envelope_base + Envelope(tenant=caller.tenant).SerializeToString()

        async def model_infer(request: bytes, context: Context, translation: Translation | None = None) -> bytes:
            return await self._answer(caller, prove, base, request, context, translation)

        return model_infer

    async def _answer(  # noqa: PLR0917  keywords would cost every call
        self,
        caller: Caller,
        prove: Proof,
        base: bytes,
        request: bytes,
        context: Context,
        translation: Translation | None,
    ) -> bytes:
        call_id = self._call_ids()
        trace = None if self._traces is None else self._traces.begin(METHOD, caller.tenant, call_id, context)
        entry = self.tally.begin(caller.tenant)
        try:
            if is_packed(request):
                request = await unpacked(request, self._terms.max_message_bytes)
            prove(context)
            outcome = await self._admitted(
                caller, call_id, base, request, context, entry=entry, trace=trace, translation=translation
            )
            if translation is not None and isinstance(outcome, bytes):
                outcome = await translation.write(outcome)
        except Refusal as refusal:
            self.tally.ended(entry, refusal.reason)
            if trace is not None:
                trace.refused(refusal)
            await abort(context, refusal)
        except asyncio.CancelledError:
            remaining: float | None = context.time_remaining()
            expired = remaining is not None and remaining <= 0
            self.tally.ended(entry, DeadlineExceeded.reason if expired else CANCELLED)
            if trace is not None:
                trace.left(expired=expired)
            raise
        except Exception as exc:  # noqa: BLE001  the boundary to the caller
            self.tally.ended(entry, Internal.reason)
            internal = unforeseen(exc, method=METHOD, call_id=call_id.hex())
            if trace is not None:
                trace.refused(internal)
            await abort(context, internal)
        self.tally.ended(entry, OK if isinstance(outcome, bytes) else TRITON)
        if trace is not None:
            trace.answered(outcome)
        return await pass_on(outcome, context)

    async def _admitted(
        self,
        caller: Caller,
        call_id: bytes,
        base: bytes,
        request: bytes,
        context: Context,
        *,
        entry: Entry,
        trace: CallTrace | None,
        translation: Translation | None,
    ) -> bytes | ModelServerStatus:
        if len(request) > self._terms.max_message_bytes:
            raise RequestTooLarge(limit_bytes=str(self._terms.max_message_bytes))
        name = routing_fields(request).model_name if translation is None else translation.model
        model = self._registry.models.get(name)
        gate = None if model is None else self._admission.gate(caller, name, method=METHOD)
        if model is None or gate is None:
            raise self._admission.unseen(caller, self._unknown(name), method=METHOD, call_id=call_id)
        entry.model, entry.gate, entry.received = name, gate, len(request)
        if trace is not None:
            trace.of_model(name)
        await self._admission.enter(gate, caller, name, len(request), method=METHOD, call_id=call_id)
        answered: int | None = None
        run_on: list[Call] = []
        received = len(request)
        try:
            if translation is not None:
                request = await translation.read()
            outcome = await self._run(model, call_id, base, request, context, run_on=run_on, trace=trace)
            answer_bytes = entry.sent = len(outcome) if isinstance(outcome, bytes) else 0
            answered = received + answer_bytes
        finally:
            if run_on and gate.slots:
                # Most model servers can't stop what they have begun, and whoever hangs up is not to get more of them.
                seconds = mean_seconds(told.statistics for told in self._registry.statistics(name))
                self._loop.call_later(min(seconds, self._terms.maximum_deadline_seconds), self._leave, gate)
            else:
                self._admission.leave(gate, answered_bytes=answered)
        self._usage.add(
            caller.tenant,
            name,
            key_id=caller.key_id,
            calls=1,
            request_bytes=received,
            response_bytes=answer_bytes,
        )
        if (gate.calls or gate.account is not None) and isinstance(outcome, bytes):
            context.set_trailing_metadata(self._told(gate))
        return outcome

    def _leave(self, gate: Gate) -> None:
        self._admission.leave(gate, answered_bytes=None)

    def _told(self, gate: Gate) -> tuple[tuple[str, str], ...]:
        """What the caller is told of what is left."""
        left = self._admission.left(gate)
        told = () if left is None else rate_metadata(left)
        if gate.account is not None:
            told += quota_metadata(self._admission.quotas_told(gate.account))
        return told

    async def _run(
        self,
        model: Model,
        call_id: bytes,
        base: bytes,
        request: bytes,
        context: Context,
        *,
        run_on: list[Call],
        trace: CallTrace | None,
    ) -> bytes | ModelServerStatus:
        """Publish a call and wait. One that ends here while a router may run it is put into `run_on`."""
        place, router = self._delivery.place(model)
        seconds, client_deadline = self._seconds(context.time_remaining())
        expire = time.time_ns() // 1000 + int(seconds * 1e6)
        envelope = (
            base
            + Envelope(
                call_id=call_id,
                expire_time_unix_micros=expire,
                metadata=forwarded(context.invocation_metadata() or ()),
            ).SerializeToString()
        )
        loop = self._loop
        call = Call(call_id, model.name, place, router, expire, loop.create_future(), envelope, request, trace)
        self._calls.begin(call, len(request))
        # A caller's own deadline ends the call by itself: gRPC cancels the handler.
        timer = None if client_deadline else loop.call_later(seconds, self._calls.expire, call)
        try:
            self._delivery.publish(call)
            outcome = await call.answer
        except LogError as error:
            raise self._calls.not_taken(error) from None
        except (asyncio.CancelledError, DeadlineExceeded, LogUnavailable):
            # A delivery that failed in time may still have happened.
            if not self._delivery.abandon(call):
                run_on.append(call)
            raise
        finally:
            self._calls.end(call, len(request))
            if timer is not None:
                timer.cancel()
        if isinstance(outcome, Failure):
            raise self._failed(outcome, call_id)
        return outcome

    def _unknown(self, name: str) -> Refusal:
        """Why a model that is not in the registry is refused."""
        try:
            self._delivery.topic(name)
        except UnnameableModelError:
            return ModelNameInvalid()
        return ModelUnknown(model=name) if self._registry.complete else GatewayStarting()

    def _seconds(self, remaining: float | None) -> tuple[float, bool]:
        """How long the call may take, and whether the caller's own deadline is what ends it."""
        if remaining is None:
            return self._terms.default_deadline_seconds, False
        if remaining > self._terms.maximum_deadline_seconds:
            return self._terms.maximum_deadline_seconds, False
        return max(0.0, remaining), True

    @staticmethod
    def _failed(failure: Failure, call_id: bytes) -> Refusal:
        refused = _FAILURES[failure]
        return Internal(call_id=call_id.hex()) if refused is Internal else refused()

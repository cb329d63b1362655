"""The spans of a call at the gateway, whatever becomes of it, and none of a call that is not traced."""

import asyncio
import json
import logging
from collections.abc import Callable

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

from gateway.errors import Internal
from gateway.infer import METHOD
from gateway.traces import CallTraces
from headrace.bus.envelope import read_envelope
from headrace.bus.memory.requests import MemoryPublisher, MemoryRequestLog
from headrace.bus.protocols import Failure, LogFullError, Outcome
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from headrace.runtime.logs import JsonLines
from headrace.runtime.settings import TraceSettings
from headrace.runtime.trace_context import Parent
from tests.unit.gateway.admitting import admitting
from tests.unit.gateway.test_edge import KEY, OTHER, opened
from tests.unit.gateway.test_infer import TENANT, TOPIC, failed, refused, request_for, started
from tests.unit.tracing import KeptSpans, attributes, is_error

NAME = METHOD.removeprefix("/")
CALLERS = Parent(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, sampled=True)
SAMPLED = (("traceparent", CALLERS.traceparent), ("tracestate", "vendor=1"))
UNSAMPLED = (("traceparent", CALLERS._replace(sampled=False).traceparent),)
PATIENCE_SECONDS = 30.0


@pytest.fixture
def kept() -> KeptSpans:
    return KeptSpans("headrace-gateway")


def all_of(kept: KeptSpans) -> CallTraces:
    return CallTraces(kept.tracing, TraceSettings(sample_ratio=1))


def none_of(kept: KeptSpans, *, honour_callers: bool = False) -> CallTraces:
    return CallTraces(kept.tracing, TraceSettings(sample_ratio=0, honour_callers=honour_callers))


async def until_ended(kept: KeptSpans, name: str = NAME) -> None:
    """The answer reaches the caller before the handler's task is over."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while name not in {span.name for span in kept.ended}:  # noqa: ASYNC110  no event tells of a span's end
            await asyncio.sleep(0.005)


async def test_an_answered_call_is_its_span_and_its_publication(kept: KeptSpans) -> None:
    async with started(traces=all_of(kept)) as rig:
        call = rig.call(metadata=(("authorization", "Bearer s3cret"),))
        record = await rig.answer(b"done")
        await call

    envelope = read_envelope(record.envelope)
    send, server = kept.ended
    assert (server.name, server.kind.name, server.parent, is_error(server)) == (NAME, "SERVER", None, False)
    assert attributes(server) == {
        "rpc.system.name": "grpc",
        "rpc.method": "inference.GRPCInferenceService/ModelInfer",
        "rpc.response.status_code": "OK",
        "headrace.tenant": TENANT,
        "headrace.model": "simple",
        "headrace.call_id": envelope.call_id.hex(),
    }
    assert (send.name, send.kind.name, send.parent) == (f"send {TOPIC}", "PRODUCER", server.context)
    assert attributes(send) == {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": TOPIC,
        "messaging.destination.partition.id": str(record.place.partition),
        "messaging.message.id": envelope.call_id.hex(),
    }
    told = envelope.trace_context
    assert (int.from_bytes(told.trace_id), int.from_bytes(told.span_id)) == (
        send.context.trace_id,
        send.context.span_id,
    )


async def test_each_attempt_is_a_publication_of_its_own(kept: KeptSpans) -> None:
    async with started(traces=all_of(kept), attempts=2) as rig:
        call = rig.call()
        await rig.answer(Failure.TRITON_LOST)
        second = await rig.answer(b"done")
        await call

    sends = [span for span in kept.ended if span.kind.name == "PRODUCER"]
    assert [attributes(span).get("headrace.attempt") for span in sends] == [None, 2]
    told = read_envelope(second.envelope).trace_context
    assert int.from_bytes(told.span_id) == sends[1].context.span_id
    assert [span.parent for span in sends] == 2 * [kept.named(NAME).context]


async def test_a_callers_trace_is_continued(kept: KeptSpans) -> None:
    async with started(traces=all_of(kept)) as rig:
        call = rig.call(metadata=SAMPLED)
        record = await rig.answer(b"done")
        await call

    server, told = kept.named(NAME), read_envelope(record.envelope).trace_context
    assert server.parent is not None
    assert (server.parent.trace_id, server.parent.span_id) == (CALLERS.trace_id, CALLERS.span_id)
    assert (told.trace_id, told.trace_state) == (CALLERS.trace_id.to_bytes(16), "vendor=1")


@pytest.mark.parametrize("metadata", [(), SAMPLED, UNSAMPLED])
async def test_a_call_that_is_not_drawn_makes_nothing_and_keeps_its_callers_trace(
    kept: KeptSpans, metadata: tuple[tuple[str, str], ...]
) -> None:
    """A flag of the caller's does not have its calls traced."""
    async with started(traces=none_of(kept)) as rig:
        call = rig.call(metadata=metadata)
        record = await rig.answer(b"done")
        await call

    envelope = read_envelope(record.envelope)
    assert kept.ended == ()
    assert not envelope.HasField("trace_context")
    assert [(each.key, each.value.decode()) for each in envelope.metadata] == list(metadata)


@pytest.mark.parametrize(("metadata", "ratio", "traced"), [(SAMPLED, 0, True), (UNSAMPLED, 1, False), ((), 1, True)])
async def test_where_callers_are_honoured_their_flag_decides(
    kept: KeptSpans, metadata: tuple[tuple[str, str], ...], ratio: float, traced: bool
) -> None:
    traces = CallTraces(kept.tracing, TraceSettings(sample_ratio=ratio, honour_callers=True))
    async with started(traces=traces) as rig:
        call = rig.call(metadata=metadata)
        await rig.answer(b"done")
        await call

    assert bool(kept.ended) is traced


@pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        (ModelServerStatus(code=3, message="no"), "INVALID_ARGUMENT", "TRITON"),
        (ModelServerStatus(code=99, message="?"), "UNKNOWN", "TRITON"),
        (Failure.TRITON_LOST, "UNAVAILABLE", "TRITON_LOST"),
        (Failure.INTERNAL, "INTERNAL", "INTERNAL"),
    ],
)
async def test_how_a_call_failed_is_told_by_code_and_reason(
    kept: KeptSpans, outcome: Outcome, code: str, reason: str
) -> None:
    async with started(traces=all_of(kept)) as rig:
        call = rig.call()
        await rig.answer(outcome)
        await failed(call)

    server = kept.named(NAME)
    assert is_error(server)
    assert attributes(server)["rpc.response.status_code"] == code
    assert attributes(server)["error.type"] == reason
    assert not is_error(kept.named("send"))


async def test_a_refused_call_is_a_span_that_names_the_reason_and_nothing_of_what_was_sent(kept: KeptSpans) -> None:
    async with started(traces=all_of(kept)) as rig:
        assert await refused(rig.call(request_for("a-model-of-the-callers-making"))) == (
            StatusCode.NOT_FOUND,
            "MODEL_UNKNOWN",
        )

    [server] = kept.ended
    assert is_error(server)
    assert attributes(server)["error.type"] == "MODEL_UNKNOWN"
    assert "headrace.model" not in attributes(server)
    assert "making" not in str(attributes(server))


async def test_a_limited_call_is_told_with_its_model_and_its_log_line_names_the_trace(
    kept: KeptSpans, caplog: pytest.LogCaptureFixture
) -> None:
    policy = f"tenants: {{{TENANT}: {{models: ['*'], limits: {{request_bytes: 1}}}}}}"
    caplog.handler.setFormatter(JsonLines("gateway"))
    with caplog.at_level(logging.INFO, "gateway.audit"):
        async with started(traces=all_of(kept), admission=admitting(policy)) as rig:
            await refused(rig.call())

    [server] = kept.ended
    assert attributes(server)["headrace.model"] == "simple"
    [line] = [json.loads(each) for each in caplog.text.splitlines()]
    assert line["event"] == "call_refused"
    assert line["trace_id"] == f"{server.context.trace_id:032x}"


async def test_a_record_that_the_log_does_not_take_is_an_error_of_both_spans(kept: KeptSpans) -> None:
    log = MemoryRequestLog()
    log.refuse_at_once = LogFullError()
    publisher = MemoryPublisher(log, on_failure=lambda *_: None)
    async with started(traces=all_of(kept), publisher=publisher) as rig:
        await refused(rig.call())

    assert [(span.kind.name, attributes(span)["error.type"]) for span in kept.ended] == [
        ("PRODUCER", "LOG_FULL"),
        ("SERVER", "LOG_FULL"),
    ]


async def test_a_caller_who_hangs_up_is_no_error(kept: KeptSpans) -> None:
    async with started(traces=all_of(kept)) as rig:
        call = rig.call()
        await rig.record()
        call.cancel()
        await until_ended(kept)

    server = kept.named(NAME)
    assert not is_error(server)
    assert attributes(server)["rpc.response.status_code"] == "CANCELLED"
    assert "error.type" not in attributes(server)


async def test_a_deadline_that_passed_is_one(kept: KeptSpans) -> None:
    async with started(traces=all_of(kept)) as rig:
        assert (await failed(rig.call(seconds=0.05))).code() is StatusCode.DEADLINE_EXCEEDED
        await until_ended(kept)

    assert attributes(kept.named(NAME))["error.type"] == "DEADLINE_EXCEEDED"


# Refused before the call path.


@pytest.mark.parametrize(
    ("metadata", "prepare", "reason"),
    [
        ((), lambda _: None, "KEY_MISSING"),
        ((("x-api-key", "wrong"),), lambda _: None, "KEY_INVALID"),
        (KEY, lambda edge: edge.full.set(), "GATEWAY_FULL"),
        (KEY, lambda edge: setattr(edge.handlers, "closing", True), "SHUTTING_DOWN"),
    ],
)
async def test_who_is_refused_at_the_door_is_traced_too(
    kept: KeptSpans, metadata: tuple[tuple[str, str], ...], prepare: Callable[[object], None], reason: str
) -> None:
    async with opened(traces=all_of(kept)) as edge:
        prepare(edge)
        with pytest.raises(grpc.aio.AioRpcError):
            await edge.call(metadata=metadata)

    [server] = kept.ended
    assert (server.name, attributes(server)["error.type"]) == (NAME, reason)
    assert "headrace.tenant" not in attributes(server)


async def test_a_stranger_decides_nothing(kept: KeptSpans) -> None:
    """Also where callers are honoured: without a credential nobody is one."""
    async with opened(traces=none_of(kept, honour_callers=True)) as edge:
        with pytest.raises(grpc.aio.AioRpcError):
            await edge.call(METHOD, metadata=SAMPLED)

    assert kept.ended == ()


async def test_other_methods_are_not_traced(kept: KeptSpans) -> None:
    async with opened(traces=all_of(kept)) as edge:
        assert await edge.call(OTHER) == b"other"
        with pytest.raises(grpc.aio.AioRpcError):
            await edge.call(OTHER, metadata=())

    assert kept.ended == ()


async def test_what_nobody_foresaw_is_internal(kept: KeptSpans) -> None:
    class Broken(MemoryPublisher):
        def publish(self, *_: object, **__: object) -> None:
            raise ZeroDivisionError

    publisher = Broken(MemoryRequestLog(), on_failure=lambda *_: None)
    async with started(traces=all_of(kept), publisher=publisher) as rig:
        assert await refused(rig.call()) == (StatusCode.INTERNAL, "INTERNAL")

    assert attributes(kept.named(NAME))["error.type"] == Internal.reason

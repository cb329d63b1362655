"""The spans of a record at the router: they follow from the gateway's, and there are none where it made none."""

import time

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from headrace.bus.protocols import Failure, Outcome
from headrace.bus.v1.envelope_pb2 import Envelope, Metadatum, TraceContext
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from headrace.runtime.trace_context import parse_traceparent
from router.traces import RecordTraces, published_by
from tests.unit.router.conftest import MakeRig
from tests.unit.router.rig import GROUP, Rig, settle
from tests.unit.tracing import KeptSpans, attributes, is_error

CALL = b"c" * 16
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
CONTEXT = TraceContext(trace_id=TRACE.to_bytes(16), span_id=SPAN.to_bytes(8), trace_state="vendor=1")
CALLERS = "00-11111111111111111111111111111111-2222222222222222-01"
TRITON = "inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def kept() -> KeptSpans:
    return KeptSpans("headrace-router")


async def started(rigged: MakeRig, kept: KeptSpans, *, window: int = 1) -> Rig:
    rig = rigged(traces=RecordTraces(kept.tracing, group=GROUP, triton="127.0.0.1:8001"), partitions=1)
    await rig.start({"t": window})
    return rig


def parent(span: ReadableSpan) -> tuple[int, int]:
    assert span.parent is not None
    return span.parent.trace_id, span.parent.span_id


def ids(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


async def test_a_call_is_a_wait_a_run_and_a_call_to_triton(rigged: MakeRig, kept: KeptSpans) -> None:
    before = time.time_ns() // 1_000_000 * 1_000_000
    rig = await started(rigged, kept)
    _, offset = rig.publish(CALL, trace_context=CONTEXT)
    await settle()
    rig.server.finish(CALL)
    await settle()

    wait, run, call = kept.named("wait"), kept.named("process t"), kept.named(TRITON)
    assert [span.kind.name for span in (wait, run, call)] == ["INTERNAL", "CONSUMER", "CLIENT"]
    assert parent(wait) == parent(run) == (TRACE, SPAN)
    assert [(link.context.trace_id, link.context.span_id) for link in run.links] == [(TRACE, SPAN)]
    assert parent(call) == ids(run)
    assert wait.start_time is not None
    assert before <= wait.start_time
    assert wait.end_time == run.start_time
    record = {
        "messaging.destination.name": "t",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": offset,
        "messaging.message.id": CALL.hex(),
    }
    assert attributes(wait) == record
    told = dict(attributes(run))
    assert 0 <= told.pop("headrace.queue_wait_seconds") < 10
    assert told == record | {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": GROUP,
        "headrace.tenant": "acme",
    }
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": TRITON,
        "rpc.response.status_code": "OK",
        "server.address": "127.0.0.1",
        "server.port": 8001,
    }
    assert not any(map(is_error, (wait, run, call)))


async def test_triton_continues_our_trace_and_keeps_the_rest_of_the_metadata(rigged: MakeRig, kept: KeptSpans) -> None:
    rig = await started(rigged, kept)
    metadata = [
        Metadatum(key="x-own", value=b"1"),
        Metadatum(key="traceparent", value=CALLERS.encode()),
        Metadatum(key="tracestate", value=b"theirs=1"),
    ]
    rig.publish(CALL, trace_context=CONTEXT, metadata=metadata)
    await settle()
    began = rig.server.running[CALL]
    rig.server.finish(CALL)
    await settle()

    told = {each.key: each.value.decode() for each in began.metadata}
    assert len(began.metadata) == 3
    assert (told["x-own"], told["tracestate"]) == ("1", "vendor=1")
    ours = parse_traceparent(told["traceparent"])
    assert ours is not None
    assert (ours.trace_id, ours.span_id, ours.sampled) == (*ids(kept.named(TRITON)), True)


async def test_a_call_that_is_not_traced_makes_nothing_and_keeps_its_callers_trace(
    rigged: MakeRig, kept: KeptSpans
) -> None:
    rig = await started(rigged, kept)
    rig.publish(CALL, metadata=[Metadatum(key="traceparent", value=CALLERS.encode())])
    await settle()
    began = rig.server.running[CALL]
    rig.server.finish(CALL)
    await settle()

    assert kept.ended == ()
    assert [each.value.decode() for each in began.metadata] == [CALLERS]


async def test_waiting_for_a_slot_is_part_of_the_wait(rigged: MakeRig, kept: KeptSpans) -> None:
    rig = await started(rigged, kept)
    rig.publish(b"first", trace_context=CONTEXT)
    rig.publish(b"second", trace_context=CONTEXT)
    await settle()
    time.sleep(0.05)  # noqa: ASYNC251  the wait, by the system's own clock
    rig.server.finish(b"first")
    await settle()
    rig.server.finish(b"second")
    await settle()

    waited = [attributes(span)["headrace.queue_wait_seconds"] for span in kept.ended if span.name == "process t"]
    assert waited[1] >= 0.05


@pytest.mark.parametrize(
    ("outcome", "code", "reasons"),
    [
        (ModelServerStatus(code=3), "INVALID_ARGUMENT", ("INVALID_ARGUMENT", "TRITON")),
        (Failure.EXPIRED, "DEADLINE_EXCEEDED", ("EXPIRED", "EXPIRED")),
        (Failure.TRITON_LOST, "UNAVAILABLE", ("TRITON_LOST", "TRITON_LOST")),
        (Failure.ANSWER_TOO_LARGE, None, ("ANSWER_TOO_LARGE", "ANSWER_TOO_LARGE")),
        (ZeroDivisionError(), None, ("INTERNAL", "INTERNAL")),
    ],
)
async def test_how_a_call_failed_is_told_of_the_call_to_triton_and_of_the_run(
    rigged: MakeRig, kept: KeptSpans, outcome: Outcome | Exception, code: str | None, reasons: tuple[str, str]
) -> None:
    rig = await started(rigged, kept)
    rig.publish(CALL, trace_context=CONTEXT)
    await settle()
    rig.server.finish(CALL, outcome)
    await settle()

    at_triton, here = kept.named(TRITON), kept.named("process")
    assert is_error(at_triton)
    assert is_error(here)
    assert attributes(at_triton).get("rpc.response.status_code") == code
    assert (attributes(at_triton)["error.type"], attributes(here)["error.type"]) == reasons


async def test_a_cancelled_call_ends_its_spans_and_is_no_error_of_its_run(rigged: MakeRig, kept: KeptSpans) -> None:
    rig = await started(rigged, kept)
    rig.publish(CALL, trace_context=CONTEXT)
    await settle()
    rig.hub.cancel(CALL, 1, time.time_ns() // 1000 + 10_000_000)
    await settle()

    assert not is_error(kept.named("process"))
    assert attributes(kept.named(TRITON))["rpc.response.status_code"] == "CANCELLED"


async def test_a_call_that_is_cut_off_says_so(rigged: MakeRig, kept: KeptSpans) -> None:
    rig = await started(rigged, kept)
    rig.publish(CALL, trace_context=CONTEXT)
    await settle()
    await rig.intake.cancel_running()

    assert attributes(kept.named("process"))["error.type"] == "ROUTER_LEFT"


async def test_a_record_that_is_not_run_is_a_wait_that_says_why(rigged: MakeRig, kept: KeptSpans) -> None:
    rig = await started(rigged, kept)
    rig.publish(CALL, trace_context=CONTEXT, seconds=-1)
    await settle()

    [wait] = kept.ended
    assert (wait.name, attributes(wait)["error.type"], parent(wait)) == ("wait", "EXPIRED", (TRACE, SPAN))


@pytest.mark.parametrize(
    "malformed",
    [
        TraceContext(),
        TraceContext(trace_id=bytes(16), span_id=b"s" * 8),
        TraceContext(trace_id=b"t" * 16, span_id=bytes(8)),
        TraceContext(trace_id=b"t" * 15, span_id=b"s" * 8),
        TraceContext(trace_id=b"t" * 16, span_id=b"s" * 9),
    ],
)
def test_a_context_of_another_form_is_passed_over(malformed: TraceContext) -> None:
    assert published_by(Envelope(trace_context=malformed)) is None

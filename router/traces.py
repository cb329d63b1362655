"""The spans of a call at the router: its wait in the log, its run here, and the call to the model server.

A call is traced where its envelope says so; nothing is decided here. The wait and the run follow from the span that
published the record, and the run has a link to it besides: so the conventions for messaging have it, and a record is
one call. Names follow OpenTelemetry's conventions for gRPC and for messaging (1.44).
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import grpc

from headrace.bus.protocols import Failure, Outcome, Record
from headrace.bus.v1.envelope_pb2 import Envelope, Metadatum
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from headrace.runtime.trace_context import TRACEPARENT, TRACESTATE, Attributes, Parent

if TYPE_CHECKING:
    from headrace.runtime.tracing import Span, Tracing  # loads OpenTelemetry, which only who traces needs

_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_MODEL_INFER = "inference.GRPCInferenceService/ModelInfer"
_CODES_OF_FAILURES = {Failure.EXPIRED: "DEADLINE_EXCEEDED", Failure.TRITON_LOST: "UNAVAILABLE"}


class RecordTraces:
    """Begins the spans of records whose gateway has them traced."""

    def __init__(self, tracing: "Tracing", *, group: str, triton: str) -> None:
        """`triton` is the model server's `HOST:PORT`."""
        self._tracing = tracing
        host, _, port = triton.rpartition(":")
        self._run: Attributes = {
            "messaging.system": "kafka",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": group,
        }
        self._call: Attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": _MODEL_INFER,
            "server.address": host or triton,
            **({"server.port": int(port)} if port.isdecimal() else {}),
        }

    def begin(self, record: Record, envelope: Envelope) -> "RecordTrace | None":
        """The call begins now, in this task: its log lines name its trace from here on."""
        parent = published_by(envelope)
        if parent is None:
            return None
        now = time.time_ns()
        waited = self._wait(record, envelope, parent, now)
        told = {
            **self._run,
            **_record(record, envelope),
            "headrace.tenant": envelope.tenant,
            "headrace.queue_wait_seconds": waited,
        }
        run = self._tracing.begin(
            f"process {record.place.topic}", "CONSUMER", parent=parent, link=parent, attributes=told, at_ns=now
        )
        run.mark_logs()
        call = self._tracing.begin(_MODEL_INFER, "CLIENT", parent=run, attributes=self._call)
        return RecordTrace(run, call)

    def skipped(self, record: Record, envelope: Envelope, why: str) -> None:
        """The call is not run here, and its wait ends; `why` as the router counts it."""
        parent = published_by(envelope)
        if parent is not None:
            self._wait(record, envelope, parent, time.time_ns(), error=why.upper())

    def _wait(self, record: Record, envelope: Envelope, parent: Parent, now: int, *, error: str = "") -> float:
        """Tell how long a record waited in the log and here, in seconds; by two clocks, so never less than nothing."""
        since = min(record.timestamp_millis * 1_000_000 or now, now)
        told = _record(record, envelope)
        self._tracing.begin("wait", "INTERNAL", parent=parent, attributes=told, at_ns=since).end(error=error, at_ns=now)
        return (now - since) / 1e9


class RecordTrace:
    """The spans of one call that runs. `answered`, or else `cancelled`, ends them."""

    def __init__(self, run: "Span", call: "Span") -> None:
        self._run = run
        self._call = call

    def forwarded(self, metadata: Sequence[Metadatum]) -> list[Metadatum]:
        """The caller's metadata with our trace context instead of its own, so that the model server continues it."""
        context = self._call.context
        ours = [Metadatum(key=TRACEPARENT, value=context.traceparent.encode())]
        if context.state:
            ours.append(Metadatum(key=TRACESTATE, value=context.state.encode()))
        return [*(each for each in metadata if each.key not in {TRACEPARENT, TRACESTATE}), *ours]

    def answered(self, outcome: Outcome) -> None:
        """The call ended by itself; at the model server, or on the way there."""
        if isinstance(outcome, bytes):
            self._end("OK")
        elif isinstance(outcome, ModelServerStatus):
            code = _CODES.get(outcome.code, "UNKNOWN")
            self._end(code, called=code, run="TRITON")
        else:
            self._end(_CODES_OF_FAILURES.get(outcome, ""), called=outcome.name, run=outcome.name)

    def cancelled(self, why: str) -> None:
        """Nobody waits for it any more, or this router leaves: not an error of the call's, `why` or none."""
        self._end("CANCELLED", called="CANCELLED", run=why)

    def _end(self, code: str, *, called: str = "", run: str = "") -> None:
        if code:
            self._call.set({"rpc.response.status_code": code})
        self._call.end(error=called)
        self._run.end(error=run)


def published_by(envelope: Envelope) -> Parent | None:
    """The span that published the record, where the call is traced."""
    if not envelope.HasField("trace_context"):
        return None
    told = envelope.trace_context
    trace_id, span_id = int.from_bytes(told.trace_id), int.from_bytes(told.span_id)
    if (len(told.trace_id), len(told.span_id)) != (_TRACE_ID_BYTES, _SPAN_ID_BYTES) or not trace_id or not span_id:
        return None
    return Parent(trace_id, span_id, sampled=True, state=told.trace_state)


def _record(record: Record, envelope: Envelope) -> Attributes:
    return {
        "messaging.destination.name": record.place.topic,
        "messaging.destination.partition.id": str(record.place.partition),
        "messaging.kafka.offset": record.offset,
        "messaging.message.id": envelope.call_id.hex(),
    }

"""The spans of a call at the gateway: one for the call as its caller sees it, one for its publication.

Names follow OpenTelemetry's conventions for gRPC and for messaging (1.44). Of what a caller sends only the name of a
model that exists is told: no payload, no credential, no metadata.
"""

from typing import TYPE_CHECKING

import grpc

from gateway.errors import DeadlineExceeded, Refusal
from gateway.status import Context, code_of
from headrace.bus.protocols import TopicPartition
from headrace.bus.v1.envelope_pb2 import Envelope, TraceContext
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from headrace.runtime.settings import TraceSettings
from headrace.runtime.trace_context import Attributes, Draw, Parent, parent_of

if TYPE_CHECKING:
    from headrace.runtime.tracing import Span, Tracing  # loads OpenTelemetry, which only who traces needs

_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_GRPC = {"rpc.system.name": "grpc"}


class CallTraces:
    """Says of each call whether it is traced, before any other work, and begins its span."""

    def __init__(self, tracing: "Tracing", settings: TraceSettings) -> None:
        self._tracing = tracing
        self._honour_callers = settings.honour_callers
        self._draw = Draw(settings.sample_ratio)

    def begin(self, method: str, tenant: str, call_id: bytes, context: Context) -> "CallTrace | None":
        """The trace of a call whose caller is known, where it is traced. Its log lines name it from here on."""
        if self._honour_callers:
            parent = parent_of(context.invocation_metadata() or ())
            if not (self._draw() if parent is None else parent.sampled):
                return None
        elif self._draw():
            parent = parent_of(context.invocation_metadata() or ())
        else:
            return None
        return self._begun(method, {"headrace.tenant": tenant, "headrace.call_id": call_id.hex()}, parent)

    def stranger(self, method: str, context: Context) -> "CallTrace | None":
        """As `begin`, for a call that is refused without a look at who calls: no flag of its is honoured."""
        if not self._draw():
            return None
        return self._begun(method, {}, parent_of(context.invocation_metadata() or ()))

    def _begun(self, method: str, attributes: Attributes, parent: Parent | None) -> "CallTrace":
        name = method.removeprefix("/")
        told = {**_GRPC, "rpc.method": name, **attributes}
        span = self._tracing.begin(name, "SERVER", parent=parent, attributes=told)
        span.mark_logs()
        return CallTrace(self._tracing, span, call_id=str(attributes.get("headrace.call_id", "")))


class CallTrace:
    """The spans of one call. Exactly one of `answered`, `refused` and `left` ends them."""

    def __init__(self, tracing: "Tracing", span: "Span", *, call_id: str) -> None:
        self._tracing = tracing
        self._span = span
        self._call_id = call_id
        self._sending: Span | None = None

    def of_model(self, name: str) -> None:
        """The call is of a model that exists for its caller."""
        self._span.set({"headrace.model": name})

    def publishing(self, place: TopicPartition, attempt: int) -> bytes:
        """The record is about to be published; what its envelope says of it, serialised. Each attempt has its span."""
        told: dict[str, str | int] = {
            "messaging.system": "kafka",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.destination.name": place.topic,
            "messaging.destination.partition.id": str(place.partition),
            "messaging.message.id": self._call_id,
        }
        if attempt > 1:
            told["headrace.attempt"] = attempt
        self._sending = self._tracing.begin(f"send {place.topic}", "PRODUCER", parent=self._span, attributes=told)
        made = self._sending.context
        context = TraceContext(
            trace_id=made.trace_id.to_bytes(16), span_id=made.span_id.to_bytes(8), trace_state=made.state
        )
        return Envelope(trace_context=context).SerializeToString()

    def published(self) -> None:
        """The client has the record, or it waits for its turn there."""
        if self._sending is not None:
            self._sending.end()
            self._sending = None

    def answered(self, outcome: bytes | ModelServerStatus) -> None:
        """The caller gets what Triton said; Triton's own error is one here too."""
        if isinstance(outcome, bytes):
            self._end("OK")
        else:
            self._end(_CODES.get(outcome.code, "UNKNOWN"), "TRITON")

    def refused(self, refusal: Refusal) -> None:
        """The caller gets a refusal."""
        self._end(code_of(refusal).name, refusal.reason)

    def left(self, *, expired: bool) -> None:
        """The caller has gone, or its deadline has passed; that it hung up is no error."""
        if expired:
            self._end(code_of(DeadlineExceeded).name, DeadlineExceeded.reason)
        else:
            self._end("CANCELLED")

    def _end(self, code: str, reason: str = "") -> None:
        if self._sending is not None:
            self._sending.end(error=reason)
        self._span.set({"rpc.response.status_code": code})
        self._span.end(error=reason)

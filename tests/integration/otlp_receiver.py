"""A receiver of traces: OTLP's own service, on loopback, that keeps what it is sent."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

SECONDS = 30.0


@dataclass(frozen=True)
class Received:
    """One span as it was received, with what its process says of itself."""

    span: Span
    resource: dict[str, str | int | float]
    attributes: dict[str, str | int | float]

    @property
    def name(self) -> str:
        return self.span.name

    @property
    def kind(self) -> str:
        return Span.SpanKind.Name(self.span.kind).removeprefix("SPAN_KIND_")

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def links(self) -> list[str]:
        return [link.span_id.hex() for link in self.span.links]

    @property
    def seconds(self) -> float:
        return (self.span.end_time_unix_nano - self.span.start_time_unix_nano) / 1e9

    @property
    def is_error(self) -> bool:
        return self.span.status.code == Status.STATUS_CODE_ERROR


class Receiver(TraceServiceServicer):
    """Keeps every span, and the metadata of every export."""

    def __init__(self) -> None:
        self.address = ""
        self.metadata: list[dict[str, str | bytes]] = []
        self._spans: list[Received] = []
        self._news = threading.Condition()

    def Export(  # noqa: N802  the service's own name
        self, request: ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> ExportTraceServiceResponse:
        """TraceService.Export."""
        came = [
            Received(span, _plain(each.resource.attributes), _plain(span.attributes))
            for each in request.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]
        with self._news:
            self.metadata.append(dict(context.invocation_metadata() or ()))
            self._spans += came
            self._news.notify_all()
        return ExportTraceServiceResponse()

    def trace(self, trace_id: str, *, spans: int) -> list[Received]:
        """The spans of a trace, oldest first, once there are so many."""
        return self.wait_for(lambda each: each.trace_id == trace_id, at_least=spans)

    def wait_for(self, wanted: Callable[[Received], bool], *, at_least: int = 1) -> list[Received]:
        """The spans that are wanted, oldest first, once there are so many."""

        def found() -> list[Received]:
            return [each for each in self._spans if wanted(each)]

        with self._news:
            came = self._news.wait_for(lambda: len(found()) >= at_least, SECONDS)
            assert came, f"not within {SECONDS} s: {at_least} spans; there are {[each.name for each in self._spans]}"
            return sorted(found(), key=lambda each: each.span.start_time_unix_nano)


@contextmanager
def receiving(credentials: grpc.ServerCredentials | None = None, *, port: int = 0) -> Iterator[Receiver]:
    """A receiver on a port of this machine, a free one where none is named."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]  # generated
    where = f"127.0.0.1:{port}"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    server.start()
    receiver.address = f"127.0.0.1:{port}"
    try:
        yield receiver
    finally:
        server.stop(None).wait()


def _plain(attributes: Sequence[KeyValue]) -> dict[str, str | int | float]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "string_value") for each in attributes}


def tree(spans: Sequence[Received], *, times: bool = True) -> str:
    """A trace as text: who follows from whom, when it began and how long it took; siblings by their beginning."""
    ids = {each.id for each in spans}
    first = min(each.span.start_time_unix_nano for each in spans)

    def below(parents: "set[str] | None", depth: int) -> Iterator[str]:
        for each in sorted(spans, key=lambda each: each.span.start_time_unix_nano):
            if (each.parent not in ids) if parents is None else (each.parent in parents):
                at = (each.span.start_time_unix_nano - first) / 1e6
                when = f" +{at:.2f} ms, {each.seconds * 1e3:.2f} ms" if times else ""
                yield f"{'  ' * depth}{each.name} {each.kind} {each.resource['service.name']}{when}"
                yield from below({each.id}, depth + 1)

    return "\n".join(below(None, 0))

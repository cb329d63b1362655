"""Spans, and their way to a receiver of OTLP. The only user of OpenTelemetry; import it where there is a receiver.

Whether a call is traced was decided before (`trace_context`): every span made here is exported. A thread of the SDK's
sends them in batches, over a gRPC channel that nothing here traces. What the receiver does not take is dropped, never
waited for.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Self

import grpc
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.service_attributes import SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_VERSION
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace import Span as SdkSpan

from headrace.runtime.logs import TRACED, Traced
from headrace.runtime.settings import SettingsError, TraceSettings
from headrace.runtime.trace_context import Attributes, Kind, Parent

FLUSH_SECONDS = 2.0
_BATCH_SPANS = 512
_BATCH_SECONDS = 1.0
_NOTHING = Context()
_log = logging.getLogger(__name__)


class Span:
    """One span, which is exported once it has ended. While it lasts, log lines of its call can name its trace."""

    __slots__ = ("_mark", "_span", "context")

    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        self._mark: Traced | None = None
        told = span.get_span_context()
        self.context = Parent(told.trace_id, told.span_id, sampled=True, state=told.trace_state.to_header())
        """Who follows from this one, in this process or another."""

    def mark_logs(self) -> None:
        """Lines that are logged from here on, in this task, have `trace_id`, until the span ends."""
        self._mark = Traced(f"{self.context.trace_id:032x}")
        TRACED.set(self._mark)

    def set(self, attributes: Attributes) -> None:
        """Say more about it."""
        self._span.set_attributes(attributes)

    def end(self, *, error: str = "", at_ns: int | None = None) -> None:
        """It is over; in `error`, where that is a stable reason and not empty."""
        if error:
            self._span.set_attribute(ERROR_TYPE, error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(at_ns)
        if self._mark is not None:
            self._mark.trace_id = ""

    def as_parent(self) -> Context:
        """For the SDK."""
        return set_span_in_context(self._span, _NOTHING)


class Tracing:
    """The spans of one process. Enter it to have them sent; leaving sends what is left, for two seconds at most."""

    def __init__(
        self, settings: TraceSettings, *, service: str, instance: str, processor: SpanProcessor | None = None
    ) -> None:
        """Raises SettingsError where a file is not usable. `processor` takes the spans instead of a receiver."""
        self._exporter: _Exporter | None = None
        if processor is None:
            self._exporter = _Exporter(settings)
            processor = BatchSpanProcessor(
                self._exporter,
                max_queue_size=settings.queue_spans,
                schedule_delay_millis=_BATCH_SECONDS * 1000,
                max_export_batch_size=min(_BATCH_SPANS, settings.queue_spans),
                export_timeout_millis=settings.export_seconds * 1000,
            )
        told = {SERVICE_NAME: service, SERVICE_INSTANCE_ID: instance, SERVICE_VERSION: version("headrace")}
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource(told), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("headrace", version("headrace"), Schemas.V1_44_0.value)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def close() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

        # The SDK would wait for half a minute, and the process for its thread.
        threading.Thread(target=close, name="traces-flush", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await ended.wait()
        except TimeoutError:
            _log.warning("the last traces were not sent: the receiver is away", extra={"event": "traces_lost"})
            if self._exporter is not None:
                self._exporter.shutdown()

    def begin(
        self,
        name: str,
        kind: Kind,
        *,
        parent: "Parent | Span | None",
        attributes: Attributes,
        link: Parent | None = None,
        at_ns: int | None = None,
    ) -> Span:
        """A span, from now on or since `at_ns`; the first of a new trace where it has no parent."""
        if isinstance(parent, Span):
            context = parent.as_parent()
        else:
            context = _NOTHING if parent is None else set_span_in_context(NonRecordingSpan(_remote(parent)), _NOTHING)
        links = () if link is None else (Link(_remote(link)),)
        return Span(self._tracer.start_span(name, context, SpanKind[kind], dict(attributes), links, at_ns))


def _remote(parent: Parent) -> SpanContext:
    state = TraceState.from_header([parent.state]) if parent.state else None
    return SpanContext(parent.trace_id, parent.span_id, is_remote=True, trace_flags=_flags(parent), trace_state=state)


def _flags(parent: Parent) -> TraceFlags:
    return TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)


class _Exporter(SpanExporter):
    """Sends batches, in the SDK's thread. Says once that the receiver is away, and once that it is back."""

    def __init__(self, settings: TraceSettings) -> None:
        # The library would say each attempt that failed.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        plain = (settings.endpoint or "").startswith("http:")
        self._endpoint = settings.endpoint
        self._away = False
        self._closing = threading.Lock()
        self._closed = False
        self._otlp = OTLPSpanExporter(
            endpoint=settings.endpoint,
            insecure=plain,
            credentials=None if plain else _credentials(settings),
            headers=_headers(settings.headers_file),
            timeout=settings.export_seconds,
        )

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter.export."""
        if self._closed:
            return SpanExportResult.FAILURE
        try:
            result = self._otlp.export(spans)
        except Exception as exc:  # noqa: BLE001  the thread's boundary; a closed channel raises ValueError
            result = SpanExportResult.FAILURE
            why = type(exc).__name__
        else:
            why = "the receiver does not take them"
        away = result is not SpanExportResult.SUCCESS
        if away != self._away and not self._closed:
            self._away = away
            self._tell(why if away else "")
        return result

    def _tell(self, why: str) -> None:
        if why:
            extra = {"event": "traces_unsent", "endpoint": self._endpoint, "why": why}
            _log.warning("traces are not sent, and dropped: %s", why, extra=extra)
        else:
            _log.info("traces are sent again", extra={"event": "traces_sent_again", "endpoint": self._endpoint})

    def shutdown(self) -> None:
        """See SpanExporter.shutdown: ends what is under way."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._otlp.shutdown()


def _credentials(settings: TraceSettings) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(*map(_bytes, (settings.ca_file, settings.key_file, settings.certificate_file)))


def _bytes(path: Path | None) -> bytes | None:
    return None if path is None else path.read_bytes()


def _headers(path: Path | None) -> tuple[tuple[str, str], ...]:
    """Raises SettingsError where a line is no header."""
    lines = [] if path is None else path.read_text(encoding="utf-8").splitlines()
    headers = []
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip() or not (name + value).isascii() or not value.strip().isprintable():
            raise SettingsError(f"HEADRACE_TRACES__HEADERS_FILE: line {number} is not NAME: VALUE")
        headers.append((name.strip().lower(), value.strip()))
    return tuple(headers)

"""Spans that are kept instead of being sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headrace.runtime.settings import TraceSettings
from headrace.runtime.tracing import Tracing

Attributes = Mapping[str, Any]


class KeptSpans:
    """A process's tracing, and the spans of it that ended."""

    def __init__(self, service: str = "headrace-test") -> None:
        self._exporter = InMemorySpanExporter()
        self.tracing = Tracing(
            TraceSettings(), service=service, instance="one", processor=SimpleSpanProcessor(self._exporter)
        )

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        """In the order of their ends."""
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        """The one span whose name begins so."""
        [found] = [span for span in self.ended if span.name.startswith(name)]
        return found


def attributes(span: ReadableSpan) -> Attributes:
    return span.attributes or {}


def is_error(span: ReadableSpan) -> bool:
    return span.status.status_code.name == "ERROR"

"""Which calls are traced, and the trace that a caller says its call belongs to: W3C Trace Context, read by hand.

Asked of every call, so it makes nothing for one that is not traced, and loads OpenTelemetry only where there is a
receiver of traces.
"""

import math
import random
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

from headrace.runtime.settings import TraceSettings

if TYPE_CHECKING:
    from headrace.runtime.tracing import Tracing

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"

Kind = Literal["SERVER", "PRODUCER", "CONSUMER", "CLIENT", "INTERNAL"]
"""What a span is of, by OpenTelemetry's names."""
Attributes = Mapping[str, str | int | float]

_MOST_STATE_CHARACTERS = 512
"""Of `tracestate`: what the specification asks one to pass on. A longer one is left out whole."""
_NEVER = 0
_FARTHEST = 1e18
_TRACEPARENT = re.compile("([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


class Parent(NamedTuple):
    """A span that another one follows from; it may be another process's."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""
    """`tracestate`, as it came."""

    @property
    def traceparent(self) -> str:
        """As W3C Trace Context writes it."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.sampled:02x}"


def parse_traceparent(text: str) -> Parent | None:
    """What `traceparent` says; None where it is not exactly what the specification allows.

    A later version is read as far as this one goes.
    """
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    trace_id, span_id = int(trace, 16), int(span, 16)
    if not trace_id or not span_id or version == "ff" or (version == "00" and more is not None):
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & 1))


def parent_of(metadata: Iterable[tuple[str, str | bytes]]) -> Parent | None:
    """The trace that a call's metadata names. One that is named twice is none."""
    parent, states = None, []
    for key, value in metadata:
        if key == TRACEPARENT:
            if parent is not None or not isinstance(value, str):
                return None
            parent = parse_traceparent(value)
            if parent is None:
                return None
        elif key == TRACESTATE and isinstance(value, str):
            states.append(value)
    state = ",".join(states)
    return parent if parent is None or len(state) > _MOST_STATE_CHARACTERS else parent._replace(state=state)


class Draw:
    """Says of each call whether it is traced, as if each was drawn by itself.

    What is drawn is how many calls are passed over until the next one that is traced: a call that is not traced costs
    a subtraction. Nothing that a caller chooses has a part in it, its trace id neither.
    """

    def __init__(self, ratio: float, uniform: Callable[[], float] = random.random) -> None:
        """`uniform` gives numbers from 0 on and below 1."""
        self._ratio = ratio
        self._uniform = uniform
        self._left = self._next()

    def __call__(self) -> bool:
        """Whether this call is traced; asked once of each."""
        self._left -= 1
        if self._left:
            return False
        self._left = self._next()
        return True

    def _next(self) -> int:
        if self._ratio <= 0:
            return _NEVER
        if self._ratio >= 1:
            return 1
        return 1 + int(min(math.log1p(-self._uniform()) / math.log1p(-self._ratio), _FARTHEST))


def tracing(settings: TraceSettings, *, service: str, instance: str) -> "Tracing | None":
    """The spans of this process; None where the settings name no receiver. Raises SettingsError."""
    if settings.endpoint is None:
        return None
    from headrace.runtime.tracing import Tracing  # noqa: PLC0415  half a second, for who traces

    return Tracing(settings, service=service, instance=instance)

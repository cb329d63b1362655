"""Metrics that cost the hot path an addition.

A process keeps plain numbers and counts; they become text only when someone scrapes, and in parts, between which the
loop goes on: a thousand tenants are some twenty thousand lines. What every Python process has comes from Prometheus'
own client. Nothing here is thread-safe: all of it belongs to the loop's thread.
"""

import asyncio
import math
import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from itertools import accumulate
from typing import Literal, Protocol, TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
"""Of what `Telemetry` gives."""
OTHER = "other"
"""The label of all that have no series of their own."""
MOST_NAMES = 1000
"""So many models, or tenants, have series of their own."""
FORGET_SECONDS = 3600.0
"""For so long the series of what is gone stay: longer than any scraper may pause."""
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Where the buckets of calls end: from what a lone call takes to the default deadline."""
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LINES_A_PART = 200
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})

T = TypeVar("T")
Kind = Literal["counter", "gauge", "histogram"]
Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values in the order of the labels, and the value."""


# What the hot path counts with.


class Histogram:
    """How often something took how many seconds: a bisection and two additions each."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: tuple[float, ...] = CALL_SECONDS) -> None:
        """`bounds` ascend; a value that equals one is below it."""
        self.bounds = bounds
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, seconds: float) -> None:
        """It took so long this time."""
        self._counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    @property
    def count(self) -> int:
        """How often it was observed."""
        return sum(self._counts)

    def cumulated(self) -> list[int]:
        """How often it was at most each of the bounds, and at all."""
        return list(accumulate(self._counts))


class Bounded(dict[str, T]):
    """Something for each name, made when it is first asked for; names beyond the first `most` share that of OTHER.

    So the number of series has a bound, whatever there is, and their sum is right.
    """

    def __init__(self, make: Callable[[], T], *, most: int = MOST_NAMES) -> None:
        super().__init__()
        self._make = make
        self._most = most
        self._gone: dict[str, float] = {}

    def __missing__(self, name: str) -> T:
        key = name if len(self) - (OTHER in self) < self._most else OTHER
        if key not in self:
            self[key] = self._make()
        return self[key]

    def label(self, name: str) -> str:
        """By which label a name is counted."""
        self[name]  # takes its place
        return name if name in self else OTHER

    def forget(self, exists: Callable[[str], bool], now: float) -> None:
        """Drop what is gone for FORGET_SECONDS. To be asked at each scrape."""
        for name in [name for name in self if name != OTHER]:
            if exists(name):
                self._gone.pop(name, None)
            elif now - self._gone.setdefault(name, now) >= FORGET_SECONDS:
                del self[name], self._gone[name]


class LoopLag:
    """How late a clock rings: how long the loop keeps waiting what is due."""

    def __init__(self, every_seconds: float = 0.25) -> None:
        self._every_seconds = every_seconds
        self.seconds = Histogram(_LAG_SECONDS)

    async def keep(self) -> None:
        """Ring until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + self._every_seconds
            await asyncio.sleep(self._every_seconds)  # a clock
            self.seconds.observe(max(0.0, clock() - due))


# What a scrape reads.


class Instrument(Protocol):
    """One metric, with all its series."""

    @property
    def name(self) -> str:
        """As Prometheus has it, with its unit and `_total`."""
        ...

    @property
    def text(self) -> str:
        """What it means, in a sentence."""
        ...

    @property
    def kind(self) -> Kind:
        """What Prometheus takes it for."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels; `le` of a histogram is not among them."""
        ...

    def lines(self) -> Iterator[str]:
        """Its samples, each a line without its end, or some that belong together. Read once, and then told in turn."""
        ...


class _Read:
    """What all instruments are."""

    kind: Kind

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self.name, self.text, self.labels = name, text, labels


class Gauges(_Read):
    """Values that are there anyway, by labels."""

    kind: Kind = "gauge"

    def __init__(self, name: str, text: str, labels: tuple[str, ...], read: Callable[[], Samples]) -> None:
        super().__init__(name, text, labels)
        self._read = read

    def lines(self) -> Iterator[str]:
        """See Instrument.lines."""
        for values, number in list(self._read()):
            yield f"{self.name}{_set(self.labels, values)} {_number(number)}"


class Counters(Gauges):
    """Counts that are kept anyway, by labels. The name ends in `_total`."""

    kind: Kind = "counter"


class Gauge(Gauges):
    """A value that is there anyway."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        super().__init__(name, text, (), lambda: [((), read())])


class Counter(Counters):
    """A count that is kept anyway. The name ends in `_total`."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        super().__init__(name, text, (), lambda: [((), read())])


class Counted(Counters):
    """Counts that are kept anyway, by one label. The name ends in `_total`."""

    def __init__(self, name: str, text: str, label: str, counts: Mapping[str, float]) -> None:
        super().__init__(name, text, (label,), lambda: [((value,), number) for value, number in counts.items()])


class Histograms(_Read):
    """Histograms by labels."""

    kind: Kind = "histogram"

    def __init__(
        self,
        name: str,
        text: str,
        labels: tuple[str, ...],
        read: Callable[[], Iterable[tuple[tuple[str, ...], Histogram]]],
    ) -> None:
        super().__init__(name, text, labels)
        self._read = read

    def lines(self) -> Iterator[str]:
        """See Instrument.lines."""
        for values, histogram in list(self._read()):
            cumulated = histogram.cumulated()
            own = _set(self.labels, values)
            before = f"{self.name}_bucket{{{own[1:-1]}," if own else f"{self.name}_bucket{{"
            told = [
                f'{before}le="{_number(bound)}"}} {number}.0'
                for bound, number in zip(histogram.bounds, cumulated, strict=False)
            ]
            told.append(f'{before}le="+Inf"}} {cumulated[-1]}.0')
            told += (f"{self.name}_sum{own} {_number(histogram.sum)}", f"{self.name}_count{own} {cumulated[-1]}.0")
            yield "\n".join(told)


class BuildInfo(Gauges):
    """What runs."""

    def __init__(self, process: str) -> None:
        info = (process, metadata.version("headrace"), platform.python_version())
        labels = ("process", "version", "python")
        super().__init__("headrace_build_info", "1; what runs.", labels, lambda: [(info, 1.0)])


class Telemetry:
    """All that one process measures, and what every Python process has: CPU, memory, garbage collection."""

    def __init__(self, *instruments: Instrument) -> None:
        self._instruments = instruments
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def parts(self) -> Iterator[bytes]:
        """Everything as text, in the format of CONTENT_TYPE, in parts that take about a millisecond each.

        Who writes them out lets the loop go on in between. Each series is right as of when it is read.
        """
        yield generate_latest(self._registry)
        told: list[str] = []
        for instrument in self._instruments:
            told += (
                f"# HELP {instrument.name} {instrument.text}",
                f"# TYPE {instrument.name} {instrument.kind}",
            )
            lines = 0
            for sample in instrument.lines():
                told.append(sample)
                lines += sample.count("\n") + 1
                if lines >= _LINES_A_PART:
                    yield _joined(told)
                    told, lines = [], 0
        yield _joined(told)

    def scrape(self) -> bytes:
        """Everything at once."""
        return b"".join(self.parts())


def _joined(told: list[str]) -> bytes:
    return "\n".join([*told, ""]).encode()


def _set(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(map(_pair, labels, values)) + "}"


@lru_cache(maxsize=8 * MOST_NAMES)
def _pair(label: str, value: str) -> str:
    return f'{label}="{value.translate(_ESCAPES)}"'


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"

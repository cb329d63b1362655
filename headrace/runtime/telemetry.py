"""Metrics that cost the hot path an addition.

A process keeps plain numbers and resolves labels once (`calls.at("ok")`), outside the hot path; Prometheus' own classes
see them only when someone scrapes. Nothing here is thread-safe: all of it belongs to the loop's thread.

The OpenTelemetry SDK, when it comes, lives here and nowhere else.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
"""Of what `Telemetry.scrape` gives."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds that fit how long calls take."""


class Cell:
    """One number that only grows: `cell.value += 1`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class Counters:
    """A counter for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        """Name it without `_total`; what it counts is in the name or in the text."""
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._cells: dict[tuple[str, ...], Cell] = {}

    def at(self, *values: str) -> Cell:
        """The counter of these label values, from 0. Keep it; callers bound how many there are."""
        _check(self._name, self._labels, values)
        return self._cells.setdefault(values, Cell())

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, cell in self._cells.items():
            family.add_metric(values, cell.value)
        yield family


class Buckets:
    """One histogram. `observe` is a bisection and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulative(self) -> list[tuple[str, int]]:
        """Each bound with the number of values up to it, as Prometheus wants them; the last is `+Inf`."""
        bounds = [*(str(bound) for bound in self._bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))

    @property
    def sum(self) -> float:
        """Of all values."""
        return self._sum


class Histograms:
    """A histogram for each combination of label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, bounds: Sequence[float] = SECONDS) -> None:
        """Bounds rise; the name ends in their unit."""
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._bounds = tuple(bounds)
        self._buckets: dict[tuple[str, ...], Buckets] = {}

    def at(self, *values: str) -> Buckets:
        """The histogram of these label values. Keep it; callers bound how many there are."""
        _check(self._name, self._labels, values)
        return self._buckets.setdefault(values, Buckets(self._bounds))

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, buckets in self._buckets.items():
            family.add_metric(values, buckets.cumulative(), buckets.sum)
        yield family


class Gauge:
    """A value that is there anyway, read when someone scrapes."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        yield GaugeMetricFamily(self._name, self._text, value=self._read())


class Gauges:
    """Values by one label, read when someone scrapes."""

    def __init__(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        family = GaugeMetricFamily(self._name, self._text, labels=(self._label,))
        for value, number in self._read().items():
            family.add_metric((value,), number)
        yield family


class Counted:
    """Counts that are kept anyway, by one label, read when someone scrapes."""

    def __init__(self, name: str, text: str, label: str, counts: Mapping[str, float]) -> None:
        """Name it without `_total`."""
        self._name, self._text, self._label, self._counts = name, text, label, counts

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        family = CounterMetricFamily(self._name, self._text, labels=(self._label,))
        for value, number in self._counts.items():
            family.add_metric((value,), number)
        yield family


class Instrument(Protocol):
    """Something that can be scraped."""

    def families(self) -> Iterable[Metric]:
        """What Prometheus reads."""


class Telemetry(Collector):
    """All that one process measures, and what every Python process has: CPU, memory, garbage collection."""

    def __init__(self, *instruments: Instrument) -> None:
        self._instruments = list(instruments)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

    def add(self, *instruments: Instrument) -> None:
        """Measure these too."""
        self._instruments += instruments

    def collect(self) -> Iterator[Metric]:
        """Prometheus' question."""
        for instrument in self._instruments:
            yield from instrument.families()

    def describe(self) -> Iterator[Metric]:
        """Nothing: our names are fixed, and asking for them must not read the gauges."""
        return iter(())

    def scrape(self) -> bytes:
        """Everything as text, in the format of CONTENT_TYPE."""
        return generate_latest(self._registry)


def _check(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> None:
    if len(labels) != len(values):
        raise ValueError(f"{name} has the labels {labels}, got {values}")

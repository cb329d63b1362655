"""Metrics that cost the hot path an addition.

A process keeps plain numbers and counts; Prometheus' own classes see them only when someone scrapes. Nothing here is
thread-safe: all of it belongs to the loop's thread.

The OpenTelemetry SDK, when it comes, lives here and nowhere else.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
"""Of what `Telemetry.scrape` gives."""


class Gauge:
    """A value that is there anyway, read when someone scrapes."""

    def __init__(self, name: str, text: str, read: Callable[[], float]) -> None:
        self._name, self._text, self._read = name, text, read

    def families(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        yield GaugeMetricFamily(self._name, self._text, value=self._read())


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
        self._instruments = instruments
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._registry.register(self)

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

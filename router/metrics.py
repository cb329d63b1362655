"""What the router measures, by the names that operators see.

Read at scrape; the call path only counts. `docs/reference/metrics.md` lists what is here, and how many series that
makes.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from headrace.bus.answers.links import GrpcAnswerLinks
from headrace.bus.protocols import LinkState, RequestConsumer
from headrace.bus.topics import model_of
from headrace.runtime.certificates import OwnCertificate
from headrace.runtime.telemetry import (
    MOST_NAMES,
    OTHER,
    BuildInfo,
    Counted,
    Counter,
    Gauge,
    Gauges,
    Histogram,
    Histograms,
    Instrument,
    LoopLag,
    Samples,
)
from router.intake import Intake
from router.inventory import Inventory
from router.window import Lane, Times


class _ByModel:
    """Numbers of topics by the model that each is of; models beyond the bound together."""

    def __init__(self, intake: Intake, pool: str) -> None:
        self._intake = intake
        self._pool = pool

    def label(self, topic: str) -> str:
        """The model of a topic."""
        label = self._intake.times.label(topic)
        return label if label == OTHER else _model(label, self._pool)

    def put(self, numbers: Iterable[tuple[str, float]], together: Callable[[float, float], float]) -> Samples:
        """The numbers by model."""
        told: dict[str, float] = {}
        for topic, number in numbers:
            label = self.label(topic)
            told[label] = together(told[label], number) if label in told else number
        return [((label,), number) for label, number in told.items()]

    def lanes(self, number: Callable[[Lane], float]) -> Callable[[], Samples]:
        """A number of every lane."""
        return lambda: self.put(((topic, number(lane)) for topic, lane in self._intake.lanes.items()), _sum)

    def counts(self, read: Callable[[], Mapping[str, float]]) -> Callable[[], Samples]:
        """A number of every topic that is served, 0 where nothing is told of it."""

        def told() -> Samples:
            counts = read()
            return self.put(((topic, counts.get(topic, 0)) for topic in self._intake.lanes), _sum)

        return told

    def times(self, which: Callable[[Times], Histogram]) -> Callable[[], Iterable[tuple[tuple[str, ...], Histogram]]]:
        """A histogram of every model."""
        return lambda: [((self.label(topic),), which(times)) for topic, times in list(self._intake.times.items())]


def instruments(
    inventory: Inventory,
    intake: Intake,
    links: GrpcAnswerLinks,
    consumer: RequestConsumer,
    *,
    pool: str,
    certificate: OwnCertificate | None,
    lag: LoopLag,
    announcements_age: Callable[[], float],
    clock: Callable[[], float] = time.monotonic,
) -> list[Instrument]:
    """All of them."""
    by_model = _ByModel(intake, pool)

    def running() -> Samples:
        # The first that is read, and so the one that tidies up.
        there = intake.lanes.keys() | {model.topic for model in inventory.models.values()}
        intake.times.forget(there.__contains__, clock())
        return by_model.lanes(lambda lane: lane.running)()

    def lags() -> dict[str, float]:
        told: dict[str, float] = {}
        for place, records in consumer.lag.items():
            told[place.topic] = told.get(place.topic, 0.0) + records
        return told

    return [
        BuildInfo("router"),
        Counted(
            "headrace_router_records_total", "Records of the request log by how they ended.", "outcome", intake.ended
        ),
        Gauges("headrace_router_running", "Calls that Triton runs now.", ("model",), running),
        Gauges(
            "headrace_router_window",
            "How many calls may run at once.",
            ("model",),
            by_model.lanes(lambda lane: lane.window),
        ),
        Gauges(
            "headrace_router_waiting",
            "Records that are fetched and not begun.",
            ("model",),
            by_model.lanes(lambda lane: lane.backlog),
        ),
        Gauges("headrace_router_lag_records", "Records that are not fetched yet.", ("model",), by_model.counts(lags)),
        Gauges(
            "headrace_router_oldest_wait_seconds",
            "How long the oldest record that may still begin has waited, in the log or here.",
            ("model",),
            lambda: by_model.put(intake.oldest_waits(consumer.unread).items(), max),
        ),
        Gauges(
            "headrace_router_partitions",
            "Partitions that are this router's.",
            ("model",),
            by_model.counts(intake.partitions),
        ),
        Histograms(
            "headrace_router_queue_wait_seconds",
            "From when a record was published to when its call began.",
            ("model",),
            by_model.times(lambda times: times.in_log),
        ),
        Histograms(
            "headrace_router_triton_duration_seconds",
            "How long answered calls were with Triton.",
            ("model",),
            by_model.times(lambda times: times.in_triton),
        ),
        Gauge(
            "headrace_router_waiting_bytes",
            "Bytes of requests that are fetched and not begun.",
            lambda: intake.waiting_bytes,
        ),
        Counted("headrace_router_rebalances_total", "How often partitions came and went.", "event", intake.rebalances),
        Gauge(
            "headrace_router_gateways_attached",
            "Gateways that this router is attached to.",
            lambda: sum(link.state is LinkState.ATTACHED for link in links.links.values()),
        ),
        Gauge(
            "headrace_router_unacknowledged_bytes",
            "Bytes of answers that gateways have not acknowledged.",
            lambda: sum(link.unacknowledged_bytes for link in links.links.values()),
        ),
        Gauge(
            "headrace_router_announcements_age_seconds",
            "Since when this router has not read its own announcement back.",
            announcements_age,
        ),
        Gauge("headrace_router_triton_ready", "1 while Triton is ready.", lambda: float(inventory.ready)),
        Counter("headrace_router_triton_starts_total", "How often Triton became ready.", lambda: inventory.starts),
        Gauges(
            "headrace_router_certificate_expiration_timestamp_seconds",
            "Until when the certificate in force holds.",
            ("port",),
            lambda: [] if certificate is None else [(("reply",), certificate.current.ends)],
        ),
        Histograms("headrace_router_loop_lag_seconds", "How late a clock rings.", (), lambda: [((), lag.seconds)]),
    ]


@lru_cache(maxsize=4 * MOST_NAMES)
def _model(topic: str, pool: str) -> str:
    return model_of(topic, pool, "interactive") or topic


def _sum(one: float, other: float) -> float:
    return one + other

"""What became of the numbers of one process between two looks at it: rates, and quantiles of histograms."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Labels = tuple[tuple[str, str], ...]
Series = Mapping[str, Mapping[Labels, float]]
"""Values by metric and labels."""
Kind = Literal["gateway", "router"]

_STARTED = "process_start_time_seconds"
_EXACT = 0.95  # clocks that ring each second do so a little early, too


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one process said when it was asked."""

    at: float
    """By the clock of who asked."""
    trouble: str = ""
    """Why it said nothing; empty where it did."""
    ready: bool = False
    state: str = ""
    """Its own words for whether it is ready."""
    series: Series = field(default_factory=dict)

    def value(self, name: str) -> float | None:
        """A number without labels; None where there is none."""
        value = self.series.get(name, {}).get((), math.nan)
        return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Change:
    """The latest look at a process, and an earlier one at the same run of it."""

    now: Look
    then: Look | None

    @property
    def seconds(self) -> float:
        """How long lies between the two; 0 where there is one only."""
        return 0.0 if self.then is None else self.now.at - self.then.at

    def gauges(self, name: str, label: str = "model") -> Iterator[tuple[str, float]]:
        """What a metric is now, by the value of one label."""
        for labels, value in self.now.series.get(name, {}).items():
            if math.isfinite(value):
                yield dict(labels).get(label, ""), value

    def increases(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """By how much each series of a counter grew; nothing where there is no earlier look. Never negative."""
        if self.then is None:
            return
        before = self.then.series.get(name, {})
        for labels, value in self.now.series.get(name, {}).items():
            known = before.get(labels, 0.0)
            if math.isfinite(value) and math.isfinite(known):
                # A counter that is smaller than it was began anew.
                yield dict(labels), value - known if value >= known else max(value, 0.0)

    def rates(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """By how much each series of a counter grew in a second."""
        if self.seconds > 0:
            yield from ((labels, increase / self.seconds) for labels, increase in self.increases(name))


class Watched:
    """The looks at one process: how it is now, and how it was up to `span` seconds ago."""

    def __init__(self, kind: Kind, address: str, *, span: float) -> None:
        self.kind: Kind = kind
        self.address = address
        self._span = span
        self._looks: list[Look] = []
        self._last: Look | None = None

    def took(self, look: Look) -> None:
        """A further look. What was seen of an earlier run of the process says nothing about this one."""
        self._last = look
        if look.trouble:
            return
        if self._looks and look.value(_STARTED) != self._looks[-1].value(_STARTED):
            self._looks.clear()
        self._looks.append(look)
        # One that is older than the span is kept: two looks that are far apart are better than one.
        while len(self._looks) > 2 and look.at - self._looks[1].at >= self._span * _EXACT:  # noqa: PLR2004  those two
            del self._looks[0]

    @property
    def change(self) -> Change | None:
        """What is known; None where nothing was ever asked."""
        if self._last is None:
            return None
        return Change(self._last, self._looks[0] if len(self._looks) > 1 and not self._last.trouble else None)


class Buckets:
    """A histogram's growth, over several processes."""

    def __init__(self) -> None:
        self._upto: dict[float, float] = defaultdict(float)

    def add(self, bound: str, increase: float) -> None:
        """So many more were at or below the bound, as `le` spells it."""
        self._upto[float(bound)] += increase

    def quantile(self, share: float) -> float | None:
        """See `quantile`."""
        return quantile(share, self._upto.items())


def quantile(share: float, upto: Iterable[tuple[float, float]]) -> float | None:
    """The value below which that share of the observations lies, from cumulated buckets; None where there are none.

    Within a bucket observations are taken to be spread evenly, as in Prometheus. Of what is above the last finite bound
    nothing is known but that: the bound is given.
    """
    buckets = sorted(upto)
    total = buckets[-1][1] if buckets else 0.0
    if total <= 0 or not math.isinf(buckets[-1][0]):
        return None
    rank = share * total
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if math.isinf(bound):
            break
        if count >= rank and count > below:
            return low + (bound - low) * max(rank - below, 0.0) / (count - below)
        # Bounds that only one of two versions has are behind the others.
        low, below = bound, max(below, count)
    return low


def buckets(changes: Iterable[Change], name: str) -> dict[str, Buckets]:
    """The growth of a histogram by model."""
    found: dict[str, Buckets] = defaultdict(Buckets)
    for change in changes:
        for labels, increase in change.increases(f"{name}_bucket"):
            found[labels.get("model", "")].add(labels.get("le", "+Inf"), increase)
    return found


def together(parts: Iterable[Buckets]) -> Buckets:
    """All of them as one."""
    whole = Buckets()
    for part in parts:
        for bound, count in part._upto.items():  # noqa: SLF001  its own class
            whole.add(str(bound), count)
    return whole

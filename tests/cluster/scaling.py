"""Autoscalers in fast motion, and the load that they follow."""

import copy
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.cluster.control_plane import HPA_SYNC_SECONDS
from tests.cluster.kubectl import Document, Kubectl

FASTER = 30
"""15 s between two looks become half a second, and five minutes of stabilisation ten seconds."""


# What the API server fills in, in seconds that are to be shortened too.
PERIOD_SECONDS = 15
assert HPA_SYNC_SECONDS * FASTER == PERIOD_SECONDS  # as fast as the controller was told to be
UNTOLD: dict[str, Document] = {
    "scaleUp": {
        "stabilizationWindowSeconds": 0,
        "selectPolicy": "Max",
        "policies": [
            {"type": "Percent", "value": 100, "periodSeconds": PERIOD_SECONDS},
            {"type": "Pods", "value": 4, "periodSeconds": PERIOD_SECONDS},
        ],
    },
    "scaleDown": {
        "stabilizationWindowSeconds": 300,
        "selectPolicy": "Max",
        "policies": [{"type": "Percent", "value": 100, "periodSeconds": PERIOD_SECONDS}],
    },
}


def in_fast_motion(autoscaler: Document) -> Document:
    """A copy whose windows and periods are as many times shorter; the API wants whole seconds, and one at least."""
    fast = copy.deepcopy(autoscaler)
    told = fast["spec"].get("behavior", {})
    fast["spec"]["behavior"] = {way: copy.deepcopy(untold) | told.get(way, {}) for way, untold in UNTOLD.items()}
    for behaviour in fast["spec"]["behavior"].values():
        if window := behaviour["stabilizationWindowSeconds"]:
            behaviour["stabilizationWindowSeconds"] = shortened(window)
        for policy in behaviour["policies"]:
            policy["periodSeconds"] = shortened(policy["periodSeconds"])
    return fast


def shortened(seconds: float) -> int:
    """What a time in the manifests becomes."""
    return max(1, math.ceil(seconds / FASTER))


@dataclass
class Load:
    """How much there is to do, in pods' worth: with 3.0, three pods would each be exactly at their target."""

    wanted: Callable[[], float] = field(default_factory=lambda: steady(0.0))

    def share(self, pods: int) -> float:
        """What each of so many pods measures, as a multiple of its target."""
        return self.wanted() / max(pods, 1)


def steady(pods: float) -> Callable[[], float]:
    """Always the same."""
    return lambda: pods


def saw_tooth(*, low: float, high: float, seconds: float) -> Callable[[], float]:
    """Climbs from low to high, stays for as long as it climbed, and falls back at once, again and again, from now on.

    It stays for a controller that is late: a peak that nobody looked at is none.
    """
    began = time.monotonic()

    def now() -> float:
        part = (time.monotonic() - began) % seconds / seconds
        return low + (high - low) * min(1.0, 2 * part)

    return now


@dataclass(frozen=True)
class Change:
    """A number of replicas that was asked for, and when that was seen."""

    at: float
    replicas: int


class Replicas:
    """Every number of a Deployment's replicas, as the API server told of each change."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._changes: list[Change] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()

    @property
    def changes(self) -> list[Change]:
        """All so far; the first is what was found."""
        with self._news:
            return list(self._changes)

    @property
    def now(self) -> int:
        """The last number."""
        return self.changes[-1].replicas

    def wait_for(self, wanted: Callable[[int], bool], *, seconds: float, what: str) -> Change:
        """Until the last number is as wanted; returns it."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not (self._changes and wanted(self._changes[-1].replicas)):
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds} s: {what}; seen: {[c.replicas for c in self._changes]}"
                self._news.wait(left)
            return self._changes[-1]

    def since(self, moment: float) -> list[int]:
        """What was in force at that moment, and every number after it."""
        before = [change.replicas for change in self.changes if change.at <= moment]
        return [*before[-1:], *(change.replicas for change in self.changes if change.at > moment)]

    def _read(self, lines: Iterator[str]) -> None:
        for line in lines:
            if not re.fullmatch(r"\d+\n", line):
                continue
            with self._news:
                if not self._changes or self._changes[-1].replicas != int(line):
                    self._changes.append(Change(time.monotonic(), int(line)))
                    self._news.notify_all()


@contextmanager
def watched(kubectl: Kubectl, namespace: str, deployment: str, number: str = ".spec.replicas") -> Iterator[Replicas]:
    """Follow a Deployment's replicas: those that it was told to have, or another number of them."""
    output = f'--output=jsonpath={{{number}}}{{"\\n"}}'
    with kubectl.watching("deployment", deployment, f"--namespace={namespace}", output) as process:
        assert process.stdout is not None
        yield Replicas(process.stdout)

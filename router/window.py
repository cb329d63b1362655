"""How many calls of a model run at once, and who waits for a slot."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, TypeAlias

from headrace.bus.protocols import Record
from headrace.bus.v1.envelope_pb2 import Envelope
from headrace.runtime.telemetry import Histogram
from router.settings import WindowSettings

ModelConfig: TypeAlias = Any  # tritonclient's messages are untyped

WINDOW_PARAMETER = "headrace_window"
_LATEST_SHARE = 0.1
"""What the latest call weighs in what is usual."""


def window_of(config: ModelConfig, settings: WindowSettings) -> int:
    """The window of a model by its config: its own parameter, else what its instances and batches can take."""
    own = config.parameters[WINDOW_PARAMETER].string_value if WINDOW_PARAMETER in config.parameters else ""
    if own.isdecimal() and int(own) > 0:
        return int(own)
    instances: int = sum(max(1, group.count) * max(1, len(group.gpus)) for group in config.instance_group) or 1
    wanted: int = round(settings.batches_per_instance * instances * max(1, config.max_batch_size))
    return min(max(wanted, settings.minimum), settings.maximum)


@dataclass(slots=True, eq=False)
class Waiting:
    """A record that is fetched and not begun."""

    record: Record
    envelope: Envelope
    lane: "Lane"


class Times:
    """How long calls of one model took."""

    __slots__ = ("in_log", "in_triton")

    def __init__(self) -> None:
        self.in_log = Histogram()
        """From when they were published to when they began."""
        self.in_triton = Histogram()
        """Those that were answered."""


class Lane:
    """One model's slots and its queue. What waits is bounded by one window beside the free slots."""

    def __init__(self, topic: str, window: int, times: Times | None = None) -> None:
        self.times = Times() if times is None else times
        self.topic = topic
        self.window = window
        self.running = 0
        self.waiting: deque[Waiting] = deque()
        self.aside = 0
        """Records that wait for their gateway's link; they take no slot, but room."""
        self.paused = False
        self.usual_seconds = 0.0
        """How long a call is with the model server, of late."""
        self.held = False
        """Whether nothing may begin now, so that a free slot gives no room."""
        self._longest = self._longest_before = 0.0
        self._longest_since = -math.inf

    def may_wait(self, seconds: float, now: float, memory_seconds: float) -> None:
        """A call came whose deadline is so long after it was published; forgotten in one to two `memory_seconds`."""
        if now - self._longest_since > memory_seconds:  # by the calls that come: while none does, the last ones stand
            lately = now - self._longest_since <= 2 * memory_seconds
            self._longest_before, self._longest, self._longest_since = self._longest if lately else 0.0, 0.0, now
        self._longest = max(self._longest, seconds)

    @property
    def longest_seconds(self) -> float:
        """From when a call was published to its deadline: the longest of late, 0 where none came."""
        return max(self._longest_before, self._longest)

    def took(self, seconds: float) -> None:
        """A call was answered after so long at the model server."""
        self.times.in_triton.observe(seconds)
        self.usual_seconds += (seconds - self.usual_seconds) * (_LATEST_SHARE if self.usual_seconds else 1.0)

    @property
    def backlog(self) -> int:
        """Records that are fetched and not begun."""
        return len(self.waiting) + self.aside

    @property
    def room(self) -> int:
        """How many more records may be fetched."""
        free = 0 if self.held else self.window - self.running
        return self.window + free - self.backlog

    def wants_pause(self) -> bool:
        """Whether a full window waits behind a full window."""
        return not self.paused and self.room <= 0

    def wants_resume(self) -> bool:
        """Whether half a window is free again. The gap saves librdkafka from fetching the same records often."""
        return self.paused and 2 * self.room >= self.window

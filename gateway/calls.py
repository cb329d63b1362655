"""The calls that wait for an answer: one future each, known by call id.

Every call ends exactly once: by its answer, by a refusal (its router is gone, the log did not take it, its deadline
passed), or by the caller who leaves. Whatever comes later for the same id is dropped.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from gateway.errors import DeadlineExceeded, GatewayFull, LogFull, LogUnavailable, Refusal, RequestTooLarge, RouterLost
from headrace.bus.protocols import LogError, LogFullError, Outcome, RecordTooLargeError, RouterKey, TopicPartition

TAKE_OVER_SECONDS = 2.0
"""How long a call that a router left behind may be without an owner: longer than its group takes to give it one."""


@dataclass(slots=True, eq=False)
class Call:
    """One call under way."""

    call_id: bytes
    model: str
    place: TopicPartition
    sent_to: RouterKey | None
    """The partition's owner when it was published."""
    expire_time_unix_micros: int
    answer: asyncio.Future[Outcome]
    attempt: int = 1
    began_at: float = 0.0
    routers: tuple[RouterKey, ...] = ()
    """Who may have it: that owner, and who owned the partition since."""

    def __post_init__(self) -> None:
        if self.sent_to is not None:
            self.routers = (self.sent_to,)


@dataclass(slots=True)
class InFlight:
    """What waits of one model."""

    oldest_seconds: float
    calls: int = 0
    unowned: int = 0
    """Calls that no router may have."""

    def together(self, other: "InFlight") -> "InFlight":
        """What waits of both."""
        oldest = max(self.oldest_seconds, other.oldest_seconds)
        return InFlight(oldest, self.calls + other.calls, self.unowned + other.unowned)


class WaitingCalls:
    """All calls of one gateway that wait; see HubEvents for where answers come from."""

    def __init__(self, *, max_calls: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._calls: dict[bytes, Call] = {}
        self._bytes = 0
        self.outstanding: dict[RouterKey, int] = {}
        """Calls under way by the router that they were sent to."""
        self._untaken: dict[Call, float] = {}  # those that a router left behind, and until when they are kept
        self.strays = 0
        """Answers for calls that did not wait any more."""
        self.delivery_failures: Counter[str] = Counter(
            {refusal.reason: 0 for refusal in (LogFull, LogUnavailable, RequestTooLarge)}
        )
        """Calls that the log did not take, by the reason that their callers were told."""
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def request_bytes(self) -> int:
        """Bytes of the requests of all calls that wait."""
        return self._bytes

    def by_model(self) -> dict[str, "InFlight"]:
        """What waits of each model that anything waits of."""
        found: dict[str, InFlight] = {}
        now = self._clock()
        for call in self._calls.values():
            known = found.get(call.model)
            if known is None:  # the first is the oldest
                known = found[call.model] = InFlight(oldest_seconds=now - call.began_at)
            known.calls += 1
            known.unowned += not call.routers
        return found

    async def drained(self) -> None:
        """Return when no call waits."""
        await self._empty.wait()

    def begin(self, call: Call, size: int) -> None:
        """Hold a call until `end`. Raises GatewayFull where the bounds are reached; it is not held then."""
        if len(self._calls) >= self._max_calls or self._bytes + size > self._max_bytes:
            raise GatewayFull
        call.began_at = self._clock()
        self._calls[call.call_id] = call
        self._bytes += size
        self._empty.clear()
        if call.sent_to is not None:
            self.outstanding[call.sent_to] = self.outstanding.get(call.sent_to, 0) + 1

    def end(self, call: Call, size: int) -> None:
        """Let go of a call, whatever became of it; once for each `begin`, with the same size."""
        del self._calls[call.call_id]
        self._bytes -= size
        if call.sent_to is not None:
            self._release(call.sent_to)
        if not self._calls:
            self._empty.set()

    def answered(self, call_id: bytes, _attempt: int, outcome: Outcome) -> None:
        """An answer came: the first one of any attempt counts."""
        call = self._calls.get(call_id)
        if call is None or call.answer.done():
            self.strays += 1
        else:
            call.answer.set_result(outcome)

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """End a call without an answer."""
        if not call.answer.done():
            call.answer.set_exception(refusal)

    def expire(self, call: Call) -> None:
        """The call's deadline has passed."""
        self.refuse(call, DeadlineExceeded())

    def publish_failed(self, call_id: bytes, error: LogError) -> None:
        """The broker did not take a record after all."""
        call = self._calls.get(call_id)
        if call is not None:
            self.refuse(call, self.not_taken(error))

    def not_taken(self, error: LogError) -> Refusal:
        """The log did not take a call. Counts it, and says what the caller is told."""
        refusal = log_refusal(error)
        self.delivery_failures[refusal.reason] += 1
        return refusal

    def full(self) -> bool:
        """Whether a bound is reached: no further call will be held."""
        return len(self._calls) >= self._max_calls or self._bytes >= self._max_bytes

    def refuse_all(self, refusal: type[Refusal], abandon: Callable[[Call], object]) -> None:
        """End every call that waits. `abandon` is told each."""
        for call in list(self._calls.values()):
            if not call.answer.done():
                abandon(call)
                self.refuse(call, refusal())

    def router_lost(self, router: RouterKey, abandon: Callable[[Call], object]) -> None:
        """A router died: every call that it may have had ends. `abandon` is told each."""
        for call in list(self._calls.values()):
            if router in call.routers and not call.answer.done():
                abandon(call)
                self.refuse(call, RouterLost())

    def router_left(
        self, router: RouterKey, now: float, served: Callable[[str], bool], abandon: Callable[[Call], object]
    ) -> None:
        """A router left in order, so it answered what it began: only calls that nobody takes over end, as `advance`."""
        for call in self._calls.values():
            if router in call.routers:
                call.routers = tuple(other for other in call.routers if other != router)
                if not call.routers:
                    self._untaken[call] = now + TAKE_OVER_SECONDS
        self.advance(now, served, abandon)

    def advance(self, now: float, served: Callable[[str], bool], abandon: Callable[[Call], object]) -> None:
        """Let time pass: calls that a router left behind end where nobody took them over in time.

        At once where `served` says of their model that no other router has it ready. `abandon` is told each.
        """
        for call, until in list(self._untaken.items()):
            waits = call.call_id in self._calls and not call.routers and not call.answer.done()
            if waits and now < until and served(call.model):
                continue
            del self._untaken[call]
            if waits:
                abandon(call)
                self.refuse(call, RouterLost())

    def owners_changed(self, models: Collection[str], owner_of: Callable[[str, int], RouterKey | None]) -> None:
        """Partitions moved: a call that waits in one may now be with the new owner as well."""
        for call in self._calls.values():
            if call.model in models:
                owner = owner_of(call.model, call.place.partition)
                if owner is not None and owner not in call.routers:
                    call.routers = (*call.routers, owner)

    def _release(self, router: RouterKey) -> None:
        left = self.outstanding[router] - 1
        if left:
            self.outstanding[router] = left
        else:
            del self.outstanding[router]


def log_refusal(error: LogError) -> Refusal:
    """What the caller is told when the log did not take its call."""
    if isinstance(error, RecordTooLargeError):
        return RequestTooLarge("The request has more bytes than a record of the log may have. Send smaller batches.")
    if isinstance(error, LogFullError):
        return LogFull()
    return LogUnavailable()

"""The calls that wait for an answer: one future each, known by call id.

Every call ends exactly once: by its answer, by a refusal (nobody is left to run it, the log did not take it, its
deadline passed), or by the caller who leaves. Whatever comes later for the same id is dropped. `gateway.delivery` says
what becomes of a call until then.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from gateway.errors import DeadlineExceeded, GatewayFull, LogFull, LogUnavailable, Refusal, RequestTooLarge
from gateway.traces import CallTrace
from headrace.bus.protocols import LogError, LogFullError, Outcome, RecordTooLargeError, RouterKey, TopicPartition


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
    envelope: bytes = b""
    """As of the first attempt, without what is told of its trace."""
    request: bytes = b""
    trace: CallTrace | None = None
    attempt: int = 1
    """The attempt that is under way, or the next one while there is none."""
    began_at: float = 0.0
    routers: tuple[RouterKey, ...] = ()
    """Who may have it: that owner, and who owned the partition since."""
    lost_by: tuple[RouterKey, ...] = ()
    """Who may have had the attempts that were lost."""

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
    """All calls of one gateway that wait."""

    def __init__(self, *, max_calls: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._max_calls = max_calls
        self._max_bytes = max_bytes
        self._calls: dict[bytes, Call] = {}
        self._bytes = 0
        self.outstanding: dict[RouterKey, int] = {}
        """Calls under way by the router that they were sent to."""
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

    def __iter__(self) -> Iterator[Call]:
        """Those that have not ended, oldest first. None may begin or be let go of meanwhile."""
        return (call for call in self._calls.values() if not call.answer.done())

    def waiting(self, call_id: bytes) -> Call | None:
        """The call of this id, unless it has ended."""
        call = self._calls.get(call_id)
        return None if call is None or call.answer.done() else call

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
            self._took(call.sent_to)

    def end(self, call: Call, size: int) -> None:
        """Let go of a call, whatever became of it; once for each `begin`, with the same size."""
        del self._calls[call.call_id]
        self._bytes -= size
        if call.sent_to is not None:
            self._release(call.sent_to)
        if not self._calls:
            self._empty.set()

    def assign(self, call: Call, place: TopicPartition, router: RouterKey | None) -> None:
        """A call goes to another place, and nobody else has it any more."""
        if call.sent_to is not None:
            self._release(call.sent_to)
        call.place, call.sent_to = place, router
        call.routers = ()
        if router is not None:
            call.routers = (router,)
            self._took(router)

    def refuse(self, call: Call, refusal: Refusal) -> None:
        """End a call without an answer."""
        if not call.answer.done():
            call.answer.set_exception(refusal)

    def expire(self, call: Call) -> None:
        """The call's deadline has passed."""
        self.refuse(call, DeadlineExceeded())

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
        for call in list(self):
            abandon(call)
            self.refuse(call, refusal())

    def owners_changed(self, models: Collection[str], owner_of: Callable[[str, int], RouterKey | None]) -> None:
        """Partitions moved: a call that waits in one may now be with the new owner as well."""
        for call in self:
            if call.model in models:
                owner = owner_of(call.model, call.place.partition)
                if owner is not None and owner not in call.routers:
                    call.routers = (*call.routers, owner)

    def _took(self, router: RouterKey) -> None:
        self.outstanding[router] = self.outstanding.get(router, 0) + 1

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

"""The answers' way home in memory: hubs and links that meet by address."""

import asyncio
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Self

from headrace.bus.protocols import (
    Failure,
    HubEvents,
    LinkEvents,
    LinkState,
    Outcome,
    RouterKey,
    RouterLostError,
)

_ENTRY_BYTES = 256


@dataclass(eq=False)
class MemoryNetwork:
    """Where hubs are, and which of them can be reached."""

    hubs: dict[str, "MemoryAnswerHub"] = field(default_factory=dict)
    links: list["MemoryLink"] = field(default_factory=list)
    unreachable: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    """Addresses whose gateways take nothing, and answer nothing."""

    def cut(self, address: str) -> None:
        """Break every stream to a gateway. They are attached again in the next turn, where that is possible."""
        for link in list(self.links):
            if link.address == address:
                link.broken()

    def retry(self, address: str) -> None:
        """Something changed at an address: whoever could not attach tries again, whoever has something sends it."""
        for link in list(self.links):
            if link.address == address:
                link.go_on()


class MemoryAnswerHub:
    """See AnswerHub."""

    def __init__(self, network: MemoryNetwork, *, address: str, incarnation: int, pool: str, events: HubEvents) -> None:
        self.address = address
        self.incarnation = incarnation
        self.pool = pool
        self.events = events
        self.acknowledging = True
        """While False, answers are taken and not acknowledged."""
        self._network = network
        self._links: dict[RouterKey, MemoryLink] = {}
        self.heard_at: dict[RouterKey, float] = {}
        """See AnswerHub.heard_at."""
        self._cancellations: dict[bytes, tuple[int, int]] = {}
        self._commands: dict[asyncio.Task[Outcome], RouterKey] = {}

    async def __aenter__(self) -> Self:
        self._network.hubs[self.address] = self
        self._network.retry(self.address)
        return self

    async def __aexit__(self, *_: object) -> None:
        del self._network.hubs[self.address]
        self._network.cut(self.address)

    @property
    def routers(self) -> Iterable[RouterKey]:
        """The routers that are attached now."""
        return self._links.keys()

    def cancel(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        """See AnswerHub.cancel."""
        self._cancellations[call_id] = (attempt, expire_time_unix_micros)
        for link in self._links.values():
            asyncio.get_running_loop().call_soon(link.events.cancelled, call_id, attempt, expire_time_unix_micros)

    async def administer(self, router: RouterKey, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        """See AnswerHub.administer."""
        link = self._links.get(router)
        if link is None:
            raise RouterLostError(router.id)
        command = asyncio.create_task(link.administer(method, request, expire_time_unix_micros))
        self._commands[command] = router
        try:
            await asyncio.wait([command])
            if command.cancelled():
                raise RouterLostError(router.id)
            return command.result()
        finally:
            command.cancel()
            del self._commands[command]

    # What links do.

    def welcome(self, link: "MemoryLink") -> None:
        """A router attaches: first it is told what is cancelled."""
        now = time.time_ns() // 1000
        for call_id, (attempt, expires) in self._cancellations.items():
            if expires > now:
                link.events.cancelled(call_id, attempt, expires)
        self._links[link.router] = link
        self.heard_at[link.router] = asyncio.get_running_loop().time()
        self.events.attached(link.router)

    def ended(self, link: "MemoryLink", *, goodbye: bool) -> None:
        """A router's stream ended."""
        if self._links.get(link.router) is not link:
            return
        del self._links[link.router]
        del self.heard_at[link.router]
        for command, router in self._commands.items():
            if router == link.router:
                command.cancel()
        if goodbye:
            self.events.left(link.router)
        self.events.detached(link.router)


class MemoryAnswerLinks:
    """See AnswerLinks."""

    def __init__(
        self,
        network: MemoryNetwork,
        *,
        router: RouterKey,
        pool: str,
        events: LinkEvents,
        unacknowledged_bytes: int = 1 << 20,
        stall_seconds: float = 5.0,
    ) -> None:
        self.router = router
        self.pool = pool
        self.events = events
        self.unacknowledged_bytes = unacknowledged_bytes
        self.stall_seconds = stall_seconds
        self.forbidden: set[str] = set()
        """Addresses that may not be dialled."""
        self.links: dict[tuple[str, int], MemoryLink] = {}
        self._network = network

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self.links.values():
            link.close()

    async def flush(self) -> None:
        """Return when every answer is acknowledged or its gateway is gone: those links are then left with a goodbye."""
        for link in self.links.values():
            await link.flushed()

    def link(self, address: str, incarnation: int) -> "MemoryLink | None":
        """See AnswerLinks.link."""
        if address in self.forbidden:
            return None
        known = self.links.get((address, incarnation))
        if known is None:
            known = self.links[address, incarnation] = MemoryLink(address, incarnation, self, self._network)
        return known

    def gateway_announced(self, address: str, incarnation: int) -> None:
        """See AnswerLinks.gateway_announced."""
        known = self.links.get((address, incarnation))
        if known is not None and known.state is LinkState.GONE:
            del self.links[address, incarnation]
        link = self.link(address, incarnation)
        if link is not None:
            link.silent = False

    def silence_all_but(self, announcing: Collection[tuple[str, int]]) -> None:
        """See AnswerLinks.silence_all_but."""
        for gateway, link in list(self.links.items()):
            link.silent = gateway not in announcing
            link.go_on()


@dataclass(slots=True)
class _Answer:
    call_id: bytes
    attempt: int
    outcome: Outcome
    size: int


class MemoryLink:
    """See Link."""

    def __init__(self, address: str, incarnation: int, links: MemoryAnswerLinks, network: MemoryNetwork) -> None:
        self.address = address
        self.incarnation = incarnation
        self.silent = False
        self.state = LinkState.ATTACHING
        self.router = links.router
        self.events = links.events
        self._links = links
        self._network = network
        self._unsent: deque[_Answer] = deque()
        self._unacknowledged: deque[_Answer] = deque()
        self._stall: asyncio.TimerHandle | None = None
        self._due = False
        self._flushed = False
        self._idle = asyncio.Event()
        self._idle.set()
        network.links.append(self)
        self.go_on()

    @property
    def has_room(self) -> bool:
        """See Link.has_room."""
        return sum(answer.size for answer in self._unacknowledged) < self._links.unacknowledged_bytes

    def send(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        """See Link.send."""
        if self.state is LinkState.GONE:
            return
        size = _ENTRY_BYTES + len(outcome if isinstance(outcome, bytes) else b"")
        answer = _Answer(call_id, attempt, outcome, size)
        self._flushed = False
        self._idle.clear()
        self._unacknowledged.append(answer)
        if self.state is LinkState.ATTACHED:
            self._unsent.append(answer)
            self.go_on()

    async def flushed(self) -> None:
        """Return when nothing waits for an acknowledgement any more."""
        await self._idle.wait()
        self._flushed = True

    def close(self) -> None:
        """Detach, with a goodbye where the link was flushed."""
        self.become(LinkState.GONE, goodbye=self._flushed)

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        """Do what the gateway asks; what goes wrong here is an answer too."""
        try:
            return await self.events.administer(method, request, expire_time_unix_micros)
        except Exception:  # noqa: BLE001  as the real links: the boundary to the router's own code
            return Failure.INTERNAL

    def become(self, state: LinkState, *, goodbye: bool = False) -> None:
        """Change how the link stands, and tell."""
        if state is self.state or self.state is LinkState.GONE:
            return
        was_attached, self.state = self.state is LinkState.ATTACHED, state
        if was_attached and (hub := self._network.hubs.get(self.address)) is not None:
            hub.ended(self, goodbye=goodbye)
        if state is LinkState.GONE:
            self._network.links.remove(self)
            self._unacknowledged.clear()
            self._unsent.clear()
            self._idle.set()
        self.events.link_changed(self)

    def broken(self) -> None:
        """The stream broke."""
        self.become(LinkState.ATTACHING)
        self.go_on()

    def go_on(self) -> None:
        """Attach or send, whichever is due, in the next turn of the loop."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._due = False
        if self.state is LinkState.ATTACHED:
            self._send_all()
        elif self.state is not LinkState.GONE:
            self._attach()

    def _attach(self) -> None:
        hub = self._network.hubs.get(self.address)
        if hub is None or self.address in self._network.unreachable | self._network.stalled:
            self.become(LinkState.GONE if self.silent else LinkState.UNREACHABLE)
        elif hub.incarnation != self.incarnation:
            self.become(LinkState.GONE)
        elif hub.pool != self._links.pool:
            self.become(LinkState.UNREACHABLE)
        else:
            hub.welcome(self)
            self._unsent = deque(self._unacknowledged)
            self.become(LinkState.ATTACHED)
            self._send_all()

    def _send_all(self) -> None:
        hub = self._network.hubs[self.address]
        if self.address in self._network.stalled:
            if self._stall is None and self._unacknowledged:
                self._stall = asyncio.get_running_loop().call_later(self._links.stall_seconds, self._stalled)
            return
        had_room = self.has_room
        while self._unsent:
            answer = self._unsent.popleft()
            hub.heard_at[self.router] = asyncio.get_running_loop().time()
            hub.events.answered(answer.call_id, answer.attempt, answer.outcome)
        if hub.acknowledging:
            self._unacknowledged.clear()
            self._idle.set()
            if not had_room:
                self.events.link_changed(self)

    def _stalled(self) -> None:
        self._stall = None
        if self.address in self._network.stalled and self.state is LinkState.ATTACHED:
            self.become(LinkState.UNREACHABLE)

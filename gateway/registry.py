"""The live registry: what this gateway knows of its pool's routers and models, folded from announcements.

Pure: no I/O, and the clock is an argument (seconds, monotonic). The state is a function of the newest record of every
key and of who is attached; the order of records of different keys makes no difference.

A router is live when it announces that it is ready and is attached to this gateway. A broken reply stream (`detached`)
counts at once. Missed heartbeats count only while the log visibly works, which is told by this gateway's own heartbeats
that come back through it; while the log is away the last view stands. Nor do they count, for a while, where answers of
the router come: under load a heartbeat may wait longer than they do.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

from headrace.bus.announcements import parse_key
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import (
    ROUTER_STATE_READY,
    ROUTER_STATE_SERVER_AWAY,
    Announcement,
    ModelDescription,
    ModelStatistics,
    RouterHeartbeat,
)

ROUTER_SILENCE_SECONDS = 3.0
"""A router that announces nothing for longer is not live, as long as the log works."""
MUTE_SECONDS = 10.0
"""One that answers, and announces nothing for longer, is not live either: its partitions are another's by then."""
GATEWAY_SILENCE_SECONDS = 3.0
"""Another gateway that announces nothing for longer does not count, as long as the log works."""
LOG_SILENCE_SECONDS = 1.5
"""Own heartbeats come back every second; without them for longer, the log is away, and silence proves nothing."""

T = TypeVar("T")

READY = "READY"
UNAVAILABLE = "UNAVAILABLE"
NO_LIVE_ROUTER_TEXT = "no live router serves the model"


@dataclass(frozen=True, slots=True)
class Owner:
    """A live router that takes calls of a model: it owns partitions, and its model server has the model ready."""

    router: RouterKey
    partitions: tuple[int, ...]
    window: int


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model, merged over the live routers; over the last descriptions where none is live."""

    version: str
    state: str
    """The model server's word. `READY` where at least one live router says so."""
    reason: str
    metadata: bytes
    """`inference.ModelMetadataResponse`, serialised; empty where unknown."""
    config: bytes
    """`inference.ModelConfigResponse`, serialised; empty where unknown."""

    @property
    def ready(self) -> bool:
        """Whether some live router's model server has it ready."""
        return self.state == READY


@dataclass(frozen=True, slots=True)
class Model:
    """A model as this gateway sees it. Replaced, never changed; `revision` grows with every replacement."""

    name: str
    owners: tuple[Owner, ...]
    """Sorted by router id. Empty where nobody takes calls of it now."""
    partition_count: int
    """Partitions of its request topic, 0 where unknown."""
    live: bool
    """Whether a live router describes it, ready or not. False: no router that serves it is alive."""
    versions: tuple[Version, ...]
    """Sorted by number."""
    revision: int = field(compare=False)

    @property
    def ready(self) -> bool:
        """Whether a live router's model server has it ready. Calls are taken from then on.

        Its partitions may have no owner for a moment, while a group settles: what is published then waits in the log.
        """
        return any(version.ready for version in self.versions)


@dataclass(frozen=True, slots=True)
class Router:
    """The last that was heard of a router of the pool."""

    key: RouterKey
    heartbeat: RouterHeartbeat
    announced_at: float
    """When its newest heartbeat arrived, on the clock that the registry is given."""
    heard_at: float
    """When that heartbeat arrived, or, later, something over its stream."""
    silent: bool
    """Whether it missed its heartbeats while the log worked, and no answers made up for them."""
    attached: bool
    """Whether its reply stream to this gateway stands."""

    @property
    def live(self) -> bool:
        """Whether it takes calls from this gateway."""
        return self.attached and not self.silent and self.heartbeat.state == ROUTER_STATE_READY

    @property
    def server_away(self) -> bool:
        """Whether it says that its model server does not answer, or is not ready."""
        return self.heartbeat.state == ROUTER_STATE_SERVER_AWAY


@dataclass(slots=True)
class _Waiter:
    predicate: Callable[[], bool]
    future: asyncio.Future[None]

    def look(self) -> None:
        if self.future.done():
            return
        try:
            if self.predicate():
                self.future.set_result(None)
        except Exception as exc:  # noqa: BLE001  it belongs to the one who waits, not to the reader of the log
            self.future.set_exception(exc)


Changed = Callable[[frozenset[str]], None]
"""Told the names of the models that changed. Must not raise or wait."""


class Registry:
    """What one gateway knows of one pool."""

    def __init__(self, *, pool: str, gateway_id: str, incarnation: int) -> None:
        self._pool = pool
        self._gateway_id = gateway_id
        self._incarnation = incarnation
        self._routers: dict[str, Router] = {}
        self._attached: set[RouterKey] = set()
        self._descriptions: dict[str, dict[str, ModelDescription]] = {}  # by model, then by router
        self._statistics: dict[str, dict[str, ModelStatistics]] = {}  # by model, then by router
        self._gateways_heard_at: dict[str, float] = {}
        self._models: dict[str, Model] = {}
        self._revision = 0
        self._log_heard_at: float | None = None
        self._log_works_since = 0.0
        self._subscribers: list[Changed] = []
        self._waiters: list[_Waiter] = []
        self.complete = False
        """Whether all that was announced before this gateway started has been read: what is not here does not exist."""
        self.models: Mapping[str, Model] = MappingProxyType(self._models)
        """Every known model by name; a live view."""
        self.routers: Mapping[str, Router] = MappingProxyType(self._routers)
        """Every router that was heard of and has not left, by id; a live view."""

    # What is told.

    def apply(self, key: str, announcement: Announcement | None, now: float) -> None:
        """Take the newest record of a key; None takes the key back. Foreign pools and unknown keys are passed over."""
        parsed = parse_key(key)
        if parsed is None or parsed.pool not in ("", self._pool):
            return
        match parsed.kind:
            case "gateway":
                told_so = announcement is not None and announcement.HasField("gateway")
                self._gateway(parsed.id, announcement.gateway.incarnation if announcement and told_so else None, now)
            case "router":
                heard = announcement.router if announcement is not None and announcement.HasField("router") else None
                self._router(parsed.id, heard, now)
            case "model":
                told = announcement.model if announcement is not None and announcement.HasField("model") else None
                _put(self._descriptions, parsed.model, parsed.id, told)
                self._refresh((parsed.model,))
            case "statistics":
                said = announcement is not None and announcement.HasField("statistics")
                counted = announcement.statistics if announcement is not None and said else None
                _put(self._statistics, parsed.model, parsed.id, counted)
            case "repository":
                pass  # what a restarted model server should load is for the routers

    def attached(self, router: RouterKey) -> None:
        """A router's reply stream stands."""
        self._attached.add(router)
        self._reconsider(router.id)

    def detached(self, router: RouterKey) -> None:
        """A router's reply stream broke."""
        self._attached.discard(router)
        self._reconsider(router.id)

    def heard(self, router: RouterKey, at: float) -> None:
        """Something came over a router's stream: it lives."""
        known = self._routers.get(router.id)
        if known is not None and known.key == router and at > known.heard_at:
            silent = known.silent and at - max(known.announced_at, self._log_works_since) > MUTE_SECONDS
            self._store(replace(known, heard_at=at, silent=silent))

    def advance(self, now: float) -> list[RouterKey]:
        """Let time pass: the routers that are returned have been silent for too long, and are not live from here on."""
        if self._log_heard_at is None or now - self._log_heard_at > LOG_SILENCE_SECONDS:
            return []
        self._count_gateways(now)
        fell_silent = [router for router in self._routers.values() if not router.silent and self._is_mute(router, now)]
        for router in fell_silent:
            self._store(replace(router, silent=True))
        return [router.key for router in fell_silent]

    def _is_mute(self, router: Router, now: float) -> bool:
        since = self._log_works_since
        return (
            now - max(router.heard_at, since) > ROUTER_SILENCE_SECONDS
            or now - max(router.announced_at, since) > MUTE_SECONDS
        )

    # What is asked.

    @property
    def gateways(self) -> int:
        """How many gateways announce themselves on this log, of all pools, this one included."""
        return max(1, len(self._gateways_heard_at))

    def announcements_age(self, now: float) -> float | None:
        """Since when this gateway has not read its own announcement back; None before the first one."""
        return None if self._log_heard_at is None else now - self._log_heard_at

    def live_routers(self) -> Iterator[Router]:
        """The routers that take calls."""
        return (router for router in self._routers.values() if router.live)

    def unattached(self) -> list[RouterKey]:
        """Routers that announce that they are ready, are not silent, and have no reply stream to this gateway."""
        return [
            router.key
            for router in self._routers.values()
            if router.heartbeat.state == ROUTER_STATE_READY and not (router.attached or router.silent)
        ]

    def statistics(self, model: str) -> list[ModelStatistics]:
        """What each live router's model server counted for a model, by router id."""
        told = sorted(self._statistics.get(model, {}).items())
        return [counted for router_id, counted in told if self._is_live(router_id, counted.router_incarnation)]

    def subscribe(self, changed: Changed) -> Callable[[], None]:
        """Be told of every change of models, after it was made. Call what is returned to end it."""
        self._subscribers.append(changed)
        return lambda: self._subscribers.remove(changed)

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until the predicate holds; it is asked now and after every change. The caller brings the deadline."""
        waiter = _Waiter(predicate, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        waiter.look()
        try:
            await waiter.future
        finally:
            self._waiters.remove(waiter)

    # How it is folded.

    def _gateway(self, gateway_id: str, incarnation: int | None, now: float) -> None:
        if incarnation is None:
            self._gateways_heard_at.pop(gateway_id, None)
        else:
            self._gateways_heard_at[gateway_id] = now
        if gateway_id == self._gateway_id and incarnation == self._incarnation:
            self._own_heartbeat(now)

    def _count_gateways(self, now: float) -> None:
        since = self._log_works_since
        for gateway_id, heard_at in list(self._gateways_heard_at.items()):
            if now - max(heard_at, since) > GATEWAY_SILENCE_SECONDS:
                del self._gateways_heard_at[gateway_id]

    def _own_heartbeat(self, now: float) -> None:
        if self._log_heard_at is None or now - self._log_heard_at > LOG_SILENCE_SECONDS:
            self._log_works_since = now  # nobody could be heard until now, so everyone's silence starts anew
        self._log_heard_at = now

    def _router(self, router_id: str, heartbeat: RouterHeartbeat | None, now: float) -> None:
        known = self._routers.get(router_id)
        if heartbeat is None:
            if self._routers.pop(router_id, None) is not None:
                self._refresh(self._described_by(router_id))
            return
        key = RouterKey(router_id, heartbeat.incarnation)
        if known is not None and known.key == key and heartbeat.beat <= known.heartbeat.beat:
            return  # read a second time: it says nothing about now
        self._store(
            Router(key, heartbeat, announced_at=now, heard_at=now, silent=False, attached=key in self._attached)
        )

    def _reconsider(self, router_id: str) -> None:
        known = self._routers.get(router_id)
        if known is not None:
            self._store(replace(known, attached=known.key in self._attached))

    def _store(self, router: Router) -> None:
        before = self._routers.get(router.key.id)
        self._routers[router.key.id] = router
        if before is None or (before.live, before.key) != (router.live, router.key):
            self._refresh(self._described_by(router.key.id))

    def _described_by(self, router_id: str) -> list[str]:
        return [model for model, told in self._descriptions.items() if router_id in told]

    def _is_live(self, router_id: str, incarnation: int) -> bool:
        router = self._routers.get(router_id)
        return router is not None and router.live and router.key.incarnation == incarnation

    def _refresh(self, names: Iterable[str]) -> None:
        changed = set()
        for name in names:
            before, now = self._models.get(name), self._merged(name)
            if before == now:
                continue
            changed.add(name)
            if now is None:
                del self._models[name]
            else:
                self._models[name] = now
        if changed:
            for subscriber in tuple(self._subscribers):
                subscriber(frozenset(changed))
        for waiter in tuple(self._waiters):
            waiter.look()

    def _merged(self, name: str) -> Model | None:
        told = sorted(self._descriptions.get(name, {}).items())
        if not told:
            return None
        live = [(router_id, each) for router_id, each in told if self._is_live(router_id, each.router_incarnation)]
        owners = tuple(
            Owner(RouterKey(router_id, each.router_incarnation), tuple(sorted(each.partitions)), max(1, each.window))
            for router_id, each in live
            if each.partitions and any(version.state == READY for version in each.versions)
        )
        heard = live or told
        self._revision += 1
        return Model(
            name=name,
            owners=owners,
            partition_count=max(each.partition_count for _, each in heard),
            live=bool(live),
            versions=_versions([each for _, each in heard], live=bool(live)),
            revision=self._revision,
        )


def _put(table: dict[str, dict[str, T]], model: str, router_id: str, value: T | None) -> None:
    if value is not None:
        table.setdefault(model, {})[router_id] = value
        return
    told = table.get(model, {})
    told.pop(router_id, None)
    if not told:
        table.pop(model, None)


def _versions(descriptions: Iterable[ModelDescription], *, live: bool) -> tuple[Version, ...]:
    merged: dict[str, Version] = {}
    for description in descriptions:
        for each in description.versions:
            known = merged.get(each.version)
            if known is None or (each.state == READY and not known.ready):
                merged[each.version] = Version(each.version, each.state, each.reason, each.metadata, each.config)
    if len(merged) > 1:
        merged.pop("", None)  # a model server that has nothing of it loaded names no version
    if not live:
        merged = {
            name: replace(each, state=UNAVAILABLE, reason=NO_LIVE_ROUTER_TEXT) if each.ready else each
            for name, each in merged.items()
        }
    return tuple(sorted(merged.values(), key=_place))


def _place(version: Version) -> tuple[int, str]:
    return (len(version.version), version.version)  # numbers without leading zeros: by length is by size

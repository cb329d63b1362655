"""The router's composition root: what it is made of, in the order in which it depends on each other."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack

from tritonclient.grpc import service_pb2

from headrace.bus.announcements import router_key
from headrace.bus.answers.links import GrpcAnswerLinks, LinkTerms
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.answers.wire import Trust
from headrace.bus.beacon import Beacon
from headrace.bus.control import (
    KafkaAnnouncements,
    KafkaUsage,
    TopicMissingError,
    Topics,
    until_entered,
    until_own_topics,
)
from headrace.bus.log import KafkaConsumer
from headrace.bus.protocols import (
    Failure,
    Link,
    LogUnavailableError,
    Outcome,
    Record,
    RouterKey,
    TopicPartition,
    UsageLog,
)
from headrace.bus.topics import consumer_group, model_of
from headrace.bus.usage import UsageMeter
from headrace.runtime import logs
from headrace.runtime.admin_http import Readiness, admin_http
from headrace.runtime.lifecycle import Background, Unstartable, serve_until, unless
from headrace.runtime.telemetry import LoopLag, Telemetry
from headrace.runtime.trace_context import tracing
from router.departed import Departed
from router.description import Description
from router.gateways import Gateways
from router.intake import COMMIT_SECONDS, Intake
from router.inventory import ADMIN_METHODS, LOAD, UNLOAD, Inventory
from router.metrics import instruments
from router.settings import RouterSettings
from router.topics import RequestTopics
from router.traces import RecordTraces
from router.triton import Triton

_TICK_SECONDS = 0.25
_FLUSH_SECONDS = 5.0
_log = logging.getLogger(__name__)


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Run until told to stop; then take nothing new, finish and answer what runs, and leave the group."""
    logs.configure(settings.log, process="router")
    try:
        whereabouts = Whereabouts(settings.router.reply.allowed_gateways.split(","))
    except ValueError as exc:
        raise Unstartable(f"HEADRACE_ROUTER__REPLY__ALLOWED_GATEWAYS: {exc}") from None
    router = Router(settings, whereabouts)
    async with AsyncExitStack() as owned:
        await router.start(owned, stop)
        if stop.is_set():
            return
        _log.info("router %s runs", router.key.id, extra={"event": "router_started", "router": router.key.id})
        try:
            await serve_until(stop, router.background.failed(), router.consumer.failed())
        except LogUnavailableError:
            await router.drain()  # nothing new comes from the log, and what runs is answered all the same
            raise
        await router.drain()


class Router:
    """The parts, and what passes between them."""

    def __init__(self, settings: RouterSettings, whereabouts: Whereabouts) -> None:
        self._settings = settings
        own = settings.router
        self.key = RouterKey(own.id or socket.gethostname(), int.from_bytes(os.urandom(8)))
        self._pool = settings.pool.name
        self._client_id = f"headrace-router-{self.key.id}"
        self._inventory_changed = asyncio.Event()
        self._starts_restored = 0
        self._joined = False
        self._caught_up = asyncio.Event()
        limit = settings.topics.max_message_bytes
        self._triton = Triton(own.triton.address, max_message_bytes=limit, call_seconds=own.triton.call_seconds)
        self._inventory = Inventory(
            triton=self._triton,
            settings=own.triton,
            windows=own.window,
            pool=self._pool,
            changed=self._inventory_changed.set,
        )
        self._triton_lost = asyncio.Event()
        self._given_up = False
        self._given_back = asyncio.Event()
        self._usage = UsageMeter(f"router/{self._pool}/{self.key.id}/{self.key.incarnation:016x}")
        self._models: dict[str, str] = {}
        group = consumer_group(self._pool, "interactive")
        self._tracing = tracing(settings.traces, service="headrace-router", instance=self.key.id)
        traces = None
        if self._tracing is not None:
            traces = RecordTraces(self._tracing, group=group, triton=own.triton.address)
        self._intake = Intake(
            triton=self._triton,
            max_waiting_bytes=own.window.waiting_bytes,
            longest_seconds=settings.topics.retention_seconds,
            triton_lost=self._triton_lost.set,
            used=self._count,
            traces=traces,
        )
        self._trust = Trust(settings.reply_trust)
        self._links = GrpcAnswerLinks(
            terms=LinkTerms(
                router=self.key,
                pool=self._pool,
                attach_seconds=own.reply.attach_seconds,
                stall_seconds=own.reply.stall_seconds,
                unacknowledged_bytes=own.reply.unacknowledged_bytes,
                max_message_bytes=limit,
            ),
            trust=self._trust,
            whereabouts=whereabouts,
            events=self,
        )
        self._gateways = Gateways(
            pool=self._pool,
            own_key=router_key(self._pool, self.key.id),
            own_incarnation=self.key.incarnation,
            links=self._links,
        )
        self._topics = Topics(settings.kafka, settings.topics, client_id=self._client_id)
        self._request_topics = RequestTopics(self._topics, group=group, changed=self._serve)
        self._announcements = KafkaAnnouncements(settings.kafka, client_id=self._client_id)
        self._description = Description(
            router=self.key, pool=self._pool, partition_count=self._request_topics.counts.get
        )
        self._beacon = Beacon(
            self._announcements,
            key=router_key(self._pool, self.key.id),
            heartbeat=lambda beat: self._description.heartbeat(beat, self._inventory, self._intake),
        )
        self._departed = Departed(pool=self._pool, own=self.key, taken_back=self._beacon.taken_back)
        self.background = Background()
        self.consumer = KafkaConsumer(
            settings.kafka,
            client_id=self._client_id,
            group=group,
            max_message_bytes=limit,
            events=self,
        )

    async def start(self, owned: AsyncExitStack, stop: asyncio.Event) -> None:
        """Enter the parts; leaving the stack takes them down in reverse. Returns early when told to stop."""
        enter = owned.enter_async_context
        if self._tracing is not None:
            await enter(self._tracing)
        loop = asyncio.get_running_loop()
        started, lag = loop.time(), LoopLag()
        measured = instruments(
            self._inventory,
            self._intake,
            self._links,
            self.consumer,
            pool=self._pool,
            certificate=self._trust.certificate,
            lag=lag,
            announcements_age=lambda: min(self._gateways.announcements_age(loop.time()), loop.time() - started),
        )
        telemetry = Telemetry(*measured)
        admin = self._settings.router.admin
        await enter(admin_http(admin.host, admin.port, readiness=self._readiness, metrics=telemetry.parts))
        await enter(self._triton)
        usage_log = KafkaUsage(self._settings.kafka, client_id=self._client_id)
        if not await unless(stop, self._reach_broker(owned, usage_log)):
            return
        owned.push_async_callback(self._last_words, usage_log)
        await enter(self._links)
        await enter(self.consumer)
        self._intake.connect(self.consumer, self._links)
        await enter(self.background)
        spawn = self.background.spawn
        spawn("announcements", self._follow_announcements())
        spawn("beacon", self._beacon.keep())
        spawn("certificate", self._trust.keep())
        spawn("inventory", self._inventory.keep())
        spawn("inventory-changes", self._follow_inventory())
        spawn("topics", self._request_topics.keep())
        spawn("triton-lost", self._look_after_losses())
        spawn("restore", self._restore())
        spawn("usage", self._usage.keep(usage_log))
        spawn("clock", self._tick())
        spawn("loop-lag", lag.keep())

    async def _reach_broker(self, owned: AsyncExitStack, usage_log: KafkaUsage) -> None:
        try:
            await until_own_topics(self._settings.kafka, self._topics, self._client_id)
        except TopicMissingError as exc:
            raise Unstartable(str(exc)) from None
        await until_entered(owned, self._announcements, usage_log)

    async def drain(self) -> None:
        """Take nothing new, give back what has not begun, finish and answer what runs."""
        _log.info("leaving", extra={"event": "router_leaving", "calls": self._intake.running})
        self._description.leaving = True
        self._describe()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._beacon.beat()
        except (TimeoutError, LogUnavailableError):
            _log.warning("leaving without a word: the log is away", extra={"event": "goodbye_failed"})
        self.consumer.subscribe(())
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                while self._intake.has_partitions:
                    await self._given_back.wait()
                    self._given_back.clear()
        except TimeoutError:
            _log.warning("partitions were not given back in time", extra={"event": "give_back_failed"})
            self._intake.hold()  # they are another's soon
        try:
            async with asyncio.timeout(self._settings.router.drain_grace_seconds):
                await self._intake.quiet()
        except TimeoutError:
            _log.warning("calls were cut off", extra={"event": "calls_cut", "calls": self._intake.running})
            await self._intake.cancel_running()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._links.flush()
        except TimeoutError:
            _log.warning("answers were not taken", extra={"event": "answers_cut"})

    def _count(self, tenant: str, topic: str, seconds: float) -> None:
        model = self._models.get(topic)
        if model is None:
            model = self._models[topic] = model_of(topic, self._pool, "interactive") or topic
        self._usage.add(tenant, model, model_micros=round(seconds * 1e6))

    async def _last_words(self, usage_log: UsageLog) -> None:
        """Together, so that a log that is away holds up the end once."""
        await asyncio.gather(
            self._usage.end(usage_log, seconds=_FLUSH_SECONDS), self._beacon.leave(seconds=_FLUSH_SECONDS)
        )

    def _readiness(self) -> Readiness:
        if self._description.leaving:
            return Readiness(ready=False, text="leaving")
        if not self._caught_up.is_set():
            return Readiness(ready=False, text="the broker does not answer yet")
        if not self._inventory.ready:
            return Readiness(ready=False, text="Triton does not answer, or is not ready")
        serves = any(model.ready for model in self._inventory.models.values())
        if not serves and not self._settings.router.ready_without_models:
            return Readiness(ready=False, text="Triton has no model ready")
        if serves and not self._joined:
            return Readiness(ready=False, text="the group has not given this router its partitions yet")
        return Readiness(ready=True, text="ready")

    # What the log says (IntakeEvents): the intake's business, and a change of what this router announces.

    def records(self, batch: Sequence[Record]) -> None:
        """See IntakeEvents.records."""
        self._intake.records(batch)

    def assigned(self, places: Collection[TopicPartition]) -> None:
        """See IntakeEvents.assigned."""
        self._joined = True
        self._intake.assigned(places)
        self._describe()

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See IntakeEvents.revoked."""
        offsets = self._intake.revoked(places)
        self._given_back.set()
        self._describe()
        return offsets

    def lost(self, places: Collection[TopicPartition]) -> None:
        """See IntakeEvents.lost."""
        self._intake.lost(places)
        self._given_back.set()
        self._describe()

    # What gateways say (LinkEvents).

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        """See LinkEvents.cancelled."""
        self._intake.cancelled(call_id, attempt, expire_time_unix_micros)

    def link_changed(self, link: Link) -> None:
        """See LinkEvents.link_changed."""
        self._intake.link_changed(link)

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        """See LinkEvents.administer."""
        seconds = expire_time_unix_micros / 1e6 - time.time()
        if method not in ADMIN_METHODS or seconds <= 0:
            return Failure.EXPIRED if seconds <= 0 else Failure.INTERNAL
        outcome = await self._triton.administer(method, request, seconds)
        verdict = _verdict(outcome)
        _log.info("%s: %s", method, verdict, extra={"event": "administered", "method": method, "verdict": verdict})
        if method in {LOAD, UNLOAD}:
            # The gateway's next look at the registry must see what this call did.
            await self._inventory.look()
        return outcome

    # What others announce.

    async def _follow_announcements(self) -> None:
        clock = asyncio.get_running_loop().time

        def caught_up() -> None:
            self._departed.caught_up(clock())
            self._caught_up.set()

        await self._gateways.follow(self._announcements, clock, caught_up, self._departed.apply)

    def _take_back_for_departed(self, now: float) -> None:
        """Only while this router serves: a pool that is at zero, or only begins, stays known as it was."""
        serves = any(model.ready for model in self._inventory.models.values())
        if serves and self._joined and self._readiness().ready:
            for key in self._departed.due(now):
                self._beacon.put(key, None)

    # What Triton has.

    async def _follow_inventory(self) -> None:
        was_ready = False
        while True:
            waits = self._intake.has_partitions and not self._inventory.ready
            try:
                async with asyncio.timeout(self._settings.router.triton.away_seconds if waits else None):
                    await self._inventory_changed.wait()
            except TimeoutError:
                self._give_up_partitions()
                continue
            self._inventory_changed.clear()
            if not self._inventory.ready:
                self._intake.hold()
            elif not self._description.leaving:
                self._given_up = False
                self._intake.release()
            if self._inventory.ready != was_ready:
                was_ready = self._inventory.ready
                self._beacon.beat_soon()
            self._request_topics.want({model.topic: model.ready for model in self._inventory.models.values()})
            self._serve()

    def _give_up_partitions(self) -> None:
        """What waits in them may be run by others; until Triton is there, nobody else could."""
        if not self._given_up:
            self._given_up = True
            self._joined = False
            seconds = self._settings.router.triton.away_seconds
            extra = {"event": "partitions_given_up", "seconds": seconds}
            _log.warning("Triton has been away for %g s: others get this router's partitions", seconds, extra=extra)
            self._serve()

    async def _look_after_losses(self) -> None:
        """A call did not reach Triton: look at once, and begin again when it is there."""
        while True:
            await self._triton_lost.wait()
            self._triton_lost.clear()
            await self._inventory.look()
            if self._inventory.ready and not self._description.leaving:
                self._intake.release()

    def _serve(self) -> None:
        """Serve what Triton has ready, as far as it has topics."""
        served = {
            model.topic: model.window
            for model in self._inventory.models.values()
            if model.ready and self._request_topics.counts.get(model.topic)
        }
        if not self._description.leaving:
            self._intake.set_windows(served)
            self.consumer.subscribe(() if self._given_up else served)
        self._describe()

    async def _restore(self) -> None:
        """Bring a restarted Triton to what its pool was last asked for."""
        await self._caught_up.wait()
        while True:
            if self._inventory.starts != self._starts_restored:
                self._starts_restored = self._inventory.starts
                await self._restore_once()
            await asyncio.sleep(_TICK_SECONDS)  # a clock

    async def _restore_once(self) -> None:
        for name, loaded in list(self._gateways.wanted.items()):
            model = self._inventory.models.get(name)
            if model is None or model.ready == loaded:
                continue
            method = LOAD if loaded else UNLOAD
            message = service_pb2.RepositoryModelLoadRequest if loaded else service_pb2.RepositoryModelUnloadRequest
            seconds = self._settings.router.triton.call_seconds * 12
            outcome = await self._triton.administer(method, message(model_name=name).SerializeToString(), seconds)
            verdict = _verdict(outcome)
            extra = {"event": "model_restored", "model": name, "loaded": loaded, "verdict": verdict}
            level = logging.INFO if verdict == "OK" else logging.WARNING
            _log.log(level, "a Triton that started anew was asked for its pool's %s: %s", name, verdict, extra=extra)
        await self._inventory.look()

    def _describe(self) -> None:
        self._description.put(self._beacon, self._inventory, self._intake)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        since_commit = 0.0
        while True:
            await asyncio.sleep(_TICK_SECONDS)  # a clock
            self._gateways.advance(loop.time())
            self._take_back_for_departed(loop.time())
            since_commit += _TICK_SECONDS
            if since_commit >= COMMIT_SECONDS:
                since_commit = 0.0
                self.consumer.commit(self._intake.committable())


def _verdict(outcome: Outcome) -> str:
    """`OK`, `TRITON` where it said no, or why it said nothing; the same words as in the gateway's lines."""
    if isinstance(outcome, bytes):
        return "OK"
    return outcome.name if isinstance(outcome, Failure) else "TRITON"

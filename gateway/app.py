"""The gateway's composition root: what it is made of, in the order in which it depends on each other."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc

from gateway import catalog
from gateway.access import Access
from gateway.administration import SERVICE, Administration
from gateway.calls import WaitingCalls
from gateway.catalog import Catalog
from gateway.delivery import Delivery, DeliveryTerms
from gateway.edge import CallHandlers, edge_server, open_port, own_certificate
from gateway.errors import ShuttingDown
from gateway.health import SERVICE as HEALTH_SERVICE
from gateway.health import Health
from gateway.infer import METHOD as MODEL_INFER
from gateway.infer import CallTerms, ModelInfer
from gateway.metrics import instruments
from gateway.opening import Opening
from gateway.reflection import Reflection
from gateway.registry import Registry
from gateway.rest import service as rest
from gateway.settings import GatewaySettings
from gateway.status import Context, Handler, UnknownMethods
from gateway.traces import CallTraces
from headrace.bus.announcements import gateway_key
from headrace.bus.answers.hub import GrpcAnswerHub
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
from headrace.bus.log import KafkaPublisher
from headrace.bus.protocols import LogError, Outcome, RouterKey
from headrace.bus.usage import UsageMeter
from headrace.bus.v1.announcement_pb2 import Announcement, GatewayHeartbeat
from headrace.runtime import logs
from headrace.runtime.addresses import join_address
from headrace.runtime.admin_http import Readiness, admin_http
from headrace.runtime.lifecycle import Background, Unstartable, serve_until, unless
from headrace.runtime.telemetry import LoopLag, Telemetry
from headrace.runtime.trace_context import tracing

_TICK_SECONDS = 0.25
_GOODBYE_SECONDS = 2.0
_LAST_WORD_SECONDS = 1.0  # for what was just refused, and for bodies that were still being read
_log = logging.getLogger(__name__)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run until told to stop; then say NOT_SERVING, let calls end, and close the port last."""
    logs.configure(settings.log, process="gateway")
    gateway = Gateway(settings)
    async with AsyncExitStack() as owned:
        await gateway.start(owned, stop)
        if stop.is_set():
            return
        await serve_until(stop, gateway.background.failed(), gateway.watching.failed(), gateway.access.failed())
        await gateway.drain()


class Gateway:
    """The parts, and what passes between them."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises SettingsError where a file that the settings name is not usable."""
        own = settings.gateway
        limit = settings.topics.max_message_bytes
        self._settings = settings
        self._id = own.id or socket.gethostname()
        self._incarnation = int.from_bytes(os.urandom(8))
        self._tracing = tracing(settings.traces, service="headrace-gateway", instance=self._id)
        self._client_id = f"headrace-gateway-{self._id}"
        self._pool = settings.pool.name
        self._leaving = False
        self._left: set[RouterKey] = set()
        self._registry = Registry(pool=self._pool, gateway_id=self._id, incarnation=self._incarnation)
        self._opening = Opening(self._registry)
        source = f"gateway/{self._id}/{self._incarnation:016x}"
        self.access = Access(
            own, settings.database, pool=self._pool, source=source, gateways=lambda: self._registry.gateways
        )
        self._usage = UsageMeter(source, closed=self.access.accounts.closed)
        # Nothing is used, but the key is: whoever looks for keys that nobody needs is not to find it.
        self.access.admission.asked = lambda caller: self._usage.add(caller.tenant, "", key_id=caller.key_id)
        self._health = Health(
            self._registry, self.access.callers, self.access.admission, self.access.audit, self.access.slowed
        )
        self.access.subscribe(self._health.reconsider)
        self._calls = WaitingCalls(max_calls=own.bounds.calls, max_bytes=own.bounds.request_bytes)
        trust = self._trust()
        self._certificates = {"grpc": own_certificate(own.grpc), "reply": trust.certificate}
        self._hub = GrpcAnswerHub(
            incarnation=self._incarnation,
            pool=self._pool,
            trust=trust,
            max_message_bytes=limit,
            events=self,
        )
        self._announcements = KafkaAnnouncements(settings.kafka, client_id=self._client_id)
        self._publisher = KafkaPublisher(
            settings.kafka,
            client_id=self._client_id,
            max_message_bytes=limit,
            delivery_seconds=min(own.delivery_seconds, own.deadlines.maximum_seconds),
            on_failure=self._publish_failed,
        )
        self._delivery = Delivery(
            terms=DeliveryTerms(
                pool=self._pool,
                pool_may_sleep=own.pool_may_sleep,
                attempts=own.attempts,
                owner_wait_seconds=own.owner_wait_seconds,
            ),
            registry=self._registry,
            calls=self._calls,
            publisher=self._publisher,
            hub=self._hub,
            clock=asyncio.get_running_loop().time,
            turn=self._incarnation & 0xFFFF,
        )
        self._administration = Administration(
            pool=self._pool,
            registry=self._registry,
            hub=self._hub,
            announcements=self._announcements,
            who=self.access.callers,
            admission=self.access.admission,
            audit=self.access.audit,
            seconds=self._seconds,
            max_message_bytes=limit,
        )
        self._registry.subscribe(self._delivery.models_changed)
        self.watching = Background()
        """What goes on from when the ports open."""
        self.background = Background()

    async def start(self, owned: AsyncExitStack, stop: asyncio.Event) -> None:
        """Enter the parts; leaving the stack takes them down in reverse. Returns early when told to stop."""
        own = self._settings.gateway
        limit, rest_limit = self._settings.topics.max_message_bytes, own.rest_json_bytes
        enter = owned.enter_async_context
        traces = None
        if self._tracing is not None:
            await enter(self._tracing)
            traces = CallTraces(self._tracing, self._settings.traces)
        try:
            reply_port = self._hub.bind(own.reply.host, own.reply.port)
        except OSError as exc:
            raise Unstartable(f"{exc} (reply port): it is in use, or not ours; set another one") from None
        self._reply_address = join_address(own.reply.advertised_host or own.reply.host, reply_port)
        self._infer = ModelInfer(
            terms=CallTerms(
                reply_address=self._reply_address,
                incarnation=self._incarnation,
                default_deadline_seconds=own.deadlines.default_seconds,
                maximum_deadline_seconds=own.deadlines.maximum_seconds,
                max_message_bytes=self._settings.topics.max_message_bytes,
            ),
            registry=self._registry,
            calls=self._calls,
            delivery=self._delivery,
            admission=self.access.admission,
            usage=self._usage,
            traces=traces,
        )
        self._call_handlers = CallHandlers(
            self.access.callers,
            {MODEL_INFER: self._infer.handler, rest.INFER: rest.infer(self._infer.handler, limit, rest_limit)},
            self._methods(),
            audit=self.access.audit,
            slowed=self.access.slowed,
            full=self._calls.full,
            traces=traces,
            count=self._infer.tally.refused_at_the_door,
        )
        self.access.subscribe(self._call_handlers.identities_changed)
        server = edge_server(
            self._settings.topics.max_message_bytes,
            self._handlers(),
            connection_age_seconds=own.grpc.connection_age_seconds,
        )
        self._port = open_port(server, own.grpc, self._certificates["grpc"])
        await enter(self.watching)
        for name, certificate in self._certificates.items():
            if certificate is not None:
                self.watching.spawn(f"certificate-{name}", certificate.keep())
        lag = LoopLag()
        measured = instruments(
            self._registry,
            self._calls,
            self._infer.tally,
            self.access,
            republished=self._delivery.republished,
            cancelled=lambda: self._hub.cancelled,
            certificates=self._certificates,
            lag=lag,
        )
        telemetry = Telemetry(*measured)
        await enter(admin_http(own.admin.host, own.admin.port, readiness=self._readiness, metrics=telemetry.parts))
        await enter(self.access)
        await enter(self._hub)
        # The port answers at once, with NOT_SERVING and refusals: a broker that is away is told, not waited for.
        owned.push_async_callback(server.stop, _LAST_WORD_SECONDS)
        await server.start()
        usage_log = KafkaUsage(self._settings.kafka, client_id=self._client_id)
        if not await unless(stop, self._reach_broker(owned, usage_log)):
            return
        await enter(self._publisher)
        owned.push_async_callback(self._usage.end, usage_log, seconds=_GOODBYE_SECONDS)
        beacon = Beacon(self._announcements, key=gateway_key(self._id), heartbeat=self._heartbeat)
        owned.push_async_callback(beacon.leave, seconds=_GOODBYE_SECONDS)
        await enter(self.background)
        self.background.spawn("announcements", self._follow())
        self.background.spawn("beacon", beacon.keep())
        self.background.spawn("usage", self._usage.keep(usage_log))
        self.background.spawn("clock", self._tick())
        self.background.spawn("loop-lag", lag.keep())
        _log.info(
            "gateway %s listens on port %d",
            self._id,
            self._port,
            extra={"event": "gateway_started", "gateway": self._id, "port": self._port},
        )

    async def drain(self) -> None:
        """NOT_SERVING first, so that balancers look elsewhere; then refuse what is new, and let what runs end."""
        drain = self._settings.gateway.drain
        self._leaving = True
        self._health.drain()
        _log.info("leaving", extra={"event": "gateway_leaving", "calls": len(self._calls)})
        await asyncio.sleep(drain.notice_seconds)  # a notice is a length of time
        self._call_handlers.closing = True
        self.access.slowed.release()
        try:
            async with asyncio.timeout(drain.grace_seconds):
                await self._calls.drained()
                await self._administration.drained()
        except TimeoutError:
            cut = len(self._calls) + self._administration.under_way
            _log.warning("calls were cut off", extra={"event": "calls_cut", "calls": cut})
            self._calls.refuse_all(ShuttingDown, self._delivery.abandon)
        self._health.close()

    def _methods(self) -> dict[str, Handler]:
        own = Catalog(self._registry, pool_may_sleep=self._settings.gateway.pool_may_sleep)
        methods = catalog.handlers(own, self.access.callers, self.access.admission) | self._administration.handlers()
        return {f"/{SERVICE}/{name}": handler for name, handler in methods.items()} | rest.handlers(
            methods,
            self.access.callers,
            self._settings.topics.max_message_bytes,
            self._settings.gateway.rest_json_bytes,
        )

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        return [
            self._call_handlers,
            grpc.method_handlers_generic_handler(HEALTH_SERVICE, self._health.handlers()),
            *Reflection([SERVICE, HEALTH_SERVICE]).generic_handlers(),
            UnknownMethods(),
        ]

    def _seconds(self, context: Context) -> float:
        deadlines = self._settings.gateway.deadlines
        remaining: float | None = context.time_remaining()  # typed as if every caller brought a deadline
        return min(deadlines.default_seconds if remaining is None else remaining, deadlines.maximum_seconds)

    def _trust(self) -> Trust:
        trust = Trust(self._settings.reply_trust)
        host = self._settings.gateway.reply.host
        if not trust.may_be_plain(loopback=host in {"127.0.0.1", "::1", "localhost"}):
            raise Unstartable(
                f"the reply port on {host} would take a secret unencrypted: set the HEADRACE_REPLY_TRUST__TLS_… files,"
                " or HEADRACE_REPLY_TRUST__ALLOW_SECRET_WITHOUT_TLS=true"
            )
        return trust

    async def _reach_broker(self, owned: AsyncExitStack, usage_log: KafkaUsage) -> None:
        topics = Topics(self._settings.kafka, self._settings.topics, client_id=self._client_id)
        try:
            await until_own_topics(self._settings.kafka, topics, self._client_id)
        except TopicMissingError as exc:
            raise Unstartable(str(exc)) from None
        await until_entered(owned, self._announcements, usage_log)

    def _heartbeat(self, beat: int) -> Announcement:
        return Announcement(
            gateway=GatewayHeartbeat(
                reply_address=self._reply_address,
                incarnation=self._incarnation,
                beat=beat,
                pool=self._pool,
            )
        )

    def _readiness(self) -> Readiness:
        if self._leaving:
            return Readiness(ready=False, text="leaving")
        if self._opening.waits_for:
            return Readiness(ready=False, text=f"waits for {self._opening.waits_for}")
        if not self.access.ready:
            return Readiness(ready=False, text="the database does not answer yet")
        return Readiness(ready=True, text="ready")

    def _publish_failed(self, call_id: bytes, attempt: int, error: LogError) -> None:
        self._delivery.publish_failed(call_id, attempt, error)

    # What the routers say (HubEvents).

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        """See HubEvents.answered."""
        self._delivery.answered(call_id, attempt, outcome)

    def attached(self, router: RouterKey) -> None:
        """See HubEvents.attached."""
        self._registry.attached(router)

    def left(self, router: RouterKey) -> None:
        """See HubEvents.left."""
        self._left.add(router)

    def detached(self, router: RouterKey) -> None:
        """See HubEvents.detached: a broken stream is acted upon at once."""
        self._registry.detached(router)
        if router in self._left:
            self._left.remove(router)
            self._delivery.router_left(router)
        else:
            self._delivery.router_lost(router)

    # What the announcements say.

    async def _follow(self) -> None:
        clock: Callable[[], float] = asyncio.get_running_loop().time
        async for said in self._announcements.read():
            if said is None:
                self._registry.complete = True
                self._serve_if_ready()
            else:
                self._registry.apply(*said, clock())

    def _serve_if_ready(self) -> None:
        self._opening.look(asyncio.get_running_loop().time())
        if self._readiness().ready:
            self._health.serve()

    async def _tick(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_TICK_SECONDS)  # a clock
            self._advance(clock())

    def _advance(self, now: float) -> None:
        for router, at in self._hub.heard_at.items():
            self._registry.heard(router, at)
        for router in self._registry.advance(now):
            self._delivery.router_lost(router)
        self._delivery.advance(now)
        self._serve_if_ready()

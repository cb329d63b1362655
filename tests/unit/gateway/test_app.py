"""The gateway as a whole, without a log: what passes between its parts when routers come, go, and fall silent."""

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from cryptography import x509
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway import app
from gateway.access import Access
from gateway.administration import SERVICE
from gateway.app import Gateway
from gateway.calls import Call
from gateway.delivery import TAKE_OVER_SECONDS
from gateway.errors import RouterLost
from gateway.failures import Failures
from gateway.infer import METHOD as MODEL_INFER
from gateway.registry import ROUTER_SILENCE_SECONDS
from gateway.settings import (
    AdminSettings,
    DrainSettings,
    GatewaySection,
    GatewaySettings,
    GrpcSettings,
    IdentitySettings,
    ReplySettings,
)
from headrace.bus.answers.links import GrpcAnswerLinks, LinkTerms
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.answers.wire import Trust
from headrace.bus.protocols import Link, Outcome, RouterKey, TopicPartition
from headrace.bus.settings import KafkaSettings, PoolSettings, ReplyTrustSettings
from headrace.bus.v1.announcement_pb2 import ROUTER_STATE_LEAVING, Announcement
from tests.parts import missing
from tests.unit.gateway.announcing import GATEWAY, POOL, description, heartbeat, own_heartbeat
from tests.unit.gateway.certifying import Authority, dns, server_files
from tests.unit.reluctant import Reluctant, nothing
from tests.unit.scraping import scraper

A, B = RouterKey("a", 1), RouterKey("b", 2)
LOOPBACK, KEY = "127.0.0.1", "let-me-in"
PATIENCE_SECONDS = 30.0
WAIT_SECONDS = 30.0


def settings(
    folder: Path,
    host: str = LOOPBACK,
    grace_seconds: float = 60.0,
    attempts: int = 3,
    *,
    port: GrpcSettings | None = None,
    trust: ReplyTrustSettings | None = None,
) -> GatewaySettings:
    secret, key = folder / "secret", folder / "key"
    secret.write_text("shared")
    key.write_text(KEY)
    return GatewaySettings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        reply_trust=trust or ReplyTrustSettings(secret_file=secret),
        gateway=GatewaySection(
            id=GATEWAY,
            grpc=port or GrpcSettings(host=host, port=0),
            reply=ReplySettings(host=host, port=0),
            admin=AdminSettings(host=host, port=0),
            identity=IdentitySettings(development_key_file=key),
            drain=DrainSettings(notice_seconds=0, grace_seconds=grace_seconds),
            attempts=attempts,
            owner_wait_seconds=WAIT_SECONDS,
        ),
    )


@asynccontextmanager
async def started(chosen: GatewaySettings) -> AsyncIterator[Gateway]:
    """A gateway as far as it gets before it asks for the broker: its ports are open."""
    gateway, stop = Gateway(chosen), asyncio.Event()
    stop.set()
    async with AsyncExitStack() as owned:
        await gateway.start(owned, stop)
        yield gateway


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with started(settings(tmp_path)) as made:
        yield made


def routers(gateway: Gateway, *keys: RouterKey) -> None:
    """These routers announced themselves at second 0, each with one partition of a model, and are attached."""
    for partition, key in enumerate(keys):
        gateway._registry.apply(*heartbeat(key), 0.0)
        gateway._registry.apply(*description(key, partitions=(partition,)), 0.0)
        gateway.attached(key)


def waiting(gateway: Gateway, router: RouterKey, *, partition: int = 0) -> Call:
    """A call that waits for this router."""
    answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    place = TopicPartition("topic.simple", partition)
    call = Call(bytes([len(gateway._calls)]), "simple", place, router, 0, answer)
    gateway._calls.begin(call, 1)
    return call


def is_lost(call: Call) -> bool:
    return call.answer.done() and isinstance(call.answer.exception(), RouterLost)


def is_tried_again(call: Call, *routers: RouterKey) -> bool:
    """Whether it is with these for the second time; with none it waits for one."""
    return not call.answer.done() and (call.attempt, call.routers) == (2, routers)


def now() -> float:
    return asyncio.get_running_loop().time()


# Its start.


async def test_a_broker_that_goes_away_while_a_gateway_starts_is_awaited_until_it_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, stop = Gateway(settings(tmp_path)), asyncio.Event()
    announcements, usage = Reluctant(refusals=1), Reluctant(refusals=math.inf)
    monkeypatch.setattr(app, "until_own_topics", nothing)
    monkeypatch.setattr(app, "KafkaUsage", lambda *_, **__: usage)
    monkeypatch.setattr(gateway, "_announcements", announcements)

    async with asyncio.timeout(PATIENCE_SECONDS), AsyncExitStack() as owned:
        starting = asyncio.create_task(gateway.start(owned, stop))
        await usage.is_tried_twice.wait()
        assert announcements.tries == 2
        stop.set()
        await starting

    assert (announcements.left, usage.left) == (True, False)


class Told:
    """An announcements topic in which so much was said, and no more."""

    def __init__(self, *said: tuple[str, Announcement]) -> None:
        self._said = said
        self.is_read = asyncio.Event()

    async def read(self) -> AsyncIterator[tuple[str, Announcement | None] | None]:
        for each in (*self._said, None):
            yield each
        self.is_read.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def reading(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, *said: tuple[str, Announcement]
) -> AsyncIterator[None]:
    """A gateway that started has read these announcements, which are all there are."""
    topic = Told(*said)
    monkeypatch.setattr(gateway, "_announcements", topic)
    async with gateway.background, asyncio.timeout(PATIENCE_SECONDS):
        gateway.background.spawn("announcements", gateway._follow())
        await topic.is_read.wait()
        yield


def takes_calls(gateway: Gateway) -> bool:
    """What it says itself, to whoever asks; both ways agree."""
    serving = gateway._health._status("") == HealthCheckResponse.SERVING
    assert serving == gateway._readiness().ready
    return serving


async def until_it_serves(gateway: Gateway) -> None:
    """As who watches its health hears of it."""
    watching = gateway._health.watch(HealthCheckRequest(), cast("Any", None))
    async for told in watching:
        if told.status == HealthCheckResponse.SERVING:
            break
    await watching.aclose()


async def test_a_gateway_takes_calls_once_the_routers_that_announce_themselves_are_attached(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever called it before would be told that no router is alive."""
    assert not takes_calls(gateway)
    async with reading(gateway, monkeypatch, heartbeat(A), description(A)):
        gateway.background.spawn("clock", gateway._tick())
        gateway._registry.apply(*own_heartbeat(1, gateway._incarnation), now())
        gateway._advance(now())
        assert not takes_calls(gateway)
        assert gateway._readiness().text == "waits for routers that announce themselves, to attach"

        gateway.attached(A)
        await until_it_serves(gateway)

        assert takes_calls(gateway)
        assert gateway._registry.models["simple"].ready


async def test_a_gateway_of_a_pool_without_routers_takes_calls_at_once(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(gateway, monkeypatch):
        assert takes_calls(gateway)


async def test_a_gateway_whose_database_answers_last_takes_calls_then(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Access, "ready", False)
    async with reading(gateway, monkeypatch):
        gateway.background.spawn("clock", gateway._tick())
        assert not takes_calls(gateway)

        monkeypatch.setattr(Access, "ready", True)
        await until_it_serves(gateway)


async def test_a_gateway_that_leaves_takes_no_calls_again(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reading(gateway, monkeypatch):
        assert takes_calls(gateway)
        await gateway.drain()

        gateway._advance(now())

        assert not takes_calls(gateway)


# Silence.


async def test_the_calls_of_a_silent_router_go_to_another_and_others_wait_on(gateway: Gateway) -> None:
    """While the log works: this gateway's own heartbeats come back."""
    routers(gateway, A, B)
    call, other = waiting(gateway, A), waiting(gateway, B)
    for beat in range(1, 5):
        gateway._registry.apply(*own_heartbeat(beat, gateway._incarnation), float(beat - 1))
        gateway._registry.apply(*heartbeat(B, beat), float(beat - 1))

    gateway._advance(ROUTER_SILENCE_SECONDS)
    assert not call.answer.done()
    gateway._advance(ROUTER_SILENCE_SECONDS + 0.1)

    assert is_tried_again(call, B)
    assert not other.answer.done()
    assert other.attempt == 1


# Leaving.


async def test_a_gateway_says_which_pool_it_serves(tmp_path: Path) -> None:
    """So that routers of others do not knock."""
    async with started(settings(tmp_path).model_copy(update={"pool": PoolSettings(name="canary")})) as gateway:
        assert gateway._heartbeat(3).gateway.pool == "canary"


async def test_a_router_that_said_goodbye_leaves_its_calls_to_the_next_owner(gateway: Gateway) -> None:
    """However the next owner's announcement and the end of the leaving one's stream fall, for a while."""
    routers(gateway, A, B)
    call = waiting(gateway, A)

    gateway.left(A)
    gateway.detached(A)
    gateway._advance(now() + TAKE_OVER_SECONDS - 0.5)
    gateway._registry.apply(*description(B, partitions=(0, 1)), 1.0)
    gateway._advance(now() + TAKE_OVER_SECONDS + 0.5)

    assert not call.answer.done()
    assert call.routers == (B,)


async def test_what_nobody_took_over_in_time_is_published_again(gateway: Gateway) -> None:
    routers(gateway, A, B)
    call = waiting(gateway, A)

    gateway.left(A)
    gateway.detached(A)
    assert not call.answer.done()
    gateway._advance(now() + TAKE_OVER_SECONDS + 0.5)

    assert is_tried_again(call, B)


@pytest.mark.parametrize("others", [(), (B,)])
async def test_where_no_router_is_left_a_call_waits_for_one_for_a_while(
    gateway: Gateway, others: tuple[RouterKey, ...]
) -> None:
    routers(gateway, A, *others)
    call = waiting(gateway, A)

    gateway.left(A)
    gateway.detached(A)
    for other in others:
        gateway.detached(other)
    gateway._advance(now())

    assert is_tried_again(call)
    gateway._advance(now() + WAIT_SECONDS + 0.5)
    assert is_lost(call)


async def test_where_a_call_may_be_published_once_it_ends_with_its_router(tmp_path: Path) -> None:
    async with started(settings(tmp_path, attempts=1)) as gateway:
        routers(gateway, A, B)
        call, left = waiting(gateway, B, partition=1), waiting(gateway, A)

        gateway.detached(B)
        gateway.left(A)
        gateway.detached(A)

        assert is_lost(call)
        assert is_lost(left)


async def test_a_router_that_dies_while_it_leaves_is_a_lost_one(gateway: Gateway) -> None:
    """It announced that it leaves, and its stream broke without a goodbye: what it ran has no answer."""
    routers(gateway, A, B)
    call = waiting(gateway, A)
    gateway._registry.apply(*heartbeat(A, 2, ROUTER_STATE_LEAVING), 1.0)
    gateway._registry.apply(*description(B, partitions=(0, 1)), 1.0)
    assert call.routers == (A, B)

    gateway.detached(A)

    assert is_tried_again(call, B)


async def test_a_goodbye_counts_once(gateway: Gateway) -> None:
    routers(gateway, A, B)
    gateway.left(A)
    gateway.detached(A)
    gateway.attached(A)
    call = waiting(gateway, A)

    gateway.detached(A)

    assert is_tried_again(call, B)


# Its own port.


async def test_what_a_full_gateway_refuses_before_its_body_is_there_is_counted(gateway: Gateway) -> None:
    gateway._calls._max_calls = 0
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{gateway._port}") as channel:
        sending: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(MODEL_INFER)

        assert await reason(sending(metadata=(("x-api-key", KEY),), timeout=PATIENCE_SECONDS)) == "GATEWAY_FULL"

    assert gateway._infer.tally.reasons["GATEWAY_FULL"] == 1


# The gateway's own leaving.


class Router:
    """A router whose model server answers an administrative call when it is told to."""

    def __init__(self) -> None:
        self.is_asked = asyncio.Event()
        self.answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None: ...

    def link_changed(self, link: Link) -> None: ...

    async def administer(self, _method: str, _request: bytes, _expire_time_unix_micros: int) -> Outcome:
        self.is_asked.set()
        return await self.answer


@asynccontextmanager
async def administered(
    gateway: Gateway, chosen: GatewaySettings
) -> AsyncIterator[tuple["grpc.aio.UnaryUnaryCall[bytes, bytes]", Router, grpc.aio.Channel]]:
    """An administrative call that a router's model server has been asked, and has not answered."""
    router = Router()
    terms = LinkTerms(
        router=A,
        pool=POOL,
        attach_seconds=5,
        stall_seconds=5,
        unacknowledged_bytes=1 << 20,
        max_message_bytes=1 << 20,
    )
    links = GrpcAnswerLinks(
        terms=terms, trust=Trust(chosen.reply_trust), whereabouts=Whereabouts(["127.0.0.0/8"]), events=router
    )
    known = gateway._registry
    known.apply(*heartbeat(A), 0.0)
    async with links, grpc.aio.insecure_channel(f"{LOOPBACK}:{gateway._port}") as channel:
        links.gateway_announced(gateway._reply_address, gateway._incarnation)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await known.wait_for(lambda: any(True for _ in known.live_routers()))
            call = asked(channel, f"/{SERVICE}/TraceSetting")
            await router.is_asked.wait()
            yield call, router, channel


def asked(channel: grpc.aio.Channel, method: str) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
    made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return made(b"", metadata=(("x-api-key", KEY),), timeout=PATIENCE_SECONDS)


async def reason(call: "grpc.aio.UnaryUnaryCall[bytes, bytes] | grpc.aio.StreamUnaryCall[bytes, bytes]") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    info = ErrorInfo()
    [details] = [value for key, value in caught.value.trailing_metadata() if key == "grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert Status.FromString(details).details[0].Unpack(info)
    return info.reason


async def test_a_gateway_that_leaves_lets_administration_end(gateway: Gateway, tmp_path: Path) -> None:
    async with administered(gateway, settings(tmp_path)) as (call, router, channel):
        draining = asyncio.create_task(gateway.drain())
        assert await reason(asked(channel, MODEL_INFER)) == "SHUTTING_DOWN"

        assert not draining.done()
        router.answer.set_result(b"done")

        await draining
        assert await call == b"done"


async def test_a_gateway_that_leaves_keeps_no_refusal_back(gateway: Gateway) -> None:
    gateway.access.slowed._failures = Failures(burst=1, delay_seconds=3600)
    async with grpc.aio.insecure_channel(f"{LOOPBACK}:{gateway._port}") as channel:
        made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/ServerLive")
        late = [made(b"", timeout=PATIENCE_SECONDS) for _ in range(3)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while gateway.access.slowed.waiting < len(late) - 1:
                await asked(channel, f"/{SERVICE}/ServerLive")

        await gateway.drain()

        assert [await reason(call) for call in late] == ["KEY_MISSING"] * 3
        assert gateway.access.slowed.waiting == 0


async def test_what_comes_over_a_routers_stream_is_a_sign_of_its_life(gateway: Gateway, tmp_path: Path) -> None:
    """It attached a moment ago, and its heartbeats are old."""
    async with administered(gateway, settings(tmp_path)):
        known, moment = gateway._registry, now()

        for beat in range(5):
            known.apply(*own_heartbeat(beat, gateway._incarnation), moment - 4 + beat)
        gateway._advance(moment)
        assert [router.key for router in known.live_routers()] == [A]

        for second in range(1, 4):
            known.apply(*own_heartbeat(4 + second, gateway._incarnation), moment + second)
        gateway._advance(moment + ROUTER_SILENCE_SECONDS + 0.1)
        assert list(known.live_routers()) == []


async def test_administration_holds_up_no_gateway_for_longer_than_its_grace(tmp_path: Path) -> None:
    chosen = settings(tmp_path, grace_seconds=0)
    async with started(chosen) as gateway, administered(gateway, chosen) as (call, _, _):
        await gateway.drain()

        assert not call.done()


# Where it listens.


async def test_a_gateway_listens_on_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        missing("IPv6", "give the loopback interface the address ::1")

    async with started(settings(tmp_path, host="::1")) as gateway:
        assert gateway._reply_address.startswith("[::1]:")


# Certificates that are renewed.


async def test_renewed_certificates_of_both_ports_are_taken_while_the_gateway_runs(tmp_path: Path) -> None:
    """Also while it waits for the broker."""
    before, after = Authority(), Authority()
    ca, own, key = server_files(tmp_path / "grpc", before)
    port = GrpcSettings(host=LOOPBACK, port=0, tls_certificate_file=own, tls_key_file=key, tls_client_ca_file=ca)
    ca, own, key = server_files(tmp_path / "reply", before)
    trust = ReplyTrustSettings(tls_ca_file=ca, tls_certificate_file=own, tls_key_file=key)

    async def taken(gateway: Gateway, authority: Authority) -> list[bool]:
        """Whether callers and routers with a certificate of that authority, who believe it, come in."""
        shown = authority.issue(dns("whoever.example"))
        credentials = grpc.ssl_channel_credentials(authority.pem, shown.key, shown.chain)
        told = []
        for address in (f"{LOOPBACK}:{gateway._port}", gateway._reply_address):
            async with grpc.aio.secure_channel(address, credentials) as channel:
                try:
                    await asked(channel, "/nowhere")
                except grpc.aio.AioRpcError as error:
                    told.append(error.code() is not grpc.StatusCode.UNAVAILABLE)
        return told

    async with started(settings(tmp_path, port=port, trust=trust)) as gateway:
        assert await taken(gateway, before) == [True, True]

        for name in ("grpc", "reply"):
            server_files(tmp_path / name, after)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await taken(gateway, after) != [True, True]:
                pass  # each question takes its time: there is nothing to spin on

        assert await taken(gateway, before) == [False, False]


async def test_until_when_certificates_hold_is_told_of_every_port_that_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = scraper(monkeypatch, app)
    name = "headrace_gateway_certificate_expiration_timestamp_seconds"
    ca, own, key = server_files(tmp_path / "tls", Authority())
    port = GrpcSettings(host=LOOPBACK, port=0, tls_certificate_file=own, tls_key_file=key)
    trust = ReplyTrustSettings(tls_ca_file=ca, tls_certificate_file=own, tls_key_file=key)
    ends = x509.load_pem_x509_certificate(own.read_bytes()).not_valid_after_utc.timestamp()

    async with started(settings(tmp_path)):
        assert told(name) == {}
    async with started(settings(tmp_path, port=port)):
        assert told(name) == {"grpc": ends}
    async with started(settings(tmp_path, port=port, trust=trust)):
        assert told(name) == {"grpc": ends, "reply": ends}


# What ends with one of its parts.


async def broken() -> None:
    """A part that fails."""
    raise LookupError("a part is broken")


def background_fails(gateway: Gateway) -> None:
    gateway.background.spawn("part", broken())


def what_goes_on_from_the_start_fails(gateway: Gateway) -> None:
    gateway.watching.spawn("part", broken())


def access_fails(gateway: Gateway) -> None:
    gateway.access._background.spawn("part", broken())


@pytest.mark.parametrize("fail", [background_fails, what_goes_on_from_the_start_fails, access_fails])
async def test_a_gateway_ends_with_any_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Gateway], None]
) -> None:
    """One that goes on without would serve with old certificates, keys or routers, and nobody would know."""

    class Running(Gateway):
        """A gateway that has found its broker."""

        async def start(self, owned: AsyncExitStack, stop: asyncio.Event) -> None:
            del stop
            await owned.enter_async_context(self.watching)
            await owned.enter_async_context(self.access)
            await owned.enter_async_context(self.background)
            fail(self)

    monkeypatch.setattr("headrace.runtime.logs.configure", lambda *_, **__: None)
    monkeypatch.setattr(app, "Gateway", Running)

    serving = asyncio.create_task(app.serve(settings(tmp_path), asyncio.Event()))
    ended, _ = await asyncio.wait([serving], timeout=PATIENCE_SECONDS)

    assert [repr(each.exception()) for each in ended] == ["LookupError('a part is broken')"]

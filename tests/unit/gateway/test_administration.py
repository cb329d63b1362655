"""Administration: every router is asked, and their answers become one."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from tritonclient.grpc import service_pb2 as oip

from gateway.administration import SERVICE, Administration
from gateway.audit import Audit
from gateway.errors import (
    AdminPartialFailure,
    AdminTimeout,
    KeyMissing,
    MethodForbidden,
    ModelUnknown,
    NoLiveRouter,
    Refusal,
    RequestMalformed,
    RequestTooLarge,
    RoleRequired,
    RouterLost,
    TritonLost,
)
from gateway.identity import ADMIN, Caller
from gateway.registry import Registry
from gateway.status import Context, code_of
from headrace.bus.announcements import repository_key
from headrace.bus.memory.announcements import MemoryAnnouncements
from headrace.bus.memory.answers import MemoryAnswerHub, MemoryAnswerLinks, MemoryLink, MemoryNetwork
from headrace.bus.protocols import Failure, Link, Outcome, RouterKey
from headrace.bus.v1.announcement_pb2 import ROUTER_STATE_LEAVING, ROUTER_STATE_SERVER_AWAY, Announcement
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from tests.unit.gateway.admitting import admitting
from tests.unit.gateway.announcing import (
    INCARNATION,
    POOL,
    description,
    heartbeat,
    own_heartbeat,
    registry,
    version,
)

A, B = RouterKey("a", 1), RouterKey("b", 2)
REPLY_ADDRESS = "127.0.0.1:7777"
PATIENCE_SECONDS = 30.0
LIMIT = 1 << 20
LOAD = oip.RepositoryModelLoadRequest(model_name="new").SerializeToString()
UNLOAD = oip.RepositoryModelUnloadRequest(model_name="simple").SerializeToString()
BAD = ModelServerStatus(code=StatusCode.NOT_FOUND.value[0], message="failed to load 'new'")


def who(context: Context) -> Caller:
    """Everybody who gives a name is somebody; who calls himself admin is one."""
    name = dict(context.invocation_metadata() or ()).get("x-api-key")
    if name is None:
        raise KeyMissing
    return Caller("ops", "key-1", frozenset({ADMIN}) if name == ADMIN else frozenset())


class Router:
    """A router whose model server answers as the test says."""

    def __init__(self) -> None:
        self.outcome: Outcome | Awaitable[Outcome] = b""
        self.asked: asyncio.Queue[tuple[str, bytes, int]] = asyncio.Queue()

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None: ...

    def link_changed(self, link: Link) -> None: ...

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        self.asked.put_nowait((method, request, expire_time_unix_micros))
        return await self.outcome if isinstance(self.outcome, Awaitable) else self.outcome


class Attachments:
    """Tells the registry who is attached, as the gateway does."""

    def __init__(self, known: Registry) -> None:
        self.attached = known.attached
        self.detached = known.detached

    def left(self, router: RouterKey) -> None: ...

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None: ...


@dataclass(frozen=True)
class Rig:
    """A gateway's administration on a port of its own, and two routers attached to it."""

    known: Registry
    announcements: MemoryAnnouncements
    administration: Administration
    a: Router
    b: Router
    links: dict[RouterKey, MemoryLink]
    channel: grpc.aio.Channel

    def call(self, method: str, request: bytes = b"", *, key: str = ADMIN) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
        """An operator's call."""
        made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(f"/{SERVICE}/{method}")
        return made(request, metadata=(("x-api-key", key),) if key else (), timeout=PATIENCE_SECONDS)

    async def remembered(self, model: str, *, loaded: bool) -> None:
        """Return once the change was announced."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for said in self.announcements.read():
                if said is not None and said[0] == repository_key(POOL, model):
                    assert said[1] is not None
                    change = said[1].repository_change
                    assert (change.model, change.loaded) == (model, loaded)
                    return


@asynccontextmanager
async def started(*routers: RouterKey, seconds: float = 5.0, policy: str | None = None) -> AsyncIterator[Rig]:
    known = registry(heartbeat(A), description(A), heartbeat(B), description(B, partitions=(1,)))
    network, announcements = MemoryNetwork(), MemoryAnnouncements()
    each, links = {A: Router(), B: Router()}, {}
    async with AsyncExitStack() as owned:
        hub = await owned.enter_async_context(
            MemoryAnswerHub(
                network, address=REPLY_ADDRESS, incarnation=INCARNATION, pool=POOL, events=Attachments(known)
            )
        )
        for key in routers:
            ends = MemoryAnswerLinks(network, router=key, pool=POOL, events=each[key])
            await owned.enter_async_context(ends)
            link = ends.link(REPLY_ADDRESS, INCARNATION)
            assert link is not None
            links[key] = link
        await known.wait_for(lambda: len(list(known.live_routers())) == len(routers) or not routers)
        administration = Administration(
            pool=POOL,
            registry=known,
            hub=hub,
            announcements=announcements,
            who=who,
            admission=admitting(policy),
            audit=Audit(lambda: 0.0),
            seconds=lambda _: seconds,
            max_message_bytes=LIMIT,
        )
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, administration.handlers()),))
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        owned.push_async_callback(server.stop, None)
        channel = await owned.enter_async_context(grpc.aio.insecure_channel(address))
        yield Rig(known, announcements, administration, each[A], each[B], links, channel)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with started(A, B) as made:
        yield made


async def ended(call: "grpc.aio.UnaryUnaryCall[bytes, bytes]") -> tuple[StatusCode, str | None]:
    """Code and text of a call that has to fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def as_told(refusal: Refusal) -> tuple[StatusCode, str]:
    return code_of(refusal), refusal.message


def never() -> "asyncio.Future[Outcome]":
    return asyncio.get_running_loop().create_future()


async def test_all_routers_are_asked_the_same_and_one_answer_comes_back(rig: Rig) -> None:
    request = oip.LogSettingsRequest()
    request.settings["log_info"].bool_param = False
    rig.a.outcome = rig.b.outcome = b"\x00 as it came"
    before = time.time_ns() // 1000

    assert await rig.call("LogSettings", request.SerializeToString()) == b"\x00 as it came"

    for router in (rig.a, rig.b):
        method, asked, expire = router.asked.get_nowait()
        assert (method, asked) == (f"/{SERVICE}/LogSettings", request.SerializeToString())
        assert before + 5e6 <= expire <= time.time_ns() // 1000 + 5e6


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        (BAD, b"", BAD.message),
        (b"", Failure.TRITON_LOST, "TRITON_LOST"),
    ],
)
async def test_a_failure_of_some_is_told(rig: Rig, a: Outcome, b: Outcome, first: str) -> None:
    rig.a.outcome, rig.b.outcome = a, b

    told = await ended(rig.call("RepositoryModelLoad", LOAD))

    assert told == as_told(AdminPartialFailure(failed="1", asked="2", first_failure=first))
    assert rig.announcements.attempts == 0


async def test_what_all_model_servers_refuse_alike_passes_unchanged(rig: Rig) -> None:
    rig.a.outcome = rig.b.outcome = BAD

    assert await ended(rig.call("RepositoryModelLoad", LOAD)) == (StatusCode.NOT_FOUND, BAD.message)
    assert rig.announcements.attempts == 0


async def test_all_model_servers_lost_is_told_as_such(rig: Rig) -> None:
    rig.a.outcome = rig.b.outcome = Failure.TRITON_LOST

    assert await ended(rig.call("TraceSetting")) == as_told(TritonLost())


async def test_the_unforeseen_has_an_id_and_no_internals(rig: Rig) -> None:
    rig.a.outcome = rig.b.outcome = Failure.INTERNAL

    code, text = await ended(rig.call("TraceSetting"))

    assert code is StatusCode.INTERNAL
    assert "call id" in str(text)


async def test_routers_that_are_lost_while_they_are_asked_end_the_call(rig: Rig) -> None:
    rig.a.outcome = rig.b.outcome = never()
    call = rig.call("TraceSetting")
    await rig.a.asked.get()
    await rig.b.asked.get()

    for link in rig.links.values():
        link.broken()

    assert await ended(call) == as_told(RouterLost())


async def test_one_lost_router_is_a_partial_failure(rig: Rig) -> None:
    rig.a.outcome = never()
    call = rig.call("TraceSetting")
    await rig.a.asked.get()

    rig.links[A].broken()

    expected = AdminPartialFailure(failed="1", asked="2", first_failure="router 'a' is gone")
    assert await ended(call) == as_told(expected)


FILE_OVERRIDE = oip.RepositoryModelLoadRequest(model_name="new")
FILE_OVERRIDE.parameters["file:1/model.py"].bytes_param = b"content"


@pytest.mark.parametrize(
    ("method", "request_bytes"),
    [("TraceSetting", b""), ("LogSettings", b""), ("RepositoryModelLoad", FILE_OVERRIDE.SerializeToString())],
)
async def test_a_router_without_its_model_server_has_failed(rig: Rig, method: str, request_bytes: bytes) -> None:
    """Nobody makes up for it when that model server is back."""
    rig.known.apply(*heartbeat(B, 2, ROUTER_STATE_SERVER_AWAY), 1.0)

    told = await ended(rig.call(method, request_bytes))

    expected = AdminPartialFailure(failed="1", asked="2", first_failure="router 'b' has no model server now")
    assert told == as_told(expected)
    assert not rig.a.asked.empty()
    assert rig.b.asked.empty()


async def test_a_load_by_name_reaches_a_model_server_that_is_away_when_it_is_back(rig: Rig) -> None:
    """Its router brings it to what the pool was last asked for."""
    rig.known.apply(*heartbeat(B, 2, ROUTER_STATE_SERVER_AWAY), 1.0)
    rig.known.apply(*description(A, model="new"), 1.0)

    assert await rig.call("RepositoryModelLoad", LOAD) == b""

    await rig.remembered("new", loaded=True)


@pytest.mark.parametrize(("method", "request_bytes"), [("TraceSetting", b""), ("RepositoryModelLoad", LOAD)])
async def test_a_silent_router_has_failed(rig: Rig, method: str, request_bytes: bytes) -> None:
    """Its model server runs on as it is, and nothing brings it to what was asked."""
    for beat in range(2, 7):
        rig.known.apply(*own_heartbeat(beat), float(beat))
        rig.known.apply(*heartbeat(A, beat), float(beat))
    assert rig.known.advance(6.0) == [B]

    told = await ended(rig.call(method, request_bytes))

    assert told == as_told(AdminPartialFailure(failed="1", asked="2", first_failure="router 'b' is silent"))


@pytest.mark.parametrize("gone", [heartbeat(B, 2, ROUTER_STATE_LEAVING), (heartbeat(B)[0], None)])
async def test_a_router_that_leaves_is_no_part_of_the_pool_any_more(
    rig: Rig, gone: tuple[str, Announcement | None]
) -> None:
    """Its model server goes with it."""
    rig.known.apply(*gone, 1.0)

    assert await rig.call("TraceSetting") == b""


async def test_without_a_router_nobody_is_asked() -> None:
    async with started() as rig:
        code, text = await ended(rig.call("TraceSetting"))

        assert code is code_of(NoLiveRouter)
        assert "{" not in str(text)


async def test_who_does_not_answer_in_time_is_counted() -> None:
    async with started(A, B, seconds=0.05) as rig:
        rig.a.outcome = never()

        assert await ended(rig.call("TraceSetting")) == as_told(AdminTimeout(missing="1", asked="2"))


async def test_a_router_that_runs_out_of_time_first_says_the_same(rig: Rig) -> None:
    """Clocks of two hosts differ, so the router may be the first to see the deadline pass."""
    rig.a.outcome = Failure.EXPIRED

    assert await ended(rig.call("TraceSetting")) == as_told(AdminTimeout(missing="1", asked="2"))


async def test_a_load_that_no_router_tells_of_is_not_blamed_on_model_servers() -> None:
    async with started(A, B, seconds=0.05) as rig:
        code, text = await ended(rig.call("RepositoryModelLoad", LOAD))

        assert code is StatusCode.DEADLINE_EXCEEDED
        assert "0 of" not in str(text)
        assert "Every model server did as asked" in str(text)


async def test_a_load_returns_once_a_router_takes_calls_and_is_remembered(rig: Rig) -> None:
    call = rig.call("RepositoryModelLoad", LOAD)
    await rig.remembered("new", loaded=True)
    rig.known.apply(*description(A, model="new", partitions=()), 1.0)
    await rig.call("LogSettings")
    assert not call.done()

    rig.known.apply(*description(A, model="new"), 1.0)

    assert await call == b""


async def test_an_unload_returns_once_no_router_has_it_and_is_remembered(rig: Rig) -> None:
    call = rig.call("RepositoryModelUnload", UNLOAD)
    await rig.remembered("simple", loaded=False)
    gone = (version(state="UNAVAILABLE", reason="unloaded"),)
    rig.known.apply(*description(A, versions=gone), 1.0)
    await rig.call("LogSettings")
    assert not call.done()

    rig.known.apply(*description(B, versions=gone), 1.0)

    assert await call == b""


async def test_a_log_that_is_away_does_not_fail_what_was_done(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.announcements.available = False
    rig.known.apply(*description(A, model="new"), 1.0)

    assert await rig.call("RepositoryModelLoad", LOAD) == b""
    assert "repository_change_lost" in [getattr(line, "event", "") for line in caplog.records]


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"])
async def test_only_an_admin_may(rig: Rig, method: str) -> None:
    """Not even a malformed request is looked at before."""
    assert await ended(rig.call(method, b"\xff", key="somebody")) == as_told(RoleRequired(method=method, role=ADMIN))
    assert (await ended(rig.call(method, key="")))[0] is StatusCode.UNAUTHENTICATED
    assert await ended(rig.call(method, b"\xff")) == as_told(RequestMalformed())
    assert rig.a.asked.empty()


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"])
async def test_a_request_that_no_router_can_take_is_refused_before_any_is_asked(rig: Rig, method: str) -> None:
    """On the way it would end the streams that carry everybody's answers."""
    told = await ended(rig.call(method, bytes(LIMIT + 1)))

    assert told == as_told(RequestTooLarge(limit_bytes=str(LIMIT)))
    assert rig.a.asked.empty()


async def test_the_largest_request_that_may_be_is_taken(rig: Rig) -> None:
    request = oip.RepositoryModelUnloadRequest(repository_name="x" * (LIMIT - 4)).SerializeToString()
    assert len(request) == LIMIT

    assert await rig.call("RepositoryModelUnload", request) == b""


async def test_it_is_drained_once_the_last_call_ended_however_it_ended(rig: Rig) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await rig.administration.drained()
        rig.a.outcome = never()
        call = rig.call("TraceSetting")
        await rig.a.asked.get()
        assert rig.administration.under_way == 1
        draining = asyncio.create_task(rig.administration.drained())
        await asyncio.wait({draining}, timeout=0)
        assert not draining.done()

        call.cancel()

        await draining
    assert rig.administration.under_way == 0


# What a tenant may administer.

NARROW = "tenants: {ops: {models: [simple], allow: [infer, metadata, admin]}}"


@pytest.mark.parametrize(
    ("method", "request_", "refusal"),
    [
        ("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="others"), ModelUnknown(model="others")),
        ("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="others"), ModelUnknown(model="others")),
        ("TraceSetting", oip.TraceSettingRequest(model_name="others"), ModelUnknown(model="others")),
        ("TraceSetting", oip.TraceSettingRequest(), MethodForbidden(method=f"/{SERVICE}/TraceSetting")),
        ("LogSettings", oip.LogSettingsRequest(), MethodForbidden(method=f"/{SERVICE}/LogSettings")),
    ],
    ids=["unload", "load", "trace", "trace of all", "log"],
)
async def test_an_admin_leaves_alone_what_its_tenant_does_not_see(
    method: str,
    request_: Any,  # one of tritonclient's messages, which are untyped
    refusal: Refusal,
) -> None:
    async with started(A, policy=NARROW) as rig:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call(method, request_.SerializeToString())

        assert (caught.value.code(), caught.value.details()) == (code_of(refusal), refusal.message)
        assert rig.a.asked.empty()


async def test_an_admin_administers_what_its_tenant_sees(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.audit")
    async with started(A, policy=NARROW) as rig:
        request = oip.TraceSettingRequest(model_name="simple").SerializeToString()
        assert await rig.call("TraceSetting", request) == b""

        with pytest.raises(grpc.aio.AioRpcError):
            await rig.call("LogSettings")

    told = [vars(record) for record in caplog.records if vars(record).get("event") == "administered"]
    assert [(line["method"].rpartition("/")[2], line.get("model"), line["verdict"]) for line in told] == [
        ("TraceSetting", "simple", "OK"),
    ]
    refusals = [vars(record) for record in caplog.records if vars(record).get("event") == "call_refused"]
    assert [(line["method"].rpartition("/")[2], line["reason"]) for line in refusals] == [
        ("LogSettings", "METHOD_FORBIDDEN")
    ]


async def test_an_act_whose_caller_left_is_told_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.audit")
    async with started(A) as rig:
        rig.a.outcome = never()
        call = rig.call("LogSettings")
        await rig.a.asked.get()
        call.cancel()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await rig.administration.drained()

    verdicts = [vars(record)["verdict"] for record in caplog.records if vars(record).get("event") == "administered"]
    assert verdicts == ["CANCELLED"]


LIMITED = """\
tenants:
  ops:
    models: ["*"]
    allow: [admin]
    limits: {concurrency: 1, calls_per_second: 0.001, burst: 2}
"""


async def test_administration_counts_at_the_limits_of_its_tenant(caplog: pytest.LogCaptureFixture) -> None:
    """And what a limit refuses is no act."""
    caplog.set_level(logging.INFO, "gateway.audit")
    async with started(A, policy=LIMITED) as rig:
        rig.a.outcome = answer = never()
        running = rig.call("LogSettings")
        await rig.a.asked.get()
        crowded = await ended(rig.call("LogSettings"))
        answer.set_result(b"done")
        assert await running == b"done"
        left = {name: value for name, value in await running.trailing_metadata() if name.startswith("x-ratelimit")}

        rig.a.outcome = b"done"
        assert await rig.call("LogSettings") == b"done"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.call("LogSettings")

    assert crowded[0] is StatusCode.RESOURCE_EXHAUSTED
    assert str(crowded[1]).startswith("The limit of 1 calls at a time for tenant ops")
    assert (left["x-ratelimit-limit"], left["x-ratelimit-remaining"]) == ("2", "1")
    assert str(caught.value.details()).startswith("The limit of 0.001 calls a second for tenant ops")
    assert dict(caught.value.trailing_metadata())["x-ratelimit-remaining"] == "0"
    acts = [vars(record)["verdict"] for record in caplog.records if vars(record).get("event") == "administered"]
    reasons = [vars(record)["reason"] for record in caplog.records if vars(record).get("event") == "call_refused"]
    assert acts == ["OK", "OK"]
    assert reasons == ["CONCURRENCY_LIMITED", "RATE_LIMITED"]

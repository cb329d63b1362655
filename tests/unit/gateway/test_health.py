"""Who hears of which health, and when."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway import health as health_module
from gateway.audit import Audit
from gateway.errors import GatewayFull, KeyInvalid, KeyMissing, ServiceUnknown, ShuttingDown
from gateway.failures import Failures, Slowed
from gateway.health import Health
from gateway.identity import Caller, Metadata
from gateway.policy.document import read_policy
from gateway.registry import Registry
from gateway.status import Context
from headrace.bus.protocols import RouterKey
from tests.unit.gateway.admitting import admitting
from tests.unit.gateway.announcing import description, heartbeat, registry

A = RouterKey("a", 1)
SERVICE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    HealthCheckResponse.SERVING,
    HealthCheckResponse.NOT_SERVING,
    HealthCheckResponse.SERVICE_UNKNOWN,
)


class FakeContext:
    """As much of gRPC as health looks at."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Metadata:
        """What the caller sent."""
        return self._metadata

    def peer(self) -> str:
        """Where it sent it from."""
        return "ipv4:127.0.0.1:1"


IDENTIFIED = cast("Context", FakeContext([("x-api-key", "k")]))
ANONYMOUS = cast("Context", FakeContext([]))


def who(context: Context) -> Caller:
    metadata = context.invocation_metadata() or ()
    if ("x-api-key", "k") in metadata:
        return Caller("t", "k")
    if metadata:
        raise KeyInvalid
    raise KeyMissing


@pytest.fixture
def known() -> Registry:
    return registry(heartbeat(A), description(A))


@pytest.fixture
def health(known: Registry) -> Health:
    made = Health(known, who, admitting(), Audit(lambda: 0.0), Slowed(Failures()))
    made.serve()
    return made


async def status(health: Health, name: str, context: Context = IDENTIFIED) -> int:
    return (await health.check(HealthCheckRequest(service=name), context)).status


def watch(health: Health, name: str = "", context: Context = IDENTIFIED) -> AsyncGenerator[HealthCheckResponse, None]:
    return health.watch(HealthCheckRequest(service=name), context)


async def told(watching: AsyncGenerator[HealthCheckResponse, None]) -> int:
    async with asyncio.timeout(30):
        return (await anext(watching)).status


async def quiet(watching: AsyncGenerator[HealthCheckResponse, None]) -> "asyncio.Task[HealthCheckResponse]":
    """The next word, which has not been said yet although everything that was ready to run has run."""

    async def following() -> HealthCheckResponse:
        return await anext(watching)

    task = asyncio.ensure_future(following())
    for _ in range(3):
        turn: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(turn.set_result, None)
        await turn
    assert not task.done()
    return task


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_the_gateway_serves_between_serve_and_drain(known: Registry, name: str) -> None:
    health = Health(known, who, admitting(), Audit(lambda: 0.0), Slowed(Failures()))

    assert await status(health, name, ANONYMOUS) == NOT_SERVING
    health.serve()
    assert await status(health, name, ANONYMOUS) == SERVING
    health.drain()
    assert await status(health, name, ANONYMOUS) == NOT_SERVING


async def test_a_model_serves_while_a_call_of_it_would_run(health: Health, known: Registry) -> None:
    assert await status(health, "simple") == NOT_SERVING
    known.attached(A)
    assert await status(health, "simple") == SERVING
    health.drain()
    assert await status(health, "simple") == NOT_SERVING


@pytest.mark.parametrize(("name", "context"), [("nothing", IDENTIFIED), ("simple", ANONYMOUS), ("nothing", ANONYMOUS)])
async def test_strangers_learn_nothing_of_models(health: Health, name: str, context: Context) -> None:
    with pytest.raises(ServiceUnknown):
        await status(health, name, context)
    assert await told(watch(health, name, context)) == SERVICE_UNKNOWN


GUESSING = cast("Context", FakeContext([("x-api-key", "guess")]))


@pytest.mark.parametrize("ask", ["check", "watch"])
async def test_who_guesses_at_keys_is_told_nothing_and_late(known: Registry, ask: str) -> None:
    """Health would tell a good key from a bad one; who has none, such as a balancer, is never slowed."""
    slowed = Slowed(Failures(burst=2, delay_seconds=3600))
    health = Health(known, who, admitting(), Audit(lambda: 0.0), slowed)
    for context in [ANONYMOUS] * 5 + [GUESSING] * 2:
        with pytest.raises(ServiceUnknown):
            await status(health, "simple", context)

    async def asked(context: Context) -> int:
        if ask == "watch":
            return await told(watch(health, "simple", context))
        try:
            return await status(health, "simple", context)
        except ServiceUnknown:
            return SERVICE_UNKNOWN

    late = asyncio.create_task(asked(GUESSING))
    assert await asked(IDENTIFIED) == NOT_SERVING
    assert await asked(ANONYMOUS) == SERVICE_UNKNOWN
    assert await status(health, "", GUESSING) == NOT_SERVING
    await asyncio.wait({late}, timeout=0)
    assert slowed.waiting == 1
    assert not late.done()
    slowed.release()
    assert await late == SERVICE_UNKNOWN


async def test_a_stranger_who_watches_a_model_hears_nothing_of_it(health: Health, known: Registry) -> None:
    watching = watch(health, "simple", ANONYMOUS)
    assert await told(watching) == SERVICE_UNKNOWN

    following = await quiet(watching)
    known.attached(A)
    health.drain()
    for _ in range(3):
        await asyncio.wait({following}, timeout=0)

    assert not following.done()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_watcher_hears_every_change_and_no_repetition(health: Health, known: Registry) -> None:
    watching = watch(health, "simple")
    assert await told(watching) == NOT_SERVING

    following = await quiet(watching)
    known.apply(*description(A, window=9), 1.0)
    known.attached(A)
    assert (await following).status == SERVING
    following = await quiet(watching)
    known.detached(A)
    assert (await following).status == NOT_SERVING


async def test_a_model_that_appears_is_told_to_who_waited_for_it(health: Health, known: Registry) -> None:
    watching = watch(health, "new")
    assert await told(watching) == SERVICE_UNKNOWN

    following = await quiet(watching)
    known.attached(A)
    known.apply(*description(A, model="new"), 1.0)

    assert (await following).status == SERVING


async def test_a_slow_watcher_hears_the_newest_only(health: Health, known: Registry) -> None:
    watching = watch(health, "simple")
    assert await told(watching) == NOT_SERVING

    known.attached(A)
    for _ in range(1000):
        known.detached(A)
        known.attached(A)

    assert await told(watching) == SERVING
    (await quiet(watching)).cancel()


async def test_watchers_do_not_end_with_one_another(health: Health) -> None:
    """The servicer that comes with grpcio fails this."""
    watchers = [watch(health) for _ in range(5)]
    assert [await told(watching) for watching in watchers] == [SERVING] * 5
    waiting = [await quiet(watching) for watching in watchers]
    for index in (0, 2):
        waiting[index].cancel()
    staying = [waiting[index] for index in (1, 3, 4)]
    await asyncio.wait(waiting[:1] + waiting[2:3])

    health.drain()
    async with asyncio.timeout(30):
        words = await asyncio.gather(*staying)

    assert [word.status for word in words] == [NOT_SERVING] * 3
    assert health.watchers == 3


async def test_who_leaves_is_forgotten(health: Health) -> None:
    watching = watch(health, "nothing")
    await told(watching)
    assert health.watchers == 1

    (await quiet(watching)).cancel()
    await asyncio.wait({asyncio.ensure_future(watching.aclose())}, timeout=30)

    assert health.watchers == 0
    assert not health._watchers


async def test_there_is_room_for_so_many_watchers_only(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MAX_WATCHERS", 1)
    first = watch(health)
    await told(first)

    with pytest.raises(GatewayFull):
        await told(watch(health))
    await first.aclose()

    assert await told(watch(health)) == SERVING


async def test_closing_ends_watches_with_a_reason_after_the_last_word(health: Health) -> None:
    watching = watch(health)
    assert await told(watching) == SERVING
    health.drain()
    assert await told(watching) == NOT_SERVING

    following = await quiet(watching)
    health.close()

    with pytest.raises(ShuttingDown):
        await following
    assert health.watchers == 0


async def test_a_watch_follows_the_policy_and_the_keys(known: Registry) -> None:
    """What a caller may not see any more becomes unknown, also in a watch that stands."""
    known.attached(A)
    admission = admitting("tenants: {t: {models: [simple]}}")
    health = Health(known, who, admission, Audit(lambda: 0.0), Slowed(Failures()))
    health.serve()
    watching = watch(health, "simple")
    assert await told(watching) == SERVING

    following = await quiet(watching)  # it waits to be told
    admission.change(read_policy("tenants: {t: {models: [other]}}"))
    async with asyncio.timeout(30):
        assert (await following).status == SERVICE_UNKNOWN
    assert await refused_check(health)

    following = await quiet(watching)
    admission.change(read_policy("tenants: {t: {models: ['*']}}"))
    async with asyncio.timeout(30):
        assert (await following).status == SERVING
    await watching.aclose()


async def refused_check(health: Health) -> bool:
    with pytest.raises(ServiceUnknown):
        await status(health, "simple")
    return True

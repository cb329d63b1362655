"""The router as a whole, without a log: what it counts of its calls, when it is ready, and how it ends."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509

from headrace.bus.announcements import model_key
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.memory.announcements import MemoryAnnouncements
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.protocols import LogUnavailableError, SeenEnd, TopicPartition
from headrace.bus.settings import KafkaSettings, PoolSettings, ReplyTrustSettings, TopicSettings
from headrace.bus.topics import request_topic
from headrace.bus.usage import read_reports
from headrace.bus.v1.announcement_pb2 import Announcement, ModelDescription, ModelVersion
from headrace.runtime.admin_http import Readiness
from router import app
from router.app import Router
from router.departed import Departed
from router.inventory import LoadedModel
from router.settings import AdminSettings, RouterSection, RouterSettings, TritonSettings
from tests.unit.gateway.certifying import Authority, server_files
from tests.unit.reluctant import Reluctant, nothing
from tests.unit.router.rig import settle
from tests.unit.scraping import scraper

SECONDS = 30.0


@pytest.fixture
async def router(tmp_path: Path) -> Router:
    return a_router(settings(tmp_path))


def settings(
    folder: Path,
    *,
    ready_without_models: bool = False,
    away_seconds: float = 20.0,
    retention_seconds: int = 3600,
    trust: ReplyTrustSettings | None = None,
) -> RouterSettings:
    secret = folder / "secret"
    secret.write_text("shared")
    return RouterSettings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        pool=PoolSettings(name="canary"),
        topics=TopicSettings(retention_seconds=retention_seconds),
        reply_trust=trust or ReplyTrustSettings(secret_file=secret),
        router=RouterSection(
            id="r",
            triton=TritonSettings(address="127.0.0.1:1", away_seconds=away_seconds),
            admin=AdminSettings(host="127.0.0.1", port=0),
            ready_without_models=ready_without_models,
        ),
    )


def a_router(chosen: RouterSettings) -> Router:
    return Router(chosen, Whereabouts(["127.0.0.1"]))


@pytest.mark.parametrize("model", ["simple", "größe-1.0/β"])
async def test_model_time_is_counted_by_tenant_and_model(router: Router, model: str) -> None:
    log = MemoryUsage()
    topic = request_topic("canary", "interactive", model)
    for seconds in (1.5, 0.25, 0.0000004):
        router._count("acme", topic, seconds)

    await router._usage.flush(log)

    [report], _ = read_reports(log.records)
    [entry] = report.entries
    assert report.source == f"router/canary/r/{router.key.incarnation:016x}"
    assert (entry.tenant, entry.key_id, entry.model, entry.calls) == ("acme", "", model, 0)
    assert entry.model_micros == 1_750_000


# Its start.


async def test_a_broker_that_goes_away_while_a_router_starts_is_awaited_until_it_is_told_to_stop(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = asyncio.Event()
    announcements, usage = Reluctant(refusals=1), Reluctant(refusals=math.inf)
    monkeypatch.setattr(app, "until_own_topics", nothing)
    monkeypatch.setattr(app, "KafkaUsage", lambda *_, **__: usage)
    monkeypatch.setattr(router, "_announcements", announcements)

    async with asyncio.timeout(SECONDS), AsyncExitStack() as owned:
        starting = asyncio.create_task(router.start(owned, stop))
        await usage.is_tried_twice.wait()
        assert announcements.tries == 2
        stop.set()
        await starting

    assert (announcements.left, usage.left) == (True, False)


# What it measures.


@pytest.mark.parametrize("tls", [True, False])
async def test_until_when_the_routers_certificate_holds_is_told_where_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, tls: bool
) -> None:
    told, stop = scraper(monkeypatch, app), asyncio.Event()
    ca, own, key = server_files(tmp_path / "tls", Authority())
    ends = x509.load_pem_x509_certificate(own.read_bytes()).not_valid_after_utc.timestamp()
    trust = ReplyTrustSettings(tls_ca_file=ca, tls_certificate_file=own, tls_key_file=key) if tls else None

    stop.set()  # as far as it gets before it asks for the broker
    async with AsyncExitStack() as owned:
        await a_router(settings(tmp_path, trust=trust)).start(owned, stop)

        expected = {"reply": ends} if tls else {}
        assert told("headrace_router_certificate_expiration_timestamp_seconds") == expected


async def test_what_the_log_keeps_no_longer_does_not_wait(tmp_path: Path) -> None:
    """Where no call of a model has come yet, nothing else says for how long one may wait."""
    router = a_router(settings(tmp_path, retention_seconds=100))
    place = TopicPartition("t", 0)
    router.assigned([place])

    def told(seconds_ago: float) -> float:
        return router._intake.oldest_waits({place: [SeenEnd(time.time() - seconds_ago, 1)]})["t"]

    assert told(seconds_ago=90) == pytest.approx(90, abs=5)
    assert told(seconds_ago=110) == 0


# What ends with one of its parts.


async def broken(*_: object) -> None:
    """A part that fails."""
    raise LookupError("a part is broken")


def background_fails(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    router.background.spawn("part", broken())


def consumer_fails(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.consumer, "failed", broken)


@pytest.mark.parametrize("fail", [background_fails, consumer_fails])
async def test_a_router_ends_with_any_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Router, pytest.MonkeyPatch], None]
) -> None:
    """One that goes on without would keep its partitions, and serve nothing."""

    class Running(Router):
        """A router that has found its broker."""

        async def start(self, owned: AsyncExitStack, stop: asyncio.Event) -> None:
            del stop
            await owned.enter_async_context(self.background)
            monkeypatch.setattr(self.consumer, "failed", asyncio.Event().wait)
            fail(self, monkeypatch)

    monkeypatch.setattr("headrace.runtime.logs.configure", lambda *_, **__: None)
    monkeypatch.setattr(app, "Router", Running)

    serving = asyncio.create_task(app.serve(settings(tmp_path), asyncio.Event()))
    ended, _ = await asyncio.wait([serving], timeout=SECONDS)

    assert [repr(each.exception()) for each in ended] == ["LookupError('a part is broken')"]


async def test_a_router_that_may_read_no_more_answers_what_it_runs_and_then_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained = False

    async def refused() -> None:
        raise LogUnavailableError("the broker does not let this router into its group")

    class Running(Router):
        """A router that has found its broker."""

        async def start(self, owned: AsyncExitStack, stop: asyncio.Event) -> None:
            del stop
            await owned.enter_async_context(self.background)
            monkeypatch.setattr(self.consumer, "failed", refused)

        async def drain(self) -> None:
            nonlocal drained
            drained = True

    monkeypatch.setattr("headrace.runtime.logs.configure", lambda *_, **__: None)
    monkeypatch.setattr(app, "Router", Running)

    with pytest.raises(LogUnavailableError):
        await asyncio.wait_for(app.serve(settings(tmp_path), asyncio.Event()), SECONDS)

    assert drained


# Readiness: what a rolling upgrade goes by.


def loaded(*states: str) -> LoadedModel:
    """A model whose versions are so."""
    return LoadedModel("t", [ModelVersion(version=str(number), state=state) for number, state in enumerate(states)])


async def test_a_router_that_serves_nothing_is_not_ready(router: Router) -> None:
    """Triton says that it is ready whatever became of its models: a pod without any is not one that serves."""
    router._caught_up.set()
    router._inventory.ready = True
    router.assigned([TopicPartition("t", 0)])
    assert router._readiness() == Readiness(ready=False, text="Triton has no model ready")

    router._inventory.models = {"broken": loaded("UNAVAILABLE")}
    assert router._readiness() == Readiness(ready=False, text="Triton has no model ready")

    router._inventory.models["simple"] = loaded("UNAVAILABLE", "READY")
    assert router._readiness() == Readiness(ready=True, text="ready")

    router._inventory.models["simple"] = loaded("UNAVAILABLE", "UNAVAILABLE")
    assert router._readiness() == Readiness(ready=False, text="Triton has no model ready"), "it was unloaded"


async def test_a_pool_that_starts_empty_may_be_ready_without_models(tmp_path: Path) -> None:
    router = a_router(settings(tmp_path, ready_without_models=True))
    router._caught_up.set()
    assert router._readiness().text == "Triton does not answer, or is not ready"

    router._inventory.ready = True
    assert router._readiness() == Readiness(ready=True, text="ready")

    router._inventory.models = {"simple": loaded("READY")}
    assert not router._readiness().ready, "now it has what to wait for"


async def test_a_router_is_ready_once_the_group_has_given_it_its_share_be_it_none(router: Router) -> None:
    """In a rollout at the most replicas there is one router more than partitions: it must not hold the rollout up."""
    router._caught_up.set()
    router._inventory.ready = True
    router._inventory.models = {"simple": loaded("READY")}
    assert router._readiness().text == "the group has not given this router its partitions yet"

    router.assigned([])

    assert router._readiness() == Readiness(ready=True, text="ready")


async def test_partitions_are_given_up_while_triton_is_away_for_long_and_wanted_again_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = a_router(settings(tmp_path, away_seconds=0.01))
    place = TopicPartition(request_topic("canary", "interactive", "simple"), 0)
    router._request_topics.counts = {place.topic: 1}
    router._inventory.models = {"simple": LoadedModel(place.topic, [ModelVersion(version="1", state="READY")])}
    subscribed: asyncio.Queue[list[str]] = asyncio.Queue()
    router._intake.connect(router.consumer, router._links)
    monkeypatch.setattr(router.consumer, "subscribe", lambda topics: subscribed.put_nowait([*topics]))

    def triton(*, ready: bool) -> None:
        router._inventory.ready = ready
        router._inventory_changed.set()

    following = asyncio.create_task(router._follow_inventory())
    async with asyncio.timeout(SECONDS):
        triton(ready=True)
        assert await subscribed.get() == [place.topic]
        router.assigned([place])
        triton(ready=False)
        assert await subscribed.get() == [place.topic], "a restart is soon over"
        assert await subscribed.get() == []
        triton(ready=True)
        assert await subscribed.get() == [place.topic]
    following.cancel()
    await asyncio.wait([following])


async def test_a_router_that_leaves_or_knows_no_broker_is_not_ready(router: Router) -> None:
    router._inventory.ready = True
    router._inventory.models = {"simple": loaded("READY")}
    router.assigned([])
    assert router._readiness().text == "the broker does not answer yet"

    router._caught_up.set()
    router._description.leaving = True

    assert router._readiness() == Readiness(ready=False, text="leaving")


# What it does for routers that are gone.


GONE, OF_ITS_OWN = model_key("canary", "s", "simple"), model_key("canary", "r", "simple")
WORD = Announcement(model=ModelDescription(model="simple"))


@pytest.fixture
async def log(monkeypatch: pytest.MonkeyPatch) -> MemoryAnnouncements:
    made = MemoryAnnouncements()
    monkeypatch.setattr(app, "KafkaAnnouncements", lambda *_, **__: made)
    return made


@asynccontextmanager
async def reading_announcements(router: Router) -> AsyncIterator[None]:
    """A router that has read them to the end, and whose own heartbeat came back."""
    following = asyncio.create_task(router._follow_announcements(), name="announcements")
    try:
        await asyncio.wait_for(router._caught_up.wait(), SECONDS)
        await router._beacon.beat()
        await settle()
        yield
    finally:
        following.cancel()
        await asyncio.wait([following])


async def test_only_a_router_that_serves_takes_back_what_others_left(log: MemoryAnnouncements, tmp_path: Path) -> None:
    """A pool that is at zero, or only begins, stays known."""
    router = a_router(settings(tmp_path, ready_without_models=True))
    taken_back = router._beacon.taken_back
    router._departed = Departed(pool="canary", own=router.key, taken_back=taken_back, forget_seconds=0.0)
    await log.announce(GONE, WORD)

    async with reading_announcements(router):

        async def still_there() -> bool:
            router._take_back_for_departed(asyncio.get_running_loop().time())
            await router._beacon.say()
            return log.newest(GONE) is not None

        assert await still_there(), "its Triton has nothing yet"
        router._inventory.ready = True
        assert router._readiness().ready
        assert await still_there(), "it has no models yet"
        router._inventory.models = {"simple": loaded("READY")}
        assert await still_there(), "it has no partitions yet"
        router.assigned([])
        router._inventory.models = {"simple": loaded("UNAVAILABLE")}
        assert router._readiness().ready
        assert await still_there(), "all its models were unloaded"
        router._inventory.models = {"simple": loaded("READY")}
        router._description.leaving = True
        assert await still_there(), "it leaves"
        router._description.leaving = False
        assert not await still_there()


async def test_a_router_that_serves_forgets_others_by_itself(log: MemoryAnnouncements, tmp_path: Path) -> None:
    router = a_router(settings(tmp_path))
    taken_back = router._beacon.taken_back
    router._departed = Departed(pool="canary", own=router.key, taken_back=taken_back, forget_seconds=0.0)
    router._inventory.ready = True
    router._inventory.models = {"simple": loaded("READY")}
    router.assigned([])
    await log.announce(GONE, WORD)

    async with reading_announcements(router):
        parts = [asyncio.create_task(part) for part in (router._tick(), router._beacon.keep())]
        async with asyncio.timeout(SECONDS):
            async for said in log.read():
                if said == (GONE, None):
                    break
        for part in parts:
            part.cancel()
        await asyncio.wait(parts)


async def test_what_was_taken_back_of_a_router_that_lives_is_said_again(
    log: MemoryAnnouncements, tmp_path: Path
) -> None:
    router = a_router(settings(tmp_path))
    router._beacon.put(OF_ITS_OWN, WORD)
    await router._beacon.say()

    async with reading_announcements(router):
        await log.announce(OF_ITS_OWN, None)
        await settle()
        await router._beacon.say()

    assert log.newest(OF_ITS_OWN) == WORD

"""The router as a whole, without a log: what it counts of its calls, when it is ready, and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.protocols import TopicPartition, UsageBatch
from headrace.bus.settings import KafkaSettings, PoolSettings, ReplyTrustSettings
from headrace.bus.topics import request_topic
from headrace.bus.usage import read_reports
from headrace.bus.v1.announcement_pb2 import ModelVersion
from headrace.bus.v1.usage_pb2 import UsageReport
from headrace.runtime.admin_http import Readiness
from router import app
from router.app import Router
from router.inventory import LoadedModel
from router.settings import RouterSection, RouterSettings, TritonSettings

SECONDS = 10.0


@pytest.fixture
async def router(tmp_path: Path) -> Router:
    return a_router(tmp_path)


def a_router(folder: Path, *, ready_without_models: bool = False, away_seconds: float = 20.0) -> Router:
    secret = folder / "secret"
    secret.write_text("shared")
    settings = RouterSettings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        pool=PoolSettings(name="canary"),
        reply_trust=ReplyTrustSettings(secret_file=secret),
        router=RouterSection(
            id="r",
            triton=TritonSettings(address="127.0.0.1:1", away_seconds=away_seconds),
            ready_without_models=ready_without_models,
        ),
    )
    return Router(settings, Whereabouts(["127.0.0.1"]))


@pytest.mark.parametrize("model", ["simple", "größe-1.0/β"])
async def test_model_time_is_counted_by_tenant_and_model(router: Router, model: str) -> None:
    log = MemoryUsage()
    topic = request_topic("canary", "interactive", model)
    for seconds in (1.5, 0.25, 0.0000004):
        router._count("acme", topic, seconds)

    await router._last_usage(log)

    [report], _ = read_reports(log.records)
    [entry] = report.entries
    assert report.source == f"router/canary/r/{router.key.incarnation:016x}"
    assert (entry.tenant, entry.key_id, entry.model, entry.calls) == ("acme", "", model, 0)
    assert entry.model_micros == 1_750_000


class StuckLog:
    """A log that neither takes nor refuses."""

    async def publish(self, report: UsageReport) -> None:
        del report
        await asyncio.Event().wait()

    def read(self, offset: int | None) -> AsyncIterator[UsageBatch]:
        raise NotImplementedError


@pytest.mark.parametrize("stuck", [True, False])
async def test_a_log_that_takes_no_usage_does_not_hold_up_the_end(
    router: Router, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, stuck: bool
) -> None:
    monkeypatch.setattr(app, "_FLUSH_SECONDS", 0.01)
    away = MemoryUsage()
    away.available = False
    router._count("acme", request_topic("canary", "interactive", "simple"), 1.0)

    async with asyncio.timeout(SECONDS):
        await router._last_usage(StuckLog() if stuck else away)

    assert [getattr(record, "event", "") for record in caplog.records] == ["usage_lost"]


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
    router = a_router(tmp_path, ready_without_models=True)
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
    router = a_router(tmp_path, away_seconds=0.01)
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

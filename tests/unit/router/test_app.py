"""The router as a whole, without a log: what it counts of its calls, and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.protocols import UsageBatch
from headrace.bus.settings import KafkaSettings, PoolSettings, ReplyTrustSettings
from headrace.bus.topics import request_topic
from headrace.bus.usage import read_reports
from headrace.bus.v1.usage_pb2 import UsageReport
from router import app
from router.app import Router
from router.settings import RouterSection, RouterSettings, TritonSettings

SECONDS = 10.0


@pytest.fixture
async def router(tmp_path: Path) -> Router:
    secret = tmp_path / "secret"
    secret.write_text("shared")
    settings = RouterSettings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        pool=PoolSettings(name="canary"),
        reply_trust=ReplyTrustSettings(secret_file=secret),
        router=RouterSection(id="r", triton=TritonSettings(address="127.0.0.1:1")),
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

"""What a scrape tells of a gateway."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.access import Access
from gateway.calls import Call, WaitingCalls
from gateway.identity import Caller
from gateway.infer import METHOD
from gateway.metrics import OF_LATE_SECONDS, instruments
from gateway.registry import Registry
from gateway.settings import GatewaySection, ReplySettings
from gateway.tally import OK, Tally
from headrace.bus.protocols import LogUnavailableError, RouterKey, TopicPartition
from headrace.runtime.telemetry import FORGET_SECONDS, MOST_NAMES, LoopLag, Telemetry
from headrace.store.settings import DatabaseSettings
from tests.unit.gateway.announcing import POOL, description, heartbeat, own_heartbeat, registry

A = RouterKey("a", 1)
PLACE = TopicPartition("t", 0)
POLICY = """\
tenants:
  limited: {models: ["*"], limits: {calls_per_second: 10}, by_model: {slow: {calls_per_second: 2}}}
  counted: {models: ["*"], quotas: {calls_per_day: 4}}
  free: {models: ["*"]}
"""
Labels = tuple[tuple[str, str], ...]


def a_registry(*models: str) -> Registry:
    return registry(heartbeat(A), *(description(A, model=model) for model in models), attached=(A,))


class Scraped:
    """A gateway's parts, and what a scrape tells of them. Time stands still."""

    def __init__(self, folder: Path, known: Registry | None = None) -> None:
        (folder / "policy.yaml").write_text(POLICY)
        section = GatewaySection(reply=ReplySettings(advertised_host="gateway"), policy_file=folder / "policy.yaml")
        database = DatabaseSettings(url=f"sqlite:///{folder / 'headrace.db'}")
        self.now = 1000.0
        self.cancelled = 0
        self.republished = Counter(ROUTER_LOST=0, ROUTER_LEFT=0, TRITON_LOST=0)
        self.registry = a_registry("simple", "slow") if known is None else known
        self.access = Access(section, database, pool=POOL, source="gateway/g/0", gateways=lambda: 1)
        self.calls = WaitingCalls(max_calls=2000, max_bytes=100_000, clock=lambda: self.now)
        self.tally = Tally(lambda: self.now)
        self.telemetry = Telemetry(
            *instruments(
                self.registry,
                self.calls,
                self.tally,
                self.access,
                republished=self.republished,
                cancelled=lambda: self.cancelled,
                certificates={},
                lag=LoopLag(),
                clock=lambda: self.now,
            )
        )

    def __getitem__(self, name: str) -> Mapping[Labels, float]:
        """The samples of a name, by their labels."""
        families = text_string_to_metric_families(self.telemetry.scrape().decode())
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"headrace_gateway_{name}"
        }

    def by(self, label: str, name: str) -> Mapping[str, float]:
        """The samples of a name that has one label."""
        return {value: number for ((key, value),), number in self[name].items() if key == label}

    def called(self, tenant: str, model: str = "simple", reason: str = OK) -> None:
        """A call of a tenant has ended, that was counted where it is counted."""
        gate = self.access.admission.gate(Caller(tenant, "key"), model, method=METHOD)
        assert gate is not None
        for rated in gate.calls:
            rated.rate.take(asyncio.get_running_loop().time(), 1.0)
        if gate.account is not None:
            gate.account.begin()
        entry = self.tally.begin(tenant)
        entry.model, entry.gate = model, gate
        self.tally.ended(entry, reason)

    def waits(self, number: int, model: str = "simple", router: RouterKey | None = A) -> Call:
        """A call waits for its answer from now on."""
        call = Call(b"%d" % number, model, PLACE, router, 0, asyncio.get_running_loop().create_future())
        self.calls.begin(call, 10)
        return call


@pytest.fixture
async def gateway(tmp_path: Path) -> Scraped:
    return Scraped(tmp_path)


async def test_calls_are_told_by_model_and_by_tenant(gateway: Scraped) -> None:
    gateway.called("free")
    gateway.called("free")
    gateway.called("limited", reason="RATE_LIMITED")

    models = gateway["model_calls_total"]
    assert models[("model", "simple"), ("outcome", "ok")] == 2
    assert models[("model", "simple"), ("outcome", "refused")] == 1
    assert models[("model", "slow"), ("outcome", "lost")] == 0, "a model is told of before its first call"
    assert gateway["tenant_calls_total"] == {
        (("outcome", "ok"), ("tenant", "free")): 2,
        (("outcome", "refused"), ("tenant", "limited")): 1,
    }
    assert gateway.by("reason", "calls_total")["OK"] == 2
    assert gateway.by("model", "call_duration_seconds_count") == {"simple": 2, "slow": 0}


async def test_calls_in_flight_are_told_by_model(gateway: Scraped) -> None:
    first = gateway.waits(1)
    gateway.now += 5
    gateway.waits(2)
    gateway.waits(3, router=None)
    gateway.now += 2

    assert gateway.by("model", "calls_waiting") == {"simple": 3, "slow": 0}
    assert gateway.by("model", "calls_unowned") == {"simple": 1, "slow": 0}
    assert gateway.by("model", "oldest_wait_seconds") == {"simple": 7, "slow": 0}

    gateway.calls.end(first, 10)

    assert gateway.by("model", "oldest_wait_seconds") == {"simple": 2, "slow": 0}
    assert gateway["request_bytes"] == {(): 20}


async def test_models_beyond_the_bound_are_told_together(tmp_path: Path) -> None:
    names = [f"model-{number:04}" for number in range(MOST_NAMES + 3)]
    gateway = Scraped(tmp_path, a_registry(*names))
    for number, name in enumerate(names):
        gateway.waits(number, name)
        gateway.now += 1

    waiting = gateway.by("model", "calls_waiting")

    assert len(waiting) == MOST_NAMES + 1
    assert sum(waiting.values()) == len(names)
    assert waiting["other"] == 3
    oldest = gateway.by("model", "oldest_wait_seconds")
    assert max(oldest.values()) == oldest[names[0]] == len(names)


async def test_a_model_that_is_gone_is_told_of_for_an_hour_more(tmp_path: Path) -> None:
    """So that nobody misses its last calls; then its series end."""
    gateway = Scraped(tmp_path, a_registry("simple"))
    gateway.called("free", "gone")

    gateway.now += FORGET_SECONDS
    assert "gone" in gateway.by("model", "call_duration_seconds_count")
    gateway.now += FORGET_SECONDS

    assert gateway.by("model", "call_duration_seconds_count") == {"simple": 0}


async def test_a_tenant_that_is_granted_nothing_any_more_is_forgotten(gateway: Scraped) -> None:
    gateway.called("free")
    policy = gateway.access.admission.policy
    gateway.access.admission.change(type(policy)(tenants={"limited": policy.tenants["limited"]}))

    assert gateway["tenant_calls_total"]
    gateway.now += FORGET_SECONDS

    assert gateway["tenant_calls_total"] == {}


async def test_what_is_left_is_that_of_the_tightest_rate(gateway: Scraped) -> None:
    gateway.called("limited")
    assert gateway.by("tenant", "rate_left_calls") == {"limited": 9}

    gateway.called("limited", "slow")

    assert gateway.by("tenant", "rate_left_calls") == {"limited": 1}


async def test_quotas_are_told_as_a_share(gateway: Scraped) -> None:
    gateway.called("counted")

    assert gateway["quota_left_ratio"] == {(("quota", "calls_per_day"), ("tenant", "counted")): 0.75}


async def test_what_is_left_is_told_of_tenants_that_have_limits_and_called_of_late(gateway: Scraped) -> None:
    for tenant in ("free", "limited", "counted"):
        gateway.called(tenant)
    gateway.now += OF_LATE_SECONDS
    assert set(gateway.by("tenant", "rate_left_calls")) == {"limited"}

    gateway.now += 1

    assert gateway["rate_left_calls"] == gateway["quota_left_ratio"] == {}


async def test_another_policy_leaves_nothing_told_of_the_one_before(gateway: Scraped) -> None:
    gateway.called("limited")

    gateway.access.admission.change(gateway.access.admission.policy)

    assert gateway["rate_left_calls"] == {}


async def test_refusals_are_told_by_who_refused(gateway: Scraped) -> None:
    gateway.access.admission.refused["RATE_LIMITED"] += 2
    gateway.access.audit.strangers["KEY_INVALID"] += 3

    assert gateway.by("reason", "access_refusals_total") == {"RATE_LIMITED": 2}
    assert gateway.by("reason", "credential_refusals_total") == {"KEY_INVALID": 3}


async def test_what_the_log_did_not_take_is_counted(gateway: Scraped) -> None:
    gateway.calls.not_taken(LogUnavailableError())

    assert gateway.by("reason", "delivery_failures_total") == {
        "LOG_UNAVAILABLE": 1,
        "LOG_FULL": 0,
        "REQUEST_TOO_LARGE": 0,
    }


async def test_what_was_published_again_is_counted_by_why(gateway: Scraped) -> None:
    gateway.republished["ROUTER_LOST"] += 2

    assert gateway.by("reason", "republished_total") == {"ROUTER_LOST": 2, "ROUTER_LEFT": 0, "TRITON_LOST": 0}


async def test_stray_answers_and_cancellations_are_counted(gateway: Scraped) -> None:
    gateway.calls.strays = 1
    gateway.cancelled = 4

    assert gateway["stray_answers_total"] == {(): 1}
    assert gateway["cancellations_total"] == {(): 4}


async def test_announcements_age_from_the_start_until_one_is_read(tmp_path: Path) -> None:
    gateway = Scraped(tmp_path)
    gateway.now += 3
    assert gateway["announcements_age_seconds"] == {(): 3}

    gateway.registry.apply(*own_heartbeat(), gateway.now)
    gateway.now += 1

    assert gateway["announcements_age_seconds"] == {(): 1}


async def test_without_a_store_of_limits_none_is_away(gateway: Scraped) -> None:
    assert gateway["limits_shared"] == gateway["limit_store_away"] == gateway["limit_leases"] == {(): 0}
    assert gateway["limit_store_requests_total"] == {}


async def test_models_and_routers_are_counted(gateway: Scraped) -> None:
    assert gateway["routers_live"] == {(): 1}
    assert gateway["models_ready"] == {(): 2}
    assert gateway["models_unowned"] == {(): 0}

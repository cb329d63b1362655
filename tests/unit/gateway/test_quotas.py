"""Quotas: what is counted at once, what the sums bring, and when a period begins anew."""

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import QuotaExhausted, QuotasUnavailable
from gateway.identity import Caller
from gateway.policy.model import Quotas
from gateway.quotas import Account, Accounts, Sums, SumsUnavailableError, Used
from gateway.status import quota_metadata, status_of
from headrace.bus.usage import UsageMeter
from tests.unit.gateway.admitting import admitting, at_once

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
DAY, MONTH = "2026-11-30", "2026-11"
HALF_A_DAY = 43_200.0


@dataclass
class Bench:
    """A gateway's accounts beside a database that sums what it is told to."""

    now: float = NOON
    away: bool = False
    used: dict[tuple[str, str], Used] = field(default_factory=dict)
    sequence: int = 0
    reports: list[int] = field(default_factory=list)
    asked: list[Collection[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.accounts = Accounts(self.read, clock=lambda: self.now)
        self.meter = UsageMeter("gateway/a/1", clock=lambda: self.now, closed=self.accounts.closed)

    async def read(self, periods: Collection[str], tenants: Collection[str]) -> Sums:
        self.asked.append(tenants)
        if self.away:
            raise SumsUnavailableError("it is away")
        return Sums(
            sequence=self.sequence,
            used={at: used for at, used in self.used.items() if at[0] in periods and at[1] in tenants},
        )

    def granted(self, **quotas: float) -> Account:
        self.accounts.change({"acme": Quotas(**quotas)})  # type: ignore[arg-type]  # numbers of either kind
        account = self.accounts.account("acme")
        assert account is not None
        return account

    def call(self, account: Account, size: int = 10, *, answered: bool = True) -> None:
        account.begin()
        if answered:
            account.answered(size)
            self.meter.add("acme", "simple", key_id="k", calls=1, request_bytes=size)
        else:
            account.unanswered()

    def close(self) -> None:
        """Put what was counted into reports."""
        for report in self.meter.close():
            self.reports.append(report.sequence)

    def sum(self, **of_others: int) -> None:
        """The aggregator sums all reports."""
        self.sequence = self.reports[-1] if self.reports else 0
        self.used |= {(period, "acme"): Used(**of_others) for period in (DAY, MONTH)}


def remaining(account: Account, bench: Bench) -> Mapping[str, float]:
    return {left.name: left.remaining for left in account.left(bench.accounts.now())}


def test_calls_count_when_they_begin_and_not_where_nobody_answered() -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=2)
    account.begin()
    account.begin()
    assert account.exhausted() is not None
    account.unanswered()
    assert account.exhausted() is None
    bench.call(account)
    assert account.exhausted() is not None


def test_bytes_count_when_the_answer_is_there() -> None:
    bench = Bench()
    account = bench.granted(bytes_per_month=100)
    bench.call(account, 99)
    assert account.exhausted() is None
    bench.call(account, 99)
    assert account.exhausted() is not None


async def test_what_others_used_counts_once_it_is_summed() -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=10, model_seconds_per_month=2)
    bench.sum(calls=4, model_micros=1_500_000)
    await bench.accounts.look()
    assert remaining(account, bench) == {"calls_per_day": 6, "model_seconds_per_month": 0.5}
    bench.sum(calls=4, model_micros=2_000_000)
    await bench.accounts.look()
    exhausted = account.exhausted()
    assert exhausted is not None
    assert exhausted.left(bench.accounts.now()).name == "model_seconds_per_month"


async def test_a_call_of_our_own_counts_once_whether_under_way_reported_or_summed() -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=10, bytes_per_day=1000)
    account.begin()
    bench.call(account, 5)
    for step in (bench.close, lambda: bench.sum(calls=1, bytes=5)):
        step()
        await bench.accounts.look()
        assert remaining(account, bench) == {"calls_per_day": 8, "bytes_per_day": 995}


@given(st.lists(st.sampled_from(["call", "close", "sum", "look", "refused"]), max_size=40))
async def test_our_own_calls_count_exactly_once_in_whatever_order_they_are_reported_and_summed(
    steps: list[str],
) -> None:
    bench = Bench()
    account = bench.granted(calls_per_month=1_000_000)
    made = unreported = summed = 0
    for step in steps:
        if step == "call":
            bench.call(account)
            made, unreported = made + 1, unreported + 1
        elif step == "refused":
            bench.call(account, answered=False)
        elif step == "close":
            bench.close()
            unreported = 0
        elif step == "sum":
            summed = made - unreported
            bench.sum(calls=summed)
        else:
            await bench.accounts.look()
        assert remaining(account, bench)["calls_per_month"] == 1_000_000 - made


async def test_a_tenant_whose_quotas_are_newer_than_its_calls_is_judged_by_the_sums() -> None:
    bench = Bench()
    bench.meter.add("acme", "simple", key_id="k", calls=5)
    account = bench.granted(calls_per_day=10)
    bench.call(account)
    bench.close()
    bench.sum(calls=6)
    await bench.accounts.look()
    assert remaining(account, bench) == {"calls_per_day": 4}


@pytest.mark.parametrize("away", [False, True])
async def test_a_day_and_a_month_begin_anew_also_while_the_database_is_away(away: bool) -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=3, calls_per_month=3)
    bench.sum(calls=3)
    await bench.accounts.look()
    assert account.exhausted() is not None
    bench.away = away
    bench.now += HALF_A_DAY
    await bench.accounts.look()
    assert account.exhausted() is None
    assert [left.reset_seconds for left in account.left(bench.accounts.now())] == [86_400, 31 * 86_400]


async def test_only_the_day_begins_anew_within_a_month() -> None:
    bench = Bench(now=NOON - 86_400)
    account = bench.granted(calls_per_day=3, calls_per_month=5)
    bench.used = {("2026-11-29", "acme"): Used(calls=2), (MONTH, "acme"): Used(calls=2)}
    await bench.accounts.look()
    bench.away = True
    bench.now = NOON
    await bench.accounts.look()
    assert remaining(account, bench) == {"calls_per_day": 3, "calls_per_month": 3}


async def test_a_database_that_is_away_changes_nothing_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=10)
    bench.sum(calls=4)
    await bench.accounts.look()
    bench.away = True
    with caplog.at_level(logging.INFO):
        await bench.accounts.look()
        await bench.accounts.look()
        assert remaining(account, bench) == {"calls_per_day": 6}
        bench.away = False
        await bench.accounts.look()
    assert [record.event for record in caplog.records] == ["quotas_not_read", "quotas_read_again"]  # type: ignore[attr-defined]


async def test_a_share_that_is_reached_is_told_once_a_period(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.accounts.change({"acme": Quotas(calls_per_day=10, warn_at=(0.5, 0.8))})
    told = []
    for calls in (4, 5, 6, 9, 10):
        bench.sum(calls=calls)
        caplog.clear()
        await bench.accounts.look()
        told.append([record.getMessage() for record in caplog.records])
    half, most = ([f"tenant acme has used {share} % of its calls_per_day"] for share in (50, 80))
    assert told == [[], half, [], most, []]
    bench.now += HALF_A_DAY
    bench.used = {("2026-12-01", "acme"): Used(calls=5)}
    caplog.clear()
    await bench.accounts.look()
    assert [record.getMessage() for record in caplog.records] == half


def test_an_edit_hands_nobody_a_fresh_quota() -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=5)
    for _ in range(5):
        bench.call(account)
    assert bench.granted(calls_per_day=7) is account
    assert remaining(account, bench) == {"calls_per_day": 2}


def test_what_is_not_summed_for_days_is_kept_in_bounded_room() -> None:
    bench = Bench()
    account = bench.granted(calls_per_month=10_000)
    for _ in range(500):
        bench.call(account)
        bench.close()
    assert remaining(account, bench) == {"calls_per_month": 9_500}
    assert len(account._closed) <= 100


async def test_usage_of_many_keys_counts_once() -> None:
    """A report has an entry for each of them; what is summed of it is not counted beside the sum."""
    bench = Bench()
    account = bench.granted(calls_per_month=10_000)
    for number in range(400):
        account.begin()
        account.answered(10)
        bench.meter.add("acme", "simple", key_id=f"k{number}", calls=1, request_bytes=10)
    bench.close()
    assert len(bench.reports) == 2

    bench.sequence = bench.reports[0]
    bench.used |= {(MONTH, "acme"): Used(calls=250, bytes=2500)}
    await bench.accounts.look()

    assert remaining(account, bench) == {"calls_per_month": 9_600}


@pytest.mark.parametrize(("before", "after", "told"), [(10, 100, True), (100, 100, False), (100, 10, True)])
async def test_a_quota_that_changed_is_warned_of_anew(
    caplog: pytest.LogCaptureFixture, before: int, after: int, told: bool
) -> None:
    bench = Bench()
    bench.granted(calls_per_day=before)
    bench.sum(calls=before * 8 // 10)
    await bench.accounts.look()
    caplog.clear()

    bench.granted(calls_per_day=after, calls_per_month=1_000)
    bench.sum(calls=after * 9 // 10)
    await bench.accounts.look()

    assert ("has used 80 % of its calls_per_day" in caplog.text) is told


async def test_the_loop_has_its_turns_while_many_accounts_are_gone_through() -> None:
    bench = Bench()
    bench.accounts.change({f"tenant-{number}": Quotas(calls_per_day=10) for number in range(1000)})
    looking = asyncio.create_task(bench.accounts.look())
    turns = 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1

    assert turns >= 2 * 1000 / 50


async def test_sums_of_who_does_not_call_are_read_now_and_then_alone() -> None:
    """Thousands of tenants have quotas, and few of them call in any second."""
    bench = Bench()
    bench.accounts.change({"acme": Quotas(calls_per_day=10), "quiet": Quotas(calls_per_day=10)})
    quiet, acme = bench.accounts.account("quiet"), bench.accounts.account("acme")
    assert quiet is not None
    assert acme is not None
    for _ in range(60):
        acme.exhausted()
        await bench.accounts.look()

    assert all("acme" in tenants for tenants in bench.asked)
    assert sum("quiet" in tenants for tenants in bench.asked) == 10 + 1  # after it came to be known, and once since

    quiet.exhausted()
    await bench.accounts.look()

    assert "quiet" in bench.asked[-1]


async def test_a_new_day_begins_for_who_does_not_call_as_well() -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=10)
    bench.sum(calls=10)
    for _ in range(20):
        await bench.accounts.look()
    assert account.left(bench.accounts.now())[0].remaining == 0

    bench.now += HALF_A_DAY
    await bench.accounts.look()

    assert account.left(bench.accounts.now())[0].remaining == 10


def test_what_did_not_change_is_left_alone() -> None:
    """A policy of a thousand tenants is read again whenever one of them changes."""
    bench = Bench()
    meters = bench.granted(calls_per_day=10).meters

    assert bench.granted(calls_per_day=10).meters is meters
    assert bench.granted(calls_per_day=11).meters is not meters


async def test_nobody_with_quotas_comes_in_before_it_is_known_what_is_left() -> None:
    bench = Bench(away=True)
    admission = admitting(
        "tenants: {acme: {models: ['*'], quotas: {calls_per_day: 1}}, free: {models: ['*']}}", accounts=bench.accounts
    )

    async def enter(tenant: str) -> None:
        caller = Caller(tenant, "k")
        gate = admission.gate(caller, "simple", method="m")
        assert gate is not None
        await admission.enter(gate, caller, "simple", 1, method="m", call_id=b"")

    await bench.accounts.look()
    with pytest.raises(QuotasUnavailable):
        await enter("acme")
    await enter("free")

    bench.away = False
    await bench.accounts.look()
    await enter("acme")
    bench.away = True
    await bench.accounts.look()
    with pytest.raises(QuotaExhausted):  # the last sums stand
        await enter("acme")


@pytest.mark.parametrize("moment", [NOON, NOON + 0.3, NOON + 0.7])
async def test_a_call_beyond_the_quota_is_refused_and_hears_when_it_begins_anew(moment: float) -> None:
    bench = Bench(now=moment)
    admission = admitting(
        "tenants: {acme: {models: ['*'], quotas: {model_seconds_per_month: 1.5}}}", accounts=bench.accounts
    )
    gate = admission.gate(Caller("acme", "k"), "simple", method="m")
    assert gate is not None
    assert gate.account is not None
    await bench.accounts.look()
    gate.account.meters[0].used = 1_500_000
    with pytest.raises(QuotaExhausted) as refused:
        at_once(admission.enter(gate, Caller("acme", "k"), "simple", 1, method="m", call_id=b""))
    assert str(refused.value) == (
        "The quota of 1.5 model seconds a month for tenant acme is used up. It begins anew at 2026-12-01T00:00:00Z."
    )
    assert refused.value.retry_after_seconds == HALF_A_DAY
    assert len(status_of(refused.value).details) == 3
    assert admission.refused == {"QUOTA_EXHAUSTED": 1}


def test_what_is_left_of_every_quota_is_told_in_one_entry() -> None:
    bench = Bench()
    account = bench.granted(calls_per_day=100, model_seconds_per_month=0.5)
    bench.call(account)
    model_seconds = "model_seconds_per_month;limit=0.5;remaining=0.5;reset=43200"
    assert quota_metadata(bench.accounts.told(account)) == (
        ("x-quota", f"calls_per_day;limit=100;remaining=99;reset=43200, {model_seconds}"),
    )

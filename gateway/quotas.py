"""How much of its quotas each tenant has used: what the database has summed, and what this gateway has counted since.

Usage is summed by the aggregator, from reports of all gateways and routers. A gateway reads the sums about once a
second and adds its own calls that are under way or not summed yet, so that nothing here waits for a database. What is
promised: a gateway counts its own calls at once, and those of other gateways, and the time that models took, about two
seconds later. By so much, and by the bytes and seconds of the calls that were under way, a quota may be exceeded.
Sums of a tenant that has not called this gateway for a while are read once in a while alone: what its first call then
is judged by may be half a minute old, and is read again within a second.

While the database is away the last sums stand. Days and months are UTC's.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple, Protocol

from gateway.policy.model import Quotas
from headrace.bus.v1.usage_pb2 import UsageEntry

READ_SECONDS = 1.0
_LOOKS_AFTER_A_CALL = 10
"""So often the sums of a tenant are read after its last call."""
_LOOKS_TO_ALL = 30
"""Each look of so many is at all tenants: thousands of them, each second, would cost more than their calls do."""
_MICROS = 1_000_000
_ACCOUNTS_A_TURN = 50
"""Between two of these the loop has its turn: there may be thousands."""
_MOST_REPORTS = 100
"""Kept apart while nobody sums them; later ones are taken for one."""
_log = logging.getLogger(__name__)


class Used(NamedTuple):
    """What was used in a period."""

    calls: int = 0
    bytes: int = 0
    model_micros: int = 0


@dataclass(frozen=True, slots=True)
class Sums:
    """What the database has summed."""

    sequence: int
    """The last report of this gateway that is in it."""
    used: Mapping[tuple[str, str], Used]
    """By period (`2026-11-26`, `2026-11`) and tenant; what is missing is nothing."""


class ReadSums(Protocol):
    """Reads the sums of some tenants. Raises SumsUnavailableError."""

    async def __call__(self, periods: Collection[str], tenants: Collection[str]) -> Sums:
        """The sums, all of one moment."""
        ...


class SumsUnavailableError(Exception):
    """The database does not answer."""


class Left(NamedTuple):
    """What is left of a quota."""

    name: str
    """As the policy has it, such as `calls_per_day`."""
    limit: float
    remaining: float
    reset_seconds: int
    """Until the period ends."""


class _Quota(NamedTuple):
    name: str
    column: int
    """Of `Used`."""
    monthly: bool


_QUOTAS = tuple(
    _Quota(f"{what}_per_{period}", column, period == "month")
    for column, what in enumerate(("calls", "bytes", "model_seconds"))
    for period in ("day", "month")
)
_CALLS, _BYTES, _MODEL_MICROS = range(3)


class _Period(NamedTuple):
    day: str
    month: str

    def of(self, quota: _Quota) -> str:
        return self.month if quota.monthly else self.day


@dataclass(slots=True)
class Meter:
    """One quota of one tenant, in whole calls, bytes or microseconds."""

    quota: _Quota
    most: int
    used: int = 0
    told: float = 0.0
    """The largest share of it that was told in the log."""
    head: str = ""
    """How it is told to callers, up to what remains."""

    def __post_init__(self) -> None:
        self.head = f"{self.quota.name};limit={self.most / self._unit:.15g};remaining="

    @property
    def _unit(self) -> int:
        return _MICROS if self.quota.column == _MODEL_MICROS else 1

    @property
    def share_left(self) -> float:
        """Which share of it is left, 0 to 1."""
        return max(0, self.most - self.used) / self.most if self.most else 0.0

    def left(self, now: datetime) -> Left:
        """What is left of it."""
        unit = self._unit
        remaining = max(0, self.most - self.used)
        return Left(self.quota.name, self.most / unit, remaining / unit, _seconds_left(self.quota, now))


class Account:
    """What one tenant has used of its quotas, as far as this gateway knows."""

    def __init__(self, tenant: str, quotas: Quotas, period: _Period) -> None:
        self.tenant = tenant
        self._period = period
        self._under_way = 0
        self._open = [0, 0]  # calls and bytes that are in no report yet
        self._closed: deque[tuple[int, _Period, int, int]] = deque()  # by report, until it is summed
        self._summed: Mapping[bool, Used] = {}
        self._quotas: Quotas | None = None
        self._quiet_looks = 0
        self.meters: tuple[Meter, ...] = ()
        self.limit(quotas)

    def limit(self, quotas: Quotas) -> None:
        """Hold to these quotas from now on."""
        if quotas == self._quotas:
            return
        self._quotas = quotas
        told = {(meter.quota, meter.most): meter.told for meter in self.meters}
        self._warn_at = quotas.warn_at
        stated = (
            (quota, round(most * (_MICROS if quota.column == _MODEL_MICROS else 1)))
            for quota in _QUOTAS
            if (most := getattr(quotas, quota.name)) is not None
        )
        self.meters = tuple(Meter(quota, most, told=told.get((quota, most), 0.0)) for quota, most in stated)
        self._counting = tuple(meter for meter in self.meters if meter.quota.column == _CALLS)
        self._weighing = tuple(meter for meter in self.meters if meter.quota.column == _BYTES)
        self._add_up()

    def exhausted(self) -> Meter | None:
        """A quota of which nothing is left. Asked for with every call."""
        self._quiet_looks = 0
        for meter in self.meters:
            if meter.used >= meter.most:
                return meter
        return None

    def left(self, now: datetime) -> list[Left]:
        """What is left of every quota."""
        return [meter.left(now) for meter in self.meters]

    def told(self, now: float) -> str:
        """What callers are told: each quota with what remains, and seconds until it begins anew.

        For example `calls_per_day;limit=100;remaining=93;reset=3600, bytes_per_month;…`. `now` is seconds since the
        epoch. Told with every answer, so it computes no calendar.
        """
        ends = _ends(self._period)
        parts = []
        for meter in self.meters:
            left = max(0, meter.most - meter.used)
            remaining = f"{left / _MICROS:.15g}" if meter.quota.column == _MODEL_MICROS else left
            parts.append(f"{meter.head}{remaining};reset={max(1, math.ceil(ends[meter.quota.monthly] - now))}")
        return ", ".join(parts)

    def quiet(self) -> bool:
        """Whether nobody called for a while. To be asked once a look."""
        self._quiet_looks += 1
        return self._quiet_looks > _LOOKS_AFTER_A_CALL

    def begin(self) -> None:
        """A call begins. `answered` or `unanswered` follows."""
        self._under_way += 1
        for meter in self._counting:
            meter.used += 1

    def unanswered(self) -> None:
        """A call ended without an answer, and does not count."""
        self._under_way -= 1
        for meter in self._counting:
            meter.used -= 1

    def answered(self, size: int) -> None:
        """A call was answered; `size` is the bytes of request and answer."""
        self._under_way -= 1
        self._open[_CALLS] += 1
        self._open[_BYTES] += size
        for meter in self._weighing:
            meter.used += size

    def closed(self, sequence: int, entry: UsageEntry) -> None:
        """What was counted went into a report."""
        calls, size = entry.calls, entry.request_bytes + entry.response_bytes
        # A report may have more than was counted here: the tenant's quotas may be newer than its calls.
        self._open[_CALLS] = max(0, self._open[_CALLS] - calls)
        self._open[_BYTES] = max(0, self._open[_BYTES] - size)
        period = _period(datetime.fromtimestamp(entry.hour_unix_seconds, UTC))
        if self._closed and self._closed[-1][1] == period:
            last, _, more_calls, more_bytes = self._closed[-1]
            if last == sequence or len(self._closed) >= _MOST_REPORTS:
                del self._closed[-1]
                calls, size = calls + more_calls, size + more_bytes
        self._closed.append((sequence, period, calls, size))

    def summed(self, period: _Period, sums: Sums) -> None:
        """The database has these sums of that period."""
        before = len(self._closed)
        while self._closed and self._closed[0][0] <= sums.sequence:
            self._closed.popleft()
        summed = {
            False: sums.used.get((period.day, self.tenant), Used()),
            True: sums.used.get((period.month, self.tenant), Used()),
        }
        if summed == self._summed and period == self._period and before == len(self._closed):
            return
        self._enter(period)
        self._summed = summed
        self._add_up()

    def advance(self, period: _Period) -> None:
        """The time is that of this period."""
        if period != self._period:
            summed = dict(self._summed)
            summed.pop(False, None)
            if period.month != self._period.month:
                summed.clear()
            self._enter(period)
            self._summed = summed
            self._add_up()

    def warnings(self) -> Iterable[tuple[Meter, float]]:
        """Quotas of which a share to be told is reached for the first time in this period, and the share."""
        for meter in self.meters:
            reached = max((share for share in self._warn_at if meter.used >= share * meter.most), default=0.0)
            if reached > meter.told:
                meter.told = reached
                yield meter, reached

    def _enter(self, period: _Period) -> None:
        for meter in self.meters:
            if period.of(meter.quota) != self._period.of(meter.quota):
                meter.told = 0.0
        self._period = period

    def _add_up(self) -> None:
        for meter in self.meters:
            quota = meter.quota
            meter.used = self._summed.get(quota.monthly, Used())[quota.column]
            if quota.column == _MODEL_MICROS:
                continue  # routers tell of them
            meter.used += self._open[quota.column] + (self._under_way if quota.column == _CALLS else 0)
            now = self._period.of(quota)
            for _, period, *amounts in self._closed:
                if period.of(quota) == now:
                    meter.used += amounts[quota.column]


class Accounts:
    """The accounts of all tenants that have quotas. `read` is None where no database sums."""

    def __init__(self, read: ReadSums | None, *, clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._due = asyncio.Event()
        self._away = False
        self._looks = 0
        self._period = _period(self.now())
        self.known = read is None
        """Whether the sums have been read: until then nobody knows what is left of any quota."""

    def change(self, quotas: Mapping[str, Quotas]) -> None:
        """These tenants have quotas from now on, and no others."""
        period = _period(self.now())
        for tenant in self._accounts.keys() - quotas.keys():
            del self._accounts[tenant]
        for tenant, each in quotas.items():
            known = self._accounts.get(tenant)
            if known is None:
                self._accounts[tenant] = Account(tenant, each, period)
                self._due.set()
            else:
                known.limit(each)

    def account(self, tenant: str) -> Account | None:
        """The account of a tenant that has quotas."""
        return self._accounts.get(tenant)

    def now(self) -> datetime:
        """The time."""
        return datetime.fromtimestamp(self._clock(), UTC)

    def told(self, account: Account) -> str:
        """See Account.told."""
        return account.told(self._clock())

    def closed(self, sequence: int, entries: Sequence[UsageEntry]) -> None:
        """This gateway made a report of its usage."""
        for entry in entries:
            account = self._accounts.get(entry.tenant)
            if account is not None:
                account.closed(sequence, entry)

    async def keep(self) -> None:
        """Read the sums again and again, until cancelled."""
        while True:
            self._due.clear()
            await self.look()
            try:
                async with asyncio.timeout(READ_SECONDS):
                    await self._due.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """Read the sums once. A database that is away changes nothing, and is told once."""
        period = _period(self.now())
        quiet = {tenant for tenant, account in self._accounts.items() if account.quiet()}
        if not self.known or period != self._period or self._looks % _LOOKS_TO_ALL == 0:
            quiet.clear()
        self._looks += 1
        self._period = period
        tenants = [tenant for tenant in self._accounts if tenant not in quiet]
        if self._read is not None and tenants:
            try:
                sums = await self._read(period, tenants)
            except SumsUnavailableError as exc:
                if not self._away:
                    _log.warning(
                        "quotas stand as they were: %s", exc, extra={"event": "quotas_not_read", "why": str(exc)}
                    )
                self._away = True
            else:
                if self._away:
                    _log.info("quotas are read again", extra={"event": "quotas_read_again"})
                self._away = False
                async for account in self._each(tenants):
                    account.summed(period, sums)
                self.known = True
        async for account in self._each(tenants):
            account.advance(period)
            for meter, share in account.warnings():
                percent, quota = round(share * 100), meter.quota.name
                extra = {"event": "quota_warning", "tenant": account.tenant, "quota": quota, "percent": percent}
                _log.warning("tenant %s has used %d %% of its %s", account.tenant, percent, quota, extra=extra)

    async def _each(self, tenants: Sequence[str]) -> AsyncIterator[Account]:
        """The accounts of tenants that still have one, with pauses for the loop."""
        for number, tenant in enumerate(tenants):
            account = self._accounts.get(tenant)
            if account is not None:
                yield account
            if number % _ACCOUNTS_A_TURN == _ACCOUNTS_A_TURN - 1:
                await asyncio.sleep(0)


def _period(now: datetime) -> _Period:
    return _Period(now.strftime("%Y-%m-%d"), now.strftime("%Y-%m"))


@lru_cache(maxsize=8)
def _ends(period: _Period) -> tuple[float, float]:
    """When its day ends and when its month does, in seconds since the epoch."""
    day = datetime.fromisoformat(period.day).replace(tzinfo=UTC)
    month = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
    return (day + timedelta(days=1)).timestamp(), month.timestamp()


def _seconds_left(quota: _Quota, now: datetime) -> int:
    return max(1, math.ceil(_ends(_period(now))[quota.monthly] - now.timestamp()))

"""Limits that all gateways share, through Redis or Valkey, without a round trip per call.

A gateway leases a little ahead and spends it locally. Once a tick of 50 ms one pipelined request settles and leases for
all buckets in use; buckets that need nothing are not in it, and while none does there is no traffic at all.

What is promised while Redis answers, for G gateways that agree on G:

- **A rate**: in any window of t seconds at most `burst + rate * t + G * (lease + start)` is taken, with `lease =
  max(1, rate * 0.25)` and `start = max(1, min(lease, burst) / G)`. Redis leases by the algorithm of `gcra`, exactly, so
  what is leased obeys `burst + rate * t`; a gateway may hold one lease from before the window, and may take `start`
  on credit where the bucket should have it, which Redis charges at the next tick, in debt if need be. So over long
  windows the rate is exact. A single take of more counts in place of the burst, the lease and the start. A burst of
  less than two ticks of the rate counts as that: what comes in between ticks must fit in. Waits that a refused take is
  told are estimates.
- **Calls at a time**: never more than the limit. A gateway takes only slots that Redis has written down as its own, and
  stops to rely on them before Redis frees them: 3 s after it was heard of last.
- **No take waits**: it is decided at once from what is in hand. The first call of an idle bucket takes from its start,
  the first slot is one that Redis keeps for every gateway, where a limit has as many slots as there are gateways.
- **Nobody is refused for want of a lease alone**: who lacks what is probably there says so (`want`), waits for the next
  tick's answer (`settled`) and takes again. While Redis is away nobody waits.

While Redis is away (it failed, or took longer than 100 ms) what is leased is used up first: tokens for a second, slots
for three. Then the declared mode holds. `local_share`: every gateway alone allows the limit divided by G, and at least
1; calls at a time may exceed the limit meanwhile by those that were under way. `deny`: nothing. `allow`: everything,
and at once. What was spent by local share is charged when Redis is back; an answer that got lost costs the tenant what
it leased, and the debts of that tick a second time. A Redis that lost its data starts with full buckets, and with free
slots until every gateway has told what it has in use, up to 2 s later.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha1
from secrets import token_hex
from types import TracebackType
from typing import Any, Self
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from gateway.limits.balance import (
    FORGET_SECONDS,
    SLOTS_EXPIRE_SECONDS,
    TICK_SECONDS,
    Balance,
    Mode,
    RateAsk,
    RateBalance,
    SlotsAsk,
    SlotsBalance,
)
from gateway.limits.breaker import Breaker
from gateway.limits.script import SCRIPT

log = logging.getLogger(__name__)

ANSWER_SECONDS = 0.1
"""Redis is away when it takes longer."""
MAX_BUCKETS = 2_000
"""Buckets in use at a time; those beyond live as if Redis were away."""
_BATCH = 100  # keys per call of the script: others of Redis' clients get their turn in between
_SCRIPT_SHA = sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()  # Redis' name for it

Asked = tuple[str, Balance, RateAsk | SlotsAsk]


class LeasedRate:
    """A `Rate` that all gateways share. Its `now` is of the clock of its `Leases`; its waits are estimates."""

    def __init__(self, balance: RateBalance, enter: Callable[[], bool], gateways: Callable[[], int]) -> None:
        self._balance = balance
        self._enter = enter
        self._gateways = gateways

    def take(self, now: float, amount: float = 1.0) -> float:
        """Take from the bucket. Returns 0.0 when taken, else in how many seconds to try the same again."""
        balance = self._balance
        if balance.spend(now, amount):  # and is in use already, as it holds something
            return 0.0
        return balance.take(now, amount, gateways=self._gateways(), away=self._enter())

    def soon(self, now: float, amount: float) -> bool:
        """Whether the bucket should have it."""
        return self._balance.soon(now, amount, away=self._enter())

    def want(self, amount: float) -> None:
        """Ask for so much to be leased by the next tick."""
        self._balance.want(amount)

    def left(self, now: float) -> float:
        """How much is in the shared bucket, as far as this gateway knows."""
        return self._balance.left(now)

    def give_back(self, amount: float) -> None:
        """Undo a take, or a part of one."""
        self._enter()
        self._balance.give_back(amount)

    def reset_after(self, now: float) -> float:
        """Seconds until the bucket is full, if nothing more is taken."""
        return self._balance.reset_after(now)


class LeasedSlots:
    """A `Concurrency` that all gateways share."""

    def __init__(
        self,
        balance: SlotsBalance,
        enter: Callable[[], bool],
        gateways: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._balance = balance
        self._enter = enter
        self._gateways = gateways
        self._clock = clock

    @property
    def in_use(self) -> int:
        """Slots taken by this gateway and not released yet."""
        return self._balance.in_use

    def take(self) -> bool:
        """Take a slot, to be released exactly once. False where none is free; nothing is taken then."""
        now = self._clock()
        if self._balance.spend(now):  # and is in use already, as it holds something
            return True
        return self._balance.take(now, gateways=self._gateways(), away=self._enter())

    def soon(self) -> bool:
        """Whether one is free, as far as this gateway knows."""
        return self._balance.soon(self._clock(), away=self._enter())

    def want(self) -> None:
        """Ask for one to be leased by the next tick."""
        self._balance.want()

    def release(self) -> None:
        """Free a slot that was taken. Raises ValueError where none was."""
        self._balance.release()


class Leases:
    """This gateway's part of all shared limits. Enter it, run `keep` in the background, leave it when calls are done.

    `url` is of redis-py's form (`redis://`, `rediss://`, `unix://`), one server or a failover address, not a cluster.
    `gateways` tells how many gateways are live, this one included; those of one `namespace` share their limits.
    """

    def __init__(
        self,
        url: str,
        *,
        gateways: Callable[[], int],
        mode: Mode,
        namespace: str = "default",
        password: str | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # One request at a time, with one deadline around all of it: the client must not try again on its own.
        self._redis = Redis.from_url(
            url, password=password, retry=Retry(NoBackoff(), 0), socket_connect_timeout=answer_seconds
        )
        self._gateways: Callable[[], int] = lambda: max(1, gateways())
        self._mode = mode
        self._namespace = namespace
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._id = token_hex(8)
        self._breaker = Breaker()
        # Whoever holds a limit keeps its balance, so that two holders of one name share it; `_kept` does for the rest.
        self._balances: WeakValueDictionary[str, RateBalance | SlotsBalance] = WeakValueDictionary()
        self._kept: dict[str, Balance] = {}
        self._active: dict[str, Balance] = {}  # those of `_kept` that may have something to ask
        self._sweep_at = 0.0
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []  # for a tick that asks for what they want
        self.requests: Counter[str] = Counter(answered=0, failed=0)
        """Requests to Redis by what became of them."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hand back what is held, if Redis answers at once."""
        if not self._breaker.open:
            last = [(key, balance, ask) for key, balance in self._kept.items() if (ask := balance.farewell())]
            if last:
                with suppress(RedisError, OSError, TimeoutError):
                    async with asyncio.timeout(self._answer_seconds):
                        await self._evaluate(last)
        await self._disconnect()

    @property
    def away(self) -> bool:
        """Whether Redis counts as away: the mode holds."""
        return self._breaker.open

    @property
    def shared(self) -> bool:
        """Whether all gateways count together now: Redis has answered, and is not away since."""
        return self.requests["answered"] > 0 and not self._breaker.open

    @property
    def kept(self) -> int:
        """Buckets in use; see MAX_BUCKETS."""
        return len(self._kept)

    def rate(self, name: str, rate_per_second: float, burst: float) -> LeasedRate:
        """The rate limit of that name; one that is known is limited otherwise from now on. No I/O."""
        key = f"{{headrace}}:{self._namespace}:rate:{name}"
        balance = self._balances.get(key)
        if isinstance(balance, RateBalance):
            balance.change(rate_per_second, burst)
        else:
            balance = self._balances[key] = RateBalance(rate_per_second, burst, self._mode)
        return LeasedRate(balance, partial(self._enter, key, balance), self._gateways)

    def slots(self, name: str, most: int) -> LeasedSlots:
        """The limit of calls at a time of that name; one that is known is limited otherwise from now on. No I/O."""
        key = f"{{headrace}}:{self._namespace}:slots:{name}"
        balance = self._balances.get(key)
        if isinstance(balance, SlotsBalance):
            balance.change(most)
        else:
            balance = self._balances[key] = SlotsBalance(most, self._mode)
        return LeasedSlots(balance, partial(self._enter, key, balance), self._gateways, self._clock)

    async def settled(self) -> None:
        """Return when a tick has asked for what was wanted before, and was answered or not."""
        told = asyncio.get_running_loop().create_future()
        self._waiting.append(told)
        with suppress(TimeoutError):  # nobody keeps the leases any more: what is there now is all
            async with asyncio.timeout(self._answer_seconds + 4 * TICK_SECONDS):
                await told

    async def keep(self) -> None:
        """Settle and lease, for as long as it is not cancelled. A Redis that is away is no reason to fail.

        Redis is asked for an answer at once, so that one that is not there is told before it is needed.
        """
        this = asyncio.current_task()
        assert this is not None  # noqa: S101  a coroutine runs in a task
        asked = False
        while True:
            if asked and not self._active and not self._breaker.open:
                self._wake.clear()
                await self._wake.wait()
            if self._breaker.due(self._clock()):
                await self._tick(anyway=not asked)
                asked = True
                # redis-py waits with `wait_for`, which in Python 3.11 loses a cancellation that comes with the answer.
                if this.cancelling():
                    raise asyncio.CancelledError
            # Not in step with other gateways: who comes just after a refill would get all of it, every time.
            await asyncio.sleep(TICK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311  no secret

    def _enter(self, key: str, balance: Balance) -> bool:
        """A bucket is used. Returns whether it has to do without Redis."""
        if key not in self._active:
            if key not in self._kept:
                if len(self._kept) >= MAX_BUCKETS:
                    self._sweep(self._clock())
                if len(self._kept) >= MAX_BUCKETS:
                    return True
                self._kept[key] = balance
            self._active[key] = balance
            self._wake.set()
        return self._breaker.open

    async def _tick(self, *, anyway: bool) -> None:
        now = self._clock()
        waiting, self._waiting = self._waiting, []
        asked = [(key, balance, ask) for key, balance in self._active.items() if (ask := balance.ask(now))]
        try:
            if asked or anyway or self._breaker.open:
                await self._exchange(asked, now)
        finally:
            for told in waiting:
                if not told.done():
                    told.set_result(None)
        now = self._clock()
        for key in [key for key, balance in self._active.items() if balance.quiet(now)]:
            del self._active[key]
        self._sweep(now)

    def _sweep(self, now: float) -> None:
        if now < self._sweep_at:
            return
        self._sweep_at = now + FORGET_SECONDS / 10
        for key in [key for key, balance in self._kept.items() if balance.forgettable(now)]:
            del self._kept[key]
            self._active.pop(key, None)

    async def _exchange(self, asked: list[Asked], asked_at: float) -> None:
        answers: list[tuple[float, float]] | None = None
        try:
            async with asyncio.timeout(self._answer_seconds):
                answers = await self._evaluate(asked)
        except (RedisError, OSError, TimeoutError) as exc:
            self.requests["failed"] += 1
            await self._lost(exc)
        finally:  # cancelled as well: leaving hands back what is known to be held
            if answers is None:
                for _, balance, _ in asked:
                    balance.unanswered()
        if answers is not None:
            self.requests["answered"] += 1
            now = self._clock()
            for (_, balance, _), (first, second) in zip(asked, answers, strict=True):
                balance.answered(asked_at, now, first, second)
            if self._breaker.answered():
                log.info("limits are shared again", extra={"event": "limits_shared"})

    async def _lost(self, exc: Exception) -> None:
        if self._breaker.failed(self._clock()):
            why = str(exc) or f"no answer within {self._answer_seconds:g} s"
            extra = {"event": "limits_not_shared", "mode": self._mode, "why": why}
            log.warning("limits are not shared: %s", why, extra=extra)
        await self._disconnect()  # an answer that comes late must not be taken for the next one's

    async def _evaluate(self, asked: list[Asked]) -> list[tuple[float, float]]:
        """Run the script for all of them. The caller sets the deadline."""
        batches = [asked[at : at + _BATCH] for at in range(0, len(asked), _BATCH)]
        if not batches:
            await self._redis.ping()
            return []
        results = await self._run(batches)
        if any(isinstance(result, NoScriptError) for result in results):
            await self._redis.script_load(SCRIPT)
            lacking = [at for at, result in enumerate(results) if isinstance(result, NoScriptError)]
            for at, result in zip(lacking, await self._run([batches[at] for at in lacking]), strict=True):
                results[at] = result
        answers: list[tuple[float, float]] = []
        for result in results:
            if isinstance(result, Exception):
                raise result
            numbers = [float(number) for number in result]
            answers += zip(numbers[::2], numbers[1::2], strict=True)
        return answers

    async def _run(self, batches: list[list[Asked]]) -> list[Any]:  # Any: redis-py leaves its pipelines untyped
        pipeline: Any = self._redis.pipeline(transaction=False)
        header = (self._id, self._gateways(), int(SLOTS_EXPIRE_SECONDS * 1_000_000))
        for batch in batches:
            keys = [key for key, _, _ in batch]
            numbers: list[str | float] = []
            for _, _, ask in batch:
                numbers += ("rate" if isinstance(ask, RateAsk) else "slots", *ask)
            pipeline.evalsha(_SCRIPT_SHA, len(keys), *keys, *header, *numbers)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        return results

    async def _disconnect(self) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._answer_seconds):
                await self._redis.aclose(close_connection_pool=True)

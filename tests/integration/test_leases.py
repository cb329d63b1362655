"""Limits that gateways share through a real Valkey."""

import asyncio
import inspect
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis.asyncio import Redis

from gateway.admission import Admission
from gateway.audit import Audit
from gateway.errors import RateLimited
from gateway.identity import Caller
from gateway.limits import Concurrency, Rate
from gateway.limits.balance import Mode, RateAsk, SlotsAsk
from gateway.limits.gcra import Gcra
from gateway.limits.leases import MAX_BUCKETS, LeasedRate, LeasedSlots, Leases
from gateway.limits.local import LocalCounters
from gateway.limits.script import SCRIPT
from gateway.policy.document import read_policy
from gateway.quotas import Accounts
from headrace.runtime.lifecycle import Background
from tests.integration.redis_fixture import Valkey
from tests.unit.gateway.admitting import at_once

GATEWAYS = 3
PATIENCE_SECONDS = 30.0
TINY = 1e-6
AT_LEAST = 0.5
"""Of a rate: what comes in while a busy machine stands still can be lost."""
STEP_SECONDS = 0.05
"""As much of the time between two turns of the loop counts as running; the machine stood still for the rest of it."""
LAPSE_MICROS = 600_000_000
"""However long the machine stands still, slots of those who are there do not lapse."""
MODES: tuple[Mode, ...] = ("local_share", "deny", "allow")


@asynccontextmanager
async def gateway(
    url: str,
    *,
    mode: Mode = "deny",
    gateways: Callable[[], int] = lambda: GATEWAYS,
    answer_seconds: float = PATIENCE_SECONDS,
) -> AsyncIterator[Leases]:
    """One that waits for its answer as long as a busy machine may take, unless a test is about just that."""
    leases = Leases(url, gateways=gateways, mode=mode, answer_seconds=answer_seconds)
    async with leases, Background() as background:
        background.spawn("leases", leases.keep())
        yield leases


@asynccontextmanager
async def fleet(url: str, *, mode: Mode = "deny") -> AsyncIterator[list[Leases]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(gateway(url, mode=mode)) for _ in range(GATEWAYS)]


async def until(holds: Callable[[], bool], *, what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():  # noqa: ASYNC110  what it waits for has no event, and some of it is asked for
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never: {what}")


async def evalsha_calls(url: str) -> int:
    """How often the script ran."""
    async with Redis.from_url(url) as redis:
        stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def running(seconds: float) -> AsyncIterator[float]:
    """For how long this process has run, again and again, until it was so long."""
    spent, last = 0.0, time.monotonic()
    while spent < seconds:
        yield spent
        await asyncio.sleep(0.005)  # the pace of the load
        now = time.monotonic()
        spent += min(now - last, STEP_SECONDS)
        last = now


async def offer(rates: list[LeasedRate], *, per_second: float, seconds: float) -> tuple[list[float], float]:
    """Offer takes to all in turn, for so long of running.

    Returns when those were that succeeded, and how long it was by the clock: the limit goes on while nothing runs.
    """
    taken: list[float] = []
    start, offered = time.monotonic(), 0
    async for spent in running(seconds):
        now = time.monotonic()
        while offered < spent * per_second:
            if rates[offered % len(rates)].take(now) == 0.0:
                taken.append(now)
            offered += 1
    return taken, time.monotonic() - start


@pytest.mark.parametrize("burst", [1, 20, 100])
async def test_ten_times_the_rate_gets_the_rate(valkey: Valkey, burst: float) -> None:
    """In every window no more than stated, and on the whole no less than the limit allows."""
    rate, seconds = 100, 3.0
    async with fleet(valkey.url) as gateways:
        rates = [leases.rate("tenant", rate, burst) for leases in gateways]

        taken, elapsed = await offer(rates, per_second=10 * rate, seconds=seconds)

    lease = rate * 0.25
    overshoot = GATEWAYS * (lease + max(1, min(lease, burst) / GATEWAYS))
    burst = max(burst, rate * 0.1)
    for first, start in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - start) + overshoot
    assert len(taken) >= AT_LEAST * rate * seconds
    assert len(taken) <= burst + rate * elapsed + GATEWAYS * max(1, min(lease, burst) / GATEWAYS) + TINY


async def test_all_gateways_get_their_part_of_a_rate(valkey: Valkey) -> None:
    async with fleet(valkey.url) as gateways:
        rates = [leases.rate("tenant", 300, 30) for leases in gateways]
        counts = [0] * GATEWAYS
        async for _ in running(3):
            now = time.monotonic()
            for which, rate in enumerate(rates):
                counts[which] += sum(rate.take(now) == 0.0 for _ in range(5))

    assert min(counts) >= 0.5 * sum(counts) / GATEWAYS, counts


async def test_a_gateway_alone_gets_the_whole_rate(valkey: Valkey) -> None:
    async with fleet(valkey.url) as gateways:
        taken, elapsed = await offer([gateways[0].rate("tenant", 200, 10)], per_second=2000, seconds=2)

    assert AT_LEAST * 400 <= len(taken) <= 10 + 200 * elapsed + 50 / GATEWAYS + 1


async def test_a_slow_rate_is_one_rate_for_all(valkey: Valkey) -> None:
    """Where the limit is less than a token per gateway and lease."""
    async with fleet(valkey.url) as gateways:
        rates = [leases.rate("tenant", 2, 1) for leases in gateways]
        taken, elapsed = await offer(rates, per_second=200, seconds=4)

    assert 6 <= len(taken) <= 1 + 2 * elapsed + GATEWAYS


async def test_what_nobody_spends_goes_back(valkey: Valkey) -> None:
    """And then there is no traffic at all."""
    async with fleet(valkey.url) as gateways:
        first, second = (leases.rate("tenant", 1, 10) for leases in gateways[:2])
        while first.take(time.monotonic()) == 0.0:  # noqa: ASYNC110  what is not taken is what counts
            await asyncio.sleep(0.1)
        assert second.take(time.monotonic()) == 0.0  # its start
        await until(lambda: not any(leases._active for leases in gateways), what="all of it has gone back")
        calls = await evalsha_calls(valkey.url)
        await asyncio.sleep(0.5)

        assert await evalsha_calls(valkey.url) == calls
        assert not any(leases._active for leases in gateways)


async def test_calls_at_a_time_never_exceed_the_limit(valkey: Valkey) -> None:
    """Checked at every single take; and nearly all slots are used, by all gateways."""
    most = 20
    most_seen = 0
    over = False
    finished = [0] * GATEWAYS
    async with fleet(valkey.url) as gateways:
        slots = [leases.slots("tenant", most) for leases in gateways]

        async def caller(which: int) -> None:
            nonlocal most_seen
            while not over:
                if slots[which].take():
                    in_use = sum(each.in_use for each in slots)
                    most_seen = max(most_seen, in_use)
                    assert in_use <= most
                    await asyncio.sleep(0.02)
                    slots[which].release()
                    finished[which] += 1
                else:
                    await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for at in range(GATEWAYS * 20):
                group.create_task(caller(at % GATEWAYS))
            async for _ in running(3):
                pass
            over = True

    assert most_seen >= most - 1
    assert min(finished) >= 0.5 * sum(finished) / GATEWAYS, finished
    assert sum(finished) >= 0.25 * most * 3 / 0.025


async def test_fewer_slots_than_gateways_are_still_a_limit(valkey: Valkey) -> None:
    """Nobody's first call has one at once, and everybody gets a turn."""
    finished = [0] * GATEWAYS
    async with fleet(valkey.url) as gateways:
        slots = [leases.slots("tenant", 1) for leases in gateways]
        assert not slots[0].take()

        def all_had_a_turn() -> bool:
            for which, each in enumerate(slots):
                if each.in_use:
                    each.release()
                    finished[which] += 1
                each.take()
                assert sum(other.in_use for other in slots) <= 1
            return min(finished) > 0

        await until(all_had_a_turn, what="every gateway has its turn")


async def test_a_gateway_that_dies_gives_its_slots_back(valkey: Valkey) -> None:
    alive = GATEWAYS
    async with gateway(valkey.url, gateways=lambda: alive) as survivor:
        dead = Leases(valkey.url, gateways=lambda: alive, mode="deny", answer_seconds=PATIENCE_SECONDS)
        keeping = asyncio.create_task(dead.keep())
        held = dead.slots("tenant", 8)

        def six_taken() -> bool:  # one each is kept for the survivor and for the third gateway
            held.take()
            return held.in_use == 6

        await until(six_taken, what="the one to die has slots")
        keeping.cancel()  # it says nothing more, and gives nothing back
        await asyncio.gather(keeping, return_exceptions=True)
        await dead._disconnect()
        slots = survivor.slots("tenant", 8)
        taken = sum(slots.take() for _ in range(8))
        assert taken + held.in_use <= 8
        alive = 1

        def all_taken() -> bool:
            slots.take()
            return slots.in_use == 8

        await until(all_taken, what="the dead one's slots come back")
        assert time.monotonic() >= held._balance._held_until  # not while it might have used them


async def test_no_cancellation_is_lost(valkey: Valkey) -> None:
    """Whenever it comes: `wait_for` of Python 3.11 loses one that comes together with the answer."""
    for at in range(100):
        leases = Leases(valkey.url, gateways=lambda: 1, mode="deny", answer_seconds=PATIENCE_SECONDS)
        keeping = asyncio.create_task(leases.keep())
        rate = leases.rate("tenant", 1000, 1000)
        for _ in range(at):
            rate.take(time.monotonic())
            await asyncio.sleep(0)
        keeping.cancel()

        await asyncio.wait({keeping}, timeout=PATIENCE_SECONDS)

        assert keeping.cancelled()
        await leases._disconnect()


async def test_leaving_gives_everything_back_at_once(valkey: Valkey) -> None:
    async with gateway(valkey.url, gateways=lambda: 1) as leaving:
        rate, slots = leaving.rate("tenant", 100, 100), leaving.slots("tenant", 8)
        rate.take(time.monotonic())
        slots.take()
        await until(lambda: rate._balance._tokens > 0 and slots._balance._held > 0, what="it holds some of both")
        slots.release()

    async with Redis.from_url(valkey.url) as redis:
        assert not await redis.exists("{headrace}:default:slots:tenant")
        full_at = float(await redis.get("{headrace}:default:rate:tenant") or 0)
        seconds, micros = await redis.time()
    assert full_at <= seconds * 1e6 + micros + 10_000


@pytest.mark.parametrize("mode", MODES)
async def test_without_valkey_the_mode_holds_until_it_is_back(valkey: Valkey, mode: Mode) -> None:
    """No call waits and none fails, whatever the mode."""
    async with fleet(valkey.url, mode=mode) as gateways:
        rates = [leases.rate("tenant", 30, 30) for leases in gateways]
        slots = [leases.slots("tenant", 9) for leases in gateways]
        assert [each.take() for each in slots] == [True] * GATEWAYS
        for rate in rates:
            rate.take(time.monotonic())
        await until(
            lambda: (
                all(rate._balance._answered_at > -math.inf for rate in rates)
                and all(each._balance._held_until > -math.inf for each in slots)
            ),
            what="all have leases of both",
        )

        valkey.kill()
        await until(lambda: all(leases.away for leases in gateways), what="all notice")
        assert all(leases.requests["answered"] and leases.requests["failed"] for leases in gateways)
        assert [leases.kept for leases in gateways] == [2] * GATEWAYS
        await asyncio.sleep(3.2)  # leases run out
        now = time.monotonic()
        counted = sum(rate.take(now) == 0.0 for rate in rates for _ in range(100))
        for each in slots:
            while each.in_use:
                each.release()
        at_a_time = sum(each.take() for each in slots for _ in range(100))

        assert {"local_share": 26 <= counted <= 31, "deny": counted == 0, "allow": counted == 300}[mode], counted
        assert at_a_time == {"local_share": 9, "deny": 0, "allow": 300}[mode]

        for each in slots:
            while each.in_use:
                each.release()
        valkey.start()
        await until(lambda: not any(leases.away for leases in gateways), what="all come back")
        taken, elapsed = await offer(rates, per_second=300, seconds=2)
        assert AT_LEAST * 60 <= len(taken) <= 30 + 30 * elapsed + GATEWAYS * 5


async def test_a_valkey_that_hangs_is_away_too(valkey: Valkey) -> None:
    """What it answers late is not taken for an answer to something else."""
    async with gateway(valkey.url, mode="allow", gateways=lambda: 1, answer_seconds=0.1) as leases:
        rate = leases.rate("tenant", 100, 10)
        rate.take(time.monotonic())
        await asyncio.sleep(0.1)
        async with Redis.from_url(valkey.url) as redis:
            await redis.client_pause(500)
        rate.take(time.monotonic())

        async def taking() -> None:
            while not leases.away:
                rate.take(time.monotonic())
                await asyncio.sleep(0.01)

        await asyncio.wait_for(taking(), PATIENCE_SECONDS)
        assert rate.take(time.monotonic(), 1000) == 0.0
        # An answer that comes late from here on is a busy machine's, which would open the limit to everything again.
        leases._answer_seconds = PATIENCE_SECONDS
        await until(lambda: not leases.away, what="it is back")
        taken, elapsed = await offer([rate], per_second=1000, seconds=2)
        assert AT_LEAST * 200 <= len(taken) <= 10 + 100 * elapsed + 25 + 25


async def test_a_valkey_that_was_never_there_delays_nothing(valkey: Valkey) -> None:
    valkey.kill()
    async with gateway(valkey.url, mode="local_share", gateways=lambda: 2) as leases:
        rate = leases.rate("tenant", 10, 10)
        assert rate.take(time.monotonic()) == 0.0
        await until(lambda: leases.away, what="it is noticed")
        assert sum(rate.take(time.monotonic()) == 0.0 for _ in range(100)) in range(4, 7)

        valkey.start()
        await until(lambda: not leases.away, what="it is there")


async def test_it_is_known_at_the_start_whether_valkey_is_there(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """Before any call has a limit."""
    async with gateway(valkey.url) as leases:
        assert not leases.shared
        await until(lambda: leases.shared, what="it has answered")
    assert not caplog.records
    valkey.kill()
    async with gateway(valkey.url) as leases:
        await until(lambda: leases.away, what="it is noticed")
        assert not leases.shared
        assert [record.__dict__["event"] for record in caplog.records] == ["limits_not_shared"]
        valkey.start()
        await until(lambda: leases.shared, what="it is there")


async def test_a_script_that_valkey_forgot_is_loaded_again(valkey: Valkey) -> None:
    async with gateway(valkey.url, gateways=lambda: 1) as leases:
        slots = leases.slots("tenant", 100)
        slots.take()
        async with Redis.from_url(valkey.url) as redis:
            await redis.script_flush()

        def grown() -> bool:
            slots.take()
            return slots.in_use == 50

        await until(grown, what="leases grow")
        assert not leases.away


def test_no_take_ever_waits() -> None:
    """They are plain functions: what they need is in hand."""
    for kind in (LeasedRate, LeasedSlots):
        assert not any(inspect.iscoroutinefunction(method) for _, method in inspect.getmembers(kind))
        assert not any(inspect.isasyncgenfunction(method) for _, method in inspect.getmembers(kind))


def admission(leases: Leases, limits: str) -> Admission:
    policy = read_policy(
        f"tenants:\n  acme:\n    models: [simple]\n    limits: {{{limits}}}\n    each_key: {{{limits}}}\n"
    )
    return Admission(
        policy,
        clock=time.monotonic,
        audit=Audit(time.monotonic),
        shared=leases,
        own=LocalCounters(),
        accounts=Accounts(None),
    )


async def test_a_burst_waits_for_its_leases_and_nobody_waits_for_what_is_used_up(valkey: Valkey) -> None:
    """From cold, at one of three gateways: all that the limits allow comes in, and the next one hears so at once."""
    caller = Caller("acme", "key")
    async with fleet(valkey.url) as gateways:
        at = admission(gateways[0], "calls_per_second: 0.01, burst: 60, concurrency: 100, bytes_per_second: 1000")

        async def enter() -> None:
            gate = at.gate(caller, "simple", method="m")
            assert gate is not None
            await at.enter(gate, caller, "simple", 10, method="m", call_id=b"")

        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                group.create_task(enter())
        for _ in range(10):
            with pytest.raises(RateLimited):
                at_once(enter())


async def test_nobody_waits_where_nobody_leases(valkey: Valkey) -> None:
    """Not for a Valkey that is gone, and not for longer than its answer may take."""
    async with gateway(valkey.url, mode="local_share", answer_seconds=0.1) as leases:
        valkey.kill()
        await until(lambda: tried(leases), what="it is noticed")
        slots = leases.slots("tenant", 3)

        assert not slots.soon()
        assert not leases.rate("tenant", 3, 3).soon(time.monotonic(), 1)


def tried(leases: Leases) -> bool:
    leases.rate("tried", 1, 1).take(time.monotonic())
    return leases.away


async def test_traffic_per_call_vanishes_as_the_rate_grows(valkey: Valkey) -> None:
    """A hundred times the calls, no more requests: a request a tick is the most there is."""
    per_call = []
    async with gateway(valkey.url, gateways=lambda: 1) as leases:
        for rate_per_second in (10, 100, 1000, 10_000):
            rate = leases.rate(f"tenant-{rate_per_second}", rate_per_second, rate_per_second)
            before = await evalsha_calls(valkey.url)
            taken, elapsed = await offer([rate], per_second=rate_per_second, seconds=2)
            requests = await evalsha_calls(valkey.url) - before
            assert requests <= (elapsed + 0.2) / 0.04
            assert len(taken) >= AT_LEAST * rate_per_second * 2
            per_call.append(requests / len(taken))
            print(f"{rate_per_second}/s: {len(taken)} calls, {requests} requests")  # noqa: T201  for whoever asks with -s

    assert per_call == sorted(per_call, reverse=True)
    assert per_call[-1] < 0.01


async def test_all_buckets_share_one_request(valkey: Valkey) -> None:
    async with gateway(valkey.url, gateways=lambda: 1) as leases:
        rates = [leases.rate(f"tenant-{at}", 100, 100) for at in range(50)]
        before = await evalsha_calls(valkey.url)
        taken, elapsed = await offer(rates, per_second=1000, seconds=1)
        requests = await evalsha_calls(valkey.url) - before

    assert len(taken) >= AT_LEAST * 1000
    assert requests <= (elapsed + 0.1) / 0.04


async def test_buckets_beyond_the_bound_live_as_if_redis_were_away(valkey: Valkey) -> None:
    async with gateway(valkey.url, gateways=lambda: 1) as leases:
        for at in range(MAX_BUCKETS):
            assert leases.rate(f"tenant-{at}", 1, 1).take(time.monotonic()) == 0.0

        assert leases.rate("one more", 1, 1).take(time.monotonic()) > 0.0
        await asyncio.sleep(0.5)
        assert not leases.away
        assert len(leases._kept) == MAX_BUCKETS


async def test_two_holders_of_one_name_share_one_limit(valkey: Valkey) -> None:
    async with gateway(valkey.url, gateways=lambda: 1) as leases:
        first: Concurrency = leases.slots("tenant", 1)
        second: Concurrency = leases.slots("tenant", 1)
        rate: Rate = leases.rate("tenant", 1, 1)

        assert first.take()
        assert not second.take()
        second.release()
        assert second.take()
        assert rate.take(time.monotonic()) == 0.0
        assert leases.rate("tenant", 1, 1).take(time.monotonic()) > 0.0


async def test_the_script_counts_as_gcra_does(valkey: Valkey) -> None:
    """The same takes, settled through the script and taken from a local bucket: the same is left."""
    rate, burst = 0.0001, 50.0  # so slow that the time between two requests is nothing
    local = Gcra(rate, burst)
    async with Redis.from_url(valkey.url) as redis:
        for amount in (1.0, 0.25, 30.0, 18.75, 5.0, 0.5):
            granted, left = await ask(redis, RateAsk(rate, burst, 0.0, amount, amount))
            assert (granted == amount) == (local.take(0.0, amount) == 0.0)
            assert granted in (0.0, amount)
            assert left == pytest.approx(local.left(0.0), abs=0.01)
        _, left = await ask(redis, RateAsk(rate, burst, -1000.0, 0.0, 0.0))
        assert left == burst
        granted, left = await ask(redis, RateAsk(rate, burst, 0.0, 80.0, 80.0))
        assert granted == 80.0
        assert left == pytest.approx(-30.0, abs=0.01)
        _, left = await ask(redis, RateAsk(rate, burst, 5.0, 0.0, 0.0))
        assert left == pytest.approx(-35.0, abs=0.01)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 50])
async def test_the_script_never_gives_more_slots_than_there_are(valkey: Valkey, most: int) -> None:
    """Whoever asks for whatever, if nobody keeps what it does not hold; and all of them, when all are wanted."""
    chance = random.Random(most)  # noqa: S311  no secret
    start = 1 if most >= GATEWAYS else 0
    held = [0] * GATEWAYS
    async with Redis.from_url(valkey.url) as redis:
        for step in range(300):
            me = chance.randrange(GATEWAYS)
            mine = max(held[me], start)
            keep = chance.randint(0, mine)
            wish = most if step >= 250 else chance.randint(keep, most)
            granted, target = await ask(redis, SlotsAsk(most, keep, wish), me=str(me))
            assert keep <= granted <= max(keep, min(wish, target))
            held[me] = int(granted)
            assert sum(max(each, start) for each in held) <= most

        for me in [*range(GATEWAYS)] * 2:
            granted, _ = await ask(redis, SlotsAsk(most, 0, most), me=str(me))
            held[me] = int(granted)
    assert max(held) - min(held) <= 1
    assert sum(held) >= most - 1  # unless the turn for what does not divide passed on in between


async def ask(redis: Redis, asked: RateAsk | SlotsAsk, *, me: str = "me") -> tuple[float, float]:
    kind = "rate" if isinstance(asked, RateAsk) else "slots"
    first, second = await redis.eval(SCRIPT, 1, kind, me, GATEWAYS, LAPSE_MICROS, kind, *asked)
    return float(first), float(second)

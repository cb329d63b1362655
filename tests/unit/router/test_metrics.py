"""What a scrape tells of a router."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.protocols import SeenEnd, TopicPartition
from headrace.bus.settings import KafkaSettings, ReplyTrustSettings
from headrace.bus.topics import request_topic
from headrace.runtime.telemetry import FORGET_SECONDS, MOST_NAMES, LoopLag, Telemetry
from router.app import Router
from router.intake import OUTCOMES
from router.metrics import instruments
from router.settings import RouterSection, RouterSettings, TritonSettings
from tests.unit.router.conftest import MakeRig
from tests.unit.router.rig import AN_HOUR, POOL, Rig, settle

SIMPLE, ODD = (request_topic(POOL, "interactive", model) for model in ("simple", "größe/β"))


class Scraped:
    """What a scrape tells of a rig; what has no twin is a real router's, that never starts."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        secret = folder / "secret"
        secret.write_text("shared")
        settings = RouterSettings(
            kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
            reply_trust=ReplyTrustSettings(secret_file=secret),
            router=RouterSection(id="r", triton=TritonSettings(address="127.0.0.1:1")),
        )
        self.router = Router(settings, Whereabouts(["127.0.0.1"]))
        self.now = 0.0
        self._telemetry = Telemetry(
            *instruments(
                self.router._inventory,
                rig.intake,
                self.router._links,
                rig.consumer,
                pool=POOL,
                certificate=None,
                lag=LoopLag(),
                announcements_age=lambda: 2.0,
                clock=lambda: self.now,
            )
        )

    def __getitem__(self, name: str) -> Mapping[str, float]:
        """The samples of a name by their label; by "" where they have none."""
        families = text_string_to_metric_families(self._telemetry.scrape().decode())
        return {
            next(iter(sample.labels.values()), ""): sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"headrace_router_{name}"
        }


@pytest.fixture
async def rig(rigged: MakeRig) -> Rig:
    """Two models, one with a window of one."""
    made = rigged(topics=(SIMPLE, ODD), partitions=2)
    await made.start({SIMPLE: 1, ODD: 4})
    return made


@pytest.fixture
async def router(tmp_path: Path, rig: Rig) -> Scraped:
    return Scraped(tmp_path, rig)


async def test_a_model_that_is_served_is_told_of_where_nothing_waits(router: Scraped) -> None:
    """An autoscaler has to see a 0: it can't tell what is missing from what is down."""
    nothing = {"simple": 0, "größe/β": 0}

    for name in ("running", "waiting", "lag_records", "oldest_wait_seconds", "queue_wait_seconds_count"):
        assert router[name] == nothing, name
    assert router["window"] == {"simple": 1, "größe/β": 4}
    assert router["partitions"] == {"simple": 2, "größe/β": 2}


async def test_what_runs_waits_and_is_not_fetched_is_told_apart(rig: Rig, router: Scraped) -> None:
    for number in range(6):
        rig.publish(b"%d" % number, topic=SIMPLE)
    await settle()

    told = {name: router[name]["simple"] for name in ("running", "waiting", "lag_records")}

    assert told["running"] == 1
    assert sum(told.values()) == 6
    assert told["lag_records"] > 0, "the window is one, and its queue is bounded"
    assert router["waiting_bytes"][""] == told["waiting"]


async def test_the_oldest_wait_is_that_of_what_may_still_begin(rig: Rig, router: Scraped) -> None:
    rig.publish(b"a", topic=SIMPLE)
    rig.publish(b"b", topic=SIMPLE)
    await settle()
    [expires] = rig.intake.lanes[SIMPLE].waiting
    expires.record.timestamp_millis -= 60_000
    assert 59 < router["oldest_wait_seconds"]["simple"] < 70

    expires.envelope.expire_time_unix_micros = time.time_ns() // 1000

    assert router["waiting"]["simple"] == 1
    assert router["oldest_wait_seconds"]["simple"] == 0


def aged(rig: Rig, place: TopicPartition, offset: int, seconds: float) -> None:
    """Make a record older than it is."""
    rig.log.records[place][offset].timestamp_millis -= round(seconds * 1000)


async def test_what_is_not_fetched_waits_too(rig: Rig, router: Scraped) -> None:
    """Paused for want of room, with nothing of it here: the queue is all in the log."""
    rig.consumer.pause(SIMPLE)
    for number in range(4):
        place, offset = rig.publish(b"%d" % number, topic=SIMPLE)
        aged(rig, place, offset, 60 - number)
    await settle()
    assert router["waiting"]["simple"] == 0

    assert 59 < router["oldest_wait_seconds"]["simple"] < 70


async def test_what_is_fetched_may_be_younger_than_what_is_not(rig: Rig, router: Scraped) -> None:
    """Of two partitions of a model one may be read, and the other one older."""
    for number in range(8):
        place, offset = rig.publish(b"%d" % number, topic=SIMPLE, partition=0)
        aged(rig, place, offset, 5)
    place, offset = rig.publish(b"old", topic=SIMPLE, partition=1)
    aged(rig, place, offset, 60)
    await settle()
    assert {each.record.place.partition for each in rig.intake.lanes[SIMPLE].waiting} == {0}

    assert 59 < router["oldest_wait_seconds"]["simple"] < 70


async def test_what_is_read_since_the_log_was_looked_at_does_not_wait(rig: Rig) -> None:
    place, offset = rig.publish(b"a", topic=ODD)
    aged(rig, place, offset, 60)
    seen = rig.consumer.unread
    await settle()
    assert rig.server.begun

    assert place in seen
    assert rig.intake.oldest_waits(seen) == {SIMPLE: 0, ODD: 0}


async def test_another_routers_records_do_not_wait_here(rig: Rig) -> None:
    elsewhere = {TopicPartition(SIMPLE, 7): [SeenEnd(0.0, 1)]}

    assert rig.intake.oldest_waits(elsewhere)[SIMPLE] == 0


async def test_what_expired_in_the_log_does_not_wait_for_ever(rig: Rig, router: Scraped) -> None:
    """Nobody knows before it is read; but no call of this model has waited for more than half a minute here."""
    rig.publish(b"a", topic=SIMPLE, seconds=30)
    await settle()
    rig.consumer.pause(SIMPLE)
    for age in (50, 40, 31, 20):
        place, offset = rig.publish(b"%d" % age, topic=SIMPLE)
        aged(rig, place, offset, age)

    assert 19 < router["oldest_wait_seconds"]["simple"] < 25

    aged(rig, place, offset, 20)
    assert router["oldest_wait_seconds"]["simple"] == 0


async def test_where_none_has_come_the_log_keeps_calls_for_as_long_as_it_keeps_anything(rigged: MakeRig) -> None:
    rig = rigged(topics=(SIMPLE,), longest_seconds=3600)
    await rig.start({SIMPLE: 1})
    rig.consumer.pause(SIMPLE)
    place, offset = rig.publish(b"a", topic=SIMPLE)
    aged(rig, place, offset, 3590)
    assert rig.intake.oldest_waits(rig.consumer.unread)[SIMPLE] > 3580

    aged(rig, place, offset, 20)

    assert rig.intake.oldest_waits(rig.consumer.unread)[SIMPLE] == 0


async def test_one_long_deadline_of_long_ago_keeps_nothing_that_expired_alive(rigged: MakeRig) -> None:
    """What came before anything that the log still keeps says nothing of what waits there now."""
    keeps = 3600.0
    rig = rigged(topics=(SIMPLE,), longest_seconds=keeps)
    await rig.start({SIMPLE: 8})

    async def comes(call_id: bytes, seconds: float) -> None:
        rig.publish(call_id, topic=SIMPLE, seconds=seconds)
        await settle()

    def waits(seconds_ago: float) -> bool:
        seen = {TopicPartition(SIMPLE, 1): [SeenEnd(time.time() - seconds_ago, 1)]}
        return rig.intake.oldest_waits(seen)[SIMPLE] > 0

    await comes(b"long", 300)
    rig.now += keeps - 1
    await comes(b"a", 100)
    assert waits(290), "one that came beside it may be there still"

    rig.now += 2
    await comes(b"b", 100)
    assert waits(290)
    assert not waits(310)

    rig.now += keeps + 1
    await comes(b"c", 100)
    assert waits(90)
    assert not waits(110)

    await comes(b"longer", 300)
    rig.now += 24 * keeps
    await comes(b"d", 100)
    assert not waits(110)


async def test_where_no_call_comes_the_last_ones_say_for_how_long_one_may_wait(rigged: MakeRig) -> None:
    """While the model server is away for hours nothing is fetched: what expires in the log goes on to be known."""
    rig = rigged(topics=(SIMPLE,), longest_seconds=3600)
    await rig.start({SIMPLE: 8})
    rig.publish(b"a", topic=SIMPLE, seconds=30)
    await settle()

    rig.now += 24 * AN_HOUR

    there = {TopicPartition(SIMPLE, 1): [SeenEnd(time.time() - 40, 1), SeenEnd(time.time() - 20, 2)]}
    assert rig.intake.oldest_waits(there)[SIMPLE] == pytest.approx(20, abs=5)


async def test_a_record_without_a_time_is_timed_nowhere(rig: Rig, router: Scraped) -> None:
    """It would have waited since 1970, and so might every other one."""
    for call_id in (b"runs", b"waits"):
        place, offset = rig.publish(call_id, topic=SIMPLE)
        rig.log.records[place][offset].timestamp_millis = 0
    await settle()

    assert (router["running"]["simple"], router["waiting"]["simple"]) == (1, 1)
    assert router["queue_wait_seconds_count"]["simple"] == 0
    assert router["oldest_wait_seconds"]["simple"] == 0
    assert rig.intake.lanes[SIMPLE].longest_seconds == 0


async def test_what_waits_for_its_gateway_is_old_too(rig: Rig, router: Scraped) -> None:
    place, offset = rig.publish(b"a", topic=ODD, gateway=("127.0.0.1:8", 1))
    record = rig.log.records[place][offset]
    record.timestamp_millis -= 5_000
    rig.network.unreachable.add("127.0.0.1:8")
    rig.intake.records([record])  # before the link is found out to be none

    assert router["waiting"] == {"simple": 0, "größe/β": 1}
    assert 4 < router["oldest_wait_seconds"]["größe/β"] < 15
    rig.consumer._positions[place] = offset + 1


async def test_waits_and_runs_are_timed_by_model(rig: Rig, router: Scraped) -> None:
    rig.publish(b"a", topic=SIMPLE)
    await settle()
    rig.now += 0.7
    rig.server.finish(b"a")
    await settle()

    assert router["queue_wait_seconds_count"] == {"simple": 1, "größe/β": 0}
    assert 0 <= router["queue_wait_seconds_sum"]["simple"] < AN_HOUR
    assert router["triton_duration_seconds_count"] == {"simple": 1, "größe/β": 0}
    assert router["triton_duration_seconds_sum"]["simple"] == pytest.approx(0.7)
    assert router["records_total"] == dict.fromkeys(OUTCOMES, 0) | {"answered": 1}


async def test_a_gateway_s_clock_that_goes_ahead_makes_no_wait_negative(rig: Rig, router: Scraped) -> None:
    place = TopicPartition(SIMPLE, 0)
    rig.publish(b"a", topic=SIMPLE)
    rig.log.records[place][0].timestamp_millis += 60_000
    await settle()

    assert router["queue_wait_seconds_sum"]["simple"] == 0


async def test_rebalances_are_counted_by_what_they_were(rig: Rig, router: Scraped) -> None:
    assert router["rebalances_total"] == {"assigned": 1, "revoked": 0, "lost": 0}

    rig.consumer.lose()
    await settle()
    rig.consumer.subscribe([ODD])
    await settle()

    assert router["rebalances_total"] == {"assigned": 2, "revoked": 1, "lost": 1}
    assert router["partitions"]["größe/β"] == 2


async def test_a_model_that_has_left_keeps_its_counts_for_an_hour(rig: Rig, router: Scraped) -> None:
    rig.publish(b"a", topic=SIMPLE)
    await settle()
    rig.server.finish(b"a")
    await settle()
    rig.intake.set_windows({ODD: 4})
    rig.consumer.subscribe([ODD])
    await settle()

    assert router["window"] == {"größe/β": 4}
    assert router["queue_wait_seconds_count"] == {"simple": 1, "größe/β": 0}
    router.now += FORGET_SECONDS

    assert router["queue_wait_seconds_count"] == {"größe/β": 0}


async def test_models_beyond_the_bound_are_told_together(tmp_path: Path, rigged: MakeRig) -> None:
    rig = rigged(topics=())
    router = Scraped(tmp_path, rig)
    await rig.start({request_topic(POOL, "interactive", f"m{number}"): 3 for number in range(MOST_NAMES + 2)})

    windows = router["window"]

    assert len(windows) == MOST_NAMES + 1
    assert windows["other"] == 6


async def test_the_rest_is_told_as_it_is(router: Scraped) -> None:
    router.router._inventory.ready, router.router._inventory.starts = True, 3

    assert (router["triton_ready"], router["triton_starts_total"]) == ({"": 1}, {"": 3})
    assert (router["gateways_attached"], router["unacknowledged_bytes"]) == ({"": 0}, {"": 0})
    assert router["announcements_age_seconds"] == {"": 2}

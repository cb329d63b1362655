"""What a process has to say reaches the log: each change once, all of it again after an outage, heartbeats always."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from headrace.bus.beacon import Beacon
from headrace.bus.memory.announcements import MemoryAnnouncements
from headrace.bus.protocols import LogUnavailableError
from headrace.bus.topics import LARGEST_ANNOUNCEMENT_BYTES
from headrace.bus.v1.announcement_pb2 import Announcement, GatewayHeartbeat, ModelDescription

OWN = "gateway/g"
SECONDS = 30.0
NEVER_SECONDS = 3600.0
OFTEN_SECONDS = 0.01


class ToldLog(MemoryAnnouncements):
    """Remembers what was announced in which order, and can be made to take its time."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, Announcement | None]] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.changed = asyncio.Condition()
        self.refused: set[str] = set()

    async def announce(self, key: str, announcement: Announcement | None) -> None:
        self.begun.set()
        await self.go_on.wait()
        try:
            if key in self.refused:
                raise LogUnavailableError("not announced: told to refuse")
            await super().announce(key, announcement)
            self.said.append((key, announcement))
        finally:
            async with self.changed:
                self.changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS), self.changed:
            await self.changed.wait_for(holds)


def about(model: str, window: int = 1) -> Announcement:
    return Announcement(model=ModelDescription(model=model, window=window))


def heartbeat(beat: int) -> Announcement:
    return Announcement(gateway=GatewayHeartbeat(beat=beat))


@pytest.fixture
def log() -> ToldLog:
    return ToldLog()


@pytest.fixture
def beacon(log: ToldLog) -> Beacon:
    return Beacon(log, key=OWN, heartbeat=heartbeat, every_seconds=NEVER_SECONDS)


@asynccontextmanager
async def kept(beacon: Beacon) -> AsyncIterator[None]:
    task = asyncio.create_task(beacon.keep(), name="beacon")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_did_not_change_is_not_said_again(log: ToldLog, beacon: Beacon) -> None:
    beacon.put("a", about("a"))
    await beacon.say()
    beacon.put("a", about("a"))
    await beacon.say()

    assert log.said == [("a", about("a"))]


async def test_only_the_newest_word_is_said(log: ToldLog, beacon: Beacon) -> None:
    beacon.put("a", about("a", 1))
    beacon.put("a", about("a", 2))
    await beacon.say()

    assert log.said == [("a", about("a", 2))]


async def test_a_word_that_is_taken_back_before_it_was_said_leaves_the_old_one(log: ToldLog, beacon: Beacon) -> None:
    beacon.put("a", about("a", 1))
    await beacon.say()
    beacon.put("a", about("a", 2))
    beacon.put("a", about("a", 1))
    await beacon.say()

    assert log.said == [("a", about("a", 1))]


@pytest.mark.parametrize("last", [1, 3, None])
async def test_a_word_that_changes_while_it_is_being_said_is_said_after_it(
    log: ToldLog, beacon: Beacon, last: int | None
) -> None:
    """Also where it changes back to what was said before: the log would keep the word in between."""
    wanted = None if last is None else about("a", last)
    beacon.put("a", about("a", 1))
    await beacon.say()
    log.begun.clear()
    log.go_on.clear()
    beacon.put("a", about("a", 2))
    saying = asyncio.create_task(beacon.say())
    async with asyncio.timeout(SECONDS):
        await log.begun.wait()
        beacon.put("a", wanted)
        log.go_on.set()
        await saying
        await beacon.say()

    assert log.newest("a") == wanted
    assert [said for _, said in log.said] == [about("a", 1), about("a", 2), wanted]


async def test_a_word_that_failed_may_have_been_heard_and_is_corrected(log: ToldLog, beacon: Beacon) -> None:
    """A log that did not answer in time may have taken it all the same: going back to the old word is news too."""
    beacon.put("a", about("a", 1))
    await beacon.say()
    log.available = False
    beacon.put("a", about("a", 2))
    with pytest.raises(LogUnavailableError):
        await beacon.say()

    log.available = True
    beacon.put("a", about("a", 1))
    await beacon.say()

    assert log.said == [("a", about("a", 1)), ("a", about("a", 1))]


async def test_nothing_is_lost_while_the_log_is_away(log: ToldLog) -> None:
    """What was put before and during the outage is said after it, without being put again."""
    beacon = Beacon(log, key=OWN, heartbeat=heartbeat, every_seconds=OFTEN_SECONDS)
    log.available = False
    beacon.put("a", about("a", 1))
    beacon.put("b", about("b"))
    async with kept(beacon):
        await log.until(lambda: log.attempts >= 3)
        beacon.put("a", about("a", 2))
        beacon.put("gone", None)
        assert log.said == []

        log.available = True
        wanted = [("a", about("a", 2)), ("b", about("b")), ("gone", None)]
        await log.until(lambda: all(word in log.said for word in wanted))

    assert log.newest("a") == about("a", 2)


async def test_an_outage_is_told_once_and_so_is_its_end(log: ToldLog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "headrace.bus.beacon")
    beacon = Beacon(log, key=OWN, heartbeat=heartbeat, every_seconds=OFTEN_SECONDS)
    log.available = False
    async with kept(beacon):
        await log.until(lambda: log.attempts >= 5)
        log.available = True
        await log.until(lambda: len(log.said) >= 3)

    events = [getattr(record, "event", None) for record in caplog.records]
    assert events == ["announcing_failed", "announcing_again"]


async def test_a_word_that_changes_back_while_another_is_said_is_left_out(log: ToldLog, beacon: Beacon) -> None:
    """And the words behind it are said all the same."""
    beacon.put("b", about("b", 1))
    await beacon.say()
    log.begun.clear()
    log.go_on.clear()
    for key in "abc":
        beacon.put(key, about(key, 2))
    saying = asyncio.create_task(beacon.say())
    async with asyncio.timeout(SECONDS):
        await log.begun.wait()
        beacon.put("b", about("b", 1))
        log.go_on.set()
        await saying

    assert log.said == [("b", about("b", 1)), ("a", about("a", 2)), ("c", about("c", 2))]


async def test_what_the_log_refuses_holds_up_nothing_behind_it(log: ToldLog) -> None:
    beacon = Beacon(log, key=OWN, heartbeat=heartbeat, every_seconds=OFTEN_SECONDS)
    log.refused = {"a"}
    for key in "abc":
        beacon.put(key, about(key))
    async with kept(beacon):
        await log.until(lambda: all((key, about(key)) in log.said for key in "bc"))


async def test_what_is_too_large_is_given_up_and_told_once(
    log: ToldLog, beacon: Beacon, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be too large the next time as well; whoever describes it anew each second need not know."""
    large = Announcement(model=ModelDescription(model="m" * LARGEST_ANNOUNCEMENT_BYTES))
    for _ in range(3):
        beacon.put("a", large)
        beacon.put("b", about("b"))
        await beacon.say()

    assert log.said == [("b", about("b"))]
    assert [getattr(record, "event", None) for record in caplog.records] == ["announcement_too_large"]

    beacon.put("a", about("a"))
    await beacon.say()
    assert log.newest("a") == about("a")


async def test_heartbeats_go_on_by_themselves_and_are_counted(log: ToldLog) -> None:
    beacon = Beacon(log, key=OWN, heartbeat=heartbeat, every_seconds=OFTEN_SECONDS)
    async with kept(beacon):
        await log.until(lambda: len(log.said) >= 3)

    assert log.said[:3] == [(OWN, heartbeat(1)), (OWN, heartbeat(2)), (OWN, heartbeat(3))]


async def test_a_change_does_not_wait_for_the_next_heartbeat(log: ToldLog, beacon: Beacon) -> None:
    """Neither one that was put, nor one in the heartbeat itself."""
    async with kept(beacon):
        await log.until(lambda: log.said == [(OWN, heartbeat(1))])
        beacon.put("a", about("a"))
        await log.until(lambda: ("a", about("a")) in log.said)
        beacon.beat_soon()
        await log.until(lambda: (OWN, heartbeat(2)) in log.said)

    assert len(log.said) == 3


async def test_what_is_forgotten_is_taken_back_once(log: ToldLog, beacon: Beacon) -> None:
    """What was said and what is only about to be said; never what was taken back already, nor what stays."""
    for key in ("stays", "goes", "gone"):
        beacon.put(key, about(key))
    await beacon.say()
    beacon.put("gone", None)
    await beacon.say()
    beacon.put("soon", about("soon"))
    log.said.clear()

    beacon.forget({"stays"})
    await beacon.say()
    beacon.forget({"stays"})
    await beacon.say()

    assert sorted(log.said, key=lambda word: word[0]) == [("goes", None), ("soon", None)]
    assert log.newest("stays") == about("stays")


# What others take back: routers that are gone, and by mistake one that has come back.


async def test_a_word_that_somebody_else_took_back_is_said_again_once(log: ToldLog, beacon: Beacon) -> None:
    beacon.put("a", about("a"))
    await beacon.say()

    beacon.taken_back("a")
    await beacon.say()
    await beacon.say()

    assert log.said == [("a", about("a"))] * 2


async def test_a_word_that_was_taken_back_is_said_again_without_being_asked(log: ToldLog, beacon: Beacon) -> None:
    async with kept(beacon):
        beacon.put("a", about("a"))
        await log.until(lambda: log.newest("a") is not None)
        await log.announce("a", None)
        beacon.taken_back("a")
        await log.until(lambda: log.newest("a") is not None)


async def test_what_it_took_back_itself_is_not_said_again(log: ToldLog, beacon: Beacon) -> None:
    """Its own take-backs come back through the log too, also before the log has answered."""
    beacon.put("a", about("a"))
    await beacon.say()
    log.begun.clear()
    log.go_on.clear()
    beacon.put("a", None)
    saying = asyncio.create_task(beacon.say())
    async with asyncio.timeout(SECONDS):
        await log.begun.wait()
        beacon.taken_back("a")
        log.go_on.set()
        await saying
    beacon.taken_back("a")
    await beacon.say()

    assert log.said == [("a", about("a")), ("a", None)]


async def test_a_heartbeat_that_was_taken_back_is_said_again_before_its_time(log: ToldLog, beacon: Beacon) -> None:
    async with kept(beacon):
        await log.until(lambda: log.newest(OWN) is not None)
        await log.announce(OWN, None)
        beacon.taken_back(OWN)
        await log.until(lambda: log.newest(OWN) is not None)


@pytest.mark.parametrize("said", [True, False])
async def test_a_word_that_is_about_to_be_said_or_taken_back_is_so_all_the_same(
    log: ToldLog, beacon: Beacon, *, said: bool
) -> None:
    """At a start the log may tell what was taken back of a former run."""
    if said:
        beacon.put("a", about("a", 1))
        await beacon.say()
        log.said.clear()
    for key, word in (("a", None), ("b", about("b"))):
        beacon.put(key, word)
        beacon.taken_back(key)
    beacon.taken_back("unknown")
    await beacon.say()
    await beacon.say()

    assert log.said == [("a", None), ("b", about("b"))]


async def test_a_word_that_is_taken_back_while_it_is_said_is_said_once_more(log: ToldLog, beacon: Beacon) -> None:
    """The log may have it before what took it back, and answers only then."""
    log.go_on.clear()
    beacon.put("a", about("a"))
    saying = asyncio.create_task(beacon.say())
    async with asyncio.timeout(SECONDS):
        await log.begun.wait()
        beacon.taken_back("a")
        log.go_on.set()
        await saying
    await beacon.say()
    await beacon.say()

    assert log.said == [("a", about("a"))] * 2


async def test_a_word_that_was_taken_back_and_changes_is_said_as_it_is_now(log: ToldLog, beacon: Beacon) -> None:
    beacon.put("a", about("a", 1))
    await beacon.say()
    beacon.put("a", about("a", 2))
    beacon.taken_back("a")
    beacon.put("a", about("a", 1))
    await beacon.say()

    assert log.said == [("a", about("a", 1))] * 2


async def test_keys_that_were_taken_back_are_not_remembered(log: ToldLog, beacon: Beacon) -> None:
    """They may be those of every router that ever was."""
    for number in range(100):
        beacon.put(f"other/{number}", None)
    beacon.put("a", about("a"))
    await beacon.say()

    assert (beacon._said, beacon._wanted) == ({"a": about("a")}, {})
    assert len(log.said) == 101


async def test_leaving_takes_back_the_heartbeat(log: ToldLog, beacon: Beacon) -> None:
    await beacon.beat()
    await beacon.leave(seconds=SECONDS)
    assert log.said == [(OWN, heartbeat(1)), (OWN, None)]


@pytest.mark.parametrize("stuck", [True, False])
async def test_a_log_that_is_away_does_not_hold_up_a_goodbye(
    log: ToldLog, beacon: Beacon, caplog: pytest.LogCaptureFixture, *, stuck: bool
) -> None:
    if stuck:
        log.go_on.clear()
    else:
        log.available = False

    async with asyncio.timeout(SECONDS):
        await beacon.leave(seconds=0.01 if stuck else SECONDS)

    assert [getattr(record, "event", "") for record in caplog.records] == ["goodbye_failed"]

"""What the router does with records: within the window, once, and never for nobody."""

import asyncio
import logging
import time

import pytest

from headrace.bus.memory.requests import MemoryConsumer
from headrace.bus.protocols import Failure, LinkState, Outcome, TopicPartition
from headrace.bus.v1.envelope_pb2 import METHOD_UNSPECIFIED, Metadatum
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from tests.unit.router.conftest import MakeRig
from tests.unit.router.rig import AN_HOUR, GATEWAY, INCARNATION, Answers, OtherMember, Rig, micros, settle


def ids(count: int, prefix: bytes = b"c") -> list[bytes]:
    return [prefix + b"%d" % number for number in range(count)]


async def test_a_call_is_run_with_its_metadata_and_remaining_time_and_answered(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 2})
    metadata = [Metadatum(key="k", value=b"v")]

    rig.publish(b"c", seconds=3000, metadata=metadata)
    await settle()
    began = rig.server.running[b"c"]
    rig.server.finish(b"c", b"result")
    await settle()

    assert 2900 < began.seconds <= 3000
    assert list(began.metadata) == metadata
    assert rig.answers.heard == [(b"c", 1, b"result")]
    assert +rig.intake.ended == {"answered": 1}


async def test_what_the_model_server_says_of_a_call_goes_home_as_it_is(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 3})
    status = ModelServerStatus(code=14, message="queue full")

    for call_id in ids(3):
        rig.publish(call_id)
    await settle()
    rig.server.finish(b"c0", status)
    rig.server.finish(b"c1", Failure.TRITON_LOST)
    rig.server.finish(b"c2", RuntimeError("unforeseen"))
    await settle()

    assert rig.answers.heard == [(b"c0", 1, status), (b"c1", 1, Failure.TRITON_LOST), (b"c2", 1, Failure.INTERNAL)]


async def test_how_long_a_call_was_with_the_model_server_is_told_of_its_tenant_and_model(rigged: MakeRig) -> None:
    """However it ends; the time that it waited for its turn is none of it."""
    rig = rigged()
    await rig.start({"t": 1})
    for number, call_id in enumerate(ids(5)):
        rig.publish(call_id, tenant=f"tenant-{number}")
    await settle()
    assert rig.used == []

    ends: list[Outcome | Exception] = [
        b"answer",
        ModelServerStatus(code=3, message="no"),
        Failure.TRITON_LOST,
        RuntimeError("unforeseen"),
    ]
    for number, end in enumerate(ends):
        rig.now += 1 + number
        rig.server.finish(b"c%d" % number, end)
        await settle()
    rig.now += 7
    rig.cancelled(b"c4", 1, micros(AN_HOUR))
    await settle()

    assert rig.used == [
        ("tenant-0", "t", 1),
        ("tenant-1", "t", 2),
        ("tenant-2", "t", 3),
        ("tenant-3", "t", 4),
        ("tenant-4", "t", 7),
    ]


async def test_what_nobody_waits_for_costs_what_is_usual(rigged: MakeRig) -> None:
    """The model runs on; who hangs up, or gives it no time, is not to have it for less. More than that costs more."""
    rig = rigged()
    await rig.start({"t": 4})
    for call_id in ids(4):
        rig.publish(call_id, tenant=call_id.decode())
    await settle()

    rig.now += 2
    rig.server.finish(b"c0", b"answer")
    await settle()
    rig.server.finish(b"c1", Failure.EXPIRED)
    await settle()
    for call_id in (b"late", b"later"):
        rig.publish(call_id, tenant=call_id.decode())
        await settle()
    rig.now += 0.5
    rig.cancelled(b"late", 1, micros(AN_HOUR))
    await settle()
    rig.now += 9
    rig.cancelled(b"later", 1, micros(AN_HOUR))
    await settle()

    assert rig.used == [("c0", "t", 2), ("c1", "t", 2), ("late", "t", 2), ("later", "t", 9.5)]


async def test_what_the_model_server_never_had_takes_none_of_its_time(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 1})

    rig.publish(b"late", seconds=-1)
    rig.publish(b"strange", method=METHOD_UNSPECIFIED)
    rig.publish(b"old", gateway=(GATEWAY, INCARNATION + 1))
    await settle()

    assert rig.intake.ended.total() == 3
    assert rig.used == []


async def test_the_time_of_what_is_cut_off_counts(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 2})
    for call_id in ids(2):
        rig.publish(call_id)
    await settle()
    rig.now += 3

    await rig.intake.cancel_running()

    assert rig.used == [("acme", "t", 3), ("acme", "t", 3)]


async def test_no_more_run_than_the_window_and_no_more_wait_than_another_one(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 3})

    for call_id in ids(20):
        rig.publish(call_id)
    await settle()

    assert sorted(rig.server.running) == ids(3)
    assert rig.intake.waiting <= 3
    assert "t" in rig.consumer.paused


async def test_the_next_call_begins_when_one_ends_and_all_are_run_in_order(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 2})
    for call_id in ids(12):
        rig.publish(call_id)
    await settle()

    for call_id in ids(12):
        rig.server.finish(call_id)
        await settle()

    assert rig.answers.ids == ids(12)
    assert set(rig.server.begun.values()) == {1}


async def test_a_full_model_does_not_hold_up_another_one(rigged: MakeRig) -> None:
    rig = rigged(topics=("slow", "quick"))
    await rig.start({"slow": 1, "quick": 4})
    for call_id in ids(10, b"slow"):
        rig.publish(call_id, topic="slow")
    await settle()

    for call_id in ids(10, b"quick"):
        rig.publish(call_id, topic="quick")
        await settle()
        rig.server.finish(call_id)
        await settle()

    assert rig.answers.ids == ids(10, b"quick")


async def test_a_topic_whose_backlog_vanishes_at_once_is_read_again(
    rigged: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that waits expires in the same turn in which everything that runs ends: no call is left to resume."""
    rig = rigged()
    await rig.start({"t": 2})
    for call_id in ids(2, b"run"):
        rig.publish(call_id)
    await settle()
    for call_id in ids(2, b"late"):
        rig.publish(call_id, seconds=60)
    await settle()
    assert "t" in rig.consumer.paused
    a_minute_later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: a_minute_later)  # by the clock that deadlines are of

    for call_id in ids(2, b"run"):
        rig.server.finish(call_id, Failure.EXPIRED)
    await settle()
    rig.publish(b"next")
    await settle()

    assert b"next" in rig.server.running
    assert rig.intake.ended["expired"] == 2


async def test_an_idle_model_is_read_again_after_too_many_bytes_waited_for_another(rigged: MakeRig) -> None:
    rig = rigged(topics=("big", "small"), max_waiting_bytes=1000)
    await rig.start({"big": 1, "small": 4})
    rig.publish(b"s", topic="small")
    await settle()
    for call_id in ids(2, b"b"):
        rig.publish(call_id, topic="big", payload=call_id.ljust(1500, b"."))
    await settle()
    assert {"big", "small"} <= rig.consumer.paused

    rig.server.finish(b"s")
    await settle()
    for call_id in ids(2, b"b"):
        rig.server.finish(call_id)
        await settle()
    rig.publish(b"again", topic="small")
    await settle()

    assert b"again" in rig.server.running


async def test_bytes_that_wait_are_bounded(rigged: MakeRig) -> None:
    rig = rigged(max_waiting_bytes=1000)
    await rig.start({"t": 4})
    for call_id in ids(30):
        rig.publish(call_id, payload=call_id.ljust(400, b"."))
        await settle()

    assert rig.intake.waiting <= 3
    assert len(rig.server.running) == 4


async def test_a_model_that_comes_back_is_read_again_even_if_it_left_while_it_was_paused(rigged: MakeRig) -> None:
    rig = rigged(topics=("t", "u"))
    await rig.start({"t": 1, "u": 1})
    for call_id in ids(3):
        rig.publish(call_id)
    await settle()
    assert "t" in rig.consumer.paused

    rig.consumer.subscribe(["u"])
    await settle()
    rig.intake.set_windows({"u": 1})
    rig.server.finish(b"c0")
    await settle()
    rig.intake.set_windows({"u": 1})
    rig.intake.set_windows({"t": 1, "u": 1})
    rig.consumer.subscribe(["t", "u"])
    await settle()

    assert list(rig.server.running) == [b"c1"]


async def test_a_record_that_comes_while_its_model_goes_gets_the_model_servers_own_word(rigged: MakeRig) -> None:
    """The subscription ends a little later than the model: until then the records of its partitions are ours."""
    rig = rigged()
    await rig.start({"t": 1})

    rig.intake.set_windows({})
    rig.publish(b"c")
    await settle()
    rig.server.finish(b"c", ModelServerStatus(code=14, message="unknown model"))
    await settle()

    assert rig.answers.heard == [(b"c", 1, ModelServerStatus(code=14, message="unknown model"))]
    rig.consumer.subscribe(())
    await settle()
    assert rig.committed() == 1


async def test_an_expired_call_is_not_run(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 1})

    rig.publish(b"c", seconds=-1)
    await settle()
    await rig.commit()

    assert not rig.server.begun
    assert +rig.intake.ended == {"expired": 1}
    assert rig.committed() == 1


@pytest.mark.parametrize("told_first", [True, False])
async def test_a_call_that_was_cancelled_before_it_began_is_not_run(rigged: MakeRig, *, told_first: bool) -> None:
    rig = rigged()
    await rig.start({"t": 1})
    rig.publish(b"busy")
    await settle()

    if told_first:
        rig.hub.cancel(b"c", 1, micros(AN_HOUR))
        await settle()
    rig.publish(b"c")
    await settle()
    if not told_first:
        rig.intake.cancelled(b"c", 1, micros(AN_HOUR))
    rig.server.finish(b"busy")
    await settle()

    assert b"c" not in rig.server.begun
    assert rig.intake.ended["cancelled"] == 1


async def test_a_cancellation_covers_earlier_attempts_and_no_later_one(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 4})

    rig.intake.cancelled(b"c", 2, micros(AN_HOUR))
    for attempt in (1, 2, 3):
        rig.publish(b"c", attempt=attempt)
        await settle()

    assert rig.server.begun == {b"c": 1}
    rig.server.finish(b"c")
    await settle()
    assert rig.answers.heard == [(b"c", 3, b"answer")]


async def test_a_cancelled_call_is_cancelled_in_the_model_server_and_frees_its_slot(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 1})
    rig.publish(b"c")
    rig.publish(b"next")
    await settle()

    rig.intake.cancelled(b"c", 1, micros(AN_HOUR))
    await settle()

    assert rig.server.cancelled == {b"c": 1}
    assert list(rig.server.running) == [b"next"]
    assert rig.answers.heard == []


async def test_a_call_that_is_cancelled_in_the_turn_in_which_it_begins_frees_its_slot(rigged: MakeRig) -> None:
    """Its task is cancelled before it ran for the first time, and then nothing inside it runs at all."""
    rig = rigged()
    await rig.start({"t": 1})
    rig.publish(b"gateway-known")
    await settle()
    rig.server.finish(b"gateway-known")
    await settle()
    begin_and_cancel_at_once(rig)
    await settle()
    rig.publish(b"next")
    await settle()

    assert rig.intake.running == 1
    assert list(rig.server.running) == [b"next"]


def begin_and_cancel_at_once(rig: Rig) -> None:
    place, offset = rig.publish(b"c")
    record = rig.log.records[place][offset]
    rig.consumer.room = 0  # handed over by hand, so that both happen in one turn
    rig.intake.records([record])
    rig.intake.cancelled(b"c", 1, micros(AN_HOUR))
    rig.consumer._positions[place] = offset + 1
    rig.consumer.set_room(1)


async def test_a_record_that_can_not_be_read_is_skipped_and_said(
    rigged: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = rigged()
    await rig.start({"t": 1})

    rig.publish(b"later", schema_version=99)
    rig.publish(b"other", method=METHOD_UNSPECIFIED)
    rig.log.append(TopicPartition("t", 0), b"foreign", b"\xff", b"")
    rig.log.append(TopicPartition("t", 0), b"bare", b"", b"")
    rig.publish(b"good")
    with caplog.at_level(logging.WARNING):
        await settle()

    assert list(rig.server.running) == [b"good"]
    assert +rig.intake.ended == {"unreadable": 3, "method_unknown": 1}
    assert [record.event for record in caplog.records] == ["record_unreadable"] * 3  # type: ignore[attr-defined]


async def test_a_gateways_first_calls_wait_aside_until_it_is_attached_and_hold_up_nobody(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 2})
    late = Answers()
    rig.network.unreachable.add("127.0.0.1:8")
    hub = rig.gateway("127.0.0.1:8", 80, late)
    link = rig.links.link("127.0.0.1:8", 80)
    assert link is not None
    assert link.state is LinkState.ATTACHING

    place, offset = rig.publish(b"aside", gateway=("127.0.0.1:8", 80))
    rig.intake.records([rig.log.records[place][offset]])
    rig.consumer._positions[place] = offset + 1
    rig.publish(b"other")
    assert rig.intake.waiting == 1
    rig.network.unreachable.clear()
    async with hub:
        await settle()

        assert rig.server.begun == {b"aside": 1, b"other": 1}


@pytest.mark.parametrize("incarnation", [INCARNATION + 1, INCARNATION - 1])
async def test_the_calls_of_a_gateway_that_is_gone_are_skipped(rigged: MakeRig, incarnation: int) -> None:
    rig = rigged()
    await rig.start({"t": 1})

    rig.publish(b"c", gateway=(GATEWAY, incarnation))
    await settle()
    await rig.commit()

    assert +rig.intake.ended == {"gateway_gone": 1}
    assert not rig.server.begun
    assert rig.committed() == 1


async def test_the_calls_of_an_address_that_may_not_be_dialled_are_skipped(rigged: MakeRig) -> None:
    rig = rigged()
    rig.links.forbidden.add("10.1.1.1:1")
    await rig.start({"t": 1})

    rig.publish(b"c", gateway=("10.1.1.1:1", 1))
    await settle()

    assert +rig.intake.ended == {"gateway_gone": 1}


async def test_a_gateway_that_takes_no_answers_holds_up_only_its_own_calls(rigged: MakeRig) -> None:
    rig = rigged()
    hung = Answers()
    hub = rig.gateway("127.0.0.1:8", 80, hung)
    hub.acknowledging = False
    await rig.start({"t": 2})
    rig.links.unacknowledged_bytes = 10
    async with hub:
        rig.publish(b"h0", gateway=("127.0.0.1:8", 80))
        await settle()
        rig.server.finish(b"h0", bytes(20))
        await settle()
        rig.publish(b"h1", gateway=("127.0.0.1:8", 80))
        rig.publish(b"other")
        await settle()

        assert list(rig.server.running) == [b"other"]
        assert rig.intake.waiting == 1
        hub.acknowledging = True
        rig.network.retry("127.0.0.1:8")
        await settle()
        assert list(rig.server.running) == [b"other", b"h1"]
        rig.server.finish(b"h1")
        rig.server.finish(b"other")
        await settle()


async def test_a_gateway_that_takes_no_answers_may_not_fill_the_room_that_others_need(rigged: MakeRig) -> None:
    """Its calls beyond half a window are refused, not kept."""
    rig = rigged()
    hung = Answers()
    hub = rig.gateway("127.0.0.1:8", 80, hung)
    hub.acknowledging = False
    await rig.start({"t": 2})
    rig.links.unacknowledged_bytes = 10
    async with hub:
        rig.publish(b"h0", gateway=("127.0.0.1:8", 80))
        await settle()
        rig.server.finish(b"h0", bytes(20))
        await settle()

        for call_id in ids(10, b"h"):
            rig.publish(call_id, gateway=("127.0.0.1:8", 80))
        for call_id in ids(2, b"other"):
            rig.publish(call_id)
        await settle()

        assert set(rig.server.running) == set(ids(2, b"other"))
        assert {outcome for _, _, outcome in hung.heard[1:]} == {Failure.GATEWAY_FULL}
        assert rig.intake.ended["gateway_full"] == len(hung.heard[1:]) == 9


async def test_what_has_not_begun_goes_back_to_the_log_and_what_runs_is_finished(rigged: MakeRig) -> None:
    rig = rigged(partitions=1)
    await rig.start({"t": 1})
    for call_id in ids(2):
        rig.publish(call_id)
    await settle()

    rig.consumer.subscribe(())
    await settle()
    rig.server.finish(b"c0")
    await settle()

    assert rig.committed() == 1
    assert rig.server.begun == {b"c0": 1}
    assert rig.answers.ids == [b"c0"]
    assert rig.intake.waiting == 0


async def test_a_rebalance_forgets_no_offset_of_a_partition_that_stays(rigged: MakeRig) -> None:
    rig = rigged(partitions=2)
    await rig.start({"t": 4})
    for partition in (0, 1):
        rig.publish(b"p%d" % partition, partition=partition)
    await settle()

    other = MemoryConsumer(rig.log, group=rig.consumer.group, events=OtherMember())
    async with other:
        other.subscribe(["t"])
        await settle()
        await rig.commit()

        assert rig.committed(partition=0) == 1
        assert rig.committed(partition=1) == 1


async def test_a_record_that_is_read_again_while_it_runs_is_not_run_beside_itself(rigged: MakeRig) -> None:
    """The group took this router for dead: it gets its partitions back, and reads again what it could not commit."""
    rig = rigged(partitions=1)
    await rig.start({"t": 2})
    rig.publish(b"c")
    await settle()

    rig.consumer.lose()
    await settle()
    assert rig.server.begun == {b"c": 1}
    rig.server.finish(b"c")
    await settle()
    rig.publish(b"next")
    await settle()

    assert rig.answers.ids == [b"c"]
    assert list(rig.server.running) == [b"next"]
    await rig.commit()
    assert rig.committed() == 2


async def test_a_commit_that_a_revocation_overtakes_is_made_by_the_revocation(rigged: MakeRig) -> None:
    """It was asked for in the background, and partitions that are gone are not committed for any more."""
    rig = rigged(partitions=1)
    await rig.start({"t": 1})
    rig.publish(b"c")
    await settle()
    rig.server.finish(b"c")
    await settle()

    rig.consumer.commit(rig.intake.committable())
    rig.consumer.let_go(set(rig.consumer.owned))

    assert rig.committed() == 1


async def test_a_call_that_follows_the_last_one_is_waited_for_too(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 1})
    rig.publish(b"last")
    rig.publish(b"next")
    await settle()
    quiet = asyncio.ensure_future(rig.intake.quiet())

    rig.server.finish(b"last")
    await settle()

    assert list(rig.server.running) == [b"next"]
    assert not quiet.done()
    rig.server.finish(b"next")
    await asyncio.wait_for(quiet, 30)


async def test_quiet_is_when_nothing_runs(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 2})
    await rig.intake.quiet()
    rig.publish(b"c")
    await settle()

    quiet = asyncio.ensure_future(rig.intake.quiet())
    await settle()
    assert not quiet.done()
    rig.server.finish(b"c")
    await asyncio.wait_for(quiet, 30)


async def test_what_is_cut_off_is_cancelled_and_frees_all_slots(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 3})
    for call_id in ids(3):
        rig.publish(call_id)
    await settle()

    rig.consumer.subscribe(())
    await rig.intake.cancel_running()

    assert rig.server.cancelled == dict.fromkeys(ids(3), 1)
    assert rig.intake.running == 0


async def test_the_first_records_of_a_small_model_are_no_more_than_it_has_room_for(rigged: MakeRig) -> None:
    rig = rigged()
    for call_id in ids(50):
        rig.publish(call_id)

    await rig.start({"t": 1})

    assert rig.intake.running + rig.intake.waiting <= 2


async def test_a_window_that_shrinks_takes_no_more_than_its_new_size(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 16})

    rig.intake.set_windows({"t": 2})
    await settle()
    for call_id in ids(40):
        rig.publish(call_id)
    await settle()

    assert len(rig.server.running) == 2
    assert rig.intake.waiting <= 2

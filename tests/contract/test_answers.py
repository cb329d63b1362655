"""What every carrier of answers promises: see AnswerHub, AnswerLinks and Link. Run on the twins and on gRPC."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from headrace.bus.protocols import Failure, Link, LinkState, Outcome, RouterKey, RouterLostError
from headrace.bus.v1.envelope_pb2 import Metadatum
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from tests.contract.answer_carriers import (
    PATIENCE_SECONDS,
    UNACKNOWLEDGED_BYTES,
    AnswerCarrier,
    Gateway,
    GrpcCarrier,
    MemoryCarrier,
    Router,
)

INCARNATION = 2**64 - 1
OUTCOMES: list[Outcome] = [
    b"",
    b"answer",
    bytes(100_000),
    ModelServerStatus(code=14, message="queue füll", trailing_metadata=[Metadatum(key="k-bin", value=b"\x00")]),
    *Failure,
]


@pytest.fixture(params=["memory", "grpc"])
async def carrier(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnswerCarrier]:
    async with AsyncExitStack() as owned:
        yield MemoryCarrier(owned) if request.param == "memory" else GrpcCarrier(owned, tmp_path)


def linked(router: Router, gateway: Gateway, incarnation: int = INCARNATION) -> Link:
    link = router.links.link(gateway.address, incarnation)
    assert link is not None
    return link


async def attached(router: Router, gateway: Gateway, incarnation: int = INCARNATION) -> Link:
    link = linked(router, gateway, incarnation)
    await router.until(lambda: link.state is LinkState.ATTACHED)
    return link


def later(seconds: float = 60.0) -> int:
    return time.time_ns() // 1000 + int(seconds * 1e6)


# Answers.


async def test_every_answer_arrives_once_in_order_and_as_it_was_sent(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    sent = [(b"%d" % number, 1 + number % 3, OUTCOMES[number % len(OUTCOMES)]) for number in range(1500)]

    for answer in sent:
        link.send(*answer)
    await gateway.until(lambda: len(gateway.answers) >= len(sent))

    assert gateway.answers == sent


async def test_the_gateway_knows_when_it_last_heard_of_whom(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    clock, before = asyncio.get_running_loop().time, asyncio.get_running_loop().time()
    link = await attached(router, gateway)
    await gateway.until(lambda: bool(gateway.present))
    at_first = gateway.hub.heard_at[router.key]
    assert before <= at_first <= clock()
    await asyncio.sleep(0.01)  # so that the clock has moved

    link.send(b"c", 1, b"answer")
    await gateway.until(lambda: bool(gateway.answers))

    assert at_first < gateway.hub.heard_at[router.key] <= clock()
    await carrier.leave(router)
    await gateway.until(lambda: not gateway.present)
    assert router.key not in gateway.hub.heard_at


async def test_answers_that_were_sent_while_attaching_arrive_too(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = linked(router, gateway)
    assert link.state is LinkState.ATTACHING

    link.send(b"c", 1, b"answer")
    await gateway.until(lambda: bool(gateway.answers))

    assert gateway.answers == [(b"c", 1, b"answer")]


async def test_an_answer_of_64_mib_arrives_between_small_ones(carrier: AnswerCarrier) -> None:
    # So large an answer takes a busy machine long, which is no gateway that hangs.
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router(stall_seconds=60)
    link = await attached(router, gateway)
    sent = [(b"small", 1, b"s"), (b"large", 1, bytes(64 << 20)), (b"last", 1, b"s")]

    for call_id, attempt, outcome in sent:
        link.send(call_id, attempt, outcome)
    await gateway.until(lambda: len(gateway.answers) >= 3)

    assert gateway.answers == sent


async def test_what_was_not_acknowledged_comes_again_after_a_break_and_is_known_for_a_double(
    carrier: AnswerCarrier,
) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    carrier.hold_acknowledgements(gateway, hold=True)
    sent = [(b"%d" % number, 1, b"answer %d" % number) for number in range(5)]
    for answer in sent:
        link.send(*answer)
    await gateway.until(lambda: len(gateway.answers) >= 5)

    carrier.cut(gateway)
    await gateway.until(lambda: len(gateway.answers) >= 10)

    assert gateway.answers == sent + sent
    assert gateway.present == [router.key]
    await router.until(lambda: link.state is LinkState.ATTACHED)


async def test_what_was_acknowledged_does_not_come_again(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    link.send(b"large", 1, bytes(UNACKNOWLEDGED_BYTES))
    await router.until(lambda: router.said[-1] == ("state", LinkState.ATTACHED, True) and bool(gateway.answers))

    carrier.cut(gateway)
    await gateway.until(lambda: len([each for each in gateway.said if each[0] == "attached"]) == 2)
    link.send(b"next", 1, b"")
    await gateway.until(lambda: (b"next", 1, b"") in gateway.answers)

    assert [call_id for call_id, *_ in gateway.answers] == [b"large", b"next"]


async def test_nothing_is_lost_over_many_breaks(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)

    for number in range(200):
        link.send(b"%d" % number, 1, bytes(number))
        if number % 40 == 20:
            carrier.cut(gateway)
        if number % 10 == 0:
            await asyncio.sleep(0)
    await gateway.until(lambda: len({call_id for call_id, *_ in gateway.answers}) == 200)

    first = list(dict.fromkeys(call_id for call_id, *_ in gateway.answers))
    assert first == [b"%d" % number for number in range(200)]


async def test_routers_do_not_see_each_others_answers_and_share_a_gateway(carrier: AnswerCarrier) -> None:
    gateway = await carrier.gateway(INCARNATION)
    one, other = await carrier.router("one"), await carrier.router("other")
    for router in (one, other):
        (await attached(router, gateway)).send(router.key.id.encode(), 1, b"")
    await gateway.until(lambda: len(gateway.answers) == 2)

    assert set(gateway.present) == {one.key, other.key}


# Attaching and going.


async def test_a_gateway_is_told_who_attaches_and_who_leaves(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    await gateway.until(lambda: gateway.present == [router.key])

    await carrier.leave(router)
    await gateway.until(lambda: gateway.present == [])

    assert gateway.said == [("attached", router.key), ("detached", router.key)]


async def test_a_router_that_flushes_and_leaves_says_goodbye(carrier: AnswerCarrier) -> None:
    """The gateway can tell it from a router that died, whatever either announced before."""
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    (await attached(router, gateway)).send(b"c", 1, b"last")

    await carrier.flush(router)
    await carrier.leave(router)
    await gateway.until(lambda: ("detached", router.key) in gateway.said)

    assert gateway.said == [
        ("attached", router.key),
        ("answered", b"c", 1, b"last"),
        ("left", router.key),
        ("detached", router.key),
    ]


async def test_a_stream_that_breaks_is_no_goodbye(carrier: AnswerCarrier) -> None:
    """Not even where everything is acknowledged: the router may have died with calls that it had begun."""
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    await gateway.until(lambda: gateway.present == [router.key])
    await carrier.flush(router)

    carrier.cut(gateway)
    await gateway.until(lambda: gateway.said.count(("attached", router.key)) == 2)

    assert ("left", router.key) not in gateway.said


async def test_a_router_that_leaves_with_answers_on_their_way_says_no_goodbye(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    await carrier.flush(router)
    carrier.hold_acknowledgements(gateway, hold=True)
    link.send(b"c", 1, b"answer")
    await gateway.until(lambda: bool(gateway.answers))

    await carrier.leave(router)
    await gateway.until(lambda: ("detached", router.key) in gateway.said)

    assert ("left", router.key) not in gateway.said


async def test_the_same_gateway_is_the_same_link(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()

    assert linked(router, gateway) is await attached(router, gateway)


async def test_another_incarnation_at_the_address_means_that_the_gateway_is_gone(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = linked(router, gateway, incarnation=INCARNATION - 1)
    link.send(b"c", 1, b"for nobody")
    await router.until(lambda: link.state is LinkState.GONE)

    link.send(b"c", 1, b"for nobody")
    (await attached(router, gateway)).send(b"d", 1, b"")
    await gateway.until(lambda: bool(gateway.answers))

    assert gateway.answers == [(b"d", 1, b"")]
    assert link.has_room


async def test_a_gateway_that_restarts_is_another_one(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(7), await carrier.router()
    link = await attached(router, gateway, 7)

    await carrier.stop(gateway)
    again = await carrier.gateway(8, address=gateway.address)
    await attached(router, again, 8)
    await router.until(lambda: link.state is LinkState.GONE)

    assert again.answers == []


async def test_an_absent_gateway_is_unreachable_and_attached_when_it_comes(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await carrier.stop(gateway)
    link = linked(router, gateway)
    link.send(b"c", 1, b"kept")
    await router.until(lambda: link.state is LinkState.UNREACHABLE)

    came = await carrier.gateway(INCARNATION, address=gateway.address)
    await router.until(lambda: link.state is LinkState.ATTACHED)
    await came.until(lambda: bool(came.answers))

    assert came.answers == [(b"c", 1, b"kept")]


async def test_an_unreachable_gateway_is_gone_once_it_is_silent_too(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await carrier.stop(gateway)
    link = linked(router, gateway)
    await router.until(lambda: link.state is LinkState.UNREACHABLE)

    router.links.silence_all_but(set())
    await router.until(lambda: link.state is LinkState.GONE)


async def test_a_silent_gateway_is_gone_once_it_is_unreachable_too_and_not_before(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    router.links.silence_all_but(set())
    link.send(b"c", 1, b"")
    await gateway.until(lambda: bool(gateway.answers))
    assert link.state is LinkState.ATTACHED

    carrier.cut(gateway)
    await gateway.until(lambda: len(gateway.said) >= 4)  # attached, answered, detached, attached
    await router.until(lambda: link.state is LinkState.ATTACHED)
    await carrier.stop(gateway)
    await router.until(lambda: link.state is LinkState.GONE)


async def test_a_gateway_that_announces_itself_again_is_not_taken_for_silent(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    router.links.silence_all_but(set())
    router.links.silence_all_but({(gateway.address, INCARNATION)})

    await carrier.stop(gateway)
    await router.until(lambda: link.state is LinkState.UNREACHABLE)
    came = await carrier.gateway(INCARNATION, address=gateway.address)
    await router.until(lambda: link.state is LinkState.ATTACHED)

    await came.until(lambda: came.present == [router.key])


async def test_an_announcement_alone_ends_a_gateways_silence(carrier: AnswerCarrier) -> None:
    """Who watches the announcements says it once: nothing else need follow."""
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    router.links.silence_all_but(set())
    router.links.gateway_announced(gateway.address, INCARNATION)

    await carrier.stop(gateway)
    await router.until(lambda: link.state in {LinkState.UNREACHABLE, LinkState.GONE})

    assert link.state is LinkState.UNREACHABLE


async def test_a_gateway_that_was_given_up_is_attached_when_it_announces_itself(carrier: AnswerCarrier) -> None:
    """The network between the two was away, for the broker too: both are alive, and must find each other again."""
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await carrier.stop(gateway)
    gone = linked(router, gateway)
    router.links.silence_all_but(set())
    await router.until(lambda: gone.state is LinkState.GONE)
    came = await carrier.gateway(INCARNATION, address=gateway.address)

    assert router.links.link(gateway.address, INCARNATION) is gone
    router.links.gateway_announced(gateway.address, INCARNATION)
    link = await attached(router, came)

    assert gone.state is LinkState.GONE
    link.send(b"c", 1, b"")
    await came.until(lambda: bool(came.answers))


async def test_an_address_that_is_not_allowed_is_not_dialled(carrier: AnswerCarrier) -> None:
    gateway = await carrier.gateway(INCARNATION)
    router = await carrier.router(forbidden=[gateway.address])

    assert router.links.link(gateway.address, INCARNATION) is None


# A gateway that hangs.


async def test_a_gateway_that_takes_nothing_is_detached_and_holds_no_more_than_its_bound(
    carrier: AnswerCarrier,
) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    carrier.stall(gateway, stalled=True)
    sent = 0
    while link.has_room:
        link.send(b"%d" % sent, 1, bytes(UNACKNOWLEDGED_BYTES // 8))
        sent += 1
    assert sent == 8

    await router.until(lambda: link.state is LinkState.UNREACHABLE)
    carrier.stall(gateway, stalled=False)
    await gateway.until(lambda: len({call_id for call_id, *_ in gateway.answers}) == sent)
    await router.until(lambda: link.has_room and link.state is LinkState.ATTACHED)


async def test_a_gateway_that_takes_nothing_is_detached_however_much_waits_for_it(carrier: AnswerCarrier) -> None:
    """A large answer may take its time; those that queue behind it add nothing to that."""
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    carrier.stall(gateway, stalled=True)
    answer = bytes(1 << 20)

    for number in range(256):
        link.send(b"%d" % number, 1, answer)
    await router.until(lambda: ("state", LinkState.UNREACHABLE, False) in router.said)

    # By this router, before anybody else ended the stream.
    assert router.said[:2] == [("state", LinkState.ATTACHED, True), ("state", LinkState.UNREACHABLE, False)]


async def test_a_small_answer_takes_room_too(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)
    carrier.stall(gateway, stalled=True)

    for number in range(UNACKNOWLEDGED_BYTES // 64):
        link.send(b"%d" % number, 1, Failure.EXPIRED)

    assert not link.has_room


async def test_a_link_tells_when_it_has_room_again(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    link = await attached(router, gateway)

    link.send(b"c", 1, bytes(UNACKNOWLEDGED_BYTES))
    assert not link.has_room
    told = len(router.said)
    await router.until(lambda: len(router.said) > told)

    assert router.said[-1] == ("state", LinkState.ATTACHED, True)


# Cancellations.


async def test_what_was_cancelled_before_a_router_attaches_is_told_first(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    expires = later()
    gateway.hub.cancel(b"past", 1, later(-1))
    gateway.hub.cancel(b"standing", 2, expires)

    await attached(router, gateway)

    assert router.said == [("cancelled", b"standing", 2, expires), ("state", LinkState.ATTACHED, True)]


async def test_a_cancellation_goes_to_every_router_that_is_attached(carrier: AnswerCarrier) -> None:
    gateway = await carrier.gateway(INCARNATION)
    routers = [await carrier.router("one"), await carrier.router("other")]
    for router in routers:
        await attached(router, gateway)
    await gateway.until(lambda: len(gateway.present) == 2)
    expires = later()

    gateway.hub.cancel(b"c", 3, expires)

    for router in routers:
        await router.until(lambda router=router: ("cancelled", b"c", 3, expires) in router.said)  # type: ignore[misc]


async def test_a_cancellation_is_told_again_after_a_break(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    expires = later()
    gateway.hub.cancel(b"c", 1, expires)
    await router.until(lambda: ("cancelled", b"c", 1, expires) in router.said)

    carrier.cut(gateway)
    await router.until(lambda: router.said.count(("cancelled", b"c", 1, expires)) == 2)


# Administration.


@pytest.mark.parametrize("outcome", [b"done", ModelServerStatus(code=3, message="no"), Failure.TRITON_LOST])
async def test_a_command_reaches_the_router_and_its_result_comes_back(carrier: AnswerCarrier, outcome: Outcome) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    await gateway.until(lambda: gateway.present == [router.key])
    expires = later()
    router.results.put_nowait(outcome)

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await gateway.hub.administer(router.key, "/s/M", b"request", expires) == outcome

    assert router.commands.get_nowait() == ("/s/M", b"request", expires)


async def test_a_command_that_fails_unforeseen_has_an_outcome_too(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    await gateway.until(lambda: gateway.present == [router.key])
    router.results.put_nowait(RuntimeError("unforeseen"))

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await gateway.hub.administer(router.key, "/s/M", b"", later()) is Failure.INTERNAL


async def test_commands_under_way_do_not_wait_for_each_other(carrier: AnswerCarrier) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    await gateway.until(lambda: gateway.present == [router.key])
    commands = [asyncio.create_task(gateway.hub.administer(router.key, f"/s/{n}", b"", later())) for n in range(3)]
    for _ in commands:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await router.commands.get()

    for outcome in (b"x", b"y", b"z"):
        router.results.put_nowait(outcome)

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert sorted(str(outcome) for outcome in await asyncio.gather(*commands)) == ["b'x'", "b'y'", "b'z'"]


@pytest.mark.parametrize("how", ["cut", "leave"])
async def test_a_router_that_goes_before_it_did_as_told_is_lost(carrier: AnswerCarrier, how: str) -> None:
    gateway, router = await carrier.gateway(INCARNATION), await carrier.router()
    await attached(router, gateway)
    await gateway.until(lambda: gateway.present == [router.key])
    command = asyncio.create_task(gateway.hub.administer(router.key, "/s/M", b"", later()))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await router.commands.get()

    if how == "cut":
        carrier.cut(gateway)
    else:
        await carrier.leave(router)

    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RouterLostError):
            await command


async def test_a_router_that_is_not_attached_is_lost_at_once(carrier: AnswerCarrier) -> None:
    gateway = await carrier.gateway(INCARNATION)

    with pytest.raises(RouterLostError):
        await gateway.hub.administer(RouterKey("nobody", 1), "/s/M", b"", later())

"""While the model server is away, what waits goes on waiting; a router that leaves tells the callers it cuts off."""

from headrace.bus.protocols import Failure
from tests.unit.router.conftest import MakeRig
from tests.unit.router.rig import settle


async def test_nothing_begins_while_the_model_server_is_away(rigged: MakeRig) -> None:
    """A backlog would otherwise be burnt within milliseconds, each call failing against a closed port."""
    rig = rigged()
    await rig.start({"t": 2})
    rig.intake.hold()

    rig.publish(b"c")
    await settle()
    assert not rig.server.running
    rig.intake.release()
    await settle()

    assert list(rig.server.running) == [b"c"]


async def test_no_more_than_a_window_waits_while_the_model_server_is_away(rigged: MakeRig) -> None:
    """A free slot is no room then: the rest stays in the log, for another router to take."""
    rig = rigged()
    await rig.start({"t": 2})
    rig.intake.hold()

    for number in range(10):
        rig.publish(b"%d" % number)
    await settle()

    assert rig.intake.waiting == 2


async def test_a_lost_call_holds_the_others_until_the_model_server_was_looked_at(rigged: MakeRig) -> None:
    rig = rigged()
    await rig.start({"t": 1})
    looked_for: list[bool] = []
    rig.intake._triton_lost = lambda: looked_for.append(True)

    rig.publish(b"lost")
    rig.publish(b"next")
    await settle()
    rig.server.finish(b"lost", Failure.TRITON_LOST)
    await settle()

    assert looked_for == [True]
    assert rig.answers.heard == [(b"lost", 1, Failure.TRITON_LOST)]
    assert b"next" not in rig.server.running


async def test_callers_hear_of_it_when_their_calls_are_cut_off(rigged: MakeRig) -> None:
    """Their records are committed, so nobody else will run them."""
    rig = rigged()
    await rig.start({"t": 2})
    rig.publish(b"c")
    await settle()

    await rig.intake.cancel_running()
    await settle()

    assert rig.answers.heard == [(b"c", 1, Failure.ROUTER_LEFT)]

"""When a gateway that starts says that it can be called."""

import pytest

from gateway.opening import ATTACH_SECONDS, Opening
from gateway.registry import ROUTER_SILENCE_SECONDS, Registry
from headrace.bus.announcements import router_key
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import ROUTER_STATE_LEAVING, Announcement
from tests.unit.gateway.announcing import GATEWAY, INCARNATION, POOL, heartbeat, own_heartbeat

A, B = RouterKey("a", 1), RouterKey("b", 2)


class Start:
    """A gateway that has read that these routers announced themselves, some time ago."""

    def __init__(self, *announced: RouterKey) -> None:
        self.known = Registry(pool=POOL, gateway_id=GATEWAY, incarnation=INCARNATION)
        self.opening = Opening(self.known)
        self.now = 100.0
        self.beat = 1
        for router in announced:
            self.known.apply(*heartbeat(router), self.now)
        self.known.complete = True

    def passes(self, seconds: float, *speaking: RouterKey, log_works: bool = True, pace: float = 1.0) -> bool:
        """Whether it is open after so many seconds, in which these routers announce themselves at this pace."""
        for _ in range(round(seconds * 4)):
            if log_works and self.now % pace == 0:
                self.beat += 1
                self.known.apply(*own_heartbeat(self.beat), self.now)
                for router in speaking:
                    self.known.apply(*heartbeat(router, self.beat), self.now)
            self.now += 0.25
            self.known.advance(self.now)
            self.opening.look(self.now)
        return not self.opening.waits_for

    def looks(self) -> bool:
        """Whether it is open now."""
        self.opening.look(self.now)
        return not self.opening.waits_for


def told(caplog: pytest.LogCaptureFixture) -> list[list[str]]:
    return [vars(record)["routers"] for record in caplog.records if vars(record).get("event") == "routers_awaited"]


def test_it_is_open_when_every_router_that_is_ready_has_attached() -> None:
    start = Start(A, B)
    assert not start.looks()

    start.known.attached(A)
    assert not start.looks()
    start.known.attached(B)
    assert start.looks()


def test_once_open_it_stays_open() -> None:
    """What comes and goes later is the models' business."""
    start = Start(A)
    start.known.attached(A)
    assert start.looks()

    start.known.detached(A)
    assert start.passes(60, A)


def test_it_is_not_open_before_all_was_read() -> None:
    """There may be routers in what is still to be read."""
    start = Start()
    start.known.complete = False
    assert not start.passes(60)
    assert "broker" in start.opening.waits_for

    start.known.complete = True
    assert start.looks()


def test_a_pool_without_routers_is_not_waited_for() -> None:
    assert Start().looks()


def test_a_router_that_died_is_waited_for_until_it_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    start = Start(A)

    assert not start.passes(ROUTER_SILENCE_SECONDS)
    assert start.passes(0.5)
    assert told(caplog) == []


@pytest.mark.parametrize("said", [heartbeat(A, 9, ROUTER_STATE_LEAVING), (router_key(POOL, "a"), None)])
def test_a_router_that_leaves_meanwhile_is_not_waited_for(said: tuple[str, Announcement | None]) -> None:
    start = Start(A)
    assert not start.passes(1, A)

    start.known.apply(*said, start.now)
    assert start.looks()


def test_where_others_have_attached_the_last_are_waited_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """Long enough for those that died to be told from those that live."""
    start = Start(A, B, RouterKey("dead", 3))
    start.known.attached(A)

    assert not start.passes(ATTACH_SECONDS - 0.25, A, B)
    assert start.passes(0.5, A, B)
    assert told(caplog) == [["b"]]


def test_where_none_of_those_that_live_attaches_it_stays_shut(caplog: pytest.LogCaptureFixture) -> None:
    """A rollout is to stop at a gateway that no router can reach, with the others still there."""
    start = Start(A, B)

    assert not start.passes(60, A, B)
    assert told(caplog) == [["a", "b"]], "once"
    assert "attach" in start.opening.waits_for

    start.known.attached(A)
    assert start.looks()


def test_while_the_log_is_away_nobody_can_have_heard_of_it(caplog: pytest.LogCaptureFixture) -> None:
    start = Start(A, B)
    start.known.attached(A)

    assert not start.passes(60, log_works=False)
    assert told(caplog) == []
    assert "announcements" in start.opening.waits_for
    assert not start.passes(ATTACH_SECONDS - 1, A, B)
    assert start.passes(2, A, B)


@pytest.mark.parametrize("attached", [(), (A,)])
def test_a_slow_log_does_not_make_the_dead_be_waited_for_for_ever(
    attached: tuple[RouterKey, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """One so slow that it passes for away time and again, and nobody's silence shows."""
    start = Start(*attached, RouterKey("dead", 3))
    for router in attached:
        start.known.attached(router)

    assert start.passes(ATTACH_SECONDS + 5, *attached, pace=2.0)
    assert start.known.unattached() == [RouterKey("dead", 3)]
    assert told(caplog) == []


def test_a_standstill_is_no_time_in_which_routers_could_have_come() -> None:
    """Their words and the sight of them are still to be read when the clock says that it is late."""
    start = Start(A, B)
    start.known.attached(A)
    assert not start.passes(1, A, B)

    start.now += 60.0
    assert not start.looks()

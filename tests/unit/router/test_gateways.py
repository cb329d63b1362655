"""Which gateways a router attaches to, and when their silence counts."""

import asyncio
from collections.abc import Collection

from headrace.bus.announcements import gateway_key, parse_key, repository_key, router_key
from headrace.bus.memory.announcements import MemoryAnnouncements
from headrace.bus.protocols import Link
from headrace.bus.v1.announcement_pb2 import Announcement, GatewayHeartbeat, RepositoryChange, RouterHeartbeat
from router.gateways import Gateways

OWN = router_key("default", "r")


class Links:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, int]] = []
        self.silenced: list[set[tuple[str, int]]] = []

    def link(self, address: str, incarnation: int) -> Link | None:
        raise AssertionError((address, incarnation))

    def gateway_announced(self, address: str, incarnation: int) -> None:
        self.announced.append((address, incarnation))

    def silence_all_but(self, announcing: Collection[tuple[str, int]]) -> None:
        self.silenced.append(set(announcing))


class Clockwork:
    """Gateways, and a router whose own heartbeats come back once a second for as long as the log works."""

    def __init__(self) -> None:
        self.links = Links()
        self.gateways = Gateways(pool="default", own_key=OWN, own_incarnation=1, links=self.links)
        self.log_works = True
        self.now = 100.0

    def hear(self, key: str, announcement: Announcement | None) -> None:
        parsed = parse_key(key)
        assert parsed is not None
        self.gateways.apply(parsed, announcement, self.now)

    def gateway(
        self, name: str = "g", incarnation: int = 7, address: str = "127.0.0.1:1", pool: str = "default"
    ) -> None:
        said = GatewayHeartbeat(reply_address=address, incarnation=incarnation, pool=pool)
        self.hear(gateway_key(name), Announcement(gateway=said))

    def own_heartbeat(self, incarnation: int = 1) -> None:
        self.hear(OWN, Announcement(router=RouterHeartbeat(incarnation=incarnation)))

    def wait(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            if self.log_works:
                self.own_heartbeat()
            self.gateways.advance(self.now)


def test_a_gateway_that_announces_itself_is_attached_once() -> None:
    clockwork = Clockwork()
    for _ in range(3):
        clockwork.gateway()
        clockwork.wait(1)

    assert clockwork.links.announced == [("127.0.0.1:1", 7)]
    assert clockwork.links.silenced[-1] == {("127.0.0.1:1", 7)}


def test_a_gateway_of_another_pool_is_left_alone() -> None:
    """It would refuse this router, every second. One that names none may be of this pool."""
    clockwork = Clockwork()
    clockwork.gateway("canary", pool="canary", address="127.0.0.1:2")
    clockwork.gateway("old", pool="", address="127.0.0.1:3")
    clockwork.wait(1)

    assert clockwork.links.announced == [("127.0.0.1:3", 7)]
    assert clockwork.links.silenced[-1] == {("127.0.0.1:3", 7)}


def test_a_gateway_that_goes_to_another_pool_is_silent_at_once() -> None:
    clockwork = Clockwork()
    clockwork.gateway()
    clockwork.gateway(incarnation=8, pool="canary")
    clockwork.wait(1)

    assert clockwork.links.silenced[-1] == set()


def test_another_incarnation_or_address_is_another_gateway() -> None:
    clockwork = Clockwork()
    clockwork.gateway(incarnation=7)
    clockwork.gateway(incarnation=8)
    clockwork.wait(1)

    assert clockwork.links.announced == [("127.0.0.1:1", 7), ("127.0.0.1:1", 8)]
    assert clockwork.links.silenced[-1] == {("127.0.0.1:1", 8)}


def test_a_gateway_that_says_nothing_for_three_seconds_is_silent() -> None:
    clockwork = Clockwork()
    clockwork.wait(1)
    clockwork.gateway()

    clockwork.wait(3)
    assert clockwork.links.silenced[-1] == {("127.0.0.1:1", 7)}
    clockwork.wait(1)
    assert clockwork.links.silenced[-1] == set()


def test_a_gateway_that_says_goodbye_is_silent_at_once() -> None:
    clockwork = Clockwork()
    clockwork.gateway()
    clockwork.hear(gateway_key("g"), None)
    clockwork.wait(1)

    assert clockwork.links.silenced[-1] == set()


def test_a_gateway_that_was_silent_and_speaks_again_is_attached_again() -> None:
    clockwork = Clockwork()
    clockwork.gateway()
    clockwork.wait(5)
    clockwork.gateway()
    clockwork.wait(1)

    assert clockwork.links.announced == [("127.0.0.1:1", 7)] * 2
    assert clockwork.links.silenced[-1] == {("127.0.0.1:1", 7)}


def test_nobodys_silence_counts_while_the_log_is_away() -> None:
    clockwork = Clockwork()
    clockwork.gateway()
    clockwork.wait(1)
    clockwork.log_works = False
    told = len(clockwork.links.silenced)

    clockwork.wait(60)

    assert all(each == {("127.0.0.1:1", 7)} for each in clockwork.links.silenced[told:])


def test_silence_starts_anew_when_the_log_is_back() -> None:
    clockwork = Clockwork()
    clockwork.gateway()
    clockwork.wait(1)
    clockwork.log_works = False
    clockwork.wait(60)
    clockwork.log_works = True

    clockwork.wait(4)
    assert clockwork.links.silenced[-1] == {("127.0.0.1:1", 7)}
    clockwork.wait(1)
    assert clockwork.links.silenced[-1] == set()


def test_the_heartbeats_of_an_earlier_run_do_not_prove_that_the_log_works() -> None:
    clockwork = Clockwork()
    clockwork.log_works = False
    clockwork.gateway()
    for _ in range(10):
        clockwork.own_heartbeat(incarnation=0)
        clockwork.wait(1)

    assert all(each == {("127.0.0.1:1", 7)} for each in clockwork.links.silenced)


def test_what_the_pool_was_last_asked_to_load_is_remembered_and_other_pools_are_not() -> None:
    clockwork = Clockwork()
    for pool, model, loaded in (("default", "a", True), ("default", "b", False), ("other", "c", True)):
        change = Announcement(repository_change=RepositoryChange(model=model, loaded=loaded))
        clockwork.hear(repository_key(pool, model), change)
    assert clockwork.gateways.wanted == {"a": True, "b": False}

    clockwork.hear(repository_key("default", "a"), None)
    assert clockwork.gateways.wanted == {"b": False}


async def test_the_log_is_followed_and_catching_up_is_told_after_what_holds() -> None:
    links, log = Links(), MemoryAnnouncements()
    gateways = Gateways(pool="default", own_key=OWN, own_incarnation=1, links=links)
    await log.announce("a/key/of/a/later/version", Announcement())
    await log.announce(gateway_key("g"), Announcement(gateway=GatewayHeartbeat(reply_address="h:1", incarnation=7)))
    caught_up = asyncio.Event()
    known: list[tuple[str, int]] = []

    def told() -> None:
        known.extend(links.announced)
        caught_up.set()

    heard: list[tuple[str, float]] = []
    following = asyncio.create_task(
        gateways.follow(log, lambda: 5.0, told, lambda key, _, now: heard.append((str(key), now)))
    )
    async with asyncio.timeout(30):
        await caught_up.wait()

    assert known == [("h:1", 7)]
    assert heard == [("gateway/g", 5.0)], "others that go by announcements get them from here"
    following.cancel()
    await asyncio.wait([following])

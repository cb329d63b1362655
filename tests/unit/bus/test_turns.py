"""So many bytes at a time, in order within a place, and nobody waits for somebody else's broker."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from headrace.bus.protocols import TopicPartition
from headrace.bus.turns import Turns, Waiting

A, B, C = (TopicPartition("topic", number) for number in range(3))
MOST, SHARE, SMALL = 100, 40, 10


@dataclass
class Line:
    """Items that come, and go when it is their turn; all that went, in order."""

    turns: Turns[str] = field(default_factory=lambda: Turns(most_bytes=MOST, share_bytes=SHARE, small_bytes=SMALL))
    gone: list[tuple[TopicPartition, bytes]] = field(default_factory=list)
    sizes: dict[bytes, int] = field(default_factory=dict)
    now: float = 0.0

    def come(self, place: TopicPartition, key: bytes, size: int) -> None:
        self.sizes[key] = size
        if self.turns.enter(place, size):
            self.gone.append((place, key))
        else:
            self.turns.wait(place, Waiting(key, size, self.now, key.decode()))

    def serve(self) -> None:
        for place, waiting in self.turns.due():
            assert waiting.item.encode() == waiting.key
            self.gone.append((place, waiting.key))

    def leave(self, place: TopicPartition, key: bytes) -> None:
        self.turns.left(place, self.sizes[key])
        self.serve()

    def went(self, place: TopicPartition | None = None) -> list[bytes]:
        return [key for where, key in self.gone if place in (None, where)]


def test_large_ones_wait_when_so_much_is_under_way() -> None:
    line = Line()

    for place, key in ((A, b"1"), (B, b"2"), (C, b"3")):
        line.come(place, key, 40)
    assert line.went() == [b"1", b"2"]
    line.leave(A, b"1")

    assert line.went() == [b"1", b"2", b"3"]
    assert line.turns.under_way_bytes == 80


def test_a_place_that_does_not_move_takes_its_share_and_no_more() -> None:
    line = Line()

    for number in range(5):
        line.come(A, b"a%d" % number, 20)
    for number in range(3):
        line.come(B, b"b%d" % number, 20)
    line.serve()

    assert line.went(A) == [b"a0", b"a1"]
    assert line.went(B) == [b"b0", b"b1"]
    line.leave(B, b"b0")
    assert line.went(B) == [b"b0", b"b1", b"b2"]


def test_small_ones_pass_all_but_those_of_their_own_place() -> None:
    line = Line()
    for place in (A, B):
        for number in range(3):
            line.come(place, b"large-%d-%d" % (place.partition, number), 40)

    line.come(A, b"behind", 1)
    line.come(C, b"past", 1)

    assert b"past" in line.went()
    assert b"behind" not in line.went()
    line.leave(A, b"large-0-0")
    line.leave(A, b"large-0-1")
    assert line.went(A) == [b"large-0-0", b"large-0-1", b"large-0-2", b"behind"]


def test_what_is_larger_than_any_bound_goes_alone_and_is_not_passed_by() -> None:
    """Room that comes free is kept for it: others that would fit go after it, or it would never go."""
    line = Line()
    line.come(A, b"first", 30)
    line.come(B, b"second", 30)
    line.come(C, b"giant", 500)
    line.come(A, b"later", 30)
    assert line.went() == [b"first", b"second"]

    line.leave(A, b"first")
    assert line.went() == [b"first", b"second"]
    line.leave(B, b"second")
    assert line.went() == [b"first", b"second", b"giant"]
    line.leave(C, b"giant")
    assert line.went() == [b"first", b"second", b"giant", b"later"]


def test_what_is_withdrawn_never_goes() -> None:
    line = Line()
    for key in (b"1", b"2", b"3"):
        line.come(A, key, 40)

    assert line.turns.withdraw(b"2")
    assert not line.turns.withdraw(b"2")
    assert not line.turns.withdraw(b"1"), "it has gone already"
    line.leave(A, b"1")

    assert line.went() == [b"1", b"3"]
    assert len(line.turns) == 0


def test_withdrawing_the_last_one_of_a_place_leaves_nothing_to_wait_behind() -> None:
    line = Line()
    line.come(A, b"1", 40)
    line.come(A, b"2", 40)

    line.turns.withdraw(b"2")
    line.come(A, b"small", 1)

    assert line.went() == [b"1", b"small"]


def test_what_is_overdue_is_of_one_place_and_old() -> None:
    line = Line()
    for moment in range(4):
        line.now = float(moment)
        line.come(A, b"a%d" % moment, 40)
        line.come(B, b"b%d" % moment, 40)

    overdue = [waiting.key for waiting in line.turns.overdue(A, 2.0)]

    assert overdue == [b"a1", b"a2"]
    assert line.turns.overdue(C, 2.0) == []
    assert not line.turns.withdraw(b"a1")
    line.leave(A, b"a0")
    line.leave(B, b"b0")
    assert line.went(A) == [b"a0", b"a3"]


comings = st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 150)), max_size=40)


@given(comings, st.data())
def test_everything_goes_once_in_order_and_within_the_bounds(
    coming: list[tuple[TopicPartition, int]], data: st.DataObject
) -> None:
    """Whatever comes, in whatever order the broker takes it, and whatever is withdrawn meanwhile."""
    line, done, withdrawn = Line(), set[bytes](), set[bytes]()

    def under_way() -> list[tuple[TopicPartition, bytes]]:
        return [(place, key) for place, key in line.gone if key not in done]

    def check() -> None:
        large = [line.sizes[key] for _, key in under_way() if line.sizes[key] > SMALL]
        assert line.turns.under_way_bytes == sum(large) <= max(MOST, *large, 0)
        for place in (A, B, C):
            own = [line.sizes[key] for where, key in under_way() if where == place and line.sizes[key] > SMALL]
            assert sum(own) <= max(SHARE, *own, 0)

    for number, (place, size) in enumerate(coming):
        line.come(place, b"%d" % number, size)
        check()
        if data.draw(st.booleans()) and under_way():
            where, key = data.draw(st.sampled_from(under_way()))
            done.add(key)
            line.leave(where, key)
            check()
        if data.draw(st.integers(0, 5)) == 0:
            key = b"%d" % data.draw(st.integers(0, number))
            if line.turns.withdraw(key):
                withdrawn.add(key)
    while moving := under_way():
        where, key = moving[0]
        done.add(key)
        line.leave(where, key)
        check()

    assert len(line.turns) == 0
    for place in (A, B, C):
        expected = [b"%d" % number for number, (where, _) in enumerate(coming) if where == place]
        assert line.went(place) == [key for key in expected if key not in withdrawn]

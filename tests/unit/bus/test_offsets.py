"""The watermark against the plainest account of it: the first offset, of those fetched, that is not done."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.bus.offsets import Watermark


class WatermarkAgainstItsAccount(RuleBasedStateMachine):
    """Records are fetched in ascending order, with gaps as compaction and control records leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.watermark = Watermark()
        self.fetched: list[int] = []
        self.undone: list[int] = []
        self.committed: int | None = None

    @rule(gap=st.integers(1, 3))
    def fetch(self, gap: int) -> None:
        offset = self.fetched[-1] + gap if self.fetched else gap - 1
        self.fetched.append(offset)
        self.undone.append(offset)
        self.watermark.fetched(offset)

    @precondition(lambda self: self.undone)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.undone))
        self.undone.remove(offset)
        self.watermark.done(offset)

    @rule()
    def ask(self) -> None:
        expected = self.account()
        assert self.watermark.to_commit() == (None if expected == self.committed else expected)
        self.committed = expected

    def account(self) -> int | None:
        """After the last record before the first one that is not done; None while there is none."""
        finished = [offset for offset in self.fetched if not self.undone or offset < min(self.undone)]
        return finished[-1] + 1 if finished else None

    @invariant()
    def knows_how_far_was_read(self) -> None:
        assert self.watermark.read_to == (self.fetched[-1] + 1 if self.fetched else None)

    @invariant()
    def keeps_no_more_than_what_is_fetched_and_not_behind_it(self) -> None:
        assert len(self.watermark._open) <= len(self.fetched)
        assert len(self.watermark._done) < max(len(self.watermark._open), 1)


TestWatermark = WatermarkAgainstItsAccount.TestCase


def test_nothing_is_committed_before_the_first_record_is_done() -> None:
    watermark = Watermark()
    assert watermark.to_commit() is None

    watermark.fetched(5)
    watermark.fetched(6)
    watermark.done(6)

    assert watermark.to_commit() is None


def test_a_record_that_takes_long_holds_back_those_behind_it() -> None:
    """Started again, the router must read it once more."""
    watermark = Watermark()
    for offset in (10, 11, 12, 15):
        watermark.fetched(offset)

    watermark.done(10)
    watermark.done(12)
    watermark.done(15)
    assert watermark.to_commit() == 11

    watermark.done(11)
    assert watermark.to_commit() == 16
    assert watermark.to_commit() is None

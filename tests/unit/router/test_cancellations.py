"""What is cancelled stays so until its deadline, in bounded memory."""

import pytest

from router import cancellations
from router.cancellations import Cancellations


def test_an_attempt_and_all_before_it_are_covered() -> None:
    known = Cancellations()
    known.add(b"c", 2, 100, now_micros=0)

    assert [known.cover(b"c", attempt) for attempt in (1, 2, 3)] == [True, True, False]
    assert not known.cover(b"other", 1)


def test_an_earlier_attempt_told_late_takes_nothing_back() -> None:
    known = Cancellations()
    known.add(b"c", 2, 100, now_micros=0)
    known.add(b"c", 1, 100, now_micros=0)

    assert known.cover(b"c", 2)


def test_memory_is_bounded_by_forgetting_what_has_expired_and_then_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellations, "MAX_CANCELLATIONS", 3)
    known = Cancellations()
    known.add(b"old", 1, 1000, now_micros=0)
    known.add(b"expired", 1, 10, now_micros=0)
    known.add(b"young", 1, 1000, now_micros=0)

    known.add(b"next", 1, 1000, now_micros=20)
    assert [known.cover(name, 1) for name in (b"old", b"expired", b"young", b"next")] == [True, False, True, True]

    known.add(b"last", 1, 1000, now_micros=20)
    assert [known.cover(name, 1) for name in (b"old", b"young", b"next", b"last")] == [False, True, True, True]

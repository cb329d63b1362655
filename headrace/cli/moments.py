"""Moments: what is now, and what an operator means by `7d`."""

import re
from datetime import UTC, datetime, timedelta

from headrace.cli.common import USAGE, fail

WHEN = "`7d`, `12h`, `2026-11-01` or `2026-11-01T06:00`, UTC"
_AGO = re.compile(r"(\d{1,5})([hd])")


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)


def later(option: str, start: datetime, *, days: float = 0, hours: float = 0) -> datetime:
    """What comes so long after. Ends the command where no calendar has it."""
    try:
        return start + timedelta(days=days, hours=hours)
    except (OverflowError, ValueError):
        fail(f"{option} {days or hours:g}: too far away", code=USAGE)


def moment(option: str, text: str, at: datetime) -> datetime:
    """A moment of the past, as an operator writes it `at` that time. Ends the command where it is none."""
    ago = _AGO.fullmatch(text)
    if ago:
        return at - timedelta(**{{"h": "hours", "d": "days"}[ago[2]]: int(ago[1])})
    try:
        stated = datetime.fromisoformat(text)
        return stated.replace(tzinfo=UTC) if stated.tzinfo is None else stated.astimezone(UTC)
    except (OverflowError, ValueError):
        fail(f"{option} {text}: expected `7d`, `12h`, a date or a moment such as 2026-11-01T06:00", code=USAGE)

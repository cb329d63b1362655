"""What was reported, as what the database sums: functions, and nothing that waits."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from headrace.bus.usage import SCHEMA_VERSION
from headrace.bus.v1.usage_pb2 import UsageEntry, UsageReport
from headrace.store.usage import Amounts, SourceReport, UsageKey

_MOST = 1 << 50
"""Of anything in one report, all of it together: a petabyte, or 35 years of model time.

No meter makes one, and it takes thousands of them until a sum leaves what a database counts with, 2^63."""
_MOST_SEQUENCE = 1 << 62
_LONGEST_NAME = 512
"""Bytes; none of ours is longer, and longer ones no index takes."""
_HOUR = 3600
_LAST_HOUR = 4_102_444_800
"""The year 2100: later is no time that a clock of ours has."""


class _MalformedError(Exception):
    """The report is none that a meter makes."""


def readable(reports: Sequence[UsageReport], outcomes: Counter[str]) -> list[SourceReport]:
    """The reports that can be summed; how many can't is counted as `malformed` and `unknown_version`.

    What passes here the database takes: a batch that it refuses would be tried for ever.
    """
    read = []
    for report in reports:
        if report.schema_version != SCHEMA_VERSION:
            outcomes["unknown_version"] += 1
            continue
        try:
            read.append(_read(report))
        except _MalformedError:
            outcomes["malformed"] += 1
    return read


def missing(reports: Sequence[SourceReport], known: Callable[[str], int]) -> int:
    """How many reports lie between those that were summed and these, and are not there any more.

    `known` gives the last report of a source that was summed.
    """
    last: dict[str, int] = {}
    gone = 0
    for report in reports:
        before = last[report.source] if report.source in last else known(report.source)
        gone += max(0, report.sequence - before - 1)
        last[report.source] = max(before, report.sequence)
    return gone


def _read(report: UsageReport) -> SourceReport:
    if not report.source or not 1 <= report.sequence <= _MOST_SEQUENCE:
        raise _MalformedError
    amounts: dict[UsageKey, Amounts] = {}
    last_used: dict[str, datetime] = {}
    whole = Amounts()
    for entry in report.entries:
        each = Amounts(entry.calls, entry.request_bytes, entry.response_bytes, entry.model_micros)
        whole.add(each)
        if max(whole.calls, whole.request_bytes, whole.response_bytes, whole.model_micros) > _MOST:
            raise _MalformedError
        key = _key(entry)
        if each != Amounts():  # else a key only asked what there is
            amounts.setdefault(key, Amounts()).add(each)
        if key.key_id and entry.last_unix_micros:
            moment = _moment(entry.last_unix_micros / 1e6)
            last_used[key.key_id] = max(moment, last_used.get(key.key_id, moment))
    return SourceReport(_name(report.source), report.sequence, amounts, last_used)


def _key(entry: UsageEntry) -> UsageKey:
    if entry.hour_unix_seconds % _HOUR:
        raise _MalformedError
    return UsageKey(_moment(entry.hour_unix_seconds), _name(entry.tenant), _name(entry.key_id), _name(entry.model))


def _moment(unix_seconds: float) -> datetime:
    if not 0 <= unix_seconds < _LAST_HOUR:
        raise _MalformedError
    return datetime.fromtimestamp(unix_seconds, UTC)


def _name(text: str) -> str:
    if len(text.encode()) > _LONGEST_NAME:
        raise _MalformedError
    return text.replace("\x00", "\ufffd")  # PostgreSQL takes everything else

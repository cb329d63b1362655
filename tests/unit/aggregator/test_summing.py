"""What was reported, as what is summed: what passes, what is passed over, and what is missing."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from aggregator.summing import missing, readable
from headrace.bus.v1.usage_pb2 import UsageEntry, UsageReport
from headrace.store.usage import Amounts, SourceReport, UsageKey

HOUR = 1_799_999_200 - 1_799_999_200 % 3600
AT = datetime.fromtimestamp(HOUR, UTC)


def report(*entries: Mapping[str, Any], **stated: Any) -> UsageReport:
    usual: dict[str, Any] = {"tenant": "a", "model": "m", "hour_unix_seconds": HOUR, "calls": 1}
    whole: dict[str, Any] = {"schema_version": 1, "source": "s", "sequence": 9} | stated
    return UsageReport(**whole, entries=[UsageEntry(**usual | dict(entry)) for entry in entries])


def test_a_report_is_read_with_its_keys_last_use() -> None:
    outcomes: Counter[str] = Counter()
    made = report(
        {"key_id": "k", "last_unix_micros": HOUR * 10**6 + 250_000},
        {
            "key_id": "k",
            "model": "n",
            "calls": 2,
            "request_bytes": 4,
            "response_bytes": 5,
            "last_unix_micros": 5 * 10**6,
        },
        {"key_id": "l"},
        {"tenant": "a\x00", "calls": 0, "model_micros": 3, "last_unix_micros": 1},
    )

    [read] = readable([made], outcomes)

    assert (read.source, read.sequence) == ("s", 9)
    assert read.last_used == {"k": AT.replace(microsecond=250_000)}
    assert read.amounts == {
        UsageKey(AT, "a", "k", "m"): Amounts(calls=1),
        UsageKey(AT, "a", "k", "n"): Amounts(calls=2, request_bytes=4, response_bytes=5),
        UsageKey(AT, "a", "l", "m"): Amounts(calls=1),
        UsageKey(AT, "a\ufffd", "", "m"): Amounts(model_micros=3),
    }
    assert not outcomes


def test_what_a_report_has_twice_is_added() -> None:
    [read] = readable([report({}, {"calls": 2})], Counter())

    assert read.amounts == {UsageKey(AT, "a", "", "m"): Amounts(calls=3)}


@pytest.mark.parametrize(
    "made",
    [
        report({"hour_unix_seconds": HOUR + 1}),
        report({"hour_unix_seconds": 1 << 60}),
        report({"hour_unix_seconds": -3600}),
        report({"calls": 1 << 63}),
        report({"request_bytes": 1 << 51}),
        report({"response_bytes": 1 << 51}),
        report({"model_micros": 1 << 51}),
        report({"calls": 1 << 50}, {"model": "n"}),
        report(*[{"model": f"m{number}", "request_bytes": 1 << 50} for number in range(8192)]),
        report({"key_id": "k", "last_unix_micros": 1 << 62}),
        report({"key_id": "k", "last_unix_micros": -1}),
        report({"tenant": "ß" * 300}),
        report({"key_id": "k" * 600}),
        report({"model": "m" * 600}),
        report({}, {"model": "m" * 600}),
        report({}, sequence=0),
        report({}, sequence=1 << 63),
        report({}, source=""),
        report({}, source="s" * 600),
    ],
)
def test_what_no_meter_makes_and_no_database_takes_is_passed_over_and_counted(made: UsageReport) -> None:
    """As a whole: a part of a report is never summed."""
    outcomes: Counter[str] = Counter()
    good = report({}, sequence=10)

    read = readable([made, good], outcomes)

    assert [each.sequence for each in read] == [10]
    assert outcomes == {"malformed": 1}


@pytest.mark.parametrize("version", [0, 2])
def test_a_version_that_is_not_known_is_passed_over_and_counted(version: int) -> None:
    outcomes: Counter[str] = Counter()

    assert readable([report({}, schema_version=version)], outcomes) == []
    assert outcomes == {"unknown_version": 1}


@pytest.mark.parametrize(
    ("sequences", "gone"),
    [([6], 0), ([6, 7, 8], 0), ([6, 6, 5, 7], 0), ([1, 2, 3], 0), ([7], 1), ([6, 9, 10], 2), ([3, 9, 12], 5)],
)
def test_what_lies_between_and_is_not_there_is_missing(sequences: list[int], gone: int) -> None:
    """Five reports of the source are summed."""
    reports = [SourceReport("s", sequence, {}) for sequence in sequences]

    assert missing(reports, {"s": 5}.__getitem__) == gone


def test_every_source_has_numbers_of_its_own() -> None:
    reports = [SourceReport("s", 6, {}), SourceReport("t", 3, {}), SourceReport("s", 7, {}), SourceReport("t", 4, {})]

    assert missing(reports, {"s": 5, "t": 0}.__getitem__) == 2


def test_a_key_that_only_asked_is_used_and_has_no_usage() -> None:
    outcomes: Counter[str] = Counter()
    asked = {"tenant": "acme", "model": "", "key_id": "observer", "calls": 0, "last_unix_micros": HOUR * 10**6}

    [read] = readable([report(asked)], outcomes)

    assert read.last_used.keys() == {"observer"}
    assert read.amounts == {}

"""What a log line looks like."""

import json
import logging
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.logs import JsonLines, TextLines


def record(message: str = "call refused", *args: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("gateway.edge").makeRecord(
        "gateway.edge", logging.WARNING, "edge.py", 1, message, args, None, extra=extra
    )


def test_json_has_the_event_and_the_fields_beside_the_prose() -> None:
    line = json.loads(JsonLines("gateway").format(record(event="call_refused", reason="KEY_MISSING", size=3)))

    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "process": "gateway",
        "logger": "gateway.edge",
        "event": "call_refused",
        "message": "call refused",
        "reason": "KEY_MISSING",
        "size": 3,
    }


def test_a_field_can_not_pass_for_one_of_ours() -> None:
    line = json.loads(JsonLines("gateway").format(record(level="INFO", logger="1", time="never")))

    assert (line["level"], line["logger"]) == ("WARNING", "gateway.edge")
    assert line["time"] != "never"


@pytest.mark.parametrize("formatter", [JsonLines("gateway"), TextLines()])
def test_payloads_and_secrets_are_not_written(formatter: logging.Formatter) -> None:
    line = formatter.format(record(payload=b"tensor", authorization="Bearer hr_a_b", Password="p4ss"))  # noqa: S106

    assert "<6 bytes>" in line
    for secret in ("tensor", "hr_a_b", "p4ss"):
        assert secret not in line


@pytest.mark.parametrize("formatter", [JsonLines("gateway"), TextLines()])
@pytest.mark.parametrize("odd", ["\n", "\r", "\x0b", "\x1b[31m", "\x85", "\x9b2J", "\u2028", "\u202e", "\x7f"])
def test_a_caller_can_not_write_a_line_of_its_own_nor_move_a_cursor(formatter: logging.Formatter, odd: str) -> None:
    line = formatter.format(record("model %s", f"x{odd}2026-01-01 all is well", model=f"y{odd}z"))

    assert len(line.splitlines()) == 1
    assert line.isprintable()


def test_what_is_escaped_reads_as_it_was() -> None:
    line = JsonLines("gateway").format(record("größer", model="a\u2028\x9b🙂"))

    assert json.loads(line)["model"] == "a\u2028\x9b🙂"
    assert "größer" in line


def test_json_keeps_a_traceback_in_its_line() -> None:
    failed = record(event="process_failed")
    lost = LookupError("lost")
    failed.exc_info = (type(lost), lost, None)

    line = JsonLines("gateway").format(failed)

    assert "LookupError: lost" in json.loads(line)["exception"]
    assert len(line.splitlines()) == 1


def test_text_reads_like_a_line() -> None:
    line = TextLines().format(record(event="call_refused", reason="KEY_MISSING"))

    assert line.endswith("WARNING call refused reason=KEY_MISSING [call_refused]")


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, None),
        (math.inf, None),
        (1 << 64, str(1 << 64)),
        (10**5000, "<int: ValueError>"),
        (
            {"a": {"password": "p4ss", "n": math.nan}, 1: (2, b"xyz")},
            {"a": {"password": "***", "n": None}, "1": [2, "<3 bytes>"]},
        ),
        ({("no", "key"): 1}, {"('no', 'key')": 1}),
        (Broken(), "<Broken: RuntimeError>"),
        ("half a \udc80 pair", "half a ? pair"),
        (b"tensor", "<6 bytes>"),
        ([[[[[[1]]]]]], [[[["[[1]]"]]]]),
    ],
    ids=["no", "infinite", "wide", "wider", "nested", "names", "broken", "half", "bytes", "deep"],
)
def test_what_json_does_not_have_costs_neither_the_line_nor_its_form(value: object, written: object) -> None:
    line = JsonLines("gateway").format(record(event="e", value=value))

    assert json.loads(line, parse_constant=refused)["value"] == written
    line.encode("utf-8")


@pytest.mark.parametrize("formatter", [JsonLines("gateway"), TextLines()])
@pytest.mark.parametrize("value", ["x" * 1_000_000, ["x" * 100] * 100_000, {str(n): n for n in range(100_000)}])
def test_a_line_is_bounded(formatter: logging.Formatter, value: object) -> None:
    """Container runtimes cut lines of more than 16 KiB, and Loki refuses those of more than 256 KiB."""
    assert len(formatter.format(record("x" * 1_000_000, value=value))) < 16_384


def test_a_traceback_is_bounded_and_keeps_its_end() -> None:
    failed = record(event="process_failed")
    failed.exc_info = (LookupError, LookupError("x" * 1_000_000 + " the end"), None)

    exception = json.loads(JsonLines("gateway").format(failed))["exception"]

    assert exception.endswith(" the end")
    assert len(exception) < 20_000


@pytest.mark.parametrize("formatter", [JsonLines("gateway"), TextLines()])
def test_prose_that_does_not_fit_its_arguments_is_written_as_it_is(formatter: logging.Formatter) -> None:
    assert "%d calls (TypeError in its arguments)" in formatter.format(record("%d calls", "many"))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary()
KEYS = st.text() | st.integers() | st.tuples(st.text())


@given(st.dictionaries(st.text().map("a_{}".format), LEAVES | st.lists(LEAVES) | st.dictionaries(KEYS, LEAVES)))
def test_whatever_fields_hold_a_line_is_one_object(fields: dict[str, Any]) -> None:
    made = record()
    vars(made).update(fields)

    line = JsonLines("gateway").format(made)

    assert "\n" not in line
    told = json.loads(line.encode("utf-8"), parse_constant=refused)
    assert (told["process"], told["logger"], told["message"]) == ("gateway", "gateway.edge", "call refused")


def refused(constant: str) -> None:
    pytest.fail(f"{constant} is no JSON")

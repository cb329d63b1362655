"""What a log line looks like."""

import json
import logging

import pytest

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
def test_a_caller_can_not_write_a_line_of_its_own(formatter: logging.Formatter) -> None:
    line = formatter.format(record("model %s", "x\n2026-01-01 all is well", model="y\nz"))

    assert len(line.splitlines()) == 1


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

"""One line for each refusal and administrative act, and no flood of them."""

import logging
from typing import Any

import pytest

from gateway.audit import Audit
from gateway.errors import KeyInvalid, ModelUnknown, RateLimited
from gateway.identity import Caller

ONE, TWO = Caller("acme", "key-1"), Caller("acme", "key-2")
LOGGER = "gateway.audit"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    named = ("event", "repeated", "tenant", "key_id", "peer", "method", "model", "reason", "call_id", "verdict")
    return [{name: value for name, value in vars(record).items() if name in named} for record in caplog.records]


def test_a_refusal_says_who_what_why_and_which_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    Audit(lambda: 5.0).refused(ONE, ModelUnknown(model="secret"), method="/s/M", call_id="00ff")

    assert lines(caplog) == [
        {
            "event": "call_refused",
            "repeated": 0,
            "tenant": "acme",
            "key_id": "key-1",
            "method": "/s/M",
            "model": "secret",
            "reason": "MODEL_UNKNOWN",
            "call_id": "00ff",
        }
    ]


def test_who_is_not_known_is_told_by_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    Audit(lambda: 5.0).refused(None, KeyInvalid(), method="/s/M", peer="ipv4:10.0.0.7:5000")

    [line] = lines(caplog)
    assert (line["peer"], line["reason"]) == ("ipv4:10.0.0.7:5000", "KEY_INVALID")
    assert "tenant" not in line


def test_repeated_refusals_are_one_line_a_second_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    now = 10.0
    audit = Audit(lambda: now)

    for _ in range(1000):
        audit.refused(ONE, RateLimited(), method="m")
    audit.refused(TWO, RateLimited(), method="m")
    audit.refused(ONE, KeyInvalid(), method="m")
    for port in range(100):
        audit.refused(None, KeyInvalid(), method="m", peer=f"ipv4:10.0.0.7:{port}")
    now = 11.0
    audit.refused(ONE, RateLimited(), method="m")

    assert [(line.get("key_id"), line["reason"], line["repeated"]) for line in lines(caplog)] == [
        ("key-1", "RATE_LIMITED", 0),
        ("key-2", "RATE_LIMITED", 0),
        ("key-1", "KEY_INVALID", 0),
        (None, "KEY_INVALID", 0),
        ("key-1", "RATE_LIMITED", 999),
    ]


def test_an_administrative_act_says_who_did_what_and_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    Audit(lambda: 0.0).administered(ONE, method="/s/Load", verdict="OK")

    assert lines(caplog) == [
        {"event": "administered", "tenant": "acme", "key_id": "key-1", "method": "/s/Load", "verdict": "OK"}
    ]

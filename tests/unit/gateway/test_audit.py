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


def test_repeated_refusals_are_one_line_and_their_number_follows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    now = 10.0
    audit = Audit(lambda: now)

    for _ in range(1000):
        audit.refused(ONE, RateLimited(), method="m")
    audit.refused(TWO, RateLimited(), method="m")
    audit.refused(ONE, RateLimited(), method="other")
    audit.refused(ONE, KeyInvalid(), method="m")
    audit.flush()
    for port in range(100):
        audit.refused(None, KeyInvalid(), method="m", peer=f"ipv4:10.0.0.7:{port}")
        audit.refused(None, KeyInvalid(), method="m", peer=f"ipv6:[2001:db8::{port:x}]:{port}")
    now = 11.0
    audit.flush()
    audit.flush()

    told = [(line.get("key_id"), line["method"], line["reason"], line.get("repeated")) for line in lines(caplog)]
    assert told == [
        ("key-1", "m", "RATE_LIMITED", None),
        ("key-2", "m", "RATE_LIMITED", None),
        ("key-1", "other", "RATE_LIMITED", None),
        ("key-1", "m", "KEY_INVALID", None),
        (None, "m", "KEY_INVALID", None),
        (None, "m", "KEY_INVALID", None),
        ("key-1", "m", "RATE_LIMITED", 999),
        (None, "m", "KEY_INVALID", 99),
        (None, "m", "KEY_INVALID", 99),
    ]


def test_a_flood_from_everywhere_is_so_many_lines_a_second_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    now = 10.0
    audit = Audit(lambda: now)

    for host in range(1000):
        audit.refused(None, KeyInvalid(), method="m", peer=f"ipv4:10.0.{host >> 8}.{host & 255}:1")
    now = 11.0
    audit.flush()

    said = lines(caplog)
    assert len(said) == 101
    assert (said[-1]["reason"], said[-1]["repeated"]) == ("VARIOUS", 900)


@pytest.mark.parametrize("peer", ["", "unix:", "unix:/run/x", "ipv4:", "ipv6:[::1%25lo]:5", "nonsense"])
def test_any_address_is_told(caplog: pytest.LogCaptureFixture, peer: str) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    Audit(lambda: 0.0).refused(None, KeyInvalid(), method="m", peer=peer)

    assert lines(caplog)[0].get("peer", "") == peer


def test_an_administrative_act_says_who_did_what_and_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)

    Audit(lambda: 0.0).administered(ONE, method="/s/Load", model="simple", peer="ipv4:1.2.3.4:5", verdict="OK")

    assert lines(caplog) == [
        {
            "event": "administered",
            "tenant": "acme",
            "key_id": "key-1",
            "method": "/s/Load",
            "model": "simple",
            "peer": "ipv4:1.2.3.4:5",
            "verdict": "OK",
        }
    ]


def test_what_was_counted_is_told_when_all_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    audit = Audit(lambda: 0.0)
    for _ in range(3):
        audit.refused(ONE, RateLimited(scope="tenant acme"), method="m", model="simple")

    audit.flush(everything=True)

    assert [(line["model"], line.get("repeated")) for line in lines(caplog)] == [("simple", None), ("simple", 2)]

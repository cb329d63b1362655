"""`headrace database` and `usage`, and what all commands of the database have in common."""

import csv
import hashlib
import io
import json
import os
import pwd
import socket
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.store.usage import Amounts, Batch, SourceReport, UsageKey, sum_batch
from tests.unit.cli.desk import NOW, Desk, rows

# The database.


def test_tables_are_made_and_then_up_to_date(tmp_path: Path) -> None:
    desk = Desk(f"sqlite:///{tmp_path}/headrace.db")
    status, _, err = desk.run("database", "check")
    assert (status, "headrace database upgrade" in err) == (1, True)
    assert desk.told("database", "upgrade") == "upgraded: 0001 0002\n"
    assert desk.told("database", "upgrade") == "the tables are up to date\n"
    assert "up to date" in desk.told("database", "check")


def test_who_only_looks_makes_no_database(tmp_path: Path) -> None:
    status, _, err = Desk(f"sqlite:///{tmp_path}/none.db").run("database", "check")
    assert (status, "has no tables yet" in err) == (1, True)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    assert "must be postgresql://" in Desk("headrace.db").refused("tenants", "list")
    told = CliRunner().invoke(app, ["tenants", "list", "--state-dir", str(tmp_path)])
    assert (told.exit_code, "`headrace up` makes it" in told.stderr) == (2, True)


def test_a_database_that_is_away_is_a_failure() -> None:
    status, _, err = Desk("postgresql://u@127.0.0.1:1/x").run("tenants", "list")
    assert status == 1
    assert "does not answer" in err


# Usage.


@pytest.fixture
def used(desk: Desk) -> datetime:
    """An hour of usage."""
    hour = NOW.replace(minute=0, second=0)
    amounts = {
        UsageKey(hour, "acme", "k", "simple"): Amounts(calls=3, request_bytes=10, response_bytes=20),
        UsageKey(hour, "acme", "", "simple"): Amounts(model_micros=1_500_000),
        UsageKey(hour - timedelta(days=2), "acme", "k", "echo"): Amounts(calls=1),
    }
    store = desk.store()
    with store.transaction() as c:
        sum_batch(c, Batch("t", 0, None, 1, [SourceReport("s", 1, amounts)]), now=hour)
    store.close()
    return hour


def test_usage_is_a_table_by_model(desk: Desk, used: datetime) -> None:
    assert desk.told("usage", "acme").splitlines()[0].split() == [
        "MODEL",
        "CALLS",
        "REQUEST_BYTES",
        "RESPONSE_BYTES",
        "MODEL_SECONDS",
    ]
    assert rows(desk.told("usage", "acme")) == [
        ["echo", "1", "0", "0", "0.000"],
        ["simple", "3", "10", "20", "1.500"],
    ]
    assert rows(desk.told("usage", "acme", "--since", "1d")) == [["simple", "3", "10", "20", "1.500"]]
    assert rows(desk.told("usage", "acme", "--since", "9d", "--until", used.isoformat())) == [
        ["echo", "1", "0", "0", "0.000"]
    ]


def test_usage_is_csv_or_json_by_what_is_asked_for(desk: Desk, used: datetime) -> None:
    text = desk.told("usage", "acme", "--since", "1d", "--by", "hour", "--by", "key", "--format", "csv")
    hour = used.strftime("%Y-%m-%dT%H:00Z")
    assert [(row["hour"], row["key"], row["calls"]) for row in csv.DictReader(io.StringIO(text))] == [
        (hour, "", "0"),
        (hour, "k", "3"),
    ]
    by_day = ("--by", "day", "--by", "day")  # the second one says nothing new
    assert json.loads(desk.told("usage", "acme", "--since", "1h", *by_day, "--format", "json")) == [
        {
            "day": used.strftime("%Y-%m-%d"),
            "calls": 3,
            "request_bytes": 10,
            "response_bytes": 20,
            "model_seconds": 1.5,
        }
    ]


def test_what_is_left_of_quotas_is_shown(desk: Desk, used: datetime) -> None:
    del used
    desk.told(
        "tenants", "create", "acme", "--calls-per-day", "5", "--model-seconds-per-month", "1", "--concurrency", "2"
    )
    assert rows(desk.told("limits", "show", "acme")) == [
        ["the", "tenant", "concurrency", "2"],
        ["the", "tenant", "calls_per_day", "5", "3", "2"],
        ["the", "tenant", "model_seconds_per_month", "1", "1.5", "0"],
        ["the", "tenant", "warn_at", "0.8"],
    ]


@pytest.mark.parametrize("when", ["yesterday", "7w", "2026-13-01", "", "0001-01-01T00:00+05:00"])
def test_a_time_that_is_none_is_told(desk: Desk, when: str) -> None:
    assert "--since" in desk.refused("usage", "acme", "--since", when)


def test_a_span_that_ends_before_it_begins_is_told(desk: Desk) -> None:
    assert "--until is not after --since" in desk.refused("usage", "acme", "--since", "1d", "--until", "2d")


def test_a_span_within_an_hour_is_told(desk: Desk) -> None:
    span = ("--since", "2026-11-01T06:10", "--until", "2026-11-01T06:50")
    assert "times are cut to full hours, 2026-11-01T06:00 to 2026-11-01T06:00" in desk.refused("usage", "acme", *span)


def test_who_is_no_tenant_is_told_from_one_that_used_nothing(desk: Desk, used: datetime) -> None:
    del used
    desk.told("tenants", "create", "idle")
    assert rows(desk.told("usage", "idle")) == []
    assert rows(desk.told("usage", "acme", "--since", "2026-01-01", "--until", "2026-01-02")) == []
    assert "no tenant acne has usage" in desk.refused("usage", "acne")


# What was done.


def test_every_act_is_told_with_who_did_it_and_what_it_made(desk: Desk, clock: list[datetime]) -> None:
    desk.acme()
    desk.told("tenants", "change", "acme", "--concurrency", "2")
    desk.told("tenants", "disable", "acme")
    desk.told("tenants", "enable", "acme")
    desk.told("keys", "create", "acme", "--id", "k", "--admin", "--days", "1")
    clock[0] += timedelta(hours=1)
    desk.told("keys", "disable", "k")
    desk.told("keys", "enable", "k")
    desk.told("keys", "rotate", "k", "--id", "j", "--hours", "1")
    acts = json.loads(desk.told("database", "log", "--json"))
    assert [(each["revision"], each["act"], each["key"]) for each in acts] == [
        (1, "tenants create", None),
        (2, "tenants change", None),
        (3, "tenants disable", None),
        (4, "tenants enable", None),
        (5, "keys create", "k"),
        (6, "keys disable", "k"),
        (7, "keys enable", "k"),
        (9, "keys rotate", "k"),
    ]
    who = (pwd.getpwuid(os.getuid()).pw_name, socket.gethostname(), "acme")
    assert {(each["os_user"], each["host"], each["tenant"]) for each in acts} == {who}
    assert [each["at"] for each in acts[4:6]] == [NOW.isoformat(), clock[0].isoformat()]
    assert acts[1]["detail"]["grants"]["limits"]["concurrency"] == 2
    assert acts[4]["detail"] == {"roles": ["admin"], "expires": (NOW + timedelta(days=1)).isoformat()}
    ends = (clock[0] + timedelta(hours=1)).isoformat()
    assert acts[7]["detail"] == {"successor": "j", "taken_until": ends, "expires": None}


def test_what_is_so_already_is_no_act(desk: Desk) -> None:
    desk.acme()
    desk.told("keys", "create", "acme", "--id", "k")
    for words in (("tenants", "disable", "acme"), ("keys", "disable", "k"), ("tenants", "enable", "acme")):
        assert "already" not in desk.told(*words)
    assert desk.told("tenants", "enable", "acme") == "tenant acme is active already\n"
    assert desk.told("keys", "disable", "k") == "key k is disabled already\n"
    acts = json.loads(desk.told("database", "log", "--json"))
    assert [(each["act"], each["revision"]) for each in acts[-3:]] == [
        ("tenants disable", 3),
        ("keys disable", 4),
        ("tenants enable", 5),
    ]


def test_what_is_refused_is_no_act(desk: Desk) -> None:
    desk.acme()
    desk.refused("tenants", "create", "acme")
    desk.refused("tenants", "create", "b", "--burst", "2")
    desk.refused("keys", "disable", "k")
    assert [row[4:6] for row in rows(desk.told("database", "log"))] == [["tenants", "create"]]


def test_the_last_acts_are_told_of_a_span_and_so_many(desk: Desk, clock: list[datetime]) -> None:
    for number in range(4):
        desk.told("tenants", "create", f"t{number}")
        clock[0] += timedelta(hours=1)
    assert [row[-2] for row in rows(desk.told("database", "log", "--limit", "2"))] == ["t2", "t3"]
    assert [row[-2] for row in rows(desk.told("database", "log", "--since", "2h"))] == ["t2", "t3"]
    assert "--since" in desk.refused("database", "log", "--since", "once")


def test_no_secret_is_in_the_log(desk: Desk) -> None:
    desk.acme()
    made = desk.told("keys", "create", "acme", "--id", "k").strip()
    log = desk.told("database", "log", "--json")
    secret = made.split("_", 2)[2]
    assert secret not in log
    assert hashlib.sha256(secret.encode()).hexdigest() not in log


# Every command.


def test_who_reads_waits_for_nobody_who_writes(desk: Desk, used: datetime) -> None:
    del used
    desk.acme()
    desk.told("keys", "create", "acme", "--id", "k")
    store = desk.store()
    with store.transaction():
        for words in (
            ("usage", "acme"),
            ("tenants", "list"),
            ("tenants", "show", "acme"),
            ("keys", "list"),
            ("keys", "show", "k"),
            ("database", "log"),
        ):
            desk.told(*words)
    store.close()


@pytest.mark.parametrize(
    "words",
    [
        ("keys", "show", "\udcff"),
        ("keys", "list", "\udcff"),
        ("keys", "create", "\udcff"),
        ("tenants", "show", "\udcff"),
        ("tenants", "disable", "\udcff"),
        ("tenants", "create", "acme", "--models", "\udcff"),
        ("limits", "show", "\udcff"),
        ("usage", "\udcff"),
    ],
)
def test_a_name_that_is_no_text_is_told(desk: Desk, words: tuple[str, ...]) -> None:
    told = desk.refused(*words)
    assert told.startswith("headrace: ")
    assert told.count("\n") == 1

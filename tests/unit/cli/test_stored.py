"""`headrace database`, `tenants`, `keys` and `usage`: what an operator does, and what is told when it can't be done."""

import csv
import hashlib
import io
import json
import os
import pwd
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app, moments
from headrace.store.engine import Store
from headrace.store.tenants import create_tenant
from headrace.store.usage import Amounts, Batch, SourceReport, UsageKey, sum_batch

NOW = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
ACME = {"models": ["*"], "limits": {"calls_per_second": 10.0}, "quotas": {"calls_per_day": 30}}


class Desk:
    """An operator's, with a database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def store(self) -> Store:
        return Store(self.url)

    def run(self, *words: str, stdin: str | None = None) -> tuple[int, str, str]:
        done = CliRunner(env={"HEADRACE_DATABASE__URL": self.url}).invoke(app, words, input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    def told(self, *words: str, stdin: str | None = None) -> str:
        status, out, err = self.run(*words, stdin=stdin)
        assert status == 0, err
        return out

    def refused(self, *words: str, stdin: str | None = None) -> str:
        status, out, err = self.run(*words, stdin=stdin)
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        return err

    def grants(self, name: str = "acme") -> object:
        return json.loads(self.told("tenants", "show", name, "--json"))["grants"]

    def acme(self) -> None:
        self.told("tenants", "create", "acme", "--calls-per-second", "10", "--calls-per-day", "30")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(f"sqlite:///{tmp_path}/headrace.db")
    made.told("database", "upgrade")
    return made


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """What commands take the moment to be."""
    held = [NOW]
    monkeypatch.setattr(moments, "now", lambda: held[0])
    return held


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


# The database.


def test_tables_are_made_and_then_up_to_date(tmp_path: Path) -> None:
    desk = Desk(f"sqlite:///{tmp_path}/headrace.db")
    status, _, err = desk.run("database", "check")
    assert (status, "headrace database upgrade" in err) == (1, True)
    assert desk.told("database", "upgrade") == "upgraded: 0001 0002\n"
    assert desk.told("database", "upgrade") == "the tables are up to date\n"
    assert "up to date" in desk.told("database", "check")


def test_a_database_that_is_none_is_told(tmp_path: Path) -> None:
    assert "must be postgresql://" in Desk("headrace.db").refused("tenants", "list")
    told = CliRunner().invoke(app, ["tenants", "list", "--state-dir", str(tmp_path)])
    assert (told.exit_code, "`headrace up` makes it" in told.stderr) == (2, True)


def test_a_database_that_is_away_is_a_failure() -> None:
    status, _, err = Desk("postgresql://u@127.0.0.1:1/x").run("tenants", "list")
    assert status == 1
    assert "does not answer" in err


# Tenants.


def test_a_tenant_is_made_of_options_and_shown(desk: Desk) -> None:
    desk.acme()
    shown = json.loads(desk.told("tenants", "show", "acme", "--json"))
    assert (shown["name"], shown["disabled"], shown["keys"], shown["grants"]) == ("acme", False, [], ACME)
    assert ["the", "tenant", "calls_per_day", "30"] in rows(desk.told("tenants", "show", "acme"))
    assert ["the", "tenant", "calls_per_day", "30"] in rows(desk.told("limits", "show", "acme"))
    assert [row[:2] for row in rows(desk.told("tenants", "list"))] == [["acme", "active"]]


def test_a_tenant_is_made_of_a_file_and_options_win(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "acme.yaml"
    file.write_text("models: [simple]\nlimits: {calls_per_second: 5, concurrency: 3}\n")
    desk.told("tenants", "create", "acme", "--file", str(file), "--calls-per-second", "7")
    grants = json.loads(desk.told("tenants", "show", "acme", "--json"))["grants"]
    assert grants == {"models": ["simple"], "limits": {"calls_per_second": 7, "concurrency": 3}}


def test_a_change_leaves_what_it_does_not_name(desk: Desk) -> None:
    desk.acme()
    desk.told("tenants", "change", "acme", "--concurrency", "2", "--models", "text_*")
    grants = json.loads(desk.told("tenants", "show", "acme", "--json"))["grants"]
    assert grants == ACME | {"models": ["text_*"], "limits": {"calls_per_second": 10, "concurrency": 2}}
    desk.told("tenants", "change", "acme", "--file", "-", stdin=json.dumps({"models": ["x"]}))
    assert json.loads(desk.told("tenants", "show", "acme", "--json"))["grants"] == {"models": ["x"]}


def test_what_a_policy_would_refuse_is_refused(desk: Desk) -> None:
    assert "--burst needs --calls-per-second" in desk.refused("tenants", "create", "acme", "--burst", "2")
    assert "line 2: limit: no such field" in desk.refused(
        "tenants", "create", "acme", "--file", "-", stdin="models: []\nlimit: {}\n"
    )
    assert "a tenant's name" in desk.refused("tenants", "create", "a b")
    assert desk.told("tenants", "list", "--json") == "[]\n"


def test_a_tenant_that_is_there_or_is_not_is_told(desk: Desk) -> None:
    desk.acme()
    assert "headrace tenants change acme" in desk.refused("tenants", "create", "acme")
    for words in (("change", "other", "--burst", "1"), ("show", "other"), ("disable", "other"), ("enable", "other")):
        assert "no tenant other" in desk.refused("tenants", *words)
    assert "nothing to change" in desk.refused("tenants", "change", "acme")


def test_a_tenant_is_disabled_and_enabled(desk: Desk) -> None:
    desk.acme()
    desk.told("tenants", "disable", "acme")
    assert rows(desk.told("tenants", "list"))[0][1] == "disabled"
    assert "no tenant acme" in desk.refused("limits", "show", "acme")
    desk.told("tenants", "enable", "acme")
    assert rows(desk.told("tenants", "list"))[0][1] == "active"


@pytest.mark.parametrize(
    ("option", "value"), [("--calls-per-second", "1e-9"), ("--model-seconds-per-day", "1e12"), ("--models", "[x]")]
)
def test_a_mistake_is_told_by_the_option_that_has_it(desk: Desk, option: str, value: str) -> None:
    desk.acme()
    for word, name in (("create", "other"), ("change", "acme")):
        assert f"headrace: {option}: " in desk.refused("tenants", word, name, option, value)


def test_a_mistake_beside_a_file_is_told_as_a_policy_has_it(desk: Desk) -> None:
    told = desk.refused("tenants", "create", "acme", "--file", "-", "--burst", "2", stdin="models: []")
    assert "limits: burst needs calls_per_second" in told


def test_zero_takes_a_limit_or_quota_away(desk: Desk) -> None:
    desk.acme()
    desk.told("tenants", "change", "acme", "--calls-per-second", "0", "--concurrency", "3")
    assert desk.grants() == {"models": ["*"], "limits": {"concurrency": 3}, "quotas": {"calls_per_day": 30}}
    desk.told("tenants", "change", "acme", "--concurrency", "0", "--calls-per-day", "0")
    assert desk.grants() == {"models": ["*"]}
    desk.told("tenants", "create", "free", "--calls-per-second", "0", "--calls-per-month", "0")
    assert desk.grants("free") == {"models": ["*"]}


def test_every_limit_and_quota_has_an_option(desk: Desk) -> None:
    desk.told("tenants", "create", "acme", "--bytes-per-day", "5", "--bytes-per-month", "6", "--request-bytes", "7")
    assert desk.grants() == {
        "models": ["*"],
        "limits": {"request_bytes": 7},
        "quotas": {"bytes_per_day": 5, "bytes_per_month": 6},
    }


def test_certificates_are_taken_away(desk: Desk) -> None:
    desk.told("tenants", "create", "acme", "--certificate", "spiffe://x/a")
    assert "choose one" in desk.refused("tenants", "change", "acme", "--certificate", "b", "--no-certificates")
    desk.told("tenants", "change", "acme", "--no-certificates")
    assert desk.grants() == {"models": ["*"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("spiffe://x/a/b", "spiffe://x/a/*"),
        ("spiffe://x/a/*", "spiffe://x/a/b"),
        ("spiffe://x/a", "spiffe://x/a"),
        ("A.example", "a.EXAMPLE"),
    ],
)
def test_a_certificate_stands_for_one_tenant(desk: Desk, first: str, second: str) -> None:
    desk.told("tenants", "create", "a", "--certificate", first)
    desk.told("tenants", "create", "b", "--certificate", "spiffe://x/b")
    for word, name in (("create", "c"), ("change", "b")):
        assert "stands for tenant a already" in desk.refused("tenants", word, name, "--certificate", second)
    assert desk.grants("b") == {"models": ["*"], "certificates": ["spiffe://x/b"]}
    assert "no tenant c" in desk.refused("tenants", "show", "c")
    desk.told("tenants", "change", "a", "--certificate", first, "--concurrency", "1")


def test_certificates_of_a_tenant_that_can_not_be_read_hold_up_nobody(desk: Desk) -> None:
    store = desk.store()
    with store.transaction() as c:
        create_tenant(c, "odd", {"certificates": ["spiffe://x/a"], "models": 5}, now=NOW)
    store.close()
    desk.told("tenants", "create", "a", "--certificate", "spiffe://x/a")


# Keys.


def test_a_key_is_printed_once_and_kept_as_a_hash(desk: Desk, tmp_path: Path) -> None:
    desk.acme()
    status, out, err = desk.run("keys", "create", "acme", "--id", "ops-1", "--admin", "--days", "1")
    assert status == 0
    assert err == "The key, shown only now:\n"
    prefix, key_id, secret = out.strip().split("_", 2)
    assert (prefix, key_id) == ("hr", "ops-1")
    shown = json.loads(desk.told("keys", "show", "ops-1", "--json"))
    assert (shown["tenant"], shown["roles"], shown["state"]) == ("acme", ["admin"], "active")
    assert datetime.fromisoformat(shown["expires"]) == NOW + timedelta(days=1)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in stored
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in stored


def test_a_key_of_a_tenant_that_is_elsewhere_is_made_with_a_word(desk: Desk) -> None:
    status, _, err = desk.run("keys", "create", "elsewhere")
    assert status == 0
    assert "the database has no tenant elsewhere" in err


def test_a_key_is_disabled_and_enabled(desk: Desk) -> None:
    desk.told("keys", "create", "acme", "--id", "k")
    desk.told("keys", "disable", "k")
    assert rows(desk.told("keys", "list", "acme"))[0][3] == "disabled"
    desk.told("keys", "enable", "k")
    assert rows(desk.told("keys", "list"))[0][3] == "active"
    assert desk.told("keys", "list", "other", "--json") == "[]\n"


def test_a_rotated_key_goes_on_for_a_while_and_hands_on_what_it_may(desk: Desk) -> None:
    desk.told("keys", "create", "acme", "--id", "old", "--observer")
    made = json.loads(desk.told("keys", "rotate", "old", "--id", "new", "--hours", "2", "--json"))
    assert made["key"].startswith("hr_new_")
    keys = {each["id"]: each for each in json.loads(desk.told("keys", "list", "--json"))}
    assert (keys["new"]["roles"], keys["new"]["expires"]) == (["observer"], None)
    assert datetime.fromisoformat(keys["old"]["expires"]) == NOW + timedelta(hours=2)
    desk.told("keys", "rotate", "old", "--hours", "200")
    assert json.loads(desk.told("keys", "show", "old", "--json"))["expires"] == keys["old"]["expires"]
    desk.told("keys", "rotate", "old", "--hours", "0")
    assert json.loads(desk.told("keys", "show", "old", "--json"))["state"] == "expired"


def test_a_key_that_is_refused_gets_no_successor(desk: Desk, clock: list[datetime]) -> None:
    desk.told("keys", "create", "acme", "--id", "off")
    desk.told("keys", "create", "acme", "--id", "over", "--days", "1")
    desk.told("keys", "disable", "off")
    clock[0] += timedelta(days=1)
    for key_id, state in (("off", "disabled"), ("over", "expired")):
        told = desk.refused("keys", "rotate", key_id)
        assert f"key {key_id} is {state}" in told
        assert "headrace keys create acme" in told
    assert [row[0] for row in rows(desk.told("keys", "list"))] == ["off", "over"]


def test_a_successor_without_the_end_that_a_key_had_is_told(desk: Desk) -> None:
    desk.told("keys", "create", "acme", "--id", "k", "--days", "9")
    _, _, err = desk.run("keys", "rotate", "k", "--id", "ends", "--days", "9")
    assert "had an end" not in err
    _, _, err = desk.run("keys", "rotate", "k", "--id", "new")
    assert "k had an end, new has none: --days gives one" in err
    _, _, err = desk.run("keys", "rotate", "new")
    assert "had an end" not in err


@pytest.mark.parametrize(
    ("words", "number"),
    [
        *((words, number) for words in ("create acme --days", "rotate k --days") for number in ("1e300", "1e7", "inf")),
        ("new --tenant acme --days", "1e7"),
        *(("rotate k --hours", number) for number in ("1e300", "1e9", "inf")),
    ],
)
def test_a_span_that_no_calendar_has_is_told(desk: Desk, words: str, number: str) -> None:
    desk.told("keys", "create", "acme", "--id", "k")
    typed = words.split()
    told = desk.refused("keys", *typed, number)
    assert told == f"headrace: {typed[-1]} {float(number):g}: too far away\n"
    assert len(rows(desk.told("keys", "list"))) == 1


def test_a_use_without_calls_is_a_use(desk: Desk) -> None:
    desk.told("keys", "create", "acme", "--id", "k")
    assert rows(desk.told("keys", "list"))[0][5:] == ["-"]
    store = desk.store()
    amounts = {UsageKey(NOW.replace(minute=0, second=0), "acme", "k", "simple"): Amounts()}
    with store.transaction() as c:
        sum_batch(c, Batch("t", 0, None, 1, [SourceReport("s", 1, amounts, {"k": NOW})]), now=NOW)
        sum_batch(c, Batch("t", 0, 1, 2, [SourceReport("s", 2, {}, {"k": NOW + timedelta(hours=1)})]), now=NOW)
    store.close()
    assert rows(desk.told("keys", "list"))[0][5:] == ["2026-12-01", "00:59"]


def test_a_key_that_is_there_or_is_not_is_told(desk: Desk) -> None:
    desk.told("keys", "create", "acme", "--id", "k")
    assert "there is a key k" in desk.refused("keys", "create", "acme", "--id", "k")
    for word in ("show", "disable", "enable", "rotate"):
        assert "no key other" in desk.refused("keys", word, "other")
    assert "--id: 1 to 64" in desk.refused("keys", "create", "acme", "--id", "a_b")


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
    assert json.loads(desk.told("usage", "acme", "--since", "1h", "--by", "day", "--format", "json")) == [
        {
            "day": used.strftime("%Y-%m-%d"),
            "calls": 3,
            "request_bytes": 10,
            "response_bytes": 20,
            "model_seconds": 1.5,
        }
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

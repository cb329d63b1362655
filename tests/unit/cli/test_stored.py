"""`headrace database`, `tenants`, `keys` and `usage`: what an operator does, and what is told when it can't be done."""

import csv
import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.store.engine import Store
from headrace.store.usage import Amounts, Batch, SourceReport, UsageKey, sum_batch

ACME = {"models": ["*"], "limits": {"calls_per_second": 10.0}, "quotas": {"calls_per_day": 30}}


class Desk:
    """An operator's, with a database."""

    def __init__(self, url: str) -> None:
        self.url = url

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

    def acme(self) -> None:
        self.told("tenants", "create", "acme", "--calls-per-second", "10", "--calls-per-day", "30")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(f"sqlite:///{tmp_path}/headrace.db")
    made.told("database", "upgrade")
    return made


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[1:]]


# The database.


def test_tables_are_made_and_then_up_to_date(tmp_path: Path) -> None:
    desk = Desk(f"sqlite:///{tmp_path}/headrace.db")
    status, _, err = desk.run("database", "check")
    assert (status, "headrace database upgrade" in err) == (1, True)
    assert desk.told("database", "upgrade") == "upgraded: 0001\n"
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
    assert "burst needs calls_per_second" in desk.refused("tenants", "create", "acme", "--burst", "2")
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
    assert timedelta(hours=23) < datetime.fromisoformat(shown["expires"]) - datetime.now(UTC) <= timedelta(days=1)
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
    left = datetime.fromisoformat(keys["old"]["expires"]) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < left <= timedelta(hours=2)
    desk.told("keys", "rotate", "old", "--hours", "200")
    assert json.loads(desk.told("keys", "show", "old", "--json"))["expires"] == keys["old"]["expires"]
    desk.told("keys", "rotate", "old", "--hours", "0")
    assert json.loads(desk.told("keys", "show", "old", "--json"))["state"] == "expired"


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
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    amounts = {
        UsageKey(hour, "acme", "k", "simple"): Amounts(calls=3, request_bytes=10, response_bytes=20),
        UsageKey(hour, "acme", "", "simple"): Amounts(model_micros=1_500_000),
        UsageKey(hour - timedelta(days=2), "acme", "k", "echo"): Amounts(calls=1),
    }
    store = Store(desk.url)
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


@pytest.mark.parametrize("when", ["yesterday", "7w", "2026-13-01", ""])
def test_a_time_that_is_none_is_told(desk: Desk, when: str) -> None:
    assert "--since" in desk.refused("usage", "acme", "--since", when)


def test_a_span_that_ends_before_it_begins_is_told(desk: Desk) -> None:
    assert "--until is not after --since" in desk.refused("usage", "acme", "--since", "1d", "--until", "2d")

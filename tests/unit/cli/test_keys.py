"""`headrace keys`, of the database: what an operator does, and what is told when it can't be done."""

import hashlib
import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from headrace.store.usage import Amounts, Batch, SourceReport, UsageKey, sum_batch
from tests.unit.cli.desk import NOW, Desk, rows


def test_a_key_is_printed_once_and_kept_as_a_hash(desk: Desk, tmp_path: Path) -> None:
    desk.told("tenants", "create", "acme", "--allow", "admin")
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


def test_a_key_of_a_tenant_that_is_nowhere_takes_a_word_more(desk: Desk) -> None:
    """It may be a typing mistake, or in a policy file elsewhere."""
    told = desk.refused("keys", "create", "elsewhere")
    assert "has a tenant elsewhere: `headrace tenants create elsewhere` makes it, and --force" in told
    assert desk.told("keys", "list", "--json") == "[]\n"
    assert desk.run("keys", "create", "elsewhere", "--force")[2] == "The key, shown only now:\n"


def test_a_key_that_can_not_do_what_it_is_for_is_told(desk: Desk) -> None:
    desk.acme()
    _, _, err = desk.run("keys", "create", "acme", "--id", "k", "--admin")
    assert "tenant acme is not granted `admin`" in err
    assert "`headrace tenants change acme --allow infer --allow metadata --allow admin`" in err
    desk.told("tenants", "change", "acme", "--allow", "admin")
    desk.told("tenants", "disable", "acme")
    for words in (("create", "acme"), ("rotate", "k")):
        _, _, err = desk.run("keys", *words)
        assert "tenant acme is disabled" in err
        assert "not granted" not in err


def test_roles_that_contradict_each_other_are_refused(desk: Desk) -> None:
    desk.acme()
    assert "choose one" in desk.refused("keys", "create", "acme", "--admin", "--observer")
    assert "choose one" in desk.refused("keys", "new", "--tenant", "acme", "--admin", "--observer")


def test_a_key_that_has_expired_is_enabled_with_a_word(desk: Desk, clock: list[datetime]) -> None:
    desk.acme()
    desk.told("keys", "create", "acme", "--id", "k", "--days", "1")
    desk.told("keys", "disable", "k")
    assert desk.run("keys", "enable", "k")[2] == ""
    desk.told("keys", "disable", "k")
    clock[0] += timedelta(days=1)
    assert "key k expired at 2026-12-01 23:59 UTC, and is refused" in desk.run("keys", "enable", "k")[2]


def test_a_key_is_disabled_and_enabled(desk: Desk) -> None:
    desk.acme()
    desk.told("keys", "create", "acme", "--id", "k")
    desk.told("keys", "disable", "k")
    assert rows(desk.told("keys", "list", "acme"))[0][3] == "disabled"
    desk.told("keys", "enable", "k")
    assert rows(desk.told("keys", "list"))[0][3] == "active"
    assert desk.told("keys", "list", "other", "--json") == "[]\n"


def test_a_rotated_key_goes_on_for_a_while_and_hands_on_what_it_may(desk: Desk) -> None:
    desk.acme()
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
    desk.acme()
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
    desk.acme()
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
    desk.acme()
    desk.told("keys", "create", "acme", "--id", "k")
    typed = words.split()
    told = desk.refused("keys", *typed, number)
    assert told == f"headrace: {typed[-1]} {float(number):g}: too far away\n"
    assert len(rows(desk.told("keys", "list"))) == 1


def test_a_use_without_calls_is_a_use(desk: Desk) -> None:
    desk.acme()
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
    desk.acme()
    desk.told("keys", "create", "acme", "--id", "k")
    assert "there is a key k" in desk.refused("keys", "create", "acme", "--id", "k")
    for word in ("show", "disable", "enable", "rotate"):
        assert "no key other" in desk.refused("keys", word, "other")
    for key_id in ("a_b", ""):
        assert "--id: 1 to 64" in desk.refused("keys", "create", "acme", "--id", key_id)

"""`headrace tenants`: what an operator does, and what is told when it can't be done."""

import json
from pathlib import Path

import pytest

from headrace.store.tenants import create_tenant
from tests.unit.cli.desk import NOW, Desk, rows

ACME = {"models": ["*"], "limits": {"calls_per_second": 10.0}, "quotas": {"calls_per_day": 30}}


def test_a_tenant_is_made_of_options_and_shown(desk: Desk) -> None:
    desk.acme()
    shown = json.loads(desk.told("tenants", "show", "acme", "--json"))
    assert (shown["name"], shown["disabled"], shown["keys"], shown["grants"]) == ("acme", False, [], ACME)
    assert ["the", "tenant", "calls_per_day", "30"] in rows(desk.told("tenants", "show", "acme"))
    assert ["the", "tenant", "warn_at", "0.8"] in rows(desk.told("tenants", "show", "acme"))
    assert ["priority", "normal"] in rows(desk.told("tenants", "show", "acme"))
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
    assert "tenant acme is disabled" in desk.refused("limits", "show", "acme")
    desk.told("tenants", "enable", "acme")
    assert rows(desk.told("tenants", "list"))[0][1] == "active"


@pytest.mark.parametrize(
    ("option", "value"), [("--calls-per-second", "1e-9"), ("--model-seconds-per-day", "1e12"), ("--models", "[x]")]
)
def test_a_mistake_is_told_by_the_option_that_has_it(desk: Desk, option: str, value: str) -> None:
    desk.acme()
    for word, name in (("create", "other"), ("change", "acme")):
        assert f"headrace: {option}: " in desk.refused("tenants", word, name, option, value)


@pytest.mark.parametrize("pattern", ["simple,text_*", "simple text_*", "simple, text_*"])
def test_several_patterns_in_one_are_told_apart(desk: Desk, pattern: str) -> None:
    told = desk.refused("tenants", "create", "acme", "--models", pattern)
    assert "one pattern each: --models simple --models 'text_*'" in told


def test_a_file_that_says_nothing_or_is_none_is_told(desk: Desk, tmp_path: Path) -> None:
    assert "-: line 1: the document: expected fields" in desk.refused("tenants", "create", "a", "--file", "-", stdin="")
    for file, why in ((tmp_path / "none", "No such file or directory"), (tmp_path, "Is a directory")):
        assert desk.refused("tenants", "create", "a", "--file", str(file)) == f"headrace: {file}: {why}\n"


def test_a_mistake_beside_a_file_is_told_as_a_policy_has_it(desk: Desk) -> None:
    told = desk.refused("tenants", "create", "acme", "--file", "-", "--burst", "2", stdin="models: []")
    assert "limits: burst needs calls_per_second" in told


def test_zero_takes_a_limit_or_quota_away(desk: Desk) -> None:
    desk.acme()
    desk.told("tenants", "change", "acme", "--calls-per-second", "0", "--concurrency", "3")
    assert desk.grants() == {"models": ["*"], "limits": {"concurrency": 3}, "quotas": {"calls_per_day": 30}}
    desk.told("tenants", "change", "acme", "--concurrency", "0", "--calls-per-day", "0")
    assert desk.grants() == {"models": ["*"]}
    desk.told("tenants", "change", "acme", "--calls-per-second", "2", "--burst", "5")
    desk.told("tenants", "change", "acme", "--calls-per-second", "0")  # and its burst with it
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

"""A policy is read as it was meant, or refused with the line of every mistake."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policy.document import PolicyError, load_policy, read_policy
from gateway.policy.model import ForModels, Limits, MethodClass, Priority, Tenant
from headrace.runtime.settings import SettingsError

WHOLE = """\
tenants:
  acme:
    models: [simple, "text_*"]
    allow: [infer]
    priority: high
    limits: {calls_per_second: 100, burst: 200, bytes_per_second: 1000000, concurrency: 32, request_bytes: 4096}
    each_key: {calls_per_second: 0.5}
    by_model:
      "text_*": {concurrency: 4}
  small:
    models: []
models:
  simple: {concurrency: 100}
gateway: {concurrency: 5000}
"""


def told(text: str) -> str | None:
    """The mistakes of a policy, None where it is read."""
    try:
        read_policy(text)
    except PolicyError as exc:
        return str(exc)
    return None


def test_a_policy_says_what_it_says() -> None:
    policy = read_policy(WHOLE)

    assert policy.tenants["acme"] == Tenant(
        name="acme",
        models=("simple", "text_*"),
        allow=frozenset({MethodClass.INFER}),
        priority=Priority.HIGH,
        limits=Limits(calls_per_second=100, burst=200, bytes_per_second=1_000_000, concurrency=32, request_bytes=4096),
        each_key=Limits(calls_per_second=0.5),
        by_model=(ForModels("text_*", Limits(concurrency=4)),),
    )
    assert policy.models == (ForModels("simple", Limits(concurrency=100)),)
    assert policy.gateway == Limits(concurrency=5000)


def test_what_is_left_out_is_what_a_user_has() -> None:
    small = read_policy(WHOLE).tenants["small"]

    assert small.allow == {MethodClass.INFER, MethodClass.METADATA}
    assert (small.priority, small.limits, small.each_key) == (Priority.NORMAL, Limits(), Limits())
    assert not small.sees("simple")


def test_a_tenant_that_is_not_listed_is_granted_nothing() -> None:
    assert read_policy(WHOLE).tenant("other") is None


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (("models: [simple", "modles: [simple"), ["line 3: tenants.acme.modles: no such field"]),
        (
            ("allow: [infer]", "allow: [infre]"),
            ["line 4: tenants.acme.allow.0: Input should be 'infer', 'meta"],
        ),
        (
            ("priority: high", "priority: urgent"),
            ["line 5: tenants.acme.priority: Input should be 'high', "],
        ),
        (("burst: 200", "burst: 0"), ["line 6: tenants.acme.limits.burst"]),
        (("calls_per_second: 100, ", ""), ["line 6: tenants.acme.limits: burst needs calls_per_second beside it"]),
        (("concurrency: 32", "concurrency: many"), ["line 6: tenants.acme.limits.concurrency"]),
        (("concurrency: 32", "concurrency: true"), ["line 6: tenants.acme.limits.concurrency"]),
        (("concurrency: 32", "concurrency: -1"), ["line 6: tenants.acme.limits.concurrency"]),
        (("calls_per_second: 100", "calls_per_second: .nan"), ["line 6: tenants.acme.limits.calls_per_second"]),
        (("calls_per_second: 100", "calls_per_second: .inf"), ["line 6: tenants.acme.limits.calls_per_second"]),
        (("  acme:", "  ac me:"), ["line 2: tenants.ac me: a tenant's name has 1 to 128"]),
        (("  small:", "  acme:"), ["line 10: acme stands here twice"]),
        (("  small:", "  5:"), ["line 10: a name must be text: put it in quotes"]),
        (("models: []", "models: &a []"), []),
        (("models: []", "models: *a"), ["line 11: aliases are not taken"]),
        (("models: []", "models: [''  ]"), ["line 11: tenants.small.models.0: a pattern"]),
        (("models: []", "models: !!python/name:os.system"), ["line 11: tag:yaml.org,2002:python/name:os.system"]),
        (("models: []", "models: [!!int '']"), ["line 11: this is no int"]),
        (("models: []", "models: [!!float '']"), ["line 11: this is no float"]),
        (("models: []", "models: [!!bool maybe]"), ["line 11: this is no bool"]),
        (("models: []", "models: [!!timestamp x]"), ["line 11: tag:yaml.org,2002:timestamp stands in no policy"]),
        (("models: []", "models: [2026-01-01]"), ["line 11: tag:yaml.org,2002:timestamp stands in no policy"]),
        (("models: []", 'models: ["gpt[1]"]'), ["line 11: tenants.small.models.0: a pattern"]),
        (("calls_per_second: 0.5", "calls_per_second: true"), ["line 7: tenants.acme.each_key.calls_per_second"]),
        (("calls_per_second: 0.5", "calls_per_second: '100'"), ["line 7: tenants.acme.each_key.calls_per_second"]),
        (("calls_per_second: 0.5", "calls_per_second: 5e-324"), ["line 7: tenants.acme.each_key.calls_per_second"]),
        (("request_bytes: 4096", "request_bytes: 99999999999999999"), ["line 6: tenants.acme.limits.request_bytes"]),
        (("models: []", "models: ["), ["no YAML"]),
        (("gateway: {concurrency: 5000}", "gateway: 5"), ["line 14: gateway"]),
        (("tenants:", "tenant:"), ["line 1: tenant: no such field", "tenants: Field required"]),
    ],
    ids=str,
)
def test_a_mistake_is_told_with_its_line(edit: tuple[str, str], wanted: list[str]) -> None:
    assert edit[0] in WHOLE
    text = WHOLE.replace(*edit)

    mistakes = told(text)

    assert (mistakes is None) is (not wanted)
    for line in wanted:
        assert line in str(mistakes)


def test_a_certificate_may_be_claimed_once_and_is_told_with_its_line() -> None:
    text = """\
tenants:
  acme:
    models: []
    certificates: ["spiffe://example.org/acme/*", Billing.acme.example]
  other:
    models: []
    certificates:
      - other.example
      - billing.acme.example
      - spiffe://example.org/acme/x
      - "*.example"
"""
    told_of = str(told(text)).splitlines()

    assert [line.partition(":")[0] for line in told_of] == ["line 11"], "what is wrong in itself comes first"
    assert str(told(text.replace('"*.example"', "fine.example"))).splitlines() == [
        "line 9: tenants.other.certificates.1: tenant acme claims this already",
        "line 10: tenants.other.certificates.2: tenant acme claims this already",
    ]
    read = read_policy(text.replace('"*.example"', "fine.example").replace("acme/x", "y").replace("- billing.", "- "))
    assert read.tenants["acme"].certificates == ("spiffe://example.org/acme/*", "billing.acme.example")


def test_all_mistakes_are_told_at_once() -> None:
    text = WHOLE.replace("allow: [infer]", "allow: [infre]").replace("concurrency: 32", "concurrency: -2")

    mistakes = told(text.replace("  small:", "  sm all:"))

    assert mistakes is not None
    assert [line.split(":")[0] for line in mistakes.splitlines()] == ["line 4", "line 6", "line 10"]


@pytest.mark.parametrize("text", ["", "[]", "5", "a", "a: b: c", "\x00", "- " * 5000, "{" * 3000])
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(PolicyError):
        read_policy(text)


PIECES = ["!!int", "!!bool", "!!float", "!!timestamp", "!!set", "? ", *" :-[]{}&*!'\"\n\tabc1#|>"]


@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(PIECES), max_size=80).map("".join)))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    assert told(text) != ""


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)), st.text(max_size=5))
def test_whatever_is_edited_is_read_or_refused(start: int, end: int, put: str) -> None:
    mistakes = told(WHOLE[:start] + put + WHOLE[end:])

    assert mistakes is None or all(line.startswith("line ") for line in mistakes.splitlines())


def test_a_file_that_can_not_be_read_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        load_policy(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"binary\.yaml: no text"):
        load_policy(tmp_path / "binary.yaml")

"""Who is calling."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.callers import Callers
from gateway.errors import KeyExpired, KeyInvalid, KeyMissing, RoleRequired
from gateway.identity import ADMIN, Caller, DevelopmentKey, KeyFile, Metadata, Verify, presented_key
from headrace.runtime.settings import SettingsError

SECRET = "s3cret_with-more_"  # noqa: S105
OTHER_SECRET = "other"  # noqa: S105


def entry(key_id: str, *, tenant: str = "billing", secret: str = SECRET, roles: str = "[]") -> str:
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return f'[keys.{key_id}]\ntenant = "{tenant}"\nroles = {roles}\nsecret_sha256 = "{digest}"\n'


Identify = Callable[[Metadata], Caller | None]


def identify_by(*verifiers: Verify) -> Identify:
    return Callers(verifiers).by_metadata


def key_id(caller: Caller | None) -> str:
    assert caller is not None
    return caller.key_id


def tenant(caller: Caller | None) -> str:
    assert caller is not None
    return caller.tenant


@pytest.fixture
def identify(tmp_path: Path) -> Identify:
    path = tmp_path / "keys.toml"
    path.write_text(entry("billing-1") + entry("ops", tenant="ops", secret=OTHER_SECRET, roles='["admin"]'))
    return identify_by(KeyFile(path))


def test_a_key_tells_its_caller(identify: Identify) -> None:
    assert identify([("x-api-key", f"hr_billing-1_{SECRET}")]) == Caller("billing", "billing-1", frozenset())
    assert identify([("authorization", "Bearer hr_ops_other")]) == Caller("ops", "ops", frozenset({ADMIN}))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_not_case_sensitive(identify: Identify, scheme: str) -> None:
    assert key_id(identify([("authorization", f"{scheme} hr_billing-1_{SECRET}")])) == "billing-1"


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("user-agent", "grpc-python")],
        [("authorization", "Bearer ")],
        [("authorization", "")],
        [("x-api-key", "")],
        [("authorization", "Basic aHI6eA==")],
    ],
)
def test_without_a_key_the_caller_learns_how_to_send_one(identify: Identify, metadata: Metadata) -> None:
    with pytest.raises(KeyMissing, match="authorization: Bearer KEY"):
        identify(metadata)


KEY = f"hr_billing-1_{SECRET}"


@pytest.mark.parametrize("metadata", [[("x-api-key", f" {KEY} ")], [("authorization", f" Bearer {KEY} ")]])
def test_blanks_around_a_value_are_not_part_of_it(identify: Identify, metadata: Metadata) -> None:
    """perf_analyzer sends what follows the colon of its -H, a blank included."""
    assert key_id(identify(metadata)) == "billing-1"


@pytest.mark.parametrize(
    "metadata",
    [
        [("x-api-key", "hr_billing-1_wrong")],
        [("x-api-key", "hr_nobody_" + SECRET)],
        [("x-api-key", "hr_ops_" + SECRET)],
        [("x-api-key", KEY + "x")],
        [("x-api-key", KEY[:-1])],
        [("x-api-key", "HR" + KEY[2:])],
        [("x-api-key", SECRET)],
        [("x-api-key", "hr_billing-1")],
        [("x-api-key", "h" * 1_000_000)],
        [("x-api-key", b"hr_billing-1_" + SECRET.encode())],
        [("authorization", b"Bearer " + KEY.encode())],
        [("x-api-key", KEY), ("x-api-key", KEY)],
        [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")],
        [("authorization", f"Bearer {KEY}"), ("x-api-key", "hr_ops_other")],
        [("x-api-key", "\udcff\ud800")],
        [("x-api-key", "")] * 2,
    ],
)
def test_a_doubtful_key_is_refused_without_a_hint(identify: Identify, metadata: Metadata) -> None:
    with pytest.raises(KeyInvalid) as caught:
        identify(metadata)

    assert caught.value.message == KeyInvalid().message
    assert caught.value.metadata == {}


@pytest.mark.parametrize("key", [KEY, f" {KEY} "])
def test_the_same_key_in_both_places_is_one_key(identify: Identify, key: str) -> None:
    assert tenant(identify([("authorization", f"Bearer {KEY}"), ("x-api-key", key)])) == "billing"


@pytest.mark.parametrize("authorization", ["Basic aHI6eA==", "Digest a=b", "", f"basic {KEY}"])
def test_what_authorizes_with_somebody_else_is_passed_over_beside_a_key(identify: Identify, authorization: str) -> None:
    """A proxy on the way may have credentials of its own."""
    assert tenant(identify([("authorization", authorization), ("x-api-key", KEY)])) == "billing"


@given(st.lists(st.tuples(st.sampled_from(["authorization", "x-api-key", "te"]), st.text() | st.binary())))
def test_no_metadata_brings_anything_but_a_key_or_a_refusal(metadata: list[tuple[str, str | bytes]]) -> None:
    with suppress(KeyMissing, KeyInvalid):
        key = presented_key(metadata)

        assert any(isinstance(value, str) and key in value for _, value in metadata)


@given(st.text())
def test_no_text_but_the_key_is_taken(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.write_text(entry("billing-1"))

    assert (KeyFile(path)(text) is not None) == (text == KEY)


def test_the_development_key_may_be_any_text(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("let me in!\n")
    identify = identify_by(DevelopmentKey(path))

    caller = identify([("authorization", "Bearer let me in!")])

    assert caller == Caller("development", "development", frozenset({ADMIN}))
    with pytest.raises(KeyInvalid):
        identify([("x-api-key", "let me in")])


@pytest.mark.parametrize("text", ["\n", "two\nlines", "schlüssel", "k" * 513])
def test_a_development_key_that_can_not_be_sent_is_refused_at_start(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SettingsError, match="key"):
        DevelopmentKey(path)


def test_both_sources_of_keys_serve_together(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(entry("billing-1"))
    (tmp_path / "key").write_text("dev")
    identify = identify_by(KeyFile(tmp_path / "keys.toml"), DevelopmentKey(tmp_path / "key"))

    assert tenant(identify([("x-api-key", KEY)])) == "billing"
    assert tenant(identify([("x-api-key", "dev")])) == "development"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no keys"),
        ("[keys]\n", "no keys"),
        ("not toml", "cannot be read as TOML"),
        (entry("a_b"), "keys.a_b: an id has 1 to 64"),
        (entry("a", tenant=""), "keys.a: tenant must be"),
        (entry("a", roles='["amdin"]'), "keys.a: roles must be a list of admin"),
        (entry("a", roles='"admin"'), "keys.a: roles must be a list of admin"),
        ('[keys.a]\ntenant = "t"\n', "keys.a: secret_sha256 must be 64"),
        ('[keys.a]\ntenant = "t"\nsecret_sha256 = "s3cret"\n', "keys.a: secret_sha256 must be 64"),
        (entry("a") + "tennant = 1\n", "keys.a: tennant: no such field"),
        (entry("a") + "[key.b]\n", "key: no such entry"),
        ("keys.a = 1", "keys.a: must be a table"),
    ],
)
def test_a_broken_key_file_names_the_mistake(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)

    with pytest.raises(SettingsError) as caught:
        KeyFile(path)

    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", tenant="", roles="[1]") + entry("b", tenant="&"))

    with pytest.raises(SettingsError) as caught:
        KeyFile(path)

    assert len(str(caught.value).splitlines()) == 3


def test_a_role_is_asked_for_by_name() -> None:
    Caller("t", "k", frozenset({ADMIN})).require(ADMIN, method="/s/M")

    with pytest.raises(RoleRequired, match=r"/s/M needs the role `admin`"):
        Caller("t", "k").require(ADMIN, method="/s/M")


def test_what_identifies_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("let-me-in")
    key = DevelopmentKey(path)

    assert "let-me-in" not in repr(key) + repr(vars(key)) + repr(identify_by(key)) + repr(key("let-me-in"))


# When a key is valid.


MOMENT = datetime(2026, 6, 1, tzinfo=UTC).timestamp()


def dated(path: Path, more: str) -> KeyFile:
    path.write_text(entry("billing-1") + more)
    return KeyFile(path, clock=lambda: MOMENT)


@pytest.mark.parametrize(
    ("more", "valid"),
    [
        ("", True),
        ("expires = 2026-06-01T00:00:01Z\n", True),
        ("expires = 2026-06-01T00:00:00Z\n", False),
        ("expires = 2026-06-01T02:00:00+02:00\n", False),
        ("not_before = 2026-06-01T00:00:00Z\n", True),
        ("not_before = 2026-06-01T00:00:01Z\n", False),
        ("not_before = 2026-01-01T00:00:00Z\nexpires = 2027-01-01T00:00:00Z\n", True),
        ("disabled = false\n", True),
    ],
)
def test_a_key_is_valid_between_its_dates(tmp_path: Path, more: str, valid: bool) -> None:
    keys = dated(tmp_path / "keys.toml", more)

    if valid:
        assert keys(KEY) is not None
    else:
        with pytest.raises(KeyExpired):
            keys(KEY)
        assert keys(KEY + "x") is None, "who has no secret learns nothing of dates"


def test_a_disabled_key_is_none(tmp_path: Path) -> None:
    assert dated(tmp_path / "keys.toml", "disabled = true\n")(KEY) is None


@pytest.mark.parametrize(
    "more", ["expires = 2026-06-01T00:00:00\n", "expires = 2026-06-01\n", 'expires = "soon"\n', "disabled = 1\n"]
)
def test_a_date_without_a_zone_and_what_is_none_are_mistakes(tmp_path: Path, more: str) -> None:
    with pytest.raises(SettingsError, match="must be"):
        dated(tmp_path / "keys.toml", more)


async def test_a_key_that_is_taken_out_or_disabled_is_none_from_the_next_look_on(tmp_path: Path) -> None:
    keys = dated(tmp_path / "keys.toml", "")
    assert keys(KEY) is not None

    (tmp_path / "keys.toml").write_text(entry("billing-1") + "disabled = true\n")
    await keys.look()
    assert keys(KEY) is None
    (tmp_path / "keys.toml").write_text(entry("billing-1") + entry("new", secret=OTHER_SECRET))
    await keys.look()
    assert keys(KEY) is not None
    assert keys(f"hr_new_{OTHER_SECRET}") is not None
    (tmp_path / "keys.toml").write_text("broken")
    await keys.look()
    assert keys(KEY) is not None, "a bad edit locks nobody out"

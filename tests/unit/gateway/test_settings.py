"""What the gateway's own settings refuse."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.settings import IdentitySettings, SharedLimitSettings, TokenIssuerSettings


@pytest.mark.parametrize(
    "url",
    ["redis://h:6379", "redis://h", "redis://user@h:6379/3", "rediss://h:1", "redis://[::1]:6379/0", "unix:///run/r"],
)
def test_a_redis_is_named_by_its_url(url: str) -> None:
    assert SharedLimitSettings(redis_url=url).redis_url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:6379",
        "http://h:6379",
        "redis://",
        "redis://h:abc",
        "redis://h:99999",
        "redis://h/x",
        "redis://h?socket_timeout=abc",
        "redis://h/0?foo=1",
        "redis://h#f",
        "unix://",
    ],
)
def test_what_is_no_redis_is_told_at_the_start(url: str) -> None:
    with pytest.raises(ValidationError):
        SharedLimitSettings(redis_url=url)


def test_a_password_has_no_place_in_a_url_and_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(ValidationError) as caught:
        SharedLimitSettings(redis_url="redis://:s3cret@h:1")
    assert "put it into password_file" in caught.value.errors()[0]["msg"]
    (tmp_path / "password").write_text("s3cret")
    with pytest.raises(ValidationError, match="password_file needs redis_url"):
        SharedLimitSettings(password_file=tmp_path / "password")


@pytest.mark.parametrize(
    "wrong",
    [
        {"jwks_url": "http://issuer/keys"},
        {"jwks_url": "https://user:pw@issuer/keys"},
        {},
        {"jwks_url": "https://issuer/keys", "algorithms": ("HS256",)},
        {"jwks_url": "https://issuer/keys", "algorithms": ("none",)},
        {"jwks_url": "https://issuer/keys", "leeway_seconds": 301},
        {"jwks_url": "https://issuer/keys", "min_refresh_seconds": 400},
    ],
    ids=str,
)
def test_an_issuer_that_proves_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TokenIssuerSettings.model_validate({"issuer": "https://issuer", "audience": "us"} | wrong)


def test_somebody_must_be_able_to_call() -> None:
    with pytest.raises(ValidationError, match="nobody can call"):
        IdentitySettings()

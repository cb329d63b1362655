"""What the gateway's own settings refuse."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import trustme
from pydantic import ValidationError

from gateway.settings import GatewaySettings, SharedLimitSettings, TokenIssuerSettings
from headrace.runtime.settings import SettingsError


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


# Who may call, from the environment.


Load = Callable[[Mapping[str, str]], GatewaySettings]
IDENTITY = "HEADRACE_GATEWAY__IDENTITY__"
CORP, LABS = f"{IDENTITY}TOKEN_ISSUERS__CORP__", f"{IDENTITY}TOKEN_ISSUERS__LABS__"
TWO_ISSUERS = {
    f"{CORP}ISSUER": "https://corp",
    f"{CORP}AUDIENCE": "us",
    f"{CORP}JWKS_URL": "https://corp/keys",
    f"{CORP}ALGORITHMS": '["ES256"]',
    f"{CORP}ROLE_MAP": '{"Head": "admin"}',
    f"{LABS}ISSUER": "https://labs",
    f"{LABS}AUDIENCE": "us",
    f"{LABS}JWKS_URL": "https://labs/keys",
}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Reads the settings of an environment with these variables and what every gateway has."""
    (tmp_path / "file").write_text("secret")
    monkeypatch.setenv("HEADRACE_REPLY_TRUST__SECRET_FILE", str(tmp_path / "file"))
    monkeypatch.setenv("HEADRACE_GATEWAY__REPLY__ADVERTISED_HOST", "gateway")

    def loaded(variables: Mapping[str, str]) -> GatewaySettings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("FILE", str(tmp_path / "file")))
        return GatewaySettings.load()

    return loaded


def test_several_issuers_have_names(load: Load) -> None:
    identity = load(TWO_ISSUERS).gateway.identity

    assert {name: each.issuer for name, each in identity.token_issuers.items()} == {
        "corp": "https://corp",
        "labs": "https://labs",
    }
    assert identity.token_issuers["corp"].algorithms == ("ES256",)
    assert identity.token_issuers["corp"].role_map == {"Head": "admin"}
    assert identity.order == ("key_file", "database", "development_key", "tokens", "certificate")


def test_somebody_must_be_able_to_call(load: Load) -> None:
    with pytest.raises(SettingsError, match=r"set HEADRACE_GATEWAY__IDENTITY__KEY_FILE .*nobody can call"):
        load({})


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({f"{IDENTITY}TOKEN_ISSUER__ISSUER": "https://corp"}, "TOKEN_ISSUER__… is TOKEN_ISSUERS__<NAME>__… now"),
        ({f"{CORP}ISUER": "x"}, f"{CORP}ISUER: no such setting"),
        ({f"{CORP}LEEWAY_SECONDS": "x"}, f"{CORP}LEEWAY_SECONDS: "),
        ({f"{LABS}ISSUER": "https://corp"}, "two of token_issuers have the same issuer"),
        ({f"{IDENTITY}ORDER": '["tokens", "tokens"]'}, "order names a provider twice"),
        ({f"{IDENTITY}ORDER": '["token"]'}, f"{IDENTITY}ORDER__0: Input should be 'key_file', 'database'"),
        ({f"{IDENTITY}ORDER": '["key_file"]'}, f"{IDENTITY}ORDER leaves out what is set: tokens"),
        (
            {f"{IDENTITY}ORDER": '["tokens"]', f"{IDENTITY}KEY_FILE": "FILE"},
            f"{IDENTITY}ORDER leaves out what is set: key_file",
        ),
        (
            {f"{IDENTITY}ORDER": '["tokens"]', f"{IDENTITY}DEVELOPMENT_KEY_FILE": "FILE"},
            f"{IDENTITY}ORDER leaves out what is set: development_key",
        ),
        (
            {f"{IDENTITY}ORDER": '["tokens"]', "HEADRACE_DATABASE__URL": "sqlite:////tmp/x"},
            f"{IDENTITY}ORDER leaves out what is set: database",
        ),
        ({"HEADRACE_GATEWAY__GRPC__TLS_CLIENT_CA_FILE": "FILE"}, "tls_client_ca_file needs tls_certificate_file"),
    ],
    ids=str,
)
def test_what_can_not_be_meant_is_told_by_its_name(load: Load, variables: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(TWO_ISSUERS | variables)

    assert told in str(caught.value)


def certified(folder: Path, *, authority: bytes | None = None) -> dict[str, str]:
    ours = trustme.CA()
    issued = ours.issue_cert("localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "certificate.pem")
    (folder / "authority.pem").write_bytes(ours.cert_pem.bytes() if authority is None else authority)
    return {
        "HEADRACE_GATEWAY__GRPC__TLS_KEY_FILE": str(folder / "key.pem"),
        "HEADRACE_GATEWAY__GRPC__TLS_CERTIFICATE_FILE": str(folder / "certificate.pem"),
        "HEADRACE_GATEWAY__GRPC__TLS_CLIENT_CA_FILE": str(folder / "authority.pem"),
    }


def test_certificates_alone_let_callers_in(load: Load, tmp_path: Path) -> None:
    settings = load(certified(tmp_path) | {"HEADRACE_GATEWAY__POLICY_FILE": "FILE"})

    assert settings.gateway.grpc.tls_client_ca_file == tmp_path / "authority.pem"


def test_certificates_that_no_policy_can_tell_the_tenant_of_let_nobody_in(load: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"set HEADRACE_GATEWAY__POLICY_FILE .*nobody can call"):
        load(certified(tmp_path))


def test_certificates_are_a_provider_that_the_order_has_to_name(load: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ORDER leaves out what is set: certificate"):
        load(certified(tmp_path) | {f"{IDENTITY}ORDER": "[]"})


def test_an_authority_is_looked_at_before_anybody_calls(load: Load, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="holds no PEM certificates"):
        load(certified(tmp_path, authority=b"nonsense"))

"""Who may come in, as the settings say it."""

import hashlib
import json
import time
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from gateway.access import Access
from gateway.errors import KeyInvalid
from gateway.identity import Caller
from gateway.settings import GatewaySection, IdentitySettings, Provider, ReplySettings, TokenIssuerSettings
from headrace.store.settings import DatabaseSettings

KEY = "hr_a_s3cret"


def access(identity: IdentitySettings) -> Access:
    section = GatewaySection(reply=ReplySettings(advertised_host="gateway"), identity=identity)
    return Access(section, DatabaseSettings(), pool="default", source="gateway/g/0", gateways=lambda: 1)


def caller(made: Access, key: str) -> Caller:
    found = made.callers.by_metadata([("x-api-key", key)])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("order", "tenant"),
    [(("key_file", "development_key"), "filed"), (("development_key", "certificate", "key_file"), "development")],
)
async def test_the_first_provider_that_knows_a_credential_counts(
    tmp_path: Path, order: tuple[Provider, ...], tenant: str
) -> None:
    digest = hashlib.sha256(b"s3cret").hexdigest()
    (tmp_path / "keys.toml").write_text(f'[keys.a]\ntenant = "filed"\nsecret_sha256 = "{digest}"\n')
    (tmp_path / "key").write_text(KEY)
    identity = IdentitySettings(key_file=tmp_path / "keys.toml", development_key_file=tmp_path / "key", order=order)

    assert caller(access(identity), KEY).tenant == tenant


async def test_each_issuer_speaks_for_its_own_tokens(tmp_path: Path) -> None:
    keys = {name: ECKey.generate_key("P-256", {"kid": "1"}) for name in ("corp", "labs")}
    issuers = {}
    for name, key in keys.items():
        (tmp_path / name).write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
        issuers[name] = TokenIssuerSettings(issuer=f"https://{name}", audience="us", jwks_file=tmp_path / name)
    made = access(IdentitySettings(token_issuers=issuers))

    def token(issuer: str, *, signer: str) -> str:
        claims = {"iss": f"https://{issuer}", "aud": "us", "tenant": issuer, "exp": int(time.time()) + 60}
        return jwt.encode({"alg": "ES256", "kid": "1"}, claims, keys[signer])

    for name in keys:
        assert caller(made, token(name, signer=name)).tenant == name
    for issuer, signer in (("corp", "labs"), ("labs", "corp"), ("other", "corp")):
        with pytest.raises(KeyInvalid):
            caller(made, token(issuer, signer=signer))

"""Who may come in, as the settings say it."""

import asyncio
import hashlib
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from gateway.access import Access
from gateway.errors import KeyInvalid
from gateway.identity import Caller
from gateway.policy.model import Policy
from gateway.settings import (
    GatewaySection,
    GrpcSettings,
    IdentitySettings,
    Provider,
    ReplySettings,
    TokenIssuerSettings,
)
from headrace.runtime.settings import SettingsError
from headrace.store.engine import Store
from headrace.store.settings import DatabaseSettings
from headrace.store.tenants import create_tenant

KEY = "hr_a_s3cret"
SECONDS = 20.0


def access(
    identity: IdentitySettings | None = None,
    *,
    policy: Path | None = None,
    database: str | None = None,
    certificates: bool = False,
) -> Access:
    section = GatewaySection(
        reply=ReplySettings(advertised_host="gateway"), identity=identity or IdentitySettings(), policy_file=policy
    )
    if certificates:
        grpc = GrpcSettings.model_construct(tls_client_ca_file=Path("ca.pem"))  # all that is asked is whether it is set
        section = section.model_copy(update={"grpc": grpc})
    return Access(section, DatabaseSettings(url=database), pool="default", source="gateway/g/0", gateways=lambda: 1)


async def policy_of(made: Access) -> Policy:
    """What is in force once the database was read."""
    known = asyncio.Event()
    made.subscribe(known.set)
    async with asyncio.timeout(SECONDS), made:
        while not made.ready:
            await known.wait()
        return made.admission.policy


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


@pytest.fixture
def database(tmp_path: Path) -> str:
    """A database with two tenants that see everything."""
    url = f"sqlite:///{tmp_path}/headrace.db"
    store = Store(url)
    store.upgrade()
    with store.transaction() as c:
        for name in ("both", "stored"):
            create_tenant(c, name, {"models": ["*"]}, now=datetime.now(UTC))
    store.close()
    return url


async def test_of_a_tenant_in_file_and_database_the_files_word_counts(tmp_path: Path, database: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("tenants: {both: {models: [simple]}, written: {models: [x]}}\ngateway: {concurrency: 9}\n")

    policy = await policy_of(access(policy=file, database=database))

    models = {name: tenant.models for name, tenant in policy.tenants.items()}
    assert models == {"both": ("simple",), "written": ("x",), "stored": ("*",)}
    assert policy.gateway.concurrency == 9


async def test_with_a_database_alone_who_is_not_in_it_is_granted_nothing(database: str) -> None:
    policy = await policy_of(access(database=database))

    assert policy.tenant("stored") is not None
    assert policy.tenant("other") is None


async def test_what_a_tenant_of_the_file_and_one_of_the_database_both_claim_is_told_once(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("tenants: {written: {models: [x], certificates: [shop.example]}}\n")
    store = Store(database)
    with store.transaction() as c:
        create_tenant(c, "claiming", {"models": ["x"], "certificates": ["shop.example"]}, now=datetime.now(UTC))
    store.close()
    made = access(policy=file, database=database, certificates=True)

    with caplog.at_level(logging.ERROR):
        policy = await policy_of(made)
        made.admission.change(policy)

    [told] = caplog.records
    named = {field: vars(told)[field] for field in ("event", "tenant", "other", "claim")}
    assert named == {
        "event": "certificate_claimed_twice",
        "tenant": "written",
        "other": "claiming",
        "claim": "shop.example",
    }


async def test_quotas_without_a_database_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("tenants: {acme: {models: [simple], quotas: {calls_per_day: 1}}}\n")

    with pytest.raises(SettingsError, match=r"tenants\.acme\.quotas: quotas need HEADRACE_DATABASE__URL"):
        access(policy=file)

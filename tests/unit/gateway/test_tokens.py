"""Who is calling, by a token of an identity provider."""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from pydantic import ValidationError

from gateway.callers import Callers
from gateway.errors import KeyInvalid
from gateway.identity import Caller, KeyFile
from gateway.settings import TokenIssuerSettings
from gateway.tokens import Tokens
from headrace.runtime.settings import SettingsError

ISSUER = "https://id.example/realm"
AUDIENCE = "headrace"
NOW = 1_800_000_000.0
LEEWAY = 30.0
MISSING = object()
SECRET = b"a symmetric key that must not be in a set"
ALL = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
Key = RSAKey | ECKey | OKPKey


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: object) -> dict[str, object]:
    usual = {"iss": ISSUER, "aud": AUDIENCE, "exp": NOW + 300, "iat": NOW, "sub": "svc|7", "tenant": "billing"}
    return {name: value for name, value in {**usual, **changes}.items() if value is not MISSING}


def mac(secret: bytes, digest: str = "sha256") -> Callable[[bytes], bytes]:
    return lambda text: hmac.new(secret, text, digest).digest()


class Issuer:
    """An identity provider that signs whatever it is told to."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {
            "rsa": RSAKey.generate_key(2048),
            "ec": ECKey.generate_key("P-256"),
            "ec-384": ECKey.generate_key("P-384"),
            "ed": OKPKey.generate_key("Ed25519"),
        }
        self.stranger = RSAKey.generate_key(2048)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is weak is the point
            self.weak = RSAKey.generate_key(1024)

    def token(
        self,
        payload: object = None,
        *,
        alg: str = "RS256",
        kid: object = "rsa",
        key: Key | None = None,
        sign: Callable[[bytes], bytes] | None = None,
        header: object = None,
        **more: object,
    ) -> str:
        """A signed token; `header` replaces the usual one, and `more` are fields beside the usual ones."""
        usual = {"alg": alg, "typ": "JWT", "kid": kid, **more}
        usual = {name: value for name, value in usual.items() if value is not MISSING}
        text = f"{encoded(usual if header is None else header)}.{encoded(claims() if payload is None else payload)}"
        if sign is None:
            algorithm, signer = JWSRegistry.algorithms[alg], key or self.keys[str(kid)]
            return f"{text}.{encoded(algorithm.sign(text.encode(), signer))}"
        return f"{text}.{encoded(sign(text.encode()))}"

    def cut_short(self, text: bytes) -> bytes:
        """A signature without its last byte."""
        return JWSRegistry.algorithms["RS256"].sign(text, self.keys["rsa"])[:-1]

    def set_of(self, *kids: str) -> bytes:
        return json.dumps({"keys": [public(self.keys[kid], kid) for kid in kids]}).encode()

    def whole_set(self) -> bytes:
        """What may prove a token, and much that must not."""
        rsa = self.keys["rsa"]
        private = {name: value for name, value in rsa.as_dict(private=True).items() if name != "kid"}
        listed: list[object] = [
            *(public(key, kid) for kid, key in self.keys.items()),
            public(self.weak, "weak"),
            public(rsa, "enc", use="enc"),
            public(rsa, "sign-only", key_ops=["sign"]),
            public(rsa, "ps-only", alg="PS256"),
            public(rsa, "encrypts", alg="RSA-OAEP"),
            {**private, "kid": "private"},
            {"kty": "oct", "k": encoded(SECRET), "kid": "oct"},
            public(OKPKey.generate_key("X25519"), "x25519"),
            {"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA", "kid": "off-curve"},
            {"kty": "RSA", "n": "", "e": "AQAB", "kid": "empty"},
            {"kty": "RSA", "n": 5, "e": "AQAB", "kid": "number"},
            {"kty": ["RSA"], "kid": "list"},
            {"kid": "nothing"},
            "a text",
        ]
        return json.dumps({"keys": listed}).encode()


def public(key: Key, kid: str, **more: object) -> dict[str, object]:
    return {**key.as_dict(private=False), "kid": kid, **more}


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def whole_file(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_bytes(issuer.whole_set())
    return path


def settings(path: Path, **more: Any) -> TokenIssuerSettings:
    return TokenIssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_file=path, **more)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(whole_file: Path, clock: Clock) -> Tokens:
    return Tokens("corp", settings(whole_file), clock=clock, monotonic=clock)


@pytest.mark.parametrize(("kid", "alg"), [("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")])
def test_a_token_tells_its_caller(issuer: Issuer, tokens: Tokens, kid: str, alg: str) -> None:
    assert tokens(issuer.token(kid=kid, alg=alg)) == Caller("billing", "token:corp:svc_7~9e53db981e41", frozenset())


@pytest.mark.parametrize(
    ("kid", "alg"),
    [*(("rsa", name) for name in ALL[:6]), ("ec", "ES256"), ("ec-384", "ES384"), ("ed", "EdDSA"), ("ps-only", "PS256")],
)
def test_each_algorithm_that_is_allowed_is_understood(issuer: Issuer, whole_file: Path, kid: str, alg: str) -> None:
    tokens = Tokens("corp", settings(whole_file, algorithms=ALL), clock=Clock())

    assert tokens(issuer.token(kid=kid, alg=alg, key=issuer.keys.get(kid, issuer.keys["rsa"]))) is not None


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"aud": ["other", AUDIENCE]}, {}),
        ({"exp": NOW - LEEWAY + 1}, {}),
        ({"nbf": NOW + LEEWAY, "iat": NOW + LEEWAY}, {}),
        ({"iat": MISSING}, {}),
        ({}, {"typ": MISSING}),
        ({}, {"typ": "at+jwt"}),
        ({}, {"typ": "jwt"}),
        ({}, {"x5t": "a thumbprint", "jku": "https://id.example/keys"}),
    ],
)
def test_what_the_standards_leave_open_is_taken(
    issuer: Issuer, tokens: Tokens, changes: dict[str, object], more: dict[str, object]
) -> None:
    assert tokens(issuer.token(claims(**changes), **more)) is not None  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("changes", "key_id"),
    [
        ({"sub": "a b/ü\n\x00"}, "token:corp:a_b____~9199d8d66a26"),
        ({"sub": "x" * 1000}, "token:corp:" + "x" * 64 + "~44f8354494a5"),
        ({"sub": MISSING, "azp": "shop"}, "token:corp:shop"),
        ({"sub": "", "client_id": "till"}, "token:corp:till"),
        ({"sub": 7}, "token:corp:billing"),
    ],
)
def test_the_key_id_names_the_subject_in_harmless_letters(
    issuer: Issuer, tokens: Tokens, changes: dict[str, object], key_id: str
) -> None:
    caller = tokens(issuer.token(claims(**changes)))

    assert caller is not None
    assert caller.key_id == key_id


@pytest.mark.parametrize(("one", "other"), [("bob@x", "bob_x"), ("é", "ü"), ("s" * 64 + "1", "s" * 64 + "2")])
def test_no_two_subjects_have_one_key_id(issuer: Issuer, tokens: Tokens, one: str, other: str) -> None:
    told = [tokens(issuer.token(claims(sub=subject))) for subject in (one, other)]

    assert len({caller.key_id for caller in told if caller is not None}) == 2


def test_one_subject_of_two_issuers_is_two_callers(issuer: Issuer, whole_file: Path) -> None:
    told = [Tokens(name, settings(whole_file), clock=Clock())(issuer.token(claims(sub="bob"))) for name in ("a", "b")]

    assert [caller.key_id for caller in told if caller is not None] == ["token:a:bob", "token:b:bob"]


@pytest.mark.parametrize(
    ("tenants", "taken"), [(None, True), ("billing", True), ("shop billing", True), ("shop bill", False)]
)
def test_an_issuer_speaks_for_the_tenants_that_it_is_listed_with(
    issuer: Issuer, whole_file: Path, caplog: pytest.LogCaptureFixture, tenants: str | None, taken: bool
) -> None:
    caplog.set_level(logging.DEBUG, "gateway.tokens")
    tokens = Tokens("corp", settings(whole_file, tenants=tenants), clock=Clock())

    assert (tokens(issuer.token()) is not None) == taken
    assert ("the tenant is not for this issuer to name" in caplog.text) != taken


@pytest.mark.parametrize(
    ("claimed", "role_map", "roles"),
    [
        (["admin", "observer", "root", 7, ["admin"], None], {}, {"admin", "observer"}),
        ("read admin", {}, {"admin"}),
        (["ops"], {"ops": "admin", "dev": "observer"}, {"admin"}),
        (["admin"], {"ops": "admin"}, set()),
        ({"admin": True}, {}, set()),
        (None, {}, set()),
    ],
)
def test_only_known_roles_count(
    issuer: Issuer, whole_file: Path, claimed: object, role_map: dict[str, str], roles: set[str]
) -> None:
    """A map replaces our own names: a provider that uses them for something else grants nothing."""
    tokens = Tokens("corp", settings(whole_file, role_map=role_map), clock=Clock())

    caller = tokens(issuer.token(claims(roles=claimed)))

    assert caller is not None
    assert caller.roles == roles


def test_any_claim_may_name_the_tenant_and_the_roles(issuer: Issuer, whole_file: Path) -> None:
    tokens = Tokens("corp", settings(whole_file, tenant_claim="sub", roles_claim="scope"), clock=Clock())

    caller = tokens(issuer.token(claims(sub="shop", scope="openid observer")))

    assert caller == Caller("shop", "token:corp:shop", frozenset({"observer"}))


def test_tokens_serve_beside_keys(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.a]\ntenant = "ops"\nsecret_sha256 = "{hashlib.sha256(b"s").hexdigest()}"\n')
    short = OKPKey.generate_key("Ed25519")
    jwks = tmp_path / "jwks.json"
    jwks.write_text(json.dumps({"keys": [public(short, "e")]}))
    identify = Callers([KeyFile(path), Tokens("corp", settings(jwks), clock=Clock())]).by_metadata

    by_key = identify([("x-api-key", "hr_a_s")])
    by_token = identify([("authorization", f"Bearer {issuer.token(alg='EdDSA', kid='e', key=short)}")])
    assert by_key is not None
    assert by_token is not None
    assert (by_key.tenant, by_token.tenant) == ("ops", "billing")
    with pytest.raises(KeyInvalid):
        identify([("x-api-key", "hr_a_t")])


# What an attacker sends. Each is refused for the reason beside it, and not by chance for another; None: it is no token.


def edited(token: str, at: int, part: object) -> str:
    parts = token.split(".")
    parts[at] = encoded(part)
    return ".".join(parts)


def embedded(issuer: Issuer, **header: object) -> str:
    return issuer.token(key=issuer.stranger, **header)  # type: ignore[arg-type]  # fields by name


def with_alg(alg: object, issuer: Issuer) -> str:
    return issuer.token(header={"alg": alg, "kid": "rsa"}, sign=mac(b""))


def with_twice(issuer: Issuer) -> str:
    return issuer.token(b'{"tenant": "ops", ' + json.dumps(claims()).encode()[1:])


ALG, SIGNATURE, UNKNOWN, FIT = "alg is not allowed", "signature is wrong", "key is unknown", "alg does not fit"
FORM, TENANT, MOMENT, FUTURE = "malformed", "tenant claim", "is no moment", "is in the future"
ATTACKS: Mapping[str, tuple[str | None, Callable[[Issuer], str]]] = {
    **{
        f"alg {alg!r}": (ALG, partial(with_alg, alg))
        for alg in ("none", "None", "NONE", "nOnE", "", None, ["RS256"], {"RS256": 1}, 256, "rs256", "RS256 ", "ES256K")
    },
    "alg missing": (ALG, lambda issuer: issuer.token(alg="HS256", header={"kid": "rsa"}, sign=mac(b""))),
    "alg none, unsigned": (None, lambda issuer: issuer.token(alg="none", sign=lambda _: b"")),
    "HS256 with the PEM of the public key": (
        ALG,
        lambda issuer: issuer.token(alg="HS256", sign=mac(issuer.keys["rsa"].as_pem(private=False))),
    ),
    "HS256 with the DER of the public key": (
        ALG,
        lambda issuer: issuer.token(alg="HS256", sign=mac(issuer.keys["rsa"].as_der(private=False))),
    ),
    "HS256 with the modulus": (
        ALG,
        lambda issuer: issuer.token(
            alg="HS256", sign=mac(str(issuer.keys["rsa"].as_dict(private=False)["n"]).encode())
        ),
    ),
    "HS256 with nothing": (ALG, lambda issuer: issuer.token(alg="HS256", sign=mac(b""))),
    "HS256 with a symmetric key of the set": (
        ALG,
        lambda issuer: issuer.token(alg="HS256", kid="oct", sign=mac(SECRET)),
    ),
    "RS256 with a symmetric key of the set": (UNKNOWN, lambda issuer: issuer.token(kid="oct", sign=mac(SECRET))),
    "HMAC under the name of RS256": (
        SIGNATURE,
        lambda issuer: issuer.token(sign=mac(issuer.keys["rsa"].as_pem(private=False))),
    ),
    "ES256 with an RSA key": (FIT, lambda issuer: issuer.token(alg="ES256", key=issuer.keys["ec"])),
    "RS256 with an EC key": (FIT, lambda issuer: issuer.token(kid="ec", key=issuer.keys["rsa"])),
    "EdDSA with an EC key": (FIT, lambda issuer: issuer.token(alg="EdDSA", kid="ec", key=issuer.keys["ed"])),
    "ES256 with another curve": (
        UNKNOWN,
        lambda issuer: issuer.token(alg="ES256", kid="ec-384", key=issuer.keys["ec"]),
    ),
    "an algorithm that is not ours": (ALG, lambda issuer: issuer.token(alg="PS256")),
    "an algorithm that is not the key's": (UNKNOWN, lambda issuer: issuer.token(kid="ps-only", key=issuer.keys["rsa"])),
    "a weak key": (UNKNOWN, lambda issuer: issuer.token(kid="weak", key=issuer.weak)),
    "a key for encryption": (UNKNOWN, lambda issuer: issuer.token(kid="enc", key=issuer.keys["rsa"])),
    "a key of an encryption algorithm": (UNKNOWN, lambda issuer: issuer.token(kid="encrypts", key=issuer.keys["rsa"])),
    "a key that only signs": (UNKNOWN, lambda issuer: issuer.token(kid="sign-only", key=issuer.keys["rsa"])),
    "a key whose secret is out": (UNKNOWN, lambda issuer: issuer.token(kid="private", key=issuer.keys["rsa"])),
    "a key for agreement": (UNKNOWN, lambda issuer: issuer.token(alg="EdDSA", kid="x25519", key=issuer.keys["ed"])),
    "another key under the same kid": (SIGNATURE, lambda issuer: issuer.token(key=issuer.stranger)),
    "an embedded key": (
        SIGNATURE,
        lambda issuer: embedded(issuer, jwk=issuer.stranger.as_dict(private=False)),
    ),
    "an embedded key without kid": (
        "kid is missing",
        lambda issuer: embedded(issuer, kid=MISSING, jwk=issuer.stranger.as_dict(private=False)),
    ),
    "a URL of keys": (SIGNATURE, lambda issuer: embedded(issuer, jku="https://evil.example/jwks.json")),
    "a URL of certificates": (SIGNATURE, lambda issuer: embedded(issuer, x5u="https://evil.example/x.pem")),
    "an embedded certificate": (SIGNATURE, lambda issuer: embedded(issuer, x5c=["MIIB"])),
    "crit": ("crit", lambda issuer: issuer.token(crit=["exp"])),
    "crit, empty": ("crit", lambda issuer: issuer.token(crit=[])),
    "an unencoded payload": ("crit", lambda issuer: issuer.token(crit=["b64"], b64=False)),
    "kid missing, several keys": ("kid is missing", lambda issuer: issuer.token(kid=MISSING, key=issuer.keys["rsa"])),
    "kid null": ("kid is no text", lambda issuer: issuer.token(kid=None, key=issuer.keys["rsa"])),
    "kid a number": ("kid is no text", lambda issuer: issuer.token(kid=0, key=issuer.keys["rsa"])),
    "kid empty": (UNKNOWN, lambda issuer: issuer.token(kid="", key=issuer.keys["rsa"])),
    "kid unknown": (UNKNOWN, lambda issuer: issuer.token(kid="nobody", key=issuer.stranger)),
    "kid a path": (UNKNOWN, lambda issuer: issuer.token(kid="../../../dev/null", alg="RS256", sign=mac(b""))),
    "kid a statement": (UNKNOWN, lambda issuer: issuer.token(kid="' OR 1=1 --", key=issuer.stranger)),
    "kid no Unicode": (UNKNOWN, lambda issuer: issuer.token(kid="\ud800", key=issuer.stranger)),
    "iss another": ("iss", lambda issuer: issuer.token(claims(iss="https://evil.example"))),
    "iss with a slash more": ("iss", lambda issuer: issuer.token(claims(iss=ISSUER + "/"))),
    "iss in a list": ("iss", lambda issuer: issuer.token(claims(iss=[ISSUER]))),
    "iss missing": ("iss", lambda issuer: issuer.token(claims(iss=MISSING))),
    "aud another": ("aud", lambda issuer: issuer.token(claims(aud="other"))),
    "aud a list without us": ("aud", lambda issuer: issuer.token(claims(aud=["other", "headrace2", None, {}]))),
    "aud contains us as text": ("aud", lambda issuer: issuer.token(claims(aud="headrace other"))),
    "aud an object": ("aud", lambda issuer: issuer.token(claims(aud={AUDIENCE: 1}))),
    "aud missing": ("aud", lambda issuer: issuer.token(claims(aud=MISSING))),
    "exp missing": ("exp is missing", lambda issuer: issuer.token(claims(exp=MISSING))),
    "exp passed": ("expired", lambda issuer: issuer.token(claims(exp=NOW - LEEWAY))),
    "exp a text": (MOMENT, lambda issuer: issuer.token(claims(exp=str(NOW + 60)))),
    "exp true": (MOMENT, lambda issuer: issuer.token(claims(exp=True))),
    "exp null": (MOMENT, lambda issuer: issuer.token(claims(exp=None))),
    "exp too large": (MOMENT, lambda issuer: issuer.token(claims(exp=10**400))),
    "exp negative": (MOMENT, lambda issuer: issuer.token(claims(exp=-1))),
    "exp infinite by overflow": (
        MOMENT,
        lambda issuer: issuer.token(json.dumps(claims(exp="E")).replace('"E"', "1e999").encode()),
    ),
    "exp infinite": (FORM, lambda issuer: issuer.token(claims(exp=float("inf")))),
    "exp not a number": (FORM, lambda issuer: issuer.token(claims(exp=float("nan")))),
    "nbf in the future": (FUTURE, lambda issuer: issuer.token(claims(nbf=NOW + LEEWAY + 1))),
    "nbf a text": (MOMENT, lambda issuer: issuer.token(claims(nbf="0"))),
    "iat in the future": (FUTURE, lambda issuer: issuer.token(claims(iat=NOW + LEEWAY + 1))),
    "tenant missing": (TENANT, lambda issuer: issuer.token(claims(tenant=MISSING))),
    "tenant a number": (TENANT, lambda issuer: issuer.token(claims(tenant=7))),
    "tenant a list": (TENANT, lambda issuer: issuer.token(claims(tenant=["billing"]))),
    "tenant empty": (TENANT, lambda issuer: issuer.token(claims(tenant=""))),
    "tenant with a line end": (TENANT, lambda issuer: issuer.token(claims(tenant="billing\n"))),
    "tenant a path": (TENANT, lambda issuer: issuer.token(claims(tenant="../billing"))),
    "tenant too long": (TENANT, lambda issuer: issuer.token(claims(tenant="t" * 129))),
    "typ another": ("typ", lambda issuer: issuer.token(typ="dpop+jwt")),
    "typ null": ("typ", lambda issuer: issuer.token(typ=None)),
    "typ a list": ("typ", lambda issuer: issuer.token(typ=["JWT"])),
    "payload changed": (SIGNATURE, lambda issuer: edited(issuer.token(), 1, claims(tenant="ops"))),
    "header changed": (SIGNATURE, lambda issuer: edited(issuer.token(), 0, {"alg": "RS256", "kid": "rsa"})),
    "signature cut off": (None, lambda issuer: issuer.token().rpartition(".")[0]),
    "signature empty": (None, lambda issuer: issuer.token().rpartition(".")[0] + "."),
    "signature shortened": (SIGNATURE, lambda issuer: issuer.token(sign=issuer.cut_short)),
    "signature lengthened": (SIGNATURE, lambda issuer: issuer.token(sign=lambda _: bytes(4096))),
    "signature of zeros": (SIGNATURE, lambda issuer: issuer.token(sign=lambda _: bytes(256))),
    "signature of another token": (
        SIGNATURE,
        lambda issuer: issuer.token().rpartition(".")[0] + "." + issuer.token(claims(sub="a")).rpartition(".")[2],
    ),
    "ES256, r = s = 0": (SIGNATURE, lambda issuer: issuer.token(alg="ES256", kid="ec", sign=lambda _: bytes(64))),
    "ES256, r = s = 1": (
        SIGNATURE,
        lambda issuer: issuer.token(alg="ES256", kid="ec", sign=lambda _: (bytes(31) + b"\1") * 2),
    ),
    "ES256, r and s too large": (
        SIGNATURE,
        lambda issuer: issuer.token(alg="ES256", kid="ec", sign=lambda _: b"\xff" * 64),
    ),
    "ES256, short": (SIGNATURE, lambda issuer: issuer.token(alg="ES256", kid="ec", sign=lambda _: b"\0")),
    "EdDSA of zeros": (SIGNATURE, lambda issuer: issuer.token(alg="EdDSA", kid="ed", sign=lambda _: bytes(64))),
    "segments doubled": (None, lambda issuer: issuer.token() + "." + issuer.token()),
    "a segment more": (None, lambda issuer: issuer.token() + ".e30"),
    "JWE": (
        None,
        lambda issuer: ".".join([encoded({"alg": "RSA-OAEP", "enc": "A256GCM"}), *issuer.token().split("."), "e30"]),
    ),
    "a blank before": (None, lambda issuer: " " + issuer.token()),
    "a line end after": (None, lambda issuer: issuer.token() + "\n"),
    "a blank inside": (None, lambda issuer: issuer.token().replace(".", ". ")),
    "padding": (None, lambda issuer: issuer.token() + "=="),
    "the other base64": (None, lambda issuer: issuer.token().replace(".", "+.", 1)),
    "letters outside of ASCII": (None, lambda issuer: issuer.token().replace("e", "\u0435")),
    "half a character": (None, lambda issuer: issuer.token() + "\ud800"),
    "too long": (None, lambda issuer: issuer.token(claims(more="x" * 8192))),
    "a length that no base64 has": (FORM, lambda issuer: "A." + issuer.token().partition(".")[2]),
    "header no JSON": (FORM, lambda issuer: issuer.token(header=b"alg=RS256", alg="RS256")),
    "header no object": (FORM, lambda issuer: issuer.token(header=["RS256"])),
    "header with a name twice": (
        FORM,
        lambda issuer: issuer.token(header=b'{"alg": "none", "alg": "RS256", "kid": "rsa"}'),
    ),
    "payload no JSON": (FORM, lambda issuer: issuer.token(b"\xff\xfe")),
    "payload no object": (FORM, lambda issuer: issuer.token(b'"text"')),
    "payload with a name twice": (FORM, with_twice),
    "payload with a name twice, below": (
        FORM,
        lambda issuer: issuer.token(json.dumps(claims(more="M")).replace('"M"', '{"a": 1, "a": 2}').encode()),
    ),
    "payload in UTF-16": (FORM, lambda issuer: issuer.token(json.dumps(claims()).encode("utf-16"))),
    "payload with a mark before": (FORM, lambda issuer: issuer.token(b"\xef\xbb\xbf" + json.dumps(claims()).encode())),
    "payload nested deep": (FORM, lambda issuer: issuer.token(b"[" * 5000)),
    "payload with an endless number": (FORM, lambda issuer: issuer.token(b'{"exp": ' + b"9" * 5000 + b"}")),
    "a token in a token": (FORM, lambda issuer: issuer.token(issuer.token().encode(), cty="JWT")),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_for_its_reason(
    issuer: Issuer, tokens: Tokens, caplog: pytest.LogCaptureFixture, attack: str
) -> None:
    """Nothing of the token is told, and the same attack again is refused as well."""
    why, forge = ATTACKS[attack]
    token = forge(issuer)
    caplog.set_level(logging.DEBUG, "gateway.tokens")

    verdicts = [tokens(token), tokens(token)]

    assert verdicts == [None, None]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == (0 if why is None else 1)
    assert all(why is not None and why in line for line in lines)
    assert not any(part in caplog.text for part in token.split(".") if len(part) > 8)


@pytest.mark.parametrize(
    "attack",
    [
        "ES256 with another curve",
        "HMAC under the name of RS256",
        "HS256 with a symmetric key of the set",
        "HS256 with the PEM of the public key",
        "a key for agreement",
        "a weak key",
        "an algorithm that is not the key's",
        "an embedded key",
        "kid missing, several keys",
    ],
)
def test_allowing_all_algorithms_opens_no_door(issuer: Issuer, whole_file: Path, attack: str) -> None:
    tokens = Tokens("corp", settings(whole_file, algorithms=ALL), clock=Clock())

    assert tokens(ATTACKS[attack][1](issuer)) is None


def test_a_key_that_names_its_algorithm_serves_no_other(issuer: Issuer, whole_file: Path) -> None:
    tokens = Tokens("corp", settings(whole_file, algorithms=ALL), clock=Clock())

    assert tokens(issuer.token(alg="PS256", kid="ps-only", key=issuer.keys["rsa"])) is not None
    assert tokens(issuer.token(alg="RS256", kid="ps-only", key=issuer.keys["rsa"])) is None


def test_kid_may_be_missing_where_there_is_one_usable_key(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    listed = [public(issuer.keys["rsa"], "rsa"), public(issuer.weak, "weak"), {"kty": "oct", "k": encoded(SECRET)}]
    path.write_text(json.dumps({"keys": listed}))
    tokens = Tokens("corp", settings(path), clock=Clock())

    assert tokens(issuer.token(kid=MISSING, key=issuer.keys["rsa"])) is not None
    assert tokens(issuer.token(kid=MISSING, key=issuer.stranger)) is None
    assert tokens(issuer.token(kid="other", key=issuer.keys["rsa"])) is None


def test_a_token_may_be_too_old_before_it_expires(issuer: Issuer, whole_file: Path, clock: Clock) -> None:
    tokens = Tokens("corp", settings(whole_file, max_age_seconds=60), clock=clock, monotonic=clock)
    token = issuer.token(claims(exp=NOW + 10_000))

    assert tokens(token) is not None
    clock.now = NOW + 60 + LEEWAY
    assert tokens(token) is None
    assert tokens(issuer.token(claims(iat=MISSING))) is None


@pytest.fixture(scope="module")
def held_tokens(whole_file: Path) -> Tokens:
    return Tokens("corp", settings(whole_file), clock=Clock())


@given(st.text() | st.lists(st.text(alphabet="eyJhbGciOi0_-"), min_size=3, max_size=3).map(".".join))
def test_no_text_is_taken_or_raises(held_tokens: Tokens, text: str) -> None:
    assert held_tokens(text) is None


@given(st.data(), st.sampled_from([("rsa", "RS256"), ("ec", "ES256"), ("ed", "EdDSA")]))
def test_no_token_with_a_letter_changed_is_taken_or_raises(
    issuer: Issuer, held_tokens: Tokens, data: st.DataObject, signed_by: tuple[str, str]
) -> None:
    """Not even where the changed letter stands for the same bytes."""
    token = issuer.token(kid=signed_by[0], alg=signed_by[1])
    at = data.draw(st.integers(0, len(token) - 1) | st.just(len(token) - 1))
    letters = data.draw(st.sampled_from([*"AQgw.-_=\n ", ""]) | st.text(max_size=3))
    changed = token[:at] + letters + token[at + 1 :]

    assert (held_tokens(changed) is not None) == (changed == token)


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=3),
    st.sampled_from(["iss", "aud", "exp", "iat", "nbf", "sub", "tenant", "roles", "azp"]),
    st.sampled_from(["alg", "kid", "typ", "crit", "jwk", "x5c", "cty"]),
)
def test_no_claim_and_no_header_raises(
    issuer: Issuer, held_tokens: Tokens, value: object, claim: str, field: str
) -> None:
    """Even where the issuer signs it."""
    ed = issuer.keys["ed"]
    header = {"alg": "EdDSA", "kid": "ed"}

    held_tokens(issuer.token(claims(**{claim: value}), alg="EdDSA", key=ed, header=header))
    held_tokens(issuer.token(alg="EdDSA", key=ed, header={**header, field: value}))


# How long a verdict holds.


class Counting(type(JWSRegistry.algorithms["RS256"])):  # type: ignore[misc]  # joserfc exports no name of it
    """RS256 that counts how often it checks."""

    def __init__(self) -> None:
        super().__init__(256)
        self.checks = 0

    def verify(self, msg: bytes, sig: bytes, key: Any) -> bool:
        self.checks += 1
        return bool(super().verify(msg, sig, key))


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    algorithm = Counting()
    monkeypatch.setitem(JWSRegistry.algorithms, "RS256", algorithm)
    return algorithm


@pytest.mark.parametrize("good", [True, False])
def test_a_verdict_is_held_for_its_time_and_no_longer(
    issuer: Issuer, whole_file: Path, clock: Clock, counting: Counting, *, good: bool
) -> None:
    """A flood of one token, good or bad, costs one signature check a second."""
    tokens = Tokens("corp", settings(whole_file), cache_seconds=1.0, clock=clock, monotonic=clock)
    token = issuer.token(key=None if good else issuer.stranger)

    verdicts = {tokens(token) is not None for _ in range(100)}
    first = counting.checks
    clock.now += 1.0
    verdicts.add(tokens(token) is not None)

    assert verdicts == {good}
    assert (first, counting.checks) == (1, 2)


def test_a_verdict_does_not_outlive_its_token(issuer: Issuer, whole_file: Path, clock: Clock) -> None:
    tokens = Tokens("corp", settings(whole_file), cache_seconds=1000.0, clock=clock, monotonic=clock)
    token = issuer.token(claims(exp=NOW + 10))

    assert tokens(token) is not None
    clock.now = NOW + 10 + LEEWAY - 0.5
    assert tokens(token) is not None
    clock.now = NOW + 10 + LEEWAY
    assert tokens(token) is None


def test_a_clock_that_is_set_back_holds_no_verdict_longer(issuer: Issuer, whole_file: Path, counting: Counting) -> None:
    wall, steady = Clock(), Clock(0.0)
    tokens = Tokens("corp", settings(whole_file), clock=wall, monotonic=steady)
    token = issuer.token()
    tokens(token)

    wall.now, steady.now = NOW - 20, 1.0
    tokens(token)

    assert counting.checks == 2


def test_a_flood_of_bad_tokens_is_held_in_bounds_and_pushes_no_good_one_out(
    issuer: Issuer, tokens: Tokens, counting: Counting
) -> None:
    token = issuer.token()
    tokens(token)

    for number in range(10_001):
        assert tokens(f"e30.e30.{number:04}") is None

    assert tokens(token) is not None
    assert counting.checks == 1
    assert len(tokens._bad) == 10_000


def test_nothing_shows_a_token(issuer: Issuer, tokens: Tokens) -> None:
    token = issuer.token()

    shown = repr(tokens) + repr(tokens(token)) + repr(vars(tokens))

    assert not any(part in shown for part in token.split("."))


# Where keys come from.


async def test_a_file_that_changes_brings_new_keys_and_takes_old_ones_away(issuer: Issuer, tmp_path: Path) -> None:
    """At once, whatever verdicts are held."""
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.set_of("rsa"))
    tokens = Tokens("corp", settings(path), cache_seconds=1000.0, clock=Clock())
    old, new = issuer.token(), issuer.token(kid="ec", alg="ES256")
    before = [tokens(old) is not None, tokens(new) is not None]

    path.write_bytes(issuer.set_of("ec"))
    fresh = await tokens.refresh()

    assert fresh
    assert before == [True, False]
    assert [tokens(old) is not None, tokens(new) is not None] == [False, True]


async def test_a_file_is_looked_at_while_keys_are_kept(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.set_of("rsa"))
    tokens = Tokens("corp", settings(path), clock=Clock(), monotonic=Clock())
    new = issuer.token(kid="ec", alg="ES256")
    path.write_bytes(issuer.set_of("ec"))

    async with kept(tokens):
        while tokens(new) is None:  # noqa: ASYNC110  a verdict has no event
            await asyncio.sleep(0)


async def test_a_set_without_keys_takes_all_of_them_away(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.set_of("rsa"))
    tokens = Tokens("corp", settings(path), clock=Clock())

    path.write_text('{"keys": []}')
    await tokens.refresh()

    assert tokens(issuer.token()) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be read as a JSON Web Key Set"),
        ("[]", "cannot be read as a JSON Web Key Set"),
        ("{}", "`keys` must be a list of at most 100"),
        (json.dumps({"keys": [{}] * 101}), "`keys` must be a list of at most 100"),
        ('{"keys": []}', "no key in it fits RS256, ES256, EdDSA"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "no key in it fits"),
        (" " * (1024 * 1024 + 1), "more than 1048576 bytes"),
    ],
)
def test_a_file_that_holds_no_keys_is_refused_at_start(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text)

    with pytest.raises(SettingsError) as caught:
        Tokens("corp", settings(path))

    assert str(path) in str(caught.value)
    assert problem in str(caught.value)


class Provider:
    """A server of keys that answers as it is told to, and tells when it was asked."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.status = 200
        self.headers: dict[str, str] = {}
        self.silent = False
        self.asked: asyncio.Queue[float] = asyncio.Queue()
        self.times = 0

    async def answer(self, _: web.Request) -> web.Response:
        self.times += 1
        self.asked.put_nowait(asyncio.get_running_loop().time())
        if self.silent:
            await asyncio.Event().wait()
        return web.Response(body=self.document, status=self.status, headers=self.headers)


@pytest.fixture
async def provider(issuer: Issuer) -> AsyncIterator[tuple[Provider, str]]:
    provider = Provider(issuer.set_of("rsa"))
    app = web.Application()
    app.router.add_get("/jwks", provider.answer)
    async with TestServer(app) as server:
        yield provider, str(server.make_url("/jwks"))


def from_url(url: str, **more: Any) -> TokenIssuerSettings:
    return TokenIssuerSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=url, **more)


@asynccontextmanager
async def kept(tokens: Tokens) -> AsyncIterator[None]:
    task = asyncio.create_task(tokens.keep(), name="keep")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_keys_of_a_url_are_there_after_a_refresh(issuer: Issuer, provider: tuple[Provider, str]) -> None:
    tokens = Tokens("corp", from_url(provider[1]), clock=Clock())
    token = issuer.token()

    before = tokens(token)
    fresh = await tokens.refresh()

    assert (before, fresh) == (None, True)
    assert tokens(token) is not None


async def test_keys_are_fetched_again_after_their_time(provider: tuple[Provider, str]) -> None:
    server, url = provider

    async with kept(Tokens("corp", from_url(url, refresh_seconds=0.02, min_refresh_seconds=0.01), clock=Clock())):
        for _ in range(3):
            await server.asked.get()


async def test_unknown_keys_are_fetched_once_for_all_who_ask(issuer: Issuer, provider: tuple[Provider, str]) -> None:
    server, url = provider
    tokens = Tokens("corp", from_url(url, min_refresh_seconds=0.01), clock=Clock(), monotonic=Clock())
    new = issuer.token(kid="ec", alg="ES256")

    async with kept(tokens):
        await server.asked.get()
        server.document = issuer.set_of("ec")
        for number in range(100):
            assert tokens(issuer.token(kid="ec", alg="ES256", sign=lambda _, n=number: bytes(64 + n))) is None  # type: ignore[misc]
        assert tokens(new) is None
        await server.asked.get()
        while tokens(new) is None:  # noqa: ASYNC110  a verdict has no event
            await asyncio.sleep(0)

    assert server.times == 2


async def test_unknown_keys_are_fetched_not_more_often_than_allowed(
    issuer: Issuer, provider: tuple[Provider, str]
) -> None:
    """However many tokens name however many keys that don't exist."""
    server, url = provider
    ticks = count()
    pause = 0.05
    tokens = Tokens(
        "corp", from_url(url, min_refresh_seconds=pause), clock=Clock(), monotonic=lambda: float(next(ticks))
    )
    token = issuer.token(kid="nobody", key=issuer.stranger)

    async with kept(tokens):
        while server.times < 4:
            assert tokens(token) is None
            await asyncio.sleep(0)
        moments = [server.asked.get_nowait() for _ in range(4)]

    assert all(later - earlier >= pause * 0.99 for earlier, later in pairwise(moments))


async def test_a_token_that_is_refused_anyway_fetches_no_keys(issuer: Issuer, provider: tuple[Provider, str]) -> None:
    tokens = Tokens("corp", from_url(provider[1]), clock=Clock())

    for changes in ({"iss": "https://evil.example"}, {"aud": "other"}, {"exp": 0}):
        tokens(issuer.token(claims(**changes), kid="nobody", key=issuer.stranger))

    assert not tokens._wanted.is_set()


@pytest.mark.parametrize(
    "change",
    [
        {"status": 500},
        {"status": 302, "headers": {"Location": "/jwks"}},
        {"document": b"<html>"},
        {"document": b"{}"},
        {"document": b"[" * 100_000},
        {"document": b'{"keys": "all"}'},
        {"document": json.dumps({"keys": [{}] * 101}).encode()},
        {"document": b" " * (1024 * 1024 + 1)},
        {"headers": {"Content-Encoding": "gzip"}, "document": b"\x1f\x8b"},
        {"silent": True},
    ],
    ids=str,
)
async def test_a_failed_refresh_keeps_the_last_good_keys(
    issuer: Issuer,
    provider: tuple[Provider, str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    """It is told once, and so is its end."""
    server, url = provider
    caplog.set_level(logging.INFO, "gateway.tokens")
    tokens = Tokens("corp", from_url(url), fetch_seconds=30.0, clock=Clock())
    good = vars(server).copy()
    await tokens.refresh()
    caplog.clear()

    vars(server).update(change)
    with monkeypatch.context() as impatient:
        if server.silent:
            impatient.setattr(tokens, "_fetch_seconds", 0.2)
        failed = [await tokens.refresh(), await tokens.refresh()]
    still = tokens(issuer.token())
    vars(server).update({name: good[name] for name in change})
    recovered = [await tokens.refresh(), await tokens.refresh()]

    assert (failed, recovered) == ([False, False], [True, True])
    assert still is not None
    events = [vars(record)["event"] for record in caplog.records]
    assert events == ["jwks_refresh_failed", "jwks_refresh_recovered"]


async def test_keys_that_can_not_be_fetched_are_asked_for_again_soon(provider: tuple[Provider, str]) -> None:
    """Not only after `refresh_seconds`: until then, every token would be refused."""
    server, url = provider
    server.status = 503

    async with kept(Tokens("corp", from_url(url, refresh_seconds=300, min_refresh_seconds=0.01))):
        await server.asked.get()
        await server.asked.get()


async def test_keeping_ends_when_it_is_cancelled_in_the_middle_of_a_fetch(provider: tuple[Provider, str]) -> None:
    server, url = provider
    server.silent = True

    async with kept(Tokens("corp", from_url(url))):
        await server.asked.get()


# Settings.


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"jwks_url": "https://id.example/jwks", "jwks_file": __file__},
        {"jwks_url": "http://id.example/jwks"},
        {"jwks_url": "http://127.0.0.1.evil.example/jwks"},
        {"jwks_url": "http://10.0.0.1/jwks"},
        {"jwks_url": "ftp://127.0.0.1/jwks"},
        {"jwks_url": "file:///etc/passwd"},
        {"jwks_url": "https://"},
        {"jwks_url": "https://user:password@id.example/jwks"},
        {"jwks_file": "/no/such/file"},
        {"jwks_file": __file__, "algorithms": ["HS256"]},
        {"jwks_file": __file__, "algorithms": ["RS256", "none"]},
        {"jwks_file": __file__, "algorithms": []},
        {"jwks_file": __file__, "leeway_seconds": 301},
        {"jwks_file": __file__, "leeway_seconds": -1},
        {"jwks_file": __file__, "role_map": {"ops": "root"}},
        {"jwks_file": __file__, "min_refresh_seconds": 0},
        {"jwks_file": __file__, "min_refresh_seconds": 400},
        {"jwks_file": __file__, "issuer": ""},
        {"jwks_file": __file__, "tenants": ""},
        {"jwks_file": __file__, "tenants": "billing/*"},
        {"jwks_file": __file__, "audience": ""},
    ],
    ids=str,
)
def test_settings_that_would_open_a_door_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenIssuerSettings(**{"issuer": ISSUER, "audience": AUDIENCE, **more})


@pytest.mark.parametrize(
    "url", ["https://id.example/jwks", "http://127.0.0.1:8/jwks", "http://[::1]/jwks", "http://localhost/jwks"]
)
def test_keys_come_by_https_or_from_this_machine(url: str) -> None:
    assert from_url(url).jwks_url == url

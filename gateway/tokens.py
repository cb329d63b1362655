"""Who is calling: tokens of an identity provider (JWT, as OpenID Connect has them), beside the keys of `identity`.

One `Tokens` knows one issuer and is a `Verify`. The issuer's public keys come from a file or a URL, and from nowhere
else: what a token says about keys is never followed. One strict parser reads a token, and the signature is checked over
the very text that it read. Claims are looked at before the signature, so that what can't be accepted costs no
cryptography; nothing is believed before both are right. Tokens appear in no log, error or repr; why one was refused is
told at DEBUG, in words of ours.

joserfc is used here only: its keys, and its algorithms one by one, not its parser of tokens.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import aiohttp
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from gateway.identity import TENANT, Caller
from gateway.settings import Role, TokenIssuerSettings
from headrace.runtime.settings import SettingsError

_ROLES: frozenset[str] = frozenset(get_args(Role))
_LONGEST_TOKEN = 8192
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = frozenset({"jwt", "at+jwt"})
_NOT_IN_A_KEY_ID = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_SUBJECT = 64
_LAST_MOMENT = 253_402_300_799  # the year 9999; keeps arithmetic with a stranger's numbers finite
_LARGEST_DOCUMENT = 1024 * 1024
_MOST_KEYS = 100
_RSA_BITS = range(2048, 8193)  # longer ones take long to check with, and OpenSSL has an end too
_SIGNING_CURVES = frozenset({"Ed25519", "Ed448"})
_MOST_VERDICTS = 10_000
_FILE_LOOK_SECONDS = 1.0
_log = logging.getLogger(__name__)


class _Refused(Exception):  # noqa: N818  an answer, not a fault
    """The token proves nothing. The text says why, and holds nothing of the token."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A public key, and the algorithms that it may be used with."""

    kid: str | None
    algorithms: frozenset[str]
    key: RSAKey | ECKey | OKPKey


_Verdicts = OrderedDict[bytes, tuple[float, Caller | None]]
"""By the SHA-256 of a token: until when the verdict holds, monotonic, and whose the token is."""


class Tokens:
    """Tokens of one issuer.

    A verdict, good or bad, is held for `cache_seconds` at most, never longer than the token is valid, and not beyond a
    change of the keys. Good and bad ones have a bounded place each, so that a flood of bad tokens pushes no good one
    out.
    """

    def __init__(
        self,
        name: str,
        settings: TokenIssuerSettings,
        *,
        cache_seconds: float = 1.0,
        fetch_seconds: float = 5.0,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is the issuer's in our settings. `changed` is told when the keys are others.

        Keys of a URL are there after `refresh`.

        Raises SettingsError where the file holds no usable key.
        """
        self._name = name
        self._settings = settings
        self._tenants = None if settings.tenants is None else frozenset(settings.tenants.split())
        self._cache_seconds = cache_seconds
        self._fetch_seconds = fetch_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._good = _Verdicts()
        self._bad = _Verdicts()
        self._document = b""
        self._keys: tuple[_Key, ...] = ()
        self._wanted = asyncio.Event()
        self._failing = False
        self._changed: Callable[[], None] = lambda: None
        if settings.jwks_file is not None:
            try:
                document = _read(settings.jwks_file)
                keys = _usable(document, settings.algorithms)
            except (OSError, ValueError) as exc:
                raise SettingsError(f"{settings.jwks_file}: cannot be read as a JSON Web Key Set: {exc}") from None
            if not keys:
                raise SettingsError(f"{settings.jwks_file}: no key in it fits {', '.join(settings.algorithms)}")
            self._take(document, keys)
        self._changed = changed

    def __call__(self, credential: str) -> Caller | None:
        """The caller of a token; None for one that is not valid, not of this issuer, or no token at all."""
        if len(credential) > _LONGEST_TOKEN or _COMPACT.fullmatch(credential) is None:
            return None
        digest = hashlib.sha256(credential.encode()).digest()
        now = self._monotonic()
        for verdicts in (self._good, self._bad):
            held = verdicts.get(digest)
            if held is not None and now < held[0]:
                return held[1]
        caller, seconds = self._judged(credential)
        verdicts = self._bad if caller is None else self._good
        verdicts[digest] = (now + seconds, caller)
        verdicts.move_to_end(digest)
        if len(verdicts) > _MOST_VERDICTS:
            verdicts.popitem(last=False)
        return caller

    async def keep(self) -> None:
        """Keep the keys fresh until cancelled. No answer of the issuer's ends it."""
        while True:
            fresh = await self.refresh()
            least, most = self._settings.min_refresh_seconds, self._settings.refresh_seconds
            if self._settings.jwks_file is not None:
                least = most = _FILE_LOOK_SECONDS
            await asyncio.sleep(least)
            if fresh:
                with suppress(TimeoutError):
                    async with asyncio.timeout(most - least):
                        await self._wanted.wait()

    async def refresh(self) -> bool:
        """Look for new keys once, in bounded time. False where that failed, and the last good keys stay."""
        self._wanted.clear()
        try:
            document = await self._fetched()
            if document != self._document:
                self._take(document, await asyncio.to_thread(_usable, document, self._settings.algorithms))
        except Exception as exc:  # noqa: BLE001  whatever the issuer sends must end neither the task nor the gateway
            if not self._failing:
                why = f"{type(exc).__name__}: {exc}"
                extra = {"event": "jwks_refresh_failed", "issuer": self._settings.issuer, "why": why}
                _log.warning("no fresh keys of %s, the last ones stay: %s", self._settings.issuer, why, extra=extra)
            self._failing = True
            return False
        if self._failing:
            extra = {"event": "jwks_refresh_recovered", "issuer": self._settings.issuer}
            _log.info("the keys of %s can be read again", self._settings.issuer, extra=extra)
        self._failing = False
        return True

    async def _fetched(self) -> bytes:
        if self._settings.jwks_file is not None:
            return await asyncio.to_thread(_read, self._settings.jwks_file)
        assert self._settings.jwks_url is not None  # noqa: S101  one of the two is set
        document = bytearray()
        # Redirects may lead to plain http, and what is packed may unpack to any size: neither is followed.
        async with (
            asyncio.timeout(self._fetch_seconds),
            aiohttp.ClientSession(auto_decompress=False, headers={"Accept-Encoding": "identity"}) as session,
            session.get(self._settings.jwks_url, allow_redirects=False) as response,
        ):
            if response.status != 200:  # noqa: PLR2004  OK
                raise ValueError(f"HTTP status {response.status}")
            async for chunk in response.content.iter_any():
                document += chunk
                _bounded(document)
        return bytes(document)

    def _take(self, document: bytes, keys: tuple[_Key, ...]) -> None:
        self._document, self._keys = document, keys
        self._good.clear()
        self._bad.clear()
        _log.info(
            "%d usable keys of %s",
            len(keys),
            self._settings.issuer,
            extra={"event": "jwks_changed", "issuer": self._settings.issuer, "keys": len(keys)},
        )
        self._changed()

    def _judged(self, token: str) -> tuple[Caller | None, float]:
        """Whose token it is, and for how many seconds to believe so."""
        signed, _, signature = token.rpartition(".")
        head, _, body = signed.partition(".")
        try:
            header, claims = _object(_decoded(head)), _object(_decoded(body))
            valid_seconds = self._checked(claims)
            caller = self._caller(claims)
            key, algorithm = self._key(header)
            if not _signed(key, algorithm, signed.encode(), _decoded(signature)):
                _refuse("the signature is wrong")
        except (_Refused, ValueError) as exc:
            # A ValueError tells what was read, which is the token's.
            why = str(exc) if isinstance(exc, _Refused) else "it is malformed"
            extra = {"event": "token_refused", "issuer": self._settings.issuer, "why": why}
            _log.debug("a token was refused: %s", why, extra=extra)
            return None, self._cache_seconds
        return caller, min(valid_seconds, self._cache_seconds)

    def _checked(self, claims: Mapping[str, Any]) -> float:
        """For how many seconds the claims will hold."""
        settings, now = self._settings, self._clock()
        if claims.get("iss") != settings.issuer:
            _refuse("iss is another issuer")
        audience = claims.get("aud")
        if settings.audience not in (audience if isinstance(audience, list) else [audience]):
            _refuse("aud is not this gateway")
        expires, issued, begins = (_moment(claims, name) for name in ("exp", "iat", "nbf"))
        if expires is None:
            _refuse("exp is missing")
        ends = expires + settings.leeway_seconds
        if settings.max_age_seconds is not None:
            if issued is None:
                _refuse("iat is missing")
            ends = min(ends, issued + settings.max_age_seconds + settings.leeway_seconds)
        if ends <= now:
            _refuse("it has expired")
        for name, moment in (("iat", issued), ("nbf", begins)):
            if moment is not None and moment > now + settings.leeway_seconds:
                _refuse(f"{name} is in the future")
        return ends - now

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant = claims.get(self._settings.tenant_claim)
        if not isinstance(tenant, str) or TENANT.fullmatch(tenant) is None:
            _refuse("the tenant claim is missing or no tenant's name")
        if self._tenants is not None and tenant not in self._tenants:
            _refuse("the tenant is not for this issuer to name")
        named = (claims.get("sub"), claims.get("azp"), claims.get("client_id"), tenant)
        subject = next(name for name in named if isinstance(name, str) and name)
        key_id = _NOT_IN_A_KEY_ID.sub("_", subject[:_LONGEST_SUBJECT])
        if key_id != subject:
            # What was replaced or cut must not make one of two.
            key_id += "~" + hashlib.sha256(subject.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        # Two issuers may have the same subject: it is not the same caller.
        return Caller(tenant, f"token:{self._name}:{key_id}", self._roles(claims.get(self._settings.roles_claim)))

    def _roles(self, claimed: object) -> frozenset[str]:
        known: Mapping[str, str] = self._settings.role_map or {role: role for role in _ROLES}
        names = claimed.split() if isinstance(claimed, str) else claimed if isinstance(claimed, list) else []
        return frozenset(known[name] for name in names if isinstance(name, str) and name in known)

    def _key(self, header: Mapping[str, Any]) -> tuple[_Key, str]:
        """The key that must have signed, and the algorithm. The token only names them; both are of our choosing."""
        algorithm = header.get("alg")
        if algorithm not in self._settings.algorithms:
            _refuse("alg is not allowed")
        if "crit" in header:
            _refuse("crit asks for what is not known here")
        media_type = header.get("typ", "JWT")
        if not isinstance(media_type, str) or media_type.lower() not in _TYPES:
            _refuse("typ is another type")
        kid = header.get("kid")
        if "kid" in header and not isinstance(kid, str):
            _refuse("kid is no text")
        keys = [key for key in self._keys if kid is None or key.kid == kid]
        if not keys:
            self._wanted.set()
            _refuse("the key is unknown")
        if kid is None and len(keys) > 1:
            _refuse("kid is missing, and there are several keys")
        fitting = [key for key in keys if algorithm in key.algorithms]
        if not fitting:
            _refuse("alg does not fit the key")
        return fitting[0], algorithm


def _refuse(why: str) -> NoReturn:
    raise _Refused(why)


def _decoded(segment: str) -> bytes:
    """The bytes of base64url. Raises ValueError also where the text is one of several for the same bytes."""
    raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    if base64.urlsafe_b64encode(raw).rstrip(b"=") != segment.encode():
        raise ValueError("not canonical")
    return raw


def _object(raw: bytes) -> dict[str, Any]:
    """A JSON object in which every name stands once. Raises ValueError."""
    try:
        # Decoded here, since json would take UTF-16 and UTF-32 as well.
        value = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not an object")  # noqa: TRY004  what is read is wrong, not the caller
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """Seconds since the epoch; None where the claim is missing."""
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LAST_MOMENT:
        _refuse(f"{name} is no moment")
    return value


def _signed(key: _Key, algorithm: str, text: bytes, signature: bytes) -> bool:
    # The algorithm itself and not joserfc's look-up of it, which warns of EdDSA for its name.
    try:
        return JWSRegistry.algorithms[algorithm].verify(text, signature, key.key)
    except (JoseError, ValueError):
        return False


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        document = file.read(_LARGEST_DOCUMENT + 1)
    _bounded(document)
    return document


def _bounded(document: bytes | bytearray) -> None:
    if len(document) > _LARGEST_DOCUMENT:
        raise ValueError(f"more than {_LARGEST_DOCUMENT} bytes")


def _usable(document: bytes, algorithms: tuple[str, ...]) -> tuple[_Key, ...]:
    """The keys of a JSON Web Key Set that may prove a token. Raises ValueError where it is none."""
    listed = _object(document).get("keys")
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ValueError(f"`keys` must be a list of at most {_MOST_KEYS}")
    return tuple(key for jwk in listed if isinstance(jwk, dict) and (key := _imported(jwk, algorithms)) is not None)


def _imported(jwk: dict[str, Any], algorithms: tuple[str, ...]) -> _Key | None:
    """None for a key that is symmetric, weak, broken, no secret any more, or meant for something else."""
    kind = next((cls for cls in (RSAKey, ECKey, OKPKey) if cls.key_type == jwk.get("kty")), None)
    if kind is None or "d" in jwk or jwk.get("use", "sig") != "sig":
        return None
    try:
        if kind is RSAKey and int.from_bytes(_decoded(jwk["n"])).bit_length() not in _RSA_BITS:
            return None  # looked at before joserfc warns of it
        key = kind.import_key(jwk)
        key.check_key_op("verify")
    except (JoseError, KeyError, TypeError, ValueError):
        return None
    if isinstance(key, OKPKey) and key.curve_name not in _SIGNING_CURVES:
        return None
    fitting = frozenset(name for name in algorithms if jwk.get("alg", name) == name and _fits(key, name))
    return _Key(key.kid, fitting, key) if fitting else None


def _fits(key: RSAKey | ECKey | OKPKey, algorithm: str) -> bool:
    try:
        JWSRegistry.algorithms[algorithm].check_key(key)
    except JoseError:
        return False
    return True

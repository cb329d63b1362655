"""Who is calling: API keys in metadata, `authorization: Bearer KEY` or `x-api-key: KEY`.

The gateway knows one kind of function, `Verify`; where keys come from is behind it. Here they come from a file of
hashes, and on a laptop from one key in clear text. Keys appear in no log, error or repr. Refusals tell the caller how
to send a key, and tell nobody whether a key's id exists.
"""

import hashlib
import hmac
import math
import re
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gateway.errors import KeyExpired, KeyInvalid, KeyMissing, RoleRequired
from headrace.runtime.reload import ReloadedFile
from headrace.runtime.settings import SettingsError, read_secret

Metadata = Iterable[tuple[str, str | bytes]]
"""What gRPC gives: keys in lower case, values as text, or as bytes where the key ends in `-bin`."""

ADMIN = "admin"
"""The role that loads and unloads models, and may do all else."""
OBSERVER = "observer"
"""The role that asks what there is, and runs nothing."""
USER = "user"
"""The role that runs models. A key without roles has it."""
ROLES = frozenset({ADMIN, OBSERVER, USER})

_LONGEST_CREDENTIAL = 8192
_LONGEST_KEY = 512
_KEY_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
TENANT = re.compile(r"[A-Za-z0-9._-]{1,128}")
"""What a tenant may be called."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_NOBODY = bytes(32)
_FIELDS = frozenset({"tenant", "roles", "secret_sha256", "not_before", "expires", "disabled"})


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller who proved who it is."""

    tenant: str
    key_id: str
    """Names the key, and is no secret."""
    roles: frozenset[str] = frozenset()

    def require(self, role: str, *, method: str) -> None:
        """Raises RoleRequired unless the caller has the role."""
        if role not in self.roles:
            raise RoleRequired(method=method, role=role)


Verify = Callable[[str], Caller | None]
"""Tells whose credential a text is, in a time that does not depend on how close a wrong one is.

Raises KeyExpired. Runs on every call: microseconds, no waiting."""


def presented_key(metadata: Metadata) -> str:
    """The API key that a call presents. Raises KeyMissing, or KeyInvalid where it is doubtful what is meant."""
    authorization = api_key = None
    for name, value in metadata:
        if name == "authorization":
            if authorization is not None:
                raise KeyInvalid
            authorization = value
        elif name == "x-api-key":
            if api_key is not None:
                raise KeyInvalid
            api_key = value
    key = api_key.strip() if isinstance(api_key, str) else api_key
    bearer = _bearer(authorization) if authorization is not None else None
    if bearer is not None:
        if key is not None and key != bearer:
            raise KeyInvalid
        key = bearer
    if not key:
        raise KeyMissing
    if not isinstance(key, str) or len(key) > _LONGEST_CREDENTIAL:
        raise KeyInvalid
    return key


def _bearer(authorization: str | bytes) -> str | None:
    """The key; None for another scheme, which is meant for somebody else, such as a proxy on the way."""
    if not isinstance(authorization, str):
        raise KeyInvalid
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the form `hr_<id>_<secret>`, as it is known here; moments are seconds since the epoch."""

    digest: bytes
    """The SHA-256 of the secret."""
    caller: Caller
    not_before: float = -math.inf
    expires: float = math.inf
    disabled: bool = False


def owner(key: str, keys: Mapping[str, Key], now: float) -> Caller | None:
    """The caller of a key, of those that are known by their id.

    Raises KeyExpired for who has the secret, and no right to it now.
    """
    parts = key.split("_", 2)
    known = keys.get(parts[1]) if len(parts) == 3 and parts[0] == "hr" else None  # noqa: PLR2004  the form
    presented = hashlib.sha256(parts[-1].encode("utf-8", "surrogatepass")).digest()
    matches = hmac.compare_digest(_NOBODY if known is None else known.digest, presented)
    if known is None or not matches or known.disabled:
        return None
    if not known.not_before <= now < known.expires:
        raise KeyExpired(key_id=known.caller.key_id)
    return known.caller


class KeyFile:
    """Keys of the form `hr_<id>_<secret>`, known by the hash of their secret; read again when the file changes.

    A TOML file with one table per key:

        [keys.billing-1]
        tenant = "billing"
        roles = []                      # none is a user's; "user", "observer", "admin"
        secret_sha256 = "…"             # 64 hexadecimal digits; the secret is random, so that one plain hash is enough
        not_before = 2026-01-01T00:00:00Z   # these three may be left out
        expires = 2027-01-01T00:00:00Z
        disabled = false
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.time, changed: Callable[[], None] = lambda: None
    ) -> None:
        """`changed` is told after the keys have. Raises SettingsError, a line for every mistake in the file."""
        self._clock = clock
        self._keys: Mapping[str, Key] = {}
        self._changed: Callable[[], None] = lambda: None
        self._file = ReloadedFile(path, what="key file", read=_read, use=self._use)
        self._changed = changed

    def __call__(self, key: str) -> Caller | None:
        """The caller of a key. Raises KeyExpired; see `owner`."""
        return owner(key, self._keys, self._clock())

    def __len__(self) -> int:
        return len(self._keys)

    async def keep(self) -> None:
        """Watch the file until cancelled."""
        await self._file.keep()

    async def look(self) -> None:
        """Read the file again if it changed."""
        await self._file.look()

    def _use(self, keys: Mapping[str, Key]) -> None:
        self._keys = keys
        self._changed()


class DevelopmentKey:
    """One key in clear text, any printable text, with the admin role: for a laptop."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError where the file holds nothing that can be sent as metadata."""
        key = read_secret(path)
        if not _PRINTABLE.fullmatch(key) or len(key) > _LONGEST_KEY:
            raise SettingsError(f"{path}: a key is one line of at most {_LONGEST_KEY} printable ASCII characters")
        self._digest = hashlib.sha256(key.encode()).digest()
        self._caller = Caller(tenant="development", key_id="development", roles=frozenset({ADMIN}))

    def __call__(self, key: str) -> Caller | None:
        """The caller of a key."""
        presented = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        return self._caller if hmac.compare_digest(self._digest, presented) else None


def _read(path: Path) -> Mapping[str, Key]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise SettingsError(f"{path}: cannot be read as TOML: {str(exc) or type(exc).__name__}") from None
    tables = document.pop("keys", None)
    problems = [f"{name}: no such entry, only [keys.<id>] tables are known" for name in document]
    keys: dict[str, Key] = {}
    if not isinstance(tables, dict) or not tables:
        problems.append("no keys: add a [keys.<id>] table, else nobody can call")
    else:
        for key_id, table in tables.items():
            mistakes = _mistakes(key_id, table)
            problems += [f"keys.{key_id}: {mistake}" for mistake in mistakes]
            if not mistakes:
                keys[key_id] = Key(
                    digest=bytes.fromhex(table["secret_sha256"]),
                    caller=Caller(table["tenant"], key_id, frozenset(table.get("roles", ()))),
                    not_before=table["not_before"].timestamp() if "not_before" in table else -math.inf,
                    expires=table["expires"].timestamp() if "expires" in table else math.inf,
                    disabled=table.get("disabled", False),
                )
    if problems:
        raise SettingsError("\n".join(f"{path}: {problem}" for problem in problems))
    return keys


def _mistakes(key_id: str, table: object) -> list[str]:
    if not isinstance(table, dict):
        return ["must be a table"]
    found = []
    if not _KEY_ID.fullmatch(key_id):
        found.append("an id has 1 to 64 of A-Z a-z 0-9 -")
    if not _matches(TENANT, table.get("tenant")):
        found.append("tenant must be 1 to 128 of A-Z a-z 0-9 . _ -")
    if not _matches(_SHA256, table.get("secret_sha256")):
        found.append("secret_sha256 must be 64 hexadecimal digits in lower case")
    roles = table.get("roles", [])
    if not isinstance(roles, list) or not all(isinstance(role, str) and role in ROLES for role in roles):
        found.append(f"roles must be a list of {', '.join(sorted(ROLES))}")
    for name in ("not_before", "expires"):
        moment = table.get(name)
        if moment is not None and not (isinstance(moment, datetime) and moment.tzinfo is not None):
            found.append(f"{name} must be a moment with its zone, such as 2027-01-01T00:00:00Z")
    if not isinstance(table.get("disabled", False), bool):
        found.append("disabled must be true or false")
    found += [f"{name}: no such field" for name in table if name not in _FIELDS]
    return found


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None

"""API keys: made here, checked by the gateway, which keeps only a hash."""

import hashlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,128}")


class KeyRequestError(Exception):
    """A key can't be made for what was asked; the text says why."""


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key, and what the gateway needs to know it."""

    id: str
    key: str
    secret_sha256: str
    entry: str
    """For the key file."""


def new_key(*, tenant: str, key_id: str | None, roles: Sequence[str] = (), expires: datetime | None = None) -> NewKey:
    """Make a key `hr_<id>_<secret>` with 256 random bits. Raises KeyRequestError."""
    key_id = secrets.token_hex(4) if key_id is None else key_id
    if not _ID.fullmatch(key_id):
        raise KeyRequestError("--id: 1 to 64 of A-Z a-z 0-9 -")
    if not _TENANT.fullmatch(tenant):
        raise KeyRequestError("--tenant: 1 to 128 of A-Z a-z 0-9 . _ -")
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    entry = f'[keys.{key_id}]\ntenant = "{tenant}"\nroles = {json.dumps(list(roles))}\nsecret_sha256 = "{digest}"\n'
    if expires is not None:
        entry += f"expires = {expires.astimezone(UTC).isoformat(timespec='seconds')}\n"
    return NewKey(id=key_id, key=f"hr_{key_id}_{secret}", secret_sha256=digest, entry=entry)

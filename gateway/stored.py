"""Tenants and keys of the database, held in memory: read as a whole once, then as they change, twice a second.

So a call waits for no database, and what is disabled there is refused within a second. While the database is away all
stands as it was last read. Before it was read for the first time nobody can tell whose a key is.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

from gateway.errors import KeysUnavailable
from gateway.identity import ROLES, Caller, Key, owner
from gateway.policy.document import PolicyError, read_tenant
from gateway.policy.model import Tenant
from gateway.quotas import ReadSums, Sums, SumsUnavailableError, Used
from headrace.runtime.lifecycle import Unstartable
from headrace.runtime.reload import Yielding
from headrace.store.changes import Changes, changes_since
from headrace.store.engine import SchemaError, Store, StoreUnavailableError
from headrace.store.keys import StoredKey
from headrace.store.revisions import current_revision
from headrace.store.tenants import StoredTenant
from headrace.store.usage import summed_sequence, totals

LOOK_SECONDS = 0.5
_READ_SECONDS = 30.0
"""For all that there is, the first time."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger(__name__)

_Read = tuple[int, dict[str, Key | None], dict[str, Tenant | None], bool]
"""A revision, what changed until then, None for what holds no more, and whether that is all that there is."""
T = TypeVar("T")


class StoredAccess:
    """The tenants and keys of a database. `keys_changed` and `tenants_changed` are told after they have."""

    def __init__(
        self,
        store: Store,
        *,
        keys_changed: Callable[[], None],
        tenants_changed: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._keys_changed = keys_changed
        self._tenants_changed = tenants_changed
        self._clock = clock
        self._revision = -1
        self._checked = False
        self._keys: dict[str, Key] = {}
        self._tenants: dict[str, Tenant] = {}
        self._away = ""

    @property
    def ready(self) -> bool:
        """Whether it has been read."""
        return self._revision >= 0

    @property
    def tenants(self) -> Mapping[str, Tenant]:
        """The tenants that are granted something."""
        return self._tenants

    def __call__(self, key: str) -> Caller | None:
        """The caller of a key. Raises KeyExpired, see `owner`, or KeysUnavailable."""
        if not self.ready and key.startswith("hr_"):
            raise KeysUnavailable
        return owner(key, self._keys, self._clock())

    async def keep(self) -> None:
        """Follow the database until cancelled. Raises Unstartable where it is of another version."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)  # the pace of asking

    async def look(self) -> None:
        """Read what changed. A database that is away is no reason to fail, and is told once."""
        try:
            if not self._checked:
                await asyncio.to_thread(self._store.check)
                self._checked = True
            read = await self._changes()
        except SchemaError as exc:
            raise Unstartable(f"{exc}") from None
        except StoreUnavailableError as exc:
            self._stay(str(exc))
            return
        except (ValueError, TypeError, OverflowError) as exc:
            # SQLite takes any text for a moment or JSON: what was written there by hand must not end the process.
            self._stay(f"the database holds what can't be read: {type(exc).__name__}")
            return
        if self._away:
            _log.info("tenants and keys are read again", extra={"event": "database_back"})
        self._away = ""
        if read is not None:
            self._use(*read)

    def _stay(self, why: str) -> None:
        if self._away != why:
            _log.warning("tenants and keys stay as they were: %s", why, extra={"event": "database_away", "why": why})
        self._away = why

    async def _changes(self) -> _Read | None:
        seen = self._revision
        revision = await self._store.run(current_revision, read_only=True)
        if revision == seen:
            return None
        # An older one is that of another database, or of one that was restored: nothing of what was read holds.
        everything = revision < seen or seen < 0
        changes = await self._store.run(
            lambda connection: changes_since(connection, -1 if everything else seen),
            seconds=_READ_SECONDS,
            read_only=True,
        )
        with Yielding():
            keys, tenants = await asyncio.to_thread(_made, changes)
        return changes.revision, keys, tenants, everything

    def _use(
        self, revision: int, keys: dict[str, Key | None], tenants: dict[str, Tenant | None], everything: bool
    ) -> None:
        if everything:
            self._keys, self._tenants = {}, {}
        self._revision = revision
        _change(self._keys, keys)
        _change(self._tenants, tenants)
        if keys or everything:
            self._keys_changed()
        if tenants or everything:
            self._tenants_changed()
        _log.info(
            "%d keys and %d tenants changed in the database",
            len(keys),
            len(tenants),
            extra={"event": "database_changed", "keys": len(keys), "tenants": len(tenants), "revision": revision},
        )


def _change(held: dict[str, T], changed: Mapping[str, T | None]) -> None:
    for name, each in changed.items():
        if each is None:
            held.pop(name, None)
        else:
            held[name] = each


def _made(changes: Changes) -> tuple[dict[str, Key | None], dict[str, Tenant | None]]:
    return {each.id: _key(each) for each in changes.keys}, dict(_granted(changes.tenants))


def _key(stored: StoredKey) -> Key | None:
    mistake = _mistake(stored)
    if mistake is not None:
        # Written by hand, or of a newer version. What held before may be more than it is to have now.
        extra = {"event": "key_rejected", "key_id": stored.id, "why": mistake}
        _log.error("key %s is not taken: %s", stored.id, mistake, extra=extra)
        return None
    return Key(
        digest=bytes.fromhex(stored.secret_sha256),
        caller=Caller(stored.tenant, stored.id, frozenset(stored.roles)),
        not_before=-math.inf if stored.not_before is None else stored.not_before.timestamp(),
        expires=math.inf if stored.expires is None else stored.expires.timestamp(),
        disabled=stored.disabled,
    )


def _mistake(stored: StoredKey) -> str | None:
    if not _SHA256.fullmatch(stored.secret_sha256):
        return "secret_sha256 must be 64 hexadecimal digits in lower case"
    if not ROLES.issuperset(stored.roles):
        return f"roles must be a list of {', '.join(sorted(ROLES))}"
    return None


def _granted(stored: Iterable[StoredTenant]) -> Iterable[tuple[str, Tenant | None]]:
    for each in stored:
        if each.disabled:
            yield each.name, None
            continue
        try:
            yield each.name, read_tenant(each.name, each.grants)
        except PolicyError as exc:
            # Of a newer version, or written by hand. What held before may be more than it is to have now.
            why = "; ".join(str(exc).splitlines())
            extra = {"event": "tenant_rejected", "tenant": each.name, "why": why}
            _log.error("tenant %s is granted nothing: %s", each.name, why, extra=extra)
            yield each.name, None


def sums_of(store: Store, source: str) -> ReadSums:
    """How a gateway of this name reads what was summed."""

    async def read(periods: Collection[str], tenants: Collection[str]) -> Sums:
        try:
            sequence, found = await store.run(
                lambda connection: (summed_sequence(connection, source), totals(connection, periods, tenants)),
                read_only=True,
            )
        except StoreUnavailableError as exc:
            raise SumsUnavailableError(str(exc)) from None
        used = {at: Used(each.calls, each.bytes, each.model_micros) for at, each in found.items()}
        return Sums(sequence=sequence, used=used)

    return read

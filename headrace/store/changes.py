"""What a reader who keeps tenants and keys in memory has to read."""

from dataclasses import dataclass

import sqlalchemy as sa

from headrace.store.keys import StoredKey, keys_since
from headrace.store.revisions import current_revision
from headrace.store.tenants import StoredTenant, tenants_since


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed up to a revision."""

    revision: int
    tenants: list[StoredTenant]
    keys: list[StoredKey]


def changes_since(c: sa.Connection, revision: int) -> Changes:
    """All that changed after a revision, -1 for all there is. For a read-only transaction, which sees one moment."""
    return Changes(current_revision(c), tenants_since(c, revision), keys_since(c, revision))

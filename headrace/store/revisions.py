"""What has changed since a reader last looked: every change of tenants or keys takes the next revision.

Who changes something holds the number until the change is there. So one who has seen a revision has seen every change
up to it, however many write.
"""

from typing import Any

import sqlalchemy as sa

from headrace.store.schema import revision as numbers


def current_revision(c: sa.Connection) -> int:
    """The number of the last change."""
    return int(c.execute(sa.select(numbers.c.revision)).scalar_one())


def hold_changes(c: sa.Connection) -> None:
    """Have everybody else who changes something wait for the end of this transaction: what is read now stands."""
    c.execute(sa.select(numbers.c.revision).with_for_update())


def next_revision(c: sa.Connection) -> int:
    """Take the next number, and have everybody else wait for the end of this transaction."""
    taken = c.execute(sa.update(numbers).values(revision=numbers.c.revision + 1).returning(numbers.c.revision))
    number: Any = taken.scalar_one()
    return int(number)

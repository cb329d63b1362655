"""Who administered what."""

import sqlalchemy as sa
from alembic import op

from headrace.store.schema import Moment

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

_APPEND_ONLY = {
    "postgresql": (
        """CREATE OR REPLACE FUNCTION acts_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'acts are added only'; END $$""",
        """CREATE TRIGGER acts_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON acts
        FOR EACH STATEMENT EXECUTE FUNCTION acts_append_only()""",
    ),
    "sqlite": tuple(
        f"CREATE TRIGGER acts_no_{change.lower()} BEFORE {change} ON acts"
        " BEGIN SELECT RAISE(ABORT, 'acts are added only'); END"
        for change in ("UPDATE", "DELETE")
    ),
}


def upgrade() -> None:
    """Make the table, to which rows are added only."""
    op.create_table(
        "acts",
        sa.Column("revision", sa.BigInteger, autoincrement=False),
        sa.Column("at", Moment, nullable=False),
        sa.Column("os_user", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("act", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_acts"),
    )
    for statement in _APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)

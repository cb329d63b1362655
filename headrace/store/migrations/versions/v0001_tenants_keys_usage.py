"""Tenants, keys, and what was used."""

import sqlalchemy as sa
from alembic import op

from headrace.store.schema import Moment

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Make the tables."""
    made = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, autoincrement=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
    )
    op.bulk_insert(made, [{"id": 1, "revision": 0}])
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text),
        sa.Column("grants", sa.JSON, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("changed_at", Moment, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_tenants"),
    )
    op.create_index("ix_tenants_revision", "tenants", ["revision"])
    op.create_table(
        "keys",
        sa.Column("id", sa.Text),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("roles", sa.JSON, nullable=False),
        sa.Column("not_before", Moment),
        sa.Column("expires", Moment),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("created_at", Moment, nullable=False),
        sa.Column("changed_at", Moment, nullable=False),
        sa.Column("last_used_at", Moment),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
    )
    op.create_index("ix_keys_tenant", "keys", ["tenant"])
    op.create_index("ix_keys_revision", "keys", ["revision"])
    op.create_table(
        "usage",
        sa.Column("hour", Moment),
        sa.Column("tenant", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("request_bytes", sa.BigInteger, nullable=False),
        sa.Column("response_bytes", sa.BigInteger, nullable=False),
        sa.Column("model_micros", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("hour", "tenant", "key_id", "model", name="pk_usage"),
    )
    op.create_index("ix_usage_tenant_hour", "usage", ["tenant", "hour"])
    op.create_table(
        "usage_totals",
        sa.Column("period", sa.Text),
        sa.Column("tenant", sa.Text),
        sa.Column("calls", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("model_micros", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("period", "tenant", name="pk_usage_totals"),
    )
    op.create_table(
        "usage_sources",
        sa.Column("source", sa.Text),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("seen_at", Moment, nullable=False),
        sa.PrimaryKeyConstraint("source", name="pk_usage_sources"),
    )
    op.create_table(
        "usage_offsets",
        sa.Column("topic", sa.Text),
        sa.Column("partition", sa.Integer, autoincrement=False),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", name="pk_usage_offsets"),
    )

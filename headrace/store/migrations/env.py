"""Alembic asks for this file. Migrations are run by `headrace.store.engine`, which brings the connection."""

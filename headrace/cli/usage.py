"""`headrace usage`: what a tenant has used."""

import csv
import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, cast

import typer

from headrace.cli import moments
from headrace.cli.common import USAGE, StateDir, fail, readable
from headrace.cli.stores import Database, opened
from headrace.cli.table import table

if TYPE_CHECKING:  # slow to import
    from headrace.store.usage import By as Apart

_HEAD = ("calls", "request_bytes", "response_bytes", "model_seconds")


class Form(StrEnum):
    """How usage is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class By(StrEnum):
    """What usage is told apart by."""

    HOUR = "hour"
    DAY = "day"
    MODEL = "model"
    KEY = "key"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="usage")(_usage)


def _usage(
    *,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Whose usage.", callback=readable)],
    since: Annotated[str, typer.Option(metavar="WHEN", help=f"From when: {moments.WHEN}.")] = "30d",
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Up to when, itself not included. [default: now]", show_default=False),
    ] = None,
    by: Annotated[
        list[By] | None,
        typer.Option(help="What to tell apart. Can be repeated. [default: model]", show_default=False),
    ] = None,
    form: Annotated[Form, typer.Option("--format", help="How to print it.")] = Form.TABLE,
    database: Database = None,
    state_dir: StateDir = None,
) -> None:
    """Show what a tenant has used: calls that were answered, their bytes, and the time that models took.

    Usage is kept by the hour, so that times are cut to full hours. It is summed about a second after a call ends. The
    time of models is known by model and not by key: it stands in a line of its own where keys are told apart.

    For example:

        headrace usage acme

        headrace usage acme --since 2026-11-01 --until 2026-12-01 --by day --by model --format csv
    """
    from headrace.store.tenants import tenant as known_tenant  # noqa: PLC0415  slow to import
    from headrace.store.usage import has_usage, usage_of  # noqa: PLC0415

    now = moments.now()
    start = _hour(moments.moment("--since", since, now))
    # The hour that runs is part of it.
    end = _hour(moments.moment("--until", until, now)) if until is not None else _hour(now) + timedelta(hours=1)
    if end <= start:
        told = f"{start:%Y-%m-%dT%H:%M} to {end:%Y-%m-%dT%H:%M}"
        fail(f"--until is not after --since: times are cut to full hours, {told}", code=USAGE)
    apart = cast("list[Apart]", [each.value for each in dict.fromkeys(by or [By.MODEL])])
    with opened(database, state_dir) as store, store.transaction(read_only=True) as connection:
        found = usage_of(connection, tenant, since=start, until=end, by=apart)
        if not found and known_tenant(connection, tenant) is None and not has_usage(connection, tenant):
            # One of a policy file can't be told from none before it has called.
            fail(f"no tenant {tenant} has usage, and the database has none of that name", code=USAGE)
    rows = [
        {
            **{name: _shown(getattr(each, name)) for name in apart},
            "calls": each.calls,
            "request_bytes": each.request_bytes,
            "response_bytes": each.response_bytes,
            "model_seconds": each.model_micros / 1e6,
        }
        for each in found
    ]
    _print[form]([*apart, *_HEAD], rows)


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)


def _shown(value: object) -> str:
    return value.strftime("%Y-%m-%dT%H:%MZ") if isinstance(value, datetime) else str(value)


_Rows = list[dict[str, object]]


def _as_table(head: list[str], rows: _Rows) -> None:
    typer.echo(
        table(
            [name.upper() for name in head],
            [[f"{row[name]:.3f}" if name == "model_seconds" else str(row[name]) for name in head] for row in rows],
        )
    )


def _as_csv(head: list[str], rows: _Rows) -> None:
    writer = csv.DictWriter(sys.stdout, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _as_json(_: list[str], rows: _Rows) -> None:
    typer.echo(json.dumps(rows, indent=1))


_print: dict[Form, Callable[[list[str], _Rows], None]] = {
    Form.TABLE: _as_table,
    Form.CSV: _as_csv,
    Form.JSON: _as_json,
}

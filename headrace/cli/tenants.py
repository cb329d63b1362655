"""`headrace tenants`: the tenants of the database, and what each is granted."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.common import FAILED, USAGE, AsJson, StateDir, fail
from headrace.cli.grants import granted, limit_rows
from headrace.cli.stores import Database, opened
from headrace.cli.table import table

if TYPE_CHECKING:  # slow to import
    from headrace.store.tenants import StoredTenant

app = typer.Typer(no_args_is_help=True, help="The tenants of the database, and what each is granted.")

Name = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]


class Class(StrEnum):
    """What a method is for."""

    INFER = "infer"
    METADATA = "metadata"
    ADMIN = "admin"


class Rank(StrEnum):
    """Whose calls come first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="FILE",
        help="What it is granted, as YAML: what a policy has below the tenant's name; `-` reads it from here.",
        show_default=False,
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--models", metavar="PATTERN", help="Models that exist for it, as `text_*`. Can be repeated."),
]
Allow = Annotated[list[Class] | None, typer.Option(help="What it may do. Can be repeated. [default: infer, metadata]")]
Priority = Annotated[Rank | None, typer.Option(help="Kept for the queue; changes nothing yet.")]
Certificates = Annotated[
    list[str] | None,
    typer.Option("--certificate", metavar="NAME", help="A SPIFFE id or DNS name of its certificates. Can be repeated."),
]


def _limit(text: str) -> Any:  # noqa: ANN401  what typer makes of an option
    return typer.Option(metavar="N", min=0, help=text, show_default=False)


CallsPerSecond = Annotated[float | None, _limit("Calls a second.")]
Burst = Annotated[float | None, _limit("Calls that may come at once.")]
Concurrency = Annotated[int | None, _limit("Calls under way at a time.")]
BytesPerSecond = Annotated[float | None, _limit("Request bytes a second.")]
CallsPerDay = Annotated[int | None, _limit("Calls a day that are answered.")]
CallsPerMonth = Annotated[int | None, _limit("Calls a month that are answered.")]
SecondsPerDay = Annotated[float | None, _limit("Seconds a day in model servers.")]
SecondsPerMonth = Annotated[float | None, _limit("Seconds a month in model servers.")]


@app.callback()
def _group() -> None:
    """The tenants of the database, and what each is granted.

    Gateways take a change within a second. Of a tenant that is in the policy file too, the file's word counts.
    """


@app.command(name="create")
def _create(
    *,
    name: Name,
    file: File = None,
    models: Models = None,
    allow: Allow = None,
    priority: Priority = None,
    certificates: Certificates = None,
    calls_per_second: CallsPerSecond = None,
    burst: Burst = None,
    concurrency: Concurrency = None,
    bytes_per_second: BytesPerSecond = None,
    calls_per_day: CallsPerDay = None,
    calls_per_month: CallsPerMonth = None,
    model_seconds_per_day: SecondsPerDay = None,
    model_seconds_per_month: SecondsPerMonth = None,
    database: Database = None,
    state_dir: StateDir = None,
) -> None:
    """Add a tenant. Without `--models` every model exists for it.

    `--file` takes all that a policy can say; options beside it win over the file.

    For example:

        headrace tenants create acme --calls-per-second 10 --calls-per-day 10000

        headrace tenants create acme --models simple --models 'text_*' --concurrency 4

        headrace tenants create acme --file acme.yaml
    """
    from headrace.store.tenants import AlreadyExistsError, create_tenant  # noqa: PLC0415  slow to import

    stated = _stated(
        models=models,
        allow=allow,
        priority=priority,
        certificates=certificates,
        limits={
            "calls_per_second": calls_per_second,
            "burst": burst,
            "concurrency": concurrency,
            "bytes_per_second": bytes_per_second,
        },
        quotas={
            "calls_per_day": calls_per_day,
            "calls_per_month": calls_per_month,
            "model_seconds_per_day": model_seconds_per_day,
            "model_seconds_per_month": model_seconds_per_month,
        },
    )
    grants = _merged({"models": ["*"]} if file is None else _read(file), stated)
    granted(name, grants)
    with opened(database, state_dir) as store, store.transaction() as connection:
        try:
            create_tenant(connection, name, grants, now=datetime.now(UTC))
        except AlreadyExistsError:
            fail(f"there is a tenant {name}: `headrace tenants change {name}` changes it", code=USAGE)
    typer.echo(f"tenant {name} is there; `headrace keys create {name}` makes it a key")


@app.command(name="change")
def _change(
    *,
    name: Name,
    file: File = None,
    models: Models = None,
    allow: Allow = None,
    priority: Priority = None,
    certificates: Certificates = None,
    calls_per_second: CallsPerSecond = None,
    burst: Burst = None,
    concurrency: Concurrency = None,
    bytes_per_second: BytesPerSecond = None,
    calls_per_day: CallsPerDay = None,
    calls_per_month: CallsPerMonth = None,
    model_seconds_per_day: SecondsPerDay = None,
    model_seconds_per_month: SecondsPerMonth = None,
    database: Database = None,
    state_dir: StateDir = None,
) -> None:
    """Change what a tenant is granted: what options name, or everything with `--file`.

    For example:

        headrace tenants change acme --calls-per-second 20

        headrace tenants show acme --json | jq .grants | headrace tenants change acme --file -
    """
    from headrace.store.tenants import change_tenant, tenant  # noqa: PLC0415  slow to import

    stated = _stated(
        models=models,
        allow=allow,
        priority=priority,
        certificates=certificates,
        limits={
            "calls_per_second": calls_per_second,
            "burst": burst,
            "concurrency": concurrency,
            "bytes_per_second": bytes_per_second,
        },
        quotas={
            "calls_per_day": calls_per_day,
            "calls_per_month": calls_per_month,
            "model_seconds_per_day": model_seconds_per_day,
            "model_seconds_per_month": model_seconds_per_month,
        },
    )
    if not stated and file is None:
        fail("nothing to change: name it by options, or give --file", code=USAGE)
    base = None if file is None else _read(file)
    with opened(database, state_dir) as store, store.transaction() as connection:
        known = tenant(connection, name)
        if known is None:
            fail(_unknown(name), code=USAGE)
        grants = _merged(known.grants if base is None else base, stated)
        granted(name, grants)
        change_tenant(connection, name, grants, now=datetime.now(UTC))
    typer.echo(f"tenant {name} has changed")


@app.command(name="list")
def _list(database: Database = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show every tenant of the database.

    For example:

        headrace tenants list

        headrace tenants list --json | jq -r '.[] | select(.disabled) | .name'
    """
    from headrace.store.tenants import all_tenants  # noqa: PLC0415  slow to import

    with opened(database, state_dir) as store, store.transaction() as connection:
        found = all_tenants(connection)
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in found], indent=1))
        return
    rows = [
        (
            each.name,
            "disabled" if each.disabled else "active",
            f"{each.changed_at:%Y-%m-%d %H:%M}",
            " ".join(map(str, _listed(each.grants.get("models")))),
        )
        for each in found
    ]
    typer.echo(table(("TENANT", "STATE", "CHANGED (UTC)", "MODELS"), rows))


@app.command(name="show")
def _show(name: Name, database: Database = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show what a tenant is granted, and its keys.

    For example:

        headrace tenants show acme
    """
    from headrace.store.keys import keys_of  # noqa: PLC0415  slow to import
    from headrace.store.tenants import tenant  # noqa: PLC0415

    with opened(database, state_dir) as store, store.transaction() as connection:
        known = tenant(connection, name)
        if known is None:
            fail(_unknown(name), code=USAGE)
        keys = [each.id for each in keys_of(connection, name)]
    if as_json:
        typer.echo(json.dumps({**_as_json(known), "keys": keys}, indent=1))
        return
    read = granted(name, known.grants, code=FAILED)
    rows = [
        ("state", "", "disabled" if known.disabled else "active"),
        ("models", "", " ".join(read.models)),
        ("allowed", "", " ".join(sorted(read.allow))),
        ("keys", "", " ".join(keys) or "none"),
        *limit_rows(read),
    ]
    typer.echo(table((name.upper() if name.islower() else name, "", ""), rows))


@app.command(name="disable")
def _disable(name: Name, database: Database = None, state_dir: StateDir = None) -> None:
    """Refuse a tenant everything, within a second. Nothing of it is forgotten.

    For example:

        headrace tenants disable acme
    """
    _switch(name, database, state_dir, disabled=True)


@app.command(name="enable")
def _enable(name: Name, database: Database = None, state_dir: StateDir = None) -> None:
    """Let a disabled tenant in again.

    For example:

        headrace tenants enable acme
    """
    _switch(name, database, state_dir, disabled=False)


def _switch(name: str, database: str | None, state_dir: Path | None, *, disabled: bool) -> None:
    from headrace.store.tenants import UnknownError, set_tenant_disabled  # noqa: PLC0415  slow to import

    with opened(database, state_dir) as store, store.transaction() as connection:
        try:
            set_tenant_disabled(connection, name, disabled, now=datetime.now(UTC))
        except UnknownError:
            fail(_unknown(name), code=USAGE)
    typer.echo(f"tenant {name} is {'disabled' if disabled else 'active'}")


def _unknown(name: str) -> str:
    return f"the database has no tenant {name}; those of a policy file are changed there"


def _stated(
    *,
    models: Sequence[str] | None,
    allow: Sequence[Class] | None,
    priority: Rank | None,
    certificates: Sequence[str] | None,
    limits: Mapping[str, object],
    quotas: Mapping[str, object],
) -> dict[str, object]:
    """What the options say, as a policy says it."""
    plain: dict[str, object] = {
        "models": list(models or ()),
        "allow": [each.value for each in allow or ()],
        "priority": "" if priority is None else priority.value,
        "certificates": list(certificates or ()),
        "limits": {name: value for name, value in limits.items() if value is not None},
        "quotas": {name: value for name, value in quotas.items() if value is not None},
    }
    return {name: value for name, value in plain.items() if value}


def _merged(base: Mapping[str, object], stated: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for name, value in stated.items():
        known = merged.get(name)
        merged[name] = {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _read(file: Path) -> dict[str, object]:
    from gateway.policy.document import PolicyError, read_grants  # noqa: PLC0415  slow to import

    try:
        return read_grants(sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8"))
    except (PolicyError, OSError, UnicodeDecodeError) as exc:
        fail(f"{file}: {exc}", code=USAGE)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else ()


def _as_json(tenant: "StoredTenant") -> dict[str, object]:
    return {
        "name": tenant.name,
        "disabled": tenant.disabled,
        "created_at": tenant.created_at.isoformat(),
        "changed_at": tenant.changed_at.isoformat(),
        "grants": dict(tenant.grants),
    }

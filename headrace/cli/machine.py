"""`headrace status`, `headrace doctor` and `headrace prepare`: this machine and the stack on it."""

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

import typer

from headrace.cli.common import FAILED, AsJson, StateDir, fail, resolved, running_stack
from headrace.cli.table import table
from headrace.local.paths import cache_dir
from headrace.local.state import ComponentRecord, Description


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="status")(_status)
    app.command(name="doctor")(_doctor)
    app.command(name="prepare")(_prepare)


def _status(state_dir: StateDir = None, as_json: AsJson = False) -> None:
    """Show each component of the running stack: its pid, ports, health and restarts.

    Health is asked now, over the network. The status is 1 where no stack runs or a component is not healthy.

    For example:

        headrace status

        headrace status --json | jq '.components[] | {name, healthy}'
    """
    stack = running_stack(state_dir)
    if stack is None:
        if as_json:
            typer.echo(json.dumps({"running": False, "state_dir": str(resolved(state_dir)), "components": []}))
            raise typer.Exit(FAILED)
        fail(f"no stack runs from {resolved(state_dir)}: start one with `headrace up`")
    healthy = asyncio.run(_ask_all(stack))
    components = [(component, healthy[component.name]) for component in stack.components]
    if as_json:
        typer.echo(json.dumps(_as_json(stack, components), indent=1))
    else:
        typer.echo(table(("COMPONENT", "PID", "HEALTH", "RESTARTS", "PORTS"), [_row(c, ok) for c, ok in components]))
    raise typer.Exit(0 if all(healthy.values()) else FAILED)


async def _ask_all(stack: Description) -> dict[str, bool]:
    answers = await asyncio.gather(*(component.probe.healthy() for component in stack.components))
    return {component.name: ok for component, ok in zip(stack.components, answers, strict=True)}


def _row(component: ComponentRecord, healthy: bool) -> tuple[str, ...]:
    health = "healthy" if healthy else component.state if component.state != "ready" else "no answer"
    ports = ", ".join(f"{name} {port}" for name, port in component.ports.items())
    return component.name, str(component.pid or "-"), health, str(component.restarts), ports


def _as_json(stack: Description, components: list[tuple[ComponentRecord, bool]]) -> dict[str, object]:
    return {
        "running": True,
        "ready": stack.ready,
        "pid": stack.pid,
        "state_dir": stack.state_dir,
        "endpoints": asdict(stack.endpoints),
        "components": [
            {
                "name": component.name,
                "pid": component.pid,
                "state": component.state,
                "healthy": healthy,
                "restarts": component.restarts,
                "ports": component.ports,
            }
            for component, healthy in components
        ],
    }


def _doctor(
    *,
    state_dir: StateDir = None,
    host: Annotated[str, typer.Option(help="The address to look for free ports on.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="As for `headrace up`.")] = 8001,
    http_port: Annotated[int, typer.Option(help="As for `headrace up`.")] = 8000,
    admin_port: Annotated[int, typer.Option(help="As for `headrace up`.")] = 8002,
) -> None:
    """Say what this machine lacks for `headrace up`, and how to get it.

    The status is 1 where something is missing that `headrace up` can't do without.

    For example:

        headrace doctor
    """
    from headrace.local.doctor import examine  # noqa: PLC0415  slow to import

    # The ports of a stack that runs from here are rightly taken.
    ports = () if running_stack(state_dir) else (grpc_port, http_port, admin_port)
    complete = True
    for finding in examine(state_dir=resolved(state_dir), cache=cache_dir(), ports=ports, host=host):
        complete = complete and (finding.ok or not finding.needed)
        sign = "ok" if finding.ok else "MISSING" if finding.needed else "-"
        typer.echo(f"{sign:<8} {finding.subject:<20} {finding.text}")
        if not finding.ok and finding.remedy:
            typer.echo(f"{'':<29} → {finding.remedy}")
    raise typer.Exit(0 if complete else FAILED)


def _prepare() -> None:
    """Fetch and prepare now what `headrace up` would need at its first start.

    Downloads Apache Kafka into the cache (43 MB) and prepares its quick start. For images, CI, and machines that go
    offline later; `headrace up` works without it.

    For example:

        headrace prepare
    """
    from headrace.local.broker import BrokerError, BrokerInstall  # noqa: PLC0415  slow to import
    from headrace.local.jars import JarsError, fetch_jars  # noqa: PLC0415
    from headrace.local.java import NoJavaError, find_java  # noqa: PLC0415
    from headrace.local.start_cache import StartCacheError, prepare_start_cache  # noqa: PLC0415

    try:
        install = BrokerInstall(
            java=find_java(),
            jars=fetch_jars(cache_dir(), lambda done, total: typer.echo(f"Apache Kafka: {done} of {total} files")),
        )
        if install.start_cache is not None and not install.start_cache.exists():
            typer.echo("preparing the broker's quick start (about 10 s)")
        prepare_start_cache(install)
    except (NoJavaError, JarsError, BrokerError, StartCacheError, OSError) as exc:
        fail(str(exc))
    typer.echo("prepared")

"""`headrace gateway`, `router`, `aggregator` and `config`: the processes as production starts them."""

import json
import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.common import USAGE, fail

if TYPE_CHECKING:
    from pydantic import BaseModel


class Process(StrEnum):
    """A process that has settings."""

    GATEWAY = "gateway"
    ROUTER = "router"
    AGGREGATOR = "aggregator"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(name="gateway")(_gateway)
    app.command(name="router")(_router)
    app.command(name="aggregator")(_aggregator)
    app.command(name="config")(_config)


def _gateway() -> None:
    """Run one gateway, with settings from the environment, as in production.

    Ends with status 0 after SIGTERM, once the calls that it holds are answered; with 2 where the settings are wrong.

    For example:

        HEADRACE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 … headrace gateway
    """
    _become(Process.GATEWAY)


def _router() -> None:
    """Run one router beside a Triton, with settings from the environment, as in production.

    Ends with status 0 after SIGTERM, once the calls that it runs are answered; with 2 where the settings are wrong.

    For example:

        HEADRACE_ROUTER__TRITON__ADDRESS=127.0.0.1:8001 … headrace router
    """
    _become(Process.ROUTER)


def _aggregator() -> None:
    """Run one aggregator, which sums usage into the database, with settings from the environment, as in production.

    Ends with status 0 after SIGTERM; with 2 where the settings are wrong, or the tables are of another version.

    For example:

        HEADRACE_DATABASE__URL=postgresql://headrace@db/headrace … headrace aggregator
    """
    _become(Process.AGGREGATOR)


def _become(process: Process) -> None:
    from headrace.runtime.lifecycle import NATIVE_ENVIRONMENT  # noqa: PLC0415  slow to import

    # In place: signals, exit status and memory are the process's own, and nothing stands in between. With -P a file
    # that happens to lie in this folder is never taken for the process.
    argv = [sys.executable, "-P", "-m", process.value]
    os.execve(sys.executable, argv, {**NATIVE_ENVIRONMENT, **os.environ})  # noqa: S606  no shell on purpose


def _config(
    process: Annotated[Process, typer.Argument(help="Whose settings.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the effective settings of a process, from the environment of this shell, and check them.

    Secrets are never settings: only the names of the files that hold them are shown. Wrong settings are named, all at
    once, and the status is 2.

    For example:

        headrace config gateway

        headrace config router --json | jq .router.window
    """
    from aggregator.settings import AggregatorSettings  # noqa: PLC0415  slow to import
    from gateway.settings import GatewaySettings  # noqa: PLC0415
    from headrace.runtime.settings import ProcessSettings, SettingsError  # noqa: PLC0415
    from router.settings import RouterSettings  # noqa: PLC0415

    kinds: dict[Process, type[ProcessSettings]] = {
        Process.GATEWAY: GatewaySettings,
        Process.ROUTER: RouterSettings,
        Process.AGGREGATOR: AggregatorSettings,
    }
    try:
        settings = kinds[process].load()
    except SettingsError as exc:
        fail(str(exc).replace("\n", "\nheadrace: "), code=USAGE)
    if as_json:
        typer.echo(json.dumps(settings.model_dump(mode="json"), indent=1))
        return
    for line in _lines(settings, "HEADRACE_"):
        typer.echo(line)


def _lines(section: "BaseModel", prefix: str) -> list[str]:
    """As environment variables, so that what is shown can be set."""
    from pydantic import BaseModel  # noqa: PLC0415  slow to import

    lines = []
    plain = section.model_dump(mode="json")
    for name, value in section:
        full = f"{prefix}{name.upper()}"
        told = plain[name]
        if isinstance(value, BaseModel):
            lines += _lines(value, f"{full}__")
        elif isinstance(value, dict) and value and all(isinstance(each, BaseModel) for each in value.values()):
            for key, each in value.items():
                lines += _lines(each, f"{full}__{key.upper()}__")
        elif value is None:
            lines.append(f"# {full}=")
        else:
            lines.append(f"{full}={told if isinstance(told, str) else json.dumps(told)}")
    return lines

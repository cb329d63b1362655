"""`headrace up`."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.common import FAILED, USAGE, StateDir, fail, resolved
from headrace.cli.progress import JsonLines, TextLines
from headrace.local.options import EMBEDDED, UpOptions, UsageError
from headrace.local.state import StateError
from headrace.local.supervisor import ComponentFailedError
from headrace.local.tenants import KEYS, POLICY
from headrace.runtime.settings import SettingsError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="up")(_up)


def _up(
    *,
    grpc_port: Annotated[int, typer.Option(help="Where clients call: the Open Inference Protocol over gRPC.")] = 8001,
    http_port: Annotated[
        int, typer.Option(help="The same over REST, by way of Envoy, in front of all gateways.")
    ] = 8000,
    admin_port: Annotated[int, typer.Option(help="/livez, /readyz and /metrics of the gateway, over HTTP.")] = 8002,
    host: Annotated[
        str, typer.Option(help="The address that the gateway listens on; all else stays on loopback.")
    ] = "127.0.0.1",
    model_repository: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Triton models to serve. [default: those that come with Headrace]", show_default=False
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The development key (admin role). [default: made once and kept]", show_default=False
        ),
    ] = None,
    replicas: Annotated[int, typer.Option(metavar="N", help="Pairs of Triton and router.")] = 1,
    gateways: Annotated[int, typer.Option(metavar="N", help="Gateways; the first one has the ports named here.")] = 1,
    triton: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Use a Triton that runs (its gRPC port) instead of starting one. Repeatable.",
            show_default=False,
        ),
    ] = None,
    broker: Annotated[
        str,
        typer.Option(
            metavar="embedded|HOST:PORT",
            help="`embedded` starts Apache Kafka here. Stacks on one broker share the pool `default`, and with it each "
            "model's partitions; HEADRACE_POOL__NAME in the environment gives this one a pool of its own. They share "
            "the topic of usage too: stacks with databases of their own each count all of it.",
        ),
    ] = EMBEDDED,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A Redis or Valkey that runs: the gateways then count limits together, instead of each by itself.",
            show_default=False,
        ),
    ] = None,
    database: Annotated[
        str,
        typer.Option(
            metavar="embedded|URL",
            help="Tenants, keys and usage: `embedded` keeps them in a file in the state folder, a PostgreSQL's URL "
            "attaches that one, and brings its tables up to date. Its password is in the file that "
            "HEADRACE_DATABASE__PASSWORD_FILE names. HEADRACE_DATABASE__URL is not read here.",
        ),
    ] = EMBEDDED,
    state_dir: StateDir = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help='Print one JSON object a line; the one with `"ready": true` names every endpoint.'),
    ] = False,
) -> None:
    """Run the whole system on this machine: Kafka, Triton, router, gateway and Envoy.

    What each tenant may call is in `tenants.yaml`, their keys in `keys.toml`, both in the state folder;
    `headrace tenants` and `headrace keys` make more of them in the database, without a file.

    Everything is a child process, restarted when it dies. Ctrl-C (or SIGTERM) stops all of it, in order; a second one
    hurries. No process is left behind, also not when `headrace up` itself is killed.

    For example:

        headrace up

        headrace up --grpc-port 9001 --admin-port 9002 --api-key my-key

        headrace up --replicas 2 --gateways 2

        headrace up --gateways 3 --redis 127.0.0.1:6379

        headrace up --database postgresql://headrace@127.0.0.1:5432/headrace

        headrace up --triton 127.0.0.1:8101

        headrace up --json | jq 'select(.ready)'
    """
    from headrace.local import stack  # noqa: PLC0415  slow to import, and `--help` must be quick

    tell: stack.Tell = JsonLines() if as_json else TextLines()
    try:
        options = UpOptions(
            state_dir=resolved(state_dir),
            host=host,
            grpc_port=grpc_port,
            http_port=http_port,
            admin_port=admin_port,
            model_repository=model_repository.expanduser().absolute() if model_repository else None,
            api_key=api_key,
            replicas=replicas,
            gateways=gateways,
            triton=tuple(triton or ()),
            broker=broker,
            redis=redis,
            database=database,
        )
        _check_files(options.state_dir)
        stack.up(options, tell)
    except (UsageError, StateError) as exc:
        fail(str(exc), code=USAGE)
    except ComponentFailedError as exc:
        fail(str(exc), code=FAILED)


def _check_files(state_dir: Path) -> None:
    """Tell a mistake in the tenants and keys of an earlier start before anything is started. Raises UsageError."""
    from gateway.identity import KeyFile  # noqa: PLC0415  slow to import
    from gateway.policy.document import load_policy  # noqa: PLC0415

    for name, read in ((POLICY, load_policy), (KEYS, KeyFile)):
        path = state_dir / name
        try:
            if path.exists():
                read(path)
        except OSError as exc:
            raise UsageError(f"{path}: cannot be read: {exc.strerror}") from None
        except SettingsError as exc:
            raise UsageError(str(exc)) from None

"""`headrace top`: models, tenants and processes, live."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.common import FAILED, USAGE, StateDir, fail, running_stack

if TYPE_CHECKING:  # slow to import
    import aiohttp

    from headrace.cli.board import Board
    from headrace.cli.rates import Kind, Labels, Look, Series, Watched

_SPAN_SECONDS = 5.0
"""What rates and quantiles are of: shorter, and a call now and then is hard to see."""
_MOST_BYTES = 64 << 20
_PIPE_WIDTH = 1000
_OK = 200

Addresses = list[tuple["Kind", str]]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="top")(_top)


def _top(
    *,
    gateway_admin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A gateway's admin port. Can be repeated. [default: those of the running stack]",
            show_default=False,
        ),
    ] = None,
    router_admin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A router's admin port. Can be repeated. [default: those of the running stack]",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="How often to look.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print what is found, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object, or one a line.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Watch models, tenants, gateways and routers, as their /metrics tell. `q` or Ctrl-C ends it.

    Rates and quantiles are those of the last five seconds; with --once, of one interval. ERR/S are calls that were
    lost, expired or failed, here or in the model server; refusals are apart, and count as calls too. WAIT50 and WAIT99
    are how long calls waited for a router, QUEUE is what waits now, RUN is what runs of what may run at once. PEERS of
    a gateway are routers that take its calls, those of a router the gateways that it is attached to. What does not
    answer is shown as away. With --once the status is 1 where nothing answers.

    For example:

        headrace top

        headrace top --once --json | jq '.models[] | {name, calls_per_second, p99_seconds}'

        headrace top --gateway-admin gateway-0:8002 --gateway-admin gateway-1:8002 --router-admin router-0:8004
    """
    addresses = _addresses(gateway_admin or [], router_admin or [], state_dir)
    if once:
        board = asyncio.run(_after(addresses, interval))
        typer.echo(_object(board, indent=1) if as_json else _text(board, width=_PIPE_WIDTH))
        raise typer.Exit(0 if board.up else FAILED)
    with suppress(KeyboardInterrupt):  # how one leaves a view
        asyncio.run(_watch(addresses, interval, as_json=as_json))


def _addresses(gateways: list[str], routers: list[str], state_dir: Path | None) -> Addresses:
    for option, given in (("--gateway-admin", gateways), ("--router-admin", routers)):
        for address in given:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or "/" in host:
                fail(f"{option} {address}: expected HOST:PORT", code=USAGE)
    if not gateways and not routers:
        stack = running_stack(state_dir)
        if stack is None:
            fail(
                "no stack runs here: start one with `headrace up`, or name processes with --gateway-admin and"
                " --router-admin"
            )
        gateways, routers = stack.endpoints.admin, stack.endpoints.router_admin
    return [*(("gateway", each) for each in gateways), *(("router", each) for each in routers)]


async def _after(addresses: Addresses, interval: float) -> "Board":
    """What is seen in one interval."""
    from headrace.cli.board import board  # noqa: PLC0415  slow to import

    async with _looking(addresses, interval, span=interval) as (look, watched):
        await look()
        await asyncio.sleep(interval)  # what there is to see takes time
        await look()
    return board(watched)


async def _watch(addresses: Addresses, interval: float, *, as_json: bool) -> None:
    """Look again and again, until `q`."""
    from headrace.cli.board import board  # noqa: PLC0415  slow to import

    span = max(_SPAN_SECONDS, interval)
    async with _looking(addresses, interval, span=span) as (look, watched), _shown(as_json=as_json) as (show, quitted):
        due = time.monotonic()
        while not quitted.is_set():
            await look()
            show(board(watched))
            due = max(due + interval, time.monotonic())
            try:
                async with asyncio.timeout(due - time.monotonic()):
                    await quitted.wait()
            except TimeoutError:
                continue


@asynccontextmanager
async def _looking(
    addresses: Addresses, interval: float, *, span: float
) -> "AsyncIterator[tuple[Callable[[], asyncio.Future[list[None]]], list[Watched]]]":
    """What looks at every process at once, and what it has seen of each."""
    import aiohttp  # noqa: PLC0415  slow to import

    from headrace.cli.rates import Watched  # noqa: PLC0415  the same

    watched = [Watched(kind, address, span=span) for kind, address in addresses]
    # One that does not answer must not hold up what is seen of the others.
    patience = aiohttp.ClientTimeout(total=min(max(interval, 0.5), 5.0))
    async with aiohttp.ClientSession(timeout=patience) as session:

        async def look(each: Watched) -> None:
            each.took(await _look(session, each.address))

        yield (lambda: asyncio.gather(*map(look, watched))), watched


class _NoMetricsError(Exception):
    """What answers is no process of Headrace; the text says how one sees."""


async def _look(session: "aiohttp.ClientSession", address: str) -> "Look":
    import aiohttp  # noqa: PLC0415  slow to import

    from headrace.cli.rates import Look  # noqa: PLC0415  the same

    try:
        found, metrics = await _get(session, f"http://{address}/metrics")
        at = time.monotonic()
        status, state = await _get(session, f"http://{address}/readyz")
        series = _series(found, metrics)
    except TimeoutError:
        trouble = "no answer in time"
    except aiohttp.ClientConnectorError as exc:
        trouble = _why(exc.os_error)
    except (aiohttp.ClientError, OSError):
        trouble = "it broke off, or speaks no HTTP there"
    except _NoMetricsError as exc:
        trouble = str(exc)
    else:
        return Look(at=at, ready=status == _OK, state=" ".join(state.split())[:200], series=series)
    return Look(at=time.monotonic(), trouble=trouble)


def _series(status: int, text: str) -> "Series":
    """The numbers, by metric and labels. Raises _NoMetricsError."""
    from headrace.runtime.scraped import samples  # noqa: PLC0415  slow to import

    if status != _OK:
        raise _NoMetricsError(f"HTTP status {status} at /metrics")
    series: dict[str, dict[Labels, float]] = {}
    try:
        for sample in samples(text):
            series.setdefault(sample.name, {})[sample.labels] = sample.value
    except ValueError:
        raise _NoMetricsError("what it gives at /metrics are none") from None
    if not any(name.startswith("headrace_") for name in series):
        raise _NoMetricsError("not a process of Headrace")
    return series


def _why(error: OSError) -> str:
    # A name that nobody knows has a number below zero, which is no errno.
    known = error.errno if error.errno is not None and error.errno > 0 else None
    return (error.strerror or "no connection" if known is None else os.strerror(known)).lower()


async def _get(session: "aiohttp.ClientSession", url: str) -> tuple[int, str]:
    """Status and text."""
    async with session.get(url, allow_redirects=False) as response:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MOST_BYTES:
                raise _NoMetricsError(f"more than {_MOST_BYTES >> 20} MiB at /metrics")
        return response.status, body.decode("utf-8", "replace")


@asynccontextmanager
async def _shown(*, as_json: bool) -> "AsyncIterator[tuple[Callable[[Board], None], asyncio.Event]]":
    """What shows a board, and what is set when the one who watches has had enough."""
    quitted = asyncio.Event()
    if as_json:
        yield (lambda board: typer.echo(_object(board))), quitted
    elif not sys.stdout.isatty():
        yield (lambda board: typer.echo(_text(board, width=_PIPE_WIDTH) + "\n")), quitted
    else:
        from headrace.cli.live import screen  # noqa: PLC0415  slow to import

        with screen(quitted.set) as show:
            yield show, quitted


def _text(board: "Board", *, width: int) -> str:
    from headrace.cli.screen import lines  # noqa: PLC0415  slow to import

    return "\n".join(lines(board, at=datetime.now(UTC).astimezone(), width=width))


def _object(board: "Board", *, indent: int | None = None) -> str:
    told = {"at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"), **asdict(board)}
    return json.dumps(told, indent=indent)

"""A board as lines of text, as wide and as high as there is room."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from headrace.cli.board import Board, ModelRow, ProcessRow, TenantRow

NAME_WIDTH = 8
"""No name is cut shorter."""
_LEAST_ROWS = 6  # of models and tenants, before there are any of processes
_DASH = "-"
_Row = TypeVar("_Row", ModelRow, TenantRow)

_MODELS = ("MODEL", "READY", "CALLS/S", "ERR/S", "P50", "P99", "WAIT50", "WAIT99", "QUEUE", "OLDEST", "RUN")
_TENANTS = ("TENANT", "CALLS/S", "REFUSED/S", "ERR/S", "RATE LEFT", "QUOTA LEFT")
_PROCESSES = ("PROCESS", "CPU", "MEMORY", "CALLS", "MODELS", "PEERS", "STATE")


def lines(board: Board, *, at: datetime, width: int, height: int | None = None) -> list[str]:
    """The board; no line is wider than `width`. Where `height` is too little, the busiest models and tenants stay."""
    head = _head(board, at)
    processes = _table(
        _PROCESSES, [_process(each) for each in (*board.gateways, *board.routers)], width, last_is_text=True
    )
    # An empty line and the names of columns stand before each of the two tables, and an empty line before the third.
    room = None if height is None else max(height - len(head) - len(processes) - 5, _LEAST_ROWS)
    few = None if room is None else max(room // 3, room - len(board.models))
    tenants, more_tenants = _busiest(board.tenants, few)
    left = None if room is None else room - len(tenants) - len(more_tenants)
    models, more_models = _busiest(board.models, left)
    tables = (
        [*_table(_MODELS, [_model(each, len(board.routers)) for each in models], width), *more_models],
        [*_table(_TENANTS, [_tenant(each) for each in tenants], width, last_is_text=True), *more_tenants],
        processes,
    )
    shown = [*head, *(line for table in tables if table for line in ("", *table))]
    return [_fitted(line, width) for line in shown[:height]]


def _head(board: Board, at: datetime) -> list[str]:
    totals = board.totals
    away = [each for each in (*board.gateways, *board.routers) if not each.up]
    facts = {
        "calls/s": rate(totals.calls_per_second),
        "errors/s": rate(totals.errors_per_second),
        "refused/s": rate(totals.refused_per_second),
        "in flight": str(totals.in_flight),
        "p50": duration(totals.p50_seconds),
        "p99": duration(totals.p99_seconds),
    }
    over = f"over {board.seconds:.1f} s" if board.seconds else "no rates yet"
    there = f"{_many(len(board.gateways), 'gateway')}, {_many(len(board.routers), 'router')}"
    return [
        f"headrace top  {at:%H:%M:%S}  {over}  {there}" + (f", {len(away)} AWAY" if away else ""),
        "  ".join(f"{name} {fact}" for name, fact in facts.items()),
    ]


def _busiest(rows: Sequence[_Row], room: int | None) -> tuple[list[_Row], list[str]]:
    """As many as there is room for, and a line for the others. By name while all fit: a view that holds still."""
    if room is None or len(rows) <= room:
        return list(rows), []
    kept = sorted(rows, key=lambda row: (-(row.calls_per_second or 0), -_queue(row), row.name))[: max(room - 1, 0)]
    return kept, [f"… {len(rows) - len(kept)} more, less busy"]


def _queue(row: ModelRow | TenantRow) -> int:
    return row.queue_records or 0 if isinstance(row, ModelRow) else 0


def _model(row: ModelRow, routers: int) -> list[str]:
    run = _DASH if row.running is None else f"{row.running}/{row.window}"
    return [
        row.name,
        _DASH if row.routers is None else f"{row.routers}/{routers}",
        rate(row.calls_per_second),
        rate(row.errors_per_second),
        duration(row.p50_seconds),
        duration(row.p99_seconds),
        duration(row.wait_p50_seconds),
        duration(row.wait_p99_seconds),
        count(row.queue_records),
        duration(row.oldest_wait_seconds),
        run,
    ]


def _tenant(row: TenantRow) -> list[str]:
    left = row.quota_left_ratio
    return [
        row.name,
        rate(row.calls_per_second),
        rate(row.refused_per_second),
        rate(row.errors_per_second),
        _DASH if row.rate_left_calls is None else f"{row.rate_left_calls:.0f}",
        _DASH if left is None else f"{math.floor(left * 100)}% {row.quota}",
    ]


def _process(row: ProcessRow) -> list[str]:
    return [
        f"{row.kind} {row.address}",
        _DASH if row.cpu_ratio is None else f"{row.cpu_ratio * 100:.0f}%",
        size(row.memory_bytes),
        count(row.calls),
        count(row.models),
        count(row.peers),
        row.state if row.up else f"AWAY: {row.state}",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int, *, last_is_text: bool = False) -> list[str]:
    """Columns under their head, numbers to the right. The first one gives way where there is too little room."""
    if not rows:
        return []
    every = [head, *rows]
    widths = [max(len(row[column]) for row in every) for column in range(len(head))]
    gap = 2 if sum(widths) + 2 * (len(widths) - 1) <= width else 1
    # A last column of text may run over the edge, as names may not: they tell rows apart.
    over = sum(widths[:-1] if last_is_text else widths) + gap * (len(widths) - 1) - width
    widths[0] = max(widths[0] - max(over, 0), NAME_WIDTH)
    text = {0, len(head) - 1} if last_is_text else {0}

    def line(row: Sequence[str]) -> str:
        return (
            (" " * gap)
            .join(
                _fitted(cell, widths[0]).ljust(widths[0])
                if column == 0
                else cell.ljust(widths[column])
                if column in text
                else cell.rjust(widths[column])
                for column, cell in enumerate(row)
            )
            .rstrip()
        )

    return [line(row) for row in every]


def _fitted(text: str, width: int) -> str:
    # What a process or a name says must not move the cursor.
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _many(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


_Steps = Sequence[tuple[float, float, str]]
"""From which value on, what is 1, and its unit."""

_RATES: _Steps = ((0, 1, ""), (10_000, 1e3, "k"), (10_000_000, 1e6, "M"))
_COUNTS: _Steps = ((0, 1, ""), (100_000, 1e3, "k"), (10_000_000, 1e6, "M"))
_DURATIONS: _Steps = ((0, 1e-3, "ms"), (0.9995, 1, "s"), (100, 60, "m"), (6000, 3600, "h"))
_SIZES: _Steps = ((0, 1, "B"), (1000, 1 << 10, "K"), (1000 << 10, 1 << 20, "M"), (1000 << 20, 1 << 30, "G"))


def rate(value: float | None) -> str:
    """Calls a second, in five characters."""
    return _scaled(value, _RATES)


def duration(seconds: float | None) -> str:
    """A length of time, in five characters; `<0.1ms` has six."""
    return _scaled(seconds, _DURATIONS)


def size(value: float | None) -> str:
    """Bytes, in five characters."""
    return _scaled(value, _SIZES)


def count(value: int | None) -> str:
    """A number of things, in five characters."""
    return str(value) if value is not None and value < _COUNTS[1][0] else _scaled(value, _COUNTS)


def _scaled(value: float | None, steps: _Steps) -> str:
    if not value:
        return _DASH if value is None else "0"
    _, one, unit = next(step for step in reversed(steps) if value >= step[0])
    scaled = value / one
    if scaled < 0.05:  # noqa: PLR2004  what would be shown as nothing
        return f"<0.1{unit}"
    return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"  # noqa: PLR2004  two digits or more

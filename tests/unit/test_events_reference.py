"""`docs/reference/events.md`, compared with the log lines in the source: each event, its level and its fields."""

import ast
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from headrace.runtime.logs import JsonLines, Traced

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "events.md"
PROCESSES = ("gateway", "router", "aggregator")
PACKAGES = (*PROCESSES, "headrace")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOGGERS = {"log", "_log"}
OF_EVERY_LINE = {"time", "level", "process", "logger", "event", "message"}
OF_A_CALL = set(Traced.__slots__)
"""Of lines that are written while a traced call is handled: no line of the source names them."""


@dataclass(frozen=True)
class Line:
    """One log line of the source."""

    where: str
    event: str | None
    """None where it has none, or no literal."""
    levels: frozenset[str]
    fields: frozenset[str]
    processes: frozenset[str]
    """Those that may write it: whose package has it, or whose package imports what has it."""


@dataclass(frozen=True)
class Row:
    """One row of the page."""

    event: str
    levels: frozenset[str]
    processes: frozenset[str]
    fields: frozenset[str]
    meaning: str


def test_every_line_has_an_event_that_is_a_literal() -> None:
    """So that a search finds it, and this page can be right."""
    assert [line.where for line in lines() if line.event is None] == []


def test_every_logger_has_a_name_by_which_its_lines_are_found() -> None:
    made = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("logging.getLogger(__name__)")
        if {ast.unparse(target) for target in node.targets} - LOGGERS
    ]

    assert made == []
    assert len(lines()) > 80


def test_every_line_of_the_source_is_on_the_page() -> None:
    lacking = [
        f"{line.where}: {line.event} of {sorted(line.processes)}"
        for line in lines()
        if not any(written_by(row, line) for row in rows())
    ]

    assert lacking == []


def test_every_row_of_the_page_is_as_the_source_has_it() -> None:
    """Nothing that no line writes, and of each event the levels and fields of all its lines together."""
    for row in rows():
        of_it = [line for line in lines() if written_by(row, line)]

        assert {process for line in of_it for process in line.processes} >= row.processes, row
        assert {level for line in of_it for level in line.levels} == row.levels, row
        assert {field for line in of_it for field in line.fields} == row.fields, row


def test_the_page_is_sorted_and_says_what_to_do() -> None:
    names = [row.event for row in rows()]

    assert names == sorted(names)
    assert [row.event for row in rows() if len(row.meaning) < 20] == []
    assert len({(row.event, process) for row in rows() for process in row.processes}) == sum(
        len(row.processes) for row in rows()
    )


def test_names_are_fit_for_any_index() -> None:
    """No dots, which Elasticsearch takes for objects, and nothing that is masked or that every line has."""
    masked = {"authorization", "x-api-key", "x_api_key", "api_key", "key", "password", "secret", "token"}
    names = {name for line in lines() for name in (line.event or "", *line.fields)}

    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert {field for line in lines() for field in line.fields} & (masked | OF_EVERY_LINE | OF_A_CALL) == set()


def test_the_page_has_the_fields_of_every_line() -> None:
    told = {cell.strip("`") for cell, *_ in table("field")}

    record = logging.makeLogRecord({"msg": "leaving", "name": "gateway.app", "event": "gateway_leaving"})
    made = json.loads(JsonLines("gateway").format(record))
    assert told == OF_EVERY_LINE | OF_A_CALL | {"exception"}
    assert made.keys() == OF_EVERY_LINE


def test_the_line_that_the_page_shows_is_one() -> None:
    (shown,) = [json.loads(block) for block in blocks("json") if '"event"' in block]

    row = next(row for row in rows() if row.event == shown["event"] and shown["process"] in row.processes)
    assert shown["level"] in row.levels
    assert shown.keys() >= OF_EVERY_LINE
    assert shown.keys() - OF_EVERY_LINE - OF_A_CALL <= row.fields


@pytest.mark.parametrize("language", ["logql", "json"])
def test_examples_name_fields_and_events_that_exist(language: str) -> None:
    known = OF_EVERY_LINE | OF_A_CALL | {"exception"} | {field for row in rows() for field in row.fields}
    text = "\n".join(blocks(language))

    fields = {
        "logql": r"\b(?:by \(([a-z_, ]+)\)|unwrap ([a-z_]+)|\|\s*([a-z_]+)\s*(?:=|!=|=~|>=?)\s*[\"0-9])",
        "json": r"\bheadrace\.([a-z_]+)",
    }[language]
    named = {name.strip() for found in re.findall(fields, text) for group in found_groups(found) for name in group}
    events = set(re.findall(r"event\s*=~?\s*\"([a-z_|]+)\"", text))

    assert named
    assert named <= known
    assert {event for joined in events for event in joined.split("|")} <= {row.event for row in rows()}


def test_what_collectors_are_told_has_the_form_that_they_read() -> None:
    (collector,) = [yaml.safe_load(block) for block in blocks("yaml")]
    (pipeline,) = [json.loads(block) for block in blocks("json") if '"processors"' in block]

    (given,) = collector["filebeat.inputs"]
    assert {"ndjson": {"target": "headrace", "add_error_key": True}} in given["parsers"]
    renamed = [step["rename"]["field"].removeprefix("headrace.") for step in pipeline["processors"] if "rename" in step]
    assert set(renamed) == (OF_EVERY_LINE | OF_A_CALL | {"exception"}) - {"time", "message"}


# What the page says.


@cache
def rows() -> tuple[Row, ...]:
    """The table of events."""
    return tuple(
        Row(
            event.strip("`"),
            frozenset(levels.split(", ")),
            frozenset(processes.split(", ")),
            frozenset(re.findall(r"`([^`]+)`", fields)),
            meaning,
        )
        for event, levels, processes, fields, meaning in table("event")
    )


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first heading is `first`."""
    text = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(text) if line.startswith(f"| {first} |"))
    found = takewhile(lambda line: line.startswith("|"), text[start + 2 :])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def blocks(language: str) -> list[str]:
    """The page's examples in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def found_groups(found: str | tuple[str, ...]) -> Iterator[list[str]]:
    """What one match named."""
    for group in (found,) if isinstance(found, str) else found:
        if group:
            yield group.split(",")


def written_by(row: Row, line: Line) -> bool:
    """Whether the row speaks of the line."""
    return row.event == line.event and bool(row.processes & line.processes)


# What the source says.


@cache
def lines() -> tuple[Line, ...]:
    """Every call of a logger in the source."""
    return tuple(line for path in sources() for line in lines_of(path))


def lines_of(path: Path) -> Iterator[Line]:
    """Those of one module."""
    relative = path.relative_to(ROOT)
    processes = (
        frozenset({relative.parts[0]})
        if relative.parts[0] in PROCESSES
        else frozenset(process for process in PROCESSES if path in loaded_by(process))
    )
    for scope in scopes(tree(path)):
        for call in own_nodes(scope):
            if not isinstance(call, ast.Call) or not is_logging(call):
                continue
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            extra = resolved(given.get("extra"), scope, call.lineno)
            assert isinstance(call.func, ast.Attribute)
            fields = keys_of(extra, scope) if isinstance(extra, ast.Dict) else set()
            if call.func.attr == "exception" or "exc_info" in given:
                fields.add("exception")
            yield Line(
                f"{relative}:{call.lineno}",
                event_of(extra),
                frozenset(levels_of(call, scope)),
                frozenset(fields - {"event"}),
                processes,
            )


def is_logging(call: ast.Call) -> bool:
    """Whether it writes a line."""
    return (
        isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in LOGGERS
        and call.func.attr in LEVELS | {"log"}
    )


def levels_of(call: ast.Call, scope: ast.AST) -> set[str]:
    """The levels that it may have; those that `log` gets are spelled where it is called, or just before."""
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr != "log":
        return {"ERROR" if call.func.attr == "exception" else call.func.attr.upper()}
    level = resolved(call.args[0], scope, call.lineno)
    assert level is not None
    return {
        node.attr
        for node in ast.walk(level)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "logging"
    }


def event_of(extra: ast.AST | None) -> str | None:
    """The event's name, where it is a literal."""
    if isinstance(extra, ast.Dict):
        for key, value in zip(extra.keys, extra.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "event" and isinstance(value, ast.Constant):
                return str(value.value)
    return None


def keys_of(made: ast.AST, scope: ast.AST, seen: frozenset[str] = frozenset()) -> set[str]:
    """The names in a dict, and in those that are spread into it as far as they are made in the same function."""
    found: set[str] = set()
    for node in ast.walk(made):
        if isinstance(node, ast.Dict):
            found |= {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
    spread = (
        [value for key, value in zip(made.keys, made.values, strict=True) if key is None]
        if isinstance(made, ast.Dict)
        else [made]
    )
    for value in spread:
        for node in ast.walk(value):
            if isinstance(node, ast.Name) and node.id not in seen:
                for assigned in assignments(node.id, scope):
                    found |= keys_of(assigned.value, scope, seen | {node.id}) if assigned.value else set()
    return found


def resolved(value: ast.AST | None, scope: ast.AST, before: int) -> ast.AST | None:
    """The value, or what was assigned last to its name."""
    if not isinstance(value, ast.Name):
        return value
    made = [each for each in assignments(value.id, scope) if each.lineno <= before]
    return made[-1].value if made else None


def assignments(name: str, scope: ast.AST) -> list[ast.Assign | ast.AnnAssign]:
    """Where a function gives the name a value, in order."""
    found = [
        node
        for node in own_nodes(scope)
        if (isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets))
        or (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name)
    ]
    return sorted(found, key=lambda node: node.lineno)


def scopes(module: ast.Module) -> Iterator[ast.AST]:
    """The module and its functions."""
    yield module
    yield from (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """What is in a scope and in no function inside."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from own_nodes(child)


def sources() -> list[Path]:
    """Our modules."""
    found = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [path for path in found if "_pb2" not in path.name]


@cache
def tree(path: Path) -> ast.Module:
    """A module, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def loaded_by(process: str) -> frozenset[Path]:
    """Every module of ours that a process imports, however far away."""
    seen: set[Path] = set()
    waiting = [ROOT / process / "__main__.py"]
    while waiting:
        path = waiting.pop()
        if path not in seen and path.exists():
            seen.add(path)
            waiting += imported_by(path)
    return frozenset(seen)


def imported_by(path: Path) -> Iterator[Path]:
    """The files that a module's imports may name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                place = ROOT.joinpath(*name.split("."))
                yield place.with_suffix(".py")
                yield place / "__init__.py"

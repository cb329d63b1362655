"""The log of a process: one line per event on stderr, for machines (`json`) or for people (`text`).

Lines are prose with a stable name beside it: `log.info("call refused", extra={"event": "call_refused", "reason": …})`.
The name in `event` and the fields are an interface, the prose is not. Write names as literals, so that a search finds
them; `docs/reference/events.md` lists every one. Payloads and secrets don't belong here; as a last guard, bytes are
written as their length only, fields that are named as secrets are masked, and nothing makes a line longer than what
collectors take.
"""

import json
import logging
import math
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from headrace.runtime.settings import LogSettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# What an agent on a node passes on in one piece; a traceback's end says more than its beginning.
_MOST_CHARACTERS, _MOST_OF_A_TRACEBACK, _MOST_ITEMS, _MOST_LEVELS = 4096, 16384, 64, 4
_NUMBER_BITS = 64  # a wider number fits no column of an index, and some parsers refuse the line for it
_SECRET_NAMES = frozenset({"authorization", "x-api-key", "x_api_key", "api_key", "key", "password", "secret", "token"})


class Traced:
    """The trace of a call, for the lines that are logged in its task. Empty when the call's span has ended."""

    __slots__ = ("trace_id",)

    def __init__(self, trace_id: str) -> None:
        self.trace_id = trace_id


TRACED: ContextVar[Traced | None] = ContextVar("traced", default=None)
"""What a traced call says of itself. Timers that it started may outlive it, so its end empties what it said."""


def configure(settings: LogSettings, *, process: Literal["gateway", "router", "aggregator", "headrace"]) -> None:
    """Send all logging of this process to stderr as the settings say. Replaces what was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(process) if settings.format == "json" else TextLines())
    # What libraries have to say below a warning is for their authors.
    level = max(logging.WARNING, logging.getLevelName(settings.level))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for ours in ("gateway", "router", "aggregator", "headrace"):
        logging.getLogger(ours).setLevel(settings.level)
    logging.captureWarnings(capture=True)


class JsonLines(logging.Formatter):
    """One JSON object a line: the fields, and `time` (UTC), `level`, `process`, `logger`, `event`, `message`.

    These names are ours: a field of the same name is not written. Whatever fields hold, a line is one line, valid JSON
    in UTF-8, and bounded: long texts are cut, numbers that JSON does not have are null.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, whatever its fields hold."""
        fields = _fields(record)
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "event": fields.pop("event", None),
            "message": _message(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _cut_in_front(self.formatException(record.exc_info))
        told = {name: _plain(value) for name, value in fields.items()}
        # Half of a surrogate pair, as in what was read from a file's name, has no place in UTF-8.
        text = json.dumps({**told, **line}, ensure_ascii=False).encode("utf-8", "replace").decode("utf-8")
        return text if text.isprintable() else "".join(map(_escaped, text))


class TextLines(logging.Formatter):
    """A line for people: time, level, prose, and the fields as `name=value`. Tracebacks follow."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        fields = _fields(record)
        event = fields.pop("event", None)
        shown = "".join(f" {name}={_shown(_plain(value))}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname:7} {_message(record)}{shown}" + (f" [{event}]" if event else "")
        # A caller's text must not be able to write a line of its own, nor to move a terminal's cursor.
        text = line if line.isprintable() else "".join(map(_printable, line))
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _printable(each: str) -> str:
    return each if each.isprintable() else each.encode("unicode_escape").decode()


def _escaped(each: str) -> str:
    """As JSON has it: some characters end a line for some readers, and are none of those that JSON escapes."""
    return each if each.isprintable() else json.dumps(each)[1:-1]


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:  # Any: whatever callers log
    fields = {
        name: "***" if name.lower() in _SECRET_NAMES else value
        for name, value in vars(record).items()
        if name not in _STANDARD
    }
    traced = TRACED.get()
    return fields | {"trace_id": traced.trace_id} if traced is not None and traced.trace_id else fields


def _message(record: logging.LogRecord) -> str:
    try:
        return _cut(record.getMessage())
    except Exception as exc:  # noqa: BLE001  whatever a library gave as arguments: the line is worth more than its prose
        return f"{_shown(record.msg)} ({type(exc).__name__} in its arguments)"


def _plain(value: object, level: int = 0) -> object:
    """The value as JSON has it, bounded, without what looks like a secret at any level."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < _NUMBER_BITS else _shown(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if level < _MOST_LEVELS and isinstance(value, Mapping):
        items = list(value.items())[:_MOST_ITEMS]
        return {
            _shown(name): "***" if str(name).lower() in _SECRET_NAMES else _plain(each, level + 1)
            for name, each in items
        }
    if level < _MOST_LEVELS and isinstance(value, list | tuple | set | frozenset):
        return [_plain(each, level + 1) for each in list(value)[:_MOST_ITEMS]]
    return _shown(value)


def _shown(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    try:
        return _cut(str(value))
    except Exception as exc:  # noqa: BLE001  a field that can't be shown must not cost the line
        return f"<{type(value).__name__}: {type(exc).__name__}>"


def _cut(text: str) -> str:
    over = len(text) - _MOST_CHARACTERS
    return text if over <= 0 else f"{text[:_MOST_CHARACTERS]}… ({over} characters more)"


def _cut_in_front(text: str) -> str:
    over = len(text) - _MOST_OF_A_TRACEBACK
    return text if over <= 0 else f"({over} characters more) …{text[over:]}"

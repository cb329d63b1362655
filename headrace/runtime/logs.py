"""The log of a process: one line per event on stderr, for machines (`json`) or for people (`text`).

Lines are prose with a stable name beside it: `log.info("call refused", extra={"event": "call_refused", "reason": …})`.
The name in `event` and the fields are an interface, the prose is not. Write names as literals, so that a search finds
them. Payloads and secrets don't belong here; as a last guard, bytes are written as their length only, and fields that
are named as secrets are masked.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from headrace.runtime.settings import LogSettings

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SECRET_NAMES = frozenset({"authorization", "x-api-key", "x_api_key", "api_key", "key", "password", "secret", "token"})


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
    """One JSON object a line: `time` (UTC), `level`, `process`, `logger`, `event`, `message`, then the fields."""

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
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({**fields, **line}, default=_shown, ensure_ascii=False)


class TextLines(logging.Formatter):
    """A line for people: time, level, prose, and the fields as `name=value`. Tracebacks follow."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        fields = _fields(record)
        event = fields.pop("event", None)
        shown = "".join(f" {name}={_shown(value)}" for name, value in fields.items())
        line = f"{_time(record)} {record.levelname:7} {record.getMessage()}{shown}" + (f" [{event}]" if event else "")
        text = line.replace("\n", "\\n")  # a caller's text must not be able to write a line of its own
        if record.exc_info and record.exc_info[1] is not None:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:  # Any: whatever callers log
    return {
        name: "***" if name.lower() in _SECRET_NAMES else value
        for name, value in vars(record).items()
        if name not in _STANDARD
    }


def _shown(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return str(value)

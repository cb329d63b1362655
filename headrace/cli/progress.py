"""How `headrace up` says what happens: lines for people, or one JSON object a line for programs."""

import json
import shlex
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from headrace.local.examples import examples
from headrace.local.paths import default_state_dir
from headrace.local.supervisor import Standing, State

if TYPE_CHECKING:
    from headrace.local.stack import Ready
    from headrace.local.state import Description

_NAME_WIDTH = 12


class TextLines:
    """Lines for people."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._was_ready: set[str] = set()
        self._stopping = False

    def change(self, standing: Standing) -> None:
        """One line for what a person wants to know; a start is told when it succeeded."""
        text = self._words(standing)
        if text:
            self._line(f"{standing.name:<{_NAME_WIDTH}} {text}")

    def _words(self, standing: Standing) -> str:
        match standing.state:
            case State.READY:
                again = " again" if standing.name in self._was_ready else ""
                self._was_ready.add(standing.name)
                return f"ready{again} after {standing.seconds or 0:.1f} s (pid {standing.pid})"
            case State.UNREADY:
                return "runs, but is not ready"
            case State.RESTARTING:
                return f"{standing.detail}; starts again in {standing.seconds or 0:.1f} s"
            case State.STOPPED:
                return standing.detail or "stopped"
            case State.STARTING | State.FAILED:
                return ""

    def fetching(self, done: int, total: int) -> None:
        """Count on one line of a terminal; elsewhere say only the beginning and the end."""
        text = f"{'broker':<{_NAME_WIDTH}} fetching Apache Kafka, {done} of {total} files"
        if sys.stdout.isatty():
            _write(f"\r{text}" + ("\n" if done == total else ""))
        elif done in {1, total}:
            self._line(text)

    def note(self, text: str) -> None:
        """As it is."""
        self._line(text)

    def ready(self, ready: "Ready") -> None:
        """The endpoints, the key, and calls to paste."""
        where = ready.description.endpoints
        url = where.grpc[0]
        rows = {
            "gRPC": ", ".join(where.grpc),
            "REST": f"http://{where.http}/v2",
            "health, metrics": ", ".join(f"http://{address}" for address in where.admin),
            "Kafka": where.kafka,
            "Triton": ", ".join(triton["grpc"] for triton in where.triton),
            "key": ready.key,
            "a limited key": ready.sample_key,
            "tenants": f"{ready.description.state_dir}/tenants.yaml",
            "state, logs": ready.description.state_dir,
        }
        lines = ["", f"Headrace is ready after {ready.seconds:.1f} s.", ""]
        lines += [f"  {name:<16} {text}" for name, text in rows.items()]
        for example in examples(url, where.http, ready.key):
            lines += ["", f"# {example.title}", example.command]
        chosen = _chosen(ready.description)
        others = ", ".join(f"headrace {each}{chosen}" for each in ("status", "top", "models", "infer"))
        lines += ["", f"Ctrl-C stops everything. From another shell: {others}", ""]
        _write("\n".join(lines) + "\n")

    def stopping(self, *, hurried: bool) -> None:
        """What a further Ctrl-C would do."""
        self._line("hurrying" if hurried else "stopping everything, in order (once more to hurry)")

    def _line(self, text: str) -> None:
        _write(f"{time.monotonic() - self._began:6.1f} s  {text}\n")


class JsonLines:
    """One JSON object a line, each with an `event`."""

    def change(self, standing: Standing) -> None:
        """Event `component`."""
        facts = {name: value for name, value in asdict(standing).items() if value not in (None, "")}
        _object("component", **facts)

    def fetching(self, done: int, total: int) -> None:
        """Event `fetching`."""
        _object("fetching", done=done, total=total)

    def note(self, text: str) -> None:
        """Event `note`."""
        _object("note", text=text)

    def ready(self, ready: "Ready") -> None:
        """Event `ready`: all that a program needs to use the stack."""
        description = ready.description
        _object(
            "ready",
            ready=True,
            seconds=round(ready.seconds, 3),
            **asdict(description.endpoints),
            api_key=ready.key,
            sample_key=ready.sample_key,
            state_dir=description.state_dir,
            pid=description.pid,
            pids={component.name: component.pid for component in description.components},
        )

    def stopping(self, *, hurried: bool) -> None:
        """Event `stopping`."""
        _object("stopping", hurried=hurried)


def _chosen(description: "Description") -> str:
    """The option that names the state folder, where it is not the one that commands take anyway."""
    folder = description.state_dir
    return "" if folder == str(default_state_dir().absolute()) else f" --state-dir {shlex.quote(folder)}"


def _object(event: str, **facts: object) -> None:
    _write(json.dumps({"event": event, **facts}) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        pass  # who read this is gone, which is no reason to stop serving

"""`headrace top` against servers that tell what a gateway and a router would."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner, Result

from headrace.cli import app
from headrace.local import state

SECONDS = 30.0


class Process:
    """Stands for a gateway or a router: each scrape finds ten calls more."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.status = 200
        self.body: str | None = None
        self.readyz = (200, "ready\n")
        self.silent = False
        self.over = threading.Event()
        self.asked = threading.Condition()
        process = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version: ClassVar[str] = "HTTP/1.1"  # type: ignore[misc]  # as http.server means it

            def do_GET(self) -> None:
                process.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if self.silent:
            self.over.wait(SECONDS)
            return
        status, text = (self.status, self.metrics()) if handler.path == "/metrics" else self.readyz
        content = text.encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def metrics(self) -> str:
        with self.asked:
            self.scrapes += 1
            self.asked.notify_all()
        if self.body is not None:
            return self.body
        return (
            f'headrace_gateway_model_calls_total{{model="simple",outcome="ok"}} {self.scrapes * 10}\n'
            f'headrace_gateway_tenant_calls_total{{tenant="acme",outcome="ok"}} {self.scrapes * 10}\n'
            'headrace_router_window{model="simple"} 16\n'
            "headrace_router_triton_ready 1\n"
        )

    def until_scraped(self, times: int) -> None:
        with self.asked:
            assert self.asked.wait_for(lambda: self.scrapes >= times, SECONDS)


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def top(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["top", "--interval", "0.1", *arguments])


def told(*arguments: str) -> Any:
    done = top("--once", "--json", *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def describe_stack(state_dir: Path, *, admin: list[str], router_admin: list[str]) -> None:
    """As a `headrace up` that runs would have done."""
    endpoints: dict[str, object] = dict.fromkeys(state.Endpoints.__dataclass_fields__, "")
    about: dict[str, object] = dict.fromkeys(state.Description.__dataclass_fields__, "")
    endpoints |= {"admin": admin, "router_admin": router_admin}
    about |= {"pid": os.getpid(), "started": state.start_time(os.getpid()), "components": [], "endpoints": endpoints}
    state.write_private(state_dir / state.DESCRIPTION, json.dumps(about))


def test_the_running_stack_s_processes_are_asked(tmp_path: Path, process: Process) -> None:
    describe_stack(tmp_path, admin=[process.address], router_admin=[process.address])

    found = told(f"--state-dir={tmp_path}")

    assert [each["address"] for each in (*found["gateways"], *found["routers"])] == [process.address] * 2
    assert found["models"][0]["name"] == "simple"


def test_named_processes_are_asked_instead(tmp_path: Path, process: Process) -> None:
    describe_stack(tmp_path, admin=["127.0.0.1:1"], router_admin=[])

    found = told("--gateway-admin", process.address, f"--state-dir={tmp_path}")

    assert [each["address"] for each in found["gateways"]] == [process.address]
    assert found["gateways"][0]["state"] == "ready"
    assert found["routers"] == []
    assert found["totals"]["calls_per_second"] > 0
    assert found["tenants"][0]["name"] == "acme"


def test_once_is_a_table_that_pipes(process: Process) -> None:
    done = top("--once", "--gateway-admin", process.address)

    assert done.exit_code == 0
    assert "\x1b" not in done.stdout
    assert re.search(r"^MODEL +READY +CALLS/S", done.stdout, re.MULTILINE)
    assert re.search(r"^simple +- +\d", done.stdout, re.MULTILINE)


def test_what_is_away_stops_nothing(process: Process) -> None:
    found = told("--gateway-admin", process.address, "--router-admin", "127.0.0.1:1")

    assert found["routers"][0]["up"] is False
    assert found["routers"][0]["state"] == "connection refused"
    assert found["gateways"][0]["up"] is True


def test_what_hangs_is_not_waited_for(process: Process) -> None:
    process.silent = True

    done = top("--once", "--json", "--gateway-admin", process.address)

    assert done.exit_code == 1
    assert json.loads(done.stdout)["gateways"][0]["state"] == "no answer in time"


def test_one_that_is_not_ready_says_why(process: Process) -> None:
    process.readyz = (503, "the broker does not answer yet\n")

    (found,) = told("--router-admin", process.address)["routers"]

    assert (found["up"], found["ready"], found["state"]) == (True, False, "the broker does not answer yet")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, "not here", "HTTP status 404 at /metrics"),
        (200, "<html>", "what it gives at /metrics are none"),
        (200, "up 1\n", "not a process of Headrace"),
    ],
)
def test_what_is_something_else_is_told_so(process: Process, status: int, body: str, said: str) -> None:
    process.status, process.body = status, body

    done = top("--once", "--gateway-admin", process.address)

    assert done.exit_code == 1
    assert f"AWAY: {said}" in done.stdout


def test_what_speaks_no_http_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=hang_up, args=(listening,), daemon=True).start()
        address = f"127.0.0.1:{listening.getsockname()[1]}"

        done = top("--once", "--gateway-admin", address)
        listening.shutdown(socket.SHUT_RDWR)

    assert done.exit_code == 1
    assert "AWAY: it broke off, or speaks no HTTP there" in done.stdout


def hang_up(listening: socket.socket) -> None:
    """On everybody, until it listens no more."""
    with suppress(OSError):
        while True:
            listening.accept()[0].close()


@pytest.mark.parametrize("address", ["here", "http://here:1", ":1", "here:port", "here:0", "here:70000"])
@pytest.mark.parametrize("option", ["--gateway-admin", "--router-admin"])
def test_what_is_no_address_is_refused_by_name(option: str, address: str) -> None:
    done = top(option, address)

    assert done.exit_code == 2
    assert done.stderr == f"headrace: {option} {address}: expected HOST:PORT\n"


def test_the_command_line_starts_without_what_only_top_needs() -> None:
    code = "import sys, headrace.cli; print({'aiohttp', 'prometheus_client', 'rich.live'} & sys.modules.keys())"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS, check=True)

    assert done.stdout == "set()\n"


# Live.


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "headrace.cli", "top", "--interval", "0.1", *arguments]


def test_in_a_pipe_there_is_a_board_each_interval(process: Process) -> None:
    asked = command("--json", "--gateway-admin", process.address)
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as live:
        try:
            assert live.stdout is not None
            rates: list[float | None] = []
            while sum(map(bool, rates)) < 2 and len(rates) < 50:  # a busy machine answers some looks too late
                rates.append(json.loads(live.stdout.readline())["totals"]["calls_per_second"])
            live.send_signal(signal.SIGINT)
            live.stdout.read()
            assert live.wait(SECONDS) == 0
        finally:
            live.kill()

    assert not rates[0], "there is nothing to compare with yet"
    assert sum(map(bool, rates)) == 2, rates


class Terminal:
    """A command on a terminal of 80 columns, and all that it has drawn."""

    def __init__(self, argv: list[str]) -> None:
        self._fd, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.before = termios.tcgetattr(theirs)
        # What Ctrl-C reaches is whoever has the terminal, not whoever was started on it.
        takes = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", takes, *argv],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )
        self._theirs = theirs
        self.drawn = b""

    def until(self, wanted: bytes) -> None:
        while wanted not in self.drawn:
            readable, _, _ = select.select([self._fd], [], [], SECONDS)
            assert readable, self.drawn
            self.drawn += os.read(self._fd, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def end(self) -> int:
        """Its exit status, when all is read that it drew."""
        while self.process.poll() is None:
            if select.select([self._fd], [], [], 0.05)[0]:
                self.drawn += os.read(self._fd, 65536)
        while select.select([self._fd], [], [], 0)[0]:
            self.drawn += os.read(self._fd, 65536)
        self.after = termios.tcgetattr(self._theirs)
        os.close(self._fd)
        os.close(self._theirs)
        return self.process.wait()


@pytest.mark.parametrize("end", ["q", "Ctrl-C", "SIGTERM"])
def test_a_terminal_is_left_as_it_was(process: Process, end: str) -> None:
    terminal = Terminal(command("--gateway-admin", process.address))
    try:
        terminal.until(b"simple")
        process.until_scraped(3)

        if end == "SIGTERM":
            terminal.process.terminate()
        else:
            terminal.type(b"q" if end == "q" else b"\x03")

        assert terminal.end() == 0, terminal.drawn
    finally:
        terminal.process.kill()
    assert terminal.after == terminal.before
    entered, left = b"\x1b[?1049h", b"\x1b[?1049l"
    assert terminal.drawn.count(entered) == terminal.drawn.count(left) == 1
    assert terminal.drawn.index(entered) < terminal.drawn.index(b"simple") < terminal.drawn.rindex(left)
    assert b"Traceback" not in terminal.drawn

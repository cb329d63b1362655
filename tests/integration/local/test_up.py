"""`headrace up` as a process, with stand-ins for its processes: what it says, and that it leaves nothing."""

import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from headrace.local import guard
from headrace.local.ports import FreePorts

# Found before the real one: the state folder is the first on the path that the children inherit.
STAND_IN = """
import http.server, os, signal, subprocess, sys
if os.environ.get("STAND_IN_STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
section = __spec__.name.upper()
admin = "HEADRACE_%s__ADMIN__" % section
# A grandchild that has left the group and the session, as a careless program's might.
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"], start_new_session=True)

class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"headrace_gateway_routers_live 1\\nheadrace_gateway_models_unowned 0\\n")
    def log_message(self, *_):
        pass

class Server(http.server.HTTPServer):
    allow_reuse_address = True

Server((os.environ[admin + "HOST"], int(os.environ[admin + "PORT"])), Ready).serve_forever()
"""
COMMAND = (sys.executable, "-m", "headrace.cli", "up", "--json")


@dataclass
class Up:
    """A `headrace up --json` that runs."""

    process: subprocess.Popen[str]
    state_dir: Path
    said: list[dict[str, Any]] = field(default_factory=list)

    def until(self, **facts: object) -> dict[str, Any]:
        """The next line that holds all these facts."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = cast(dict[str, Any], json.loads(line))
            self.said.append(said)
            if facts.items() <= said.items():
                return said
        raise AssertionError(f"ended without saying {facts}: {self.said}")

    def ready(self) -> dict[str, Any]:
        """The line that names everything."""
        return self.until(ready=True)

    def marked(self) -> list[psutil.Process]:
        """Every process that belongs to it, grandchildren and guard too."""
        ours = list(guard.marked(lambda mark: mark.startswith(f"{self.state_dir}#")))
        return [psutil.Process(pid) for pid in ours] + psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    for name in ("gateway", "router", "aggregator"):
        (folder / f"{name}.py").write_text(STAND_IN)
    return folder


@pytest.fixture
def somewhere() -> Iterator[str]:
    """An address where something listens that is neither broker nor Triton: it hangs up at once."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        hanging_up = threading.Thread(target=server.serve_forever, args=(0.05,), name="hangs up")
        hanging_up.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        hanging_up.join()


@contextmanager
def running(state_dir: Path, somewhere: str, *options: str, **environ: str) -> Iterator[Up]:
    ports = FreePorts("127.0.0.1")
    numbers = [f"--{name}-port={ports.take()}" for name in ("grpc", "http", "admin")]
    command = [
        *COMMAND,
        *numbers,
        f"--state-dir={state_dir}",
        f"--broker={somewhere}",
        f"--triton={somewhere}",
        *options,
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(state_dir), **environ},
    ) as process:
        try:
            yield Up(process, state_dir)
        finally:
            process.kill()
            guard.kill_marked(lambda mark: mark.startswith(f"{state_dir}#"))


def test_the_ready_line_names_every_endpoint(state_dir: Path, somewhere: str) -> None:
    with running(state_dir, somewhere, "--gateways=2", "--api-key=my own key") as up:
        ready = up.ready()

    assert len(ready["grpc"]) == len(ready["admin"]) == len(ready["reply"]) == 2
    assert ready["kafka"] == somewhere
    assert ready["triton"] == [{"grpc": somewhere}]
    assert ready["api_key"] == "my own key"
    assert ready["state_dir"] == str(state_dir)
    assert ready["pids"].keys() == {"gateway-0", "gateway-1", "router-0", "aggregator", "envoy"}


def test_the_generated_key_is_kept_from_start_to_start(state_dir: Path, somewhere: str) -> None:
    keys = []
    for _ in range(2):
        with running(state_dir, somewhere) as up:
            keys.append(up.ready()["api_key"])
            up.process.terminate()
            assert up.process.wait(45) == 0

    assert keys[0] == keys[1]
    assert keys[0].startswith("hr_dev_")
    assert (state_dir / "development-key").stat().st_mode & 0o777 == 0o600


def test_secrets_reach_the_processes_as_files_only(state_dir: Path, somewhere: str) -> None:
    with running(state_dir, somewhere, "--api-key=a-key-of-my-own") as up:
        pids = up.ready()["pids"].values()
        secret = (state_dir / "reply-secret").read_text().strip()
        seen = [Path(f"/proc/{pid}/{what}").read_text() for pid in pids for what in ("cmdline", "environ")]

    assert not [text for text in seen if "a-key-of-my-own" in text or secret in text]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_one_signal_stops_everything_in_order(state_dir: Path, somewhere: str, name: str) -> None:
    with running(state_dir, somewhere) as up:
        up.ready()
        belonging = up.marked()

        up.process.send_signal(signal.Signals[name])

        assert up.process.wait(45) == 0
        assert up.process.stdout is not None
        stopped = [json.loads(line) for line in up.process.stdout]
    assert [said["name"] for said in stopped if said.get("state") == "stopped"] == [
        "gateway-0",
        "envoy",
        "router-0",
        "aggregator",
    ]
    _all_gone(belonging)
    assert not (state_dir / "stack.json").exists()


def test_a_second_signal_does_not_wait_and_leaves_nothing_either(state_dir: Path, somewhere: str) -> None:
    with running(state_dir, somewhere, STAND_IN_STUBBORN="1") as up:
        up.ready()
        belonging = up.marked()
        up.process.terminate()
        up.until(event="stopping", hurried=False)

        up.process.terminate()

        assert up.process.wait(30) == 0
    _all_gone(belonging)


def test_nothing_outlives_an_up_that_was_killed(state_dir: Path, somewhere: str) -> None:
    with running(state_dir, somewhere) as up:
        up.ready()
        belonging = up.marked()
        assert len(belonging) >= 5  # gateway, router, a grandchild each, guard

        up.process.kill()

        _all_gone(belonging)


def test_what_outlived_even_the_guard_is_ended_by_the_next_start(state_dir: Path, somewhere: str) -> None:
    with running(state_dir, somewhere) as up:
        up.ready()
        belonging = up.marked()
        for process in [p for p in belonging if "guard.py" in " ".join(p.cmdline())]:
            process.kill()
        up.process.kill()
        up.process.wait()
        with running(state_dir, somewhere) as again:
            note = again.until(event="note")
            again.ready()

            _all_gone(belonging)

    assert "an earlier run left behind" in note["text"]


def test_a_killed_gateway_is_started_again_and_status_says_so(state_dir: Path, somewhere: str) -> None:
    with running(state_dir, somewhere) as up:
        pids = up.ready()["pids"]
        os.kill(pids["gateway-0"], signal.SIGKILL)
        up.until(name="gateway-0", state="restarting")
        up.until(name="gateway-0", state="ready")

        done = _headrace("status", "--json", f"--state-dir={state_dir}")

    assert done.returncode == 0
    status = {component["name"]: component for component in json.loads(done.stdout)["components"]}
    assert status["gateway-0"]["restarts"] == 1
    assert status["gateway-0"]["healthy"]
    assert status["router-0"]["pid"] == pids["router-0"]


def test_a_second_up_on_the_same_state_folder_is_refused_with_the_pid_of_the_first(
    state_dir: Path, somewhere: str
) -> None:
    with running(state_dir, somewhere) as first:
        first.ready()
        with running(state_dir, somewhere) as second:
            assert second.process.stdout is not None
            text = second.process.stdout.read()
            assert second.process.wait() == 2
        assert first.process.poll() is None

    assert f"(pid {first.process.pid})" in text
    assert len(text.splitlines()) == 1


def test_a_busy_port_is_one_line_that_names_it_and_who_holds_it(state_dir: Path, somewhere: str) -> None:
    busy = somewhere.rsplit(":", 1)[1]

    done = _headrace("up", f"--grpc-port={busy}", f"--state-dir={state_dir}", f"--broker={somewhere}")

    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"port {busy} is in use by" in line
    assert f"(pid {os.getpid()})" in line
    assert "--grpc-port" in line


def test_a_process_that_refuses_its_settings_ends_the_start_in_its_own_words(state_dir: Path, somewhere: str) -> None:
    refuses = "import sys; sys.stderr.write('HEADRACE_X: no such setting'); sys.exit(2)"
    (state_dir / "gateway.py").write_text(refuses)

    with running(state_dir, somewhere) as up:
        assert up.process.stdout is not None
        said = up.process.stdout.read()
        assert up.process.wait() == 1

    assert "gateway-0 ended with status 2: HEADRACE_X: no such setting" in said
    assert "Traceback" not in said


def test_status_of_nothing_is_one_line_and_a_failure(tmp_path: Path) -> None:
    done = _headrace("status", f"--state-dir={tmp_path}")

    assert done.returncode == 1
    assert done.stderr == f"headrace: no stack runs from {tmp_path}: start one with `headrace up`\n"


def _headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli", *arguments], capture_output=True, text=True, check=False, timeout=30
    )


def _all_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

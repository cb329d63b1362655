"""`headrace up` as a subprocess: start it, hear what it says, kill parts of it, and see it end with nothing left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.local import guard, leash
from headrace.local.ports import FreePorts

KEY = "dev"
START_SECONDS = 120.0
STOP_SECONDS = 90.0
HEAL_SECONDS = 60.0
LONG_DRAIN = {"HEADRACE_GATEWAY__DRAIN__GRACE_SECONDS": "40", "HEADRACE_ROUTER__DRAIN_GRACE_SECONDS": "40"}
"""Settings for tests that hold calls while a process leaves: the 10 s of a local stack are over as soon as the machine
stands still once. `headrace up`, when it stops as a whole, still waits 15 s for each process."""

Event = dict[str, Any]  # Any: a JSON object


class Stack:
    """A running `headrace up --json`, and everything that it has said."""

    def __init__(self, process: subprocess.Popen[str], state_dir: Path, stderr: Path) -> None:
        self.process = process
        self.state_dir = state_dir
        self.stderr = stderr
        self._events: list[Event] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="headrace up", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._events.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def join(self) -> None:
        """Wait until everything is read that a stack that ended has said."""
        self._reader.join()

    def wait_for(self, wanted: Callable[[Event], bool], *, seconds: float, since: int = 0, what: str = "") -> Event:
        """The first event from number `since` on that is wanted; waits for it."""
        deadline = time.monotonic() + seconds
        place = since
        with self._news:
            while True:
                for event in self._events[place:]:
                    if wanted(event):
                        return event
                place = max(place, len(self._events))
                left = deadline - time.monotonic()
                assert left > 0, f"not within {seconds} s: {what}; {self.account()}"
                assert not self._ended, f"`headrace up` ended before: {what}; {self.account()}"
                self._news.wait(left)

    @property
    def now(self) -> int:
        """The number of the next event."""
        return len(self._events)

    @property
    def ready(self) -> Event:
        """The line that names every endpoint."""
        return self.wait_for(lambda event: event.get("ready") is True, seconds=START_SECONDS, what="ready")

    @property
    def grpc(self) -> str:
        """The first gateway."""
        return str(self.ready["grpc"][0])

    @property
    def http(self) -> str:
        """Envoy, for REST."""
        return str(self.ready["http"])

    @property
    def triton_http(self) -> str:
        """The first Triton's HTTP port."""
        return str(self.ready["triton"][0]["http"])

    @property
    def triton(self) -> str:
        """The first Triton's gRPC port."""
        return str(self.ready["triton"][0]["grpc"])

    def pid(self, name: str) -> int:
        """The component's process now."""
        standings = [event for event in self._events if event.get("event") == "component" and event["name"] == name]
        return int(standings[-1]["pid"])

    def log(self, name: str) -> str:
        """What a component wrote."""
        path = self.state_dir / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> int:
        """Send a component a signal. Returns the number of the next event, to wait from."""
        since = self.now
        os.kill(self.pid(name), signum)
        return since

    def until_back(self, name: str, since: int) -> Event:
        """Wait until a component that was killed is ready again."""
        restarted = self.wait_for(
            lambda event: event.get("name") == name and event.get("state") == "restarting",
            seconds=HEAL_SECONDS,
            since=since,
            what=f"{name} is seen dead",
        )
        return self.wait_for(
            lambda event: (
                event.get("name") == name
                and event.get("state") == "ready"
                and event["restarts"] >= restarted["restarts"]
            ),
            seconds=HEAL_SECONDS,
            since=since,
            what=f"{name} is ready again",
        )

    def account(self) -> str:
        """What there is to know when a test fails."""
        logs = sorted((self.state_dir / "logs").glob("*.log"))
        told = {
            "stderr": self.stderr.read_text(errors="replace"),
            **{path.name: path.read_text(errors="replace") for path in logs},
        }
        lines = [f"event {event}" for event in self._events[-20:]]
        lines += [f"{name}: {line}" for name, text in told.items() for line in text.splitlines()[-6:]]
        return "\n".join(line[:300] for line in lines)

    def left_behind(self) -> list[int]:
        """The processes that this stack started and that live."""
        return list(guard.marked(lambda mark: mark.startswith(f"{self.state_dir}#")))

    def assert_no_traceback(self) -> None:
        """Nothing unforeseen happened: no process of ours has shown a traceback to anyone."""
        told = {"stderr": self.stderr.read_text()} | {
            path.name: path.read_text(errors="replace")
            for path in (self.state_dir / "logs").glob("*.log")
            if path.name.startswith(("gateway", "router"))
        }
        found = {name: text[text.index("Traceback") :][:3000] for name, text in told.items() if "Traceback" in text}
        assert not found, found

    def stop(self, signum: signal.Signals = signal.SIGINT) -> int:
        """End it as a user would, and wait. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def started_stack(home: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """`headrace up` on free ports, not waited for. Afterwards it has ended well, without a process or a traceback."""
    home.mkdir(parents=True, exist_ok=True)
    ports = FreePorts("127.0.0.1")
    chosen = [word for name in ("grpc", "http", "admin") for word in (f"--{name}-port", str(ports.take()))]
    state_dir, stderr = home / "state", home / "up.stderr"
    command = [*headrace("up", "--json", "--state-dir", str(state_dir), "--api-key", KEY), *chosen, *options]
    # The leash ends it even when the test run itself is killed.
    leashed = [sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *command]
    with stderr.open("wb") as err:
        process = subprocess.Popen(
            leashed,
            cwd=home,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    stack = Stack(process, state_dir, stderr)
    try:
        yield stack
        assert stack.stop() == 0, stack.account()
        assert not (left := stack.left_behind()), left
        stack.assert_no_traceback()
    finally:
        process.kill()
        process.wait()
        stack.join()
        assert process.stdout is not None
        process.stdout.close()


def headrace(*arguments: str) -> list[str]:
    """The command line of the checkout that is tested."""
    return [sys.executable, "-m", "headrace.cli", *arguments]

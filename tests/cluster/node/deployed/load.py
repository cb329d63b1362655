"""Calls from inside the cluster while a test does something to it."""

import itertools
import json
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tests.acceptance.eventually import eventually
from tests.cluster.kubectl import Kubectl

READY_SECONDS = 120.0
LAST_CALL_SECONDS = 180.0
BUSY = ("--model", "slow", "--seconds", "0.1", "--callers", "8")
"""More than two Triton pods run at once, so that each pod that answers has calls under way at any time."""


@dataclass(frozen=True, order=True)
class Ended:
    """A call that ended, and when."""

    at: float
    took: float

    @property
    def began(self) -> float:
        """When it was made."""
        return self.at - self.took


@dataclass(frozen=True, order=True)
class Failure(Ended):
    """A call that ended with an error."""

    text: str


@dataclass(frozen=True)
class Report:
    """What the caller saw; times in seconds since the epoch."""

    answers: tuple[Ended, ...]
    """By when they came."""
    errors: tuple[Failure, ...]

    @classmethod
    def read(cls, out: str) -> "Report":
        """What a caller printed."""
        told = json.loads(out.splitlines()[-1])
        return cls(
            answers=tuple(sorted(Ended(at, took) for at, took in told["answered"])),
            errors=tuple(Failure(**error) for error in told["errors"]),
        )

    @property
    def answered(self) -> tuple[float, ...]:
        """When answers came."""
        return tuple(answer.at for answer in self.answers)

    @property
    def slowest(self) -> float:
        """How long the longest call took that was answered."""
        return max((answer.took for answer in self.answers), default=0.0)

    @property
    def longest(self) -> float:
        """How long any call took, answered or not."""
        return max([self.slowest, *(error.took for error in self.errors)])

    def silence(self, since: float) -> float:
        """The longest time without an answer that ended after `since`, in seconds; endless where none came later."""
        pairs = itertools.pairwise(sorted([*self.answered, since]))
        return max((after - before for before, after in pairs if after > since), default=float("inf"))

    def after(self, since: float) -> int:
        """How many answers came later than that."""
        return sum(at > since for at in self.answered)


class Load:
    """Callers in the pod `caller`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._report: Report | None = None

    def stop(self) -> Report:
        """No new calls; returns once the last one has ended."""
        if self._report is None:
            out, err = self._process.communicate(timeout=LAST_CALL_SECONDS)
            assert self._process.returncode == 0, f"the caller ended: {err[-2000:]}"
            self._report = Report.read(out)
        return self._report


class LoadAlone:
    """Callers that read from a pipe in the pod, whose end ends them, and write into a file there."""

    def __init__(self, call: Callable[..., str]) -> None:
        self._call = call
        self._report: Report | None = None

    def start(self, url: str, *options: str) -> None:
        """Returns once some call has succeeded."""
        program = shlex.join(("python3", "/caller/caller.py", "--url", url, *options))
        self._shell(
            "rm -f /tmp/end /tmp/out; mkfifo /tmp/end;"
            f" setsid sh -c '{program} < /tmp/end > /tmp/out 2>&1' > /dev/null 2>&1 &"
            # Held open until `end`.
            " setsid sh -c 'exec 3> /tmp/end; echo $$ > /tmp/holder; exec sleep infinity' > /dev/null 2>&1 &"
        )
        eventually(
            lambda: "ready" in self._shell("cat /tmp/out || true"), seconds=READY_SECONDS, what="a call succeeded"
        )

    def end(self) -> None:
        """No new calls."""
        self._shell("kill $(cat /tmp/holder)")

    def stop(self) -> Report:
        """No new calls; returns once the last one has ended."""
        if self._report is None:
            self.end()
            done = eventually(
                lambda: next((out for out in [self._shell("cat /tmp/out")] if out.endswith("}\n")), None),
                seconds=LAST_CALL_SECONDS,
                what="the callers have ended",
            )
            self._report = Report.read(done)
        return self._report

    def _shell(self, script: str) -> str:
        return self._call("sh", "-c", script)


@contextmanager
def load_alone(call: Callable[..., str], url: str, *options: str) -> Iterator[LoadAlone]:
    """The same as `load`, by what runs a command in the caller's pod; nothing is connected to the pod meanwhile."""
    running = LoadAlone(call)
    try:
        running.start(url, *options)
        yield running
    except BaseException:
        with suppress(AssertionError):  # what failed may be that no command runs in pods
            running.end()
        raise
    running.stop()


@contextmanager
def load(kubectl: Kubectl, namespace: str, *options: str, wait: bool = True) -> Iterator[Load]:
    """Calls until the block ends or `stop` is called; within it, one has succeeded already unless `wait` is False."""
    words = ("exec", "--stdin", "--namespace", namespace, "caller", "--", "python3", "/caller/caller.py")
    with kubectl.started(*words, *options) as process:
        if wait:
            line = _first_line(process)
            assert line == "ready\n", f"no call has succeeded: {line}{process.communicate()[1][-2000:]}"
        running = Load(process)
        yield running
        running.stop()


def _first_line(process: "subprocess.Popen[str]") -> str:
    """Empty where none comes in time, and then the process is ended."""
    assert process.stdout is not None
    late = threading.Timer(READY_SECONDS, process.kill)
    late.start()
    try:
        return process.stdout.readline()
    finally:
        late.cancel()

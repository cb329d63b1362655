"""Calls from inside the cluster while a test does something to it."""

import itertools
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.cluster.kubectl import Kubectl

READY_SECONDS = 120.0
LAST_CALL_SECONDS = 180.0


@dataclass(frozen=True)
class Failure:
    """A call that ended with an error."""

    at: float
    took: float
    text: str


@dataclass(frozen=True)
class Report:
    """What the caller saw; times in seconds since the epoch."""

    answered: tuple[float, ...]
    errors: tuple[Failure, ...]

    def silence(self, since: float) -> float:
        """The longest time without an answer that ended after `since`, in seconds."""
        pairs = itertools.pairwise(sorted(self.answered))
        return max((after - before for before, after in pairs if after >= since), default=float("inf"))

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
            told = json.loads(out.splitlines()[-1])
            self._report = Report(tuple(sorted(told["answered"])), tuple(Failure(**error) for error in told["errors"]))
        return self._report


@contextmanager
def load(kubectl: Kubectl, namespace: str, *options: str, wait: bool = True) -> Iterator[Load]:
    """Calls until the block ends or `stop` is called; within it, one has succeeded already unless `wait` is False."""
    words = ("exec", "--stdin", "--namespace", namespace, "caller", "--", "python3", "/caller/caller.py")
    with kubectl.started(*words, *options) as process:
        if wait:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == "ready\n", f"no call has succeeded: {line}{process.communicate()[1][-2000:]}"
        running = Load(process)
        yield running
        running.stop()

"""Ends what a stack started, when the stack itself can't any more.

Every process of a stack carries the stack's mark in its environment, grandchildren too. `headrace up` starts this file
beside itself (`python -I -S guard.py MARK`) and holds the other end of its standard input. When that end closes, be it
because `up` finished or because it was killed with SIGKILL, the guard kills whatever still carries the mark, and goes.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MARK_VARIABLE = "_HEADRACE_STACK"
"""Begins with `_`: names that begin with `HEADRACE_` are settings, and unknown ones are errors."""
QUIET_ROUNDS = 3
ROUND_SECONDS = 0.03
GIVE_UP_SECONDS = 30.0


def marked(is_ours: Callable[[str], bool]) -> Iterator[int]:
    """The processes, other than this one, whose mark satisfies `is_ours`."""
    prefix = f"{MARK_VARIABLE}=".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # gone meanwhile, or another user's
        marks = (os.fsdecode(value.removeprefix(prefix)) for value in variables if value.startswith(prefix))
        if int(process.name) != os.getpid() and any(is_ours(mark) for mark in marks):
            yield int(process.name)


def kill_marked(is_ours: Callable[[str], bool]) -> int:
    """SIGKILL those processes until none is left, and return how many there were. Gives up after 30 seconds."""
    killed: set[int] = set()
    quiet = 0
    give_up = time.monotonic() + GIVE_UP_SECONDS
    # More than one quiet round: a process that was about to start another may have been between the two in the first.
    while quiet < QUIET_ROUNDS and time.monotonic() < give_up:
        found = list(marked(is_ours))
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        killed.update(found)
        quiet = 0 if found else quiet + 1
        time.sleep(ROUND_SECONDS)
    return len(killed)


def main(mark: str) -> None:
    """Wait for the end of standard input, then kill what carries `mark`."""
    # It must outlive the stack by a moment, whoever asks all of them to stop; it never outlives it by more.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 4096):
        pass
    kill_marked(lambda other: other == mark)


if __name__ == "__main__":
    main(sys.argv[1])

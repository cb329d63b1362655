"""Become another program that dies when the process that started it dies, however that one dies.

Run as a file of its own: `python -I -S leash.py PARENT_PID PROGRAM ARGUMENT...`. It sets the kernel's parent-death
signal and then replaces itself, so it costs some milliseconds once and no process. Done here rather than between fork
and exec of the parent, where running Python is unsafe once there are threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127


def main(parent: int, argv: list[str]) -> int:
    """Replace this process with `argv`; returns an exit status only where that failed."""
    if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.stderr.write(f"{argv[0]}: this system has no parent-death signal\n")
        return NOT_STARTED
    # The parent may have died before the signal was set; then it never comes.
    if os.getppid() != parent:
        return NOT_STARTED
    try:
        os.execvp(argv[0], argv)  # noqa: S606  no shell on purpose
    except OSError as exc:
        sys.stderr.write(f"{argv[0]}: {exc.strerror}\n")
        return NOT_STARTED


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))

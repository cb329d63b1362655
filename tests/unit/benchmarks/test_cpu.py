"""CPU time of processes, as the kernel counts it."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.cpu import ProcessGoneError, cpu_ns


def test_the_cpu_time_of_a_process_is_what_it_says_of_itself() -> None:
    """Asked in a process of its own: the one that runs the tests may have servers as children, and they count."""
    program = (
        "import os, time\nfrom benchmarks.cpu import cpu_ns\n"
        "before = time.process_time_ns()\nread = cpu_ns(os.getpid())\nafter = time.process_time_ns()\n"
        "print(before <= read <= after)"
    )

    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)

    assert told.stdout == "True\n"


def test_children_count() -> None:
    """A component may be several processes: a supervisor with its worker is one."""
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()

        alone, together = time.process_time_ns(), cpu_ns(os.getpid())
        child.communicate(b"\n")

    assert together - alone >= 200_000_000


def test_a_process_that_is_gone_is_an_error_and_not_zero() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()

    with pytest.raises(ProcessGoneError, match=str(child.pid)):
        cpu_ns(child.pid)

"""CPU time and memory of process trees, as the kernel accounts for them."""

import os
import time
from collections.abc import Iterable, Mapping

import psutil

_CPU_CLOCK_OF_A_PROCESS = 2  # CPUCLOCK_SCHED: user and system time of all its threads, gone ones included


class ProcessGoneError(Exception):
    """A process that is measured is not there any more."""


def tree(pid: int) -> list[int]:
    """List a process and everything below it."""
    try:
        return [pid, *(below.pid for below in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        raise ProcessGoneError(f"process {pid} is gone") from None


def cpu_ns(pid: int) -> int:
    """Read user plus system time of a process tree since its start, in nanoseconds.

    Exact, unlike the hundredths of a second in /proc. Children that have ended are not counted.
    """
    return sum(_cpu_ns(member) for member in tree(pid))


def _cpu_ns(pid: int) -> int:
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPU_CLOCK_OF_A_PROCESS)
    except OSError:
        raise ProcessGoneError(f"process {pid} is gone") from None


def snapshot_ns(pids: Mapping[str, int]) -> dict[str, int]:
    """Read `cpu_ns` of every named process tree."""
    return {name: cpu_ns(pid) for name, pid in pids.items()}


def rss_bytes(pid: int) -> int:
    """Read the resident memory of a process tree; pages that two of its processes share count twice."""
    try:
        return sum(_rss_bytes(member) for member in tree(pid))
    except psutil.NoSuchProcess:
        raise ProcessGoneError(f"process {pid} is gone") from None


def _rss_bytes(pid: int) -> int:
    resident: int = psutil.Process(pid).memory_info().rss
    return resident


def sum_of(parts: Mapping[str, float], names: Iterable[str]) -> float:
    """Add up the named parts."""
    return sum(parts[name] for name in names)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def busy_seconds() -> float:
    """Read the CPU time that all cores together have spent since boot on anything, stolen time included."""
    times = psutil.cpu_times()
    busy: float = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice  # guests are in user already
    return busy

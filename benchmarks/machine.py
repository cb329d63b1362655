"""Where a result comes from: the machine, the versions, the commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import psutil

from benchmarks.cpu import cores

_PACKAGES = ("grpcio", "uvloop", "protobuf", "tritonclient", "confluent-kafka", "aiokafka")


def describe() -> dict[str, str]:
    """Name the machine and the packages that this interpreter uses."""
    gibibytes = psutil.virtual_memory().total / 1024**3
    return {
        "cpu": _cpu_model(),
        "cores": str(cores()),
        "memory": f"{gibibytes:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """Name the commit of the checkout, with `-dirty` where files differ from it; `unknown` outside of one."""
    here = Path(__file__).parent
    git = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=10", "--match="]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True, timeout=10).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"

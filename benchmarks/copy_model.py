"""Builds the trivial Triton model `copy` of `copy_backend/`: a model repository with the compiled backend inside."""

import shutil
import subprocess
from pathlib import Path

_SOURCES = Path(__file__).with_name("copy_backend")


class NoCompilerError(Exception):
    """There is no C++ compiler."""


def build(repository: Path) -> Path:
    """Compile the backend into a model repository, unless what stands there is newer than its source.

    Raises:
        NoCompilerError: no `c++` on this machine.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NoCompilerError("the benchmark's Triton model needs a C++ compiler: install g++ or clang")
    model = repository / "copy"
    (model / "1").mkdir(parents=True, exist_ok=True)
    library, source = model / "libtriton_copy.so", _SOURCES / "copy.cc"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        options = ["-O2", "-std=c++17", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"]
        subprocess.run([compiler, *options, "-o", library, source], check=True, timeout=120)  # noqa: S603  ours alone
    shutil.copy(_SOURCES / "config.pbtxt", model / "config.pbtxt")
    return repository

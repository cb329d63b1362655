"""The real tritonserver on a laptop, from the files that the `nvidia-pytriton` wheel carries.

The wheel is installed with `--no-deps` and never imported (it wants numpy < 2): only its binary, its libraries and its
Python backend are used, by way of a folder of links that has the layout Triton looks for.
"""

import contextlib
import ctypes.util
import hashlib
import os
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from headrace.local.program import Program

CARRIER = "nvidia-pytriton"
PYTHONS = ((3, 11), (3, 12))
NUMPY_TOO_NEW = 2
EXIT_SECONDS = 5
"""How long a Triton that was told to stop waits for what runs; a sequence that was never ended counts as running."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where Linux keeps the regions that Triton shares with model processes
ELSEWHERE = "or attach a Triton that runs elsewhere with --triton HOST:PORT"


class TritonUnavailableError(Exception):
    """A Triton can't be started on this machine; the text says what to do."""


def examine() -> Iterator[tuple[str, str | TritonUnavailableError]]:
    """All that `program` wants of this machine, by name: what there is, or why it does not serve."""
    looks: dict[str, Callable[[], object]] = {
        "system": _system,
        "python": _interpreter,
        "python3": _python3,
        "libpython": lambda: ", ".join(map(str, _python_library_folder())) or "where the system finds it",
        "numpy": _numpy,
        CARRIER: _wheel,
    }
    for subject, look in looks.items():
        try:
            yield subject, str(look())
        except TritonUnavailableError as exc:
            yield subject, exc


def program(
    *,
    name: str,
    state_dir: Path,
    repository: Path,
    host: str,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    complete_configs: bool = True,
) -> Program:
    """How to start a Triton that serves `repository` on `host` alone, every model loaded, in explicit mode.

    A model that can't be loaded doesn't stop the others; its error is in the log and in the repository index. The ports
    open once every model is loaded or has failed. `complete_configs` lets Triton fill in what a config.pbtxt leaves
    out, for which it starts each model's process twice: off for a repository that leaves nothing out, such as ours.

    Not while a Triton of this name runs from this state folder: what a killed one left in shared memory goes here.

    Raises:
        TritonUnavailableError: this platform or Python can't run it, or the wheel is missing.
    """
    for _, found in examine():
        if isinstance(found, TritonUnavailableError):
            raise found
    wheel = _wheel()
    server = wheel / "pytriton" / "tritonserver"
    libraries = [wheel / "nvidia_pytriton.libs", *_python_library_folder()]
    backends = _assemble(server, state_dir)
    regions = _regions_prefix(state_dir, name)
    for region in SHARED_MEMORY.glob(f"{regions}*"):
        with contextlib.suppress(OSError):
            region.unlink()
    return Program(
        name=name,
        argv=(
            str(server / "bin" / "tritonserver"),
            f"--id={name}",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--cache-directory={server / 'caches'}",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--exit-on-error=false",
            "--strict-readiness=false",
            *([] if complete_configs else ["--disable-auto-complete-config"]),
            f"--exit-timeout-secs={EXIT_SECONDS}",
            "--log-info=false",
            f"--grpc-address={host}",
            f"--grpc-port={grpc_port}",
            f"--http-address={host}",
            f"--http-port={http_port}",
            f"--metrics-address={host}",
            f"--metrics-port={metrics_port}",
            f"--backend-config=python,shm-region-prefix-name={regions}",
        ),
        env={
            "LD_LIBRARY_PATH": _before(os.environ.get("LD_LIBRARY_PATH"), libraries),
            # The stub embeds the interpreter whose `python3` it finds first, with the packages of its environment.
            "PATH": _before(os.environ.get("PATH"), [Path(sys.executable).parent]),
        },
    )


def _system() -> str:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise TritonUnavailableError(
            f"the local Triton runs on Linux x86_64, and this is {platform.system()} {platform.machine()}; "
            f"run `headrace up` in a Linux x86_64 container, {ELSEWHERE}"
        )
    return f"{platform.system()} {platform.machine()}"


def _interpreter() -> str:
    if sys.version_info[:2] not in PYTHONS or sys.implementation.name != "cpython":
        raise TritonUnavailableError(
            f"the local Triton runs with CPython 3.11 or 3.12, and this is {platform.python_implementation()} "
            f"{platform.python_version()}; make the environment with one of them, {ELSEWHERE}"
        )
    return platform.python_version()


def _python3() -> Path:
    python3 = Path(sys.executable).parent / "python3"
    if not python3.exists():
        raise TritonUnavailableError(
            f"there is no python3 beside {sys.executable}, which the local Triton needs; "
            f"run headrace from a virtual environment, {ELSEWHERE}"
        )
    return python3


def _numpy() -> str:
    """The wheel's Python backend reads arrays as numpy 1 lays them out; with numpy 2 it garbles tensors silently."""
    try:
        version = metadata.version("numpy")
    except metadata.PackageNotFoundError:
        version = None
    if version is None or int(version.partition(".")[0]) >= NUMPY_TOO_NEW:
        raise TritonUnavailableError(
            f"the local Triton works with numpy 1 only, and {f'numpy {version}' if version else 'none'} is installed; "
            f"run `pip install 'numpy<2'` in this environment, {ELSEWHERE}"
        )
    return version


def _wheel() -> Path:
    """The folder that the wheel's files lie in."""
    try:
        folder = Path(str(metadata.distribution(CARRIER).locate_file("")))
    except metadata.PackageNotFoundError:
        raise TritonUnavailableError(
            f"the local Triton comes in the {CARRIER} wheel, which is not installed; "
            f"run `pip install --no-deps {CARRIER}`, {ELSEWHERE}"
        ) from None
    if not (folder / "pytriton" / "tritonserver" / "bin" / "tritonserver").is_file():
        raise TritonUnavailableError(
            f"the installed {CARRIER} carries no tritonserver; install its Linux x86_64 wheel, {ELSEWHERE}"
        )
    return folder


def _python_library_folder() -> list[Path]:
    """The folder of this interpreter's shared library; none where the system's loader finds it by itself."""
    library = f"libpython{_python()}.so.1.0"
    for folder in (Path(str(sysconfig.get_config_var("LIBDIR"))), Path(sys.base_prefix) / "lib"):
        if (folder / library).is_file():
            return [folder]
    if ctypes.util.find_library(f"python{_python()}"):
        return []
    raise TritonUnavailableError(
        f"the local Triton needs {library}, which this Python came without; install the system's libpython{_python()} "
        f"package, or use a Python with a shared library (uv's and pyenv's --enable-shared have one), {ELSEWHERE}"
    )


def _assemble(server: Path, state_dir: Path) -> Path:
    """A backends folder with the stub of the running interpreter, made once and whole or not at all."""
    stub = server / "python_backend_stubs" / _python() / "triton_python_backend_stub"
    parts = [*(server / "backends" / "python").glob("*.*"), stub]
    key = hashlib.sha256("\n".join(sorted(map(str, parts))).encode()).hexdigest()[:12]
    tree = state_dir.absolute() / f"triton-{key}"
    if not tree.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".triton-", dir=state_dir) as scratch:
            backend = Path(scratch) / "tree" / "backends" / "python"
            backend.mkdir(parents=True)
            for part in parts:
                (backend / part.name).symlink_to(part)
            # Fails only where another process was quicker, and then the same folder stands there.
            with contextlib.suppress(OSError):
                (Path(scratch) / "tree").rename(tree)
    return tree / "backends"


def _regions_prefix(state_dir: Path, name: str) -> str:
    """Of the names of this Triton's shared memory; Triton appends a random part for each region."""
    return f"headrace-{hashlib.sha256(str(state_dir.resolve() / name).encode()).hexdigest()[:12]}-"


def _python() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def _before(inherited: str | None, folders: list[Path]) -> str:
    return os.pathsep.join([*map(str, folders), *([inherited] if inherited else [])])

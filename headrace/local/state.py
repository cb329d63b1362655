"""What a stack keeps in its state folder: who runs it, its secrets, and a description of what runs."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from headrace.local.probe import Probe

DESCRIPTION = "stack.json"
GENERATED_KEY = "development-key"
GIVEN_KEY = "given-key"
REPLY_SECRET = "reply-secret"  # noqa: S105  a file's name


class StateError(Exception):
    """The state folder can't be used; the text says what to do."""


class AlreadyRunningError(StateError):
    """Another `headrace up` uses the state folder."""


@dataclass(frozen=True, kw_only=True)
class ComponentRecord:
    """One component as `headrace status` finds it."""

    name: str
    state: str
    probe: Probe
    ports: dict[str, int]
    pid: int | None = None
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where everything of a stack is reached, as `host:port`; lists in the order of the replicas."""

    grpc: list[str]
    http: str
    """REST, and gRPC as well: Envoy, in front of all gateways."""
    envoy_admin: str
    admin: list[str]
    reply: list[str]
    kafka: str
    triton: list[dict[str, str]]
    """One of `grpc`, `http`, `metrics` each; only `grpc` for a Triton that was not started here."""
    router_admin: list[str]


@dataclass(frozen=True, kw_only=True)
class Description:
    """A stack that runs, or ran and was killed."""

    pid: int
    started: int
    """The kernel's start time of `pid`: a number that comes again is another process."""
    ready: bool
    state_dir: str
    key_file: str
    database: str
    """Its URL, without a password."""
    policy_file: str
    """What its gateways read tenants from, beside the database."""
    endpoints: Endpoints
    components: list[ComponentRecord] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether the `headrace up` that wrote it still lives."""
        return start_time(self.pid) == self.started


@contextmanager
def locked(state_dir: Path) -> Iterator[None]:
    """Hold the folder for this process alone. Raises StateError.

    It is made, private to its owner, where it is missing. One that is there may be any folder of the user's and keeps
    its mode: only the secrets and the broker's data in it are private then.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("a+", encoding="ascii")
    except OSError as exc:
        raise StateError(
            f"can't use the state folder {state_dir}: {exc.strerror}; name another with --state-dir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AlreadyRunningError(
                f"a stack already runs from {state_dir} (pid {holder}): stop it (kill {holder}), "
                "or start this one elsewhere with --state-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def kept_secret(path: Path, *, prefix: str = "") -> str:
    """The secret in a file that only its owner reads; made on first use."""
    if not path.exists():
        write_private(path, prefix + secrets.token_urlsafe(24))
    return path.read_text(encoding="ascii").strip()


def given_secret(path: Path, secret: str) -> str:
    """Put a secret that the user chose into a file that only its owner reads."""
    write_private(path, secret)
    return secret


def describe(state_dir: Path, description: Description) -> None:
    """Write the description; a reader sees the old one or the new one, whole."""
    write_private(state_dir / DESCRIPTION, json.dumps(asdict(description), indent=1))


def forget(state_dir: Path) -> None:
    """Remove the description of a stack that stopped."""
    (state_dir / DESCRIPTION).unlink(missing_ok=True)


def described(state_dir: Path) -> Description | None:
    """The description that a stack left; None where none did. Raises StateError where it is not readable."""
    path = state_dir / DESCRIPTION
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise StateError(f"can't read {path}: {exc.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise StateError(f"{path} is not from this version of headrace: stop the stack and start it again") from None


def _parse(fields: dict[str, Any]) -> Description:  # Any: JSON that we wrote
    components = [ComponentRecord(**{**item, "probe": Probe(**item["probe"])}) for item in fields["components"]]
    return Description(**{**fields, "endpoints": Endpoints(**fields["endpoints"]), "components": components})


def start_time(pid: int) -> int | None:
    """When a process started, in the kernel's ticks since boot; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = stat.rsplit(")", 1)[1].split()
    # A zombie's number is taken, but nothing runs there any more.
    return None if state == "Z" else int(numbers[18])


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads; a reader sees the old one or the new one, whole."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text.removesuffix("\n") + "\n")
    fresh.replace(path)

"""What a user may choose about a local stack, checked as a whole before anything is started."""

import re
from dataclasses import dataclass
from pathlib import Path

EMBEDDED = "embedded"
DATABASE = "headrace.db"
"""The embedded database, in the state folder."""
MOST_REPLICAS = 64
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_LONGEST_KEY = 512


class UsageError(Exception):
    """The options contradict each other or can't be met here; the text is one line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class UpOptions:
    """The options of `headrace up`. Raises UsageError where they make no sense together."""

    state_dir: Path
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    admin_port: int = 8002
    model_repository: Path | None = None
    """None: the models that come with Headrace."""
    api_key: str | None = None
    """None: a key that is generated once and kept."""
    replicas: int = 1
    gateways: int = 1
    triton: tuple[str, ...] = ()
    """Tritons that already run; none is started then."""
    broker: str = EMBEDDED
    redis: str | None = None
    """A Redis or Valkey through which gateways share limits; None: each counts by itself."""
    database: str = EMBEDDED
    """Tenants, keys and usage: a PostgreSQL's URL, or a file of our own in the state folder."""

    def __post_init__(self) -> None:
        ports = self.ports
        for name, port in ports.items():
            if not 1 <= port <= 65535:  # noqa: PLR2004  what a port is
                raise UsageError(f"{name} {port}: a port is a number from 1 to 65535")
        if len(set(ports.values())) < len(ports):
            raise UsageError(f"{', '.join(ports)} must differ, they are {', '.join(map(str, ports.values()))}")
        for name, count in {"--replicas": self.replicas, "--gateways": self.gateways}.items():
            if not 1 <= count <= MOST_REPLICAS:
                raise UsageError(f"{name} {count}: from 1 to {MOST_REPLICAS}")
        self._check_attached()
        self._check_database()
        if self.api_key is not None and (not _PRINTABLE.fullmatch(self.api_key) or len(self.api_key) > _LONGEST_KEY):
            raise UsageError(f"--api-key: a key is 1 to {_LONGEST_KEY} printable ASCII characters")

    @property
    def ports(self) -> dict[str, int]:
        """Those that the user may name, by their option."""
        return {"--grpc-port": self.grpc_port, "--http-port": self.http_port, "--admin-port": self.admin_port}

    @property
    def database_url(self) -> str:
        """Where the database is."""
        return self.database if self.database != EMBEDDED else f"sqlite:///{self.state_dir.absolute() / DATABASE}"

    def _check_database(self) -> None:
        from headrace.store.settings import database_url  # noqa: PLC0415  slow to import

        try:
            database_url(self.database_url)
        except ValueError as exc:
            if self.database == EMBEDDED:
                raise UsageError(f"--state-dir {self.state_dir}: with ? or # in it, it can't hold a database") from None
            raise UsageError(f"--database {exc} (or `{EMBEDDED}`)") from None

    def _check_attached(self) -> None:
        for address in self.triton:
            parse_address("--triton", address)
        if self.broker != EMBEDDED:
            parse_address("--broker", self.broker, also=f" or `{EMBEDDED}`")
        if self.redis is not None:
            parse_address("--redis", self.redis)
        if self.triton and self.replicas != 1:
            raise UsageError("--replicas starts Tritons and --triton attaches to running ones: give one of the two")
        if self.triton and self.model_repository is not None:
            raise UsageError("--model-repository is for a Triton that is started here: leave it out with --triton")
        if len(set(self.triton)) < len(self.triton):
            raise UsageError("--triton names the same Triton twice")


def parse_address(option: str, text: str, *, also: str = "") -> tuple[str, int]:
    """`HOST:PORT` as a pair; an IPv6 address stands in brackets. Raises UsageError."""
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdecimal():
        raise UsageError(f"{option} {text}: expected HOST:PORT{also}")
    if not 1 <= int(port) <= 65535:  # noqa: PLR2004  what a port is
        raise UsageError(f"{option} {text}: a port is a number from 1 to 65535")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """`HOST:PORT`, with brackets where the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""Where the database is: a section that the gateway and the aggregator share."""

from typing import Annotated, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, model_validator

from headrace.runtime.settings import ReadableFile, Section

_FORMS = "must be postgresql://USER@HOST:PORT/NAME or sqlite:////absolute/path.db"
_SECRET = frozenset({"password", "sslpassword", "passfile", "scram_client_key", "oauth_client_secret"})
_OURS = frozenset({"options", "connect_timeout"})
"""What `engine` sets itself, so that a transaction ends in time: what the URL says of it would count for nothing."""


def database_url(url: str) -> str:
    """The URL of a database that can be used. Raises ValueError, and names no part of it: it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(_FORMS) from None
    # Whatever their case: libpq would refuse another, but the URL would be shown before that.
    words = {word.lower() for word, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if parts.password is not None or words & _SECRET:
        raise ValueError(
            "must hold no password, nor name where one is: "
            "put it into a file, and the file's name into HEADRACE_DATABASE__PASSWORD_FILE"
        )
    if words & _OURS:
        raise ValueError(f"must not set {', '.join(sorted(words & _OURS))}: Headrace sets it itself")
    if parts.scheme == "postgresql":
        usable = bool(parts.hostname and parts.path.strip("/")) and not parts.fragment
    else:
        usable = parts.scheme == "sqlite" and not parts.netloc and url.startswith("sqlite:////") and port is None
        usable = usable and not parts.query and not parts.fragment and not parts.path.endswith("/")
    if not usable:
        raise ValueError(_FORMS)
    return url


class DatabaseSettings(Section):
    """Tenants, keys and usage."""

    url: Annotated[str, AfterValidator(database_url)] | None = None
    """`postgresql://USER@HOST:PORT/NAME`, with `?sslmode=…` and other words of libpq, or `sqlite:////PATH`.

    Not with a password, `options` or `connect_timeout`."""
    password_file: ReadableFile | None = None
    """PostgreSQL's password."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.password_file is not None and (self.url is None or not self.url.startswith("postgresql")):
            raise ValueError("password_file needs a url of PostgreSQL beside it")
        return self

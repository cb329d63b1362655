"""Settings from the environment: typed, checked at once and as a whole, frozen afterwards.

Names are `HEADRACE_<SECTION>__<FIELD>`, deeper sections by a further `__`. Every process reads its own section and the
common ones; a name that no process knows is an error, so that a typing mistake is never a silent default. Secrets are
never values: a setting names the file that holds one.
"""

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as MalformedSettingsError

from headrace.runtime.tls import check_authority, check_certificate

PREFIX = "HEADRACE_"
SECTIONS_OF_SOME = frozenset({"gateway", "router", "aggregator", "database", "traces"})
"""Sections that not every process has: processes may share one environment."""

Port = Annotated[int, Field(ge=0, le=65535)]
"""A TCP port; 0 lets the system choose one."""


def _readable(path: Path) -> Path:
    try:
        with path.open("rb"):
            return path
    except OSError as exc:
        raise ValueError(f"cannot read {path}: {exc.strerror}") from None


ReadableFile = Annotated[Path, AfterValidator(_readable)]
"""A file that this process can read, checked when the settings are."""


class SettingsError(Exception):
    """The settings are not usable; the text names every bad one, a line each."""


class Section(BaseModel):
    """A group of settings that belong to one concern."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LogSettings(Section):
    """How the process writes its log."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """The least severe line that is written."""
    format: Literal["json", "text"] = "json"
    """`json` writes one object a line, `text` a line for people."""


def _receiver(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port  # raises where it is none
    if parts.scheme not in {"http", "https"} or not parts.hostname or port is None or parts.path.strip("/"):
        raise ValueError("must be https://HOST:PORT, or http://HOST:PORT without TLS, and no more")
    if parts.query or parts.fragment or parts.username is not None or parts.password is not None:
        raise ValueError("must be https://HOST:PORT, or http://HOST:PORT without TLS, and no more")
    return url


class TraceSettings(Section):
    """Traces of calls. Without an endpoint nothing is traced, and nothing is spent on it."""

    endpoint: Annotated[str, AfterValidator(_receiver)] | None = None
    """A receiver of OTLP over gRPC: `https://HOST:PORT`, or `http://HOST:PORT` without TLS; its port is 4317 by custom.

    While it is away spans are dropped, and the log says so once."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The part of all calls that is traced. A gateway draws it before anything else; routers trace what it chose."""
    honour_callers: bool = False
    """Whether callers with a credential decide by the sampled flag of their `traceparent` whether their call is traced.

    Off, whoever calls can neither have all its calls traced, at your expense, nor hide them; its trace is continued in
    both cases. Those who bring no `traceparent` are drawn in both cases."""
    headers_file: ReadableFile | None = None
    """What the receiver wants beside spans, such as a key: a line each, `NAME: VALUE`."""
    ca_file: ReadableFile | None = None
    """The authorities of the receiver's certificate; those of gRPC where unset."""
    certificate_file: ReadableFile | None = None
    """Our certificate, where the receiver asks for one."""
    key_file: ReadableFile | None = None
    """Its private key."""
    queue_spans: Annotated[int, Field(ge=1)] = 2048
    """Spans that wait to be sent; beyond it the oldest are dropped."""
    export_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long sending a batch may take, with what is tried again."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        files = (self.headers_file, self.ca_file, self.certificate_file, self.key_file)
        if self.endpoint is None:
            if any(files):
                raise ValueError("its files need endpoint beside them")
            return self
        parts = urlsplit(self.endpoint)
        if parts.scheme == "http" and any(files[1:]):
            raise ValueError("ca_file, certificate_file and key_file need an endpoint with https://")
        if parts.scheme == "http" and self.headers_file is not None and not _is_here(parts.hostname or ""):
            raise ValueError("headers_file needs https://, or http:// to this machine: headers may hold secrets")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file go together")
        if self.certificate_file is not None and self.key_file is not None:
            check_certificate(self.certificate_file, self.key_file)
        if self.ca_file is not None:
            check_authority(self.ca_file)
        return self


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ProcessSettings(BaseSettings):
    """What a process reads from the environment. Subclasses add their sections."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )
    section: ClassVar[str]
    log: LogSettings = LogSettings()

    @classmethod
    def load(cls) -> Self:
        """Read the environment once. Raises SettingsError that names every bad or unknown setting."""
        problems = list(_unknown(os.environ, cls))
        settings: Self | None = None
        try:
            settings = cls()
        except ValidationError as exc:
            problems += [line for error in exc.errors(include_url=False) for line in _lines(error, cls)]
        except MalformedSettingsError as exc:
            problems.append(f"{exc}: a section as a whole must be JSON; set its fields one by one instead")
        if settings is None or problems:
            raise SettingsError("\n".join(problems))
        return settings


def _unknown(environ: Mapping[str, str], cls: type[ProcessSettings]) -> list[str]:
    sections = set(cls.model_fields) | SECTIONS_OF_SOME
    names = (name for name in environ if name.upper().startswith(PREFIX))
    return [
        f"{name}: no such setting"
        for name in sorted(names)
        if name[len(PREFIX) :].split("__")[0].lower() not in sections
    ]


def _lines(error: Mapping[str, Any], model: type[BaseModel], above: tuple[int | str, ...] = ()) -> list[str]:
    """One problem as its lines: a section that is missing as a whole says what it wants."""
    section: Any = model  # Any: what stands in a field's annotation
    for part in error["loc"]:
        field = getattr(section, "model_fields", {}).get(part)
        section = field.annotation if field is not None else None
    location = (*above, *error["loc"])
    if error["type"] == "missing" and isinstance(section, type) and issubclass(section, Section):
        try:
            section()
        except ValidationError as exc:
            return [line for inner in exc.errors(include_url=False) for line in _lines(inner, section, location)]
    return [f"{_name(location)}: {_text(error)}" if location else _text(error)]


def _name(location: tuple[int | str, ...]) -> str:
    return PREFIX + "__".join(str(part).upper() for part in location)


def _text(error: Mapping[str, Any]) -> str:  # Any: pydantic types its error details so
    if error["type"] == "extra_forbidden":
        return "no such setting"
    # The rejected value is left out on purpose: it may be a secret in the wrong place.
    return str(error["msg"]).removeprefix("Value error, ")


def read_secret(path: Path) -> str:
    """The secret that a file holds, without the line end that editors add. Raises SettingsError where it is empty."""
    secret = path.read_text(encoding="utf-8").strip()
    if not secret:
        raise SettingsError(f"{path}: the file is empty, a secret was expected")
    return secret

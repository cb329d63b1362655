"""What the gateway reads from the environment: `HEADRACE_GATEWAY__…` and the sections shared with the router."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from headrace.bus.settings import MEBIBYTE, KafkaSettings, PoolSettings, ReplyTrustSettings, TopicSettings
from headrace.runtime.settings import Port, ProcessSettings, ReadableFile, Section
from headrace.runtime.tls import check_certificate


class GrpcSettings(Section):
    """The port that callers use."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8001
    tls_certificate_file: ReadableFile | None = None
    tls_key_file: ReadableFile | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.tls_certificate_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        if self.tls_certificate_file is not None and self.tls_key_file is not None:
            check_certificate(self.tls_certificate_file, self.tls_key_file)
        return self


class ReplySettings(Section):
    """The port that routers use to send answers home."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8003
    advertised_host: str | None = None
    """The name or address under which routers reach this gateway; in a pod, the pod's IP. Unset: `host`."""

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.advertised_host is None and self.host in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
            raise ValueError(f"routers can't dial {self.host}: set advertised_host to this gateway's name or address")
        return self


class AdminSettings(Section):
    """The plain HTTP port for probes and metrics; never exposed to callers."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8002


class IdentitySettings(Section):
    """Who may call."""

    key_file: ReadableFile | None = None
    """API keys as hashes, TOML; `headrace keys new` prints an entry."""
    development_key_file: ReadableFile | None = None
    """One key in clear text, any text, with the admin role: for a laptop."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.key_file is None and self.development_key_file is None:
            raise ValueError("set key_file (or development_key_file): without keys nobody can call")
        return self


class DeadlineSettings(Section):
    """How long callers wait."""

    default_seconds: Annotated[float, Field(gt=0)] = 60.0
    """For a call that brings no deadline."""
    maximum_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A longer one is cut to this."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.default_seconds > self.maximum_seconds:
            raise ValueError("default_seconds is longer than maximum_seconds")
        return self


class DrainSettings(Section):
    """How the gateway leaves; notice + grace must fit inside the pod's termination grace."""

    notice_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Between NOT_SERVING and the refusal of new calls: time for load balancers to look elsewhere."""
    grace_seconds: Annotated[float, Field(ge=0)] = 20.0
    """For calls that are under way."""


class BoundSettings(Section):
    """What the gateway holds at most; beyond it a call is refused at once."""

    calls: Annotated[int, Field(ge=1)] = 10_000
    """Calls that wait for their answer."""
    request_bytes: Annotated[int, Field(ge=MEBIBYTE)] = 1024 * MEBIBYTE
    """Request bytes of all calls that wait."""


class GatewaySection(Section):
    """Everything that is the gateway's alone."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    """This gateway's name, unique among gateways; the host's name where unset."""
    grpc: GrpcSettings = GrpcSettings()
    reply: ReplySettings
    admin: AdminSettings = AdminSettings()
    identity: IdentitySettings
    deadlines: DeadlineSettings = DeadlineSettings()
    drain: DrainSettings = DrainSettings()
    bounds: BoundSettings = BoundSettings()
    delivery_seconds: Annotated[float, Field(gt=0)] = 10.0
    """How long the broker may take to accept a call before the caller hears LOG_UNAVAILABLE.

    Large calls may wait their turn before that, while 64 MiB of others are on their way to the broker.
    """
    pool_may_sleep: bool = False
    """True where an autoscaler wakes a pool without routers: calls are then queued instead of refused."""


class GatewaySettings(ProcessSettings):
    """The gateway's settings, whole."""

    section: ClassVar[str] = "gateway"
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    pool: PoolSettings = PoolSettings()
    reply_trust: ReplyTrustSettings
    gateway: GatewaySection

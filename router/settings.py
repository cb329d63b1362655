"""What the router reads from the environment: `HEADRACE_ROUTER__…` and the sections shared with the gateway."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from headrace.bus.settings import MEBIBYTE, KafkaSettings, PoolSettings, ReplyTrustSettings, TopicSettings
from headrace.runtime.settings import Port, ProcessSettings, Section, TraceSettings


class TritonSettings(Section):
    """The model server beside this router."""

    address: str = "127.0.0.1:8001"
    """`host:port` of its gRPC port."""
    poll_seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """How often the router asks what is loaded and how often it ran."""
    call_seconds: Annotated[float, Field(gt=0)] = 5.0
    """How long such a question may take."""
    away_seconds: Annotated[float, Field(gt=0)] = 20.0
    """A Triton that does not answer for so long is not coming back at once, as one does that is started again: the
    router gives its partitions to others until it does."""


class WindowSettings(Section):
    """How many calls of one model run at once: batches_per_instance x instances x batch size, within the bounds.

    A model's own `headrace_window` parameter in its config.pbtxt wins over all of this.
    """

    batches_per_instance: Annotated[float, Field(gt=0)] = 2.0
    """2: one batch runs while the next one forms in Triton."""
    minimum: Annotated[int, Field(ge=1)] = 8
    """Hides the way to Triton and back for models with one instance and no batching."""
    maximum: Annotated[int, Field(ge=1)] = 512
    waiting_bytes: Annotated[int, Field(ge=MEBIBYTE)] = 256 * MEBIBYTE
    """Bytes of all records that are fetched and not begun."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError("minimum is more than maximum")
        return self


class ReplyLinkSettings(Section):
    """The links to the gateways."""

    allowed_gateways: str = "127.0.0.0/8,::1/128,localhost"
    """Networks (CIDR) and host names (`*` for one label), with commas, that this router dials; no others, whatever a
    record says."""
    attach_seconds: Annotated[float, Field(gt=0, le=10)] = 1.0
    """How long attaching may take while a gateway's records wait aside."""
    stall_seconds: Annotated[float, Field(gt=0)] = 5.0
    """A gateway that acknowledges nothing for so long is detached; a second more for every 8 MiB of the
    oldest answer under way."""
    unacknowledged_bytes: Annotated[int, Field(ge=MEBIBYTE)] = 256 * MEBIBYTE
    """Answers kept per gateway until it acknowledges them; beyond it no call begins, and what runs then adds one answer
    each, up to the models' windows."""


class AdminSettings(Section):
    """The plain HTTP port for probes and metrics."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8004


class RouterSection(Section):
    """Everything that is the router's alone."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    """This router's name, unique in its pool; the host's name where unset."""
    triton: TritonSettings = TritonSettings()
    window: WindowSettings = WindowSettings()
    reply: ReplyLinkSettings = ReplyLinkSettings()
    admin: AdminSettings = AdminSettings()
    ready_without_models: bool = False
    """Whether /readyz is content with a Triton that has no model ready: for pools that start empty, and whose models
    are loaded by hand. A rollout would go on to a revision that serves nothing."""
    drain_grace_seconds: Annotated[float, Field(ge=0)] = 20.0
    """After SIGTERM: time for the calls that run."""


class RouterSettings(ProcessSettings):
    """The router's settings, whole."""

    section: ClassVar[str] = "router"
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    pool: PoolSettings = PoolSettings()
    reply_trust: ReplyTrustSettings
    traces: TraceSettings = TraceSettings()
    router: RouterSection = RouterSection()

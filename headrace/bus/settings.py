"""Settings that gateway and router must share to meet: the broker, the topics, the pool, the reply channel's trust."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headrace.runtime.settings import ReadableFile, Section
from headrace.runtime.tls import check_authority, check_certificate

PoolName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A pool's name: a DNS label, so that it is a legal part of a topic name as it is."""

GroupProtocol = Literal["classic", "consumer"]

MEBIBYTE = 1 << 20


class KafkaSettings(Section):
    """How to reach the broker; one set for both Kafka clients."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """`host:port`, several with commas."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ssl_ca_file: ReadableFile | None = None
    """Certificates that may sign the broker's; the system's where unset."""
    ssl_certificate_file: ReadableFile | None = None
    """Our certificate, where the broker asks for one."""
    ssl_key_file: ReadableFile | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    sasl_username: str | None = None
    sasl_password_file: ReadableFile | None = None
    group_protocol: GroupProtocol = "classic"
    """How the routers of a pool share its partitions. `classic` works with every broker, and evens out what a router
    has of all models in sum. `consumer` gives each router its share of each model; it needs Kafka 4, and
    `group.consumer.session.timeout.ms` and `group.consumer.heartbeat.interval.ms` of a few seconds at the brokers."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        sasl = (self.sasl_mechanism, self.sasl_username, self.sasl_password_file)
        if self.security_protocol.startswith("SASL") and None in sasl:
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_mechanism, sasl_username and sasl_password_file"
            )
        if not self.security_protocol.startswith("SASL") and any(sasl):
            raise ValueError(f"the sasl settings contradict security_protocol {self.security_protocol}")
        if (self.ssl_certificate_file is None) != (self.ssl_key_file is None):
            raise ValueError("ssl_certificate_file and ssl_key_file go together")
        if self.ssl_certificate_file is not None and self.ssl_key_file is not None:
            check_certificate(self.ssl_certificate_file, self.ssl_key_file)
        if self.ssl_ca_file is not None:
            check_authority(self.ssl_ca_file)
        return self


class TopicSettings(Section):
    """How topics are made when they are missing. Existing topics are left as they are."""

    create: bool = True
    """False where an operator makes all topics; a missing one is then an error that says so."""
    request_partitions: Annotated[int, Field(ge=1, le=10_000)] = 8
    """Partitions of each model's request topic: no more routers than this work on one model."""
    replication_factor: Annotated[int, Field(ge=1, le=32767)] = 1
    retention_seconds: Annotated[int, Field(ge=60)] = 3600
    """How long a request topic keeps records; longer than the longest deadline."""
    max_message_bytes: Annotated[int, Field(ge=MEBIBYTE, le=1 << 30)] = 64 * MEBIBYTE
    """The largest request and the largest answer, as the client sees it. Topics, clients and channels follow it."""


class PoolSettings(Section):
    """Which pool a process belongs to."""

    name: PoolName = "default"


class ReplyTrustSettings(Section):
    """How gateway and routers prove to each other who they are on the reply channel."""

    secret_file: ReadableFile | None = None
    """A secret that both sides know."""
    allow_secret_without_tls: bool = False
    """Lets the secret travel unencrypted to addresses other than loopback."""
    tls_ca_file: ReadableFile | None = None
    """Certificates that sign the other side's certificate; with the next two this is mutual TLS."""
    tls_certificate_file: ReadableFile | None = None
    tls_key_file: ReadableFile | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        tls = (self.tls_ca_file, self.tls_certificate_file, self.tls_key_file)
        if any(tls) and None in tls:
            raise ValueError("tls_ca_file, tls_certificate_file and tls_key_file go together")
        if not any(tls) and self.secret_file is None:
            raise ValueError("set secret_file, or the three tls files for mutual TLS: routers must prove who they are")
        if self.tls_ca_file is not None and self.tls_certificate_file is not None and self.tls_key_file is not None:
            check_authority(self.tls_ca_file)
            check_certificate(self.tls_certificate_file, self.tls_key_file)
        return self

    @property
    def mutual_tls(self) -> bool:
        """Whether certificates are set."""
        return self.tls_ca_file is not None

"""What the aggregator reads from the environment: `HEADRACE_AGGREGATOR__…` and the sections that it shares."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.runtime.settings import Port, ProcessSettings, Section
from headrace.store.settings import DatabaseSettings


class AdminSettings(Section):
    """The plain HTTP port for probes and metrics."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a pod; the local stack sets loopback
    port: Port = 8005


class AggregatorSection(Section):
    """Everything that is the aggregator's alone."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = None
    """Its name at the broker; the host's name where unset."""
    admin: AdminSettings = AdminSettings()
    retention_days: Annotated[int, Field(ge=32, le=36_500)] = 400
    """How long usage is kept; no shorter than a month, for its quotas."""


class AggregatorSettings(ProcessSettings):
    """The aggregator's settings, whole."""

    section: ClassVar[str] = "aggregator"
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    database: DatabaseSettings = DatabaseSettings()
    aggregator: AggregatorSection = AggregatorSection()

    @model_validator(mode="after")
    def _has_a_database(self) -> Self:
        if self.database.url is None:
            raise ValueError("HEADRACE_DATABASE__URL: set it: usage is summed into a database")
        return self

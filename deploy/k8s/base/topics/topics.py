"""Makes Headrace's topics before gateways and routers run: with the code that they would use, so that nothing differs.

Each partition gets its committed start, without which lag can't be trusted. What exists stays as it is.
"""

import asyncio
import os
import sys
from typing import ClassVar

from headrace.bus.control import Topics, until_own_topics
from headrace.bus.settings import KafkaSettings, PoolSettings, TopicSettings
from headrace.bus.topics import consumer_group, request_topic
from headrace.runtime import logs
from headrace.runtime.lifecycle import Unstartable, run, unless
from headrace.runtime.settings import ProcessSettings

CLIENT_ID = "headrace-topics"


class JobSettings(ProcessSettings):
    """What the job reads from the environment."""

    section: ClassVar[str] = "topics"
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    pool: PoolSettings = PoolSettings()


async def make(settings: JobSettings, models: list[str]) -> None:
    """Wait for the broker, then make what is missing. Raises LogUnavailableError; the Job tries again."""
    topics = Topics(settings.kafka, settings.topics, client_id=CLIENT_ID)
    await until_own_topics(settings.kafka, topics, CLIENT_ID)
    pool = settings.pool.name
    wanted = [request_topic(pool, "interactive", model) for model in models]
    if wanted:
        await topics.ensure_requests(wanted, consumer_group(pool, "interactive"))


async def main(stop: asyncio.Event) -> None:
    """Make the topics, or end when told to."""
    settings = JobSettings.load()
    logs.configure(settings.log, process="headrace")
    if not await unless(stop, make(settings, os.environ.get("MODELS", "").split())):
        raise Unstartable("told to stop before the topics were made")  # status 0 would say that they are


if __name__ == "__main__":
    sys.exit(run(main))

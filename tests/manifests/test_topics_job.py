"""The job of topics, run as its pod runs it, against a real broker."""

import asyncio
import os
import subprocess
import sys
import uuid

from aiokafka.admin import AIOKafkaAdminClient

from headrace.bus.control import Topics
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, USAGE_TOPIC, consumer_group, request_topic
from tests.manifests.rendering import K8S

JOB = K8S / "base" / "topics" / "topics.py"


def test_the_job_makes_topics_with_committed_starts_and_may_run_again(broker: str) -> None:
    pool = f"p{uuid.uuid4().hex[:8]}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")} | {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": broker,
        "HEADRACE_TOPICS__REQUEST_PARTITIONS": "3",
        "HEADRACE_POOL__NAME": pool,
        "MODELS": "simple bert-base",
        "PYTHONPATH": str(K8S.parents[1]),
    }

    for _ in range(2):
        command = [sys.executable, "-P", str(JOB)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr

    requests = [request_topic(pool, "interactive", model) for model in ("simple", "bert-base")]
    topics = Topics(KafkaSettings(bootstrap_servers=broker), TopicSettings(), client_id="test")
    counts = asyncio.run(topics.partition_counts([ANNOUNCEMENTS_TOPIC, USAGE_TOPIC, *requests]))
    assert counts == {ANNOUNCEMENTS_TOPIC: 1, USAGE_TOPIC: 1} | dict.fromkeys(requests, 3)
    assert asyncio.run(_committed(broker, consumer_group(pool, "interactive"))) == {
        (topic, partition): 0 for topic in requests for partition in range(3)
    }


async def _committed(broker: str, group: str) -> dict[tuple[str, int], int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group)
        return {(place.topic, place.partition): said.offset for place, said in offsets.items()}
    finally:
        await admin.close()

"""Strimzi's topics and users: what the code would make, and what the processes do."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewTopic

from headrace.bus.control import Topics
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, USAGE_TOPIC, consumer_group, request_topic
from headrace.local.broker import properties
from tests.manifests.conftest import Rendered
from tests.manifests.rendering import CASES

POOLS = ("default", "canary", "green")
ACCESS = {
    "headrace-gateway": {
        (ANNOUNCEMENTS_TOPIC, "Read Write Describe DescribeConfigs"),
        (USAGE_TOPIC, "Write Describe"),
        *((f"headrace.{pool}.interactive.", "Write Describe") for pool in POOLS),
    },
    "headrace-router": {
        (ANNOUNCEMENTS_TOPIC, "Read Write Describe DescribeConfigs"),
        (USAGE_TOPIC, "Write Describe"),
        *((f"headrace.{pool}.interactive.", "Read Describe") for pool in POOLS),
        *((consumer_group(pool, "interactive"), "Read Describe") for pool in POOLS),
    },
    "headrace-aggregator": {(ANNOUNCEMENTS_TOPIC, "Describe DescribeConfigs"), (USAGE_TOPIC, "Read Describe")},
    "headrace-keda": {
        ("headrace.default.interactive.", "Describe"),
        (consumer_group("default", "interactive"), "Describe"),
    },
}


class Told(Topics):
    """Keeps what would be made."""

    def __init__(self, settings: TopicSettings) -> None:
        super().__init__(KafkaSettings(), settings, client_id="test")
        self.told: list[NewTopic] = []

    async def _ensure(self, topics: Sequence[NewTopic], group: str | None) -> None:
        del group
        self.told += topics


@pytest.mark.parametrize(("case", "partitions"), [("staging", 8), ("production", 16)])
def test_topics_are_those_that_the_code_would_make(case: str, partitions: int, rendered: Rendered) -> None:
    topics = Told(TopicSettings(request_partitions=partitions, replication_factor=3))

    async def ask() -> None:
        await topics.ensure_announcements()
        await topics.ensure_usage()
        simple = request_topic("default", "interactive", "simple")
        await topics.ensure_requests([simple], consumer_group("default", "interactive"))

    asyncio.run(ask())

    wanted = {t.name: (t.num_partitions, t.replication_factor, _texts(t.topic_configs)) for t in topics.told}
    found = {
        each["spec"].get("topicName", each["metadata"]["name"]): (
            each["spec"]["partitions"],
            each["spec"]["replicas"],
            _texts(each["spec"]["config"]),
        )
        for each in rendered(case).of("KafkaTopic")
    }
    assert found == wanted


@pytest.mark.parametrize("case", CASES)
def test_everything_of_strimzi_belongs_to_a_cluster_that_is_there(case: str, rendered: Rendered) -> None:
    """Its operator passes over what names another one, and no definition compares a label."""
    clusters = {each["metadata"]["name"] for each in rendered(case).of("Kafka")}

    for each in rendered(case).of("KafkaNodePool", "KafkaTopic", "KafkaUser"):
        assert each["metadata"]["labels"]["strimzi.io/cluster"] in clusters, each["metadata"]["name"]


def test_users_may_what_their_processes_do_and_nothing_else(rendered: Rendered) -> None:
    found = {
        user["metadata"]["name"]: {
            (acl["resource"]["name"], " ".join(acl["operations"])) for acl in user["spec"]["authorization"]["acls"]
        }
        for user in rendered("production-spot").of("KafkaUser")
    }

    assert found == ACCESS


def test_prefixes_are_those_of_topics_alone(rendered: Rendered) -> None:
    """A pool's prefix ends with a dot: `headrace.default` would be `headrace.default-2` too."""
    for user in rendered("production-spot").of("KafkaUser"):
        for acl in user["spec"]["authorization"]["acls"]:
            resource = acl["resource"]
            assert (resource["patternType"] == "prefix") == resource["name"].endswith("."), resource


def test_brokers_take_the_largest_record(rendered: Rendered) -> None:
    (kafka,) = rendered("production").of("Kafka")
    config = kafka["spec"]["kafka"]["config"]
    topics = Told(TopicSettings())
    asyncio.run(topics.ensure_requests(["any"], "any"))
    largest = int(topics.told[0].topic_configs["max.message.bytes"])

    assert min(config["message.max.bytes"], config["replica.fetch.max.bytes"]) >= largest
    assert config["auto.create.topics.enable"] is False
    assert config["min.insync.replicas"] == 2
    local = next(pod for pod in rendered("local").pods if pod.component == "kafka").container("kafka")
    told = {entry["name"]: entry["value"] for entry in local["env"]}
    assert int(told["KAFKA_MESSAGE_MAX_BYTES"]) >= largest


def test_brokers_notice_soon_who_is_gone_where_routers_rely_on_it(rendered: Rendered) -> None:
    """By default 45 s pass before a killed router's partitions are another's, and 5 s before a new one has some."""
    keys = [f"group.consumer.{each}" for each in ("session.timeout.ms", "heartbeat.interval.ms")]
    keys += [key.replace("consumer.", "consumer.min.") for key in keys]
    (kafka,) = rendered("production").of("Kafka")
    local = next(pod for pod in rendered("local").pods if pod.component == "kafka").container("kafka")
    of_local = {entry["name"]: entry["value"] for entry in local["env"]}
    embedded = properties(Path("/d"), port=1, controller_port=2)

    for case in ("local", "staging", "production", "production-spot"):
        protocols = {
            each["data"].get("HEADRACE_KAFKA__GROUP_PROTOCOL")
            for each in rendered(case).of("ConfigMap")
            if each["metadata"]["name"].startswith("headrace-kafka-")
        }
        assert protocols == {"consumer"}, case
    for key in keys:
        assert str(kafka["spec"]["kafka"]["config"][key]) == embedded[key], key
        assert of_local["KAFKA_" + key.upper().replace(".", "_")] == embedded[key], key


def _texts(config: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in config.items()}

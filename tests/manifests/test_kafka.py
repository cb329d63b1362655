"""Strimzi's topics and users: what the code would make, and what the processes do."""

import asyncio
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from aiokafka.admin import NewTopic

from headrace.bus.control import Topics
from headrace.bus.settings import KafkaSettings, TopicSettings
from headrace.bus.topics import consumer_group, request_topic
from headrace.local.broker import properties
from tests.manifests.conftest import Rendered
from tests.manifests.rendering import CASES, Json

OTHER_POOLS = ("canary", "green")
"""Beside `default`, which is what the users' rights are proved with on a broker: `test_rights_on_kafka.py`."""
POOLED = ("headrace-gateway", "headrace-router")

PARTS = {
    "kafka": ("kafkaContainer", "initContainer"),
    "entityOperator": ("topicOperatorContainer", "userOperatorContainer"),
    "kafkaExporter": ("container",),
    "cruiseControl": ("cruiseControlContainer",),
}
"""What Strimzi makes pods of in a Kafka, and the containers of each as its template calls them."""
MORE_PODS = {"KafkaConnect", "KafkaBridge", "KafkaMirrorMaker2"}
"""Kinds of Strimzi that make pods as well; there are none here."""


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


def test_users_may_in_every_pool_what_they_may_in_the_default_one(rendered: Rendered) -> None:
    for user in rendered("production-spot").of("KafkaUser"):
        if user["metadata"]["name"] not in POOLED:
            continue
        acls = user["spec"]["authorization"]["acls"]
        by_pool = {pool: [acl for acl in acls if _pool(acl) == pool] for pool in ("default", *OTHER_POOLS)}
        assert by_pool["default"]
        for pool in OTHER_POOLS:
            as_default = [_with_name(acl, _name(acl).replace(f".{pool}.", ".default.")) for acl in by_pool[pool]]
            assert as_default == by_pool["default"], (user["metadata"]["name"], pool)


def test_prefixes_are_those_of_topics_alone(rendered: Rendered) -> None:
    """A pool's prefix ends with a dot: `headrace.default` would be `headrace.default-2` too."""
    for user in rendered("production-spot").of("KafkaUser"):
        for acl in user["spec"]["authorization"]["acls"]:
            resource = acl["resource"]
            assert (resource["patternType"] == "prefix") == resource["name"].endswith("."), resource


@pytest.mark.parametrize("case", CASES)
def test_strimzi_makes_pods_that_the_namespace_takes(case: str, rendered: Rendered) -> None:
    """By default its operator sets nothing of what `restricted` asks for."""
    assert list(_refused(rendered(case).objects)) == []


@pytest.mark.parametrize("part", PARTS)
def test_a_template_without_contexts_is_noticed(part: str, rendered: Rendered) -> None:
    (kafka,) = copy.deepcopy(rendered("production").of("Kafka"))
    kafka["spec"].setdefault(part, {}).pop("template", None)

    told = list(_refused([kafka]))

    wanted = ["runAsNonRoot", "seccompProfile", *PARTS[part]]
    assert [line.partition(": ")[2] for line in told] == wanted, told


def test_a_node_pools_own_template_is_all_that_counts(rendered: Rendered) -> None:
    """Strimzi takes the Kafka's template for pools without one, and merges nothing."""
    (pool,) = copy.deepcopy(rendered("production").of("KafkaNodePool"))
    pool["spec"]["template"] = {"pod": {"priorityClassName": "any"}}

    assert len(list(_refused([pool]))) == 4


def _refused(objects: list[Json]) -> Iterator[str]:
    """Where a template lets Strimzi make pods that `restricted` refuses."""
    for each in objects:
        spec = each.get("spec", {})
        if each["kind"] == "Kafka":
            for part, containers in PARTS.items():
                if part in spec:
                    yield from _lacking(f"{part} of Kafka", spec[part].get("template", {}), containers)
        elif each["kind"] == "KafkaNodePool" and "template" in spec:
            yield from _lacking(each["metadata"]["name"], spec["template"], PARTS["kafka"])
        elif each["kind"] in MORE_PODS:
            yield f"{each['kind']}: look into its template too"


def _lacking(where: str, template: Json, containers: Sequence[str]) -> Iterator[str]:
    pod = template.get("pod", {}).get("securityContext", {})
    if pod.get("runAsNonRoot") is not True:
        yield f"{where}: runAsNonRoot"
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield f"{where}: seccompProfile"
    strict = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for name in containers:
        if template.get(name, {}).get("securityContext") != strict:
            yield f"{where}: {name}"


def test_brokers_may_write_their_volumes(rendered: Rendered) -> None:
    """The image's user is in group 0, which Strimzi sets where the pod has no context of its own."""
    (kafka,) = rendered("production").of("Kafka")

    assert kafka["spec"]["kafka"]["template"]["pod"]["securityContext"]["fsGroup"] == 0


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_of_the_topics_job_where_strimzi_makes_topics(case: str, rendered: Rendered) -> None:
    left = {each["kind"] for each in rendered(case).objects if each["metadata"]["name"].startswith("headrace-topics")}
    strimzi = bool(rendered(case).of("Kafka"))

    assert left == (set() if strimzi else {"ConfigMap", "Job", "ServiceAccount"})


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


def _name(acl: Json) -> str:
    name: str = acl["resource"]["name"]
    return name


def _pool(acl: Json) -> str:
    return _name(acl).split(".")[1] if _name(acl).count(".") > 1 else ""


def _with_name(acl: Json, name: str) -> Json:
    return acl | {"resource": acl["resource"] | {"name": name}}


def _texts(config: Json) -> dict[str, str]:
    return {name: str(value) for name, value in config.items()}

"""The users that the manifests make, on a real broker: their processes do all they do, and nobody may more."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs mark nothing as exported
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)
from tritonclient.grpc import service_pb2 as oip

from headrace.bus.topics import ANNOUNCEMENTS_TOPIC, USAGE_TOPIC, consumer_group, request_topic
from headrace.local import broker as kafka
from headrace.local import leash
from headrace.local.ports import FreePorts
from headrace.store.engine import Store
from headrace.store.usage import usage_of
from tests.acceptance.calls import Client, client, simple, sums, with_key
from tests.acceptance.eventually import eventually
from tests.integration.guarded_broker import GuardedBroker, Right, guarded_broker
from tests.integration.triton_fixture import both_repositories, running_triton
from tests.manifests.rendering import K8S, Json, render

SECONDS = 30.0
REFUSAL_SECONDS = 30.0
KEY = "hr_dev_key"
GATEWAY, ROUTER, AGGREGATOR, KEDA = (f"headrace-{each}" for each in ("gateway", "router", "aggregator", "keda"))
USERS = (GATEWAY, ROUTER, AGGREGATOR, KEDA)
REQUESTS = request_topic("default", "interactive", "simple")
GROUP = consumer_group("default", "interactive")
NEIGHBOURS = request_topic("default-2", "interactive", "simple")
"""Of a pool whose name begins as ours does."""
NEIGHBOURING_GROUP = consumer_group("default-2", "interactive")

Config = dict[str, Any]  # Any: librdkafka's properties


@contextmanager
def of_production(install: kafka.BrokerInstall, home: Path) -> Iterator[GuardedBroker]:
    """With all that `production` has, KEDA's user besides, and a topic that is nobody's."""
    objects = render(K8S / "overlays" / "production-spot")
    topics = [each for each in objects if each["kind"] == "KafkaTopic"]
    users = [each for each in objects if each["kind"] == "KafkaUser"]
    neighbours: Json = {"metadata": {"name": NEIGHBOURS}, "spec": {"partitions": 1, "config": {}}}
    with guarded_broker(install, home, topics=[*topics, neighbours], users=users) as broker:
        assert {right.user for right in broker.rights} == set(USERS)
        yield broker


@pytest.fixture(scope="module")
def guarded(broker_install: kafka.BrokerInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedBroker]:
    with of_production(broker_install, tmp_path_factory.mktemp("guarded")) as broker:
        yield broker


def test_a_call_is_answered_summed_and_scaled_by_with_exactly_these_rights(
    broker_install: kafka.BrokerInstall, tmp_path: Path
) -> None:
    """Nothing that they ask for is refused, and nothing is granted that they don't ask for."""
    database = Store(url := f"sqlite:///{tmp_path}/headrace.db")
    database.upgrade()
    with ExitStack() as running:
        guarded = running.enter_context(of_production(broker_install, tmp_path / "broker"))
        triton = running.enter_context(running_triton(tmp_path, both_repositories(tmp_path, only=["simple"])))
        with (
            processes(guarded, tmp_path, triton=triton.address, database=url) as address,
            client(address, with_key(KEY)) as caller,
        ):
            eventually(partial(is_ready, caller), seconds=SECONDS, what="the model can be called")
            assert sums(caller.infer(simple(value=2))) == [each + 2 for each in range(16)]
            eventually(partial(summed_calls, database), seconds=SECONDS, what="the call is summed")
        assert records_and_lag(guarded.client(KEDA)) == (1, 0)
        decided = guarded.decisions()
    database.close()

    assert [each for each in decided if not each.allowed] == []
    used = {right for right in guarded.rights if any(right.covers(each) for each in decided)}
    assert used == {right for right in guarded.rights if not of_another_pool(right)}


def records_and_lag(config: Config) -> tuple[int, int]:
    """How many requests there were, and how many wait, by the questions that KEDA asks."""
    admin = AdminClient(config)
    partitions = admin.list_topics(REQUESTS, timeout=SECONDS).topics[REQUESTS].partitions
    places = [TopicPartition(REQUESTS, each) for each in partitions]
    asked = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(GROUP, places)])[GROUP]
    committed = {(each.topic, each.partition): each.offset for each in asked.result(SECONDS).topic_partitions}
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # its own stubs lack it
    ends = admin.list_offsets(dict.fromkeys(places, latest))
    records = sum(end.result(SECONDS).offset for end in ends.values())
    return records, records - sum(committed.values())


def publish(config: Config, topic: str) -> None:
    errors: list[KafkaError | None] = []
    producer = Producer(config | {"acks": "all"})
    producer.produce(topic, b"any", partition=0, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(SECONDS) == 0
    raise_error(errors[0])


def read(config: Config, topic: str) -> None:
    with consuming(config, "none") as consumer:
        # Who may not even see it hears so here, and of a read nothing at all.
        raise_error(consumer.list_topics(topic, timeout=SECONDS).topics[topic].error)
        consumer.assign([TopicPartition(topic, 0, 0)])
        raise_error(awaited(consumer, KafkaError.TOPIC_AUTHORIZATION_FAILED))


def join(config: Config, group: str) -> None:
    with consuming(config, group) as consumer:
        consumer.subscribe([REQUESTS])
        raise_error(awaited(consumer, KafkaError.GROUP_AUTHORIZATION_FAILED))


def commit(config: Config, group: str) -> None:
    places = ConsumerGroupTopicPartitions(group, [TopicPartition(REQUESTS, 0, 0)])
    admin = AdminClient(config)
    done = admin.alter_consumer_group_offsets([places])[group].result(SECONDS)
    raise_error(done.topic_partitions[0].error)


def make(config: Config, topic: str) -> None:
    admin = AdminClient(config)
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(SECONDS)


def delete(config: Config, topic: str) -> None:
    admin = AdminClient(config)
    admin.delete_topics([topic])[topic].result(SECONDS)


def empty(config: Config, topic: str) -> None:
    place = TopicPartition(topic, 0, 0)
    admin = AdminClient(config)
    admin.delete_records([place])[place].result(SECONDS)


def change(config: Config, topic: str) -> None:
    entry = ConfigEntry("retention.ms", "3600000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient(config)
    admin.incremental_alter_configs([resource])[resource].result(SECONDS)


def grant(config: Config, topic: str) -> None:
    who = f"User:{config['sasl.username']}"
    right = AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        who,
        "*",
        AclOperation.ALL,
        AclPermissionType.ALLOW,
    )
    admin = AdminClient(config)
    admin.create_acls([right])[right].result(SECONDS)


Attempt = tuple[Callable[[Config, str], None], str]
"""What a user tries, and on what. It raises KafkaException where it is refused."""
FOR_NOBODY: Sequence[Attempt] = (
    (make, request_topic("default", "interactive", "new")),
    (delete, REQUESTS),
    (change, REQUESTS),
    (grant, REQUESTS),
    (read, NEIGHBOURS),
    (publish, NEIGHBOURS),
    (join, NEIGHBOURING_GROUP),
)
NOT_THEIRS: Mapping[str, Sequence[Attempt]] = {
    GATEWAY: ((read, REQUESTS), (empty, REQUESTS), (read, USAGE_TOPIC), (join, GROUP), (commit, GROUP)),
    ROUTER: ((publish, REQUESTS), (empty, REQUESTS), (read, USAGE_TOPIC)),
    AGGREGATOR: (
        *((publish, topic) for topic in (USAGE_TOPIC, ANNOUNCEMENTS_TOPIC, REQUESTS)),
        *((read, topic) for topic in (ANNOUNCEMENTS_TOPIC, REQUESTS)),
        (join, GROUP),
        (commit, GROUP),
    ),
    KEDA: (
        *((each, topic) for each in (publish, read) for topic in (USAGE_TOPIC, ANNOUNCEMENTS_TOPIC, REQUESTS)),
        (empty, REQUESTS),
        (join, GROUP),
        (commit, GROUP),
    ),
}


@pytest.mark.parametrize(
    ("user", "attempt", "what"),
    [(user, *tried) for user in USERS for tried in (*FOR_NOBODY, *NOT_THEIRS[user])],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_what_is_not_a_users_is_refused(
    user: str, attempt: Callable[[Config, str], None], what: str, guarded: GuardedBroker
) -> None:
    with pytest.raises(KafkaException) as refused:
        attempt(guarded.client(user), what)

    of_others: dict[object, int] = {
        join: KafkaError.GROUP_AUTHORIZATION_FAILED,
        commit: KafkaError.GROUP_AUTHORIZATION_FAILED,
        grant: KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
    assert refused.value.args[0].code() == of_others.get(attempt, KafkaError.TOPIC_AUTHORIZATION_FAILED)


def of_another_pool(right: Right) -> bool:
    """Of a pool that no process of these tests is of; a test of the manifests compares their rights."""
    return right.name.startswith(("headrace.canary.", "headrace.green."))


def is_ready(caller: Client) -> bool:
    try:
        return bool(caller.ask("ModelReady", oip.ModelReadyRequest(name="simple")).ready)
    except grpc.RpcError:
        return False  # the gateway is not there yet


def summed_calls(database: Store) -> int:
    now = datetime.now(UTC)
    with database.transaction(read_only=True) as c:
        rows = usage_of(c, "development", since=now - timedelta(days=1), until=now + timedelta(days=1), by=[])
    return rows[0].calls if rows and rows[0].model_micros else 0  # the router's report too


@contextmanager
def processes(guarded: GuardedBroker, home: Path, *, triton: str, database: str) -> Iterator[str]:
    """Gateway, router and aggregator, each as its own user, until they are told to stop. Gives the gateway's port."""
    key, secret = home / "key", home / "secret"
    key.write_text(KEY)
    secret.write_text("a secret of this test")
    port = FreePorts("127.0.0.1").take()
    own = {
        "gateway": {
            "HEADRACE_GATEWAY__GRPC__HOST": "127.0.0.1",
            "HEADRACE_GATEWAY__GRPC__PORT": str(port),
            "HEADRACE_GATEWAY__REPLY__HOST": "127.0.0.1",
            "HEADRACE_GATEWAY__REPLY__PORT": "0",
            "HEADRACE_GATEWAY__IDENTITY__DEVELOPMENT_KEY_FILE": str(key),
            "HEADRACE_GATEWAY__DRAIN__NOTICE_SECONDS": "0",
            "HEADRACE_REPLY_TRUST__SECRET_FILE": str(secret),
        },
        "router": {
            "HEADRACE_ROUTER__TRITON__ADDRESS": triton,
            "HEADRACE_REPLY_TRUST__SECRET_FILE": str(secret),
        },
        "aggregator": {"HEADRACE_DATABASE__URL": database},
    }
    with ExitStack() as started:
        running = {
            name: started.enter_context(process(name, guarded.environment(f"headrace-{name}") | settings, home))
            for name, settings in own.items()
        }
        yield f"127.0.0.1:{port}"
        for each in running.values():
            each.send_signal(signal.SIGTERM)
        ended = {name: each.wait(SECONDS) for name, each in running.items()}
        assert ended == dict.fromkeys(running, 0), {
            name: (home / f"{name}.log").read_text()[-2000:] for name in running
        }


@contextmanager
def process(name: str, settings: Mapping[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    held = (sys.executable, "-I", "-S", leash.__file__, str(os.getpid()))
    admin = f"HEADRACE_{name.upper()}__ADMIN__"
    with (home / f"{name}.log").open("ab") as out:
        started = subprocess.Popen(
            [*held, sys.executable, "-P", "-m", name],
            env={**os.environ, f"{admin}HOST": "127.0.0.1", f"{admin}PORT": "0", **settings},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextmanager
def consuming(config: Config, group: str) -> Iterator[Consumer]:
    consumer = Consumer(config | {"group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def awaited(consumer: Consumer, code: int) -> KafkaError:
    """The error of this code. Of others there may be one before: who reads without a group may not ask for that."""

    def look() -> KafkaError | None:
        message = consumer.poll(0.5)
        error = None if message is None else message.error()
        return error if error is not None and error.code() == code else None

    return eventually(look, seconds=REFUSAL_SECONDS, what=f"the broker refuses with {code}")


def raise_error(error: KafkaError | None) -> None:
    if error is not None:
        raise KafkaException(error)

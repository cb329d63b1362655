"""A real broker: its data survives a kill, a login is asked for where wanted, big messages pass."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from headrace.local import broker as kafka
from headrace.local.ports import FreePorts
from tests.acceptance.eventually import eventually
from tests.integration.broker_fixture import running_broker, started_broker

BIG = 64 << 20


def test_what_was_acknowledged_survives_a_kill(broker_install: kafka.BrokerInstall, tmp_path: Path) -> None:
    ports = FreePorts("127.0.0.1")
    port, controller_port = ports.take(), ports.take()
    kafka.prepare_storage(broker_install, tmp_path, port=port, controller_port=controller_port, sasl=None)
    with started_broker(broker_install, tmp_path, port) as process:
        _create(f"127.0.0.1:{port}", "t")
        _produce(f"127.0.0.1:{port}", "t", b"kept")
        process.kill()
        process.wait()

    kafka.prepare_storage(broker_install, tmp_path, port=port, controller_port=controller_port, sasl=None)
    with started_broker(broker_install, tmp_path, port):
        assert _first(f"127.0.0.1:{port}", "t") == b"kept"


def test_the_data_moves_along_to_another_port(broker_install: kafka.BrokerInstall, tmp_path: Path) -> None:
    with running_broker(broker_install, tmp_path) as address:
        _create(address, "t")
        _produce(address, "t", b"kept")

    with running_broker(broker_install, tmp_path) as other:
        assert other != address
        assert _first(other, "t") == b"kept"


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_broker_with_users_lets_in_only_them(sasl_broker: str, mechanism: str) -> None:
    login: dict[str, str | int | float | bool] = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
        "sasl.username": "alice",
    }

    assert AdminClient(_config(sasl_broker) | login | {"sasl.password": "right"}).list_topics(timeout=30).brokers
    errors: list[KafkaError] = []
    hearing: dict[str, Any] = {"sasl.password": "wrong", "error_cb": errors.append}
    wrong = AdminClient({**_config(sasl_broker), **login, **hearing})
    eventually(lambda: wrong.poll(0.1) and errors, seconds=30, what="the broker refuses the login")
    assert KafkaError._AUTHENTICATION in [error.code() for error in errors]


@pytest.fixture(scope="module")
def sasl_broker(broker_install: kafka.BrokerInstall, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    users = kafka.Sasl(users={"alice": "right"})
    with running_broker(broker_install, tmp_path_factory.mktemp("sasl"), sasl=users) as address:
        yield address


def test_a_message_of_64_mib_passes_and_a_topic_that_nobody_made_stays_unmade(broker: str) -> None:
    topic = f"big-{uuid.uuid4().hex}"
    _create(broker, topic)
    _produce(broker, topic, bytes(BIG))

    assert _first(broker, topic) == bytes(BIG)
    unmade = AdminClient(_config(broker)).list_topics("unmade", timeout=30).topics["unmade"]
    assert unmade.error is not None


def _config(address: str) -> dict[str, str | int | float | bool]:
    return {"bootstrap.servers": address, "log_level": 0}


def _create(address: str, topic: str) -> None:
    limit = {"max.message.bytes": str(kafka.LARGEST_RECORD_BYTES)}
    admin = AdminClient(_config(address))
    for done in admin.create_topics([NewTopic(topic, 1, 1, config=limit)]).values():
        done.result(20)


def _produce(address: str, topic: str, value: bytes) -> None:
    errors: list[object] = []
    producer = Producer(_config(address) | {"message.max.bytes": kafka.LARGEST_RECORD_BYTES, "acks": "all"})
    producer.produce(topic, value, on_delivery=lambda error, _message: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]


def _first(address: str, topic: str) -> bytes | None:
    limits = {"fetch.message.max.bytes": 70 << 20, "receive.message.max.bytes": 80 << 20, "fetch.max.bytes": 70 << 20}
    consumer = Consumer(_config(address) | limits | {"group.id": "g", "enable.auto.commit": False})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        message = consumer.poll(20)
        assert message is not None
        return message.value()
    finally:
        consumer.close()

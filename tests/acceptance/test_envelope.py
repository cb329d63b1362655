"""What a call leaves in the log: the client's bytes as the value, its metadata in the envelope, its key nowhere."""

import time
import uuid
from typing import cast

from confluent_kafka import Consumer, Message, TopicPartition

from headrace.bus.envelope import read_envelope
from headrace.bus.topics import request_topic
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope
from tests.acceptance.calls import Client, simple
from tests.acceptance.eventually import eventually
from tests.acceptance.stack import KEY, Stack

SECONDS = 30.0
DEFAULT_DEADLINE_SECONDS = 60.0
MAXIMUM_DEADLINE_SECONDS = 600.0
METADATA = (
    ("authorization", f"Bearer {KEY}"),
    ("x-api-key", KEY),
    ("x-first", "one"),
    ("x-twice", "a"),
    ("x-twice", "b"),
    ("x-raw-bin", b"\x00\xff\n"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ("cookie", "session=secret"),
    ("headrace-tenant", "somebody-else"),
)


def record_of(stack: Stack, payload: bytes) -> Message:
    """The record whose value is the payload, read from the log as any Kafka consumer would."""
    topic = request_topic("default", "interactive", "simple")
    consumer = Consumer(
        {"bootstrap.servers": stack.ready["kafka"], "group.id": uuid.uuid4().hex, "enable.auto.commit": False}
    )
    try:
        partitions = consumer.list_topics(topic, SECONDS).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])

        def look() -> Message | None:
            while (message := consumer.poll(0.1)) is not None:
                if message.value() == payload:
                    return message
            return None

        return eventually(look, seconds=SECONDS, what="a record with exactly the client's bytes")
    finally:
        consumer.close()


def envelope_of(message: Message) -> Envelope:
    headers = cast("list[tuple[str, bytes]]", message.headers())  # as the client gives them; its types say more
    ((name, value),) = headers
    assert name == "headrace-envelope"
    return read_envelope(value)


def test_the_record_holds_the_client_s_bytes_and_no_credential(stack: Stack, gateway: Client) -> None:
    payload = simple(id=uuid.uuid4().hex).SerializeToString() + b"\xfa\x7f\x03odd"  # a field that nobody knows
    began = time.time()
    gateway.send("ModelInfer", payload, metadata=METADATA, seconds=30)

    message = record_of(stack, payload)
    envelope = envelope_of(message)

    assert message.key() == envelope.call_id
    assert len(envelope.call_id) == 16
    assert (envelope.method, envelope.attempt, envelope.tenant) == (METHOD_MODEL_INFER, 1, "development")
    assert envelope.reply_address == stack.ready["reply"][0]
    assert began < envelope.expire_time_unix_micros / 1e6 < time.time() + 31
    told = [(entry.key, entry.value) for entry in envelope.metadata]
    assert sorted(told, key=lambda entry: entry[0]) == [  # gRPC keeps the order of equal keys only
        ("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-first", b"one"),
        ("x-raw-bin", b"\x00\xff\n"),
        ("x-twice", b"a"),
        ("x-twice", b"b"),
    ]
    assert not any(secret in str(message.headers()) for secret in (f"Bearer {KEY}", "secret", "somebody-else"))


def test_a_call_without_a_deadline_gets_the_default(stack: Stack, gateway: Client) -> None:
    request = simple(id=uuid.uuid4().hex)
    began = time.time()
    gateway.infer(request, seconds=None)
    ended = time.time()

    expires = envelope_of(record_of(stack, request.SerializeToString())).expire_time_unix_micros / 1e6

    assert began + DEFAULT_DEADLINE_SECONDS <= expires <= ended + DEFAULT_DEADLINE_SECONDS


def test_a_deadline_beyond_the_maximum_is_cut_to_it(stack: Stack, gateway: Client) -> None:
    request = simple(id=uuid.uuid4().hex)
    gateway.infer(request, seconds=86_400)

    expires = envelope_of(record_of(stack, request.SerializeToString())).expire_time_unix_micros / 1e6

    assert expires < time.time() + MAXIMUM_DEADLINE_SECONDS + 1

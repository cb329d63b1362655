"""A whole router between a real broker and a real Triton: what it commits, and what it says of itself."""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition

from headrace.bus.announcements import model_key
from headrace.bus.answers.hub import GrpcAnswerHub
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.answers.wire import Trust
from headrace.bus.control import KafkaAnnouncements, KafkaUsage, Topics, until_own_topics
from headrace.bus.envelope import envelope_base
from headrace.bus.log import KafkaPublisher
from headrace.bus.protocols import Outcome, RouterKey, TopicPartition, UsageBatch
from headrace.bus.settings import KafkaSettings, PoolSettings, ReplyTrustSettings, TopicSettings
from headrace.bus.topics import consumer_group, request_topic
from headrace.bus.v1.announcement_pb2 import Announcement, ModelDescription
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope
from headrace.bus.v1.usage_pb2 import UsageEntry
from headrace.local.ports import FreePorts
from router.app import Router
from router.settings import AdminSettings, RouterSection, RouterSettings, TritonSettings
from tests.acceptance.calls import simple
from tests.unit.gateway.certifying import Authority

SECONDS = 30.0
ROUTER = "r"
TOPICS = TopicSettings(request_partitions=2)


@pytest.fixture
async def kafka(broker: str) -> KafkaSettings:
    """A broker that has the announcements topic."""
    settings = KafkaSettings(bootstrap_servers=broker)
    await until_own_topics(settings, Topics(settings, TOPICS, client_id="test"), "test")
    return settings


@pytest.fixture
def pool() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("a secret of this test", encoding="utf-8")
    return path


@asynccontextmanager
async def routing(
    kafka: KafkaSettings,
    triton: str,
    pool: str,
    secret: Path,
    topics: TopicSettings = TOPICS,
    *,
    trust: ReplyTrustSettings | None = None,
) -> AsyncIterator[Router]:
    """A router of its own pool; it has left when this is left."""
    settings = RouterSettings(
        kafka=kafka,
        topics=topics,
        pool=PoolSettings(name=pool),
        reply_trust=trust or ReplyTrustSettings(secret_file=secret),
        router=RouterSection(
            id=ROUTER,
            triton=TritonSettings(address=triton),
            admin=AdminSettings(host="127.0.0.1", port=FreePorts("127.0.0.1").take()),
        ),
    )
    router = Router(settings, Whereabouts(["127.0.0.1"]))
    async with AsyncExitStack() as owned:
        await router.start(owned, asyncio.Event())
        yield router


async def described(
    kafka: KafkaSettings, pool: str, model: str, holds: Callable[[ModelDescription], bool]
) -> list[ModelDescription]:
    """All that the router has said of a model, until it says what is waited for."""
    said = []
    async with asyncio.timeout(SECONDS), KafkaAnnouncements(kafka, client_id="test") as log:
        words = log.read()
        async with aclosing(cast("AsyncGenerator[tuple[str, Announcement | None] | None]", words)):
            async for word in words:
                if word is not None and word[0] == model_key(pool, ROUTER, model) and word[1] is not None:
                    said.append(word[1].model)
                    if holds(said[-1]):
                        break
    return said


async def test_what_was_taken_from_the_log_is_committed_while_the_router_runs(
    kafka: KafkaSettings, triton_address: str, pool: str, secret: Path
) -> None:
    """Its lag can be trusted, and a router that is killed leaves the next one no more than what it had not begun."""
    place = TopicPartition(request_topic(pool, "interactive", "simple"), 1)
    group = consumer_group(pool, "interactive")
    committed = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, group_id=group, enable_auto_commit=False)
    async with routing(kafka, triton_address, pool, secret), AsyncExitStack() as owned:
        await described(kafka, pool, "simple", lambda said: place.partition in said.partitions)
        publisher = KafkaPublisher(
            kafka, client_id="test", max_message_bytes=1 << 20, delivery_seconds=SECONDS, on_failure=lambda *_: None
        )
        await owned.enter_async_context(publisher)
        owned.push_async_callback(committed.stop)
        await committed.start()
        for number in range(3):
            publisher.publish(place, b"%16d" % number, b"", b"a record without an envelope is skipped")

        async with asyncio.timeout(SECONDS):
            while await committed.committed(AioPartition(*place)) != 3:
                pass  # each question takes its time: there is nothing to spin on


async def test_a_topic_that_cannot_be_made_keeps_no_other_model_from_being_served(
    kafka: KafkaSettings, triton_address: str, pool: str, secret: Path
) -> None:
    """A quota or an access rule that forbids a new topic must not stop what has its topic."""
    group = consumer_group(pool, "interactive")
    await Topics(kafka, TOPICS, client_id="test").ensure_requests([request_topic(pool, "interactive", "simple")], group)
    impossible = TopicSettings(replication_factor=3)

    async with routing(kafka, triton_address, pool, secret, impossible):
        served = await described(kafka, pool, "simple", lambda said: list(said.partitions) == [0, 1])
        without = await described(kafka, pool, "slow", lambda said: bool(said.versions))

    assert {said.partition_count for said in served} == {2}
    assert {said.partition_count for said in without} == {0}


class Waiting:
    """A gateway that waits for answers: see HubEvents."""

    def __init__(self, answers: int) -> None:
        self._missing = answers
        self.all_there = asyncio.Event()
        self.is_attached = asyncio.Event()

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        del call_id, attempt
        assert isinstance(outcome, bytes), outcome
        self._missing -= 1
        if not self._missing:
            self.all_there.set()

    def attached(self, router: RouterKey) -> None:
        del router
        self.is_attached.set()

    def left(self, router: RouterKey) -> None: ...

    def detached(self, router: RouterKey) -> None: ...


async def reported(kafka: KafkaSettings, source: str, until: Callable[[list[UsageEntry]], bool]) -> list[UsageEntry]:
    """What a source reports, until that is what is waited for."""
    entries: list[UsageEntry] = []
    batches = cast("AsyncGenerator[UsageBatch]", KafkaUsage(kafka, client_id="test").read(None))
    async with asyncio.timeout(SECONDS), aclosing(batches):
        async for batch in batches:
            for report in batch.reports:
                if report.source.startswith(source):
                    entries += report.entries
            if until(entries):
                break
    return entries


async def test_how_long_its_model_took_is_reported_of_every_tenant(
    kafka: KafkaSettings, triton_address: str, pool: str, secret: Path
) -> None:
    """While the router runs, and of the last calls before it left."""
    topic, gateway, source = request_topic(pool, "interactive", "simple"), Waiting(3), f"router/{pool}/{ROUTER}/"
    hub = GrpcAnswerHub(
        incarnation=7,
        pool=pool,
        trust=Trust(ReplyTrustSettings(secret_file=secret)),
        max_message_bytes=1 << 20,
        events=gateway,
    )
    address = f"127.0.0.1:{hub.bind('127.0.0.1', 0)}"
    publisher = KafkaPublisher(
        kafka, client_id="test", max_message_bytes=1 << 20, delivery_seconds=SECONDS, on_failure=lambda *_: None
    )
    async with routing(kafka, triton_address, pool, secret), hub, publisher:
        await described(kafka, pool, "simple", lambda said: len(said.partitions) == TOPICS.request_partitions)

        def publish(tenant: str) -> None:
            base = envelope_base(method=METHOD_MODEL_INFER, reply_address=address, reply_incarnation=7)
            expires = time.time_ns() // 1000 + int(SECONDS * 1e6)
            own = Envelope(call_id=os.urandom(16), expire_time_unix_micros=expires, tenant=tenant)
            place = TopicPartition(topic, 0)
            publisher.publish(place, own.call_id, base + own.SerializeToString(), simple().SerializeToString())

        publish("acme")
        publish("acme")
        await reported(kafka, source, bool)
        publish("other")
        async with asyncio.timeout(SECONDS):
            await gateway.all_there.wait()

    entries = await reported(kafka, source, lambda entries: entries[-1:] != [] and entries[-1].tenant == "other")
    assert {(entry.tenant, entry.key_id, entry.model, entry.calls) for entry in entries} == {
        ("acme", "", "simple", 0),
        ("other", "", "simple", 0),
    }
    assert all(entry.model_micros > 0 for entry in entries)


def certificate(folder: Path, authority: Authority) -> ReplyTrustSettings:
    """A router's certificate, in place of the one that is there."""
    issued = authority.server()
    ca, own, key = folder / "ca.crt", folder / "tls.crt", folder / "tls.key"
    for path, content in ((ca, authority.pem), (own, issued.chain), (key, issued.key)):
        path.write_bytes(content)
    return ReplyTrustSettings(tls_ca_file=ca, tls_certificate_file=own, tls_key_file=key)


async def test_a_renewed_certificate_is_shown_to_gateways_while_the_router_runs(
    kafka: KafkaSettings, pool: str, secret: Path, tmp_path: Path
) -> None:
    before, after = Authority(), Authority()
    gateway = Waiting(1)
    async with routing(kafka, "127.0.0.1:1", pool, secret, trust=certificate(tmp_path, before)) as router:
        theirs = certificate(tmp_path, after)
        hub = GrpcAnswerHub(incarnation=7, pool=pool, trust=Trust(theirs), max_message_bytes=1 << 20, events=gateway)
        address = f"127.0.0.1:{hub.bind('127.0.0.1', 0)}"
        async with hub, asyncio.timeout(SECONDS):
            # Announced again and again, as a gateway is: one that is silent and can't be reached is given up.
            while not gateway.is_attached.is_set():
                router._links.gateway_announced(address, 7)
                await asyncio.sleep(0.1)  # the pace of announcing

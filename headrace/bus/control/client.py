"""How the broker is reached, and why it is not: what all clients here share."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError, SaslAuthenticationFailed, UnsupportedSaslMechanismError

from headrace.bus.protocols import LogUnavailableError
from headrace.bus.settings import KafkaSettings
from headrace.runtime.settings import read_secret

_log = logging.getLogger(__name__)
REQUEST_SECONDS = 5.0
RETRY_SECONDS = 0.25
_RETRY_MAX_SECONDS = 0.5
TROUBLE = (KafkaError, OSError, TimeoutError)


def client_config(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:  # Any: keyword arguments of three clients
    """What aiokafka's clients take, from the settings."""
    # aiokafka logs every attempt to reach an absent broker as an error; our own callers say it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    config: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers,
        "client_id": client_id,
        "security_protocol": kafka.security_protocol,
        "request_timeout_ms": round(REQUEST_SECONDS * 1000),
    }
    if kafka.security_protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file and str(kafka.ssl_ca_file))
        if kafka.ssl_certificate_file is not None:
            context.load_cert_chain(kafka.ssl_certificate_file, kafka.ssl_key_file)
        config["ssl_context"] = context
    if kafka.sasl_mechanism is not None and kafka.sasl_password_file is not None:
        config |= {
            "sasl_mechanism": kafka.sasl_mechanism,
            "sasl_plain_username": kafka.sasl_username,
            "sasl_plain_password": read_secret(kafka.sasl_password_file),
        }
    return config


async def wait_for_broker(kafka: KafkaSettings, client_id: str) -> None:
    """Return once the broker answers. Tries for ever, and says each reason once: a process may start before its broker.

    A refused login is waited out as well: the password's file is read again for every try.
    """
    delay, said = RETRY_SECONDS, ""
    while True:
        admin = AIOKafkaAdminClient(**client_config(kafka, client_id))
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await admin.start()
                return
        except TROUBLE as exc:
            why = await reason(kafka, client_id, exc)
            if why != said:
                _log.warning("%s; trying again", why, extra={"event": "broker_awaited", "why": why})
                said = why
        finally:
            await admin.close()
        await asyncio.sleep(delay)  # the pace of retries, not a way to wait for an event
        delay = min(delay * 2, _RETRY_MAX_SECONDS)


async def until_entered(owned: AsyncExitStack, *logs: AbstractAsyncContextManager[object]) -> None:
    """Enter carriers in turn, and leave them with `owned`; a broker that goes away meanwhile is awaited.

    It may have answered a moment ago, and be slow or gone now: that ends no process that starts.
    """
    said: set[str] = set()
    for log in logs:
        while True:
            try:
                await owned.enter_async_context(log)
            except LogUnavailableError as exc:
                if (why := str(exc)) not in said:
                    said.add(why)
                    _log.warning("%s; trying again", why, extra={"event": "broker_awaited", "why": why})
                await asyncio.sleep(RETRY_SECONDS)  # the pace of retries
            else:
                break


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer.

    Its own `stop` ends halfway where a fetch failed and is about to be tried again: with a cancellation that is
    nobody's, and with its connections open.
    """
    task = asyncio.current_task()
    cancelled = 0 if task is None else task.cancelling()
    try:
        await consumer.stop()
    except asyncio.CancelledError:
        await consumer._client.close()  # noqa: SLF001  what is left of it to do
        if task is None or task.cancelling() > cancelled:
            raise


async def reason(kafka: KafkaSettings, client_id: str, exc: BaseException) -> str:
    """Why no broker let us in. The client only ever says that none did, so one is asked once more, by hand."""
    config = client_config(kafka, client_id)
    reasons = []
    for host, port, _ in collect_hosts(config.pop("bootstrap_servers"), randomize=False):
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                connection = await create_conn(host, port, **config)
            connection.close()
        except (SaslAuthenticationFailed, UnsupportedSaslMechanismError) as refusal:
            return (
                f"the broker at {host}:{port} refuses the login of {kafka.sasl_username}: {text_of(refusal)};"
                " check HEADRACE_KAFKA__SASL_MECHANISM, HEADRACE_KAFKA__SASL_USERNAME"
                " and HEADRACE_KAFKA__SASL_PASSWORD_FILE"
            )
        except TROUBLE as trouble:
            reasons.append(f"the broker at {host}:{port} does not answer: {text_of(trouble)}")
        else:
            reasons.append(
                f"the broker at {host}:{port} lets us connect and serves nothing: {text_of(exc)};"
                f" unless it is just starting, HEADRACE_KAFKA__SECURITY_PROTOCOL={kafka.security_protocol} is not"
                " what it asks for"
            )
    return reasons[0]


@asynccontextmanager
async def producing(kafka: KafkaSettings, client_id: str, *, largest_bytes: int) -> AsyncIterator[AIOKafkaProducer]:
    """A producer for few records that must arrive. Entering raises LogUnavailableError."""
    producer = AIOKafkaProducer(
        **client_config(kafka, client_id),
        acks="all",
        linger_ms=0,
        max_request_size=largest_bytes,
        metadata_max_age_ms=30_000,
    )
    try:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await producer.start()
        except TROUBLE as exc:
            raise LogUnavailableError(await reason(kafka, client_id, exc)) from None
        yield producer
    finally:
        await producer.stop()


def text_of(exc: BaseException) -> str:
    """An error of aiokafka's in a line: its own text is often empty."""
    texts = [text for text in exc.args if isinstance(text, str)]
    return f"{type(exc).__name__}: {texts[0]}" if texts else type(exc).__name__

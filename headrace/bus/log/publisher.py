"""Publishing requests without ever waiting. Why a queue stands before the client's: `docs/adr/0012`."""

import asyncio
import logging
from functools import partial
from typing import NamedTuple, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.bus.envelope import ENVELOPE_HEADER
from headrace.bus.log.client import client_config
from headrace.bus.protocols import (
    LogError,
    LogFullError,
    LogUnavailableError,
    PublishFailed,
    RecordTooLargeError,
    TopicPartition,
)
from headrace.bus.settings import KafkaSettings
from headrace.bus.topics import ENVELOPE_ROOM_BYTES
from headrace.bus.turns import Turns, Waiting

UNDER_WAY_BYTES = 64 << 20
"""How much of large records the client has at a time: what a broker that takes 7 MiB/s delivers in 10 s."""

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 0.05  # how late a failed delivery may be noticed
_TURN_SECONDS = 0.005  # how late it may be noticed that it is a record's turn
_SHARE_BYTES = 16 << 20  # of one partition, which may not be moving
_SMALL_BYTES = 64 << 10  # a call so small waits for no large one, unless it is of the same partition


class _Unsent(NamedTuple):
    """A record that waits for its turn."""

    attempt: int
    envelope: bytes
    payload: bytes


class KafkaPublisher:
    """Publishes requests. `publish` never blocks; failures come later through the callback, on the loop.

    One request to the broker is under way at a time, so that what gathers meanwhile makes the next batch by itself.
    Of large records the client gets so many bytes at a time, and the rest waits here for its turn: in the client each
    byte is a copy, and the clock for a delivery runs.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        *,
        client_id: str,
        max_message_bytes: int,
        delivery_seconds: float,
        on_failure: PublishFailed,
        turns: Turns[_Unsent] | None = None,
    ) -> None:
        """`turns` says what may be under way at a time, where it is not to be as usual."""
        self._on_failure = on_failure
        self._delivery_seconds = delivery_seconds
        if turns is None:
            turns = Turns(most_bytes=UNDER_WAY_BYTES, share_bytes=_SHARE_BYTES, small_bytes=_SMALL_BYTES)
        self._turns = turns
        self._closed = False
        self._producer = Producer(
            client_config(kafka, client_id)
            | {
                "acks": "all",
                "max.in.flight.requests.per.connection": 1,
                "linger.ms": 0,
                "message.max.bytes": max_message_bytes + ENVELOPE_ROOM_BYTES,
                "message.timeout.ms": round(delivery_seconds * 1000),
                "queue.buffering.max.kbytes": 1 << 20,
                "compression.type": "none",
            },
            logger=_log,
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_REPORT_SECONDS, self._look)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        self._timer.cancel()
        # Nobody waits any more for what is still queued: it is dropped, not waited for.
        self._producer.purge(in_queue=True, in_flight=True, blocking=False)
        self._producer.poll(0)

    def publish(
        self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes, *, attempt: int = 1
    ) -> None:
        """See RequestPublisher.publish."""
        size = len(payload)
        if self._turns.enter(place, size):
            self._hand(place, call_id, attempt, envelope, payload)
            self._producer.poll(0)
            return
        self._turns.wait(place, Waiting(call_id, size, self._loop.time(), _Unsent(attempt, envelope, payload)))
        self._look_in(_TURN_SECONDS)

    def withdraw(self, call_id: bytes) -> bool:
        """See RequestPublisher.withdraw."""
        return self._turns.withdraw(call_id)

    def _hand(self, place: TopicPartition, call_id: bytes, attempt: int, envelope: bytes, payload: bytes) -> None:
        try:
            self._producer.produce(
                place.topic,
                payload,
                call_id,
                place.partition,
                partial(self._reported, place, len(payload), attempt),
                headers=[(ENVELOPE_HEADER, envelope)],
            )
        except BufferError:
            self._turns.left(place, len(payload))
            raise LogFullError("the queue towards the broker is full") from None
        except KafkaException as exc:
            self._turns.left(place, len(payload))
            raise _log_error(exc.args[0]) from None

    def _look(self) -> None:
        """Hear what was delivered and what failed, and send those whose turn it is."""
        self._timer = self._loop.call_later(_REPORT_SECONDS, self._look)
        self._producer.poll(0)
        for place, waiting in self._turns.due():
            try:
                self._hand(place, waiting.key, *waiting.item)
            except LogError as error:
                self._on_failure(waiting.key, waiting.item.attempt, error)
        if len(self._turns):
            self._look_in(_TURN_SECONDS)

    def _look_in(self, seconds: float) -> None:
        if not self._closed and self._timer.when() > self._loop.time() + seconds:
            self._timer.cancel()
            self._timer = self._loop.call_later(seconds, self._look)

    def _reported(
        self, place: TopicPartition, size: int, attempt: int, error: KafkaError | None, message: Message
    ) -> None:
        # Runs inside poll(), thus on the loop's thread.
        self._turns.left(place, size)
        key = message.key() if error is not None else None
        if error is None or not isinstance(key, bytes):
            return
        failure = _log_error(error)
        self._on_failure(key, attempt, failure)
        if error.code() == KafkaError._MSG_TIMED_OUT:  # noqa: SLF001  librdkafka's local codes are spelled so
            # What has waited behind it for as long would only wait again.
            for overdue in self._turns.overdue(place, self._loop.time() - self._delivery_seconds):
                self._on_failure(overdue.key, overdue.item.attempt, failure)


def _log_error(error: KafkaError) -> LogError:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return RecordTooLargeError("the request is larger than the log takes")
    if error.code() == KafkaError._QUEUE_FULL:  # noqa: SLF001  librdkafka's local codes are spelled so
        return LogFullError("the queue towards the broker is full")
    return LogUnavailableError(f"the broker did not take the request: {error.name()}")

"""When a gateway acknowledges answers."""

import asyncio
from typing import cast

import pytest

from headrace.bus.answers import hub
from headrace.bus.answers.hub import Context, _AttachedRouter
from headrace.bus.v1.reply_pb2 import AttachResponse


class Stream:
    """The gateway's end of a stream: keeps what is written."""

    def __init__(self) -> None:
        self.written: asyncio.Queue[AttachResponse] = asyncio.Queue()

    async def write(self, message: bytes) -> None:
        self.written.put_nowait(AttachResponse.FromString(message))


async def test_answers_that_keep_coming_do_not_put_off_the_acknowledgement_of_those_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A router stops for want of room while its answers are not acknowledged, the more so under load."""
    monkeypatch.setattr(hub, "_ACKNOWLEDGE_SECONDS", 600.0)
    stream = Stream()
    router = _AttachedRouter(cast("Context", stream))
    writer = asyncio.create_task(router.outbox.run())

    router.taken(1000, answers=1000, size=10)
    router.taken(1001, answers=1, size=10)  # before the writer had its turn

    async with asyncio.timeout(30):
        first = await stream.written.get()
    assert first.acknowledgement.sequence == 1000
    assert stream.written.empty()
    router.release()
    writer.cancel()
    await asyncio.wait([writer])


async def test_a_lone_answer_is_acknowledged_a_little_later_and_once() -> None:
    stream = Stream()
    router = _AttachedRouter(cast("Context", stream))
    writer = asyncio.create_task(router.outbox.run())

    router.taken(1, answers=1, size=10)
    router.taken(2, answers=1, size=10)
    async with asyncio.timeout(30):
        acknowledgement = await stream.written.get()

    assert acknowledgement.acknowledgement.sequence == 2
    assert stream.written.empty()
    router.release()
    writer.cancel()
    await asyncio.wait([writer])

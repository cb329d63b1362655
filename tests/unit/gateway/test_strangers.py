"""Strangers are read for a short time, few at a time, and nobody can keep the next one out."""

import asyncio
import gzip
from collections.abc import Awaitable
from typing import Any, cast

import grpc.aio
import pytest

from gateway.errors import GatewayFull, RequestMalformed, RequestSlow, RequestTooLarge
from gateway.status import Context
from gateway.strangers import MOST_BYTES, Anteroom

HOUR = 3600.0
PATIENCE_SECONDS = 30.0


class Sender:
    """As much of gRPC as is looked at: a stream whose sender has said these things, and then says nothing."""

    def __init__(self, *said: Any) -> None:
        self._said = list(said)
        self.is_read = asyncio.Event()

    async def read(self) -> Any:
        """The next message."""
        self.is_read.set()
        if self._said:
            return self._said.pop(0)
        return await asyncio.get_running_loop().create_future()


def sender(*said: Any) -> Context:
    return cast("Context", Sender(*said))


def done(*said: Any) -> Context:
    """One who has nothing more to say."""
    return sender(*said, grpc.aio.EOF)


async def soon(awaitable: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await awaitable


async def reading(room: Anteroom) -> "asyncio.Task[bytes]":
    """A slow sender, which is being read."""
    slow = Sender()
    task = asyncio.create_task(room.only(cast("Context", slow)))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await slow.is_read.wait()
    return task


@pytest.mark.parametrize("message", [b"", b"x", bytes(MOST_BYTES), gzip.compress(b"\x0a\x01x", mtime=0)])
async def test_a_message_that_is_there_is_read(message: bytes) -> None:
    room = Anteroom(seconds=HOUR)

    assert await soon(room.only(done(message))) in {message, b"\x0a\x01x"}
    assert len(room) == 0


@pytest.mark.parametrize(
    ("stream", "refusal"),
    [
        (done(), RequestMalformed),
        (done(b"one", b"two"), RequestMalformed),
        (done(bytes(MOST_BYTES + 1)), RequestTooLarge),
        (done(gzip.compress(bytes(MOST_BYTES + 1), mtime=0)), RequestTooLarge),
        (done(b"\x1f\x8bnonsense"), RequestMalformed),
    ],
)
async def test_what_is_not_one_small_message_is_refused(stream: Context, refusal: type[Exception]) -> None:
    room = Anteroom(seconds=HOUR)

    with pytest.raises(refusal):
        await soon(room.only(stream))
    assert len(room) == 0


@pytest.mark.parametrize("stream", [sender(), sender(b"x")])
async def test_a_slow_sender_is_waited_for_no_longer_than_so(stream: Context) -> None:
    """Nor one who leaves open whether there is more."""
    with pytest.raises(RequestSlow):
        await soon(Anteroom(seconds=0.01).only(stream))


async def test_the_last_who_comes_is_read_and_the_longest_read_makes_room() -> None:
    room = Anteroom(places=3, seconds=HOUR)
    slow = [await reading(room) for _ in range(3)]

    assert await soon(room.only(done(b"probe"))) == b"probe"

    with pytest.raises(RequestSlow):
        await soon(slow[0])
    assert not slow[1].done()
    assert not slow[2].done()
    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    assert len(room) == 0


async def test_a_flood_of_slow_senders_leaves_so_many_and_keeps_no_probe_out() -> None:
    room = Anteroom(places=3, seconds=HOUR)
    slow = [Sender() for _ in range(1000)]
    flood = [asyncio.create_task(room.only(cast("Context", each))) for each in slow]
    await slow[-1].is_read.wait()

    probes = [await soon(room.only(done(b"probe"))) for _ in range(10)]

    assert probes == [b"probe"] * 10
    refused, _ = await asyncio.wait(flood[:-3], timeout=PATIENCE_SECONDS)
    assert len(refused) == 997
    for task in flood:
        task.cancel()
    ended = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(each) for each in ended[:-3]} == {RequestSlow}
    assert len(room) == 0


async def test_a_place_that_nobody_is_read_in_is_kept() -> None:
    """Who reads no answers is not hurried: what it was sent can't be taken back."""
    room = Anteroom(places=1, seconds=HOUR)

    async with room.place():
        with pytest.raises(GatewayFull):
            await soon(room.only(done(b"x")))

    assert await soon(room.only(done(b"x"))) == b"x"


async def test_who_leaves_leaves_its_place() -> None:
    room = Anteroom(places=1, seconds=HOUR)
    slow = await reading(room)

    slow.cancel()
    await asyncio.wait({slow})

    assert len(room) == 0
    assert not room._read

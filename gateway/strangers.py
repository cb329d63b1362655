"""Reading what callers send whom nobody has vouched for: small messages, from few at a time, and not for long.

gRPC hands over whole messages only, takes up to 4 GiB for one whatever its limits say (grpc#43012), and up to some
32 MiB of a stream that nobody reads. What can be bounded is how many such streams there are, and how long each is
read: so what strangers make a gateway hold is at most what the network brings in half a second, and those 32 MiB for
each place. Who comes last finds a place: the one that has been read for longest makes room, and an honest one is done
in no time.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from gateway.compression import unpacked
from gateway.errors import GatewayFull, RequestMalformed, RequestSlow, RequestTooLarge
from gateway.status import Context

MOST_BYTES = 64 * 1024
"""Of one message."""
_SECONDS = 0.5
_PLACES = 64


class Anteroom:
    """Where strangers are read."""

    def __init__(self, *, places: int = _PLACES, seconds: float = _SECONDS) -> None:
        """There are so many places; so long is each message waited for."""
        self._most = places
        self._seconds = seconds
        self._taken: set[Place] = set()
        self._read: dict[Place, asyncio.Timeout] = {}

    def __len__(self) -> int:
        """How many places are taken."""
        return len(self._taken)

    @asynccontextmanager
    async def place(self) -> AsyncIterator["Place"]:
        """A place for one stream, for as long as it is open to what its caller sends.

        Raises GatewayFull where all are taken and none is being read.
        """
        if len(self._taken) >= self._most:
            self._make_room()
        place = Place(self)
        self._taken.add(place)
        try:
            yield place
        finally:
            self._taken.discard(place)

    async def only(self, context: Context) -> bytes:
        """The one message of a call, read to the end of what its caller sends: nothing of it is left to be held.

        Raises as `place` and `Place.read` do.
        """
        async with self.place() as place:
            message = await place.read(context)
            if message is None or await place.read(context) is not None:
                raise RequestMalformed
        return message

    @asynccontextmanager
    async def reading(self, place: "Place") -> AsyncIterator[None]:
        """While a place is read. Raises RequestSlow, inside, when its time is over or another stream needs it."""
        timeout = asyncio.timeout(self._seconds)
        try:
            async with timeout:
                self._read[place] = timeout
                yield
        except TimeoutError:
            raise RequestSlow from None
        finally:
            self._read.pop(place, None)

    def _make_room(self) -> None:
        if not self._read:
            raise GatewayFull
        longest = next(iter(self._read))
        timeout = self._read.pop(longest)
        self._taken.discard(longest)
        if not timeout.expired():
            timeout.reschedule(asyncio.get_running_loop().time())


class Place:
    """Of one stream."""

    def __init__(self, room: Anteroom) -> None:
        self._room = room

    async def read(self, context: Context) -> bytes | None:
        """The next message; None where there is no more.

        Raises RequestSlow, also where another stream needs the place, RequestTooLarge or RequestMalformed.
        """
        async with self._room.reading(self):
            message = await context.read()
        if message is grpc.aio.EOF:
            return None
        if len(message) > MOST_BYTES:
            raise RequestTooLarge(limit_bytes=str(MOST_BYTES))
        return await unpacked(message, MOST_BYTES)

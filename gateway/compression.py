"""What a caller compressed, unpacked no further than it may be large.

gRPC's core would unpack a message whole before it looks at the size: 2 MiB of nothing become 2 GiB. So the server is
told to leave messages packed, and they are unpacked here. Which are packed is seen from how they begin: no request of
a method here begins as gzip (the first byte is no field of any protobuf) or as zlib data (it would be a field 15, which
none of them has).
"""

import asyncio
import zlib

from gateway.errors import RequestMalformed, RequestTooLarge

_GZIP, _ZLIB = 31, 15  # as zlib names its formats
_BEGINNINGS = (b"\x1f\x8b", b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_SMALL_BYTES = 64 * 1024


def is_packed(message: bytes) -> bool:
    """Whether `unpacked` has something to do: nanoseconds."""
    return message.startswith(_BEGINNINGS)


async def unpacked(message: bytes, most: int) -> bytes:
    """The message as its caller made it. Raises RequestTooLarge beyond so many bytes, or RequestMalformed.

    What may become large is unpacked beside the loop.
    """
    if not is_packed(message):
        return message
    if most <= _SMALL_BYTES:
        return _unpacked(message, most)
    return await asyncio.to_thread(_unpacked, message, most)


def _unpacked(message: bytes, most: int) -> bytes:
    inflater = zlib.decompressobj(_GZIP if message.startswith(b"\x1f") else _ZLIB)
    try:
        plain = inflater.decompress(message, most + 1)
    except zlib.error:
        raise RequestMalformed from None
    if len(plain) > most:
        raise RequestTooLarge(limit_bytes=str(most))
    if not inflater.eof or inflater.unused_data:
        raise RequestMalformed
    return plain

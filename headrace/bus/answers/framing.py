"""A lone answer with a large body, put into and out of its message with one copy instead of two.

The bytes are those that protobuf would write: what one end frames here, the other may parse in the ordinary way, and
the other way round. Protobuf copies a bytes field into the message and again out of it; of 4 MiB that is milliseconds.
"""

from typing import NamedTuple

from headrace.bus.v1.reply_pb2 import Answer

LARGE_BYTES = 256 * 1024
"""From here on an answer goes alone. Smaller ones share messages: a write costs more than a copy of them."""

# Tags: AttachRequest.answers = 2, AnswerBatch.answers = 1; of an Answer: sequence, call_id, attempt, response.
_ANSWERS, _ANSWER = 0x12, 0x0A
_SEQUENCE, _CALL_ID, _ATTEMPT, _RESPONSE = 0x08, 0x12, 0x18, 0x22


class LargeAnswer(NamedTuple):
    """An answer that was framed."""

    sequence: int
    call_id: bytes
    attempt: int
    response: bytes


def framed(sequence: int, call_id: bytes, attempt: int, response: bytes) -> bytes:
    """An AttachRequest with one answer, serialised."""
    head = Answer(sequence=sequence, call_id=call_id, attempt=attempt).SerializeToString()
    head = b"".join((head, bytes((_RESPONSE,)), _varint(len(response))))
    size = len(head) + len(response)
    batch = bytes((_ANSWER,)) + _varint(size)
    message = bytes((_ANSWERS,)) + _varint(len(batch) + size)
    return b"".join((message, batch, head, response))


def unframed(message: bytes) -> LargeAnswer | None:
    """The answer of a message that `framed` made; None for any other message, which is to be parsed."""
    end = len(message)
    if end < LARGE_BYTES:
        return None
    position = _opened(message, _opened(message, 0, _ANSWERS), _ANSWER)
    if position is None:
        return None
    start = position
    while position < end:
        tag = message[position]
        number, after = _read_varint(message, position + 1)
        if tag == _RESPONSE:
            if after + number != end:
                return None
            head = Answer.FromString(message[start:position])
            return LargeAnswer(head.sequence, head.call_id, head.attempt, message[after:])
        if tag not in {_SEQUENCE, _CALL_ID, _ATTEMPT}:
            return None
        position = after + number if tag == _CALL_ID else after
    return None


def _opened(message: bytes, position: int | None, tag: int) -> int | None:
    """Where a field's content begins that fills the message to its end; None where no such field stands here."""
    if position is None or message[position] != tag:
        return None
    size, start = _read_varint(message, position + 1)
    return start if start + size == len(message) else None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004  seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte <= 0x7F:  # noqa: PLR2004
            return number, position
        shift += 7

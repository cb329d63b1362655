"""Reads the few fields of a ModelInferRequest that a call is routed by, without parsing its tensors.

A walk over the top-level fields: tensors are stepped over by their length, so the size of a request hardly matters. The
walk always goes to the end. Stopping at the first tensor would be shorter, but a field that stands twice counts where
it stands last: a caller could name one model in front for us and another one behind for Triton.
"""

from typing import NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest

from gateway.errors import RequestMalformed

_MAX_FIELDS = 4096
"""Beyond it the real parser takes over: millions of empty fields fit in one message, and it is faster at them."""

_LENGTH_DELIMITED, _VARINT, _FIXED64, _FIXED32 = 2, 0, 1, 5
_MODEL_NAME, _MODEL_VERSION, _ID, _PARAMETERS = (number << 3 | _LENGTH_DELIMITED for number in (1, 2, 3, 4))
_SEQUENCE_ID = "sequence_id"
_MAX_VARINT_BYTES = 10
_MAX_VARINT = (1 << 64) - 1
_MAX_TAG = (1 << 32) - 1
_MAX_TAG_BYTES = 5


class RoutingFields(NamedTuple):
    """What a call is routed by. `parameters` are the map's entries, serialised, in their order."""

    model_name: str
    model_version: str
    id: str
    parameters: tuple[bytes, ...]


def routing_fields(request: bytes) -> RoutingFields:  # noqa: C901, PLR0912  one loop, unrolled: a call a field would cost twice as much
    """Read them. Raises RequestMalformed for what the real parser would not take either.

    What is wrong inside a tensor is left for Triton to find.
    """
    name = version = request_id = ""
    parameters: list[bytes] = []
    position, end = 0, len(request)
    fields = 0
    try:
        while position < end:
            tag = request[position]
            position += 1
            if tag >= 0x80:  # noqa: PLR2004  the continuation bit of a varint
                tag, position = _varint(request, position - 1, _MAX_TAG_BYTES)
            wire_type = tag & 7
            if wire_type == _LENGTH_DELIMITED:
                length = request[position]
                position += 1
                if length >= 0x80:  # noqa: PLR2004
                    length, position = _varint(request, position - 1)
                start = position
                position += length
                if tag == _MODEL_NAME:
                    name = request[start:position].decode()
                elif tag == _MODEL_VERSION:
                    version = request[start:position].decode()
                elif tag == _ID:
                    request_id = request[start:position].decode()
                elif tag == _PARAMETERS:
                    parameters.append(request[start:position])
            elif wire_type == _VARINT:
                _, position = _varint(request, position)
            elif wire_type == _FIXED64:
                position += 8
            elif wire_type == _FIXED32:
                position += 4
            else:
                return _parsed(request)  # a group, or nonsense
            fields += 1
            if fields > _MAX_FIELDS or tag < 8 or tag > _MAX_TAG:  # noqa: PLR2004  field number 0 does not exist
                return _parsed(request)
        if position != end:
            raise RequestMalformed
        return RoutingFields(name, version, request_id, tuple(parameters))
    except (IndexError, UnicodeDecodeError):
        raise RequestMalformed from None


def in_sequence(request: bytes) -> bool:
    """Whether a request that `routing_fields` took belongs to a sequence: it has the parameter `sequence_id`."""
    named = False
    for serialised in routing_fields(request).parameters:
        try:
            entry = ModelInferRequest.ParametersEntry.FromString(serialised)
        except DecodeError:
            return False  # Triton refuses it
        if entry.key == _SEQUENCE_ID:  # the last one counts
            choice = entry.value.WhichOneof("parameter_choice")
            named = choice is not None and bool(getattr(entry.value, choice))  # Triton takes 0 and "" for none
    return named


def _varint(data: bytes, position: int, longest: int = _MAX_VARINT_BYTES) -> tuple[int, int]:
    value = shift = 0
    for _ in range(longest):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004
            return value & _MAX_VARINT, position
        shift += 7
    raise RequestMalformed


def _parsed(request: bytes) -> RoutingFields:
    try:
        message = ModelInferRequest.FromString(request)
    except DecodeError:
        raise RequestMalformed from None
    entries = ModelInferRequest(parameters=message.parameters)
    return RoutingFields(message.model_name, message.model_version, message.id, _entries(entries.SerializeToString()))


def _entries(serialised: bytes) -> tuple[bytes, ...]:
    """The values of a message that holds nothing but parameters."""
    entries = []
    position = 0
    while position < len(serialised):
        length, start = _varint(serialised, position + 1)
        position = start + length
        entries.append(serialised[start:position])
    return tuple(entries)

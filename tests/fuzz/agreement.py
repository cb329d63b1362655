"""What it means that the routing-field scan and the real parser agree on a request."""

from google.protobuf.message import DecodeError
from tritonclient.grpc.service_pb2 import ModelInferRequest

from gateway.errors import RequestMalformed
from gateway.routing_fields import RoutingFields, routing_fields
from tests.unit.gateway.wire import field

NESTED = (4, 5, 6)
"""Parameters, inputs, outputs: what is wrong inside them is left for Triton to find."""


def verdicts(request: bytes) -> tuple[RoutingFields | None, ModelInferRequest | None]:
    """What the scan and the real parser say; None where they refuse."""
    try:
        scanned = routing_fields(request)
    except RequestMalformed:
        scanned = None
    try:
        parsed = ModelInferRequest.FromString(request)
    except DecodeError:
        parsed = None
    return scanned, parsed


def assert_same(scanned: RoutingFields, parsed: ModelInferRequest) -> None:
    assert (scanned.model_name, scanned.model_version, scanned.id) == (
        parsed.model_name,
        parsed.model_version,
        parsed.id,
    )
    entries = b"".join(field(4, entry) for entry in scanned.parameters)
    assert ModelInferRequest.FromString(entries).parameters == parsed.parameters


def without_nested(request: bytes) -> bytes | None:
    """The request with its nested messages emptied: what the scan looks at. None where it can't be walked."""
    kept, position = [], 0
    try:
        while position < len(request):
            start = position
            tag, position = read_varint(request, position)
            kind = tag & 7
            if kind == 2:
                length, position = read_varint(request, position)
                position += length
                if tag >> 3 in NESTED:
                    kept.append(field(tag >> 3, b""))
                    continue
            elif kind == 0:
                _, position = read_varint(request, position)
            else:
                position += {1: 8, 5: 4}[kind]
            kept.append(request[start:position])
    except (IndexError, KeyError):
        return None
    return b"".join(kept)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & ((1 << 64) - 1), position


def assert_no_worse(request: bytes) -> None:
    scanned, parsed = verdicts(request)
    if parsed is not None:
        assert scanned is not None, "the real parser takes what the scan refuses"
        assert_same(scanned, parsed)
    elif scanned is not None:
        outside = without_nested(request)
        assert outside is not None
        ModelInferRequest.FromString(outside)  # the fault is inside a nested message, or this raises

"""The envelope beside every request in the log: how it is put together, and how it is read.

The parts of an envelope that are the same for many calls are serialised once: a protobuf message may be put together
from serialised parts.
"""

from google.protobuf.message import DecodeError

from headrace.bus.v1.envelope_pb2 import Envelope, Method

SCHEMA_VERSION = 1
ENVELOPE_HEADER = "headrace-envelope"
"""The header of a record that carries it."""


class EnvelopeError(ValueError):
    """The envelope is missing, malformed, or of a version that this reader does not know."""


def envelope_base(*, method: Method, reply_address: str, reply_incarnation: int) -> bytes:
    """The part that holds for all calls of one gateway, serialised; the rest of an envelope is appended to it."""
    return Envelope(
        schema_version=SCHEMA_VERSION,
        method=method,
        reply_address=reply_address,
        reply_incarnation=reply_incarnation,
        attempt=1,
    ).SerializeToString()


def read_envelope(serialised: bytes) -> Envelope:
    """Parse and check. Raises EnvelopeError."""
    try:
        envelope = Envelope.FromString(serialised)
    except DecodeError:
        raise EnvelopeError("not an envelope") from None
    if envelope.schema_version != SCHEMA_VERSION:
        raise EnvelopeError(f"schema version {envelope.schema_version} is not known here")
    if not envelope.call_id or not envelope.reply_address:
        raise EnvelopeError("an envelope without a call id or a reply address")
    return envelope

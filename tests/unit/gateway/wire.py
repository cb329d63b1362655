"""Protobuf's wire format by hand, for messages that no library would write."""


def varint(value: int, width: int = 1) -> bytes:
    """A varint of at least `width` bytes; more than needed are legal up to a point."""
    written = bytearray()
    while value >= 0x80 or len(written) + 1 < width:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(value)) + value

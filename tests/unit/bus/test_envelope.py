"""A router runs only what it understands: an envelope of its version, with a call and a way home."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bus.envelope import SCHEMA_VERSION, EnvelopeError, envelope_base, read_envelope
from headrace.bus.v1.envelope_pb2 import METHOD_MODEL_INFER, Envelope


def envelope(**parts: object) -> bytes:
    whole: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "call_id": b"c" * 16,
        "method": METHOD_MODEL_INFER,
        "reply_address": "127.0.0.1:1",
    }
    return Envelope(**{**whole, **parts}).SerializeToString()  # type: ignore[arg-type]  # parts of every type


@given(st.binary(min_size=1, max_size=16), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1))
def test_the_common_part_and_a_calls_own_part_make_one_envelope(call_id: bytes, incarnation: int, expires: int) -> None:
    """The common part is serialised once; whatever is appended is read with it."""
    base = envelope_base(method=METHOD_MODEL_INFER, reply_address="10.0.0.1:5", reply_incarnation=incarnation)
    own = Envelope(call_id=call_id, expire_time_unix_micros=expires, tenant="t")
    own.metadata.add(key="k-bin", value=b"\x00\xff")

    read = read_envelope(base + own.SerializeToString())

    assert read.call_id == call_id
    assert read.expire_time_unix_micros == expires
    assert (read.method, read.reply_address, read.reply_incarnation) == (METHOD_MODEL_INFER, "10.0.0.1:5", incarnation)
    assert read.attempt == 1
    assert [(entry.key, entry.value) for entry in read.metadata] == [("k-bin", b"\x00\xff")]


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, 2**32 - 1])
def test_an_envelope_of_another_version_is_refused_by_its_number(version: int) -> None:
    with pytest.raises(EnvelopeError, match=str(version)):
        read_envelope(envelope(schema_version=version))


@pytest.mark.parametrize("missing", [{"call_id": b""}, {"reply_address": ""}])
def test_an_envelope_without_a_call_or_a_way_home_is_refused(missing: dict[str, object]) -> None:
    with pytest.raises(EnvelopeError):
        read_envelope(envelope(**missing))


@pytest.mark.parametrize("serialised", [b"", b"\xff", b"\x12\xff\x01short", envelope()[:-3]])
def test_what_is_no_envelope_is_refused(serialised: bytes) -> None:
    """None at all, noise, and one that was cut off."""
    with pytest.raises(EnvelopeError):
        read_envelope(serialised)


@given(st.binary(max_size=200))
def test_no_bytes_make_reading_fail_in_another_way(serialised: bytes) -> None:
    with contextlib.suppress(EnvelopeError):
        read_envelope(serialised)


def test_fields_of_a_later_version_do_not_matter() -> None:
    field_900_with_a_number = b"\xa0\x38\x01"

    assert read_envelope(envelope() + field_900_with_a_number).call_id == b"c" * 16

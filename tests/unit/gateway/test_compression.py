"""What is compressed is unpacked, and never beyond its limit."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as oip

from gateway.compression import is_packed, unpacked
from gateway.errors import RequestMalformed, RequestTooLarge

MEBIBYTE = 1 << 20
MESSAGE = oip.ModelInferRequest(model_name="simple", id="1").SerializeToString()
Pack = Callable[[bytes], bytes]
PACK: Mapping[str, Pack] = {"gzip": gzip.compress, "zlib": zlib.compress}


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK.keys())
@pytest.mark.parametrize("most", [1000, MEBIBYTE])
async def test_what_was_packed_is_as_it_was(pack: Pack, most: int) -> None:
    assert await unpacked(pack(MESSAGE), most) == MESSAGE
    assert await unpacked(pack(bytes(most)), most) == bytes(most)


@given(st.binary(max_size=200))
async def test_what_no_library_packed_stays_as_it_is(message: bytes) -> None:
    if is_packed(message):
        return
    assert await unpacked(message, 1) == message


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x",
        MESSAGE,
        oip.ModelInferRequest(id="1").SerializeToString(),
        oip.RepositoryIndexRequest(ready=True).SerializeToString(),
        oip.LogSettingsRequest(
            settings={"x": oip.LogSettingsRequest.SettingValue(bool_param=True)}
        ).SerializeToString(),
    ],
)
def test_no_message_of_the_protocol_looks_packed(message: bytes) -> None:
    assert not is_packed(message)


def test_no_field_of_a_request_begins_as_packed_data_does() -> None:
    """Whatever comes first: 15 is no field's number, and 7 no wire type."""
    requests = [each for each in oip.DESCRIPTOR.message_types_by_name.values() if each.name.endswith("Request")]

    assert not [(each.name, field.name) for each in requests for field in each.fields if field.number == 0x78 >> 3]
    assert 0x1F & 0b111 == 7


@pytest.mark.parametrize("pack", PACK.values(), ids=PACK.keys())
@pytest.mark.parametrize("most", [1000, MEBIBYTE])
async def test_a_bomb_is_refused_before_it_is_large(pack: Pack, most: int) -> None:
    bomb = pack(bytes(200 * MEBIBYTE))
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge) as caught:
            await unpacked(bomb, most)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert caught.value.metadata == {"limit_bytes": str(most)}
    assert peak < 3 * MEBIBYTE


@pytest.mark.parametrize(
    "message",
    [
        gzip.compress(MESSAGE, mtime=0)[:-1],
        gzip.compress(MESSAGE, mtime=0)[:3],
        gzip.compress(MESSAGE, mtime=0) + b"more",
        gzip.compress(MESSAGE, mtime=0) + gzip.compress(MESSAGE, mtime=0),
        b"\x1f\x8bnonsense",
        zlib.compress(MESSAGE)[:-1],
        zlib.compress(MESSAGE)[:-4] + b"sums",
        b"\x78\x9cnonsense",
    ],
    ids=repr,
)
async def test_what_is_packed_badly_is_malformed(message: bytes) -> None:
    with pytest.raises(RequestMalformed):
        await unpacked(message, MEBIBYTE)

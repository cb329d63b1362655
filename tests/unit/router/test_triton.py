"""What goes on to the model server of what a caller sent along."""

import pytest

from headrace.bus.v1.envelope_pb2 import Metadatum
from router.triton import Triton
from tests.integration.triton_stand_in import Context, serving

Entry = tuple[str, str | bytes]
SECONDS = 30.0


async def carried(*sent: tuple[str, bytes]) -> list[Entry]:
    """What a model server finds of this metadata, with the call that brings it."""
    found: list[Entry] = []

    async def look(_: bytes, context: Context) -> bytes:
        found.extend((key, value) for key, value in context.invocation_metadata() or () if key.startswith("x-"))
        return b"answer"

    metadata = [Metadatum(key=key, value=value) for key, value in sent]
    async with (
        serving({"ModelInfer": look}) as address,
        Triton(address, max_message_bytes=1 << 20, call_seconds=SECONDS) as triton,
    ):
        assert await triton.infer(b"request", metadata, SECONDS) == b"answer"
    return found


@pytest.mark.parametrize("odd", ["café".encode(), b"caf\xe9", b"a\tb", b"\x01", b"\x7f", "\ufffd".encode()])
async def test_texts_that_grpc_does_not_carry_end_no_call(odd: bytes) -> None:
    """HTTP has more of them, and a call may come by REST."""
    assert await carried(("x-odd", odd), ("x-fine", b"1")) == [("x-fine", "1")]


@pytest.mark.parametrize("value", [b"", b" ", b"~", b'100 %, "so"'])
async def test_all_that_can_be_printed_goes_on(value: bytes) -> None:
    assert await carried(("x-text", value)) == [("x-text", value.decode())]


async def test_bytes_go_on_whatever_they_are() -> None:
    assert await carried(("x-own-bin", b"\x00\xff\n")) == [("x-own-bin", b"\x00\xff\n")]

"""Messages up to 64 MiB, compressed or not; beyond that an error at once, never a timeout."""

import hashlib
import os

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import Client, Message, echo, recording, refused

MEBIBYTE = 1 << 20
LIMIT = 64 * MEBIBYTE
PATIENCE_SECONDS = 60.0
"""For tens of MiB through a busy machine."""


def padded(request: Message, size: int) -> Message:
    """The request with an id that makes it exactly so many bytes."""
    for length in range(size - request.ByteSize() - 8, size - request.ByteSize()):
        request.id = "x" * length
        if request.ByteSize() == size:
            return request
        request.id = ""
    raise AssertionError("no such id")


def filled(size: int) -> Message:
    """A request to `recording` of exactly so many bytes."""
    return padded(recording(os.urandom(size - 1024)), size)


def content(request: Message) -> bytes:
    return bytes(request.raw_input_contents[0][4:])


def test_a_request_of_64_mib_reaches_the_model_whole(gateway: Client) -> None:
    request = filled(LIMIT)

    response = gateway.infer(request, seconds=PATIENCE_SECONDS)

    assert response.raw_output_contents[0][4:].decode() == hashlib.sha256(content(request)).hexdigest()
    assert response.id == request.id


def test_an_answer_of_nearly_64_mib_comes_back_whole(gateway: Client) -> None:
    sent = os.urandom(LIMIT - 1024)

    response = gateway.infer(echo(sent), seconds=PATIENCE_SECONDS)

    assert response.raw_output_contents[0][4:] == sent


def test_a_request_one_byte_over_the_limit_is_refused(gateway: Client) -> None:
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE"):
        gateway.infer(filled(LIMIT + 1), seconds=PATIENCE_SECONDS)


def test_a_request_far_over_the_limit_is_refused_too(gateway: Client) -> None:
    """It is not read to its end, so gRPC itself says so."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.infer(echo(bytes(100 * MEBIBYTE)), seconds=PATIENCE_SECONDS)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_over_the_limit_is_an_error_and_no_timeout(gateway: Client) -> None:
    """The answer holds a version and a longer name beside what the request held, so it is some bytes longer."""
    request = padded(echo(os.urandom(LIMIT - 1024)), LIMIT)

    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "ANSWER_TOO_LARGE"):
        gateway.infer(request, seconds=PATIENCE_SECONDS)


def test_after_an_oversized_answer_the_model_answers_as_before(gateway: Client) -> None:
    assert gateway.infer(echo(b"still here")).raw_output_contents[0][4:] == b"still here"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_compressed_request_is_the_same_call(gateway: Client, compression: grpc.Compression) -> None:
    request = echo(b"the same again " * 10_000)

    answer = gateway.send("ModelInfer", request.SerializeToString(), compression=compression)

    (returned,) = oip.ModelInferResponse.FromString(answer).raw_output_contents
    assert returned == request.raw_input_contents[0]


def test_a_small_compressed_message_that_is_large_inside_is_refused(gateway: Client) -> None:
    """The limit is on what a message is, not on how it travels."""
    with pytest.raises(grpc.RpcError) as caught:
        gateway.send("ModelInfer", echo(bytes(100 * MEBIBYTE)).SerializeToString(), compression=grpc.Compression.Gzip)

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

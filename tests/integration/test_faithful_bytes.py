"""What Triton gets is what the client sent, and what the client gets is what Triton sent, to the byte."""

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import Client, client, refused, simple, until_callable, with_key
from tests.acceptance.eventually import eventually
from tests.acceptance.stack import started_stack
from tests.integration.triton_proxy import TritonProxy, triton_proxy

DEFAULT_DEADLINE_SECONDS = 5.0
SLACK_SECONDS = 20.0


@pytest.fixture(scope="module")
def proxy(triton_address: str) -> Iterator[TritonProxy]:
    with triton_proxy(triton_address) as made:
        yield made


@pytest.fixture(scope="module")
def address(proxy: TritonProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A gateway whose router believes that the proxy is Triton."""
    env = {"HEADRACE_GATEWAY__DEADLINES__DEFAULT_SECONDS": str(DEFAULT_DEADLINE_SECONDS)}
    with started_stack(tmp_path_factory.mktemp("faithful"), "--triton", proxy.address, env=env) as stack:
        until_callable(stack)
        yield stack.grpc


@pytest.fixture
def gateway(address: str) -> Iterator[Client]:
    with client(address) as made:
        yield made


WHOLE = simple(id="faithful", model_version="1")
NAME, VERSION, ID, *TENSORS = (
    oip.ModelInferRequest(**part).SerializeToString()
    for part in (
        {"model_name": WHOLE.model_name},
        {"model_version": WHOLE.model_version},
        {"id": WHOLE.id},
        {"inputs": WHOLE.inputs[:1]},
        {"inputs": WHOLE.inputs[1:]},
        {"raw_input_contents": WHOLE.raw_input_contents[:1]},
        {"raw_input_contents": WHOLE.raw_input_contents[1:]},
    )
)
INPUTS, CONTENTS = b"".join(TENSORS[:2]), b"".join(TENSORS[2:])
PARAMETER = b"\x22\x0d\x0a\x04mine\x12\x05\x1a\x03one"
ODD_REQUESTS = {
    "as every client writes it": WHOLE.SerializeToString(),
    "fields from last to first": CONTENTS + INPUTS + ID + VERSION + NAME,
    "contents before their tensors": NAME + TENSORS[2] + TENSORS[0] + TENSORS[3] + TENSORS[1],
    "fields that nobody knows": b"\xfa\x7f\x03odd" + WHOLE.SerializeToString() + b"\xb8\x3e\x07\xc1\x3e12345678",
    "a model's name that a later one replaces": b"\x0a\x05other" + WHOLE.SerializeToString(),
    "a name that stands twice": NAME + WHOLE.SerializeToString(),
    "a length in more bytes than it needs": b"\x0a\x86\x80\x00simple" + INPUTS + CONTENTS,
    "an id that is empty and there": b"\x1a\x00" + NAME + INPUTS + CONTENTS,
    "the same parameter twice": WHOLE.SerializeToString() + 2 * PARAMETER,
}


@pytest.mark.parametrize("request_bytes", ODD_REQUESTS.values(), ids=ODD_REQUESTS)
def test_bytes_pass_unchanged_in_both_directions(gateway: Client, proxy: TritonProxy, request_bytes: bytes) -> None:
    proxy.exchanges.clear()

    answer = gateway.send("ModelInfer", request_bytes)

    (exchange,) = proxy.exchanges
    assert exchange.request == request_bytes
    assert answer == exchange.response
    assert oip.ModelInferResponse.FromString(answer).model_name == "simple"


ODD_ANSWERS = {
    "nothing at all": b"",
    "fields from last to first": b"\x32\x04\x00\x01\xff\n\x1a\x02id\x0a\x06simple",
    "fields that nobody knows": b"\xfa\x7f\x03odd\x0a\x06simple\xb8\x3e\x07",
    "what is no message": b"\xff\xff\xff\xff",
    "a name twice": b"\x0a\x03one\x0a\x03two",
    "many bytes": b"\x32\x80\x80\x40" + bytes(1 << 20),
}


@pytest.mark.parametrize("answer", ODD_ANSWERS.values(), ids=ODD_ANSWERS)
def test_what_triton_sends_is_what_the_client_gets(gateway: Client, proxy: TritonProxy, answer: bytes) -> None:
    proxy.answer = lambda _: answer
    try:
        assert gateway.send("ModelInfer", simple().SerializeToString()) == answer
    finally:
        proxy.answer = None


def test_triton_gets_the_caller_s_metadata_and_no_credential(gateway: Client, proxy: TritonProxy) -> None:
    own = (("x-one", "1"), ("x-twice", "a"), ("x-twice", "b"), ("x-raw-bin", b"\x00\xff"))
    proxy.exchanges.clear()

    gateway.send("ModelInfer", simple().SerializeToString(), metadata=(*with_key(), ("x-api-key", "dev"), *own))

    (exchange,) = proxy.exchanges
    assert set(own) <= set(exchange.metadata)
    assert [value for key, value in exchange.metadata if key == "x-twice"] == ["a", "b"]
    assert {key for key, _ in exchange.metadata} == {key for key, _ in own} | {"user-agent"}


def test_triton_is_given_the_time_that_is_left(gateway: Client, proxy: TritonProxy) -> None:
    proxy.exchanges.clear()

    gateway.infer(simple(), seconds=100)

    assert proxy.exchanges[0].seconds is not None
    assert 70 < proxy.exchanges[0].seconds < 102  # gRPC rounds up on each wire


def test_a_call_without_a_deadline_ends_at_the_default(gateway: Client, proxy: TritonProxy) -> None:
    """And Triton is told, so that it need not work on."""
    release = threading.Event()

    def hold(_: bytes) -> bytes:
        release.wait(SLACK_SECONDS + DEFAULT_DEADLINE_SECONDS)
        return b""

    proxy.exchanges.clear()
    proxy.hung_up.clear()
    proxy.answer = hold
    began = time.monotonic()
    try:
        with refused(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"):
            gateway.infer(simple(), seconds=None)
        assert time.monotonic() - began >= DEFAULT_DEADLINE_SECONDS
        assert proxy.hung_up.wait(SLACK_SECONDS)
    finally:
        proxy.answer = None
        release.set()
        eventually(lambda: proxy.exchanges, seconds=SLACK_SECONDS, what="the proxy is done with it too")

    assert proxy.exchanges[0].seconds is not None
    assert 0 < proxy.exchanges[0].seconds < DEFAULT_DEADLINE_SECONDS + 0.1  # gRPC rounds up on each wire

"""Calls as a plain gRPC client makes them, and how refusals are read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from tritonclient.grpc import service_pb2 as oip
from tritonclient.grpc import service_pb2_grpc

from tests.acceptance.eventually import eventually
from tests.acceptance.stack import KEY, Stack

SERVICE = "inference.GRPCInferenceService"
SECONDS = 60.0
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

Metadata = tuple[tuple[str, str | bytes], ...]
Message = Any  # tritonclient's messages are untyped
Raw: TypeAlias = "grpc.UnaryUnaryMultiCallable[bytes, bytes]"


def with_key(key: str = KEY) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


THE_KEY = with_key()


class Client:
    """One channel to a gateway, or to a Triton; every call has a deadline."""

    def __init__(self, address: str, metadata: Metadata = THE_KEY) -> None:
        self.channel = grpc.insecure_channel(address, options=[*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)])
        self.metadata = metadata
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def ask(self, method: str, request: Message, *, seconds: float = SECONDS) -> Message:
        """One unary call by its stub."""
        return getattr(self.stub, method)(request, timeout=seconds, metadata=self.metadata)

    def infer(self, request: Message, *, seconds: float | None = SECONDS) -> Message:
        """One inference."""
        return self.stub.ModelInfer(request, timeout=seconds, metadata=self.metadata)

    def begin(self, request: Message, *, seconds: float | None = SECONDS) -> "grpc.Future[Message]":
        """One inference, not waited for."""
        call: grpc.Future[Message] = self.stub.ModelInfer.future(request, timeout=seconds, metadata=self.metadata)
        return call

    def send(
        self, method: str, request: bytes, *, metadata: Metadata | None = None, seconds: float = SECONDS, **options: Any
    ) -> bytes:
        """One unary call with bytes for messages; `method` is a name of the inference service or a whole path."""
        path = method if method.startswith("/") else f"/{SERVICE}/{method}"
        call: Raw = self.channel.unary_unary(path)
        return call(request, timeout=seconds, metadata=self.metadata if metadata is None else metadata, **options)

    def executions(self, model: str) -> int:
        """How often the model ran, as this server counts."""
        (told,) = self.ask("ModelStatistics", oip.ModelStatisticsRequest(name=model)).model_stats
        return int(told.execution_count)


@contextmanager
def client(address: str, metadata: Metadata = THE_KEY) -> Iterator[Client]:
    """A client that is closed afterwards."""
    made = Client(address, metadata)
    with made.channel:
        yield made


MODELS = ["datatypes", "echo", "failing", "file_type", "recording", "simple", "slow"]
MODELS += ["text_embedding", "voice_activity"]
"""The bundled models and those of the tests."""
FEW_MODELS = ["echo", "recording", "simple", "slow"]
"""Those that tests of the whole system call, whatever the model."""


def until_callable(stack: Stack, models: Sequence[str] = ("simple",), *, seconds: float = SECONDS) -> None:
    """Wait until every gateway of the stack would take calls of the models."""
    for address in stack.ready["grpc"]:
        with client(address) as asked:
            for model in models:
                eventually(lambda: _is_ready(asked, model), seconds=seconds, what=f"{model} can be called")  # noqa: B023


def _is_ready(asked: Client, model: str) -> bool:
    try:
        return bool(asked.ask("ModelReady", oip.ModelReadyRequest(name=model)).ready)
    except grpc.RpcError:
        return False  # the gateway itself is on its way back


# What is sent.


def simple(*, value: int = 1, **fields: Any) -> Message:
    """A request to `simple`: a row of 0 to 15, and a row of `value`."""
    request = oip.ModelInferRequest(model_name="simple", **fields)
    for name, row in (("INPUT0", np.arange(16, dtype=np.int32)), ("INPUT1", np.full(16, value, np.int32))):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(row.tobytes())
    return request


def sums(response: Message) -> list[int]:
    """OUTPUT0 of an answer of `simple`."""
    values: list[int] = np.frombuffer(response.raw_output_contents[0], np.int32).tolist()
    return values


def slow(milliseconds: int, **fields: Any) -> Message:
    """A request to `slow`, which runs one after the other and takes as long as it is told."""
    request = oip.ModelInferRequest(model_name="slow", **fields)
    request.inputs.add(name="MILLISECONDS", datatype="INT32", shape=[1])
    request.raw_input_contents.append(np.array([milliseconds], np.int32).tobytes())
    return request


def held(release: Path, **fields: Any) -> Message:
    """A request to `slow` that runs until the file is there, or its caller's deadline."""
    request = slow(600_000, **fields)
    request.inputs.add(name="RELEASE", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(_bytes_element(bytes(release)))
    return request


def echo(content: bytes, **fields: Any) -> Message:
    """A request to `echo` with one BYTES element."""
    return _bytes_request("echo", "INPUT1", content, **fields)


def recording(content: bytes, **fields: Any) -> Message:
    """A request to `recording`, which answers with a digest."""
    return _bytes_request("recording", "CONTENT", content, **fields)


def _bytes_request(model: str, tensor: str, content: bytes, **fields: Any) -> Message:
    request = oip.ModelInferRequest(model_name=model, **fields)
    request.inputs.add(name=tensor, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(_bytes_element(content))
    return request


def _bytes_element(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


# What is refused.


@dataclass(frozen=True)
class Ended:
    """How a call ended that did not succeed."""

    code: grpc.StatusCode
    text: str
    reason: str | None
    """The gateway's ErrorInfo; None where the status is the model server's."""


def ended(error: grpc.RpcError) -> Ended:
    """The status of a call that failed."""
    assert isinstance(error, grpc.Call)
    reason = None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = Status.FromString(value)
            assert (status.code, status.message) == (error.code().value[0], error.details())
            info = ErrorInfo()
            for detail in status.details:
                if detail.Unpack(info) and info.domain == "headrace":
                    assert info.metadata["retriable"] in {"true", "false"}
                    reason = info.reason
    return Ended(error.code(), error.details() or "", reason)


@contextmanager
def refused(code: grpc.StatusCode, reason: str | None) -> Iterator[None]:
    """The call in the block is refused so."""
    with pytest.raises(grpc.RpcError) as caught:
        yield
    how = ended(caught.value)
    assert (how.code, how.reason) == (code, reason), how

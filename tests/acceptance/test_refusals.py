"""Bad calls: each ends at once, with a code, a text and a stable reason; what Triton says of a call stays Triton's."""

import threading
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import SERVICE, Client, Message, Metadata, ended, refused, simple, with_key
from tests.acceptance.stack import KEY
from tests.acceptance.stack_fixture import GUEST_KEY

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
UNAUTHENTICATED, UNIMPLEMENTED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED

OWN_METHODS = [
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelInfer",
    "ModelStatistics",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
]


# Who calls.


@pytest.mark.parametrize("method", OWN_METHODS)
def test_every_method_needs_a_key(anonymous: Client, method: str) -> None:
    with refused(UNAUTHENTICATED, "KEY_MISSING"):
        anonymous.send(method, b"")
    with refused(UNAUTHENTICATED, "KEY_INVALID"):
        anonymous.send(method, b"", metadata=with_key("wrong"))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ([("authorization", "Basic ZGV2")], "KEY_MISSING"),
        ([("authorization", "Bearer ")], "KEY_MISSING"),
        ([("x-api-key", "")], "KEY_MISSING"),
        ([("x-api-key", "hr_guest_wrong")], "KEY_INVALID"),
        ([("x-api-key", "k" * 5000)], "KEY_INVALID"),
        ([("x-api-key", KEY), ("x-api-key", KEY)], "KEY_INVALID"),
        ([("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")], "KEY_INVALID"),
        ([("authorization", f"Bearer {KEY}"), ("x-api-key", GUEST_KEY)], "KEY_INVALID"),
    ],
)
def test_a_doubtful_key_is_refused(anonymous: Client, metadata: Metadata, reason: str) -> None:
    with refused(UNAUTHENTICATED, reason):
        anonymous.send("ModelInfer", simple().SerializeToString(), metadata=metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        [("x-api-key", KEY)],
        [("authorization", f"bearer {KEY}")],
        [("authorization", f"Bearer {KEY}"), ("x-api-key", KEY)],
        [("x-api-key", GUEST_KEY)],
    ],
)
def test_a_key_is_taken_in_either_form(anonymous: Client, metadata: Metadata) -> None:
    assert anonymous.send("ModelInfer", simple().SerializeToString(), metadata=metadata)


def test_a_caller_without_a_key_is_refused_before_it_has_sent_its_message(anonymous: Client) -> None:
    """The refusal does not wait for the request: here it does not come before the call has ended."""
    call: grpc.StreamUnaryMultiCallable[bytes, bytes] = anonymous.channel.stream_unary(f"/{SERVICE}/ModelInfer")
    over = threading.Event()

    def late() -> Iterator[bytes]:
        over.wait()
        yield b""

    try:
        with refused(UNAUTHENTICATED, "KEY_MISSING"):
            call(late(), timeout=40)
    finally:
        over.set()


# What is called.


@pytest.mark.parametrize("path", [f"/{SERVICE}/Nothing", "/some.Service/Method", "/nothing"])
def test_an_unknown_method_is_refused(gateway: Client, path: str) -> None:
    with refused(UNIMPLEMENTED, "METHOD_UNKNOWN"):
        gateway.send(path, b"")


@pytest.mark.parametrize("method", [name for name in OWN_METHODS if "SharedMemory" in name])
def test_shared_memory_is_refused_with_a_reason(gateway: Client, method: str) -> None:
    with refused(UNIMPLEMENTED, "SHARED_MEMORY_UNSUPPORTED"):
        gateway.send(method, b"")


def test_streaming_is_refused_with_a_reason(gateway: Client) -> None:
    with refused(UNIMPLEMENTED, "STREAMING_UNSUPPORTED"):
        list(gateway.stub.ModelStreamInfer(iter([simple()]), timeout=30, metadata=with_key()))


@pytest.mark.parametrize("method", [name for name in OWN_METHODS if "SharedMemory" not in name])
def test_bytes_that_are_no_message_are_refused(gateway: Client, method: str) -> None:
    with refused(INVALID, "REQUEST_MALFORMED"):
        gateway.send(method, b"\x0a\xff\xff\xff\xff\x0f not protobuf")


@pytest.mark.parametrize(
    "request_bytes", [b"\x0a", b"\x0a\x05ab", b"\x0a\x02\xff\xfe", b"\x0b", b"\x07\x00", b"\x80" * 11]
)
def test_an_inference_that_is_no_message_is_refused_at_the_edge(gateway: Client, request_bytes: bytes) -> None:
    with refused(INVALID, "REQUEST_MALFORMED"):
        gateway.send("ModelInfer", request_bytes)


def test_nonsense_inside_a_tensor_is_told_by_triton(gateway: Client, triton: Client) -> None:
    """The gateway does not parse tensors; what comes of it is an error and not a lost call."""
    request = simple().SerializeToString() + b"\x2a\x03\xff\xff\xff"

    assert _outcome(gateway, request) == _outcome(triton, request)


# Which model.


def test_an_unknown_model_is_refused(gateway: Client) -> None:
    with refused(NOT_FOUND, "MODEL_UNKNOWN"):
        gateway.infer(oip.ModelInferRequest(model_name="nothing"))


@pytest.mark.parametrize(
    "name", ["a/b", "../simple", "simple ", "Simple", "модель", "🌊", "a\x00b", ".", "..", "-", "%s"]
)
def test_a_strange_name_is_simply_unknown(gateway: Client, name: str) -> None:
    with refused(NOT_FOUND, "MODEL_UNKNOWN"):
        gateway.infer(oip.ModelInferRequest(model_name=name))


@pytest.mark.parametrize("name", ["", "m" * 5000, "ж" * 200])
def test_a_name_that_is_no_topic_s_name_is_refused(gateway: Client, name: str) -> None:
    with refused(INVALID, "MODEL_NAME_INVALID"):
        gateway.infer(oip.ModelInferRequest(model_name=name))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ModelMetadata", oip.ModelMetadataRequest(name="nothing")),
        ("ModelConfig", oip.ModelConfigRequest(name="nothing")),
        ("ModelStatistics", oip.ModelStatisticsRequest(name="nothing")),
    ],
)
def test_questions_about_an_unknown_model_are_refused(gateway: Client, method: str, request_: Message) -> None:
    with refused(NOT_FOUND, "MODEL_UNKNOWN"):
        gateway.ask(method, request_)


@pytest.mark.parametrize(
    ("version", "code", "reason"),
    [
        ("7", NOT_FOUND, "MODEL_VERSION_UNKNOWN"),
        ("latest", INVALID, "MODEL_VERSION_INVALID"),
    ],
)
def test_questions_about_an_unknown_version_are_refused(
    gateway: Client, version: str, code: grpc.StatusCode, reason: str
) -> None:
    for method, request in (
        ("ModelMetadata", oip.ModelMetadataRequest(name="simple", version=version)),
        ("ModelConfig", oip.ModelConfigRequest(name="simple", version=version)),
        ("ModelStatistics", oip.ModelStatisticsRequest(name="simple", version=version)),
    ):
        with refused(code, reason):
            gateway.ask(method, request)


# What Triton refuses.


def _wrong_shape() -> Message:
    request = simple()
    request.inputs[0].shape[:] = [1, 15]
    return request


def _wrong_type() -> Message:
    request = simple()
    request.inputs[0].datatype = "FP32"
    return request


def _no_such_type() -> Message:
    request = simple()
    request.inputs[0].datatype = "INT33"
    return request


def _missing_input() -> Message:
    request = simple()
    del request.inputs[1:], request.raw_input_contents[1:]
    return request


def _unknown_input() -> Message:
    request = simple()
    request.inputs[0].name = "INPUT9"
    return request


def _unknown_output() -> Message:
    request = simple()
    request.outputs.add(name="OUTPUT9")
    return request


def _too_few_bytes() -> Message:
    request = simple()
    request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
    return request


def _unknown_version() -> Message:
    return simple(model_version="7")


def _batch_too_large() -> Message:
    request = simple()
    for place, rows in enumerate(request.inputs):
        rows.shape[:] = [9, 16]
        request.raw_input_contents[place] = np.zeros((9, 16), np.int32).tobytes()
    return request


def _failing(code: str) -> Callable[[], Message]:
    def build() -> Message:
        request = oip.ModelInferRequest(model_name="failing")
        for name, text in (("MESSAGE", f"it is {code.lower()}: ünïcode"), ("CODE", code)):
            request.inputs.add(name=name, datatype="BYTES", shape=[1])
            request.raw_input_contents.append(len(text.encode()).to_bytes(4, "little") + text.encode())
        return request

    build.__name__ = f"failing_{code.lower()}"
    return build


@pytest.mark.parametrize(
    "build",
    [
        _wrong_shape,
        _wrong_type,
        _no_such_type,
        _missing_input,
        _unknown_input,
        _unknown_output,
        _too_few_bytes,
        _unknown_version,
        _batch_too_large,
        *map(
            _failing,
            ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS"),
        ),
    ],
    ids=lambda build: build.__name__.strip("_"),
)
def test_tritons_own_refusal_passes_unchanged(gateway: Client, triton: Client, build: Callable[[], Message]) -> None:
    """Its code and text, and no ErrorInfo of ours: also UNAVAILABLE, which from Triton is an answer."""
    request = build().SerializeToString()

    through, direct = _outcome(gateway, request), _outcome(triton, request)

    assert through == direct
    assert isinstance(direct, tuple), "Triton refuses it"


def _outcome(client: Client, request: bytes) -> bytes | tuple[grpc.StatusCode, str, str | None]:
    try:
        return client.send("ModelInfer", request)
    except grpc.RpcError as error:
        how = ended(error)
        return how.code, how.text, how.reason


# Who may administer.


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"])
def test_administration_needs_the_role(guest: Client, method: str) -> None:
    with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED"):
        guest.send(method, b"")

"""Tools find their way by reflection alone, in the version that they ask for."""

import json
import shutil
import subprocess
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2 as reflection

from tests.acceptance.calls import SERVICE, Client, with_key
from tests.acceptance.stack import KEY, Stack
from tests.parts import missing

SERVICES = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    SERVICE,
]
SECONDS = 60.0
VERSIONS = ["v1", "v1alpha"]


@pytest.fixture(scope="session")
def grpcurl() -> str:
    found = shutil.which("grpcurl")
    if not found:
        missing("grpcurl", "go install github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3, and put it on the PATH")
    return found


def ask(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_grpcurl_lists_the_services(grpcurl: str, stack: Stack) -> None:
    assert ask([grpcurl, "-plaintext", stack.grpc, "list"]).split() == SERVICES


def test_grpcurl_describes_the_inference_service(grpcurl: str, stack: Stack) -> None:
    told = ask([grpcurl, "-plaintext", stack.grpc, "describe", SERVICE])

    assert told.count("rpc ") == 20
    assert "rpc ModelInfer ( .inference.ModelInferRequest ) returns ( .inference.ModelInferResponse );" in told


def test_grpcurl_calls_a_model(grpcurl: str, stack: Stack) -> None:
    tensors = [
        {"name": "INPUT0", "datatype": "INT32", "shape": [1, 16], "contents": {"int_contents": list(range(16))}},
        {"name": "INPUT1", "datatype": "INT32", "shape": [1, 16], "contents": {"int_contents": [1] * 16}},
    ]
    request = json.dumps({"model_name": "simple", "id": "from grpcurl", "inputs": tensors})

    told = ask(
        [
            grpcurl,
            "-plaintext",
            "-H",
            f"authorization: Bearer {KEY}",
            "-d",
            request,
            stack.grpc,
            f"{SERVICE}/ModelInfer",
        ]
    )

    answer = json.loads(told)
    assert (answer["model_name"], answer["id"]) == ("simple", "from grpcurl")
    assert [output["name"] for output in answer["outputs"]] == ["OUTPUT0", "OUTPUT1"]


def test_grpcurl_shows_why_a_call_without_a_key_is_refused(grpcurl: str, stack: Stack) -> None:
    done = subprocess.run(
        [grpcurl, "-plaintext", stack.grpc, f"{SERVICE}/ServerLive"],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode != 0
    assert "Unauthenticated" in done.stderr
    assert "KEY_MISSING" in done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_reflection_lists_the_services(anonymous: Client, version: str) -> None:
    (answer,) = reflected(anonymous, version, reflection.ServerReflectionRequest(list_services=""))

    assert [service.name for service in answer.list_services_response.service] == SERVICES


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_knows_nothing_calls_a_model_by_reflection(gateway: Client, version: str) -> None:
    """What grpcurl does: the descriptors come from the server, and the messages are made from them."""
    (answer,) = reflected(
        gateway, version, reflection.ServerReflectionRequest(file_containing_symbol=f"{SERVICE}.ModelInfer")
    )
    pool = descriptor_pool.DescriptorPool()
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(each)
        for each in answer.file_descriptor_response.file_descriptor_proto
    ]
    waiting = {file.name: file for file in files}
    while waiting:
        name = next(name for name, file in waiting.items() if not waiting.keys() & set(file.dependency))
        pool.Add(waiting.pop(name))
    method = pool.FindMethodByName(f"{SERVICE}.ModelInfer")
    request_class, response_class = (
        message_factory.GetMessageClass(described) for described in (method.input_type, method.output_type)
    )
    request: Any = request_class(model_name="simple")
    for name in ("INPUT0", "INPUT1"):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        tensor.contents.int_contents.extend(range(16))

    response: Any = response_class.FromString(gateway.send("ModelInfer", request.SerializeToString()))

    assert [output.name for output in response.outputs] == ["OUTPUT0", "OUTPUT1"]
    assert int.from_bytes(response.raw_output_contents[0][-4:], "little") == 30


@pytest.mark.parametrize("version", VERSIONS)
def test_an_unknown_symbol_is_an_answer_and_not_the_end_of_the_stream(anonymous: Client, version: str) -> None:
    unknown, known = reflected(
        anonymous,
        version,
        reflection.ServerReflectionRequest(file_containing_symbol="no.Such"),
        reflection.ServerReflectionRequest(list_services=""),
    )

    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert known.list_services_response.service


def reflected(client: Client, version: str, *requests: Any) -> list[Any]:
    """Answers of one reflection stream. Both versions have the same messages."""
    call = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection.ServerReflectionResponse.FromString,
    )
    return list(call(iter(requests), timeout=SECONDS, metadata=with_key()))

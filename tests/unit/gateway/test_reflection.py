"""What reflection tells."""

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import ExtensionRequest, ServerReflectionRequest

from gateway.health import SERVICE as HEALTH
from gateway.reflection import V1, V1_ALPHA, Reflection

INFERENCE = "inference.GRPCInferenceService"


@pytest.fixture
def reflection() -> Reflection:
    return Reflection([INFERENCE, HEALTH])


def files(reflection: Reflection, request: ServerReflectionRequest) -> list[FileDescriptorProto]:
    response = reflection.answer(request)
    assert response.WhichOneof("message_response") == "file_descriptor_response"
    return [FileDescriptorProto.FromString(file) for file in response.file_descriptor_response.file_descriptor_proto]


def test_all_services_are_listed(reflection: Reflection) -> None:
    listed = reflection.answer(ServerReflectionRequest(list_services="")).list_services_response

    assert [each.name for each in listed.service] == [HEALTH, V1, V1_ALPHA, INFERENCE]


@pytest.mark.parametrize(
    "symbol", [INFERENCE, f"{INFERENCE}.ModelInfer", "inference.ModelInferRequest", HEALTH, V1, V1_ALPHA]
)
def test_a_symbol_comes_with_everything_that_it_needs(reflection: Reflection, symbol: str) -> None:
    """A client that knows nothing else can build the descriptors."""
    pool = descriptor_pool.DescriptorPool()
    for file in reversed(files(reflection, ServerReflectionRequest(file_containing_symbol=symbol))):
        pool.AddSerializedFile(file.SerializeToString())

    assert pool.FindFileContainingSymbol(symbol.removesuffix(".ModelInfer")).name


def test_v1_has_the_messages_of_v1(reflection: Reflection) -> None:
    [file] = files(reflection, ServerReflectionRequest(file_containing_symbol=V1))

    assert file.name == "grpc/reflection/v1/reflection.proto"
    assert "v1alpha" not in str(file)
    assert file.service[0].method[0].input_type == ".grpc.reflection.v1.ServerReflectionRequest"


def test_a_file_is_found_by_its_name(reflection: Reflection) -> None:
    found = files(reflection, ServerReflectionRequest(file_by_filename="grpc_service.proto"))

    assert [file.name for file in found] == ["grpc_service.proto", "model_config.proto"]


@pytest.mark.parametrize(
    "request_",
    [
        ServerReflectionRequest(file_by_filename="nothing.proto"),
        ServerReflectionRequest(file_containing_symbol="inference.Nothing"),
        ServerReflectionRequest(all_extension_numbers_of_type="inference.Nothing"),
        ServerReflectionRequest(
            file_containing_extension=ExtensionRequest(
                containing_type="inference.ModelInferRequest", extension_number=1000
            )
        ),
    ],
)
def test_what_is_not_known_is_not_found(reflection: Reflection, request_: ServerReflectionRequest) -> None:
    response = reflection.answer(request_)

    assert response.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert response.original_request == request_


def test_a_request_that_asks_nothing_is_invalid(reflection: Reflection) -> None:
    response = reflection.answer(ServerReflectionRequest(host="h"))

    assert response.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert response.valid_host == "h"


def test_a_message_without_extensions_has_none(reflection: Reflection) -> None:
    response = reflection.answer(ServerReflectionRequest(all_extension_numbers_of_type="inference.ModelInferRequest"))

    assert response.all_extension_numbers_response.base_type_name == "inference.ModelInferRequest"
    assert not response.all_extension_numbers_response.extension_number

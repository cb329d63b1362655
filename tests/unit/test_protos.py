"""Our OIP files against Triton's own descriptors."""

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import google.api
import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    MethodOptions,
)
from google.protobuf.descriptor_pool import DescriptorPool
from tritonclient.grpc import model_config_pb2, service_pb2

PROTOS = Path(__file__).parents[2] / "protos"
THEIRS: dict[str, FileDescriptor] = {
    "grpc_service.proto": service_pb2.DESCRIPTOR,
    "model_config.proto": model_config_pb2.DESCRIPTOR,
}


def compiled(folder: Path, output: Path) -> dict[str, FileDescriptorProto]:
    """The OIP files of a folder and all that they import, by name; this process's own pool never sees them."""
    imports = Path(next(iter(google.api.__path__))).parents[1]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", f"-I{imports}", "--include_imports"]
    subprocess.run([*command, f"--descriptor_set_out={output}", *THEIRS], check=True, timeout=30)
    return {file.name: file for file in FileDescriptorSet.FromString(output.read_bytes()).file}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FileDescriptorProto]:
    return compiled(PROTOS, tmp_path_factory.mktemp("protos") / "oip.binpb")


@pytest.mark.parametrize("name", THEIRS)
def test_oip_file_declares_exactly_what_tritons_does(name: str, files: dict[str, FileDescriptorProto]) -> None:
    """Nothing is missing, nothing is added, nothing has another number, type, label, oneof or direction."""
    theirs = FileDescriptorProto.FromString(THEIRS[name].serialized_pb)

    assert len(facts(theirs)) > 200, "the comparison must see Triton's descriptors"
    assert facts(files[name]) == facts(theirs)


@pytest.mark.parametrize(
    ("line", "other"),
    [
        ("bool live = 1;", "bool live = 2;"),
        ("bool live = 1;", "int32 live = 1;"),
        ("bool live = 1;", "repeated bool live = 1;"),
        ("bool live = 1;", "optional bool live = 1;"),
        ("bool live = 1;", "bool alive = 1;"),
        ("bool live = 1;", "bool live = 1; bool more = 2;"),
        ("bool live = 1;", "oneof choice { bool live = 1; }"),
        ("bool live = 1;", "reserved 2; bool live = 1;"),
        ("bool live = 1;", "bool live = 1; message More {}"),
        ("bool live = 1;", "bool live = 1; enum More { ZERO = 0; }"),
        ("map<string, ModelRepositoryParameter>", "map<string, InferParameter>"),
        ("(stream ModelInferRequest)", "(ModelInferRequest)"),
        ("(ServerLiveRequest) returns (ServerLiveResponse)", "(ServerLiveRequest) returns (ServerReadyResponse)"),
    ],
)
def test_comparison_notices_a_difference(
    line: str, other: str, files: dict[str, FileDescriptorProto], tmp_path: Path
) -> None:
    """The comparison is worth something only if it can fail."""
    service, config = ((PROTOS / name).read_text() for name in THEIRS)
    assert line in service
    (tmp_path / "grpc_service.proto").write_text(service.replace(line, other, 1))
    (tmp_path / "model_config.proto").write_text(config)

    changed = compiled(tmp_path, tmp_path / "changed.binpb")

    assert facts(changed["grpc_service.proto"]) != facts(files["grpc_service.proto"])


def test_oip_files_link_in_a_pool_of_their_own(files: dict[str, FileDescriptorProto]) -> None:
    pool = DescriptorPool()
    for file in files.values():
        pool.AddSerializedFile(file.SerializeToString())

    service = pool.FindServiceByName("inference.GRPCInferenceService")

    assert len(service.methods) == 20


def test_http_rules_take_their_variables_from_the_request(files: dict[str, FileDescriptorProto]) -> None:
    """A path variable that is no field of the request makes a transcoder refuse the whole file."""
    file = files["grpc_service.proto"]
    fields = {f".inference.{message.name}": {field.name for field in message.field} for message in file.message_type}
    rules = [(path, fields[method.input_type]) for method in file.service[0].method for path in http_paths(method)]

    assert "/v2/models/{name}/versions/{version}/ready" in dict(rules)
    assert [path for path, known in rules if not set(re.findall(r"{(\w+)}", path)) <= known] == []


def test_no_http_path_means_two_methods(files: dict[str, FileDescriptorProto]) -> None:
    paths = list(chain.from_iterable(http_paths(method) for method in files["grpc_service.proto"].service[0].method))

    assert len(paths) == len(set(paths))


def facts(file: FileDescriptorProto) -> dict[str, tuple[object, ...]]:
    """Everything that a file declares and that others could depend on, by the full name of the element."""
    found: dict[str, tuple[object, ...]] = {"": (file.syntax, file.package)}
    for name, message in messages(file.message_type):
        oneofs = [oneof.name for oneof in message.oneof_decl]
        reserved = [(reserved.start, reserved.end) for reserved in message.reserved_range]
        found[name] = (oneofs, message.options.map_entry, reserved, list(message.reserved_name))
        found |= {f"{name}.{field.name}": field_facts(field, oneofs) for field in message.field}
        found |= {f"{name}.{enum.name}": enum_facts(enum) for enum in message.enum_type}
    found |= {enum.name: enum_facts(enum) for enum in file.enum_type}
    for service in file.service:
        for method in service.method:
            streaming = (method.client_streaming, method.server_streaming)
            found[f"{service.name}/{method.name}"] = (method.input_type, method.output_type, *streaming)
    return found


def messages(some: Iterable[DescriptorProto], prefix: str = "") -> Iterator[tuple[str, DescriptorProto]]:
    for message in some:
        yield prefix + message.name, message
        yield from messages(message.nested_type, f"{prefix}{message.name}.")


def field_facts(field: FieldDescriptorProto, oneofs: list[str]) -> tuple[object, ...]:
    oneof = oneofs[field.oneof_index] if field.HasField("oneof_index") else None
    packed = field.options.packed if field.options.HasField("packed") else None
    return (field.number, field.type, field.type_name, field.label, oneof, field.proto3_optional, packed)


def enum_facts(enum: EnumDescriptorProto) -> tuple[object, ...]:
    return (enum.options.allow_alias, [(value.name, value.number) for value in enum.value])


def http_paths(method: MethodDescriptorProto) -> Iterator[str]:
    # Parsed once more: the option is an unknown field to whoever parsed it before the annotations were imported.
    options = MethodOptions.FromString(method.options.SerializeToString())
    if options.HasExtension(annotations_pb2.http):
        rule = options.Extensions[annotations_pb2.http]
        yield from (each.get or each.post for each in (rule, *rule.additional_bindings))

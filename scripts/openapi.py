#!/usr/bin/env python3
"""Writes docs/reference/openapi.json: the REST API as OpenAPI 3.1, from protos/headrace/v1/rest.proto.

Paths, parameters and texts are the proto's; what answers look like, the Open Inference Protocol's own messages say.
Bodies that are JSON of nobody's message (inference, the repository's requests) are described here.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google.api
from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodDescriptorProto
from tritonclient.grpc import service_pb2 as oip

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "openapi.json"
_PROTO = "headrace/v1/rest.proto"
_SERVICE_FIELD, _METHOD_FIELD = 6, 2  # of FileDescriptorProto and ServiceDescriptorProto: how comments name a place

_ANSWERS = {
    "ServerMetadata": oip.ServerMetadataResponse.DESCRIPTOR,
    "ModelMetadata": oip.ModelMetadataResponse.DESCRIPTOR,
    "ModelConfig": oip.ModelConfigResponse.DESCRIPTOR.fields_by_name["config"].message_type,
    "ModelStatistics": oip.ModelStatisticsResponse.DESCRIPTOR,
    "RepositoryIndex": oip.RepositoryIndexResponse.DESCRIPTOR.fields_by_name["models"].message_type,
}
_YES = {"ServerLive": ("live",), "ServerReady": ("ready",), "ModelReady": ("name", "ready")}
_ERRORS = {
    "400": "The request is not understood, or Triton refuses it.",
    "401": "The credential is missing, wrong or expired.",
    "403": "The tenant or its key may not do this.",
    "404": "There is no such model, or not for this tenant.",
    "409": "Some of the model servers did as asked.",
    "413": "The body is larger than it may be.",
    "429": "A limit or quota is reached; `Retry-After` says when to come back.",
    "500": "The gateway or the model failed.",
    "501": "Not offered.",
    "503": "Nobody can answer at this moment; call again.",
    "504": "The deadline passed.",
}
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: "int32",
    FieldDescriptor.CPPTYPE_INT64: "int64",
    FieldDescriptor.CPPTYPE_UINT32: "int64",
    FieldDescriptor.CPPTYPE_UINT64: "int64",
}
_DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
_DATATYPES += ["FP16", "FP32", "FP64", "BF16", "BYTES"]


def document() -> dict[str, Any]:
    """The document, as JSON has it."""
    schemas: dict[str, Any] = _own_schemas()
    paths: dict[str, dict[str, Any]] = {}
    for method, text in _methods():
        for path, verb in _bindings(method):
            paths.setdefault(path, {})[verb] = _operation(method, text, path, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Headrace",
            "version": "2",
            "summary": "The Open Inference Protocol over REST, with Triton's additions.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8000", "description": "as `headrace up` starts it"}],
        "security": [{"bearer": []}, {"key": []}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": {code: _error(code, meaning) for code, meaning in _ERRORS.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def rendered() -> str:
    """The page's text."""
    return json.dumps(document(), indent=1) + "\n"


def _methods() -> Iterator[tuple[MethodDescriptorProto, str]]:
    """The service's methods, each with its comment."""
    file = _compiled()
    comments = {tuple(at.path): " ".join(at.leading_comments.split()) for at in file.source_code_info.location}
    for number, method in enumerate(file.service[0].method):
        yield method, comments[_SERVICE_FIELD, 0, _METHOD_FIELD, number]


def _compiled() -> FileDescriptorProto:
    imports = Path(next(iter(google.api.__path__))).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rest.binpb"
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", f"-I{imports}"]
        command += ["--include_source_info", f"--descriptor_set_out={output}", _PROTO]
        subprocess.run(command, check=True, timeout=30)  # noqa: S603  our own arguments
        return FileDescriptorSet.FromString(output.read_bytes()).file[0]


def _bindings(method: MethodDescriptorProto) -> Iterator[tuple[str, str]]:
    rule = method.options.Extensions[annotations_pb2.http]
    for each in (rule, *rule.additional_bindings):
        verb = each.WhichOneof("pattern")
        yield getattr(each, verb), verb


def _operation(method: MethodDescriptorProto, text: str, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    operation: dict[str, Any] = {
        "operationId": "".join([method.name, *("Version" for name in names if name == "model_version")])
        + ("OfAll" if path == "/v2/models/stats" else ""),
        "summary": text,
        "parameters": [_parameter(name) for name in names],
        "responses": {
            "200": _answer(method.name, schemas),
            **{code: {"$ref": f"#/components/responses/{code}"} for code in _errors_of(method.name)},
        },
    }
    if method.name == "ModelInfer":
        operation["parameters"].append(
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "description": "Bytes of JSON at the beginning of a body with binary tensors after it.",
                "schema": {"type": "integer", "minimum": 1},
            }
        )
    body = {
        "ModelInfer": "InferRequest",
        "RepositoryIndex": "IndexRequest",
        "RepositoryModelLoad": "RepositoryRequest",
        "RepositoryModelUnload": "RepositoryRequest",
    }.get(method.name)
    if body is not None:
        content: dict[str, Any] = {"application/json": {"schema": _reference(body)}}
        if method.name == "ModelInfer":
            content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": method.name == "ModelInfer", "content": content}
    return operation


def _errors_of(method: str) -> Iterator[str]:
    """What a method may fail with: only those that ask Triton can fail in ways of its own."""
    asks_triton = method in {"ModelInfer", "RepositoryModelLoad", "RepositoryModelUnload"}
    return (code for code in _ERRORS if asks_triton or code not in {"409", "500", "501", "504"})


def _parameter(name: str) -> dict[str, Any]:
    schema = {"type": "string", "minLength": 1}
    if name == "model_version":
        schema |= {"pattern": "^[0-9]{1,18}$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _answer(method: str, schemas: dict[str, Any]) -> dict[str, Any]:
    if method == "ModelInfer":
        return {
            "description": "The model's answer; with binary outputs, JSON and then their bytes.",
            "headers": {"Inference-Header-Content-Length": {"schema": {"type": "integer"}}},
            "content": {
                "application/json": {"schema": _reference("InferResponse")},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    if method in _YES:
        properties = {name: {"type": "string" if name == "name" else "boolean"} for name in _YES[method]}
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        return {"description": "Yes.", "content": {"application/json": {"schema": schema}}}
    descriptor = _ANSWERS.get(method)
    if descriptor is None:
        return {"description": "Done: the body is empty."}
    schema = _message(descriptor, schemas)
    if method == "RepositoryIndex":
        schema = {"type": "array", "items": schema}
    return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}


def _error(code: str, meaning: str) -> dict[str, Any]:
    headers = {"x-headrace-reason": {"description": "A stable reason.", "schema": {"type": "string"}}}
    if code in {"429", "503"}:
        headers["Retry-After"] = {"description": "Seconds.", "schema": {"type": "integer"}}
    content = {"application/json": {"schema": _reference("Error")}}
    return {"description": meaning, "headers": headers, "content": content}


def _reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _message(descriptor: Descriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    name = descriptor.full_name.removeprefix("inference.")
    if name not in schemas:
        schemas[name] = {}  # it may hold itself
        schemas[name] = {
            "type": "object",
            "properties": {field.name: _field(field, schemas) for field in descriptor.fields},
        }
    return _reference(name)


def _field(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _field(message.fields_by_name["value"], schemas)}
    single = _single(field, schemas)
    return {"type": "array", "items": single} if field.is_repeated else single


def _single(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        return _message(field.message_type, schemas)
    if field.enum_type is not None:
        return {"type": "string", "enum": [value.name for value in field.enum_type.values]}
    if field.cpp_type in _NUMBERS:
        return {"type": "integer", "format": _NUMBERS[field.cpp_type]}
    kinds = {FieldDescriptor.CPPTYPE_BOOL: "boolean", FieldDescriptor.CPPTYPE_STRING: "string"}
    return {"type": kinds.get(field.cpp_type, "number")}


def _own_schemas() -> dict[str, Any]:
    parameters = {
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean"]},
    }
    tensor = {
        "name": {"type": "string"},
        "datatype": {"enum": _DATATYPES},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}},
        "parameters": {
            **parameters,
            "description": "`binary_data_size`: the tensor is so many bytes after the JSON, and has no `data`.",
        },
        "data": {
            "description": "Row by row, nested or flat.",
            "type": "array",
            "items": {"type": ["number", "boolean", "string", "array"]},
        },
    }
    asked = {
        "name": {"type": "string"},
        "parameters": {**parameters, "description": "`binary_data`, `classification`."},
    }
    return {
        "Error": {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]},
        "InferRequest": {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "parameters": parameters,
                "inputs": {
                    "type": "array",
                    "items": {"type": "object", "properties": tensor, "required": ["name", "datatype", "shape"]},
                },
                "outputs": {"type": "array", "items": {"type": "object", "properties": asked, "required": ["name"]}},
            },
            "required": ["inputs"],
        },
        "InferResponse": {
            "type": "object",
            "properties": {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "parameters": parameters,
                "outputs": {
                    "type": "array",
                    "items": {"type": "object", "properties": tensor, "required": ["name", "datatype", "shape"]},
                },
            },
            "required": ["model_name", "model_version", "outputs"],
        },
        "IndexRequest": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
        "RepositoryRequest": {
            "type": "object",
            "properties": {
                "parameters": {
                    "type": "object",
                    "description": "`config`, `file:VERSION/NAME` in base64, `unload_dependents`.",
                    "additionalProperties": {"type": ["string", "integer", "boolean"]},
                }
            },
        },
    }


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")

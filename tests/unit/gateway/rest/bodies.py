"""Bodies of `infer`, and how tests read them."""

import orjson
from tritonclient.grpc.service_pb2 import ModelInferRequest

from gateway.rest.infer import InferRequest, request_of

ONE: dict[str, object] = {"name": "x", "shape": [2], "datatype": "INT8", "data": [1, 2]}


def read(body: bytes, json_bytes: int | None = None, *, most_json_bytes: int = 1 << 20) -> InferRequest:
    return request_of(body, model="m", version="3", json_bytes=json_bytes, most_json_bytes=most_json_bytes)


def message_of(document: object, binary: bytes | None = None) -> ModelInferRequest:
    text = orjson.dumps(document)
    return ModelInferRequest.FromString(
        read(text if binary is None else text + binary, None if binary is None else len(text)).request
    )

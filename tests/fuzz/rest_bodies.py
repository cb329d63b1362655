"""What it means that a REST body is read well: it is refused, or it is a request that says what the body said."""

import math

from tritonclient.grpc.service_pb2 import ModelInferRequest

from gateway.errors import Refusal
from gateway.rest.infer import InferRequest, request_of
from gateway.rest.tensors import ITEM_BYTES

MOST_JSON_BYTES = 1 << 20


def verdict(body: bytes, json_bytes: int | None) -> InferRequest | Refusal:
    try:
        return request_of(body, model="m", version="1", json_bytes=json_bytes, most_json_bytes=MOST_JSON_BYTES)
    except Refusal as refusal:
        return refusal


def assert_refused_or_whole(body: bytes, json_bytes: int | None) -> None:
    read = verdict(body, json_bytes)
    if isinstance(read, Refusal):
        assert len(read.message) < 600, "what a caller sent made a long text"
        return
    request = ModelInferRequest.FromString(read.request)
    assert (request.model_name, request.model_version) == ("m", "1")
    assert len(request.inputs) == len(request.raw_input_contents)
    assert set(read.outputs) == {output.name for output in request.outputs}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype in ITEM_BYTES:
            assert len(raw) == math.prod(tensor.shape) * ITEM_BYTES[tensor.datatype]

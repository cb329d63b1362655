"""Bodies of `infer`, against Triton's own HTTP client: it writes the requests, and reads the answers."""

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, from_dtype
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from gateway.errors import OutputNotText, RequestTooLarge
from gateway.rest.infer import InferRequest, answer_of
from tests.unit.gateway.rest.bodies import ONE, message_of, read

NUMPY: dict[str, Any] = {
    "BOOL": np.bool_,
    **{f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
JSON_ALONE = InferRequest(b"", {}, others=False)
BINARY = InferRequest(b"", {}, others=True)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Any]:
    """A datatype and an array of it, of any shape and values."""
    datatype = draw(st.sampled_from([*NUMPY, "BYTES"]))
    shape = draw(array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=3))
    if datatype == "BYTES":
        size = int(np.prod(shape))
        values = [text.encode() for text in draw(st.lists(st.text(max_size=5), min_size=size, max_size=size))]
        array = np.empty(size, dtype=np.object_)
        array[:] = values
        return datatype, array.reshape(shape)
    dtype = np.dtype(NUMPY[datatype])
    return datatype, draw(arrays(dtype, shape, elements=from_dtype(dtype)))


def echoed(asked: InferRequest) -> bytes:
    """The answer of a model that gives back what it is given, under the same names."""
    request = ModelInferRequest.FromString(asked.request)
    response = ModelInferResponse(model_name=request.model_name, model_version=request.model_version, id=request.id)
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(raw)
    return bytes(response.SerializeToString())


@given(st.lists(tensors(), max_size=3), st.lists(st.booleans(), min_size=6, max_size=6), st.booleans())
def test_what_tritons_client_sends_comes_back_to_it(
    given_tensors: list[tuple[str, Any]], binary: list[bool], named: bool
) -> None:
    inputs, outputs = [], []
    for place, (datatype, array) in enumerate(given_tensors):
        tensor = InferInput(f"x{place}", array.shape, datatype)
        as_binary = binary[place] or datatype == "FP16"  # which this client will not write as JSON
        tensor.set_data_from_numpy(array, binary_data=as_binary)
        inputs.append(tensor)
        outputs.append(InferRequestedOutput(f"x{place}", binary_data=binary[place + 3]))
    body, json_bytes = InferenceServerClient.generate_request_body(
        inputs, outputs=outputs if named else None, request_id="7"
    )

    asked = read(body, json_bytes)
    answer, length = answer_of(echoed(asked), asked)

    result = InferenceServerClient.parse_response_body(answer, header_length=length)
    assert result.get_response()["id"] == "7"
    for place, (datatype, array) in enumerate(given_tensors):
        back = result.as_numpy(f"x{place}")
        told = result.get_output(f"x{place}")
        assert (told["datatype"], told["shape"]) == (datatype, list(array.shape))
        assert ("data" in told) != (binary[place + 3] if named and outputs else True)
        if datatype == "BYTES" and "data" in told:
            back = np.array([text.encode() for text in back.reshape(-1)], dtype=np.object_).reshape(array.shape)
        np.testing.assert_array_equal(back, array)


def test_bf16_goes_both_ways_as_binary_and_as_json() -> None:
    array = np.array([[0.1, -2.0]], dtype=ml_dtypes.bfloat16)
    tensor = InferInput("x", [1, 2], "BF16")
    tensor.set_data_from_numpy(array)
    asked = read(*InferenceServerClient.generate_request_body([tensor]))

    assert asked == read(
        orjson.dumps(
            {
                "inputs": [{**ONE, "datatype": "BF16", "shape": [1, 2], "data": [[0.1, -2]]}],
                "parameters": {"binary_data_output": True},
            }
        )
    )
    assert answer_of(echoed(asked), asked)[0].endswith(array.tobytes())
    assert json.loads(answer_of(echoed(asked), JSON_ALONE)[0])["outputs"][0]["data"] == pytest.approx([0.1, -2], 0.01)


def test_a_request_says_everything_that_its_body_said() -> None:
    message = message_of(
        {
            "id": "call-1",
            "parameters": {"priority": 2, "big": 2**64 - 1, "low": -(2**63), "flag": True, "text": "t", "part": 0.5},
            "inputs": [{**ONE, "parameters": {"note": "n"}}],
            "outputs": [{"name": "y", "parameters": {"classification": 3, "binary_data": True, "other": 1}}],
            "unknown": None,
        }
    )

    assert (message.model_name, message.model_version, message.id) == ("m", "3", "call-1")
    assert {name: str(value).strip() for name, value in message.parameters.items()} == {
        "priority": "int64_param: 2",
        "big": f"uint64_param: {2**64 - 1}",
        "low": f"int64_param: {-(2**63)}",
        "flag": "bool_param: true",
        "text": 'string_param: "t"',
        "part": "double_param: 0.5",
    }
    assert message.inputs[0].parameters["note"].string_param == "n"
    assert list(message.raw_input_contents) == [b"\x01\x02"]
    assert {name: value.int64_param for name, value in message.outputs[0].parameters.items()} == {
        "classification": 3,
        "other": 1,
    }


def test_binary_tensors_are_taken_in_the_order_of_their_inputs() -> None:
    binary = {"shape": [2], "datatype": "INT8"}
    message = message_of(
        {
            "inputs": [
                {**binary, "name": "a", "parameters": {"binary_data_size": 2}},
                ONE,
                {**binary, "name": "b", "shape": [0], "parameters": {"binary_data_size": 0}},
                {**binary, "name": "c", "datatype": "BYTES", "parameters": {"binary_data_size": 8}},
            ]
        },
        b"ab\0\0\0\0\0\0\0\0",
    )

    assert list(message.raw_input_contents) == [b"ab", b"\x01\x02", b"", bytes(8)]
    assert all(not tensor.parameters for tensor in message.inputs)


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, [], False),
        ({"binary_data_output": True}, [], True),
        ({"binary_data_output": False}, [], False),
        ({"binary_data_output": True}, [{"name": "x"}], False),
        ({"binary_data_output": True}, [{"name": "other"}], True),
        ({}, [{"name": "x", "parameters": {"binary_data": True}}], True),
        ({}, [{"name": "x", "parameters": {"binary_data": True}}, {"name": "x"}], True),
        ({"binary_data_output": True}, [{"name": "x", "parameters": {"binary_data": False}}], False),
    ],
)
def test_an_output_is_binary_where_triton_would_make_it_so(
    parameters: Mapping[str, object], outputs: list[object], binary: bool
) -> None:
    asked = read(orjson.dumps({"inputs": [ONE], "parameters": parameters, "outputs": outputs}))

    assert asked.is_binary("x") is binary
    assert "binary_data_output" not in ModelInferRequest.FromString(asked.request).parameters


def test_numbers_that_json_has_no_word_for_are_read_as_triton_reads_them() -> None:
    text = b'{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[NaN,-Infinity,Infinity,0.5]}]}'

    raw = ModelInferRequest.FromString(read(text).request).raw_input_contents[0]

    assert raw == np.array([np.nan, -np.inf, np.inf, 0.5], dtype=np.float32).tobytes()


def test_a_name_that_stands_twice_counts_where_it_stands_last() -> None:
    assert ModelInferRequest.FromString(read(b'{"id":"a","inputs":[],"id":"b"}').request).id == "b"


def test_only_the_json_of_a_body_is_limited() -> None:
    tensor = InferInput("x", [5000], "INT8")
    tensor.set_data_from_numpy(np.zeros(5000, dtype=np.int8))
    body, json_bytes = InferenceServerClient.generate_request_body([tensor])

    assert json_bytes is not None
    assert read(body, json_bytes, most_json_bytes=json_bytes)
    with pytest.raises(RequestTooLarge, match=f"{json_bytes - 1} bytes"):
        read(body, json_bytes, most_json_bytes=json_bytes - 1)


def test_an_answer_has_tritons_fields_in_tritons_order() -> None:
    response = ModelInferResponse(model_name="m", model_version="3", id="call-1", raw_output_contents=[b"\1\0", b""])
    response.outputs.add(name="x", datatype="BOOL", shape=[1, 2])
    response.outputs.add(name="y", datatype="FP32", shape=[0, 2]).parameters["note"].string_param = "n"
    response.parameters["part"].double_param = 0.5
    response.parameters["flag"].bool_param = False
    response.parameters["none"].SetInParent()

    assert answer_of(response.SerializeToString(), JSON_ALONE) == (
        (
            b'{"id":"call-1","model_name":"m","model_version":"3","parameters":{"flag":false,"part":0.5},"outputs":['
            b'{"name":"x","datatype":"BOOL","shape":[1,2],"data":[true,false]},'
            b'{"name":"y","datatype":"FP32","shape":[0,2],"data":[],"parameters":{"note":"n"}}]}'
        ),
        None,
    )


def test_an_answer_without_any_binary_byte_is_json_alone() -> None:
    response = ModelInferResponse(model_name="m", model_version="3", raw_output_contents=[b""])
    response.outputs.add(name="y", datatype="FP32", shape=[0])

    assert answer_of(response.SerializeToString(), BINARY) == (
        (
            b'{"model_name":"m","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[0],'
            b'"parameters":{"binary_data_size":0}}]}'
        ),
        None,
    )


def test_an_answer_of_typed_contents_is_the_same() -> None:
    typed = ModelInferResponse(model_name="m")
    typed.outputs.add(name="y", datatype="INT16", shape=[2]).contents.int_contents.extend([1, -2])
    raw = ModelInferResponse(model_name="m", raw_output_contents=[b"\1\0\xfe\xff"])
    raw.outputs.add(name="y", datatype="INT16", shape=[2])

    for asked in (JSON_ALONE, BINARY):
        assert answer_of(typed.SerializeToString(), asked) == answer_of(raw.SerializeToString(), asked)


def test_an_output_that_is_no_text_is_refused_as_json_and_sent_as_binary_data() -> None:
    response = ModelInferResponse(raw_output_contents=[b"\2\0\0\0\xff\xfe"])
    response.outputs.add(name="picture", datatype="BYTES", shape=[1])

    with pytest.raises(OutputNotText, match="'picture'"):
        answer_of(response.SerializeToString(), JSON_ALONE)
    assert answer_of(response.SerializeToString(), BINARY)[0].endswith(b"}\2\0\0\0\xff\xfe")


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"\xff", DecodeError),
        (ModelInferResponse(raw_output_contents=[b"a"]).SerializeToString(), ValueError),
        (ModelInferResponse(outputs=[{"datatype": "FP8"}]).SerializeToString(), KeyError),
    ],
)
def test_what_no_model_server_should_send_is_nobodys_refusal(response: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        answer_of(response, JSON_ALONE)

"""Bodies of `infer` that are wrong: each is refused, with the field and what is wrong with it."""

import json

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import RestRequestInvalid, SharedMemoryUnsupported
from tests.fuzz.rest_bodies import assert_refused_or_whole
from tests.unit.gateway.rest.bodies import ONE, message_of, read


def with_one(**changed: object) -> dict[str, object]:
    return {"inputs": [{**ONE, **changed}]}


def _nested(depth: int) -> object:
    return [_nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("document", "field", "problem"),
    [
        ([], "the JSON", "is not an object"),
        ({}, "`inputs`", "is not an array of objects"),
        ({"inputs": [1]}, "`inputs`", "is not an array of objects"),
        ({"inputs": [], "outputs": None}, "`outputs`", "is not an array of objects"),
        ({"inputs": [ONE] * 1025}, "`inputs`", "has more than 1024 tensors"),
        ({"inputs": [], "outputs": [ONE] * 1025}, "`outputs`", "has more than 1024 tensors"),
        ({"inputs": [], "id": 5}, "`id` of the request", "is not a string"),
        ({"inputs": [], "parameters": None}, "`parameters` of the request", "is not an object"),
        (
            {"inputs": [], "parameters": {f"p{number}": 1 for number in range(257)}},
            "`parameters` of the request",
            "has more than 256 entries",
        ),
        (with_one(data=_nested(65)), "`data` of input 'x'", "has arrays nested more than 64 deep"),
        ({"inputs": [], "parameters": {"timeout": -1}}, "parameter 'timeout' of the request", "is negative"),
        (
            {"inputs": [], "parameters": {"a": [1]}},
            "parameter 'a' of the request",
            "is neither a boolean, a number nor a string",
        ),
        (
            {"inputs": [], "parameters": {"binary_data_output": 1}},
            "`binary_data_output` of the request",
            "is neither true nor false",
        ),
        ({"inputs": [ONE, {}]}, "`name` of inputs[1]", "is not a string"),
        (with_one(datatype=None), "`datatype` of input 'x'", "is not a string"),
        (
            with_one(datatype="FP8"),
            "`datatype` of input 'x'",
            "is none of BF16, BOOL, BYTES, FP16, FP32, FP64, INT16, INT32, INT64, INT8, UINT16, UINT32, UINT64, UINT8",
        ),
        (with_one(shape=None), "`shape` of input 'x'", "is not an array"),
        (with_one(shape=[-1]), "`shape` of input 'x'", "has dimensions that are not whole numbers from 0 on"),
        (with_one(shape=[2.0]), "`shape` of input 'x'", "has dimensions that are not whole numbers from 0 on"),
        (with_one(shape=[True]), "`shape` of input 'x'", "has dimensions that are not whole numbers from 0 on"),
        (with_one(shape=[2**63]), "`shape` of input 'x'", "has dimensions that are not whole numbers from 0 on"),
        (with_one(shape=[2**62, 2]), "`shape` of input 'x'", "makes more values than there can be"),
        (with_one(shape=[1] * 65), "`shape` of input 'x'", "has more than 64 dimensions"),
        (with_one(shape=[3]), "`data` of input 'x'", "has 2 values, and the shape has room for 3"),
        (with_one(parameters=[]), "`parameters` of input 'x'", "is not an object"),
        (
            with_one(parameters={"binary_data_size": 2}),
            "input 'x'",
            "has both `data` and `binary_data_size`",
        ),
        ({"inputs": [{**ONE, "name": "y"} | {"data": 1}]}, "`data` of input 'y'", "is not an array"),
        ({"inputs": [], "outputs": [{"name": 1}]}, "`name` of outputs[0]", "is not a string"),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": None}}]},
            "`binary_data` of output 'y'",
            "is neither true nor false",
        ),
        (
            {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": "3"}}]},
            "`classification` of output 'y'",
            "is not a whole number from 0 on",
        ),
    ],
)
def test_a_mistake_is_refused_with_the_field_and_what_is_wrong(document: object, field: str, problem: str) -> None:
    with pytest.raises(RestRequestInvalid) as refused:
        read(orjson.dumps(document))

    assert refused.value.metadata == {"field": field, "problem": problem}


@pytest.mark.parametrize(
    ("size", "binary", "field", "problem"),
    [
        (3, b"ab", "`binary_data_size` of input 'x'", "is 3, and the body has 2 bytes left"),
        (2, b"ab!", "the body", "has 1 bytes that belong to no input"),
        (1, b"a", "`binary_data_size` of input 'x'", "is 1, and datatype and shape make 2 bytes"),
        (-1, b"ab", "`binary_data_size` of input 'x'", "is not a whole number from 0 on"),
        (True, b"ab", "`binary_data_size` of input 'x'", "is not a whole number from 0 on"),
        ("2", b"ab", "`binary_data_size` of input 'x'", "is not a whole number from 0 on"),
    ],
)
def test_binary_data_of_another_length_is_refused(size: object, binary: bytes, field: str, problem: str) -> None:
    entry = {"name": "x", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": size}}

    with pytest.raises(RestRequestInvalid) as refused:
        message_of({"inputs": [entry]}, binary)

    assert refused.value.metadata == {"field": field, "problem": problem}


def test_an_input_without_data_is_refused() -> None:
    with pytest.raises(RestRequestInvalid, match="input 'x' has neither `data` nor `binary_data_size`"):
        message_of({"inputs": [{"name": "x", "shape": [2], "datatype": "INT8"}]})


@pytest.mark.parametrize("json_bytes", [-1, 3, 1 << 70])
def test_a_header_beyond_the_body_is_refused(json_bytes: int) -> None:
    with pytest.raises(RestRequestInvalid, match="Inference-Header-Content-Length is not a number from 0 to 2"):
        read(b"{}", json_bytes)


def test_a_raw_binary_request_is_refused_with_what_to_do() -> None:
    with pytest.raises(RestRequestInvalid, match="raw binary requests are not offered, name the input in JSON"):
        read(bytes(16), 0)


@pytest.mark.parametrize("name", ["inputs", "outputs"])
@pytest.mark.parametrize("parameter", ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"])
def test_shared_memory_is_refused(name: str, parameter: str) -> None:
    document: dict[str, object] = {"inputs": [], name: [{**ONE, "parameters": {parameter: "r"}}]}

    with pytest.raises(SharedMemoryUnsupported):
        message_of(document)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"nonsense", b"\xff", b'{"inputs":[]} {}', b'{"a":"\\ud800"}', b"[" * 2000]
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(RestRequestInvalid, match="the JSON is not valid, or Inference-Header-Content-Length"):
        read(text)


@pytest.mark.parametrize(
    "text", [b"[NaN" + b"[" * 5000, b"NaN NaN", b"\xffNaN", b'{"NaN":' + b"1" * 5000 + b"}", b"[Infinity", b"NaNa"]
)
def test_what_is_no_json_for_python_either_is_refused(text: bytes) -> None:
    with pytest.raises(RestRequestInvalid, match="the JSON is not valid"):
        read(text)


@pytest.mark.parametrize("text", [b'{"id":"\\ud800","x":NaN}', b'{"inputs":[],"parameters":{"\\ud800":1,"b":NaN}}'])
def test_half_a_surrogate_pair_is_refused(text: bytes) -> None:
    with pytest.raises(RestRequestInvalid):
        read(text)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**65) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
likely = st.one_of(values, st.lists(st.integers(0, 3), max_size=3), st.sampled_from(["INT8", "BYTES", "FP32", "x"]))
names = st.sampled_from(["name", "shape", "datatype", "data", "parameters"])
sizes = st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 9), "binary_data": values})
entries = st.builds(
    lambda entry, changed, parameters: {**entry, **changed, **({"parameters": parameters} if parameters else {})},
    st.sampled_from([ONE, {name: value for name, value in ONE.items() if name != "data"}]),
    st.dictionaries(names, likely, max_size=1),
    st.none() | sizes | values,
)
documents = st.fixed_dictionaries(
    {"inputs": st.lists(entries, max_size=2) | values},
    optional={"outputs": st.lists(entries, max_size=2) | values, "id": values, "parameters": values},
)


@given(documents, st.binary(max_size=9), st.none() | st.integers(-2, 2))
def test_any_document_is_refused_or_is_a_whole_request(document: object, binary: bytes, shifted: int | None) -> None:
    text = json.dumps(document).encode()

    assert_refused_or_whole(text + binary, None if shifted is None else len(text) + shifted)


@given(st.binary(max_size=200), st.none() | st.integers(-1, 210))
@example(b'{"inputs":[]}', None)
@example(b'{"inputs":[]}', 13)
def test_any_bytes_are_refused_or_are_a_whole_request(body: bytes, json_bytes: int | None) -> None:
    assert_refused_or_whole(body, json_bytes)

"""Values of tensors, against those who know them: numpy, ml_dtypes and Triton's own client."""

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import InferTensorContents
from tritonclient.utils import serialize_byte_tensor

from gateway.errors import OutputNotText, RestRequestInvalid
from gateway.rest.tensors import DATATYPES, listed, packed, packed_contents, packed_strings

INTEGERS = {f"{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)}
FLOATS: dict[str, Any] = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16}

floats = st.one_of(st.floats(-60_000, 60_000), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40]))


def texts_of(raw: bytes, datatype: str, count: int) -> str:
    """The values as they stand in an answer."""
    return orjson.dumps(listed(raw, datatype, count, "out"), option=orjson.OPT_SERIALIZE_NUMPY).decode()


@pytest.mark.parametrize("datatype", INTEGERS)
@given(data=st.data())
def test_integers_are_numpys_bytes_and_come_back(datatype: str, data: st.DataObject) -> None:
    limits = np.iinfo(INTEGERS[datatype])
    values = data.draw(st.lists(st.integers(int(limits.min), int(limits.max))))

    raw = packed(values, datatype, len(values), "data")

    assert raw == np.array(values, dtype=INTEGERS[datatype]).tobytes()
    assert json.loads(texts_of(raw, datatype, len(values))) == values


@pytest.mark.parametrize("datatype", FLOATS)
@given(values=st.lists(floats))
def test_floats_are_numpys_bytes_and_come_back(datatype: str, values: list[float]) -> None:
    with np.errstate(all="ignore"):
        narrow = np.array(values, dtype=np.float64 if datatype != "BF16" else np.float32).astype(FLOATS[datatype])

    raw = packed(values, datatype, len(values), "data")
    back = json.loads(texts_of(raw, datatype, len(values)))

    exact = narrow.astype(np.float64)  # numpy's comparison does not know BF16's NaN
    np.testing.assert_array_equal(np.frombuffer(raw, dtype=FLOATS[datatype]).astype(np.float64), exact)
    np.testing.assert_array_equal(np.array(back, dtype=np.float64).astype(FLOATS[datatype]).astype(np.float64), exact)


@given(st.lists(st.booleans()))
def test_booleans_are_bytes_and_come_back(values: list[bool]) -> None:
    raw = packed(values, "BOOL", len(values), "data")

    assert raw == bytes(values)
    assert json.loads(texts_of(raw, "BOOL", len(values))) == values


@given(st.lists(st.text()))
def test_strings_are_as_tritons_client_serialises_them_and_come_back(values: list[str]) -> None:
    raw = packed(values, "BYTES", len(values), "data")

    encoded = np.array([value.encode() for value in values], dtype=np.object_)
    assert raw == (serialize_byte_tensor(encoded).item() if values else b"")
    assert json.loads(texts_of(raw, "BYTES", len(values))) == values


def test_data_may_be_nested_in_any_way_and_counts_row_by_row() -> None:
    flat = packed([1, 2, 3, 4], "INT16", 4, "data")

    assert packed([[1, 2], [3, 4]], "INT16", 4, "data") == flat
    assert packed([[[1], [2, 3]], [[4]]], "INT16", 4, "data") == flat
    assert packed([["a", "b"], ["c"]], "BYTES", 3, "data") == packed(["a", "b", "c"], "BYTES", 3, "data")
    assert packed([[], []], "FP32", 0, "data") == b""


@pytest.mark.parametrize(
    ("datatype", "data", "problem"),
    [
        ("INT8", 5, "is not an array"),
        ("INT8", {"0": 1}, "is not an array"),
        ("INT8", None, "is not an array"),
        ("INT8", [1], "has 1 values, and the shape has room for 2"),
        ("INT8", [1, 2, 3], "has 3 values, and the shape has room for 2"),
        ("INT8", [[1], 2], "has arrays and values side by side"),
        ("BYTES", [["a"], "b"], "has arrays and values side by side"),
        ("INT8", [1, 128], "has a value beyond the range of INT8"),
        ("INT8", [-129, 1], "has a value beyond the range of INT8"),
        ("UINT64", [-1, 1], "has a value beyond the range of UINT64"),
        ("INT64", [1 << 63, 1], "has a value beyond the range of INT64"),
        ("UINT64", [1 << 64, 1], "has a value beyond the range of UINT64"),
        ("INT8", [1.0, 2], "has values that are not whole numbers of at most 64 bits"),
        ("INT8", [True, 2], "has values that are not whole numbers of at most 64 bits"),
        ("INT8", ["1", "2"], "has values that are not whole numbers of at most 64 bits"),
        ("BOOL", [1, 0], "has values that are not true or false"),
        ("FP32", [True, 1.0], "has values that are not numbers"),
        ("FP64", [None, 1.0], "has values that are not numbers"),
        ("FP64", ["1", "2"], "has values that are not numbers"),
        ("FP64", [{}, {}], "has values that are not numbers"),
        ("BYTES", ["a", 1], "has values that are not strings"),
        ("FP16", [65_520, 0], "has a value beyond the range of FP16"),
        ("FP32", [1e39, 0], "has a value beyond the range of FP32"),
        ("BF16", [3.4e38, 0], "has a value beyond the range of BF16"),
        ("FP64", [10**400, 0], "has a value beyond the range of FP64"),
    ],
)
def test_wrong_data_is_refused_with_what_is_wrong(datatype: str, data: object, problem: str) -> None:
    with pytest.raises(RestRequestInvalid) as refused:
        packed(data, datatype, 2, "`data` of input 'x'")

    assert refused.value.metadata == {"field": "`data` of input 'x'", "problem": problem}


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    assert packed([1, 2**53, 2**64], "FP64", 3, "data") == np.array([1, 2**53, 2**64], dtype=np.float64).tobytes()


def test_fp32_is_written_with_as_few_digits_as_it_needs() -> None:
    assert texts_of(np.array([0.1, 1, 1e30], dtype=np.float32).tobytes(), "FP32", 3) == "[0.1,1.0,1e+30]"


@pytest.mark.parametrize("datatype", FLOATS)
def test_what_json_has_no_word_for_is_written_as_triton_writes_it(datatype: str) -> None:
    raw = np.array([math.nan, 1, math.inf, -math.inf, 2, -math.nan], dtype=FLOATS[datatype]).tobytes()

    assert texts_of(raw, datatype, 6) == "[NaN,1.0,Infinity,-Infinity,2.0,NaN]"


def test_any_byte_but_zero_is_true() -> None:
    assert texts_of(b"\x00\x01\x02\xff", "BOOL", 4) == "[false,true,true,true]"


def test_an_output_that_is_no_text_is_refused_by_its_name() -> None:
    with pytest.raises(OutputNotText, match="'picture'"):
        listed(packed_strings([b"fine", b"\xff\xd8"]), "BYTES", 2, "picture")


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
@pytest.mark.parametrize("raw", [b"\x01", b"\x01" * 9, packed_strings([b"a"]) * 7, b"\x00\x00\x00\x00\xff\xff\xff\x7f"])
def test_a_tensor_that_is_not_of_its_shape_is_the_model_servers_fault(datatype: str, raw: bytes) -> None:
    with pytest.raises(ValueError, match="the model server sent a tensor"):
        listed(raw, datatype, 3, "out")


@pytest.mark.parametrize(
    ("contents", "datatype", "value"),
    [
        (InferTensorContents(bool_contents=[True, False]), "BOOL", [True, False]),
        (InferTensorContents(int_contents=[-1, 127]), "INT8", [-1, 127]),
        (InferTensorContents(int_contents=[-1, 2**31 - 1]), "INT32", [-1, 2**31 - 1]),
        (InferTensorContents(int64_contents=[-(2**63)]), "INT64", [-(2**63)]),
        (InferTensorContents(uint_contents=[65_535]), "UINT16", [65_535]),
        (InferTensorContents(uint64_contents=[2**64 - 1]), "UINT64", [2**64 - 1]),
        (InferTensorContents(fp32_contents=[0.5]), "FP32", [0.5]),
        (InferTensorContents(fp64_contents=[0.1]), "FP64", [0.1]),
        (InferTensorContents(bytes_contents=[b"", "é".encode()]), "BYTES", ["", "é"]),
        (InferTensorContents(), "FP32", []),
    ],
)
def test_typed_contents_are_the_same_values(contents: InferTensorContents, datatype: str, value: list[object]) -> None:
    assert json.loads(texts_of(packed_contents(contents, datatype), datatype, len(value))) == value

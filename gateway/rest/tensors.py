"""The values of one tensor: from JSON to the bytes that Triton takes, and from its bytes to what orjson writes.

A datatype is its name in the protocol. Numbers are never looped over in Python, strings are.
"""

from collections.abc import Iterable
from itertools import chain, zip_longest
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import orjson

from gateway.errors import OutputNotText, RestRequestInvalid

Array = npt.NDArray[np.generic]

_NUMPY: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
ITEM_BYTES = {**{name: dtype.itemsize for name, dtype in _NUMPY.items()}, "BF16": 2}
"""How long a value is, where all are of one length: of every datatype but BYTES."""
DATATYPES = frozenset(ITEM_BYTES) | {"BYTES"}

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_LENGTH_BYTES = 4
"""Before each value of BYTES, little-endian."""
_BF16_NAN = 0x7FC0


MOST_DIMENSIONS = 64
"""As many as numpy has at most; the product of more numbers would take its time."""


def refuse(field: str, problem: str) -> NoReturn:
    """Refuse the request for what is wrong with a field of it."""
    raise RestRequestInvalid(field=field, problem=problem)


def packed(data: object, datatype: str, count: int, field: str) -> bytes:
    """The bytes of a tensor whose JSON is `data`: `count` values in an array, in arrays of arrays however nested.

    Raises RestRequestInvalid, about `field`, unless there are `count` of them, each of the right kind and in range.
    """
    if not isinstance(data, list):
        refuse(field, "is not an array")
    values, kinds = _flat(data, field)
    if len(values) != count:
        refuse(field, f"has {len(values)} values, and the shape has room for {count}")
    if not values:
        return b""
    if datatype == "BYTES":
        _only(kinds, {str}, "strings", field)
        return packed_strings(text.encode() for text in values)
    if datatype == "BOOL":
        _only(kinds, {bool}, "true or false", field)
        return bytes(values)
    if datatype in ("FP16", "FP32", "FP64", "BF16"):
        _only(kinds, {int, float}, "numbers", field)
        return _packed_floats(values, datatype, field)
    _only(kinds, {int}, "whole numbers of at most 64 bits", field)
    dtype = _NUMPY[datatype]
    if min(values) < np.iinfo(dtype).min or max(values) > np.iinfo(dtype).max:
        refuse(field, f"has a value beyond the range of {datatype}")
    return np.array(values, dtype=dtype).tobytes()


def packed_strings(values: Iterable[bytes]) -> bytes:
    """The bytes of a tensor of BYTES."""
    return b"".join(chain.from_iterable((len(value).to_bytes(_LENGTH_BYTES, "little"), value) for value in values))


def packed_contents(contents: Any, datatype: str) -> bytes:  # noqa: ANN401  tritonclient's messages have no types
    """The bytes of a tensor that came as typed contents, InferTensorContents."""
    if datatype == "BYTES":
        return packed_strings(contents.bytes_contents)
    return np.array(getattr(contents, _CONTENTS[datatype]), dtype=_NUMPY[datatype]).tobytes()


def listed(raw: bytes, datatype: str, count: int, name: str) -> Array | orjson.Fragment | list[str]:
    """The values of the output `name` as orjson takes them (with OPT_SERIALIZE_NUMPY), flat.

    Raises OutputNotText where a value is not UTF-8, and ValueError where `raw` is no tensor of `count` values.
    """
    if datatype == "BYTES":
        return _texts(raw, count, name)
    if len(raw) != count * ITEM_BYTES[datatype]:
        raise ValueError("the model server sent a tensor whose size is not that of its shape")
    if datatype == "BOOL":
        return np.frombuffer(raw, dtype=np.uint8).astype(np.bool_)
    if datatype == "BF16":
        return _finite(_wide(np.frombuffer(raw, dtype="<u2")))
    array = np.frombuffer(raw, dtype=_NUMPY[datatype])
    return _finite(array) if array.dtype.kind == "f" else array


def _flat(data: list[Any], field: str) -> tuple[list[Any], set[type]]:
    """The values in their order and which types they have. Each array is gone through once, however deep it lies."""
    kinds, depth = set(map(type, data)), 1
    while list in kinds:
        if kinds != {list}:
            refuse(field, "has arrays and values side by side")
        depth += 1
        if depth > MOST_DIMENSIONS:
            refuse(field, f"has arrays nested more than {MOST_DIMENSIONS} deep")
        data = list(chain.from_iterable(data))
        kinds = set(map(type, data))
    return data, kinds


def _only(kinds: set[type], allowed: set[type], named: str, field: str) -> None:
    if not kinds <= allowed:
        refuse(field, f"has values that are not {named}")


def _packed_floats(values: list[float], datatype: str, field: str) -> bytes:
    try:
        wide = np.array(values, dtype=np.float64)
    except OverflowError:  # a whole number of hundreds of digits
        refuse(field, f"has a value beyond the range of {datatype}")
    with np.errstate(all="ignore"):
        narrow = wide.astype(np.float32 if datatype == "BF16" else _NUMPY[datatype])
    if datatype == "BF16":
        narrow = _narrow(narrow)
        read = _wide(narrow)
    else:
        read = narrow
    if not np.isfinite(read).all() and (np.isinf(read) & np.isfinite(wide)).any():
        refuse(field, f"has a value beyond the range of {datatype}")
    return narrow.tobytes()


def _narrow(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """BF16, which numpy does not have, from FP32: its upper half, rounded to the nearest, half way to even."""
    bits = array.view("<u4")
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(array), _BF16_NAN, rounded).astype("<u2")


def _wide(halves: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return (halves.astype("<u4") << 16).view("<f4")


def _finite(array: npt.NDArray[Any]) -> Array | orjson.Fragment:
    """The array; where it has NaN or infinities, its text with the words that Triton writes for them.

    No JSON has these words, but Triton's clients read them. orjson writes null for all three.
    """
    odd = array[~np.isfinite(array)]
    if not odd.size:
        return array
    words = np.where(np.isnan(odd), b"NaN", np.where(np.signbit(odd), b"-Infinity", b"Infinity")).tolist()
    pieces = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).split(b"null")
    return orjson.Fragment(b"".join(chain.from_iterable(zip_longest(pieces, words, fillvalue=b""))))


def _texts(raw: bytes, count: int, name: str) -> list[str]:
    texts, position = [], 0
    try:
        while position < len(raw):
            start = position + _LENGTH_BYTES
            position = start + int.from_bytes(raw[position:start], "little")
            texts.append(raw[start:position].decode())
    except UnicodeDecodeError:
        raise OutputNotText(output=name) from None
    if position != len(raw) or len(texts) != count:
        raise ValueError("the model server sent a tensor whose size is not that of its shape")
    return texts

"""Bodies of `infer`: from JSON, with or without binary tensors behind it, to a ModelInferRequest, and the answer back.

As Triton's own HTTP port has it, except:

- FP16 and BF16 may be JSON, both ways; Triton wants them as binary data, and fails a call when its model has run.
- A number beyond its datatype is refused; Triton wraps integers around, and makes infinity of a float.
- Data must have as many values as its shape also where the shape has none, where Triton does not look; and no values
  beside arrays, where Triton takes both.
- Text that is not UTF-8 is refused, both ways; Triton passes it on in what is then no JSON.
- FP32 is written with as few digits as read back to the same FP32; Triton writes the digits of an FP64.
- Raw binary requests (`Inference-Header-Content-Length: 0`) are refused: they leave name, datatype and shape of the one
  input to Triton, and the protocol that the request goes on by has no place for such an input.
- Shared memory is refused: it does not reach across hosts. So are more than 1024 inputs or outputs.
- A parameter beyond 63 bits is refused by Triton, except for `priority`: its gRPC port takes no other.

NaN, Infinity and -Infinity are read and written as these words, which JSON does not have but Triton's clients use.
Names that stand twice in an object count where they stand last. What is right in itself and wrong for the model (names,
datatypes, shapes) is left for Triton to find.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson
from tritonclient.grpc import service_pb2 as oip

from gateway.errors import RequestTooLarge, SharedMemoryUnsupported
from gateway.rest.tensors import DATATYPES, ITEM_BYTES, MOST_DIMENSIONS, listed, packed, packed_contents, refuse

HEADER = "Inference-Header-Content-Length"

_MOST_TENSORS = 1024
"""Of inputs, and of outputs. Each costs a hundred times what a number does, so that a body of nothing else is slow."""
_MOST_INT64 = (1 << 63) - 1
_MOST_UINT64 = (1 << 64) - 1
_MOST_PARAMETERS = 256
"""Of a request, an input or an output: each costs some 20 µs on its way, here and where the call is routed."""
_RAW_INPUT_TAG = b"\x3a"
"""Field 7 of a ModelInferRequest, raw_input_contents."""
_NOT_NEGATIVE = frozenset({"priority", "sequence_id", "timeout"})

Object = dict[str, Any]  # Any: whatever JSON may have


class InferRequest(NamedTuple):
    """What is asked of the model, and which outputs the answer has as binary data."""

    request: bytes
    """A serialised ModelInferRequest."""
    outputs: Mapping[str, bool]
    """Of those that are asked for by name, whether as binary data."""
    others: bool
    """The same of all others."""

    def is_binary(self, output: str) -> bool:
        """Whether the answer has this output as binary data, not as JSON."""
        return self.outputs.get(output, self.others)


def request_of(body: bytes, *, model: str, version: str, json_bytes: int | None, most_json_bytes: int) -> InferRequest:
    """Read the body of a call of `infer`, whose first `json_bytes` are JSON: all of it where None.

    Takes time in proportion to the body, and memory in proportion to its JSON many times over, hence `most_json_bytes`.
    Raises RequestTooLarge beyond that, SharedMemoryUnsupported, and RestRequestInvalid for all else that is wrong.
    """
    length = len(body) if json_bytes is None else json_bytes
    if not 0 <= length <= len(body):
        refuse(f"the header {HEADER}", f"is not a number from 0 to {len(body)}, the length of the body")
    if json_bytes == 0:
        refuse(f"the header {HEADER}", "is 0: raw binary requests are not offered, name the input in JSON")
    if length > most_json_bytes:
        raise RequestTooLarge(
            f"This call has more than the {most_json_bytes} bytes of JSON that it may have. Send its tensors as binary"
            " data, as stock clients do unless told otherwise.",
            limit_bytes=str(most_json_bytes),
        )
    view = memoryview(body)
    try:
        return _request(_parsed(view[:length]), view[length:], model, version)
    except UnicodeEncodeError:  # Python's own JSON lets half a surrogate pair through
        refuse("the JSON", "has text that is not Unicode")


def answer_of(response: bytes, wanted: InferRequest) -> tuple[bytes, int | None]:
    """The body of an answer, from a serialised ModelInferResponse, and the value of its header of the JSON's length.

    None where all of the body is JSON. Raises OutputNotText, and what is no refusal for what no model server should
    send: ValueError, KeyError or DecodeError.
    """
    message = oip.ModelInferResponse.FromString(response)
    raws = list(message.raw_output_contents)
    if not raws:
        raws = [packed_contents(output.contents, output.datatype) for output in message.outputs]
    document: Object = {"id": message.id} if message.id else {}
    document |= {"model_name": message.model_name, "model_version": message.model_version}
    if message.parameters:
        document["parameters"] = _plain(message.parameters)
    outputs: list[Object] = []
    binaries: list[bytes] = []
    for output, raw in zip(message.outputs, raws, strict=True):
        shape = list(output.shape)
        told: Object = {"name": output.name, "datatype": output.datatype, "shape": shape}
        parameters = _plain(output.parameters)
        if wanted.is_binary(output.name):
            parameters["binary_data_size"] = len(raw)
            binaries.append(raw)
        else:
            told["data"] = listed(raw, output.datatype, math.prod(shape), output.name)
        if parameters:
            told["parameters"] = parameters
        outputs.append(told)
    document["outputs"] = outputs
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *binaries]), len(text)) if any(binaries) else (text, None)


def _parsed(text: memoryview) -> Object:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        document = _parsed_with_words(bytes(text))
    if not isinstance(document, dict):
        refuse("the JSON", "is not an object")
    return document


def _parsed_with_words(text: bytes) -> object:
    """Again with Python's parser, which is slower and knows NaN and Infinity, where one of them may be the reason."""
    try:
        if b"NaN" in text or b"Infinity" in text:
            return json.loads(text.decode())
    except (ValueError, RecursionError):
        pass
    return refuse("the JSON", f"is not valid, or {HEADER} is not its length in bytes")


def _request(document: Object, binary: memoryview, model: str, version: str) -> InferRequest:
    message = oip.ModelInferRequest(model_name=model, model_version=version)
    if "id" in document:
        message.id = _text(document, "id", "the request")
    parameters = _parameters(document, "the request")
    others = _flag(parameters, "binary_data_output", "the request")
    _set(message.parameters, parameters, "the request")
    parts: list[bytes | memoryview] = [b""]
    position = 0
    for place, entry in enumerate(_objects(document, "inputs")):
        raw = _input(message.inputs.add(), entry, f"inputs[{place}]", binary[position:])
        position += len(raw) if "data" not in entry else 0
        parts += (_RAW_INPUT_TAG, _varint(len(raw)), raw)
    if position != len(binary):
        refuse("the body", f"has {len(binary) - position} bytes that belong to no input")
    outputs: dict[str, bool] = {}
    if "outputs" in document:
        for place, entry in enumerate(_objects(document, "outputs")):
            name, is_binary = _output(message.outputs.add(), entry, f"outputs[{place}]")
            outputs.setdefault(name, is_binary)
    # The message is small without its tensors, and they are copied once this way; protobuf would copy them thrice.
    parts[0] = message.SerializeToString()
    return InferRequest(b"".join(parts), outputs, others)


def _input(tensor: Any, entry: Object, where: str, binary: memoryview) -> bytes | memoryview:  # noqa: ANN401  see above
    """Fill the tensor but for its data, which is returned: from `data`, or what is first in `binary`."""
    tensor.name = _text(entry, "name", where)
    where = f"input '{tensor.name}'"
    tensor.datatype = _text(entry, "datatype", where)
    if tensor.datatype not in DATATYPES:
        refuse(f"`datatype` of {where}", f"is none of {', '.join(sorted(DATATYPES))}")
    shape = _shape(entry, where)
    tensor.shape.extend(shape)
    count = math.prod(shape)
    parameters = _parameters(entry, where)
    has_size = "binary_data_size" in parameters
    if has_size == ("data" in entry):
        refuse(
            where, "has both `data` and `binary_data_size`" if has_size else "has neither `data` nor `binary_data_size`"
        )
    size = parameters.pop("binary_data_size", None)
    _set(tensor.parameters, parameters, where)
    if not has_size:
        return packed(entry["data"], tensor.datatype, count, f"`data` of {where}")
    where = f"`binary_data_size` of {where}"
    if type(size) is not int or size < 0:
        refuse(where, "is not a whole number from 0 on")
    if size > len(binary):
        refuse(where, f"is {size}, and the body has {len(binary)} bytes left")
    if tensor.datatype in ITEM_BYTES and size != count * ITEM_BYTES[tensor.datatype]:
        refuse(where, f"is {size}, and datatype and shape make {count * ITEM_BYTES[tensor.datatype]} bytes")
    return binary[:size]


def _output(tensor: Any, entry: Object, where: str) -> tuple[str, bool]:  # noqa: ANN401  see above
    """Fill the requested output. Returns its name, and whether it is wanted as binary data."""
    tensor.name = name = _text(entry, "name", where)
    where = f"output '{name}'"
    parameters = _parameters(entry, where)
    is_binary = _flag(parameters, "binary_data", where)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        refuse(f"`classification` of {where}", "is not a whole number from 0 on")
    _set(tensor.parameters, parameters, where)
    return name, is_binary


def _shape(entry: Object, where: str) -> list[int]:
    shape = entry.get("shape")
    where = f"`shape` of {where}"
    if not isinstance(shape, list):
        refuse(where, "is not an array")
    if len(shape) > MOST_DIMENSIONS:
        refuse(where, f"has more than {MOST_DIMENSIONS} dimensions")
    if not all(type(size) is int and 0 <= size <= _MOST_INT64 for size in shape):
        refuse(where, "has dimensions that are not whole numbers from 0 on")
    if math.prod(shape) > _MOST_INT64:
        refuse(where, "makes more values than there can be")
    return shape


def _objects(document: Object, name: str) -> list[Object]:
    entries = document.get(name)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        refuse(f"`{name}`", "is not an array of objects")
    if len(entries) > _MOST_TENSORS:
        refuse(f"`{name}`", f"has more than {_MOST_TENSORS} tensors")
    return entries


def _text(entry: Object, name: str, where: str) -> str:
    text = entry.get(name)
    if not isinstance(text, str):
        refuse(f"`{name}` of {where}", "is not a string")
    return text


def _parameters(entry: Object, where: str) -> Object:
    parameters = entry.get("parameters", {})
    if not isinstance(parameters, dict):
        refuse(f"`parameters` of {where}", "is not an object")
    if len(parameters) > _MOST_PARAMETERS:
        refuse(f"`parameters` of {where}", f"has more than {_MOST_PARAMETERS} entries")
    if any(name.startswith("shared_memory_") for name in parameters):
        raise SharedMemoryUnsupported
    return parameters


def _flag(parameters: Object, name: str, where: str) -> bool:
    """Take the parameter away, which is ours to keep, false where it is not there."""
    value = parameters.pop(name, False)
    if not isinstance(value, bool):
        refuse(f"`{name}` of {where}", "is neither true nor false")
    return value


def _set(parameters: Any, values: Object, where: str) -> None:  # noqa: ANN401  see above
    for name, value in values.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            if name in _NOT_NEGATIVE and value < 0:
                refuse(f"parameter '{name}' of {where}", "is negative")
            if not -_MOST_INT64 - 1 <= value <= _MOST_UINT64:  # only Python's own JSON reads more
                refuse(f"parameter '{name}' of {where}", "has more than 64 bits")
            if value <= _MOST_INT64:
                parameters[name].int64_param = value
            else:
                parameters[name].uint64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        elif isinstance(value, str):
            parameters[name].string_param = value
        else:
            refuse(f"parameter '{name}' of {where}", "is neither a boolean, a number nor a string")


def _plain(parameters: Any) -> Object:  # noqa: ANN401  see above
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in sorted(parameters.items()))
    return {name: getattr(value, choice) for name, value, choice in chosen if choice}


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004  seven bits a byte
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)

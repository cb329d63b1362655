"""JSON bodies of the model repository's methods."""

import base64
import binascii
from typing import Any

import orjson
from tritonclient.grpc import service_pb2 as oip

from gateway.errors import RequestTooLarge, RestRequestInvalid

_MOST_SMALL_BYTES = 64 << 10
"""Of a body that has nothing large to say."""
_FILE = "file:"


def index_request(body: bytes) -> oip.RepositoryIndexRequest:
    """What `POST /v2/repository/index` asks for. Raises RestRequestInvalid."""
    ready = _object(body, _MOST_SMALL_BYTES).get("ready", False)
    if not isinstance(ready, bool):
        raise RestRequestInvalid(field="ready", problem="must be true or false")
    return oip.RepositoryIndexRequest(ready=ready)


def load_request(model: str, body: bytes, most_bytes: int) -> oip.RepositoryModelLoadRequest:
    """What `…/load` asks for: a config as text or object, files as base64.

    Raises RestRequestInvalid, or RequestTooLarge beyond so many bytes.
    """
    request = oip.RepositoryModelLoadRequest(model_name=model)
    for name, value in _parameters(body, most_bytes).items():
        if name.startswith(_FILE) and isinstance(value, str):
            request.parameters[name].bytes_param = _decoded(name, value)
        else:
            _put(request.parameters[name], name, value)
    return request


def unload_request(model: str, body: bytes) -> oip.RepositoryModelUnloadRequest:
    """What `…/unload` asks for. Raises RestRequestInvalid."""
    request = oip.RepositoryModelUnloadRequest(model_name=model)
    for name, value in _parameters(body, _MOST_SMALL_BYTES).items():
        _put(request.parameters[name], name, value)
    return request


def _object(body: bytes, most_bytes: int) -> dict[str, Any]:  # Any: JSON
    if len(body) > most_bytes:
        raise RequestTooLarge(limit_bytes=str(most_bytes))
    if not body.strip():
        return {}
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise RestRequestInvalid(field="the body", problem=f"is no JSON: {exc.msg} at byte {exc.pos}") from None
    if not isinstance(read, dict):
        raise RestRequestInvalid(field="the body", problem="must be a JSON object")
    return read


def _parameters(body: bytes, most_bytes: int) -> dict[str, Any]:
    parameters = _object(body, most_bytes).get("parameters", {})
    if not isinstance(parameters, dict):
        raise RestRequestInvalid(field="parameters", problem="must be a JSON object")
    return parameters


def _decoded(name: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RestRequestInvalid(field=f"parameters.{name}", problem="must be base64") from None


def _put(parameter: oip.ModelRepositoryParameter, name: str, value: object) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        parameter.int64_param = value
    elif isinstance(value, str):
        parameter.string_param = value
    elif isinstance(value, dict) and name == "config":
        parameter.string_param = orjson.dumps(value).decode()
    else:
        raise RestRequestInvalid(field=f"parameters.{name}", problem="must be true, false, a whole number or a text")

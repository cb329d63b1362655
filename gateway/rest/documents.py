"""What the gateway tells of server and models, from the protocol's messages to the JSON of Triton's own HTTP port.

That is protobuf's JSON with names in snake_case, every field that has no notion of being unset, and 64-bit integers as
numbers, where protobuf would quote them. Model configurations have some that Triton's HTTP port quotes too, those that
it overlooks: they are numbers here.
"""

from typing import Any

import numpy as np
import orjson
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

Json = Any  # what orjson takes


def server_metadata(response: oip.ServerMetadataResponse) -> bytes:
    """The body of `GET /v2`."""
    return _body(_object(response))


def model_metadata(response: oip.ModelMetadataResponse) -> bytes:
    """The body of `GET /v2/models/{model}`."""
    return _body(_object(response))


def model_config(response: oip.ModelConfigResponse) -> bytes:
    """The body of `GET /v2/models/{model}/config`: the configuration itself."""
    return _body(_object(response.config))


def model_statistics(response: oip.ModelStatisticsResponse) -> bytes:
    """The body of `GET /v2/models/{model}/stats`, or of all models."""
    return _body(_object(response))


def repository_index(response: oip.RepositoryIndexResponse) -> bytes:
    """The body of `POST /v2/repository/index`: an array, whose objects leave out what is empty."""
    return _body([{name: value for name, value in _object(each).items() if value} for each in response.models])


def _body(document: Json) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _object(message: Message) -> dict[str, Json]:
    return {
        field.name: _field(field, getattr(message, field.name))
        for field in message.DESCRIPTOR.fields
        if not field.has_presence or message.HasField(field.name)
    }


def _field(field: Any, value: Any) -> Json:  # noqa: ANN401  a message's attribute is of any type
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        return {str(key): _value(of, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, each) for each in value]
    return _value(field, value)


def _value(field: Any, value: Any) -> Json:  # noqa: ANN401  as above
    if field.message_type is not None:
        return _object(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    if field.type == FieldDescriptor.TYPE_FLOAT:
        return np.float32(value)  # written with as few digits as a float needs
    return value

from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UsageReport(_message.Message):
    __slots__ = ("schema_version", "source", "sequence", "entries")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    source: str
    sequence: int
    entries: _containers.RepeatedCompositeFieldContainer[UsageEntry]
    def __init__(self, schema_version: _Optional[int] = ..., source: _Optional[str] = ..., sequence: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[UsageEntry, _Mapping]]] = ...) -> None: ...

class UsageEntry(_message.Message):
    __slots__ = ("tenant", "key_id", "model", "hour_unix_seconds", "calls", "request_bytes", "response_bytes", "model_micros", "last_unix_micros")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOUR_UNIX_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_MICROS_FIELD_NUMBER: _ClassVar[int]
    LAST_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    key_id: str
    model: str
    hour_unix_seconds: int
    calls: int
    request_bytes: int
    response_bytes: int
    model_micros: int
    last_unix_micros: int
    def __init__(self, tenant: _Optional[str] = ..., key_id: _Optional[str] = ..., model: _Optional[str] = ..., hour_unix_seconds: _Optional[int] = ..., calls: _Optional[int] = ..., request_bytes: _Optional[int] = ..., response_bytes: _Optional[int] = ..., model_micros: _Optional[int] = ..., last_unix_micros: _Optional[int] = ...) -> None: ...

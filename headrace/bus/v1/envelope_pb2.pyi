from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_MODEL_INFER: _ClassVar[Method]
METHOD_UNSPECIFIED: Method
METHOD_MODEL_INFER: Method

class Envelope(_message.Message):
    __slots__ = ("schema_version", "call_id", "method", "reply_address", "reply_incarnation", "expire_time_unix_micros", "attempt", "tenant", "metadata", "trace_context")
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REPLY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REPLY_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TRACE_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    schema_version: int
    call_id: bytes
    method: Method
    reply_address: str
    reply_incarnation: int
    expire_time_unix_micros: int
    attempt: int
    tenant: str
    metadata: _containers.RepeatedCompositeFieldContainer[Metadatum]
    trace_context: TraceContext
    def __init__(self, schema_version: _Optional[int] = ..., call_id: _Optional[bytes] = ..., method: _Optional[_Union[Method, str]] = ..., reply_address: _Optional[str] = ..., reply_incarnation: _Optional[int] = ..., expire_time_unix_micros: _Optional[int] = ..., attempt: _Optional[int] = ..., tenant: _Optional[str] = ..., metadata: _Optional[_Iterable[_Union[Metadatum, _Mapping]]] = ..., trace_context: _Optional[_Union[TraceContext, _Mapping]] = ...) -> None: ...

class Metadatum(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...

class TraceContext(_message.Message):
    __slots__ = ("trace_id", "span_id", "trace_state")
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    SPAN_ID_FIELD_NUMBER: _ClassVar[int]
    TRACE_STATE_FIELD_NUMBER: _ClassVar[int]
    trace_id: bytes
    span_id: bytes
    trace_state: str
    def __init__(self, trace_id: _Optional[bytes] = ..., span_id: _Optional[bytes] = ..., trace_state: _Optional[str] = ...) -> None: ...

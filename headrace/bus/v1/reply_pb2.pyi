from headrace.bus.v1 import envelope_pb2 as _envelope_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_REASON_UNSPECIFIED: _ClassVar[FailureReason]
    FAILURE_REASON_EXPIRED: _ClassVar[FailureReason]
    FAILURE_REASON_TRITON_LOST: _ClassVar[FailureReason]
    FAILURE_REASON_ANSWER_TOO_LARGE: _ClassVar[FailureReason]
    FAILURE_REASON_BAD_RECORD: _ClassVar[FailureReason]
    FAILURE_REASON_INTERNAL: _ClassVar[FailureReason]
    FAILURE_REASON_ROUTER_LEFT: _ClassVar[FailureReason]
    FAILURE_REASON_GATEWAY_FULL: _ClassVar[FailureReason]
FAILURE_REASON_UNSPECIFIED: FailureReason
FAILURE_REASON_EXPIRED: FailureReason
FAILURE_REASON_TRITON_LOST: FailureReason
FAILURE_REASON_ANSWER_TOO_LARGE: FailureReason
FAILURE_REASON_BAD_RECORD: FailureReason
FAILURE_REASON_INTERNAL: FailureReason
FAILURE_REASON_ROUTER_LEFT: FailureReason
FAILURE_REASON_GATEWAY_FULL: FailureReason

class AttachRequest(_message.Message):
    __slots__ = ("hello", "answers", "admin_result")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    ADMIN_RESULT_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    answers: AnswerBatch
    admin_result: AdminResult
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., answers: _Optional[_Union[AnswerBatch, _Mapping]] = ..., admin_result: _Optional[_Union[AdminResult, _Mapping]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("welcome", "acknowledgement", "cancellations", "admin_command")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    CANCELLATIONS_FIELD_NUMBER: _ClassVar[int]
    ADMIN_COMMAND_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    acknowledgement: Acknowledgement
    cancellations: CancellationBatch
    admin_command: AdminCommand
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., cancellations: _Optional[_Union[CancellationBatch, _Mapping]] = ..., admin_command: _Optional[_Union[AdminCommand, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("router_id", "router_incarnation", "pool", "expected_gateway_incarnation")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GATEWAY_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    router_incarnation: int
    pool: str
    expected_gateway_incarnation: int
    def __init__(self, router_id: _Optional[str] = ..., router_incarnation: _Optional[int] = ..., pool: _Optional[str] = ..., expected_gateway_incarnation: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("cancellations",)
    CANCELLATIONS_FIELD_NUMBER: _ClassVar[int]
    cancellations: _containers.RepeatedCompositeFieldContainer[Cancellation]
    def __init__(self, cancellations: _Optional[_Iterable[_Union[Cancellation, _Mapping]]] = ...) -> None: ...

class AnswerBatch(_message.Message):
    __slots__ = ("answers",)
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    def __init__(self, answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("sequence", "call_id", "attempt", "response", "status", "failure")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    call_id: bytes
    attempt: int
    response: bytes
    status: ModelServerStatus
    failure: FailureReason
    def __init__(self, sequence: _Optional[int] = ..., call_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., response: _Optional[bytes] = ..., status: _Optional[_Union[ModelServerStatus, _Mapping]] = ..., failure: _Optional[_Union[FailureReason, str]] = ...) -> None: ...

class ModelServerStatus(_message.Message):
    __slots__ = ("code", "message", "trailing_metadata")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRAILING_METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    trailing_metadata: _containers.RepeatedCompositeFieldContainer[_envelope_pb2.Metadatum]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., trailing_metadata: _Optional[_Iterable[_Union[_envelope_pb2.Metadatum, _Mapping]]] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class CancellationBatch(_message.Message):
    __slots__ = ("cancellations",)
    CANCELLATIONS_FIELD_NUMBER: _ClassVar[int]
    cancellations: _containers.RepeatedCompositeFieldContainer[Cancellation]
    def __init__(self, cancellations: _Optional[_Iterable[_Union[Cancellation, _Mapping]]] = ...) -> None: ...

class Cancellation(_message.Message):
    __slots__ = ("call_id", "attempt", "expire_time_unix_micros")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    call_id: bytes
    attempt: int
    expire_time_unix_micros: int
    def __init__(self, call_id: _Optional[bytes] = ..., attempt: _Optional[int] = ..., expire_time_unix_micros: _Optional[int] = ...) -> None: ...

class AdminCommand(_message.Message):
    __slots__ = ("command_id", "method", "request", "expire_time_unix_micros")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_UNIX_MICROS_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    method: str
    request: bytes
    expire_time_unix_micros: int
    def __init__(self, command_id: _Optional[int] = ..., method: _Optional[str] = ..., request: _Optional[bytes] = ..., expire_time_unix_micros: _Optional[int] = ...) -> None: ...

class AdminResult(_message.Message):
    __slots__ = ("command_id", "response", "status", "failure")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    command_id: int
    response: bytes
    status: ModelServerStatus
    failure: FailureReason
    def __init__(self, command_id: _Optional[int] = ..., response: _Optional[bytes] = ..., status: _Optional[_Union[ModelServerStatus, _Mapping]] = ..., failure: _Optional[_Union[FailureReason, str]] = ...) -> None: ...

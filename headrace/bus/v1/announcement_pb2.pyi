from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RouterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROUTER_STATE_UNSPECIFIED: _ClassVar[RouterState]
    ROUTER_STATE_READY: _ClassVar[RouterState]
    ROUTER_STATE_SERVER_AWAY: _ClassVar[RouterState]
    ROUTER_STATE_LEAVING: _ClassVar[RouterState]
ROUTER_STATE_UNSPECIFIED: RouterState
ROUTER_STATE_READY: RouterState
ROUTER_STATE_SERVER_AWAY: RouterState
ROUTER_STATE_LEAVING: RouterState

class Announcement(_message.Message):
    __slots__ = ("gateway", "router", "model", "statistics", "repository_change")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    ROUTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    REPOSITORY_CHANGE_FIELD_NUMBER: _ClassVar[int]
    gateway: GatewayHeartbeat
    router: RouterHeartbeat
    model: ModelDescription
    statistics: ModelStatistics
    repository_change: RepositoryChange
    def __init__(self, gateway: _Optional[_Union[GatewayHeartbeat, _Mapping]] = ..., router: _Optional[_Union[RouterHeartbeat, _Mapping]] = ..., model: _Optional[_Union[ModelDescription, _Mapping]] = ..., statistics: _Optional[_Union[ModelStatistics, _Mapping]] = ..., repository_change: _Optional[_Union[RepositoryChange, _Mapping]] = ...) -> None: ...

class GatewayHeartbeat(_message.Message):
    __slots__ = ("reply_address", "incarnation", "beat", "pool")
    REPLY_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    reply_address: str
    incarnation: int
    beat: int
    pool: str
    def __init__(self, reply_address: _Optional[str] = ..., incarnation: _Optional[int] = ..., beat: _Optional[int] = ..., pool: _Optional[str] = ...) -> None: ...

class RouterHeartbeat(_message.Message):
    __slots__ = ("incarnation", "beat", "state", "running", "waiting", "server_name", "server_version", "server_extensions")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_EXTENSIONS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    beat: int
    state: RouterState
    running: int
    waiting: int
    server_name: str
    server_version: str
    server_extensions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, incarnation: _Optional[int] = ..., beat: _Optional[int] = ..., state: _Optional[_Union[RouterState, str]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., server_name: _Optional[str] = ..., server_version: _Optional[str] = ..., server_extensions: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelDescription(_message.Message):
    __slots__ = ("router_incarnation", "model", "versions", "window", "partitions", "partition_count")
    ROUTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_COUNT_FIELD_NUMBER: _ClassVar[int]
    router_incarnation: int
    model: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersion]
    window: int
    partitions: _containers.RepeatedScalarFieldContainer[int]
    partition_count: int
    def __init__(self, router_incarnation: _Optional[int] = ..., model: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersion, _Mapping]]] = ..., window: _Optional[int] = ..., partitions: _Optional[_Iterable[int]] = ..., partition_count: _Optional[int] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("version", "state", "reason", "metadata", "config")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    version: str
    state: str
    reason: str
    metadata: bytes
    config: bytes
    def __init__(self, version: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., metadata: _Optional[bytes] = ..., config: _Optional[bytes] = ...) -> None: ...

class ModelStatistics(_message.Message):
    __slots__ = ("router_incarnation", "statistics")
    ROUTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    router_incarnation: int
    statistics: bytes
    def __init__(self, router_incarnation: _Optional[int] = ..., statistics: _Optional[bytes] = ...) -> None: ...

class RepositoryChange(_message.Message):
    __slots__ = ("model", "loaded")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    model: str
    loaded: bool
    def __init__(self, model: _Optional[str] = ..., loaded: _Optional[bool] = ...) -> None: ...

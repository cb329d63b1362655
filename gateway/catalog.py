"""What the gateway answers of the Open Inference Protocol without asking anyone: the server, its models, their counts.

All from the live registry, and as Triton itself would answer: the same messages, the same codes, and its words where a
name is not known. Requests and responses are tritonclient's classes; nothing here waits. `handlers` makes gRPC methods
of it, and of those methods of the protocol that this gateway does not offer.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

from gateway.admission import Admission
from gateway.callers import WhoCalls
from gateway.errors import (
    GatewayStarting,
    ModelNotReady,
    ModelUnknown,
    ModelVersionInvalid,
    ModelVersionUnknown,
    NoLiveRouter,
    NotOffered,
    Refusal,
    RepositoryNameUnsupported,
    SharedMemoryUnsupported,
    StreamingUnsupported,
)
from gateway.policy.model import MethodClass
from gateway.registry import Model, Registry, Version
from gateway.statistics import summed
from gateway.status import Context, Handler, abort, rate_metadata, unary

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

SERVICE = "inference.GRPCInferenceService"

NOT_OFFERED: dict[str, type[NotOffered]] = {
    "ModelStreamInfer": StreamingUnsupported,
    **{
        f"{memory}SharedMemory{verb}": SharedMemoryUnsupported
        for memory in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
}

_SERVER_NAME = "triton"
_HEARING_SECONDS = 1.0
_LONGEST_VERSION = 19  # digits of a 64-bit number


@dataclass(frozen=True, slots=True)
class Catalog:
    """Answers from a registry. Raises refusals."""

    registry: Registry
    pool_may_sleep: bool = False
    """Whether calls are taken while no router is alive."""
    sees: Callable[[str], bool] = lambda _: True
    """Whether a model exists for who asks: the others are as if there were none."""

    def server_live(self, _: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        """Whoever can ask has the answer."""
        return oip.ServerLiveResponse(live=True)

    def server_ready(self, _: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        """Whether calls are taken: some router is alive, or the pool may sleep."""
        ready = self.pool_may_sleep or any(True for _ in self.registry.live_routers())
        return oip.ServerReadyResponse(ready=ready)

    def server_metadata(self, _: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        """Name and version of the first model server, and the extensions that all have and that work from afar."""
        routers = sorted(self.registry.live_routers(), key=lambda router: router.key.id)
        routers = routers or sorted(self.registry.routers.values(), key=lambda router: router.key.id)
        if not routers:
            return oip.ServerMetadataResponse(name=_SERVER_NAME)
        first = routers[0].heartbeat
        extensions = [
            extension
            for extension in first.server_extensions
            if not extension.endswith("shared_memory")
            and all(extension in router.heartbeat.server_extensions for router in routers)
        ]
        return oip.ServerMetadataResponse(
            name=first.server_name or _SERVER_NAME, version=first.server_version, extensions=extensions
        )

    def model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        """Whether a call would be run now. False, as from Triton, for a model that nobody knows."""
        wanted = _wanted_version(request.version)
        model = self._seen(request.name)
        ready = model is not None and model.ready and any(each.ready for each in _matching(model, wanted))
        return oip.ModelReadyResponse(ready=ready)

    def model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """What a version says of itself, with the versions that are ready anywhere in the pool."""
        model = self._model(request.name)
        version = _described(model, _wanted_version(request.version), lambda each: each.metadata)
        response = oip.ModelMetadataResponse.FromString(version.metadata)
        ready = [each.version for each in model.versions if each.ready]
        if ready:
            response.versions[:] = ready
        return response

    def model_config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        """How a version is configured."""
        model = self._model(request.name)
        version = _described(model, _wanted_version(request.version), lambda each: each.config)
        return oip.ModelConfigResponse.FromString(version.config)

    def model_statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        """What the live model servers counted, summed by model and version; of all models where none is named."""
        wanted = _wanted_version(request.version) if request.name else ""
        if request.name and not _matching(self._model(request.name), wanted):
            raise ModelVersionUnknown(model=request.name, version=wanted)
        names = [request.name] if request.name else sorted(filter(self.sees, self.registry.models))
        told = (
            statistics
            for name in names
            for counted in self.registry.statistics(name)
            for statistics in oip.ModelStatisticsResponse.FromString(counted.statistics).model_stats
            if wanted in ("", statistics.version)
        )
        return oip.ModelStatisticsResponse(model_stats=summed(told))

    def repository_index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        """Every version of every model with its state, by name; with `ready`, those only that are."""
        if request.repository_name:
            raise RepositoryNameUnsupported
        response = oip.RepositoryIndexResponse()
        for name, model in sorted(self.registry.models.items()):
            if not self.sees(name):
                continue
            if not model.versions and not request.ready:
                response.models.add(name=name)
            for each in model.versions:
                if each.ready or not request.ready:
                    response.models.add(name=name, version=each.version, state=each.state, reason=each.reason)
        return response

    def _seen(self, name: str) -> Model | None:
        return self.registry.models.get(name) if self.sees(name) else None

    def _model(self, name: str) -> Model:
        model = self._seen(name)
        if model is None:
            raise ModelUnknown(model=name) if self.registry.complete else GatewayStarting
        return model


def handlers(catalog: Catalog, who: WhoCalls, admission: Admission) -> dict[str, Handler]:
    """The methods of the inference service that need nothing but the registry, by name. All ask for a key."""

    def answered(
        method: str, request_class: type[Request], answer: Callable[[Catalog, Request], Response]
    ) -> tuple[str, Handler]:
        full = f"/{SERVICE}/{method}"

        async def respond(request: Request, context: Context) -> Response:
            caller = who(context)
            tenant = admission.require(caller, MethodClass.METADATA, method=full)
            gate = admission.asking(caller, tenant)
            with admission.counted(gate, caller, method=full):
                response = answer(replace(catalog, sees=tenant.sees), request)
            left = admission.left(gate)
            if left is not None:
                context.set_trailing_metadata(rate_metadata(left))
            return response

        return method, unary(full, request_class, respond)

    return dict(
        [
            answered("ServerLive", oip.ServerLiveRequest, Catalog.server_live),
            answered("ServerReady", oip.ServerReadyRequest, Catalog.server_ready),
            answered("ServerMetadata", oip.ServerMetadataRequest, Catalog.server_metadata),
            answered("ModelReady", oip.ModelReadyRequest, Catalog.model_ready),
            answered("ModelMetadata", oip.ModelMetadataRequest, Catalog.model_metadata),
            answered("ModelConfig", oip.ModelConfigRequest, Catalog.model_config),
            answered("ModelStatistics", oip.ModelStatisticsRequest, Catalog.model_statistics),
            answered("RepositoryIndex", oip.RepositoryIndexRequest, Catalog.repository_index),
            *((method, _refused(refusal, who)) for method, refusal in NOT_OFFERED.items()),
        ]
    )


def _refused(refusal: type[NotOffered], who: WhoCalls) -> Handler:
    async def refuse(requests: AsyncIterator[bytes], context: Context) -> None:
        try:
            who(context)
        except Refusal as unidentified:
            await abort(context, unidentified)
        if refusal is StreamingUnsupported:
            # grpc.aio clients take a stream that ends while they write for an error of their own, and never see ours.
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEARING_SECONDS):
                    async for _ in requests:
                        pass
        await abort(context, refusal())

    return grpc.stream_stream_rpc_method_handler(refuse)  # fits any shape: the requests are not looked at


def _wanted_version(text: str) -> str:
    if not text:
        return ""
    if not (text.isascii() and text.isdecimal() and len(text) <= _LONGEST_VERSION and 0 < int(text) < 1 << 63):
        raise ModelVersionInvalid(version=text)
    return str(int(text))


def _matching(model: Model, wanted: str) -> tuple[Version, ...]:
    return tuple(each for each in model.versions if wanted in ("", each.version))


def _described(model: Model, wanted: str, part: Callable[[Version], bytes]) -> Version:
    """The wanted version that has the part: the highest ready one, else the highest whose last description is kept."""
    matching = _matching(model, wanted)
    if wanted and not matching:
        raise ModelVersionUnknown(model=model.name, version=wanted)
    told = [each for each in reversed(matching) if part(each)]
    if told:
        return next((each for each in told if each.ready), told[0])
    raise ModelNotReady(model=model.name) if model.live else NoLiveRouter(model=model.name)

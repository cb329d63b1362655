"""Announcements for tests: what routers say, in one line each."""

from tritonclient.grpc import service_pb2 as oip

from gateway.registry import READY, Registry
from headrace.bus.announcements import gateway_key, model_key, router_key, statistics_key
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import (
    ROUTER_STATE_READY,
    Announcement,
    GatewayHeartbeat,
    ModelDescription,
    ModelStatistics,
    ModelVersion,
    RouterHeartbeat,
    RouterState,
)

POOL, GATEWAY, INCARNATION = "default", "gateway-0", 77


def own_heartbeat(beat: int = 1, incarnation: int = INCARNATION) -> tuple[str, Announcement]:
    return gateway_key(GATEWAY), Announcement(gateway=GatewayHeartbeat(incarnation=incarnation, beat=beat))


def heartbeat(
    router: RouterKey,
    beat: int = 1,
    state: RouterState = ROUTER_STATE_READY,
    extensions: tuple[str, ...] = ("model_repository", "statistics"),
    pool: str = POOL,
) -> tuple[str, Announcement]:
    said = RouterHeartbeat(
        incarnation=router.incarnation,
        beat=beat,
        state=state,
        server_name="triton",
        server_version="2.51.0",
        server_extensions=extensions,
    )
    return router_key(pool, router.id), Announcement(router=said)


def version(name: str = "1", state: str = READY, reason: str = "", model: str = "simple") -> ModelVersion:
    ready = state == READY
    metadata = oip.ModelMetadataResponse(name=model, versions=[name], platform="python")
    config = oip.ModelConfigResponse()
    config.config.name = model
    config.config.max_batch_size = 8
    return ModelVersion(
        version=name,
        state=state,
        reason=reason,
        metadata=metadata.SerializeToString() if ready else b"",
        config=config.SerializeToString() if ready else b"",
    )


def description(
    router: RouterKey,
    *,
    model: str = "simple",
    partitions: tuple[int, ...] = (0,),
    window: int = 4,
    versions: tuple[ModelVersion, ...] | None = None,
    pool: str = POOL,
) -> tuple[str, Announcement]:
    said = ModelDescription(
        router_incarnation=router.incarnation,
        model=model,
        versions=(version(model=model),) if versions is None else versions,
        window=window,
        partitions=partitions,
        partition_count=8,
    )
    return model_key(pool, router.id, model), Announcement(model=said)


def statistics(router: RouterKey, *each: oip.ModelStatistics, model: str = "simple") -> tuple[str, Announcement]:
    counted = oip.ModelStatisticsResponse(model_stats=each).SerializeToString()
    said = ModelStatistics(router_incarnation=router.incarnation, statistics=counted)
    return statistics_key(POOL, router.id, model), Announcement(statistics=said)


def registry(*said: tuple[str, Announcement | None], attached: tuple[RouterKey, ...] = ()) -> Registry:
    """A registry to which all of it was said at second 0."""
    made = Registry(pool=POOL, gateway_id=GATEWAY, incarnation=INCARNATION)
    made.complete = True
    for key, announcement in said:
        made.apply(key, announcement, 0.0)
    for router in attached:
        made.attached(router)
    return made

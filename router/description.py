"""What a router announces: its heartbeat, its models, how often they ran."""

from collections.abc import Callable

from headrace.bus.announcements import model_key, statistics_key
from headrace.bus.beacon import Beacon
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import (
    ROUTER_STATE_LEAVING,
    ROUTER_STATE_READY,
    ROUTER_STATE_SERVER_AWAY,
    Announcement,
    ModelDescription,
    ModelStatistics,
    RouterHeartbeat,
)
from router.intake import Intake
from router.inventory import Inventory


class Description:
    """Puts what this router knows into announcements."""

    def __init__(self, *, router: RouterKey, pool: str, partition_count: Callable[[str], int | None]) -> None:
        self._router = router
        self._pool = pool
        self._partition_count = partition_count
        self.leaving = False

    def heartbeat(self, beat: int, inventory: Inventory, intake: Intake) -> Announcement:
        """This second's heartbeat."""
        state = ROUTER_STATE_READY if inventory.ready else ROUTER_STATE_SERVER_AWAY
        return Announcement(
            router=RouterHeartbeat(
                incarnation=self._router.incarnation,
                beat=beat,
                state=ROUTER_STATE_LEAVING if self.leaving else state,
                running=intake.running,
                waiting=intake.waiting,
                server_name=inventory.server.name,
                server_version=inventory.server.version,
                server_extensions=inventory.server.extensions,
            )
        )

    def put(self, beacon: Beacon, inventory: Inventory, intake: Intake) -> None:
        """Everything beside the heartbeat, as it is now."""
        keys = set()
        for name, model in inventory.models.items():
            key = model_key(self._pool, self._router.id, name)
            keys.add(key)
            partition_count = self._partition_count(model.topic)
            if partition_count is None:
                continue  # the broker was not asked yet: until then the last word on the model stands
            description = ModelDescription(
                router_incarnation=self._router.incarnation,
                model=name,
                versions=model.versions,
                window=model.window,
                partitions=() if self.leaving else intake.assigned_partitions(model.topic),
                partition_count=partition_count,
            )
            beacon.put(key, Announcement(model=description))
        for name, statistics in inventory.statistics.items():
            key = statistics_key(self._pool, self._router.id, name)
            keys.add(key)
            said = ModelStatistics(router_incarnation=self._router.incarnation, statistics=statistics)
            beacon.put(key, Announcement(statistics=said))
        beacon.forget(keys)

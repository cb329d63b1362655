"""`grpc.health.v1.Health`: how this gateway is, and how each model is, for probes, balancers and client stubs.

`""` and the inference service stand for the gateway, and are answered to anyone; models are answered by name, and only
to callers whose tenant sees them: to others they do not exist. Not the servicer that comes with grpcio: its Watch goes
silent for everyone as soon as one watcher leaves.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gateway.admission import Admission
from gateway.audit import Audit
from gateway.callers import WhoCalls
from gateway.catalog import SERVICE as INFERENCE_SERVICE
from gateway.errors import (
    CertificateUnknown,
    CredentialRefused,
    GatewayFull,
    KeyMissing,
    ServiceUnknown,
    ShuttingDown,
)
from gateway.failures import Slowed
from gateway.registry import Registry
from gateway.status import Context, Handler, streamed, unary
from gateway.strangers import Anteroom

SERVICE = "grpc.health.v1.Health"
MAX_WATCHERS = 10_000

_OWN = frozenset({"", INFERENCE_SERVICE})


class Health:
    """The health of a gateway and its models. NOT_SERVING until `serve`, and again from `drain` on."""

    def __init__(self, registry: Registry, who: WhoCalls, admission: Admission, audit: Audit, slowed: Slowed) -> None:
        """Follows the registry and the policy for as long as all live."""
        self._audit = audit
        self._slowed = slowed
        self._registry = registry
        self._who = who
        self._admission = admission
        self._serving = False
        self._closed = False
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._watcher_count = 0
        registry.subscribe(self._wake)
        admission.subscribe(self.reconsider)

    def serve(self) -> None:
        """The gateway takes calls from here on. Saying it again changes nothing."""
        if not self._serving:
            self._serving = True
            self._wake(self._watchers)

    def reconsider(self) -> None:
        """Who may see what has changed."""
        self._wake(self._watchers.keys() - _OWN)

    def drain(self) -> None:
        """The gateway is about to leave: everything is NOT_SERVING, and watchers are told at once."""
        self._serving = False
        self._wake(self._watchers)

    def close(self) -> None:
        """End all watches, so that the server need not wait for them. Call it when calls are refused anyway."""
        self._closed = True
        self._wake(self._watchers)

    @property
    def watchers(self) -> int:
        """How many watches stand."""
        return self._watcher_count

    def handlers(self) -> dict[str, Handler]:
        """The methods of the health service, by name. Anyone may call them, and is read as a stranger."""
        read = Anteroom().only
        return {
            "Check": unary(f"/{SERVICE}/Check", HealthCheckRequest, self.check, read=read),
            "Watch": streamed(f"/{SERVICE}/Watch", HealthCheckRequest, self.watch, read=read),
        }

    async def check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        """The status now. Raises ServiceUnknown."""
        visible = await self._visible_now(request.service, context, "Check")
        status = self._status(request.service) if visible else HealthCheckResponse.SERVICE_UNKNOWN
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise ServiceUnknown(service=request.service)
        return HealthCheckResponse(status=status)

    async def watch(self, request: HealthCheckRequest, context: Context) -> AsyncGenerator[HealthCheckResponse]:
        """The status now, and again whenever it is another; a name that is not known yet is SERVICE_UNKNOWN.

        A slow reader misses what lay between, never the newest.
        """
        if self._watcher_count >= MAX_WATCHERS:
            raise GatewayFull
        name = request.service
        changed = asyncio.Event()
        told: int | None = None
        self._watcher_count += 1
        self._watchers[name].add(changed)
        try:
            await self._visible_now(name, context, "Watch")
            while not self._closed:
                changed.clear()
                visible = self._visible(name, context)
                status = self._status(name) if visible else HealthCheckResponse.SERVICE_UNKNOWN
                if status != told:
                    told = status
                    yield HealthCheckResponse(status=status)
                else:
                    await changed.wait()
        finally:
            self._watcher_count -= 1
            self._watchers[name].discard(changed)
            if not self._watchers[name]:
                del self._watchers[name]
        raise ShuttingDown

    async def _visible_now(self, name: str, context: Context, method: str) -> bool:
        """Whether the caller may know of a name. A refusal is written down; who guesses at keys has to wait for it."""
        try:
            return self._may_know(name, context)
        except CredentialRefused as refusal:
            self._audit.refused(None, refusal, method=f"/{SERVICE}/{method}", peer=context.peer())
            if not isinstance(refusal, KeyMissing | CertificateUnknown):
                await self._slowed.failed(context.peer())
            return False

    def _visible(self, name: str, context: Context) -> bool:
        """The same again, of a watch that stands."""
        try:
            return self._may_know(name, context)
        except CredentialRefused:
            return False

    def _may_know(self, name: str, context: Context) -> bool:
        return name in _OWN or self._admission.sees(self._who(context), name)

    def _status(self, name: str) -> int:
        if name in _OWN:
            return HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
        model = self._registry.models.get(name)
        if model is None:
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._serving and model.ready else HealthCheckResponse.NOT_SERVING

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            for changed in self._watchers.get(name, ()):
                changed.set()

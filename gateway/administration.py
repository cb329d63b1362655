"""Load, unload, trace and log settings: to every router of the pool, down the reply streams, for admins only.

All routers answer, and a partial failure is told; one that can't be asked has failed. What a call changed is visible to
its caller: a load returns when a router takes calls of the model, an unload when none does.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2 as oip

from gateway.admission import Admission
from gateway.audit import Audit
from gateway.callers import WhoCalls
from gateway.errors import (
    AdminPartialFailure,
    AdminTimeout,
    Internal,
    MethodForbidden,
    ModelUnknown,
    NoLiveRouter,
    Refusal,
    RequestMalformed,
    RequestTooLarge,
    RouterLost,
    TenantUnknown,
    TritonLost,
)
from gateway.identity import ADMIN, Caller
from gateway.infer import pass_on
from gateway.policy.model import MethodClass, Tenant
from gateway.registry import Registry, Router
from gateway.status import Context, Handler, rate_metadata, unary_bytes
from headrace.bus.announcements import repository_key
from headrace.bus.protocols import AnnouncementLog, AnswerHub, Failure, LogUnavailableError, Outcome, RouterLostError
from headrace.bus.v1.announcement_pb2 import ROUTER_STATE_LEAVING, Announcement, RepositoryChange
from headrace.bus.v1.reply_pb2 import ModelServerStatus

SERVICE = "inference.GRPCInferenceService"
_log = logging.getLogger(__name__)


class Administration:
    """The administrative methods."""

    def __init__(
        self,
        *,
        pool: str,
        registry: Registry,
        hub: AnswerHub,
        announcements: AnnouncementLog,
        who: WhoCalls,
        admission: Admission,
        audit: Audit,
        seconds: Callable[[Context], float],
        max_message_bytes: int,
    ) -> None:
        self._pool = pool
        self._registry = registry
        self._hub = hub
        self._announcements = announcements
        self._who = who
        self._admission = admission
        self._audit = audit
        self._seconds = seconds
        self._max_message_bytes = max_message_bytes
        self._idle = asyncio.Event()
        self._idle.set()
        self.under_way = 0
        """Administrative calls that have not ended."""

    async def drained(self) -> None:
        """Return when no administrative call is under way."""
        await self._idle.wait()

    def handlers(self) -> dict[str, Handler]:
        """The methods, by name."""
        methods = {
            "RepositoryModelLoad": (oip.RepositoryModelLoadRequest, self._load),
            "RepositoryModelUnload": (oip.RepositoryModelUnloadRequest, self._unload),
            "TraceSetting": (oip.TraceSettingRequest, None),
            "LogSettings": (oip.LogSettingsRequest, None),
        }
        return {method: self._handler(method, *parts) for method, parts in methods.items()}

    def _handler(
        self, method: str, request_class: type[Message], after: Callable[[bytes], Awaitable[None]] | None
    ) -> Handler:
        full = f"/{SERVICE}/{method}"

        async def respond(request: bytes, context: Context) -> bytes:
            caller = self._who(context)
            try:
                caller.require(ADMIN, method=method)
                message = self._message(request, request_class)
                model = getattr(message, "model_name", "")
                tenant = self._require_sight(caller, model, method=full)
            except Refusal as refusal:
                if not isinstance(refusal, TenantUnknown | MethodForbidden):  # admission has told of those
                    self._audit.refused(caller, refusal, method=full, peer=context.peer())
                raise
            # A Triton that comes back is brought to what its pool was last asked for: the model's name, and no more.
            restored = after is not None and not getattr(message, "parameters", ())
            gate = self._admission.asking(caller, tenant)
            with self._admission.counted(gate, caller, method=full, model=model):
                verdict = "CANCELLED"
                try:
                    with self._counted():
                        seconds = self._seconds(context)
                        outcome = await self._everywhere(full, request, seconds, after, restored=restored)
                    verdict = "OK" if isinstance(outcome, bytes) else "TRITON"
                except Refusal as refusal:
                    verdict = refusal.reason
                    raise
                except Exception:
                    verdict = Internal.reason
                    raise
                finally:
                    self._audit.administered(caller, method=full, model=model, peer=context.peer(), verdict=verdict)
            left = self._admission.left(gate)
            if left is not None and isinstance(outcome, bytes):
                context.set_trailing_metadata(rate_metadata(left))
            return await pass_on(outcome, context)

        return unary_bytes(full, respond, most_bytes=self._max_message_bytes)

    def _message(self, request: bytes, request_class: type[Message]) -> Message:
        if len(request) > self._max_message_bytes:
            raise RequestTooLarge(limit_bytes=str(self._max_message_bytes))
        return _parsed(request, request_class)

    def _require_sight(self, caller: Caller, model: str, *, method: str) -> Tenant:
        """A tenant administers what it sees; what concerns all models, only where it sees all."""
        tenant = self._admission.require(caller, MethodClass.ADMIN, method=method)
        if model and not tenant.sees(model):
            raise ModelUnknown(model=model)
        if not model and not tenant.sees_all:
            raise self._admission.forbidden(caller, method=method)
        return tenant

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def _everywhere(
        self,
        method: str,
        request: bytes,
        seconds: float,
        after: Callable[[bytes], Awaitable[None]] | None,
        *,
        restored: bool,
    ) -> bytes | ModelServerStatus:
        routers = list(self._registry.live_routers())
        if not routers:
            raise NoLiveRouter("No router is alive, so no model server was asked. Try again, or ask the operator.")
        unasked = self._unasked(restored=restored)
        expire = time.time_ns() // 1000 + int(seconds * 1e6)
        tasks = [
            asyncio.create_task(self._ask(router, method, request, expire), name=f"admin-{router.key.id}")
            for router in routers
        ]
        try:
            async with asyncio.timeout(seconds):
                verdict = _verdict([*await asyncio.gather(*tasks), *unasked])
                if after is not None and isinstance(verdict, bytes):
                    await after(request)
                return verdict
        except TimeoutError:
            missing = sum(task.cancelled() or not task.done() for task in tasks)
            raise _timed_out(missing, len(tasks)) from None
        finally:
            for task in tasks:
                task.cancel()

    def _unasked(self, *, restored: bool) -> list[RouterLostError]:
        """The failures of routers that are attached and can't be asked; one that leaves takes its Triton with it."""
        return [
            RouterLostError(f"router '{router.key.id}' {'is silent' if router.silent else 'has no model server now'}")
            for router in self._registry.routers.values()
            if router.attached and not router.live and router.heartbeat.state != ROUTER_STATE_LEAVING
            if router.silent or not restored
        ]

    async def _ask(self, router: Router, method: str, request: bytes, expire: int) -> Outcome | RouterLostError:
        try:
            return await self._hub.administer(router.key, method, request, expire)
        except RouterLostError:
            return RouterLostError(f"router '{router.key.id}' is gone")

    async def _load(self, request: bytes) -> None:
        name = oip.RepositoryModelLoadRequest.FromString(request).model_name
        await self._remember(name, loaded=True)
        await self._registry.wait_for(
            lambda: (model := self._registry.models.get(name)) is not None and bool(model.owners)
        )

    async def _unload(self, request: bytes) -> None:
        name = oip.RepositoryModelUnloadRequest.FromString(request).model_name
        await self._remember(name, loaded=False)
        await self._registry.wait_for(lambda: (model := self._registry.models.get(name)) is None or not model.ready)

    async def _remember(self, model: str, *, loaded: bool) -> None:
        """So that a restarted Triton gets the set that its pool had."""
        change = Announcement(repository_change=RepositoryChange(model=model, loaded=loaded))
        try:
            await self._announcements.announce(repository_key(self._pool, model), change)
        except LogUnavailableError as exc:
            extra = {"event": "repository_change_lost", "model": model, "why": str(exc)}
            _log.warning("what was done to a model is not remembered: %s", exc, extra=extra)


def _parsed(request: bytes, request_class: type[Message]) -> Message:
    """Triton has no better word than INTERNAL for what is no message."""
    try:
        return request_class.FromString(request)
    except DecodeError:
        raise RequestMalformed from None


def _verdict(outcomes: list[Outcome | RouterLostError]) -> bytes | ModelServerStatus:
    """One answer from many: what all say alike, or the telling of who failed."""
    failed = [outcome for outcome in outcomes if not isinstance(outcome, bytes)]
    if not failed:
        return next(outcome for outcome in outcomes if isinstance(outcome, bytes))
    expired = outcomes.count(Failure.EXPIRED)
    if expired:
        raise _timed_out(expired, len(outcomes))
    first = failed[0]
    if len(failed) == len(outcomes):
        if isinstance(first, RouterLostError):
            raise RouterLost
        if isinstance(first, Failure):
            raise TritonLost if first is Failure.TRITON_LOST else Internal(call_id=secrets.token_hex(16))
        return first
    if isinstance(first, RouterLostError):
        text = str(first)
    else:
        text = first.name if isinstance(first, Failure) else first.message
    raise AdminPartialFailure(failed=str(len(failed)), asked=str(len(outcomes)), first_failure=text)


def _timed_out(missing: int, asked: int) -> AdminTimeout:
    if missing:
        return AdminTimeout(missing=str(missing), asked=str(asked))
    return AdminTimeout(
        "Every model server did as asked, and no router has told of it in time. Look, then call again.",
        missing="0",
        asked=str(asked),
    )

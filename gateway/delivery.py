"""How a call gets to a model server: it is published, and published again elsewhere when that attempt is lost.

An attempt is lost when a router that may have it died or fell silent, when the router left and nobody took the call
over, or when the model server died under it; never by what the model server said. While its caller waits, a lost call
goes to another owner within its deadline and its budget of attempts; where none is known, it waits here for one.

The first answer of any attempt counts. An attempt that is given up is cancelled at every router until the deadline, so
that no copy of it runs later for nobody. A call of a sequence is not moved: its state died with the model server.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum

from gateway.calls import Call, WaitingCalls
from gateway.errors import ModelNotReady, NoLiveRouter, Refusal, RouterLost, SequenceLost, TritonLost
from gateway.placement import any_partition, least_loaded, partition
from gateway.registry import Model, Registry
from gateway.routing_fields import in_sequence
from headrace.bus.protocols import AnswerHub, Failure, LogError, Outcome, RequestPublisher, RouterKey, TopicPartition
from headrace.bus.topics import request_topic
from headrace.bus.v1.envelope_pb2 import Envelope

TAKE_OVER_SECONDS = 2.0
"""How long a call that a router left behind may be without an owner: longer than its group takes to give it one."""

_log = logging.getLogger(__name__)


class Loss(Enum):
    """Why an attempt is lost."""

    ROUTER_LOST = "router_lost"
    """Its router died, fell silent, or lost its stream."""
    ROUTER_LEFT = "router_left"
    """Its router left before it was run."""
    TRITON_LOST = "triton_lost"
    """The model server died, or does not answer."""


_LOST = {Failure.TRITON_LOST: Loss.TRITON_LOST, Failure.ROUTER_LEFT: Loss.ROUTER_LEFT}
"""What a router says of an attempt that is lost."""
_REFUSALS: dict[Loss, type[Refusal]] = {
    Loss.ROUTER_LOST: RouterLost,
    Loss.ROUTER_LEFT: RouterLost,
    Loss.TRITON_LOST: TritonLost,
}
"""What the caller is told when no attempt follows."""


@dataclass(frozen=True, kw_only=True)
class DeliveryTerms:
    """What holds for every call of this gateway."""

    pool: str
    pool_may_sleep: bool
    attempts: int
    """How often a call is published at most."""
    owner_wait_seconds: float
    """How long a lost call waits for a router to go to."""


class Delivery:
    """Publishes calls and follows each until it has its answer, or what stands for one; see HubEvents."""

    def __init__(
        self,
        *,
        terms: DeliveryTerms,
        registry: Registry,
        calls: WaitingCalls,
        publisher: RequestPublisher,
        hub: AnswerHub,
        clock: Callable[[], float],
        turn: int = 0,
    ) -> None:
        """`turn` is where taking turns begins, so that gateways which start together do not choose alike."""
        self._terms = terms
        self._registry = registry
        self._calls = calls
        self._publisher = publisher
        self._hub = hub
        self._clock = clock
        self._turn = turn
        self._topics: dict[str, str] = {}
        self._untaken: dict[Call, float] = {}  # those that a router left behind, and until when they are kept
        self._homeless: dict[Call, tuple[float, Loss]] = {}  # lost, published nowhere; until when, and what they end by
        self.republished: Counter[str] = Counter(dict.fromkeys(Loss.__members__, 0))
        """Calls that were published again, by why the attempt before was lost."""

    # Where a call goes.

    def topic(self, model: str) -> str:
        """The topic of a model's calls. Raises UnnameableModelError."""
        topic = self._topics.get(model)
        if topic is None:
            topic = self._topics[model] = request_topic(self._terms.pool, "interactive", model)
        return topic

    def place(self, model: Model, avoid: tuple[RouterKey, ...] = ()) -> tuple[TopicPartition, RouterKey | None]:
        """Where a call goes and who takes it there: others than those to `avoid`, where there are others.

        Raises a refusal where nobody takes it.
        """
        self._turn += 1
        if model.owners:
            owners = model.owners
            if avoid:
                owners = tuple(owner for owner in owners if owner.router not in avoid) or owners
            owner = least_loaded(owners, self._calls.outstanding, self._turn)
            return TopicPartition(self.topic(model.name), partition(owner, self._turn)), owner.router
        if model.live and not model.ready:
            raise ModelNotReady(model=model.name)
        if not (model.ready or self._terms.pool_may_sleep) or not model.partition_count:
            raise NoLiveRouter(model=model.name)
        # It waits in the log: for the group to settle, or for the pool to wake.
        return TopicPartition(self.topic(model.name), any_partition(model, self._turn)), None

    def publish(self, call: Call) -> None:
        """Send the call's attempt on its way. Raises a LogError where it can't be sent."""
        envelope, attempt, trace = call.envelope, call.attempt, call.trace
        if attempt > 1:
            envelope += Envelope(attempt=attempt).SerializeToString()
        if trace is not None:
            envelope += trace.publishing(call.place, attempt)
        self._publisher.publish(call.place, call.call_id, envelope, call.request, attempt=attempt)
        if trace is not None:
            trace.published()

    def abandon(self, call: Call) -> bool:
        """Nobody waits for what was published of a call: it is not to be sent (True), or routers are not to run it."""
        withdrawn = self._publisher.withdraw(call.call_id)
        if not withdrawn:
            self._hub.cancel(call.call_id, call.attempt, call.expire_time_unix_micros)
        return withdrawn

    # What becomes of it.

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        """An answer came: the first one of any attempt counts, and of what failed only the newest attempt's word."""
        call = self._calls.waiting(call_id)
        if call is None:
            self._calls.strays += 1
        elif not isinstance(outcome, Failure):
            if attempt < call.attempt and call not in self._homeless:
                self.abandon(call)  # its newest attempt; those before it are cancelled already
            call.answer.set_result(outcome)
        elif attempt < call.attempt:
            self._calls.strays += 1
        elif (loss := _LOST.get(outcome)) is not None:
            self._lose(call, loss)
        else:
            call.answer.set_result(outcome)

    def publish_failed(self, call_id: bytes, attempt: int, error: LogError) -> None:
        """The broker did not take a record after all; of an attempt that was given up, that changes nothing."""
        call = self._calls.waiting(call_id)
        if call is not None and attempt == call.attempt:
            self._calls.refuse(call, self._calls.not_taken(error))

    def router_lost(self, router: RouterKey) -> None:
        """A router died: every call that it may have had is lost."""
        self._lose_all([call for call in self._calls if router in call.routers], Loss.ROUTER_LOST)

    def router_left(self, router: RouterKey) -> None:
        """A router left in order, so it answered what it began; what it had not begun is read by the next owner.

        What nobody takes over is lost, as `advance` finds.
        """
        now = self._clock()
        for call in self._calls:
            if router in call.routers:
                call.routers = tuple(other for other in call.routers if other != router)
                if not call.routers:
                    self._untaken[call] = now + TAKE_OVER_SECONDS
        self._find_the_untaken(now)
        self._move_the_stranded()

    def models_changed(self, models: Collection[str]) -> None:
        """The registry sees models otherwise: calls may be with new owners as well, and lost ones have where to go."""
        for call in [call for call in self._homeless if call.model in models]:
            self._settle(call)
        self._calls.owners_changed(models, self._owner_of)
        self._move_the_stranded()

    def advance(self, now: float) -> None:
        """Let time pass: calls that a router left behind are lost where nobody took them over in time.

        At once where no other router has their model ready. What is lost and has nowhere to go ends when its time is
        over.
        """
        self._find_the_untaken(now)
        for call, (until, loss) in list(self._homeless.items()):
            if call.answer.done() or now >= until:
                del self._homeless[call]
                self._calls.refuse(call, _REFUSALS[loss]())

    def _find_the_untaken(self, now: float) -> None:
        lost = []
        for call, until in list(self._untaken.items()):
            waits = not call.routers and not call.answer.done()
            if waits and now < until and self._is_served(call.model):
                continue
            del self._untaken[call]
            if waits:
                lost.append(call)
        self._lose_all(lost, Loss.ROUTER_LEFT)

    def _move_the_stranded(self) -> None:
        """What waits at routers whose model servers are away goes to others, where there are any.

        Where there are none it stays, and is run when the model server is back.
        """
        away = {router.key for router in self._registry.routers.values() if router.server_away}
        if not away:
            return
        stranded = [
            call
            for call in self._calls
            if call.routers
            and away.issuperset(call.routers)
            and call.attempt < self._terms.attempts
            and (model := self._registry.models.get(call.model)) is not None
            and model.owners
        ]
        self._lose_all(stranded, Loss.TRITON_LOST)

    def _lose_all(self, calls: list[Call], loss: Loss) -> None:
        if not calls:
            return
        extra = {"event": "calls_lost", "calls": len(calls), "reason": loss.name}
        _log.info("%d calls were lost before they were answered: %s", len(calls), loss.name, extra=extra)
        for call in calls:
            self._lose(call, loss)

    def _lose(self, call: Call, loss: Loss) -> None:
        """The attempt that is under way is lost: another one, or the end."""
        if call.answer.done():
            return
        self.abandon(call)
        if in_sequence(call.request):
            self._calls.refuse(call, SequenceLost())
        elif call.attempt >= self._terms.attempts:
            self._calls.refuse(call, _REFUSALS[loss]())
        else:
            call.attempt += 1
            call.lost_by += call.routers
            self._untaken.pop(call, None)
            self._calls.assign(call, call.place, None)
            self._homeless[call] = self._clock() + self._terms.owner_wait_seconds, loss
            self._settle(call)

    def _settle(self, call: Call) -> None:
        """Publish a lost call again, where it has where to go."""
        model = self._registry.models.get(call.model)
        if model is None or call.answer.done():
            return
        try:
            place, router = self.place(model, call.lost_by)
        except Refusal:
            return  # until the model changes again
        _, loss = self._homeless.pop(call)
        self._calls.assign(call, place, router)
        self.republished[loss.name] += 1
        try:
            self.publish(call)
        except LogError as error:
            self._calls.refuse(call, self._calls.not_taken(error))

    def _owner_of(self, model: str, number: int) -> RouterKey | None:
        known = self._registry.models.get(model)
        owners = known.owners if known is not None else ()
        return next((owner.router for owner in owners if number in owner.partitions), None)

    def _is_served(self, model: str) -> bool:
        known = self._registry.models.get(model)
        return known is not None and known.ready

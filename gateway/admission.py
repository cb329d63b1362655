"""Whether a call may come in: what its caller is granted, and what is left of the limits. Nothing here waits.

A policy is compiled, model by model and caller by caller, into gates: the counters that a call passes. Counters outlive
a change of the policy where their limits did not change, so that an edit hands nobody a fresh allowance.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from gateway.audit import Audit
from gateway.errors import (
    BytesLimited,
    ConcurrencyLimited,
    Limited,
    MethodForbidden,
    ModelUnknown,
    RateLimited,
    Refusal,
    RequestTooLarge,
    TenantUnknown,
)
from gateway.identity import Caller
from gateway.limits import Concurrency, Rate
from gateway.policy.model import MethodClass, Policy, Tenant, granted_by_roles

_MAX_GATES = 200_000
"""Callers times models that are kept compiled; beyond it all are forgotten, and compiled anew as they come."""

MakeRate = Callable[[str, float, float], Rate]
"""Makes a counter of a name, with so many a second and so many at once."""
MakeSlots = Callable[[str, int], Concurrency]
"""Makes a counter of a name, with so many at a time."""


@dataclass(frozen=True, slots=True)
class _Rated:
    scope: str
    limit: float
    burst: float
    rate: Rate


@dataclass(frozen=True, slots=True)
class _Slotted:
    scope: str
    limit: int
    slots: Concurrency


@dataclass(frozen=True, slots=True, eq=False)
class Gate:
    """The counters that a caller's calls of one model pass."""

    calls: tuple[_Rated, ...]
    bytes: tuple[_Rated, ...]
    slots: tuple[_Slotted, ...]
    request_bytes: int | None

    def left(self, now: float) -> tuple[int, int, int]:
        """Of the tightest rate, where there is one: its burst, what is left of it, and seconds until all of it is."""
        left, rated = min(((each.rate.left(now), each) for each in self.calls), key=lambda pair: pair[0])
        return math.floor(rated.burst), max(0, math.floor(left)), math.ceil(rated.rate.reset_after(now))


class Admission:
    """Judges calls by the policy in force."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float],
        audit: Audit,
        make_rate: MakeRate,
        make_slots: MakeSlots,
        make_own_rate: MakeRate | None = None,
        make_own_slots: MakeSlots | None = None,
    ) -> None:
        """`make_…` makes counters that all gateways share, where they share any; `make_own_…` this gateway's own."""
        self._clock = clock
        self._audit = audit
        self._make_rate = make_rate
        self._make_slots = make_slots
        self._make_own_rate = make_own_rate or make_rate
        self._make_own_slots = make_own_slots or make_slots
        self._rates: dict[tuple[str, float, float], Rate] = {}
        self._slots: dict[tuple[str, int], Concurrency] = {}
        self._gates: dict[tuple[Caller, str], Gate] = {}
        self._policy = policy
        self.refused: Counter[tuple[str, str]] = Counter()
        """Refusals, by tenant and reason; of tenants that exist or whose keys do."""

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    def change(self, policy: Policy) -> None:
        """Put another policy in force, for every call from now on. Calls under way go on."""
        self._policy = policy
        self._gates.clear()

    # What is granted.

    def require(self, caller: Caller, wanted: MethodClass, *, method: str) -> Tenant:
        """What the caller's tenant is granted. Raises TenantUnknown, or MethodForbidden."""
        tenant = self._policy.tenant(caller.tenant)
        if tenant is None:
            raise self._refused(TenantUnknown(tenant=caller.tenant), caller, method)
        if wanted not in tenant.allow or wanted not in granted_by_roles(caller):
            raise self._refused(MethodForbidden(method=method), caller, method)
        return tenant

    def sees(self, caller: Caller, model: str) -> bool:
        """Whether a model exists for this caller."""
        tenant = self._policy.tenant(caller.tenant)
        return tenant is not None and tenant.sees(model)

    # What is left.

    def enter(self, caller: Caller, model: str, size: int, *, method: str, call_id: bytes = b"") -> Gate:
        """Count a call of a model that exists. `leave` follows when it has ended, whatever became of it.

        Raises TenantUnknown, MethodForbidden, ModelUnknown where the caller is not to know of the model,
        RequestTooLarge, ConcurrencyLimited, RateLimited or BytesLimited; nothing is counted then.
        """
        gate = self._gates.get((caller, model))
        if gate is None:
            gate = self._compiled(caller, model, method)
        if gate.request_bytes is not None and size > gate.request_bytes:
            raise self._refused(RequestTooLarge(limit_bytes=str(gate.request_bytes)), caller, method, call_id.hex())
        if gate.slots or gate.calls or gate.bytes:
            refusal = self._counted(gate, size)
            if refusal is not None:
                raise self._refused(refusal, caller, method, call_id.hex())
        return gate

    def left(self, gate: Gate) -> tuple[int, int, int]:
        """What is left of a gate's tightest rate; see Gate.left."""
        return gate.left(self._clock())

    def leave(self, gate: Gate) -> None:
        """A call has ended."""
        for each in gate.slots:
            each.slots.release()

    def _counted(self, gate: Gate, size: int) -> Limited | None:
        """Count a call, or say which limit is used up; nothing is counted then."""
        now = self._clock()
        for number, slotted in enumerate(gate.slots):
            if not slotted.slots.take():
                self._give_back(gate.slots[:number], ())
                return ConcurrencyLimited(scope=slotted.scope, limit=str(slotted.limit))
        taken: list[tuple[_Rated, float]] = []
        for rates, amount, limited in ((gate.calls, 1.0, RateLimited), (gate.bytes, float(size), BytesLimited)):
            for rated in rates:
                seconds = rated.rate.take(now, amount)
                if seconds:
                    self._give_back(gate.slots, taken)
                    left = gate.left(now) if gate.calls else None
                    limit = f"{rated.limit:g}"
                    return limited(retry_after_seconds=seconds, left=left, scope=rated.scope, limit=limit)
                taken.append((rated, amount))
        return None

    def _refused(self, refusal: Refusal, caller: Caller, method: str, call_id: str = "") -> Refusal:
        self.refused[caller.tenant, refusal.reason] += 1
        self._audit.refused(caller, refusal, method=method, call_id=call_id)
        return refusal

    @staticmethod
    def _give_back(slots: Iterable[_Slotted], taken: Iterable[tuple[_Rated, float]]) -> None:
        for each in slots:
            each.slots.release()
        for rated, amount in taken:
            rated.rate.give_back(amount)

    # How a policy becomes counters.

    def _compiled(self, caller: Caller, model: str, method: str) -> Gate:
        tenant = self.require(caller, MethodClass.INFER, method=method)
        if not tenant.sees(model):
            raise self._refused(ModelUnknown(model=model), caller, method)
        name = tenant.name if tenant.name != "*" else caller.tenant
        scoped = [
            (f"tenant {name}", f"tenant:{name}", tenant.limits, False),
            (f"key {caller.key_id}", f"key:{name}:{caller.key_id}", tenant.each_key, False),
            *(
                (f"tenant {name} at {each.pattern}", f"tenant:{name}:{each.pattern}", each.limits, False)
                for each in tenant.by_model
                if fnmatchcase(model, each.pattern)
            ),
            *(
                (f"model {model}", f"model:{model}:{each.pattern}", each.limits, False)
                for each in self._policy.models
                if fnmatchcase(model, each.pattern)
            ),
            ("this gateway", "gateway", self._policy.gateway, True),
        ]
        sizes = [limits.request_bytes for _, _, limits, _ in scoped if limits.request_bytes is not None]
        gate = Gate(
            calls=tuple(
                _Rated(scope, per_second, burst, self._rate(f"calls:{key}", per_second, burst, own))
                for scope, key, limits, own in scoped
                if (per_second := limits.calls_per_second) is not None
                for burst in (limits.burst or max(1.0, per_second),)
            ),
            bytes=tuple(
                _Rated(scope, per_second, per_second, self._rate(f"bytes:{key}", per_second, per_second, own))
                for scope, key, limits, own in scoped
                if (per_second := limits.bytes_per_second) is not None
            ),
            slots=tuple(
                _Slotted(scope, most, self._slot(key, most, own))
                for scope, key, limits, own in scoped
                if (most := limits.concurrency) is not None
            ),
            request_bytes=min(sizes, default=None),
        )
        if len(self._gates) >= _MAX_GATES:
            self._gates.clear()
        self._gates[caller, model] = gate
        return gate

    def _rate(self, name: str, per_second: float, burst: float, own: bool) -> Rate:
        made = self._rates.get((name, per_second, burst))
        if made is None:
            made = (self._make_own_rate if own else self._make_rate)(name, per_second, burst)
            self._rates[name, per_second, burst] = made
        return made

    def _slot(self, name: str, most: int, own: bool) -> Concurrency:
        made = self._slots.get((name, most))
        if made is None:
            made = self._slots[name, most] = (self._make_own_slots if own else self._make_slots)(name, most)
        return made

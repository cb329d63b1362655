"""Whether a call may come in: what its caller is granted, and what is left of the limits.

Nothing here waits, but for a call that lacks only what other gateways may have to give: see `Admission.enter`.

A policy is compiled, model by model and caller by caller, into gates: the counters that a call passes. Counters are
known by name and outlive a change of the policy, so that an edit hands nobody a fresh allowance.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase

from gateway.audit import Audit
from gateway.errors import (
    BytesLimited,
    ConcurrencyLimited,
    Limited,
    MethodForbidden,
    QuotaExhausted,
    QuotasUnavailable,
    RateLimited,
    Refusal,
    RequestTooLarge,
    TenantUnknown,
)
from gateway.identity import Caller
from gateway.limits import Concurrency, Counters, Rate
from gateway.policy.model import NO_QUOTAS, Limits, MethodClass, Policy, Quotas, Tenant, granted_by_roles, plain
from gateway.quotas import Account, Accounts, Meter

_MAX_GATES = 100_000
"""Callers times models that are kept compiled; beyond it all are forgotten, and compiled anew as they come."""
_NO_MODEL = ""
_SHARED = (BytesLimited, ConcurrencyLimited, RateLimited)
_MOST_WAITING, _MOST_WAITING_BYTES = 1000, 64 << 20
_LONGEST_WAIT_SECONDS = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class _Rated:
    scope: str
    limit: float
    burst: float
    rate: Rate
    own: bool
    """Whether it counts this tenant's calls alone."""
    take: Callable[[float, float], float]
    """Of the rate: looked up once, not with every call."""


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
    account: Account | None
    """Of the tenant, where it has quotas."""
    own: tuple[_Rated, ...]
    """Those of `calls` that count this tenant's calls alone."""
    request_scope: str = ""
    """Whose limit `request_bytes` is."""

    def left(self, now: float) -> tuple[int, int, int] | None:
        """Of the tenant's own tightest rate: its burst, what is left of it, and seconds until all of it is."""
        if not self.own:
            return None
        rated, left = self.own[0], math.inf
        for each in self.own:
            there = each.rate.left(now)
            if there < left:
                rated, left = each, there
        reset = min(rated.rate.reset_after(now), _LONGEST_WAIT_SECONDS)
        return math.floor(rated.burst), max(0, math.floor(left)), math.ceil(reset)


class Admission:
    """Judges calls by the policy in force."""

    def __init__(
        self,
        policy: Policy,
        *,
        clock: Callable[[], float],
        audit: Audit,
        shared: Counters,
        own: Counters,
        accounts: Accounts,
    ) -> None:
        """`shared` counts for all gateways together, where they share anything; `own` for this one."""
        self._accounts = accounts
        self._clock = clock
        self._audit = audit
        self._shared = shared
        self._own = own
        self._waiting = self._waiting_bytes = 0
        self._gates: dict[tuple[Caller, str], Gate] = {}
        self._policy = policy
        accounts.change(_quotas(policy))
        self._changed: list[Callable[[], None]] = []
        self.asked: Callable[[Caller], None] = lambda _: None
        """Told of each call that runs no model and came in."""
        self.refused: Counter[str] = Counter()
        """Refusals by their reason."""

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._policy

    def change(self, policy: Policy) -> None:
        """Put another policy in force, for every call from now on. Calls under way go on."""
        self._policy = policy
        self._gates.clear()
        self._accounts.change(_quotas(policy))
        for changed in self._changed:
            changed()

    def forget(self) -> None:
        """Compile every gate anew as calls come: counters were forgotten."""
        self._gates.clear()

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Be told of every other policy, when it is in force."""
        self._changed.append(changed)

    # What is granted.

    def require(self, caller: Caller, wanted: MethodClass, *, method: str) -> Tenant:
        """What the caller's tenant is granted. Raises TenantUnknown, or MethodForbidden."""
        tenant = self._policy.tenant(caller.tenant)
        if tenant is None:
            raise self._refused(TenantUnknown(tenant=caller.tenant), caller, method)
        if wanted not in tenant.allow or wanted not in granted_by_roles(caller):
            raise self._refused(MethodForbidden(method=method), caller, method)
        return tenant

    def forbidden(self, caller: Caller, *, method: str) -> Refusal:
        """Refuse a method for a reason that lies in the request."""
        return self._refused(MethodForbidden(method=method), caller, method)

    def sees(self, caller: Caller, model: str) -> bool:
        """Whether a model exists for this caller."""
        tenant = self._policy.tenant(caller.tenant)
        return tenant is not None and tenant.sees(model)

    # What is left.

    def gate(self, caller: Caller, model: str, *, method: str) -> Gate | None:
        """What a caller's calls of a model have to pass; None where the caller is not to know of the model.

        Ask for models that exist only: what is compiled is kept. Raises TenantUnknown or MethodForbidden.
        """
        gate = self._gates.get((caller, model))
        return self._compiled(caller, model, method) if gate is None else gate

    def unseen(self, caller: Caller, refusal: Refusal, *, method: str, call_id: bytes) -> Refusal:
        """Refuse a call of a model that does not exist, or not for this caller: the same way, in every respect.

        Raises TenantUnknown or MethodForbidden, as for any other model.
        """
        self.require(caller, MethodClass.INFER, method=method)
        return self._refused(refusal, caller, method, call_id.hex())

    async def enter(self, gate: Gate, caller: Caller, model: str, size: int, *, method: str, call_id: bytes) -> None:
        """Count a call. `leave` follows when it has ended, whatever became of it.

        Waits only for what gateways share, where it should be there and is not leased to this one yet: for the answer
        to the next request to the store, with a deadline, and for a bounded number of calls at a time.

        Raises RequestTooLarge, QuotasUnavailable, QuotaExhausted, ConcurrencyLimited, RateLimited or BytesLimited, and
        nothing is counted.
        """
        refusal = self._entered(gate, size)
        if isinstance(refusal, _SHARED) and self._shared is not self._own and self._want(gate, size):
            self._waiting += 1
            self._waiting_bytes += size
            try:
                await self._shared.settled()
            finally:
                self._waiting -= 1
                self._waiting_bytes -= size
            refusal = self._entered(gate, size)
        if refusal is not None:
            raise self._refused(refusal, caller, method, call_id.hex(), model)

    def _entered(self, gate: Gate, size: int) -> Refusal | None:
        if gate.request_bytes is not None and size > gate.request_bytes:
            most, scope = str(gate.request_bytes), gate.request_scope
            text = f"The request has more than the {most} bytes that the limit of {scope} takes. Send smaller batches."
            return RequestTooLarge(text, limit_bytes=most, scope=scope)
        account = gate.account
        if account is not None:
            if not self._accounts.known:
                return QuotasUnavailable()
            exhausted = account.exhausted()
            if exhausted is not None:
                return self._exhausted(account, exhausted)
        if gate.slots or gate.calls or gate.bytes:
            refusal = self._counted(gate, size)
            if refusal is not None:
                return refusal
        if account is not None:
            account.begin()
        return None

    def _want(self, gate: Gate, size: int) -> bool:
        """Ask every counter of a gate for what a call needs. False, and nothing is asked, where that is of no use."""
        if self._waiting >= _MOST_WAITING or self._waiting_bytes + size > _MOST_WAITING_BYTES:
            return False
        now = self._clock()
        rates = [*((each.rate, 1.0) for each in gate.calls), *((each.rate, float(size)) for each in gate.bytes)]
        if not all(rate.soon(now, amount) for rate, amount in rates) or not all(
            each.slots.soon() for each in gate.slots
        ):
            return False
        for rate, amount in rates:
            rate.want(amount)
        for each in gate.slots:
            each.slots.want()
        return True

    def quotas_told(self, account: Account) -> str:
        """What is left of a tenant's quotas; see Account.told."""
        return self._accounts.told(account)

    def asking(self, caller: Caller, tenant: Tenant) -> Gate:
        """What calls have to pass that run no model: calls a second and at a time, of their tenant and of their key."""
        gate = self._gates.get((caller, _NO_MODEL))
        if gate is None:
            scopes = list(self._own_scopes(tenant, caller))
            gate = self._keep(caller, _NO_MODEL, _gate(scopes, (), None))
        return gate

    @contextmanager
    def counted(self, gate: Gate, caller: Caller, *, method: str, model: str = "") -> Iterator[None]:
        """Count a call that runs no model, for as long as it takes. Raises ConcurrencyLimited or RateLimited."""
        refusal = self._counted(gate, 0)
        if refusal is not None:
            raise self._refused(refusal, caller, method, model=model)
        self.asked(caller)
        try:
            yield
        finally:
            for each in gate.slots:
                each.slots.release()

    def left(self, gate: Gate) -> tuple[int, int, int] | None:
        """What is left of a tenant's tightest rate; see Gate.left."""
        return gate.left(self._clock())

    def leave(self, gate: Gate, *, answered_bytes: int | None) -> None:
        """A call has ended; `answered_bytes` are those of request and answer, None where there is no answer."""
        for each in gate.slots:
            each.slots.release()
        if gate.account is not None:
            if answered_bytes is None:
                gate.account.unanswered()
            else:
                gate.account.answered(answered_bytes)

    def _exhausted(self, account: Account, meter: Meter) -> QuotaExhausted:
        now = self._accounts.now()
        left = meter.left(now)
        what, _, period = left.name.partition("_per_")
        begins = (now + timedelta(seconds=left.reset_seconds)).isoformat(timespec="seconds")
        return QuotaExhausted(
            retry_after_seconds=left.reset_seconds,
            scope=f"tenant {account.tenant}",
            limit=plain(left.limit),
            what=f"{what.replace('_', ' ')} a {period}",
            until=begins.replace("+00:00", "Z"),
        )

    def _counted(self, gate: Gate, size: int) -> Limited | None:
        """Count a call, or say which limit is used up; nothing is counted then."""
        now = self._clock()
        for number, slotted in enumerate(gate.slots):
            if not slotted.slots.take():
                self._give_back(gate.slots[:number], ())
                return ConcurrencyLimited(scope=slotted.scope, limit=str(slotted.limit))
        for rated in gate.calls:
            seconds = rated.take(now, 1.0)
            if seconds:
                return self._limited(gate, RateLimited, rated, size, seconds)
        for rated in gate.bytes:
            seconds = rated.take(now, float(size))
            if seconds:
                return self._limited(gate, BytesLimited, rated, size, seconds)
        return None

    def _limited(self, gate: Gate, limited: type[Limited], rated: _Rated, size: int, seconds: float) -> Limited:
        """Give back what was taken before this rate was found to be used up."""
        taken: list[tuple[_Rated, float]] = [(each, 1.0) for each in gate.calls]
        taken += [(each, float(size)) for each in gate.bytes]
        self._give_back(gate.slots, itertools.takewhile(lambda pair: pair[0] is not rated, taken))
        return limited(
            retry_after_seconds=min(seconds, _LONGEST_WAIT_SECONDS),
            left=gate.left(self._clock()),
            scope=rated.scope,
            limit=plain(rated.limit),
        )

    def _refused(self, refusal: Refusal, caller: Caller, method: str, call_id: str = "", model: str = "") -> Refusal:
        self.refused[refusal.reason] += 1
        self._audit.refused(caller, refusal, method=method, model=model, call_id=call_id)
        return refusal

    @staticmethod
    def _give_back(slots: Iterable[_Slotted], taken: Iterable[tuple[_Rated, float]]) -> None:
        for each in slots:
            each.slots.release()
        for rated, amount in taken:
            rated.rate.give_back(amount)

    # How a policy becomes counters.

    def _compiled(self, caller: Caller, model: str, method: str) -> Gate | None:
        tenant = self.require(caller, MethodClass.INFER, method=method)
        if not tenant.sees(model):
            return None
        scopes = list(self._scopes(tenant, caller, model))
        sizes = [(most, each.text) for each in scopes if (most := each.limits.request_bytes) is not None]
        weighed = tuple(
            scope.rated("bytes", per_second, per_second)
            for scope in scopes
            if (per_second := scope.limits.bytes_per_second) is not None
        )
        account = self._accounts.account(caller.tenant)
        return self._keep(caller, model, _gate(scopes, weighed, account, smallest=min(sizes, default=None)))

    def _keep(self, caller: Caller, model: str, gate: Gate) -> Gate:
        if len(self._gates) >= _MAX_GATES:
            self._gates.clear()
        self._gates[caller, model] = gate
        return gate

    def _own_scopes(self, tenant: Tenant, caller: Caller) -> Iterator["_Scope"]:
        """Whose limits hold for every call of a caller."""
        name = caller.tenant
        yield _Scope(f"tenant {name}", f"tenant:{name}", tenant.limits, self._shared)
        yield _Scope(f"key {caller.key_id}", f"key:{name}:{caller.key_id}", tenant.each_key, self._shared)

    def _scopes(self, tenant: Tenant, caller: Caller, model: str) -> Iterator["_Scope"]:
        """Whose limits hold for a call of a model."""
        name = caller.tenant
        yield from self._own_scopes(tenant, caller)
        for each in tenant.by_model:
            if fnmatchcase(model, each.pattern):
                text = f"tenant {name} at {each.pattern}"
                yield _Scope(text, f"tenant:{name}:{each.pattern}", each.limits, self._shared)
        for each in self._policy.models:
            if fnmatchcase(model, each.pattern):
                name = f"model:{model}:{each.pattern}"
                yield _Scope(f"model {model}", name, each.limits, self._shared, own=False)
        yield _Scope("this gateway", "gateway", self._policy.gateway, self._own, own=False)


def _quotas(policy: Policy) -> dict[str, Quotas]:
    return {name: tenant.quotas for name, tenant in policy.tenants.items() if tenant.quotas != NO_QUOTAS}


@dataclass(frozen=True, slots=True)
class _Scope:
    """Something that limits hold for."""

    text: str
    name: str
    limits: Limits
    counters: Counters
    own: bool = True

    def rated(self, what: str, per_second: float, burst: float) -> _Rated:
        rate = self.counters.rate(f"{what}:{self.name}", per_second, burst)
        return _Rated(self.text, per_second, burst, rate, self.own, rate.take)


def _gate(
    scopes: Collection[_Scope],
    weighed: tuple[_Rated, ...],
    account: Account | None,
    smallest: tuple[int, str] | None = None,
) -> Gate:
    calls = _call_rates(scopes)
    return Gate(
        calls=calls,
        bytes=weighed,
        slots=_slots(scopes),
        request_bytes=None if smallest is None else smallest[0],
        request_scope="" if smallest is None else smallest[1],
        account=account,
        own=tuple(rated for rated in calls if rated.own),
    )


def _call_rates(scopes: Iterable[_Scope]) -> tuple[_Rated, ...]:
    return tuple(
        scope.rated("calls", per_second, scope.limits.burst or max(1.0, per_second))
        for scope in scopes
        if (per_second := scope.limits.calls_per_second) is not None
    )


def _slots(scopes: Iterable[_Scope]) -> tuple[_Slotted, ...]:
    return tuple(
        _Slotted(scope.text, most, scope.counters.slots(scope.name, most))
        for scope in scopes
        if (most := scope.limits.concurrency) is not None
    )

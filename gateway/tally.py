"""What is counted of every call, in plain additions: by reason, by model and by tenant.

`gateway.metrics` says how operators see it.
"""

import time
from collections import Counter
from collections.abc import Callable

from gateway.admission import Gate
from gateway.errors import (
    AnswerTooLarge,
    DeadlineExceeded,
    Internal,
    LogUnavailable,
    RouterLost,
    SequenceLost,
    ShuttingDown,
    TritonLost,
    leaves,
)
from headrace.runtime.telemetry import OTHER, Bounded, Histogram

OK, TRITON, CANCELLED = "OK", "TRITON", "CANCELLED"
"""How a call ends that is not refused: answered, with Triton's own error passed on, or left by its caller."""
REFUSED = "refused"
_OUTCOMES = {
    OK: "ok",
    TRITON: "triton_error",
    RouterLost.reason: "lost",
    TritonLost.reason: "lost",
    SequenceLost.reason: "lost",
    LogUnavailable.reason: "lost",
    ShuttingDown.reason: "lost",
    DeadlineExceeded.reason: "expired",
    CANCELLED: "cancelled",
    AnswerTooLarge.reason: "failed",
    Internal.reason: "failed",
}
"""What a reason is for a model and a tenant; all others are REFUSED."""
OUTCOMES = (*dict.fromkeys(_OUTCOMES.values()), REFUSED)
_PLACES = {reason: OUTCOMES.index(outcome) for reason, outcome in _OUTCOMES.items()}
_REFUSED = OUTCOMES.index(REFUSED)
_TIMED = tuple(outcome not in {REFUSED, _OUTCOMES[CANCELLED]} for outcome in OUTCOMES)


class Entry:
    """One call while it is under way. What is not known of it yet is unset."""

    __slots__ = ("began", "gate", "model", "received", "sent", "tenant")

    def __init__(self, tenant: str, began: float) -> None:
        self.tenant = tenant
        self.began = began
        self.model = ""
        """Where it exists and the caller may see it."""
        self.gate: Gate | None = None
        self.received = 0
        self.sent = 0


class ModelTally:
    """What is counted of the calls of one model."""

    __slots__ = ("outcomes", "received", "seconds", "sent")

    def __init__(self) -> None:
        self.outcomes = [0] * len(OUTCOMES)
        """Calls by outcome, in the order of OUTCOMES."""
        self.seconds = Histogram()
        self.received = 0
        self.sent = 0


class TenantTally:
    """What is counted of the calls of one tenant, and what its last one of a model had to pass."""

    __slots__ = ("called_at", "gate", "outcomes")

    def __init__(self) -> None:
        self.outcomes = [0] * len(OUTCOMES)
        """Calls by outcome, in the order of OUTCOMES."""
        self.gate: Gate | None = None
        self.called_at = 0.0


class Tally:
    """Counts calls. The clock is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.reasons: Counter[str] = Counter(dict.fromkeys((OK, TRITON, CANCELLED), 0))
        """How calls ended: OK, TRITON, CANCELLED, or the refusal's reason."""
        self.reasons.update({leaf.reason: 0 for leaf in leaves()})
        self.models: Bounded[ModelTally] = Bounded(ModelTally)
        self.tenants: Bounded[TenantTally] = Bounded(TenantTally)

    def begin(self, tenant: str) -> Entry:
        """A call begins; `ended` follows, once."""
        return Entry(tenant, self.clock())

    def ended(self, entry: Entry, reason: str) -> None:
        """A call has ended, for this reason."""
        self.reasons[reason] += 1
        place = _PLACES.get(reason, _REFUSED)
        if entry.model:
            now = self.clock()
            model = self.models[entry.model]
            model.outcomes[place] += 1
            model.received += entry.received
            model.sent += entry.sent
            if _TIMED[place]:
                model.seconds.observe(now - entry.began)
            tenant = self.tenants[entry.tenant]
            tenant.gate = entry.gate
            tenant.called_at = now
        else:
            # A name that no policy has granted anything yet may be any text of a token.
            tenant = self.tenants[entry.tenant if entry.tenant in self.tenants else OTHER]
        tenant.outcomes[place] += 1

    def refused_at_the_door(self, reason: str) -> None:
        """A call was refused before anybody looked at what it is."""
        self.reasons[reason] += 1

    def forget_gates(self) -> None:
        """The policy has changed: what a tenant's calls have to pass is known with its next call."""
        for tenant in self.tenants.values():
            tenant.gate = None

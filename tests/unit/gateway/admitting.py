"""Admission for tests that are about something else, and policies in one line for those that are not."""

from collections.abc import Callable, Coroutine
from typing import Any

from gateway.admission import Admission
from gateway.audit import Audit
from gateway.limits.local import LocalCounters
from gateway.policy.document import read_policy
from gateway.policy.model import EVERYTHING
from gateway.quotas import Accounts


def at_once(work: Coroutine[Any, Any, None]) -> None:
    """Run what is not to wait for anything."""
    try:
        work.send(None)
    except StopIteration:
        return
    work.close()
    raise AssertionError("it waited")


def admitting(
    policy: str | None = None, clock: Callable[[], float] = lambda: 0.0, accounts: Accounts | None = None
) -> Admission:
    """By a policy in YAML; by none everything may come in. Time stands still unless a clock is given."""
    counters = LocalCounters()
    return Admission(
        EVERYTHING if policy is None else read_policy(policy),
        clock=clock,
        audit=Audit(clock),
        shared=counters,
        own=counters,
        accounts=Accounts(None) if accounts is None else accounts,
    )

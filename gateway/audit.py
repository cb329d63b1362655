"""Who was refused what, and who changed what: one structured line each, in the log, never with payloads or credentials.

Lines of the logger `gateway.audit` have the events `call_refused` and `administered`. A caller who is refused over and
over for one reason is one line a second, with how often it was: a flood of refusals is no flood of lines.
"""

import logging
from collections.abc import Callable

from gateway.errors import Refusal
from gateway.identity import Caller

_SECONDS = 1.0
_MOST = 10_000
"""Callers times reasons that are kept apart; beyond it, all begin anew."""
_log = logging.getLogger(__name__)


class Audit:
    """Writes the lines. The clock is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._repeats: dict[tuple[str, str, str], tuple[float, int]] = {}

    def refused(
        self, caller: Caller | None, refusal: Refusal, *, method: str, call_id: str = "", peer: str = ""
    ) -> None:
        """A call was refused, by its identity, by the policy or by a limit. `caller` is None where nobody is known."""
        now = self._clock()
        who = (caller.tenant, caller.key_id) if caller is not None else ("", peer.rpartition(":")[0])
        key = (*who, refusal.reason)
        said_at, repeated = self._repeats.get(key, (now - _SECONDS, 0))
        if now - said_at < _SECONDS:
            self._repeats[key] = (said_at, repeated + 1)
            return
        if len(self._repeats) >= _MOST:
            self._repeats.clear()
        self._repeats[key] = (now, 0)
        facts: dict[str, object] = {
            "tenant": caller.tenant if caller is not None else "",
            "key_id": caller.key_id if caller is not None else "",
            "peer": peer,
            "method": method,
            "model": refusal.metadata.get("model", ""),
            "reason": refusal.reason,
            "call_id": call_id,
        }
        _log.info(
            "a call was refused: %s",
            refusal.reason,
            extra={"event": "call_refused", "repeated": repeated}
            | {name: fact for name, fact in facts.items() if fact},
        )

    def administered(self, caller: Caller, *, method: str, verdict: str) -> None:
        """An administrative act: `OK`, `TRITON` where a model server said no, or the reason of its refusal."""
        _log.info(
            "%s by %s: %s",
            method,
            caller.key_id,
            verdict,
            extra={
                "event": "administered",
                "method": method,
                "tenant": caller.tenant,
                "key_id": caller.key_id,
                "verdict": verdict,
            },
        )

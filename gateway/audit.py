"""Who was refused what, and who changed what: structured lines in the log, never with payloads or credentials.

Lines of the logger `gateway.audit` have the events `call_refused` and `administered`. A caller who is refused the same
method and model for one reason again and again is one line a second, with how often it was; more lines than so many a
second are counted together. So a flood of refusals is no flood of lines, and every refusal is in some line's number.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.errors import Refusal
from gateway.identity import Caller
from gateway.peers import network_of

_SECONDS = 1.0
_MOST_LINES = 100
"""A second, of refusals; the rest of that second is one line."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Said:
    at: float
    facts: dict[str, object] = field(default_factory=dict)
    repeated: int = 0


class Audit:
    """Writes the lines. The clock is monotonic, in seconds; `flush` is to be called a few times a second."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[tuple[str, ...], _Said] = {}
        self._suppressed = 0
        self._full_since = 0.0
        self.strangers: Counter[str] = Counter()
        """Refusals of callers for who they are, by reason."""

    def refused(
        self,
        caller: Caller | None,
        refusal: Refusal,
        *,
        method: str,
        model: str = "",
        call_id: str = "",
        peer: str = "",
    ) -> None:
        """A call was refused, by its identity, by the policy or by a limit. `caller` is None where nobody is known."""
        if caller is None:
            self.strangers[refusal.reason] += 1
        who = (caller.tenant, caller.key_id) if caller is not None else ("", network_of(peer))
        model = model or refusal.metadata.get("model", "")
        key = (*who, method, model, refusal.reason)
        said = self._said.get(key)
        if said is not None:
            said.repeated += 1
            return
        if len(self._said) >= _MOST_LINES:
            self._suppressed += 1
            return
        known = {
            "tenant": who[0],
            "key_id": caller.key_id if caller is not None else "",
            "peer": peer,
            "method": method,
            "model": model,
            "reason": refusal.reason,
            "scope": refusal.metadata.get("scope", ""),
        }
        facts: dict[str, object] = {name: fact for name, fact in known.items() if fact}
        self._said[key] = _Said(self._clock(), facts)
        more = {"call_id": call_id} if call_id else {}
        _log.info("a call was refused: %s", refusal.reason, extra={"event": "call_refused", **facts, **more})

    def flush(self, *, everything: bool = False) -> None:
        """Write down what was repeated for a second or longer, or everything at the end."""
        now = self._clock()
        for key, said in list(self._said.items()):
            if everything or now - said.at >= _SECONDS:
                del self._said[key]
                if said.repeated:
                    extra = {"event": "call_refused", "repeated": said.repeated, **said.facts}
                    _log.info("and %d times more: %s", said.repeated, key[-1], extra=extra)
        if self._suppressed and (everything or now - self._full_since >= _SECONDS):
            extra = {"event": "call_refused", "repeated": self._suppressed, "reason": "VARIOUS"}
            _log.info("and %d others, for more than could be told apart", self._suppressed, extra=extra)
            self._suppressed, self._full_since = 0, now

    def administered(self, caller: Caller, *, method: str, model: str, peer: str, verdict: str) -> None:
        """An administrative act ended: `OK`, `TRITON` where a model server said no, `CANCELLED`, or why it was refused.

        It may have been carried out in part, or go on, unless the verdict is `OK`.
        """
        facts = {"method": method, "model": model, "tenant": caller.tenant, "key_id": caller.key_id, "peer": peer}
        _log.info(
            "%s %s by %s: %s",
            method,
            model,
            caller.key_id,
            verdict,
            extra={"event": "administered", "verdict": verdict, **{name: fact for name, fact in facts.items() if fact}},
        )

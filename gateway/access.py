"""Who may come in, as the settings say it: identity, policy, limits and audit, put together."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, Self

from gateway.admission import Admission
from gateway.audit import Audit
from gateway.identity import DevelopmentKey, KeyFile, Verify, identify_by
from gateway.limits import Counters
from gateway.limits.leases import Leases
from gateway.limits.local import LocalCounters
from gateway.policy.document import load_policy
from gateway.policy.model import EVERYTHING
from gateway.settings import GatewaySection, SharedLimitSettings
from gateway.tokens import Tokens
from headrace.runtime.lifecycle import Background
from headrace.runtime.reload import ReloadedFile
from headrace.runtime.settings import read_secret

Keep = Callable[[], Coroutine[Any, Any, None]]
"""Makes a task that runs for as long as the gateway does."""


_TICK_SECONDS = 0.25


class Access:
    """The parts, kept up from when it is entered; leave it when no call is under way any more."""

    def __init__(self, settings: GatewaySection, *, pool: str, gateways: Callable[[], int]) -> None:
        """`gateways` tells how many there are. Raises SettingsError where a file that is named is not usable."""
        self._kept: dict[str, Keep] = {"clock": self._tick}
        self._listeners: list[Callable[[], None]] = []
        self._background = Background()
        clock = asyncio.get_running_loop().time
        self.audit = Audit(clock)
        self.identify = identify_by(*self._verifiers(settings))
        self._leases = _leases(settings.shared_limits, pool, gateways, clock)
        self._own = LocalCounters()
        shared: Counters = self._own if self._leases is None else self._leases
        self.admission = Admission(EVERYTHING, clock=clock, audit=self.audit, shared=shared, own=self._own)
        if settings.policy_file is not None:
            watched = ReloadedFile(settings.policy_file, what="policy", read=load_policy, use=self.admission.change)
            self._kept["policy-file"] = watched.keep

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as owned:
            if self._leases is not None:
                await owned.enter_async_context(self._leases)
                self._kept["limits"] = self._leases.keep
            owned.callback(self.audit.flush, everything=True)
            await owned.enter_async_context(self._background)
            for name, keep in self._kept.items():
                self._background.spawn(name, keep())
            self._owned = owned.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._owned.aclose()

    async def failed(self) -> None:
        """Raise when a part can't go on; never returns."""
        await self._background.failed()

    async def _tick(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_TICK_SECONDS)  # a clock
            self.audit.flush()
            if self._own.forget(clock()):
                self.admission.forget()

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Be told when who was somebody may be nobody any more, or the other way round."""
        self._listeners.append(changed)

    def _identities_changed(self) -> None:
        for changed in self._listeners:
            changed()

    @property
    def limits_are_shared(self) -> bool:
        """Whether all gateways count together now."""
        return self._leases is not None and not self._leases.away

    def _verifiers(self, settings: GatewaySection) -> list[Verify]:
        identity = settings.identity
        verifiers: list[Verify] = []
        if identity.key_file is not None:
            keys = KeyFile(identity.key_file, changed=self._identities_changed)
            verifiers.append(keys)
            self._kept["key-file"] = keys.keep
        if identity.development_key_file is not None:
            verifiers.append(DevelopmentKey(identity.development_key_file))
        if identity.token_issuer is not None:
            tokens = Tokens(identity.token_issuer, changed=self._identities_changed)
            verifiers.append(tokens)
            self._kept["token-issuer"] = tokens.keep
        return verifiers


def _leases(
    settings: SharedLimitSettings, pool: str, gateways: Callable[[], int], clock: Callable[[], float]
) -> Leases | None:
    if settings.redis_url is None:
        return None
    password = None if settings.password_file is None else read_secret(settings.password_file)
    return Leases(
        settings.redis_url, namespace=pool, password=password, gateways=gateways, mode=settings.when_away, clock=clock
    )

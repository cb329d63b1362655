"""Who may come in, as the settings say it: identity, policy, limits and audit, put together."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from gateway.admission import Admission
from gateway.audit import Audit
from gateway.callers import Callers
from gateway.certificates import Certificates
from gateway.failures import Failures, Slowed
from gateway.identity import DevelopmentKey, KeyFile, Verify
from gateway.limits import Counters
from gateway.limits.leases import Leases
from gateway.limits.local import LocalCounters
from gateway.policy.document import load_policy
from gateway.policy.model import EVERYTHING, NO_QUOTAS, Policy
from gateway.quotas import Accounts
from gateway.settings import GatewaySection, IdentitySettings, Provider, SharedLimitSettings
from gateway.stored import StoredAccess, sums_of
from gateway.tokens import Tokens
from headrace.runtime.lifecycle import Background
from headrace.runtime.reload import ReloadedFile
from headrace.runtime.settings import SettingsError, read_secret
from headrace.store.engine import Store
from headrace.store.settings import DatabaseSettings

Keep = Callable[[], Coroutine[Any, Any, None]]
"""Makes a task that runs for as long as the gateway does."""


_TICK_SECONDS = 0.25


class Access:
    """The parts, kept up from when it is entered; leave it when no call is under way any more."""

    def __init__(
        self,
        settings: GatewaySection,
        database: DatabaseSettings,
        *,
        pool: str,
        source: str,
        gateways: Callable[[], int],
    ) -> None:
        """`source` names this gateway's reports of usage, `gateways` tells how many gateways there are.

        Raises SettingsError where a file that is named is not usable.
        """
        self._kept: dict[str, Keep] = {"clock": self._tick}
        self._listeners: list[Callable[[], None]] = []
        self._background = Background()
        clock = asyncio.get_running_loop().time
        self.audit = Audit(clock)
        self._store = _store(database)
        self._stored: StoredAccess | None = None
        if self._store is not None:
            self._stored = StoredAccess(
                self._store, keys_changed=self._identities_changed, tenants_changed=self._judge_anew
            )
            self._kept["database"] = self._stored.keep
        self._certificates = Certificates() if settings.grpc.tls_client_ca_file is not None else None
        self.callers = self._callers(settings.identity)
        self.slowed = Slowed(Failures())
        self._leases = _leases(settings.shared_limits, pool, gateways, clock)
        self._own = LocalCounters()
        shared: Counters = self._own if self._leases is None else self._leases
        self.accounts = Accounts(None if self._store is None else sums_of(self._store, source))
        if self._store is not None:
            self._kept["quotas"] = self.accounts.keep
        self.admission = Admission(
            EVERYTHING, clock=clock, audit=self.audit, shared=shared, own=self._own, accounts=self.accounts
        )
        if self._certificates is not None:
            self.admission.subscribe(self._claims_changed)
        self._written: Policy | None = None
        if settings.policy_file is not None:
            watched = ReloadedFile(settings.policy_file, what="policy", read=self._read_policy, use=self._written_anew)
            self._kept["policy-file"] = watched.keep
        self._judge_anew()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as owned:
            if self._store is not None:
                await owned.enter_async_context(self._store)
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

    @property
    def ready(self) -> bool:
        """Whether it is known who may come in."""
        return self._stored is None or self._stored.ready

    def _read_policy(self, path: Path) -> Policy:
        policy = load_policy(path)
        if self._store is None:
            unable = [name for name, tenant in policy.tenants.items() if tenant.quotas != NO_QUOTAS]
            if unable:
                raise SettingsError(f"{path}: tenants.{unable[0]}.quotas: quotas need HEADRACE_DATABASE__URL")
        return policy

    def _written_anew(self, policy: Policy) -> None:
        before, self._written = self._written, policy
        self._judge_anew()
        # To free a thousand tenants takes milliseconds: not in the turn that has put others in their place.
        asyncio.get_running_loop().call_soon(_let_go, before)

    def _judge_anew(self) -> None:
        """Put in force what file and database say together; of a tenant that is in both, the file's word counts."""
        written = self._written
        if self._stored is not None:
            own = Policy() if written is None else written
            self.admission.change(replace(own, tenants={**self._stored.tenants, **own.tenants}))
        elif written is not None:
            self.admission.change(written)

    def _claims_changed(self) -> None:
        if self._certificates is not None:
            self._certificates.change(self.admission.policy)
            self._identities_changed()

    def _identities_changed(self) -> None:
        for changed in self._listeners:
            changed()

    @property
    def limits_are_shared(self) -> bool:
        """Whether all gateways count together now."""
        return self._leases is not None and self._leases.shared

    @property
    def leases(self) -> Leases | None:
        """What gateways share, where they share anything."""
        return self._leases

    def _callers(self, settings: IdentitySettings) -> Callers:
        made: Mapping[Provider, Callable[[IdentitySettings], Iterable[Verify]]] = {
            "key_file": self._key_file,
            "database": self._database,
            "development_key": self._development_key,
            "tokens": self._tokens,
        }
        verifiers = {provider: list(make(settings)) for provider, make in made.items()}
        order = settings.order
        place = order.index("certificate") if "certificate" in order else len(order)
        first, then = (
            [verify for provider in part for verify in verifiers.get(provider, ())]
            for part in (order[:place], order[place:])
        )
        return Callers(first, self._certificates, then)

    def _key_file(self, settings: IdentitySettings) -> Iterator[Verify]:
        if settings.key_file is not None:
            keys = KeyFile(settings.key_file, changed=self._identities_changed)
            self._kept["key-file"] = keys.keep
            yield keys

    def _database(self, _: IdentitySettings) -> Iterator[Verify]:
        if self._stored is not None:
            yield self._stored

    def _development_key(self, settings: IdentitySettings) -> Iterator[Verify]:
        if settings.development_key_file is not None:
            yield DevelopmentKey(settings.development_key_file)

    def _tokens(self, settings: IdentitySettings) -> Iterator[Verify]:
        for name, issuer in settings.token_issuers.items():
            tokens = Tokens(name, issuer, changed=self._identities_changed)
            self._kept[f"token-issuer-{name}"] = tokens.keep
            yield tokens


def _let_go(_: Policy | None) -> None:
    """Hold something until here."""


def _store(settings: DatabaseSettings) -> Store | None:
    if settings.url is None:
        return None
    password = None if settings.password_file is None else read_secret(settings.password_file)
    return Store(settings.url, password=password)


def _leases(
    settings: SharedLimitSettings, pool: str, gateways: Callable[[], int], clock: Callable[[], float]
) -> Leases | None:
    if settings.redis_url is None:
        return None
    password = None if settings.password_file is None else read_secret(settings.password_file)
    return Leases(
        settings.redis_url, namespace=pool, password=password, gateways=gateways, mode=settings.when_away, clock=clock
    )

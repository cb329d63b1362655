"""A policy: which tenants there are, what each is granted, and how much of it. Pure and immutable."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase

from gateway.identity import ADMIN, OBSERVER, USER, Caller

_LONGEST_NAME = 256
"""No model has a longer one, and matching takes long with what a stranger may send."""


class MethodClass(StrEnum):
    """What a method is for."""

    INFER = "infer"
    """Running models."""
    METADATA = "metadata"
    """Asking what there is."""
    ADMIN = "admin"
    """Changing what there is."""


class Priority(StrEnum):
    """Whose calls come first where they compete."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of something may be used; None is no limit."""

    calls_per_second: float | None = None
    burst: float | None = None
    """Calls that may come at once; `calls_per_second` where unset, and at least 1."""
    bytes_per_second: float | None = None
    """Of requests. As much may come at once, and one request may be larger where nothing was used before."""
    concurrency: int | None = None
    """Calls under way at a time."""
    request_bytes: int | None = None
    """The largest request."""


NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much a tenant may use in a day or a month, UTC; None is no quota."""

    calls_per_day: int | None = None
    calls_per_month: int | None = None
    """Calls that were answered."""
    bytes_per_day: int | None = None
    bytes_per_month: int | None = None
    """Of requests and answers."""
    model_seconds_per_day: float | None = None
    model_seconds_per_month: float | None = None
    """How long calls were with a model server, its own queue included."""
    warn_at: tuple[float, ...] = (0.8,)
    """Shares of a quota that are told in the log when they are reached."""


NO_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True)
class ForModels:
    """Limits of the models whose names match a pattern: all of them together, or each by itself."""

    pattern: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant is granted."""

    name: str
    models: tuple[str, ...]
    """Patterns of model names, with `*` and `?`. What none matches does not exist for the tenant."""
    allow: frozenset[MethodClass] = frozenset({MethodClass.INFER, MethodClass.METADATA})
    priority: Priority = Priority.NORMAL
    limits: Limits = NO_LIMITS
    """Of all its calls together."""
    each_key: Limits = NO_LIMITS
    by_model: tuple[ForModels, ...] = ()
    """Of its calls to the models that match, together."""
    quotas: Quotas = NO_QUOTAS
    """Of all its calls together."""
    certificates: tuple[str, ...] = ()
    """Whose certificates stand for it; see `identities`."""

    @property
    def sees_all(self) -> bool:
        """Whether every model exists for it, so that what concerns all is its business."""
        return "*" in self.models

    def sees(self, model: str) -> bool:
        """Whether a model exists for this tenant."""
        return len(model) <= _LONGEST_NAME and any(fnmatchcase(model, pattern) for pattern in self.models)


_BY_ROLE: Mapping[str, frozenset[MethodClass]] = {
    ADMIN: frozenset(MethodClass),
    OBSERVER: frozenset({MethodClass.METADATA}),
    USER: frozenset({MethodClass.INFER, MethodClass.METADATA}),
}


def granted_by_roles(caller: Caller) -> frozenset[MethodClass]:
    """What the roles of a caller allow, whatever its tenant is granted. No role at all is a user's."""
    if not caller.roles:
        return _BY_ROLE[USER]
    return frozenset().union(*(_BY_ROLE.get(role, frozenset()) for role in caller.roles))


@dataclass(frozen=True)
class Policy:
    """All of it."""

    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    models: tuple[ForModels, ...] = ()
    """Ceilings of each model that matches, over all tenants."""
    gateway: Limits = NO_LIMITS
    """The ceiling of one gateway process, over all tenants."""
    default: Tenant | None = None
    """What a tenant gets that is not listed; None refuses it."""

    def tenant(self, name: str) -> Tenant | None:
        """What a tenant is granted; None where it is granted nothing at all."""
        return self.tenants.get(name, self.default)


EVERYTHING = Policy(default=Tenant(name="*", models=("*",), allow=frozenset(MethodClass)))
"""In force where no policy is configured: everyone with a key may call everything, without limits."""


def plain(number: float) -> str:
    """A number of a limit, as an operator wrote it."""
    return str(int(number)) if number == int(number) else str(number)

"""The policy as a YAML document: strict, with the line of every mistake.

tenants:
  acme:
    models: [simple, "text_*"]
    allow: [infer, metadata]
    priority: normal
    limits: {calls_per_second: 100, burst: 200, concurrency: 32}
    each_key: {calls_per_second: 50}
    by_model:
      "text_*": {concurrency: 4}
    quotas: {calls_per_day: 10000, model_seconds_per_month: 3600}
    certificates: ["spiffe://example.org/acme/*", billing.acme.example]
models:
  simple: {concurrency: 100}
gateway: {concurrency: 5000}
"""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.policy.identities import Claims, listed
from gateway.policy.model import ForModels, Limits, MethodClass, Policy, Priority, Quotas, Tenant
from headrace.runtime.settings import SettingsError

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NAMED = "a tenant's name has 1 to 128 of A-Z a-z 0-9 . _ -"
_PATTERN = re.compile(r"[^\x00-\x1f\x7f\[\]]{1,256}")
_LARGEST_BYTES = 8 << 20
_TEXT = "tag:yaml.org,2002:str"
_TAGS = frozenset({_TEXT, *(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "bool", "null"))})
_DEEPEST = 8

At = tuple[Hashable, ...]
"""Where something stands in the document."""
_Read = TypeVar("_Read", bound=BaseModel)


class PolicyError(Exception):
    """A policy can't be used; the text has a line for every mistake, with its line in the document."""


def _pattern(pattern: str) -> str:
    if not _PATTERN.fullmatch(pattern):
        raise ValueError("a pattern of model names has 1 to 256 printable characters, and no brackets")
    return pattern


_Identity = Annotated[str, AfterValidator(listed)]
_Pattern = Annotated[str, AfterValidator(_pattern)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Limits(_Strict):
    calls_per_second: Annotated[float, Field(ge=1e-6, le=1e9)] | None = None
    burst: Annotated[float, Field(ge=1, le=1e9)] | None = None
    bytes_per_second: Annotated[float, Field(ge=1, le=1e12)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=10**9)] | None = None
    request_bytes: Annotated[int, Field(ge=1, le=2**40)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.burst is not None and self.calls_per_second is None:
            raise ValueError("burst needs calls_per_second beside it")
        return self

    def made(self) -> Limits:
        return Limits(**dict(self))


_Amount = Annotated[int, Field(ge=1, le=10**15)]
_Seconds = Annotated[float, Field(ge=1e-3, le=1e9)]
_Share = Annotated[float, Field(gt=0, le=1)]


class _Quotas(_Strict):
    calls_per_day: _Amount | None = None
    calls_per_month: _Amount | None = None
    bytes_per_day: _Amount | None = None
    bytes_per_month: _Amount | None = None
    model_seconds_per_day: _Seconds | None = None
    model_seconds_per_month: _Seconds | None = None
    warn_at: Annotated[list[_Share], Field(max_length=10)] | None = None

    def made(self) -> Quotas:
        stated = {name: value for name, value in self if value is not None}
        if self.warn_at is not None:
            stated["warn_at"] = tuple(sorted(set(self.warn_at)))
        return Quotas(**stated)


class _Tenant(_Strict):
    models: list[_Pattern]
    allow: list[Literal["infer", "metadata", "admin"]] | None = None
    priority: Literal["high", "normal", "low"] = "normal"
    limits: _Limits = _Limits()
    each_key: _Limits = _Limits()
    by_model: dict[_Pattern, _Limits] = {}
    quotas: _Quotas = _Quotas()
    certificates: Annotated[list[_Identity], Field(max_length=1000)] = []


class _Policy(_Strict):
    tenants: dict[str, object]  # each one is read by itself: all at once, they would hold up the loop
    models: dict[_Pattern, _Limits] = {}
    gateway: _Limits = _Limits()


def read_policy(text: str) -> Policy:
    """Read a policy. Raises PolicyError."""
    if len(text) > _LARGEST_BYTES:
        raise PolicyError(f"a policy has at most {_LARGEST_BYTES} characters")
    document, lines = _parsed(text)
    if not isinstance(document, dict):
        raise PolicyError("line 1: a policy begins with `tenants:`")
    mistakes: list[tuple[At, str]] = []
    stated: dict[str, object] = {}
    if isinstance(document.get("tenants"), dict):
        stated, document["tenants"] = document["tenants"], {}
    read = _read(_Policy, document, (), mistakes)
    mistakes += ((("tenants", name), _NAMED) for name in stated if not _TENANT.fullmatch(name))
    tenants = {
        name: _tenant(name, tenant)
        for name, each in stated.items()
        if (tenant := _read(_Tenant, each, ("tenants", name), mistakes)) is not None
    }
    mistakes += _claimed_twice(tenants)
    if read is None or mistakes:
        raise PolicyError(_told(mistakes, lines))
    for whole in (stated, lines):  # piece by piece, as in `_built`
        while whole:
            whole.popitem()
    return Policy(tenants=tenants, models=_for_models(read.models), gateway=read.gateway.made())


def read_grants(text: str) -> dict[str, object]:
    """What one tenant is granted, as a document of its own: what a policy has below the tenant's name.

    Raises PolicyError.
    """
    if len(text) > _LARGEST_BYTES:
        raise PolicyError(f"a policy has at most {_LARGEST_BYTES} characters")
    document, lines = _parsed(text)
    mistakes: list[tuple[At, str]] = []
    if _read(_Tenant, document, (), mistakes) is None or not isinstance(document, dict):
        raise PolicyError(_told(mistakes, lines))
    return document


def read_tenant(name: str, grants: object) -> Tenant:
    """Read what one tenant is granted, as a policy has it below the tenant's name. Raises PolicyError."""
    mistakes: list[tuple[At, str]] = []
    read = _read(_Tenant, grants, (), mistakes)
    if not _TENANT.fullmatch(name):
        mistakes.insert(0, ((), _NAMED))
    if read is None or mistakes:
        raise PolicyError("\n".join(f"{'.'.join(map(str, at)) or name}: {text}" for at, text in mistakes))
    return _tenant(name, read)


def _read(kind: type[_Read], stated: object, at: At, mistakes: list[tuple[At, str]]) -> _Read | None:
    try:
        return kind.model_validate(stated)
    except ValidationError as exc:
        mistakes += (
            ((*at, *(part for part in error["loc"] if part != "[key]")), _text(error)) for error in exc.errors()
        )
        return None


def _claimed_twice(tenants: Mapping[str, Tenant]) -> Iterator[tuple[At, str]]:
    claiming = {name: tenant.certificates for name, tenant in tenants.items() if tenant.certificates}
    claims = Claims(claiming)
    for name, identities in claiming.items():
        for number, identity in enumerate(identities):
            other = claims.overlaps(name, identity)
            if other is not None:
                yield ("tenants", name, "certificates", number), f"tenant {other} claims this already"


def _tenant(name: str, read: _Tenant) -> Tenant:
    granted = {} if read.allow is None else {"allow": frozenset(map(MethodClass, read.allow))}
    return Tenant(
        name=name,
        models=tuple(read.models),
        priority=Priority(read.priority),
        limits=read.limits.made(),
        each_key=read.each_key.made(),
        by_model=_for_models(read.by_model),
        quotas=read.quotas.made(),
        certificates=tuple(read.certificates),
        **granted,
    )


def _for_models(read: Mapping[str, _Limits]) -> tuple[ForModels, ...]:
    return tuple(ForModels(pattern, limits.made()) for pattern, limits in read.items())


def _text(error: Mapping[str, Any]) -> str:  # Any: pydantic types its error details so
    if error["type"] == "extra_forbidden":
        return "no such field"
    if error["type"] == "model_type":  # whose own words name a class
        return "expected fields, a line each, as `name: value`"
    return str(error["msg"]).removeprefix("Value error, ")


def _told(mistakes: Iterable[tuple[At, str]], lines: Mapping[At, int]) -> str:
    told = []
    for path, text in mistakes:
        known = path
        while known and known not in lines:
            known = known[:-1]
        told.append((lines.get(known, 1), f"{'.'.join(map(str, path)) or 'the document'}: {text}"))
    return "\n".join(f"line {line}: {text}" for line, text in sorted(told))


class _Loader(yaml.SafeLoader):
    """YAML's own types only, and no aliases: a few of them make a document of any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # types-pyyaml has no annotation for it
            line = event.start_mark.line + 1
            raise PolicyError(f"line {line}: aliases are not taken: write it out")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _parsed(text: str) -> tuple[object, dict[At, int]]:
    lines: dict[At, int] = {}
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            document = None if node is None else _built(loader, node, (), lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise PolicyError(f"line {line}: no YAML: {exc.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise PolicyError(f"line 1: no YAML: {type(exc).__name__}") from None
    return document, lines


def _built(loader: _Loader, node: yaml.Node, path: At, lines: dict[At, int]) -> object:
    lines[path] = node.start_mark.line + 1
    if len(path) > _DEEPEST:
        raise PolicyError(f"line {lines[path]}: nothing in a policy is nested so deep")
    if isinstance(node, yaml.SequenceNode):
        items, node.value = node.value, []  # let go of piece by piece: a whole tree at once would hold up the loop
        return [_built(loader, each, (*path, number), lines) for number, each in enumerate(items)]
    if isinstance(node, yaml.MappingNode):
        built: dict[object, object] = {}
        pairs, node.value = node.value[::-1], []
        while pairs:
            key_node, value_node = pairs.pop()
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key, str) or key_node.tag != _TEXT:
                raise PolicyError(f"line {line}: a name must be text: put it in quotes")
            if key in built:
                raise PolicyError(f"line {line}: {key} stands here twice")
            built[key] = _built(loader, value_node, (*path, key), lines)
            lines[*path, key] = line
        return built
    if node.tag not in _TAGS:
        raise PolicyError(f"line {lines[path]}: {node.tag} stands in no policy")
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError):
        raise PolicyError(f"line {lines[path]}: this is no {node.tag.rpartition(':')[2]}") from None


def load_policy(path: Path) -> Policy:
    """Read a policy file. Raises SettingsError, a line for every mistake, or OSError."""
    try:
        return read_policy(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as exc:
        raise SettingsError(f"{path}: no text: {exc.reason}") from None
    except PolicyError as exc:
        raise SettingsError("\n".join(f"{path}: {line}" for line in str(exc).splitlines())) from None

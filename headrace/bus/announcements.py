"""The keys of the announcements topic: who or what a record speaks of.

`gateway/ID`, `router/POOL/ID`, `model/POOL/ID/MODEL`, `statistics/POOL/ID/MODEL`, `repository/POOL/MODEL`, each part
percent-encoded, so that a model's name may hold anything.
"""

from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import quote, unquote

Kind = Literal["gateway", "router", "model", "statistics", "repository"]

_PARTS: dict[str, tuple[str, ...]] = {
    "gateway": ("id",),
    "router": ("pool", "id"),
    "model": ("pool", "id", "model"),
    "statistics": ("pool", "id", "model"),
    "repository": ("pool", "model"),
}


@dataclass(frozen=True, slots=True)
class Key:
    """What an announcement is about. Parts that its kind does not have are empty."""

    kind: Kind
    pool: str = ""
    id: str = ""
    model: str = ""

    def __str__(self) -> str:
        parts = (quote(getattr(self, part), safe="") for part in _PARTS[self.kind])
        return "/".join((self.kind, *parts))


def gateway_key(gateway_id: str) -> str:
    """The key of a gateway's heartbeats."""
    return str(Key("gateway", id=gateway_id))


def router_key(pool: str, router_id: str) -> str:
    """The key of a router's heartbeats."""
    return str(Key("router", pool=pool, id=router_id))


def model_key(pool: str, router_id: str, model: str) -> str:
    """The key of one router's description of one model."""
    return str(Key("model", pool=pool, id=router_id, model=model))


def statistics_key(pool: str, router_id: str, model: str) -> str:
    """The key of one router's statistics of one model."""
    return str(Key("statistics", pool=pool, id=router_id, model=model))


def repository_key(pool: str, model: str) -> str:
    """The key of the last load or unload of a model that a pool was asked for."""
    return str(Key("repository", pool=pool, model=model))


def parse_key(text: str) -> Key | None:
    """The key as its parts; None where it is not one of ours, such as one of a later version."""
    kind, *parts = text.split("/")
    names = _PARTS.get(kind)
    if names is None or len(parts) != len(names) or not all(parts):
        return None
    return Key(cast("Kind", kind), **dict(zip(names, map(unquote, parts), strict=True)))

"""What is measured: one module per peer, each with a `start` that gives a `Peer` for as long as it is owned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

METHOD = "/inference.GRPCInferenceService/ModelInfer"
"""What is called, by its full name."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Something that answers `ModelInfer` for the model `copy`, up and ready."""

    name: str
    address: str
    processes: Mapping[str, int]
    """Root process by component, Triton's among them where it takes part."""
    relay: tuple[str, ...]
    """The components that stand between client and model: their CPU time is what is compared."""
    metadata: tuple[tuple[str, str], ...] = ()
    """Sent with each call."""
    about: Mapping[str, str] = field(default_factory=dict)
    """Versions, and settings that matter."""

"""How to start one child process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Program:
    """One child process of the local stack, not started yet."""

    name: str
    """Unique in the stack, such as `broker` or `triton-0`."""
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment that the child inherits."""
    without: frozenset[str] = frozenset()
    """Variables of that environment, in capitals, that the child does not inherit, however they are written."""
    cwd: Path | None = None

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment of the child, where it would inherit this."""
        return {**{name: value for name, value in inherited.items() if name.upper() not in self.without}, **self.env}

"""Where the local stack keeps what it downloads and what it remembers."""

import os
from pathlib import Path


def default_state_dir() -> Path:
    """The folder of the stack's data, keys and logs: `$XDG_STATE_HOME/headrace`, else under `~/.local/state`."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """The folder of downloads that any stack of this user may share: `$XDG_CACHE_HOME/headrace`, else `~/.cache`."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def _xdg(variable: str, fallback: str) -> Path:
    named = os.environ.get(variable, "")
    # The XDG specification: a relative path in these variables is to be ignored.
    base = Path(named) if named.startswith("/") else Path.home() / fallback
    return base / "headrace"

"""What tests of the command line share."""

from datetime import datetime
from pathlib import Path

import pytest

from headrace.cli import moments
from tests.unit.cli.desk import NOW, Desk


@pytest.fixture
def desk(tmp_path: Path, clock: list[datetime]) -> Desk:
    """One with the tables of this version."""
    del clock
    made = Desk(f"sqlite:///{tmp_path}/headrace.db")
    made.told("database", "upgrade")
    return made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[datetime]:
    """What commands take the moment to be."""
    held = [NOW]
    monkeypatch.setattr(moments, "now", lambda: held[0])
    return held

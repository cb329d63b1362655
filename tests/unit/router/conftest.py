"""Rigs that are taken down whatever the test did with them."""

from collections.abc import AsyncIterator, Callable

import pytest

from tests.unit.router.rig import Rig

MakeRig = Callable[..., Rig]


@pytest.fixture
async def rigged() -> AsyncIterator[MakeRig]:
    """Makes rigs."""
    made: list[Rig] = []

    def make(**options: object) -> Rig:
        made.append(Rig(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for rig in made:
        await rig.stop()

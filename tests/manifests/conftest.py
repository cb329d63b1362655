"""Each case is rendered once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests.rendering import K8S, ON_LOCAL, OVERLAYS, SETS, Json, Manifests, render, render_set

Rendered = Callable[[str], Manifests]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """The manifests of a case, by its name."""
    made: dict[str, Manifests] = {}

    def give(case: str) -> Manifests:
        if case not in made:
            if case in OVERLAYS:
                objects = render(K8S / "overlays" / case)
            else:
                scratch: Path = tmp_path_factory.mktemp(f"set-{case}")
                objects = _components(case, scratch)
            made[case] = Manifests(case, objects)
        return made[case]

    return give


def _components(case: str, scratch: Path) -> list[Json]:
    if case == ON_LOCAL:
        return render_set(["components/network-policies"], scratch, root="overlays/local")
    return render_set([*(f"components/{each}" for each in SETS[case]), "overlays/images"], scratch)

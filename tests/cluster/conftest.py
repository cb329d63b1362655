"""The cluster that these tests run against: one of their own, or the one that KUBECONFIG names.

They are collected only where they are asked for by path, as `make test-cluster` does: they need Go, and minutes.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cluster import manifests
from tests.cluster.applied import Applied, Applier
from tests.cluster.control_plane import ControlPlane, Programs, furnish
from tests.cluster.definitions import add_definitions
from tests.cluster.kubectl import Kubectl
from tests.cluster.manifests import Case
from tests.parts import missing

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = Programs(ROOT / "build" / "cluster")
RUN = ROOT / "build" / "cluster" / "runs" / uuid4().hex[:8]
"""What this run writes; gone with it unless a test failed."""
BUILD = "tests/cluster/build/build (Go makes it; `make test-cluster` calls it)"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out of runs that do not name it."""
    named = [Path(config.invocation_params.dir, word.split("::")[0]).resolve() for word in config.args]
    if any(path == HERE or HERE in path.parents for path in named):
        return None
    return HERE in (collection_path, *collection_path.parents) or None


@dataclass(frozen=True)
class Cluster:
    """A cluster, with what the manifests ask of it."""

    kubectl: Kubectl
    control_plane: ControlPlane | None
    """Where it is our own."""

    def require_own(self) -> ControlPlane:
        """The processes of our own cluster; on another one the test is skipped."""
        if self.control_plane is None:
            pytest.skip("needs kwok's nodes and autoscalers in fast motion: runs without KUBECONFIG")
        return self.control_plane

    @cached_property
    def kinds(self) -> frozenset[tuple[str, str]]:
        """Group and kind of everything that it knows."""
        rows = (row.split() for row in self.kubectl.run("api-resources", "--no-headers").splitlines())
        return frozenset((row[-3].rpartition("/")[0], row[-1]) for row in rows)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Everything that a test may apply to. Only here does a test learn where."""
    given = os.environ.get("KUBECONFIG")
    if given:
        program = shutil.which("kubectl") or missing("kubectl", "install the client of your cluster")
        kubectl = Kubectl(Path(program), given, tmp_path_factory.mktemp("kubectl"))
        with add_definitions(kubectl, _definitions()):
            yield Cluster(kubectl, None)
        return
    if not PROGRAMS.complete:
        missing("the control plane", BUILD)
    failures = request.session.testsfailed
    with ControlPlane(PROGRAMS, RUN) as control_plane:
        kubectl = control_plane.kubectl()
        with add_definitions(kubectl, _definitions(), remove=False):
            furnish(kubectl)
            yield Cluster(kubectl, control_plane)
    if request.session.testsfailed == failures:
        shutil.rmtree(RUN)


def pytest_report_header() -> str:
    """Whose cluster it is: a variable is easily left over."""
    given = os.environ.get("KUBECONFIG")
    return f"cluster: the current one of KUBECONFIG={given}" if given else "cluster: a control plane of the tests' own"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say where the logs are of a run that failed."""
    if RUN.exists():
        terminalreporter.write_line(f"logs of the cluster: {RUN.relative_to(ROOT)}")


def _definitions() -> list[Path]:
    return sorted(PROGRAMS.definitions.glob("*.yaml")) or missing("the operators' definitions", BUILD)


@pytest.fixture(scope="session")
def applier(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applier]:
    """Applies each case once, whichever test asks first."""
    applier = Applier(cluster.kubectl, cluster.kinds, tmp_path_factory.mktemp("rendered"))
    yield applier
    if cluster.control_plane is None:
        applier.remove()


@pytest.fixture(scope="session", params=[*manifests.overlays(), *manifests.components()], ids=lambda case: case.name)
def applied(request: pytest.FixtureRequest, applier: Applier) -> Applied:
    """Each overlay, and each component on the base, applied."""
    case: Case = request.param
    return applier.apply(case)

"""A cluster whose pods run: the real node of the tests' own, or the cluster that KUBECONFIG names.

On the latter, images with the names of tests/cluster/node/deployed/kustomization.yaml must be there already, and the
tests that need hands on the node are skipped.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.conftest import PROGRAMS, ROOT, RUN
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubectl import Kubectl
from tests.cluster.node.deployed.headrace import GATEWAY, NAMESPACE, TRITON, Headrace
from tests.cluster.node.machine import ADDRESS, Machine
from tests.cluster.node.recovery import Recoveries
from tests.parts import missing

HERE = Path(__file__).parent
IMAGES = ROOT / "build" / "cluster" / "images.tar"
DEPLOY_SECONDS = 300.0
RECOVERIES = pytest.StashKey[Recoveries]()


@dataclass(frozen=True)
class Node:
    """A cluster with a node that runs pods."""

    kubectl: Kubectl
    machine: Machine | None
    """Where it is our own."""

    def require_own(self) -> Machine:
        """Hands on the node itself; on another's cluster the test is skipped."""
        if self.machine is None:
            pytest.skip("needs hands on the node: runs without KUBECONFIG")
        return self.machine


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The cluster. Only here does a test learn where."""
    given = os.environ.get("KUBECONFIG")
    if given:
        program = shutil.which("kubectl") or missing("kubectl", "install the client of your cluster")
        yield Node(Kubectl(Path(program), given, tmp_path_factory.mktemp("kubectl")), None)
        return
    if ADDRESS is None or not IMAGES.exists():
        missing("a node", "`make test-cluster` builds one, and runs these tests in tests/cluster/node/enter")
    failures = request.session.testsfailed
    with ControlPlane(PROGRAMS, RUN, address=ADDRESS) as control_plane:
        kubectl = control_plane.kubectl()
        with Machine(control_plane, IMAGES) as machine:
            kubectl.run("apply", "--server-side", f"--filename={HERE / 'dns.yaml'}")
            yield Node(kubectl, machine)
    if request.session.testsfailed == failures:
        shutil.rmtree(RUN, ignore_errors=True)  # what pods still mount ends with the machine


@pytest.fixture(scope="session")
def headrace(node: Node) -> Iterator[Headrace]:
    """The local overlay, deployed and serving."""
    deployed = Headrace(node.kubectl)
    # It is overwritten, and deleted afterwards.
    assert not deployed.exists(), f"the cluster has a namespace {NAMESPACE} already: take one that you can throw away"
    try:
        deployed.deploy(seconds=DEPLOY_SECONDS)
        yield deployed
    finally:
        if node.machine is None:
            deployed.remove()


@pytest.fixture
def redundant(headrace: Headrace) -> None:
    """Two gateways and two Triton pods: a fault of one leaves another."""
    for name in (GATEWAY, TRITON):
        headrace.scale(name, 2)


@pytest.fixture
def single(headrace: Headrace) -> None:
    """One gateway and one Triton pod: there is no other."""
    for name in (GATEWAY, TRITON):
        headrace.scale(name, 1)


def pytest_configure(config: pytest.Config) -> None:
    """One list for the whole run."""
    config.stash[RECOVERIES] = Recoveries()


@pytest.fixture(scope="session")
def recoveries(pytestconfig: pytest.Config) -> Recoveries:
    """How long callers went without answers, by what was broken."""
    return pytestconfig.stash[RECOVERIES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table that docs/reliability.md shows one of."""
    for line in config.stash[RECOVERIES].table():
        terminalreporter.write_line(line)

"""The flows of the architecture, and no other, while packets are really dropped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.eventually import eventually
from tests.cluster.kubectl import FIELD_MANAGER
from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import ENVOY, GATEWAY, KAFKA, NAMESPACE, TRITON, Headrace
from tests.cluster.node.policies import ENFORCED_SECONDS, enforced

COMPONENT = Path(__file__).parents[3] / "deploy" / "k8s" / "components" / "network-policies"
KNOCK = """
import socket, sys
for door in sys.argv[1:]:
    host, _, port = door.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
        print(door, "open")
    except OSError:
        print(door, "shut")
"""
PORTS = {
    GATEWAY: (8001, 8002, 8003),
    TRITON: (8002, 8004),
    ENVOY: (8000, 8006),
    KAFKA: (9092,),
}
"""All that listens on a pod's address."""


@pytest.fixture(scope="module", autouse=True)
def policies(node: Node, headrace: Headrace) -> Iterator[None]:
    """The component, enforced; the caller's namespace may call."""
    ask = node.require_own().ask
    # So that a door that is shut below is shut by a policy.
    assert doors(headrace) == {name: set(ports) for name, ports in PORTS.items()}
    documents = headrace.kubectl.run("kustomize", str(COMPONENT))
    words = ("apply", "--server-side", f"--field-manager={FIELD_MANAGER}", f"--namespace={NAMESPACE}", "-f", "-")
    headrace.kubectl.run(*words, given=documents)
    with enforced(ask):
        yield
    headrace.run("delete", "networkpolicy", "--all")


@pytest.fixture
def may_call(headrace: Headrace) -> Iterator[None]:
    """As an administrator lets a namespace call."""
    headrace.kubectl.run("label", "namespace", NAMESPACE, "headrace.dev/calls=true")
    yield
    headrace.kubectl.run("label", "namespace", NAMESPACE, "headrace.dev/calls-")


def doors(headrace: Headrace, caller: str = "caller") -> dict[str, set[int]]:
    """Which of the ports a pod finds open, by deployment."""
    addresses = {name: headrace.pods(name)[0]["status"]["podIP"] for name in PORTS}
    tried = [f"{addresses[name]}:{port}" for name, ports in PORTS.items() for port in ports]
    told = headrace.run("exec", caller, "--", "python3", "-c", KNOCK, *tried).splitlines()
    found = {line.split()[0] for line in told if line.endswith("open")}
    return {name: {port for port in ports if f"{addresses[name]}:{port}" in found} for name, ports in PORTS.items()}


def await_doors(headrace: Headrace, expected: dict[str, set[int]]) -> None:
    """Until they stand so: the enforcer looks now and then."""

    def stand() -> bool:
        found = doors(headrace)
        assert found == expected
        return True

    eventually(stand, seconds=ENFORCED_SECONDS, what="the doors stand as the policies say")


def test_a_stranger_reaches_envoy_alone(headrace: Headrace) -> None:
    await_doors(headrace, {GATEWAY: set(), TRITON: set(), ENVOY: {8000}, KAFKA: set()})


@pytest.mark.usefixtures("may_call")
def test_callers_of_a_labelled_namespace_reach_the_gateways_port(headrace: Headrace) -> None:
    await_doors(headrace, {GATEWAY: {8001}, TRITON: set(), ENVOY: {8000}, KAFKA: set()})


@pytest.mark.usefixtures("may_call")
def test_calls_are_answered_by_pods_that_start_under_the_policies(headrace: Headrace) -> None:
    """By all ways that the architecture has: names, the topic, Triton, the answer's own way."""
    for name in (GATEWAY, TRITON):
        headrace.restart(name)
    with headrace.load("--calls", "100") as load:
        report = load.stop()
    assert (len(report.answered), report.errors) == (100, ())

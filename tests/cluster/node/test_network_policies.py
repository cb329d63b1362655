"""The flows of the architecture, and no other, while packets are really dropped."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.eventually import eventually
from tests.cluster.kubectl import FIELD_MANAGER, Document
from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import ENVOY, GATEWAY, KAFKA, NAMESPACE, TRITON, Headrace
from tests.cluster.node.policies import ENFORCED_SECONDS, enforced

COMPONENT = Path(__file__).parents[3] / "deploy" / "k8s" / "components" / "network-policies"
KNOCK = """
import socket, sys
from concurrent.futures import ThreadPoolExecutor
def knock(door):
    host, _, port = door.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        return "open"
    except OSError:
        return "shut"
doors = sys.argv[1:]
for door, state in zip(doors, ThreadPoolExecutor(len(doors)).map(knock, doors)):
    print(door, state)
"""
LISTEN = """
import signal, socket, sys
doors = [socket.create_server(("", int(port)), backlog=4096) for port in sys.argv[1:]]
signal.pause()
"""
OUTSIDE = "headrace-test-outside"
"""A pod of nobody's: what a model store, a collector of traces or an intruder's host would be."""
PORTS = {
    GATEWAY: (8001, 8002, 8003),
    TRITON: (8002, 8004),
    ENVOY: (8000, 8006),
    KAFKA: (9092,),
    OUTSIDE: (443, 4317, 5432, 6379, 8080),
}
"""All that listens on a pod's address."""
CONTAINERS = {GATEWAY: "gateway", TRITON: "router", ENVOY: "envoy", KAFKA: "kafka"}


@pytest.fixture(scope="module")
def outside(node: Node) -> Iterator[Document]:
    """A pod that no policy speaks of, in a namespace that none knows."""
    node.require_own()
    ports = [str(port) for port in PORTS[OUTSIDE]]
    container = {"name": OUTSIDE, "image": "localhost/caller:1", "command": ["python3", "-c", LISTEN, *ports]}
    metadata = {"name": OUTSIDE, "namespace": "default"}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    node.kubectl.apply([{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}])
    where = ("--namespace=default", f"pod/{OUTSIDE}")
    node.kubectl.run("wait", *where, "--for=condition=Ready", "--timeout=60s", seconds=70)
    yield node.kubectl.get(*where)
    node.kubectl.run("delete", *where)


@pytest.fixture(scope="module", autouse=True)
def policies(node: Node, headrace: Headrace, outside: Document) -> Iterator[None]:
    """The component, enforced; the caller's namespace may call."""
    ask = node.require_own().ask
    for name in (GATEWAY, TRITON):
        headrace.scale(name, 1)
    # So that a door that is shut below is shut by a policy.
    for knocker in ("caller", *CONTAINERS):
        await_doors(headrace, outside, knocker, {name: set(ports) for name, ports in PORTS.items() if name != knocker})
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


def doors(headrace: Headrace, outside: Document, knocker: str) -> dict[str, set[int]]:
    """Which of the others' ports the caller, or a deployment's pod, finds open."""
    pods = {name: headrace.pods(name)[0] for name in CONTAINERS} | {OUTSIDE: outside}
    where = (
        (pods[knocker]["metadata"]["name"], f"--container={CONTAINERS[knocker]}")
        if knocker in CONTAINERS
        else (knocker,)
    )
    tried = {
        f"{pods[name]['status']['podIP']}:{port}": (name, port)
        for name, ports in PORTS.items()
        if name != knocker
        for port in ports
    }
    told = headrace.run("exec", *where, "--", "python3", "-c", KNOCK, *tried).splitlines()
    found: dict[str, set[int]] = {name: set() for name, _ in tried.values()}
    for door, state in (line.split() for line in told):
        if state == "open":
            name, port = tried[door]
            found[name].add(port)
    return found


def await_doors(headrace: Headrace, outside: Document, knocker: str, expected: dict[str, set[int]]) -> None:
    """Until they stand so: the enforcer looks now and then."""

    def stand() -> bool:
        found = doors(headrace, outside, knocker)
        assert found == expected
        return True

    eventually(stand, seconds=ENFORCED_SECONDS, what=f"the doors of {knocker} stand so")


def test_a_stranger_reaches_envoy_alone(headrace: Headrace, outside: Document) -> None:
    """Among strangers no policy stands between them."""
    expected = {GATEWAY: set(), TRITON: set(), ENVOY: {8000}, KAFKA: set(), OUTSIDE: {*PORTS[OUTSIDE]}}
    await_doors(headrace, outside, "caller", expected)


@pytest.mark.usefixtures("may_call")
def test_callers_of_a_labelled_namespace_reach_the_gateways_port(headrace: Headrace, outside: Document) -> None:
    expected = {GATEWAY: {8001}, TRITON: set(), ENVOY: {8000}, KAFKA: set(), OUTSIDE: {*PORTS[OUTSIDE]}}
    await_doors(headrace, outside, "caller", expected)


@pytest.mark.parametrize(
    ("knocker", "expected"),
    [
        (GATEWAY, {TRITON: set(), ENVOY: set(), KAFKA: {9092}, OUTSIDE: set()}),
        (TRITON, {GATEWAY: {8003}, ENVOY: set(), KAFKA: {9092}, OUTSIDE: {443}}),
        (ENVOY, {GATEWAY: {8001}, TRITON: set(), KAFKA: set(), OUTSIDE: set()}),
        (KAFKA, {GATEWAY: set(), TRITON: set(), ENVOY: set(), OUTSIDE: set()}),
    ],
)
def test_our_own_pods_reach_no_more_than_their_flows(
    headrace: Headrace, outside: Document, knocker: str, expected: dict[str, set[int]]
) -> None:
    """Envoy's port and the outside are open to anybody: there it is their own policies that hold them."""
    await_doors(headrace, outside, knocker, expected)


@pytest.mark.usefixtures("may_call")
def test_calls_are_answered_by_pods_that_start_under_the_policies(headrace: Headrace) -> None:
    """By all ways that the architecture has: names, the topic, Triton, the answer's own way."""
    for name in (GATEWAY, TRITON):
        headrace.restart(name)
    with headrace.load("--calls", "100") as load:
        report = load.stop()
    assert (len(report.answered), report.errors) == (100, ())

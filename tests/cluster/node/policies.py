"""Enforces NetworkPolicies on the tests' own node, whose bridge knows nothing of them: a table of nftables, kept up.

What https://kubernetes.io/docs/concepts/services-networking/network-policies says of peers and ports, without ranges of
ports and IPv6. What comes from the node itself, as probes do, is never stopped.
"""

import ipaddress
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.cluster.kubectl import Document

LOOK_SECONDS = 0.3
ENFORCED_SECONDS = 30.0
TABLE = "headrace-policies"
DIRECTIONS = {"Ingress": ("daddr", "saddr", "from"), "Egress": ("saddr", "daddr", "to")}
"""Which address is the pod's own, which the peer's, and how a policy calls its peers."""


@dataclass(frozen=True)
class Cluster:
    """What rules are made of."""

    namespaces: Mapping[str, Mapping[str, str]]
    """Labels by name."""
    pods: tuple[Document, ...]
    """Those with an address of their own."""
    policies: tuple[Document, ...]


def read(ask: Callable[[str], Document]) -> Cluster:
    """Look at the API server."""
    namespaces = {
        space["metadata"]["name"]: space["metadata"].get("labels", {}) for space in _list(ask, "/api/v1/namespaces")
    }
    pods = [
        pod
        for pod in _list(ask, "/api/v1/pods")
        if pod["status"].get("podIP")
        and pod["status"]["phase"] in {"Pending", "Running"}
        and not pod["spec"].get("hostNetwork")
    ]
    return Cluster(namespaces, tuple(pods), tuple(_list(ask, "/apis/networking.k8s.io/v1/networkpolicies")))


def _list(ask: Callable[[str], Document], path: str) -> list[Document]:
    found: list[Document] = ask(path)["items"]
    return found


def ruleset(cluster: Cluster) -> str:
    """The whole table, as `nft` takes it: it replaces the one before in one step."""
    lines = [f"table ip {TABLE} {{}}", f"delete table ip {TABLE}", f"table ip {TABLE} {{"]
    jumps = []
    for direction, (own, _, _) in DIRECTIONS.items():
        for pod in cluster.pods:
            selecting = [policy for policy in cluster.policies if _selects(policy, pod, direction)]
            if not selecting:
                continue
            address = pod["status"]["podIP"]
            chain = f"{direction.lower()}-{address.replace('.', '-')}"
            allowed = dict.fromkeys(rule for policy in selecting for rule in _allowed(cluster, policy, pod, direction))
            lines += [f"chain {chain} {{", *(f"  {rule} return" for rule in allowed), "  counter drop", "}"]
            jumps.append(f"  ip {own} {address} jump {chain}")
    lines += [
        "chain forward {",
        "  type filter hook forward priority 10; policy accept;",
        "  ct state established,related accept",
        *jumps,
        "}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _selects(policy: Document, pod: Document, direction: str) -> bool:
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return (
        direction in kinds
        and policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and matches(spec.get("podSelector"), pod["metadata"].get("labels", {}))
    )


def _allowed(cluster: Cluster, policy: Document, pod: Document, direction: str) -> Iterator[str]:
    """What nftables is to let through, each as the conditions of a rule."""
    _, peer_side, peers_field = DIRECTIONS[direction]
    for rule in policy["spec"].get(direction.lower()) or ():
        for peer in rule.get(peers_field) or (None,):
            chosen, addresses = _peer(cluster, policy, peer)
            if addresses is not None and not addresses:
                continue
            where = "" if addresses is None else f"ip {peer_side} {{ {', '.join(addresses)} }}"
            refused = (peer or {}).get("ipBlock", {}).get("except") or ()
            but = f"ip {peer_side} != {{ {', '.join(refused)} }}" if refused else ""
            for port in _ports(rule, [pod] if direction == "Ingress" else chosen):
                yield " ".join(filter(None, (where, but, port)))


def _peer(cluster: Cluster, policy: Document, peer: Document | None) -> tuple[list[Document], list[str] | None]:
    """Which pods a peer is, for the names of their ports, and which addresses; None for any."""
    if peer is None:
        return [*cluster.pods], None
    if block := peer.get("ipBlock"):
        network = ipaddress.ip_network(block["cidr"])
        inside = [pod for pod in cluster.pods if ipaddress.ip_address(pod["status"]["podIP"]) in network]
        return inside, [block["cidr"]]
    home = policy["metadata"]["namespace"]
    found = [
        pod
        for pod in cluster.pods
        if (
            matches(peer["namespaceSelector"], cluster.namespaces[pod["metadata"]["namespace"]])
            if "namespaceSelector" in peer
            else pod["metadata"]["namespace"] == home
        )
        and matches(peer.get("podSelector"), pod["metadata"].get("labels", {}))
    ]
    return found, [pod["status"]["podIP"] for pod in found]


def _ports(rule: Document, targets: Iterable[Document]) -> Iterator[str]:
    for port in rule.get("ports") or (None,):
        if port is None:
            yield ""
            continue
        protocol = port.get("protocol", "TCP").lower()
        match port.get("port"):
            case None:
                yield f"meta l4proto {protocol}"
            case int(number):
                yield f"{protocol} dport {number}"
            case name:
                numbers = {
                    known["containerPort"]
                    for pod in targets
                    for container in pod["spec"]["containers"]
                    for known in container.get("ports", ())
                    if known.get("name") == name
                }
                yield from (f"{protocol} dport {number}" for number in sorted(numbers))


def matches(selector: Document | None, labels: Mapping[str, str]) -> bool:
    """Whether a label selector, of which an empty one takes everything, takes these labels."""
    selector = selector or {}
    if any(labels.get(name) != value for name, value in selector.get("matchLabels", {}).items()):
        return False
    for want in selector.get("matchExpressions", ()):
        value = labels.get(want["key"])
        holds = {
            "In": value in want.get("values", ()),
            "NotIn": value not in want.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[want["operator"]]:
            return False
    return True


@contextmanager
def enforced(ask: Callable[[str], Document]) -> Iterator[None]:
    """Policies hold within the block, for pods that come and go, too."""
    ended, first = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def keep() -> None:
        last = ""
        try:
            while not ended.is_set():
                if (rules := ruleset(read(ask))) != last:
                    _nft("-f", "-", given=rules)
                    last = rules
                first.set()
                ended.wait(LOOK_SECONDS)
        except BaseException as exc:  # noqa: BLE001  told by the test that it is for
            failed.append(exc)
            first.set()

    thread = threading.Thread(target=keep, name="policies", daemon=True)
    thread.start()
    assert first.wait(ENFORCED_SECONDS), "no policies were enforced"
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _nft("delete", "table", "ip", TABLE)
    assert not failed, failed


def _nft(*words: str, given: str = "") -> None:
    done = subprocess.run(("nft", *words), input=given, capture_output=True, text=True, timeout=20, check=False)  # noqa: S607
    assert done.returncode == 0, f"{done.stderr}\n{given}"

"""What network policies let through, evaluated as a cluster would, and compared with the flows of the architecture."""

from collections.abc import Iterator, Mapping

from tests.manifests.rendering import Json, Manifests, Pod

PORTS = {
    "gateway": (8001, 8002, 8003),
    "router": (8004, 8002),
    "aggregator": (8005,),
    "envoy": (8000, 8006),
    "redis": (6379,),
    "postgres": (5432,),
    "kafka": (9092, 9093),
}
CLIENTS_OF_KAFKA = ("gateway", "router", "aggregator", "topics")
FLOWS = frozenset(
    {
        ("envoy", "gateway", 8001),
        ("router", "gateway", 8003),
        ("gateway", "redis", 6379),
        ("gateway", "postgres", 5432),
        ("aggregator", "postgres", 5432),
        ("database-upgrade", "postgres", 5432),
        *((client, "kafka", port) for client in CLIENTS_OF_KAFKA for port in (9092, 9093)),
        # Callers reach Envoy from anywhere, and so may a pod of ours that may go anywhere; none may.
    }
)
"""Which component may open a connection to which, and where. Nothing else."""
OUTSIDE = {
    "gateway": {("dns", 53), ("monitoring", 4317), ("192.0.2.0/24", 5432)},
    "router": {("dns", 53), ("monitoring", 4317), ("0.0.0.0/0", 443)},
    "aggregator": {("dns", 53), ("192.0.2.0/24", 5432)},
    "database-upgrade": {("dns", 53), ("192.0.2.0/24", 5432)},
    "topics": {("dns", 53)},
    "envoy": {("dns", 53)},
}
"""What a component may reach that is none of ours, at most."""
FROM_OUTSIDE = {
    "gateway": {("headrace.dev/calls", 8001), ("monitoring", 8002)},
    "router": {("monitoring", 8004), ("monitoring", 8002)},
    "aggregator": {("monitoring", 8005)},
    "envoy": {("anybody", 8000), ("monitoring", 8006)},
}
NEEDED_OUTSIDE = {("dns", 53)}


def denied(manifests: Manifests) -> Iterator[str]:
    """A policy that lets nothing through, in both directions, selects every pod."""
    policies = manifests.of("NetworkPolicy")
    if not policies:
        return
    for pod in manifests.pods:
        if not any(_is_empty(each) and _selects(each["spec"]["podSelector"], pod.labels) for each in policies):
            yield f"{pod.name}: is reached by whoever likes"


def flows(manifests: Manifests) -> Iterator[str]:
    """Between our pods exactly what the architecture has."""
    policies = manifests.of("NetworkPolicy")
    if not policies:
        return
    present = _labels(manifests)
    wanted = {flow for flow in FLOWS if flow[0] in present and flow[1] in present}
    # Strimzi's brokers serve one port, the local one the other: the policies allow both to those that are none of ours.
    found = {
        (source, target, port)
        for source in {pod.component for pod in manifests.pods}
        for target in present
        for port in PORTS.get(target, ())
        if _leaves(policies, present[source], present[target], port)
        and _enters(policies, present[source], present[target], port)
    }
    if "kafka" in present and manifests.find("Deployment", "headrace-kafka") is not None:
        wanted = {flow for flow in wanted if flow[2] != 9093}
    yield from (f"{source} can't reach {target}:{port}" for source, target, port in sorted(wanted - found))
    yield from (f"{source} may reach {target}:{port}" for source, target, port in sorted(found - wanted))


def outside(manifests: Manifests) -> Iterator[str]:
    """Towards others, and from them, no more than the table."""
    for policy in manifests.of("NetworkPolicy"):
        for pod in manifests.pods:
            if not _selects(policy["spec"]["podSelector"], pod.labels):
                continue
            for direction, peers, allowed in (("egress", "to", OUTSIDE), ("ingress", "from", FROM_OUTSIDE)):
                for rule in policy["spec"].get(direction, ()):
                    for where in _outside(rule, peers):
                        if where not in allowed.get(pod.component, set()):
                            yield f"{pod.name}: {direction} {where}"


def names(manifests: Manifests) -> Iterator[str]:
    """Whoever reaches somebody can look the name up."""
    if not manifests.of("NetworkPolicy"):
        return
    for pod in manifests.pods:
        if pod.component not in OUTSIDE:
            continue
        found = {
            where
            for policy in manifests.of("NetworkPolicy")
            if _selects(policy["spec"]["podSelector"], pod.labels)
            for rule in policy["spec"].get("egress", ())
            for where in _outside(rule, "to")
        }
        yield from (f"{pod.name}: can't reach {each[0]}" for each in NEEDED_OUTSIDE - found)


def _labels(manifests: Manifests) -> dict[str, Mapping[str, str]]:
    found: dict[str, Mapping[str, str]] = {pod.component: pod.labels for pod in manifests.pods}
    if manifests.of("Kafka"):  # Strimzi's pods are not in the manifests, and no policy of ours selects them
        found["kafka"] = {"app.kubernetes.io/name": "kafka", "strimzi.io/cluster": "headrace-kafka"}
    return found


def _selects(selector: Json, labels: Mapping[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    for each in selector.get("matchExpressions", ()):
        assert each["operator"] == "In", each
        if labels.get(each["key"]) not in each["values"]:
            return False
    return True


def _is_empty(policy: Json) -> bool:
    spec = policy["spec"]
    return set(spec["policyTypes"]) == {"Ingress", "Egress"} and not spec.get("ingress") and not spec.get("egress")


def _leaves(policies: list[Json], source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    return _passes(policies, source, target, port, ("Egress", "egress", "to"))


def _enters(policies: list[Json], source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    return _passes(policies, target, source, port, ("Ingress", "ingress", "from"))


def _passes(
    policies: list[Json], own: Mapping[str, str], other: Mapping[str, str], port: int, words: tuple[str, str, str]
) -> bool:
    kind, direction, peers = words
    mine = [
        each for each in policies if kind in each["spec"]["policyTypes"] and _selects(each["spec"]["podSelector"], own)
    ]
    if not mine:
        return True
    return any(
        port in {each["port"] for each in rule.get("ports", ())}
        and (peers not in rule or any(_is_peer(each, other) for each in rule[peers]))
        for policy in mine
        for rule in policy["spec"].get(direction, ())
    )


def _is_peer(peer: Json, labels: Mapping[str, str]) -> bool:
    return set(peer) == {"podSelector"} and _selects(peer["podSelector"], labels)


def _outside(rule: Json, peers: str) -> Iterator[tuple[str, int]]:
    ports = [each["port"] for each in rule["ports"]]
    places = []
    if peers not in rule:
        places.append("anybody")
    for peer in rule.get(peers, ()):
        chosen = peer.get("namespaceSelector", {}).get("matchLabels", {})
        if "ipBlock" in peer:
            cidr = peer["ipBlock"]["cidr"]
            places.append("dns" if cidr == "169.254.20.10/32" else cidr)
        elif chosen == {"kubernetes.io/metadata.name": "kube-system"}:
            places.append("dns")
        elif "kubernetes.io/metadata.name" in chosen:
            places.append(chosen["kubernetes.io/metadata.name"])
        elif chosen:
            places.extend(chosen)
    return ((place, port) for place in places for port in ports)


def declared(pod: Pod) -> set[int]:
    """The ports that a pod's containers name."""
    return {port["containerPort"] for container in pod.lasting for port in container.get("ports", ())}


RULES = (denied, flows, outside, names)

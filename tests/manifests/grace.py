"""The arithmetic of leaving: a pod is given as long as its processes may take, added up from what they are told.

The parts that are no settings are the processes' own constants; whoever changes one changes the sum.
"""

from collections.abc import Iterator, Mapping

import gateway.app
import router.app
from gateway.settings import GatewaySettings
from headrace.bus.log import consumer
from headrace.runtime import admin_http, tracing
from router.settings import RouterSettings
from tests.manifests.effective import processes, settings_of
from tests.manifests.rendering import Json, Manifests, Pod

SLACK_SECONDS = 5
"""At least, for what takes no time on a good day."""
AUTOSCALER_SECONDS = 600
"""What the cluster autoscaler gives a pod by default."""
DEFAULT_SECONDS = 30
"""What a pod is given that says nothing."""
SPOT_SECONDS = 120
"""What AWS gives a node; some seconds of it pass before the drain begins."""
SPOT_START_SECONDS = 10
SPOT_NODES: Mapping[str, str] = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""How clouds label nodes that they may take back. Not every cloud taints them."""


def gateway_seconds(pod: Pod, settings: GatewaySettings) -> float:
    """How long a gateway may take from the order to go."""
    drain = settings.gateway.drain
    return (
        _sleep(pod.container("gateway"))
        + drain.notice_seconds
        + drain.grace_seconds
        + gateway.app._LAST_WORD_SECONDS  # what was just refused
        + gateway.app._GOODBYE_SECONDS  # the announcement that it is gone
        + gateway.app._GOODBYE_SECONDS  # the last usage
        + tracing.FLUSH_SECONDS
        + admin_http._SHUTDOWN_SECONDS
    )


def router_seconds(pod: Pod, settings: RouterSettings) -> float:
    """How long a router and then its Triton may take."""
    options = dict(each.removeprefix("--").split("=", 1) for each in pod.container("triton")["args"])
    flush = router.app._FLUSH_SECONDS
    return (
        _sleep(pod.container("router"))
        + flush  # the word that it leaves
        + flush  # partitions given back
        + settings.router.drain_grace_seconds
        + flush  # answers acknowledged
        + consumer._LEAVE_SECONDS  # the last commit, and out of the group
        + flush  # goodbye and the last usage, together
        + tracing.FLUSH_SECONDS
        + admin_http._SHUTDOWN_SECONDS
        + float(options["exit-timeout-secs"])
    )


def fits(manifests: Manifests) -> Iterator[str]:
    """Every pod of ours is given as long as it may take."""
    for pod, _, process in processes(manifests):
        settings = settings_of(manifests, pod)
        given = pod.spec["terminationGracePeriodSeconds"]
        if isinstance(settings, GatewaySettings):
            taken = gateway_seconds(pod, settings)
        elif isinstance(settings, RouterSettings):
            taken = router_seconds(pod, settings)
        else:
            assert process == "aggregator"
            taken = admin_http._SHUTDOWN_SECONDS  # it stops at once
        if given < taken + SLACK_SECONDS:
            yield f"{pod.name}: is given {given} s and may take {taken:g} s"
        if given > AUTOSCALER_SECONDS:
            yield f"{pod.name}: the cluster autoscaler cuts it off after {AUTOSCALER_SECONDS} s of {given}"
    for pod in manifests.pods:
        if pod.component == "envoy":
            yield from _envoy(manifests, pod)


def nothing_is_cut(manifests: Manifests) -> Iterator[str]:
    """The longest call that a gateway takes ends within its own grace and its router's; and before its record goes."""
    longest = longest_call(manifests)
    for pod, _, _ in processes(manifests):
        settings = settings_of(manifests, pod)
        if isinstance(settings, GatewaySettings) and settings.gateway.drain.grace_seconds < longest:
            yield f"{pod.name}: a call of {longest:g} s is cut off"
        if isinstance(settings, RouterSettings) and settings.router.drain_grace_seconds < longest:
            yield f"{pod.name}: a call of {longest:g} s is cut off"
        if isinstance(settings, GatewaySettings) and settings.topics.retention_seconds <= longest:
            yield f"{pod.name}: a record may go before its call's deadline"


def is_noticed(manifests: Manifests) -> Iterator[str]:
    """Balancers that go by readiness have looked twice before a gateway refuses, and it serves on before that."""
    for pod, container, process in processes(manifests):
        settings = settings_of(manifests, pod)
        if not isinstance(settings, GatewaySettings):
            continue
        assert process == "gateway"
        if settings.gateway.drain.notice_seconds < 2 * container["readinessProbe"]["periodSeconds"]:
            yield f"{pod.name}: refuses before its readiness was seen to go"
        if not _sleep(container):
            yield f"{pod.name}: is told to go before its address has left the endpoints"


def within_the_notice(manifests: Manifests) -> Iterator[str]:
    """A pod that may be on a spot node, as every one may that does not keep off them, is gone before the node is."""
    if not _has_spot_nodes(manifests):
        return
    for pod in manifests.pods:
        given = pod.spec.get("terminationGracePeriodSeconds", DEFAULT_SECONDS)
        if not _keeps_off_spot(pod.spec) and given > SPOT_SECONDS - SPOT_START_SECONDS:
            yield f"{pod.name}: outlives its node"


def off_spot(manifests: Manifests) -> Iterator[str]:
    """What holds connections, counts or keeps records, all that lasts but Triton, is on no spot node."""
    if not _has_spot_nodes(manifests):
        return
    for pod in manifests.pods:
        if pod.lasting and pod.component != "router" and not _keeps_off_spot(pod.spec):
            yield f"{pod.name}: may be on a node that goes at any time"
    for each in manifests.of("Kafka"):
        if not _keeps_off_spot(each["spec"]["kafka"].get("template", {}).get("pod", {})):
            yield f"Kafka/{each['metadata']['name']}: its brokers may be on nodes that go at any time"
    for each in manifests.of("KafkaNodePool"):
        # Strimzi takes it in the place of its Kafka's.
        if "template" in each["spec"] and not _keeps_off_spot(each["spec"]["template"].get("pod", {})):
            yield f"KafkaNodePool/{each['metadata']['name']}: its brokers may be on nodes that go at any time"


def longest_call(manifests: Manifests) -> float:
    """What gateways cut deadlines to."""
    found = [
        settings.gateway.deadlines.maximum_seconds
        for pod, _, _ in processes(manifests)
        if isinstance(settings := settings_of(manifests, pod), GatewaySettings)
    ]
    return max(found)


def _envoy(manifests: Manifests, pod: Pod) -> Iterator[str]:
    command = pod.container("envoy")["lifecycle"]["preStop"]["exec"]["command"]
    waits = 5 + int(command[-1])
    if int(command[-1]) != longest_call(manifests):
        yield f"{pod.name}: waits {command[-1]} s for calls of {longest_call(manifests):g} s"
    if pod.spec["terminationGracePeriodSeconds"] < waits + SLACK_SECONDS:
        yield f"{pod.name}: is cut off while it drains"


def _has_spot_nodes(manifests: Manifests) -> bool:
    return any("spot" in pod.spec.get("priorityClassName", "") for pod in manifests.pods)


def _keeps_off_spot(pod: Json) -> bool:
    required = pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.get("nodeSelectorTerms", ())
    # Terms are alternatives: each must refuse them all.
    return bool(terms) and all(
        {"key": key, "operator": "NotIn", "values": [value]} in term.get("matchExpressions", ())
        for term in terms
        for key, value in SPOT_NODES.items()
    )


def _sleep(container: Json) -> float:
    hook = container.get("lifecycle", {}).get("preStop", {})
    return float(hook.get("sleep", {}).get("seconds", 0))


RULES = (fits, nothing_is_cut, is_noticed, within_the_notice, off_spot)

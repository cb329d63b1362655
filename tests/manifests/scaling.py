"""What must hold for autoscalers: one for each, within the partitions, by metrics that exist, patient on the way."""

import ast
import re
from collections.abc import Iterator
from functools import cache

import yaml

from headrace.bus.settings import TopicSettings
from headrace.bus.topics import consumer_group
from router.settings import RouterSettings
from tests.manifests.effective import processes, settings_of
from tests.manifests.grace import longest_call
from tests.manifests.rendering import K8S, ROOT, Json, Manifests, strings

PROCESS_METRICS = ("gateway/metrics.py", "router/metrics.py", "aggregator/app.py", "headrace/runtime/telemetry.py")
ADAPTER = K8S / "components" / "monitoring" / "prometheus-adapter.yaml"
PREFIXES = {"gateway": "headrace_gateway_", "router": "headrace_router_"}
NO_PODS = 1_000_000
"""Calls that a pod would have to answer in the time that is looked at, for a trigger to ask for no pods by them."""
_ANSWERED = re.compile(r'increase\(headrace_router_records_total\{[^}]*outcome="answered"[^}]*\}\[[1-9]\d*m\]\)')
_SERIES = re.compile(r"(?<![A-Za-z0-9_:.])headrace[_:][a-z0-9_:]+")


@cache
def exported() -> frozenset[str]:
    """The names of all metrics that the processes' code names, with the series that a histogram has."""
    names = {
        node.value
        for path in PROCESS_METRICS
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"headrace_[a-z0-9_]+", node.value)
    }
    seconds = {name for name in names if name.endswith("_seconds")}
    return frozenset(names | {f"{name}_{part}" for name in seconds for part in ("bucket", "sum", "count")})


def named(text: str) -> set[str]:
    """The series of ours that a text of Prometheus' language names."""
    return set(_SERIES.findall(text))


def exists(manifests: Manifests) -> Iterator[str]:
    """Whatever autoscalers, alerts and dashboards ask for is exported, or recorded by a rule."""
    groups = [group for each in manifests.of("PrometheusRule") for group in each["spec"]["groups"]]
    rules = [rule for group in groups for rule in group["rules"]]
    known = exported() | {rule["record"] for rule in rules if "record" in rule}
    asked = {f"rule {rule.get('record', rule.get('alert'))}": rule["expr"] for rule in rules}
    for each in manifests.of("ScaledObject"):
        asked |= {
            f"trigger {trigger['name']}": trigger["metadata"]["query"]
            for trigger in each["spec"]["triggers"]
            if trigger["type"] == "prometheus"
        }
    for each in manifests.of("HorizontalPodAutoscaler"):
        asked |= {f"autoscaler {name} of {each['metadata']['name']}": name for name in pod_metrics(each)}
    for each in manifests.of("ConfigMap"):
        if "dashboards" in each["metadata"]["name"]:
            for name, text in each["data"].items():
                exprs = [found for found in strings(yaml.safe_load(text)) if named(found)]
                asked |= {f"dashboard {name}, {number}": expr for number, expr in enumerate(exprs)}
    for who, expr in asked.items():
        yield from (f"{who}: there is no {name}" for name in sorted(named(expr) - known))


def one_each(manifests: Manifests) -> Iterator[str]:
    """Each autoscaler has its target, and no target has two."""
    targets = []
    for each in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = each["spec"]["scaleTargetRef"]
        found = manifests.find(target["kind"], target["name"])
        where = f"{each['kind']}/{each['metadata']['name']}"
        if found is None:
            yield f"{where}: there is no {target['name']}"
        elif "replicas" in found["spec"]:
            yield f"{where}: every apply sets {target['name']} back to {found['spec']['replicas']}"
        source = target.get("envSourceContainerName")
        if source is not None and source not in _containers(found):
            yield f"{where}: there is no container {source}"
        targets.append(target["name"])
    yield from (f"{each}: has two autoscalers" for each in set(targets) if targets.count(each) > 1)
    yield from (f"{each}: has none" for each in ("headrace-gateway", "headrace-triton") if each not in targets)


def within_partitions(manifests: Manifests) -> Iterator[str]:
    """No more Triton pods than a model's topic has partitions: the setting says it, and the topics of the operator."""
    for pod, _, process in processes(manifests):
        settings = settings_of(manifests, pod)
        if process != "router" or not isinstance(settings, RouterSettings):
            continue
        partitions = settings.topics.request_partitions
        fixed = pod.owner["spec"].get("replicas", 0)
        most = max([_most(each) for each in _of(manifests, pod.owner["metadata"]["name"])], default=fixed)
        if most > partitions:
            yield f"{pod.name}: up to {most} of them for {partitions} partitions"
        for topic in manifests.of("KafkaTopic"):
            if ".interactive." in topic["metadata"]["name"] and topic["spec"]["partitions"] != partitions:
                yield f"KafkaTopic/{topic['metadata']['name']}: has not {partitions} partitions"
        if "HEADRACE_TOPICS__REQUEST_PARTITIONS" not in manifests.environment(pod.container("router")):
            yield f"{pod.name}: the number is not said, it is the default ({TopicSettings().request_partitions})"


def patient(manifests: Manifests) -> Iterator[str]:
    """Down only after the longest call, and slowly: lag is silent about what runs. Up at once, or nearly."""
    longest = longest_call(manifests)
    for each in manifests.of("HorizontalPodAutoscaler", "ScaledObject"):
        where = f"{each['kind']}/{each['metadata']['name']}"
        spec = each["spec"]
        if each["kind"] == "ScaledObject":
            if spec["cooldownPeriod"] < longest:
                yield f"{where}: sleeps while calls may run"
            spec = spec["advanced"]["horizontalPodAutoscalerConfig"]
        down, up = spec["behavior"]["scaleDown"], spec["behavior"]["scaleUp"]
        if down["stabilizationWindowSeconds"] < longest:
            yield f"{where}: goes down before the longest call has ended"
        if [policy["type"] for policy in down["policies"]] != ["Pods"] or down["policies"][0]["value"] > 1:
            yield f"{where}: goes down by several at once"
        if up["stabilizationWindowSeconds"] > 60:
            yield f"{where}: goes up late"


def sees_what_runs(manifests: Manifests) -> Iterator[str]:
    """Triton pods are scaled by wait, by lag, and by what runs."""
    for each in _of(manifests, "headrace-triton"):
        said = " ".join(strings(each["spec"]))
        lag = "headrace_router_lag_records" in said or any(
            trigger["type"] == "kafka" for trigger in each["spec"].get("triggers", ())
        )
        if not lag or not {"headrace_router_oldest_wait_seconds", "headrace_router_running"} <= named(said):
            yield f"{each['kind']}/{each['metadata']['name']}: does not see all of wait, lag and running calls"
    for each in manifests.of("HorizontalPodAutoscaler"):
        target = each["spec"]["scaleTargetRef"]["name"]
        component = {"headrace-gateway": "gateway", "headrace-triton": "router"}.get(target)
        if component is not None and not all(name.startswith(PREFIXES[component]) for name in pod_metrics(each)):
            yield f"{target}: is scaled by what its pods do not measure"


def sleeps_soundly(manifests: Manifests) -> Iterator[str]:  # noqa: C901  a list of looks, none of which depends on another
    """A pool that may have no pods: gateways keep its calls, KEDA asks the right group, and reads it from the start.

    It does not sleep while it answers calls that are over before one of the other triggers looks.
    """
    for each in manifests.of("ScaledObject"):
        pool = next(p for p, _, process in processes(manifests) if process == "router").labels["headrace.dev/pool"]
        for trigger in each["spec"]["triggers"]:
            said = trigger["metadata"]
            if trigger["type"] == "kafka":
                if said["consumerGroup"] != consumer_group(pool, "interactive"):
                    yield f"{said['consumerGroup']} is not the group of the pool {pool}"
                if said["offsetResetPolicy"] != "earliest" or said["scaleToZeroOnInvalidOffset"] != "false":
                    yield "KEDA misreads partitions without an offset"
                tls = "authenticationRef" in trigger
                if tls != bool(manifests.of("Kafka")):
                    yield "KEDA can't log in, or logs in where nobody asks"
            elif f'pool="{pool}"' not in said["query"]:
                yield f"trigger {trigger['name']}: asks for all pools"
        if not any(_keeps_awake(trigger["metadata"]) for trigger in each["spec"]["triggers"]):
            yield "a pool that answers short calls is put to sleep between them"
        for pod, container, process in processes(manifests):
            sleeps = manifests.environment(container).get("HEADRACE_GATEWAY__POOL_MAY_SLEEP")
            if process == "gateway" and sleeps != "true":
                yield f"{pod.name}: refuses calls to a pool that sleeps"


def _keeps_awake(said: Json) -> bool:
    """Whether a trigger takes any call that was answered of late as a reason to stay, and none for more pods."""
    return (
        _ANSWERED.search(said.get("query", "")) is not None
        and float(said.get("activationThreshold", 0)) == 0
        and float(said["threshold"]) >= NO_PODS
    )


def pod_metrics(autoscaler: Json) -> list[str]:
    """The metrics of pods that an autoscaler asks the adapter for."""
    return [each["pods"]["metric"]["name"] for each in autoscaler["spec"]["metrics"] if each["type"] == "Pods"]


def adapted() -> set[str]:
    """The metrics that the adapter's rules serve."""
    rules = yaml.safe_load(ADAPTER.read_text(encoding="utf-8"))["rules"]["custom"]
    return {name for rule in rules for name in named(rule["seriesQuery"])}


def _containers(deployment: Json | None) -> set[str]:
    return (
        set() if deployment is None else {each["name"] for each in deployment["spec"]["template"]["spec"]["containers"]}
    )


def _of(manifests: Manifests, target: str) -> list[Json]:
    scalers = manifests.of("HorizontalPodAutoscaler", "ScaledObject")
    return [each for each in scalers if each["spec"]["scaleTargetRef"]["name"] == target]


def _most(scaler: Json) -> int:
    spec = scaler["spec"]
    return int(spec["maxReplicas"] if "maxReplicas" in spec else spec["maxReplicaCount"])


RULES = (exists, one_each, within_partitions, patient, sees_what_runs, sleeps_soundly)

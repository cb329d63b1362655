"""The rules can fail: each is shown a rendered copy with one thing spoilt, and must say so."""

import copy
from collections.abc import Callable, Iterator

import pytest

from tests.manifests import grace, network, pod_rules, scaling
from tests.manifests.conftest import Rendered
from tests.manifests.rendering import Json, Manifests, Pod

Rule = Callable[[Manifests], Iterator[str]]
Spoil = Callable[[Manifests], object]


def pod(manifests: Manifests, name: str) -> Pod:
    return next(each for each in manifests.pods if each.name.partition("/")[2] == name)


def gateway(manifests: Manifests) -> Json:
    return pod(manifests, "headrace-gateway").container("gateway")


def triton(manifests: Manifests) -> Json:
    return pod(manifests, "headrace-triton").container("triton")


def envoy(manifests: Manifests) -> Json:
    return pod(manifests, "headrace-envoy").container("envoy")


def local_volumes(manifests: Manifests, name: str) -> Json:
    """The annotations of a pod's template."""
    metadata: Json = pod(manifests, f"headrace-{name}").owner["spec"]["template"]["metadata"]
    annotations: Json = metadata.setdefault("annotations", {})
    return annotations


def not_in(manifests: Manifests, name: str) -> list[Json]:
    node: Json = pod(manifests, name).spec["affinity"]["nodeAffinity"]
    (term,) = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    found: list[Json] = term["matchExpressions"]
    return found


def the(manifests: Manifests, kind: str, name: str) -> Json:
    found = manifests.find(kind, name)
    assert found is not None, (kind, name)
    return found


def settings_of_gateways(manifests: Manifests) -> Json:
    found = next(each for each in manifests.of("ConfigMap") if each["metadata"]["name"].startswith("headrace-gateway-"))
    data: Json = found["data"]
    return data


def kafka(manifests: Manifests) -> Json:
    found = next(each for each in manifests.of("ConfigMap") if each["metadata"]["name"].startswith("headrace-kafka-"))
    data: Json = found["data"]
    return data


def hpa(manifests: Manifests) -> Json:
    spec: Json = the(manifests, "HorizontalPodAutoscaler", "headrace-triton")["spec"]
    return spec


def drop(manifests: Manifests, kind: str, name: str) -> None:
    manifests.objects.remove(the(manifests, kind, name))


def reply_rule(manifests: Manifests) -> Json:
    rules = the(manifests, "NetworkPolicy", "callers-and-routers-reach-gateways")["spec"]["ingress"]
    found: Json = next(rule for rule in rules if rule["ports"][0]["port"] == 8003)
    return found


SPOILT: dict[str, tuple[Rule, Spoil]] = {
    "root": (pod_rules.pod_security, lambda m: gateway(m)["securityContext"].pop("capabilities")),
    "a sidecar that writes": (
        pod_rules.pod_security,
        lambda m: triton(m)["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "host path": (
        pod_rules.pod_security,
        lambda m: pod(m, "headrace-triton").spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    "privileged namespace": (pod_rules.namespace, lambda m: the(m, "Namespace", "headrace")["metadata"].pop("labels")),
    "other namespace": (
        pod_rules.namespace,
        lambda m: the(m, "Service", "headrace-gateway")["metadata"].update(namespace="default"),
    ),
    "latest": (pod_rules.images, lambda m: triton(m).update(image="nvcr.io/nvidia/tritonserver:latest")),
    "no digest": (pod_rules.images, lambda m: triton(m).update(image="nvcr.io/nvidia/tritonserver:25.08-py3")),
    "no limits": (pod_rules.resources, lambda m: triton(m)["resources"].pop("limits")),
    "half a GPU": (pod_rules.resources, lambda m: triton(m)["resources"]["requests"].pop("nvidia.com/gpu")),
    "secret in the environment": (
        pod_rules.secrets,
        lambda m: gateway(m)["env"].append(
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "headrace-keys", "key": "k"}}}
        ),
    ),
    "secret's value as a setting": (
        pod_rules.secrets,
        lambda m: gateway(m)["env"].append({"name": "HEADRACE_DATABASE__PASSWORD", "value": "x"}),
    ),
    "secret that nobody makes": (
        pod_rules.secrets,
        lambda m: pod(m, "headrace-gateway").spec["volumes"].append({"name": "x", "secret": {"secretName": "nobodys"}}),
    ),
    "token": (pod_rules.accounts, lambda m: pod(m, "headrace-triton").spec.pop("automountServiceAccountToken")),
    "service links": (pod_rules.accounts, lambda m: pod(m, "headrace-triton").spec.pop("enableServiceLinks")),
    "rights": (
        pod_rules.accounts,
        lambda m: m.objects.append({"kind": "ClusterRole", "metadata": {"name": "all"}}),
    ),
    "version in a selector": (
        pod_rules.labels,
        lambda m: pod(m, "headrace-triton").owner["spec"]["selector"]["matchLabels"].update(version="1"),
    ),
    "two Deployments, one selector": (
        pod_rules.labels,
        lambda m: (
            pod(m, "headrace-envoy")
            .owner["spec"]["selector"]
            .update(matchLabels={"app.kubernetes.io/name": "headrace-gateway"})
        ),
    ),
    "another pool": (
        pod_rules.pools,
        lambda m: (
            pod(m, "headrace-triton")
            .owner["spec"]["template"]["metadata"]["labels"]
            .update({"headrace.dev/pool": "green"})
        ),
    ),
    "port of a Service": (
        pod_rules.ports,
        lambda m: the(m, "Service", "headrace-gateway")["spec"]["ports"][0].update(port=9000),
    ),
    "probe of no port": (pod_rules.ports, lambda m: gateway(m)["livenessProbe"]["httpGet"].update(port="nowhere")),
    "another port": (
        pod_rules.settings_ports,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__GRPC__PORT="9001"),
    ),
    "no such setting": (pod_rules.settings, lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__GRPC__PROT="1")),
    "no such section": (pod_rules.settings, lambda m: kafka(m).update(HEADRACE_GATEWAY_PORT="tcp://10.0.0.1:8001")),
    "bad value": (
        pod_rules.settings,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__DRAIN__GRACE_SECONDS="-1"),
    ),
    "file that is not mounted": (
        pod_rules.settings,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__POLICY_FILE="/etc/headrace/elsewhere/tenants.yaml"),
    ),
    "key that a Secret lacks": (
        pod_rules.settings,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__IDENTITY__KEY_FILE="/etc/headrace/keys/keys.yaml"),
    ),
    "no such map": (pod_rules.config_maps, lambda m: gateway(m)["envFrom"][0]["configMapRef"].update(name="x")),
    "no readiness": (pod_rules.probes, lambda m: gateway(m).pop("readinessProbe")),
    "liveness that asks others": (
        pod_rules.probes,
        lambda m: gateway(m)["livenessProbe"]["httpGet"].update(path="/readyz"),
    ),
    "impatient liveness": (pod_rules.probes, lambda m: triton(m)["livenessProbe"].update(failureThreshold=1)),
    "a pod's whole grace for what hangs": (
        pod_rules.hung,
        lambda m: gateway(m)["livenessProbe"].pop("terminationGracePeriodSeconds"),
    ),
    "the same for what never starts": (
        pod_rules.hung,
        lambda m: triton(m)["startupProbe"].pop("terminationGracePeriodSeconds"),
    ),
    "nearly as long for what hangs": (
        pod_rules.hung,
        lambda m: triton(m)["livenessProbe"].update(terminationGracePeriodSeconds=300),
    ),
    "impatient startup": (pod_rules.tritons, lambda m: triton(m)["startupProbe"].update(failureThreshold=3)),
    "Triton for everybody": (
        pod_rules.tritons,
        lambda m: triton(m)["args"].append("--grpc-address=0.0.0.0"),
    ),
    "Triton as a main container": (
        pod_rules.tritons,
        lambda m: (
            pod(m, "headrace-triton").spec["containers"].append(pod(m, "headrace-triton").spec["initContainers"].pop())
        ),
    ),
    "models that can be written": (
        pod_rules.tritons,
        lambda m: triton(m)["volumeMounts"][0].pop("readOnly"),
    ),
    "no zones": (pod_rules.spread, lambda m: pod(m, "headrace-triton").spec["topologySpreadConstraints"].pop(0)),
    "no budget": (pod_rules.budgets, lambda m: drop(m, "PodDisruptionBudget", "headrace-triton")),
    "scratch that keeps a GPU's node": (pod_rules.evictable, lambda m: local_volumes(m, "triton").clear()),
    "a volume that is not said": (
        pod_rules.evictable,
        lambda m: local_volumes(m, "triton").update({pod_rules.LOCAL_VOLUMES: "models,tmp,triton-tmp"}),
    ),
    "names as people write them": (
        pod_rules.evictable,
        lambda m: local_volumes(m, "triton").update({pod_rules.LOCAL_VOLUMES: "models, tmp, triton-tmp, sync-tmp"}),
    ),
    "a volume that nobody has": (
        pod_rules.evictable,
        lambda m: local_volumes(m, "gateway").update({pod_rules.LOCAL_VOLUMES: "tmp,cache"}),
    ),
    "counts that may go with a node": (
        pod_rules.evictable,
        lambda m: local_volumes(m, "redis").update({pod_rules.LOCAL_VOLUMES: "tmp"}),
    ),
    "a gap in the rollout": (
        pod_rules.rollouts,
        lambda m: pod(m, "headrace-triton").owner["spec"]["strategy"]["rollingUpdate"].update(maxUnavailable=1),
    ),
    "too little grace": (
        grace.fits,
        lambda m: pod(m, "headrace-triton").spec.update(terminationGracePeriodSeconds=335),
    ),
    "too much grace": (
        grace.fits,
        lambda m: pod(m, "headrace-gateway").spec.update(terminationGracePeriodSeconds=900),
    ),
    "Triton that takes its time": (
        grace.fits,
        lambda m: triton(m)["args"].append("--exit-timeout-secs=60"),
    ),
    "an Envoy that waits for nobody": (
        grace.fits,
        lambda m: envoy(m)["lifecycle"]["preStop"]["exec"].update(command=["bash", "/etc/envoy/drain.sh", "60"]),
    ),
    "a longer longest call": (
        grace.nothing_is_cut,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__DEADLINES__MAXIMUM_SECONDS="301"),
    ),
    "no preStop": (grace.is_noticed, lambda m: gateway(m).pop("lifecycle")),
    "no notice": (
        grace.is_noticed,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__DRAIN__NOTICE_SECONDS="9"),
    ),
    "a metric that nobody exports": (
        scaling.exists,
        lambda m: hpa(m)["metrics"][0]["pods"]["metric"].update(name="headrace_router_oldest_wait"),
    ),
    "a target that is not there": (scaling.one_each, lambda m: hpa(m)["scaleTargetRef"].update(name="triton")),
    "replicas in the manifest": (
        scaling.one_each,
        lambda m: pod(m, "headrace-triton").owner["spec"].update(replicas=2),
    ),
    "more pods than partitions": (scaling.within_partitions, lambda m: hpa(m).update(maxReplicas=17)),
    "fewer partitions": (
        scaling.within_partitions,
        lambda m: kafka(m).update(HEADRACE_TOPICS__REQUEST_PARTITIONS="8"),
    ),
    "hasty": (scaling.patient, lambda m: hpa(m)["behavior"]["scaleDown"].update(stabilizationWindowSeconds=60)),
    "all at once": (scaling.patient, lambda m: hpa(m)["behavior"]["scaleDown"]["policies"][0].update(value=5)),
    "blind to what runs": (scaling.sees_what_runs, lambda m: hpa(m)["metrics"].pop()),
    "a certificate that is part of nothing": (
        pod_rules.labels,
        lambda m: the(m, "Certificate", "headrace-gateway-reply")["metadata"]["labels"].clear(),
    ),
    "open pods": (network.denied, lambda m: drop(m, "NetworkPolicy", "nobody-may-anything")),
    "a flow too many": (
        network.flows,
        lambda m: (
            reply_rule(m)["from"].append({"podSelector": {"matchLabels": {"app.kubernetes.io/component": "envoy"}}})
            or the(m, "NetworkPolicy", "anybody-reaches-envoy")["spec"]["egress"][0]["ports"].append({"port": 8003})
        ),
    ),
    "a flow too few": (network.flows, lambda m: reply_rule(m).update(ports=[{"port": 8001}])),
    "a way out": (
        network.outside,
        lambda m: the(m, "NetworkPolicy", "the-aggregator-reaches-kafka-and-the-database")["spec"]["egress"].append(
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": 443}]}
        ),
    ),
    "no names": (
        network.names,
        lambda m: drop(m, "NetworkPolicy", "all-that-name-somebody-reach-dns"),
    ),
}

SPOILT_SLEEPERS: dict[str, tuple[Rule, Spoil]] = {
    "two autoscalers": (
        scaling.one_each,
        lambda m: m.objects.append(
            {
                "kind": "HorizontalPodAutoscaler",
                "metadata": {"name": "x"},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "headrace-triton"}},
            }
        ),
    ),
    "sleep over running calls": (scaling.patient, lambda m: scaled(m).update(cooldownPeriod=30)),
    "another group": (
        scaling.sleeps_soundly,
        lambda m: scaled(m)["triggers"][0]["metadata"].update(consumerGroup="headrace.default"),
    ),
    "no login": (scaling.sleeps_soundly, lambda m: scaled(m)["triggers"][0].pop("authenticationRef")),
    "asleep between short calls": (scaling.sleeps_soundly, lambda m: scaled(m)["triggers"].remove(answered(m))),
    "asleep while few calls are answered": (
        scaling.sleeps_soundly,
        lambda m: answered(m)["metadata"].update(activationThreshold="100"),
    ),
    "pods by the number of answers": (
        scaling.sleeps_soundly,
        lambda m: answered(m)["metadata"].update(threshold="20"),
    ),
    "awake for what was skipped alone": (
        scaling.sleeps_soundly,
        lambda m: answered(m)["metadata"].update(
            query=answered(m)["metadata"]["query"].replace('"answered"', '"expired"')
        ),
    ),
    "refused instead of kept": (
        scaling.sleeps_soundly,
        lambda m: settings_of_gateways(m).update(HEADRACE_GATEWAY__POOL_MAY_SLEEP="false"),
    ),
    "more pods than partitions": (scaling.within_partitions, lambda m: scaled(m).update(maxReplicaCount=17)),
    "a priority that nobody made": (pod_rules.config_maps, lambda m: drop(m, "PriorityClass", "headrace-triton-spot")),
    "longer than the notice": (
        grace.within_the_notice,
        lambda m: pod(m, "headrace-triton").spec.update(terminationGracePeriodSeconds=355),
    ),
    "an Envoy that is on spot nodes for longer than the notice": (
        grace.within_the_notice,
        lambda m: (
            pod(m, "headrace-envoy").spec.pop("affinity")
            and pod(m, "headrace-envoy").spec.update(terminationGracePeriodSeconds=325)
        ),
    ),
    "an Envoy that waits for calls that are cut before": (
        grace.fits,
        lambda m: envoy(m)["lifecycle"]["preStop"]["exec"].update(command=["bash", "/etc/envoy/drain.sh", "300"]),
    ),
    "counts on a spot node": (grace.off_spot, lambda m: pod(m, "headrace-redis").spec.pop("affinity")),
    "connections on one cloud's spot nodes": (
        grace.off_spot,
        lambda m: not_in(m, "headrace-gateway").pop(),
    ),
    "brokers on spot nodes": (
        grace.off_spot,
        lambda m: the(m, "Kafka", "headrace-kafka")["spec"]["kafka"]["template"]["pod"].pop("affinity"),
    ),
    "a node pool that has a template of its own": (
        grace.off_spot,
        lambda m: the(m, "KafkaNodePool", "headrace-brokers")["spec"].update(template={"pod": {}}),
    ),
    "a container that names no broker": (
        scaling.one_each,
        lambda m: scaled(m)["scaleTargetRef"].update(envSourceContainerName="x"),
    ),
}


def scaled(manifests: Manifests) -> Json:
    spec: Json = the(manifests, "ScaledObject", "headrace-triton")["spec"]
    return spec


def answered(manifests: Manifests) -> Json:
    found: Json = next(each for each in scaled(manifests)["triggers"] if each.get("name") == "answered")
    return found


@pytest.mark.parametrize(("rule", "spoil"), SPOILT.values(), ids=SPOILT.keys())
def test_a_spoilt_production_breaks_its_rule(rule: Rule, spoil: Spoil, rendered: Rendered) -> None:
    manifests = _copy(rendered("production"))

    spoil(manifests)

    assert list(rule(Manifests(manifests.name, manifests.objects))) != []


@pytest.mark.parametrize(("rule", "spoil"), SPOILT_SLEEPERS.values(), ids=SPOILT_SLEEPERS.keys())
def test_a_spoilt_spot_production_breaks_its_rule(rule: Rule, spoil: Spoil, rendered: Rendered) -> None:
    manifests = _copy(rendered("production-spot"))

    spoil(manifests)

    assert list(rule(Manifests(manifests.name, manifests.objects))) != []


def test_every_rule_was_seen_to_fail() -> None:
    shown = {rule for rule, _ in (*SPOILT.values(), *SPOILT_SLEEPERS.values())}

    assert {*pod_rules.RULES, *grace.RULES, *scaling.RULES, *network.RULES} <= shown


def _copy(manifests: Manifests) -> Manifests:
    return Manifests(manifests.name, copy.deepcopy(manifests.objects))

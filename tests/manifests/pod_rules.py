"""What must hold for pods and what stands beside them. Each rule gives a sentence for everything that is wrong."""

import re
from collections import Counter
from collections.abc import Iterator

from headrace.runtime.settings import PREFIX, SettingsError
from tests.manifests.effective import load, processes, secret_keys, unmounted
from tests.manifests.rendering import Json, Manifests, Pod

NAME = "app.kubernetes.io/name"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
PART_OF = "app.kubernetes.io/part-of"
POOL = "headrace.dev/pool"
REPLICATED = frozenset({"gateway", "router", "envoy"})
"""Components of which there are several: spread, with a budget, rolled without a gap."""
RESTRICTED_VOLUMES = frozenset(
    {"configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim", "downwardAPI", "csi", "ephemeral"}
)
PROBED_PATHS = {"gateway": ("/livez", "/readyz"), "router": ("/livez", "/readyz"), "aggregator": ("/livez", "/readyz")}
MODELS_SECONDS = 900
"""What large models take to load, at least."""
STATELESS = frozenset({"gateway", "router", "envoy", "aggregator"})
"""Components whose pods have nothing on their nodes' disks but scratch, and copies."""
LOCAL_VOLUMES = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
"""Names, with a comma and nothing else between them."""
DRAIN_SECONDS = 60
"""A pod that is given longer has calls to end."""
HUNG_SECONDS = 15
"""What a process is given to go, at most, that its probe has given up."""


def pod_security(manifests: Manifests) -> Iterator[str]:
    """The Pod Security Standard `restricted`, and a read-only root besides."""
    for pod in manifests.pods:
        context = pod.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True:
            yield f"{pod.name}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{pod.name}: no seccomp profile"
        yield from (f"{pod.name}: {each}" for each in ("hostNetwork", "hostPID", "hostIPC") if pod.spec.get(each))
        for volume in pod.spec.get("volumes", ()):
            if not set(volume) - {"name"} <= RESTRICTED_VOLUMES:
                yield f"{pod.name}: volume {volume['name']} is of a kind that `restricted` refuses"
        for container in pod.containers:
            yield from (f"{pod.name}/{container['name']}: {wrong}" for wrong in _container_security(context, container))


def _container_security(pod: Json, container: Json) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("allowPrivilegeEscalation") is not False:
        yield "may escalate"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "may write its image"
    if own.get("privileged") or own.get("runAsNonRoot") is False:
        yield "privileged or root"
    if own.get("capabilities") != {"drop": ["ALL"]}:
        yield "keeps capabilities"
    if not own.get("runAsUser", pod.get("runAsUser", 0)):
        yield "no user of its own"
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "a port of the host"


def namespace(manifests: Manifests) -> Iterator[str]:
    """All in one, which refuses pods that are not `restricted`."""
    for each in manifests.of("Namespace"):
        if each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace takes pods that are not restricted"
    for each in manifests.objects:
        if each["kind"] in {"Namespace", "PriorityClass", "PersistentVolume"}:
            continue
        if each["metadata"].get("namespace") != "headrace":
            yield f"{each['kind']}/{each['metadata']['name']}: in no namespace or another one"


def images(manifests: Manifests) -> Iterator[str]:
    """A version each, and a digest wherever more than one person depends on it."""
    for pod in manifests.pods:
        for container in pod.containers:
            image = container["image"]
            path, _, digest = image.partition("@")
            tag = path.rpartition("/")[2].partition(":")[2]
            if not tag or "latest" in tag:
                yield f"{pod.name}/{container['name']}: {image} has no version"
            if not manifests.name.startswith("local") and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                yield f"{pod.name}/{container['name']}: {image} has no digest"


def resources(manifests: Manifests) -> Iterator[str]:
    """Requests and limits of CPU and memory, and a bound for every scratch volume."""
    for pod in manifests.pods:
        for container in pod.containers:
            said = container.get("resources", {})
            for kind in ("requests", "limits"):
                if not {"cpu", "memory"} <= set(said.get(kind, ())):
                    yield f"{pod.name}/{container['name']}: lacks {kind}"
            if said.get("requests", {}).get("nvidia.com/gpu") != said.get("limits", {}).get("nvidia.com/gpu"):
                yield f"{pod.name}/{container['name']}: a GPU's request and limit differ"
        for volume in pod.spec.get("volumes", ()):
            # The base's models are empty: nothing is written there.
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"] and volume["name"] != "models":
                yield f"{pod.name}: {volume['name']} has no bound"


def secrets(manifests: Manifests) -> Iterator[str]:  # noqa: C901  a list of looks, none of which depends on another
    """Files, read-only, and never in an environment."""
    for pod in manifests.pods:
        kept = {each["name"] for each in pod.spec.get("volumes", ()) if "secret" in each}
        for container in pod.containers:
            where = f"{pod.name}/{container['name']}"
            if any("secretRef" in source for source in container.get("envFrom", ())):
                yield f"{where}: a Secret as environment"
            for entry in container.get("env", ()):
                if "secretKeyRef" in entry.get("valueFrom", {}):
                    yield f"{where}: {entry['name']} is a Secret's value"
            for name in manifests.environment(container):
                if re.search(r"PASSWORD|SECRET|TOKEN(?!_ISSUERS)", name) and not re.search(
                    r"_FILE$|__ALLOW_SECRET_WITHOUT_TLS$", name
                ):
                    yield f"{where}: {name} is no file"
            for mount in container.get("volumeMounts", ()):
                if mount["name"] in kept and (not mount.get("readOnly") or "subPath" in mount):
                    yield f"{where}: {mount['mountPath']} can be written, or never follows its Secret"
        for volume in pod.spec.get("volumes", ()):
            if "secret" in volume and secret_keys(manifests, volume["secret"]["secretName"]) is None:
                yield f"{pod.name}: nobody makes the Secret {volume['secret']['secretName']}"


def accounts(manifests: Manifests) -> Iterator[str]:
    """An account each, without a token and without rights; and no variables of Services, which would be settings."""
    for pod in manifests.pods:
        account = manifests.find("ServiceAccount", pod.spec.get("serviceAccountName", ""))
        if account is None:
            yield f"{pod.name}: no account of its own"
        elif account.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: its account gives out tokens"
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.name}: takes a token"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.name}: gets HEADRACE_… variables of Services, which the processes refuse"
    for each in manifests.of("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
        yield f"{each['kind']}/{each['metadata']['name']}: nobody needs rights"


def labels(manifests: Manifests) -> Iterator[str]:
    """Everything is part of Headrace; what makes pods finds its own and nobody else's."""
    selectors: Counter[tuple[tuple[str, str], ...]] = Counter()
    for each in manifests.objects:
        if each["metadata"].get("labels", {}).get(PART_OF) != "headrace":
            yield f"{each['kind']}/{each['metadata']['name']}: part of nothing"
    for pod in manifests.pods:
        if not {NAME, COMPONENT, PART_OF} <= set(pod.labels):
            yield f"{pod.name}: its pods lack labels"
        if pod.owner["metadata"].get("labels", {}).get(COMPONENT) != pod.component:
            yield f"{pod.name}: labelled otherwise than its pods"
        if pod.owner["kind"] == "Job":
            continue
        chosen = pod.owner["spec"]["selector"]["matchLabels"]
        selectors[tuple(sorted(chosen.items()))] += 1
        if not set(chosen) <= {NAME, INSTANCE}:
            yield f"{pod.name}: its selector can't stay as it is"
        if not chosen.items() <= pod.labels.items():
            yield f"{pod.name}: does not select its own pods"
        others = [each.name for each in manifests.pods if each is not pod and chosen.items() <= each.labels.items()]
        if others:
            yield f"{pod.name}: selects pods of {', '.join(others)}"
    yield from (f"{dict(each)} selects for several" for each, count in selectors.items() if count > 1)


def pools(manifests: Manifests) -> Iterator[str]:
    """The label that metrics go by is the pool that the process serves."""
    for pod, container, process in processes(manifests):
        if process == "aggregator":
            continue
        served = manifests.environment(container).get("HEADRACE_POOL__NAME")
        if pod.labels.get(POOL) != served:
            yield f"{pod.name}: labelled {pod.labels.get(POOL)}, and serves {served}"


def ports(manifests: Manifests) -> Iterator[str]:  # noqa: C901  a list of looks, none of which depends on another
    """Named, each once in a pod; probes and Services name such that there are."""
    for pod in manifests.pods:
        named = [port for container in pod.lasting for port in container.get("ports", ())]
        names = Counter(port.get("name") for port in named) + Counter(port["containerPort"] for port in named)
        yield from (
            f"{pod.name}: port {each} twice, or without a name" for each, n in names.items() if n > 1 or not each
        )
        for container in pod.lasting:
            own = {port["name"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                for how in ("httpGet", "tcpSocket"):
                    if how in probe and probe[how]["port"] not in own:
                        yield f"{pod.name}/{container['name']}: {kind} asks a port that it does not name"
    for service in manifests.of("Service"):
        name, chosen = service["metadata"]["name"], service["spec"]["selector"]
        behind = [pod for pod in manifests.pods if chosen.items() <= pod.labels.items()]
        if not behind:
            yield f"Service/{name}: nobody is behind it"
        for pod in behind:
            there = {p["name"]: p["containerPort"] for c in pod.lasting for p in c.get("ports", ())}
            for port in service["spec"]["ports"]:
                if there.get(port["targetPort"]) != port["port"]:
                    yield f"Service/{name}: {port['targetPort']} is not {port['port']} at {pod.name}"


def settings_ports(manifests: Manifests) -> Iterator[str]:
    """A container's ports are those that its process listens on."""
    for pod, container, process in processes(manifests):
        declared = {port["name"]: port["containerPort"] for port in container["ports"]}
        own = getattr(load(process, manifests.environment(container)), process)
        # A router has a section `reply` too, and dials there.
        sections = {name: getattr(own, name, None) for name in ("grpc", "admin", "reply")}
        listens = {name: port for name, said in sections.items() if (port := getattr(said, "port", None)) is not None}
        if declared != listens:
            yield f"{pod.name}: declares {declared}, listens on {listens}"


def settings(manifests: Manifests) -> Iterator[str]:
    """Every process starts with what its pod is told, and finds each file that it is told of."""
    for pod, container, process in processes(manifests):
        environment = manifests.environment(container)
        try:
            load(process, environment)
        except SettingsError as exc:
            yield from (f"{pod.name}: {line}" for line in str(exc).splitlines())
        for name, value in environment.items():
            if name.startswith(PREFIX) and value.startswith("/etc/headrace/"):
                wrong = unmounted(manifests, pod, container, value)
                if wrong is not None:
                    yield f"{pod.name}: {name}={wrong}"


def config_maps(manifests: Manifests) -> Iterator[str]:
    """Whatever is mounted or read from is there, by its whole name."""
    for pod in manifests.pods:
        wanted = {
            *(volume["configMap"]["name"] for volume in pod.spec.get("volumes", ()) if "configMap" in volume),
            *(source["configMapRef"]["name"] for c in pod.containers for source in c.get("envFrom", ())),
            *(
                entry["valueFrom"]["configMapKeyRef"]["name"]
                for c in pod.containers
                for entry in c.get("env", ())
                if "configMapKeyRef" in entry.get("valueFrom", {})
            ),
        }
        for name in sorted(wanted):
            # Who may what is an overlay's to say.
            if manifests.find("ConfigMap", name) is None and name != "headrace-policy":
                yield f"{pod.name}: there is no ConfigMap {name}"
        for volume in pod.spec.get("volumes", ()):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and manifests.find("PersistentVolumeClaim", claim) is None:
                yield f"{pod.name}: there is no claim {claim}"
        mounts = [(c["name"], mount["name"]) for c in pod.containers for mount in c.get("volumeMounts", ())]
        claims = pod.owner["spec"].get("volumeClaimTemplates", ())
        there = {volume["name"] for volume in pod.spec.get("volumes", ())} | {
            each["metadata"]["name"] for each in claims
        }
        yield from (f"{pod.name}/{name}: there is no volume {volume}" for name, volume in mounts if volume not in there)
        priority = pod.spec.get("priorityClassName")
        if priority is not None and manifests.find("PriorityClass", priority) is None:
            yield f"{pod.name}: there is no priority {priority}"


def probes(manifests: Manifests) -> Iterator[str]:
    """Startup and liveness for all that lasts, readiness for what serves; liveness asks the process alone."""
    for pod in manifests.pods:
        for container in pod.lasting:
            where = f"{pod.name}/{container['name']}"
            wanted = ["startupProbe", "livenessProbe"]
            if container not in pod.sidecars:
                wanted.append("readinessProbe")
            yield from (f"{where}: no {each}" for each in wanted if each not in container)
            if "exec" in container.get("livenessProbe", {}):
                yield f"{where}: liveness may ask more than the process"
            live, ready = PROBED_PATHS.get(container["name"], (None, None))
            for kind, path in (("startupProbe", live), ("livenessProbe", live), ("readinessProbe", ready)):
                if path is not None and container.get(kind, {}).get("httpGet", {}).get("path") != path:
                    yield f"{where}: {kind} does not ask {path}"
            if _seconds(container.get("livenessProbe", {})) < 30:
                yield f"{where}: killed too soon"


def hung(manifests: Manifests) -> Iterator[str]:
    """What hangs ends no calls: the kubelet does not wait for it as if it drained."""
    for pod in manifests.pods:
        given = pod.spec.get("terminationGracePeriodSeconds", 30)
        if given <= DRAIN_SECONDS:
            continue
        for container in pod.lasting:
            for kind in ("startupProbe", "livenessProbe"):
                seconds = container.get(kind, {}).get("terminationGracePeriodSeconds", given)
                if seconds > HUNG_SECONDS:
                    yield f"{pod.name}/{container['name']}: what its {kind} gives up may hang for {seconds} s more"


def tritons(manifests: Manifests) -> Iterator[str]:  # noqa: C901  a list of looks, none of which depends on another
    """A native sidecar before the router, patient with its models, that nobody but the router reaches."""
    for pod in manifests.pods:
        if pod.component != "router":
            continue
        triton = next((each for each in pod.sidecars if each["name"] == "triton"), None)
        if triton is None:
            yield f"{pod.name}: Triton is no native sidecar"
            continue
        if [each["name"] for each in pod.spec["containers"]] != ["router"]:
            yield f"{pod.name}: the router is not the main container"
        if pod.spec["initContainers"][-1] is not triton:
            yield f"{pod.name}: something comes between Triton and the router"
        if _seconds(triton["startupProbe"]) < MODELS_SECONDS:
            yield f"{pod.name}: Triton is killed while it loads its models"
        options = dict(each.removeprefix("--").split("=", 1) for each in triton["args"])
        if options.get("model-control-mode") != "explicit" or options.get("load-model") != "*":
            yield f"{pod.name}: Triton is not in explicit mode, or does not load what there is"
        if options.get("exit-on-error") != "true":
            yield f"{pod.name}: a rollout to models that do not load goes on to its end"
        if {options.get("grpc-address"), options.get("http-address")} != {"127.0.0.1"}:
            yield f"{pod.name}: Triton can be reached from elsewhere"
        router = manifests.environment(pod.container("router"))
        if router.get("HEADRACE_ROUTER__TRITON__ADDRESS") != f"127.0.0.1:{options.get('grpc-port')}":
            yield f"{pod.name}: the router looks for Triton elsewhere"
        metrics = {port["name"]: str(port["containerPort"]) for port in triton["ports"]}
        if metrics != {"metrics": options.get("metrics-port")}:
            yield f"{pod.name}: Triton's metrics are elsewhere"
        models = [m for m in triton["volumeMounts"] if m["mountPath"].startswith(options.get("model-repository", "?"))]
        if not models or not all(mount.get("readOnly") for mount in models):
            yield f"{pod.name}: Triton may write its models, or has none"


def spread(manifests: Manifests) -> Iterator[str]:
    """Over zones and nodes, softly: with one gone, the rest takes its pods."""
    for pod in _replicated(manifests):
        found = {each["topologyKey"]: each for each in pod.spec.get("topologySpreadConstraints", ())}
        if set(found) != {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}:
            yield f"{pod.name}: not spread over zones and nodes"
        for each in found.values():
            if each["labelSelector"]["matchLabels"] != pod.owner["spec"]["selector"]["matchLabels"]:
                yield f"{pod.name}: spread among others"
            if each["whenUnsatisfiable"] != "ScheduleAnyway" or each.get("matchLabelKeys") != ["pod-template-hash"]:
                yield f"{pod.name}: can't be placed with a zone gone, or counts old pods"


def budgets(manifests: Manifests) -> Iterator[str]:
    """One for each that has several pods, over exactly these, one at a time."""
    budgets = manifests.of("PodDisruptionBudget")
    for pod in _replicated(manifests):
        chosen = pod.owner["spec"]["selector"]["matchLabels"]
        own = [each for each in budgets if each["spec"]["selector"]["matchLabels"].items() <= pod.labels.items()]
        if len(own) != 1 or own[0]["spec"]["selector"]["matchLabels"] != chosen:
            yield f"{pod.name}: has {len(own)} budgets, or one of other pods"
        elif own[0]["spec"].get("maxUnavailable") != 1:
            yield f"{pod.name}: several may go at once, or none"
        elif own[0]["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{pod.name}: a pod that never got ready holds up a drain"
    for each in budgets:
        chosen = each["spec"]["selector"]["matchLabels"]
        if not any(chosen.items() <= pod.labels.items() for pod in manifests.pods):
            yield f"PodDisruptionBudget/{each['metadata']['name']}: of nobody"


def evictable(manifests: Manifests) -> Iterator[str]:
    """A node is never kept for what a stateless pod has on its disk, and never taken for what another pod has."""
    for pod in manifests.pods:
        said = pod.owner["spec"]["template"]["metadata"].get("annotations", {}).get(LOCAL_VOLUMES)
        if pod.component not in STATELESS:
            if said is not None:
                yield f"{pod.name}: its node may be taken, and what it keeps there"
            continue
        named = set() if said is None else set(said.split(","))
        volumes = pod.spec.get("volumes", ())
        # What is in memory holds up nobody.
        on_disk = {v["name"] for v in volumes if "emptyDir" in v and v["emptyDir"].get("medium") != "Memory"}
        yield from (f"{pod.name}: its {each} keeps its node" for each in sorted(on_disk - named))
        # An overlay may put something else in the place of a scratch volume.
        gone = named - {v["name"] for v in volumes}
        yield from (f"{pod.name}: has no volume {each}, whose loss it allows" for each in sorted(gone))


def rollouts(manifests: Manifests) -> Iterator[str]:
    """A new pod first, then an old one goes."""
    for pod in _replicated(manifests):
        rolling = pod.owner["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0 or not rolling.get("maxSurge"):
            yield f"{pod.name}: an old pod goes before a new one is ready"
        for triton in (each for each in pod.sidecars if each["name"] == "triton"):
            if pod.owner["spec"].get("progressDeadlineSeconds", 600) <= _seconds(triton["startupProbe"]):
                yield f"{pod.name}: a rollout counts as failed while models load"


def _replicated(manifests: Manifests) -> list[Pod]:
    return [pod for pod in manifests.pods if pod.component in REPLICATED]


def _seconds(probe: Json) -> int:
    return int(probe.get("periodSeconds", 10)) * int(probe.get("failureThreshold", 3))


RULES = (
    pod_security,
    namespace,
    images,
    resources,
    secrets,
    accounts,
    labels,
    pools,
    ports,
    settings_ports,
    settings,
    config_maps,
    probes,
    hung,
    tritons,
    spread,
    budgets,
    evictable,
    rollouts,
)

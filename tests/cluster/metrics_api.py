"""A metrics API server: what autoscalers ask, answered from loads that the tests make up.

It serves all three groups behind the API server's aggregator, as metrics-server and prometheus-adapter do: resources,
metrics of pods, and external ones. What a pod measures is its share of the load, so the loop is closed: more pods, less
for each.
"""

import base64
import json
import re
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from headrace.local.ports import FreePorts
from tests.acceptance.eventually import eventually
from tests.cluster.certificates import LOOPBACK
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kubectl import Document
from tests.cluster.scaling import Load

SERVICE = "headrace-test-metrics"
NAMESPACE = "kube-system"
AVAILABLE_SECONDS = 60.0

RESOURCES = "metrics.k8s.io/v1beta1"
CUSTOM = "custom.metrics.k8s.io/v1beta2"
EXTERNAL = "external.metrics.k8s.io/v1beta1"
SERVED = {
    RESOURCES: ("pods", "PodMetrics"),
    CUSTOM: ("pods/any", "MetricValueList"),
    EXTERNAL: ("any", "ExternalMetricValueList"),
}

Pods = Callable[[str, str], list[Document]]
"""The pods of a namespace that a label selector finds."""


@dataclass
class Scaled:
    """What one autoscaler looks at: its pods by their labels, the target of each of its metrics, and the load."""

    labels: dict[str, str]
    targets: dict[str, float]
    load: Load = field(default_factory=Load)
    away: set[str] = field(default_factory=set)
    """Metrics that nobody measures at the moment."""
    looks: list[float] = field(default_factory=list)
    """When it was looked at."""

    @classmethod
    def by(cls, autoscaler: Document, labels: dict[str, str]) -> "Scaled":
        """From the autoscaler's own text. Utilisation counts in hundredths of what was asked for."""
        targets: dict[str, float] = {}
        for metric in autoscaler["spec"]["metrics"]:
            match metric["type"]:
                case "Resource":
                    found = metric["resource"]
                    targets[found["name"]] = found["target"]["averageUtilization"] / 100
                case "Pods":
                    targets[metric["pods"]["metric"]["name"]] = quantity(metric["pods"]["target"]["averageValue"])
                case "External":
                    found = metric["external"]
                    targets[found["metric"]["name"]] = quantity(found["target"]["averageValue"])
                case kind:
                    raise NotImplementedError(f"no load is made for metrics of the kind {kind}")
        return cls(labels, targets)

    def unwatched(self, begin: float, end: float) -> float:
        """The longest time between the two moments in which nobody looked."""
        looks = [begin, *(at for at in self.looks if begin < at < end), end]
        return max(after - before for before, after in pairwise(looks))


def quantity(text: object) -> float:
    """A Kubernetes quantity, as far as autoscalers' targets go."""
    match = re.fullmatch(r"([0-9.]+)(m|k|M|Mi|Gi|)", str(text))
    if match is None:
        raise ValueError(f"not a quantity that is known here: {text!r}")
    return float(match[1]) * {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "Mi": 2**20, "Gi": 2**30}[match[2]]


@dataclass
class Metrics:
    """Everything that is measured, by namespace."""

    pods: Pods
    scaled: dict[str, list[Scaled]] = field(default_factory=dict)

    def answer(self, path: str, query: dict[str, list[str]]) -> Document | None:
        """What the API answers to a path; None where there is nothing."""
        for version, (resource, kind) in SERVED.items():
            if path == f"/apis/{version}":
                return _resources(version, resource, kind)
        selector = query.get("labelSelector", [""])[0]
        # client-go escapes the star of pods/*, so the path was unescaped before.
        if found := re.fullmatch(rf"/apis/{CUSTOM}/namespaces/([^/]+)/pods/\*/([^/]+)", path):
            return self._custom(found[1], found[2], selector)
        if found := re.fullmatch(rf"/apis/{RESOURCES}/namespaces/([^/]+)/pods", path):
            return self._resource(found[1], selector)
        if found := re.fullmatch(rf"/apis/{EXTERNAL}/namespaces/([^/]+)/([^/]+)", path):
            return self._external(found[1], found[2])
        return None

    def _custom(self, namespace: str, metric: str, selector: str) -> Document:
        scaled, pods = self._found(namespace, selector)
        items = [
            {
                "describedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": _name(pod)},
                "metric": {"name": metric},
                "timestamp": _now(),
                "value": _milli(scaled.targets[metric] * scaled.load.share(len(pods))),
            }
            for pod in pods
            if scaled is not None and metric in scaled.targets and metric not in scaled.away
        ]
        return {"apiVersion": CUSTOM, "kind": "MetricValueList", "metadata": {}, "items": items}

    def _resource(self, namespace: str, selector: str) -> Document:
        scaled, pods = self._found(namespace, selector)
        items = [
            {
                "metadata": {"name": _name(pod), "namespace": namespace, "labels": pod["metadata"]["labels"]},
                "timestamp": _now(),
                "window": "1s",
                "containers": [_used(container, scaled, len(pods)) for container in _containers(pod)],
            }
            for pod in pods
            if scaled is not None and "cpu" not in scaled.away
        ]
        return {"apiVersion": RESOURCES, "kind": "PodMetricsList", "metadata": {}, "items": items}

    def _external(self, namespace: str, metric: str) -> Document:
        items = [
            {
                "metricName": metric,
                "metricLabels": {},
                "timestamp": _now(),
                "value": _milli(scaled.targets[metric] * scaled.load.wanted()),
            }
            for scaled in self.scaled.get(namespace, [])
            if metric in scaled.targets and metric not in scaled.away
        ]
        return {"apiVersion": EXTERNAL, "kind": "ExternalMetricValueList", "metadata": {}, "items": items}

    def _found(self, namespace: str, selector: str) -> tuple[Scaled | None, list[Document]]:
        labels = dict(pair.split("=", 1) for pair in selector.split(",") if "=" in pair)
        for scaled in self.scaled.get(namespace, []):
            if scaled.labels == labels:
                scaled.looks.append(time.monotonic())
                return scaled, self.pods(namespace, selector)
        return None, []


def _used(container: Document, scaled: Scaled, pods: int) -> Document:
    asked = container["resources"]["requests"]
    shares = {name: scaled.targets.get(name, 0.0) * scaled.load.share(pods) for name in ("cpu", "memory")}
    return {
        "name": container["name"],
        "usage": {name: _milli(quantity(asked[name]) * share) for name, share in shares.items()},
    }


def _containers(pod: Document) -> list[Document]:
    sidecars = [one for one in pod["spec"].get("initContainers", []) if one.get("restartPolicy") == "Always"]
    return [*pod["spec"]["containers"], *sidecars]


def _resources(version: str, name: str, kind: str) -> Document:
    resource = {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get", "list"]}
    return {"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": version, "resources": [resource]}


def _name(pod: Document) -> str:
    name: str = pod["metadata"]["name"]
    return name


def _milli(value: float) -> str:
    return f"{round(value * 1000)}m"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, metrics: Metrics, context: ssl.SSLContext) -> None:
        self.metrics = metrics
        super().__init__((LOOPBACK, port), _Handler)
        # Hands are shaken in the connection's own thread, by its first read.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        asked = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(asked.path).rstrip("/")
        answer = self.server.metrics.answer(path, urllib.parse.parse_qs(asked.query))
        status = 200
        if answer is None:
            status = 404
            answer = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "NotFound", "code": status}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class calls it so
        """Nobody reads a log of requests."""


@contextmanager
def serving(control_plane: ControlPlane, metrics: Metrics) -> Iterator[None]:
    """Serve, behind the cluster's aggregator."""
    port = FreePorts(LOOPBACK).take()
    pair = control_plane.authority.server("metrics", f"{SERVICE}.{NAMESPACE}.svc")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    server = _Server(port, metrics, context)
    thread = threading.Thread(target=server.serve_forever, name="metrics API", daemon=True)
    thread.start()
    kubectl = control_plane.kubectl()
    documents = list(_registration(port, control_plane.authority.certificate.read_bytes()))
    try:
        kubectl.apply(documents)
        for version in SERVED:
            group, _, number = version.partition("/")
            kubectl.run(
                "wait", "--for=condition=Available", f"apiservice/{number}.{group}", f"--timeout={AVAILABLE_SECONDS}s"
            )
        eventually(
            lambda: kubectl.attempt("get", "--raw", f"/apis/{CUSTOM}").returncode == 0,
            seconds=AVAILABLE_SECONDS,
            what="the aggregator passes requests on",
        )
        yield
    finally:
        for document in documents:
            kubectl.attempt("delete", document["kind"], document["metadata"]["name"], f"--namespace={NAMESPACE}")
        server.shutdown()
        server.server_close()
        thread.join()


def _registration(port: int, authority: bytes) -> Iterator[Document]:
    """An endpoint on loopback is refused, a name that leads there is not."""
    yield {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port, "protocol": "TCP"}]},
    }
    for served in SERVED:
        group, _, version = served.partition("/")
        yield {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"{version}.{group}"},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": base64.b64encode(authority).decode(),
                "service": {"name": SERVICE, "namespace": NAMESPACE, "port": port},
            },
        }

"""Prometheus' discovery of pods, for a Prometheus that was built without it, as Debian's is.

Runs beside it, and answers http_sd with the targets and labels that `kubernetes_sd_configs` with the role `pod` has,
as far as our scrape configuration reads them: a target for each port of each container.
"""

import json
import os
import ssl
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = f"https://{os.environ.get('KUBERNETES_SERVICE_HOST')}:{os.environ.get('KUBERNETES_SERVICE_PORT')}/api/v1/pods"


def targets(pods: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One for each port, with what is known of its pod."""
    for pod in pods:
        address = pod["status"].get("podIP")
        if address is None:
            continue
        labels = {
            "__meta_kubernetes_namespace": pod["metadata"]["namespace"],
            "__meta_kubernetes_pod_name": pod["metadata"]["name"],
            "__meta_kubernetes_pod_phase": pod["status"]["phase"],
        }
        for name, value in pod["metadata"].get("labels", {}).items():
            labels["__meta_kubernetes_pod_label_" + "".join(c if c.isalnum() else "_" for c in name)] = value
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            for port in container.get("ports", ()):
                yield {
                    "targets": [f"{address}:{port['containerPort']}"],
                    "labels": {**labels, "__meta_kubernetes_pod_container_port_name": port.get("name", "")},
                }


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        token = (ACCOUNT / "token").read_text()
        request = urllib.request.Request(API, headers={"authorization": f"Bearer {token}"})
        trusting = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        with urllib.request.urlopen(request, timeout=10, context=trusting) as answer:  # noqa: S310  of the cluster
            body = json.dumps([*targets(json.load(answer)["items"])]).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", 8080), Answers).serve_forever()

#!/usr/bin/env python3
"""Writes this component's Envoy configuration, and a TLS one for `components/envoy-tls`, from that of `headrace up`.

    .venv/bin/python deploy/k8s/components/envoy/generate.py

One source for both, so that REST behaves in a cluster as on a laptop; a test fails where the files are not what this
gives. What differs is where the gateways are found, where the descriptors lie, a port for probes and metrics, and TLS.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from headrace.bus.settings import TopicSettings
from headrace.local.envoy import configuration, descriptors

HERE = Path(__file__).parent
PLAIN = HERE / "envoy.json"
TLS = HERE.parent / "envoy-tls" / "envoy.json"
BINARY = HERE / "rest.binpb"

REST_PORT, GRPC_PORT, OPS_PORT, ADMIN_PORT = 8000, 8001, 8006, 9901
GATEWAYS = "headrace-gateway-headless.headrace.svc.cluster.local"
GATEWAY_NAME = "headrace-gateway.headrace.svc.cluster.local"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"

Json = dict[str, Any]  # Any: a JSON object


def envoy(*, tls: bool) -> Json:
    """The whole configuration."""
    made = configuration(
        host="0.0.0.0",  # noqa: S104  a server in a pod
        port=REST_PORT,
        admin_port=ADMIN_PORT,
        gateways=[(GATEWAYS, GRPC_PORT)],
        max_message_bytes=TopicSettings().max_message_bytes,
    )
    static = made["static_resources"]
    (listener,), (cluster,) = static["listeners"], static["clusters"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for each in manager["http_filters"]:
        if each["name"].endswith("grpc_json_transcoder"):
            each["typed_config"]["proto_descriptor"] = f"/etc/envoy/{BINARY.name}"
    # Pods come and go: all addresses behind the name, asked anew every second, each balanced by itself.
    cluster |= {"type": "STRICT_DNS", "dns_refresh_rate": "1s", "dns_lookup_family": "ALL"}
    # Drained when told to, and not whenever a listener changes: connections are asked to go while calls end.
    manager["drain_timeout"] = "10s"
    if tls:
        listener["filter_chains"][0]["transport_socket"] = _downstream()
        cluster["transport_socket"] = _upstream()
    # What drain.sh asks for besides: the port is on loopback, and lets nothing through but these.
    allowed = made["admin"].setdefault("allow_paths", [{"prefix": "/ready"}, {"prefix": "/stats"}])
    allowed.append({"prefix": "/drain_listeners"})
    static["listeners"].append(_ops())
    static["clusters"].append(_self())
    return made


def write() -> None:
    """Write all three files."""
    for path, tls in ((PLAIN, False), (TLS, True)):
        path.write_text(text(tls=tls), encoding="utf-8")
    shutil.copyfile(descriptors(), BINARY)


def text(*, tls: bool) -> str:
    """The configuration as the file has it."""
    return json.dumps(envoy(tls=tls), indent=1) + "\n"


def _downstream() -> Json:
    files = {"certificate_chain": {"filename": "/etc/headrace/tls/tls.crt"}}
    files["private_key"] = {"filename": "/etc/headrace/tls/tls.key"}
    common = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [files]}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{_TLS}.DownstreamTlsContext", "common_tls_context": common},
    }


def _upstream() -> Json:
    known = {"san_type": "DNS", "matcher": {"exact": GATEWAY_NAME}}
    checks = {"trusted_ca": {"filename": "/etc/headrace/tls/ca.crt"}, "match_typed_subject_alt_names": [known]}
    common = {"alpn_protocols": ["h2"], "validation_context": checks}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{_TLS}.UpstreamTlsContext",
            "sni": GATEWAY_NAME,
            "common_tls_context": common,
        },
    }


def _ops() -> Json:
    """Readiness and metrics of the admin port alone: the rest of it can stop Envoy, and stays on loopback."""
    routes = [{"match": {"path": path}, "route": {"cluster": "self"}} for path in ("/ready", "/stats/prometheus")]
    return {
        "name": "ops",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": OPS_PORT}},  # noqa: S104  in a pod
        # Probes and scrapes go on while callers' listener drains.
        "drain_type": "MODIFY_ONLY",
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "http",
                        "typed_config": {
                            "@type": _MANAGER,
                            "stat_prefix": "ops",
                            "route_config": {
                                "virtual_hosts": [{"name": "self", "domains": ["*"], "routes": routes}],
                            },
                            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
                        },
                    }
                ]
            }
        ],
    }


def _self() -> Json:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN_PORT}}
    return {
        "name": "self",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "self",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


if __name__ == "__main__":
    write()

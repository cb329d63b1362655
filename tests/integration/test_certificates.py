"""Callers with certificates, on the port of a whole gateway that has no broker: every kind of call, before its body."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from tritonclient.grpc import service_pb2 as oip

from gateway.app import Gateway
from gateway.settings import (
    AdminSettings,
    GatewaySection,
    GatewaySettings,
    GrpcSettings,
    IdentitySettings,
    Provider,
    ReplySettings,
)
from headrace.bus.protocols import RouterKey
from headrace.bus.settings import KafkaSettings, ReplyTrustSettings
from tests.unit.gateway.announcing import GATEWAY, description, heartbeat
from tests.unit.gateway.certifying import DAY, Authority, Certificate, dns, email, uri

LOOPBACK = "127.0.0.1"
PATIENCE_SECONDS = 30.0
SERVICE = "/inference.GRPCInferenceService"
KEY = (("x-api-key", "hr_ops_s3cret"),)
Sent = tuple[tuple[str, str], ...]
ACME, HIDDEN = uri("spiffe://example.org/acme/x"), uri("spiffe://example.org/hidden")
POLICY = """\
tenants:
  acme: {models: [simple], certificates: ["spiffe://example.org/acme/*", billing.acme.example]}
  hidden: {models: [other], certificates: ["spiffe://example.org/hidden", other.example]}
  ops: {models: ["*"]}
"""
INFER = oip.ModelInferRequest(model_name="simple").SerializeToString()
METADATA = oip.ModelMetadataRequest(name="simple").SerializeToString()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@dataclass(frozen=True)
class Port:
    """A gateway's port."""

    gateway: Gateway
    authority: Authority
    policy: Path

    def channel(self, certificate: Certificate | None) -> grpc.aio.Channel:
        """A caller's connection."""
        shown = (None, None) if certificate is None else (certificate.key, certificate.chain)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, *shown)
        return grpc.aio.secure_channel(f"{LOOPBACK}:{self.gateway._port}", credentials)

    async def says(
        self, certificate: Certificate | None, method: str = "ServerLive", request: bytes = b"", metadata: Sent = ()
    ) -> str:
        """`OK`, or the reason of the refusal; a code of gRPC's own where there is none."""
        async with self.channel(certificate) as channel:
            return await outcome(call(channel, method, request, metadata))


def call(
    channel: grpc.aio.Channel, method: str, request: bytes = b"", metadata: Sent = ()
) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
    path = method if method.startswith("/") else f"{SERVICE}/{method}"
    made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
    return made(request, metadata=metadata, timeout=PATIENCE_SECONDS)


async def outcome(
    made: "grpc.aio.UnaryUnaryCall[bytes, bytes] | grpc.aio.StreamUnaryCall[bytes, bytes]",
) -> str:
    try:
        await made
    except grpc.aio.AioRpcError as error:
        for name, value in error.trailing_metadata():
            info = ErrorInfo()
            if name == "grpc-status-details-bin" and isinstance(value, bytes):
                assert Status.FromString(value).details[0].Unpack(info)
                return info.reason
        return error.code().name
    return "OK"


@asynccontextmanager
async def opened(authority: Authority, folder: Path, *order: Provider) -> AsyncIterator[Port]:
    server = authority.server()
    digest = hashlib.sha256(b"s3cret").hexdigest()
    files = {
        "secret": b"shared",
        "policy.yaml": POLICY.encode(),
        "keys.toml": f'[keys.ops]\ntenant = "ops"\nroles = ["admin"]\nsecret_sha256 = "{digest}"\n'.encode(),
        "server.crt": server.chain,
        "server.key": server.key,
        "callers.pem": authority.pem,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    gateway = Gateway(
        GatewaySettings(
            kafka=KafkaSettings(bootstrap_servers=f"{LOOPBACK}:1"),
            reply_trust=ReplyTrustSettings(secret_file=folder / "secret"),
            gateway=GatewaySection(
                id=GATEWAY,
                grpc=GrpcSettings(
                    host=LOOPBACK,
                    port=0,
                    tls_certificate_file=folder / "server.crt",
                    tls_key_file=folder / "server.key",
                    tls_client_ca_file=folder / "callers.pem",
                ),
                reply=ReplySettings(host=LOOPBACK, port=0),
                admin=AdminSettings(host=LOOPBACK, port=0),
                identity=IdentitySettings(key_file=folder / "keys.toml", order=order or ("key_file", "certificate")),
                policy_file=folder / "policy.yaml",
            ),
        )
    )
    router, stop = RouterKey("a", 1), asyncio.Event()
    stop.set()
    async with AsyncExitStack() as owned:
        await gateway.start(owned, stop)
        for model in ("simple", "other"):
            gateway._registry.apply(*heartbeat(router), 0.0)
            gateway._registry.apply(*description(router, model=model), 0.0)
        gateway._registry.complete = True
        yield Port(gateway, authority, folder / "policy.yaml")


@pytest.fixture
async def port(authority: Authority, tmp_path: Path) -> AsyncIterator[Port]:
    async with opened(authority, tmp_path) as made:
        yield made


CALLS: dict[str, tuple[str, bytes, str]] = {
    "metadata": ("ModelMetadata", METADATA, "OK"),
    "liveness": ("ServerLive", b"", "OK"),
    "inference": ("ModelInfer", INFER, "NO_LIVE_ROUTER"),
    "administration": ("RepositoryModelLoad", b"", "ROLE_REQUIRED"),
    "what is not offered": ("ModelStreamInfer", b"", "STREAMING_UNSUPPORTED"),
    "health of a model": (
        "/grpc.health.v1.Health/Check",
        HealthCheckRequest(service="simple").SerializeToString(),
        "OK",
    ),
}
"""How each ends for who is known: with an answer, or for a reason that lies beyond."""


@pytest.mark.parametrize(("method", "request_", "expected"), CALLS.values(), ids=CALLS.keys())
async def test_a_certificate_alone_makes_a_caller(port: Port, method: str, request_: bytes, expected: str) -> None:
    for name in (ACME, dns("Billing.ACME.example")):
        assert await port.says(port.authority.issue(name), method, request_) == expected

    stranger = await port.says(port.authority.issue(common_name="billing.acme.example"), method, request_)
    assert stranger == ("SERVICE_UNKNOWN" if "health" in method else "CERTIFICATE_UNKNOWN")


async def test_a_tenant_sees_its_own_models_by_certificate_too(port: Port) -> None:
    assert await port.says(port.authority.issue(HIDDEN), "ModelMetadata", METADATA) == "MODEL_UNKNOWN"
    assert await port.says(port.authority.issue(HIDDEN), "ModelInfer", INFER) == "MODEL_UNKNOWN"


@pytest.mark.parametrize(
    "certificate",
    [
        lambda _: None,
        lambda _: Authority().issue(ACME),
        lambda authority: authority.issue(ACME, ends=-DAY / 2),
        lambda authority: authority.issue(ACME, begins=DAY / 2),
        lambda authority: Certificate(authority.pem, authority.issue(ACME).key),
    ],
    ids=["none", "of another authority", "expired", "not valid yet", "another's"],
)
@pytest.mark.parametrize("metadata", [(), KEY])
async def test_who_has_no_certificate_of_ours_gets_no_connection(
    port: Port, certificate: Callable[[Authority], Certificate | None], metadata: Sent
) -> None:
    """Whatever key it may have."""
    assert await port.says(certificate(port.authority), metadata=metadata) == "UNAVAILABLE"


TRICKS: dict[str, list[Any]] = {
    "a common name only": [],
    "two URIs": [ACME, uri("spiffe://example.org/acme/y")],
    "names of two tenants": [ACME, dns("other.example")],
    "a pattern for a name": [uri("spiffe://example.org/acme/*")],
    "a wildcard for a name": [dns("*.acme.example")],
    "the path itself": [uri("spiffe://example.org/acme")],
    "a path beside it": [uri("spiffe://example.org/acmex/x")],
    "a path that leads elsewhere": [uri("spiffe://example.org/acme/../hidden")],
    "an escaped path": [uri("spiffe://example.org/%61cme/x")],
    "a domain that goes on": [uri("spiffe://example.org.evil/acme/x")],
    "a URI for an e-mail address": [email("spiffe://example.org/acme/x")],
    "a URI for a host": [dns("spiffe://example.org/acme/x")],
    "a host below": [dns("x.billing.acme.example")],
    "a host that ends early": [dns("billing.acme.example\x00.evil.example")],
    "a URI that ends early": [uri("spiffe://example.org/acme/x\x00y")],
}


@pytest.mark.parametrize("names", TRICKS.values(), ids=TRICKS.keys())
async def test_no_other_certificate_of_the_authority_makes_a_caller(port: Port, names: list[Any]) -> None:
    certificate = port.authority.issue(*names, common_name="billing.acme.example")

    assert await port.says(certificate) == "CERTIFICATE_UNKNOWN"
    assert await port.says(certificate, metadata=KEY) == "OK", "a key counts by itself"


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((("x-api-key", "hr_ops_wrong"),), "KEY_INVALID"),
        ((("x-api-key", "hr_ops_s3cret"), ("authorization", "Bearer other")), "KEY_INVALID"),
        ((("authorization", "Bearer other"),), "KEY_INVALID"),
        ((("authorization", "Basic YTpi"),), "OK"),
    ],
)
async def test_a_key_beside_a_certificate_must_be_good(port: Port, metadata: Sent, expected: str) -> None:
    assert await port.says(port.authority.issue(ACME), metadata=metadata) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [(("key_file", "certificate"), "OK"), (("certificate", "key_file"), "MODEL_UNKNOWN")],
)
async def test_of_two_good_ones_the_first_counts(
    authority: Authority, tmp_path: Path, order: tuple[Provider, ...], expected: str
) -> None:
    """The key's tenant sees everything, the certificate's does not."""
    async with opened(authority, tmp_path, *order) as port:
        assert await port.says(authority.issue(HIDDEN), "ModelMetadata", METADATA, KEY) == expected
        assert await port.says(authority.issue(dns("nobody.example")), "ModelMetadata", METADATA, KEY) == "OK"


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
async def test_a_stranger_is_refused_before_its_body_is_read(port: Port, method: str) -> None:
    async with port.channel(port.authority.issue(dns("nobody.example"))) as channel:
        made: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"{SERVICE}/{method}")

        assert await outcome(made(timeout=PATIENCE_SECONDS)) == "CERTIFICATE_UNKNOWN"


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
async def test_a_call_that_ends_without_a_request_has_a_reason(port: Port, method: str) -> None:
    async with port.channel(port.authority.issue(ACME)) as channel:
        made: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"{SERVICE}/{method}")
        empty = made(timeout=PATIENCE_SECONDS)
        await empty.done_writing()

        assert await outcome(empty) == "REQUEST_MALFORMED"


async def test_a_certificate_that_is_taken_out_of_the_policy_is_refused_on_the_connection_that_it_has(
    port: Port,
) -> None:
    """Also for a call whose body was still being read, and in a watch that stands."""
    async with port.channel(port.authority.issue(ACME)) as channel:
        infer: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(f"{SERVICE}/ModelInfer")
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        early = infer(timeout=PATIENCE_SECONDS)
        await early.write(INFER)  # and there may be more
        watching = watch(HealthCheckRequest(service="simple").SerializeToString(), timeout=PATIENCE_SECONDS)
        assert await outcome(call(channel, "ServerLive")) == "OK"
        assert await told(watching) == HealthCheckResponse.NOT_SERVING
        slow = infer(timeout=PATIENCE_SECONDS)
        assert await outcome(call(channel, "ServerLive")) == "OK", "its headers have been seen"

        port.policy.write_text(POLICY.replace('"spiffe://example.org/acme/*", ', ""))
        assert await told(watching) == HealthCheckResponse.SERVICE_UNKNOWN
        await slow.write(INFER)
        await slow.done_writing()

        assert await outcome(slow) == "CERTIFICATE_UNKNOWN"
        assert await outcome(call(channel, "ServerLive")) == "CERTIFICATE_UNKNOWN"
        assert await outcome(call(channel, "ServerLive", metadata=KEY)) == "OK"
        assert await outcome(early) == "NO_LIVE_ROUTER", "its body was there before"
        watching.cancel()


async def told(watching: "grpc.aio.UnaryStreamCall[bytes, bytes]") -> int:
    said = await watching.read()
    assert isinstance(said, bytes)
    return HealthCheckResponse.FromString(said).status

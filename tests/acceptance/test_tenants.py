"""Attempts to get in, or to get more than was granted: each is refused, and gives nothing away.

The tenants and keys are those of `stack_fixture`: one tenant sees `simple` alone, and everything else is there.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import Client, Message, Raw, client, echo, ended, held, refused, simple, slow, with_key
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import metric
from tests.acceptance.stack import Stack
from tests.acceptance.stack_fixture import (
    CURBED_ADMIN_KEY,
    DISABLED_KEY,
    EARLY_KEY,
    EXPIRED_KEY,
    GUEST_KEY,
    LIMITED_KEY,
    NARROW_KEY,
    OBSERVER_KEY,
    STRANGER_KEY,
)

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
NOT_FOUND, EXHAUSTED = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED
NARROW_SECRET, GUEST_SECRET = NARROW_KEY.rpartition("_")[2], GUEST_KEY.rpartition("_")[2]


def unsigned(header: dict[str, object], claims: dict[str, object], signature: str = "") -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in (header, claims)]
    return ".".join([*parts, signature])


CLAIMS: dict[str, object] = {"iss": "https://issuer", "aud": "headrace", "tenant": "guests", "exp": 4_000_000_000}
BEARER = "authorization"

IMPOSTORS = {
    "no key": [],
    "an empty key": [("x-api-key", "")],
    "another scheme": [(BEARER, f"Basic {GUEST_KEY}")],
    "a token scheme": [(BEARER, f"Token {GUEST_KEY}")],
    "no scheme": [(BEARER, GUEST_KEY)],
    "the scheme twice": [(BEARER, f"Bearer Bearer {GUEST_KEY}")],
    "a wrong secret": [("x-api-key", "hr_guest_wrong")],
    "no secret": [("x-api-key", "hr_guest_")],
    "no secret and no separator": [("x-api-key", "hr_guest")],
    "another key's secret": [("x-api-key", f"hr_guest_{NARROW_SECRET}")],
    "the hash for a secret": [("x-api-key", f"hr_guest_{hashlib.sha256(GUEST_SECRET.encode()).hexdigest()}")],
    "the id in capitals": [("x-api-key", GUEST_KEY.replace("guest", "GUEST"))],
    "the prefix in capitals": [("x-api-key", GUEST_KEY.replace("hr_", "HR_"))],
    "the secret in capitals": [("x-api-key", "hr_guest_S3CRET")],
    "a letter more": [("x-api-key", GUEST_KEY + "x")],
    "a letter less": [("x-api-key", GUEST_KEY[:-1])],
    "an id that is none": [("x-api-key", "hr_nobody_s3cret")],
    "an id with a path": [("x-api-key", "hr_../guest_s3cret")],
    "a blank inside": [("x-api-key", "hr_guest_ s3cret")],
    "an expired key": [("x-api-key", EXPIRED_KEY)],
    "a key that is not valid yet": [("x-api-key", EARLY_KEY)],
    "a disabled key": [("x-api-key", DISABLED_KEY)],
    "the key twice": [("x-api-key", GUEST_KEY), ("x-api-key", GUEST_KEY)],
    "two keys": [("x-api-key", NARROW_KEY), ("x-api-key", GUEST_KEY)],
    "two authorizations": [(BEARER, f"Bearer {NARROW_KEY}"), (BEARER, f"Bearer {GUEST_KEY}")],
    "two ways that differ": [(BEARER, f"Bearer {NARROW_KEY}"), ("x-api-key", GUEST_KEY)],
    "two keys in one": [("x-api-key", f"{GUEST_KEY},{GUEST_KEY}")],
    "the key under a binary name": [("x-api-key-bin", GUEST_KEY.encode())],
    "the authorization under a binary name": [("authorization-bin", f"Bearer {GUEST_KEY}".encode())],
    "the key under a proxy's name": [("proxy-authorization", f"Bearer {GUEST_KEY}")],
    "the key in a cookie": [("cookie", f"x-api-key={GUEST_KEY}")],
    "the tenant for a key": [("x-api-key", "guests")],
    "a tenant's header": [("x-tenant", "guests"), ("headrace-tenant", "guests"), ("tenant", "guests")],
    "a long key": [("x-api-key", "hr_guest_" + "s" * 6000)],
    "a certificate in a proxy's header": [("x-forwarded-client-cert", "URI=spiffe://example.org/guests")],
    "what gRPC knows of certificates in headers": [
        ("peer_spiffe_id", "spiffe://example.org/guests"),
        ("x509_subject_alternative_name", "guests.example"),
        ("x509_pem_cert", "guests"),
    ],
    "a certificate beside a wrong key": [
        ("x-forwarded-client-cert", "DNS=guests.example"),
        ("x-api-key", "hr_guest_x"),
    ],
    "a token with no algorithm": [(BEARER, "Bearer " + unsigned({"alg": "none"}, CLAIMS))],
    "a token with no algorithm in capitals": [(BEARER, "Bearer " + unsigned({"alg": "NONE"}, CLAIMS))],
    "a token with its own key": [(BEARER, "Bearer " + unsigned({"alg": "HS256", "jwk": {"kty": "oct"}}, CLAIMS, "AA"))],
    "a token of nobody's issuer": [(BEARER, "Bearer " + unsigned({"alg": "RS256", "kid": "1"}, CLAIMS, "AA"))],
}


@pytest.mark.parametrize("metadata", IMPOSTORS.values(), ids=IMPOSTORS.keys())
def test_an_impostor_is_not_let_in(anonymous: Client, metadata: list[tuple[str, str | bytes]]) -> None:
    """Nor told which part was wrong, nor given back what it sent."""
    with pytest.raises(grpc.RpcError) as caught:
        anonymous.send("ModelInfer", simple().SerializeToString(), metadata=tuple(metadata))

    how = ended(caught.value)
    assert how.code is UNAUTHENTICATED
    assert how.reason in {"KEY_MISSING", "KEY_INVALID", "KEY_EXPIRED"}
    assert isinstance(caught.value, grpc.Call)
    answered = f"{how.text} {caught.value.trailing_metadata()}"
    assert NARROW_SECRET not in answered
    assert GUEST_SECRET not in answered


def test_a_flood_of_guesses_changes_nothing_for_who_has_a_key(stack: Stack, anonymous: Client) -> None:
    """From the same place: guesses are answered in the same words."""
    with client(stack.grpc, with_key(GUEST_KEY)) as guest:
        send: Raw = anonymous.channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        guesses = [send.future(b"", metadata=with_key(f"hr_guest_{guess}"), timeout=30) for guess in range(30)]
        for _ in range(5):
            assert guest.ask("ModelReady", oip.ModelReadyRequest(name="simple")).ready
        told = set()
        for guess in guesses:
            with pytest.raises(grpc.RpcError) as caught:
                guess.result()
            told.add((ended(caught.value).code, ended(caught.value).reason))

    assert told == {(UNAUTHENTICATED, "KEY_INVALID")}


def test_health_tells_no_good_key_from_a_bad_one(anonymous: Client) -> None:
    """Of a model that the good key's tenant does not see."""
    health: Any = health_pb2_grpc.HealthStub(anonymous.channel)  # its methods are made at run time
    told = []
    for metadata in ((), with_key(NARROW_KEY), with_key(NARROW_KEY + "x"), with_key(EXPIRED_KEY)):
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="echo"), metadata=metadata, timeout=30)
        how = ended(caught.value)
        told.append((how.code, how.reason, how.text))

    assert set(told) == {(NOT_FOUND, "SERVICE_UNKNOWN", told[0][2])}


def test_only_who_has_the_secret_learns_that_a_key_expired(anonymous: Client) -> None:
    with refused(UNAUTHENTICATED, "KEY_EXPIRED"):
        anonymous.send("ServerLive", b"", metadata=(("x-api-key", EXPIRED_KEY),))
    with refused(UNAUTHENTICATED, "KEY_INVALID"):
        anonymous.send("ServerLive", b"", metadata=(("x-api-key", EXPIRED_KEY + "x"),))


# What a tenant may not see does not exist for it.

HIDDEN: dict[str, tuple[str, Callable[[], Message]]] = {
    "infer": ("ModelInfer", lambda: echo(b"x")),
    "metadata": ("ModelMetadata", lambda: oip.ModelMetadataRequest(name="echo")),
    "metadata of a version": ("ModelMetadata", lambda: oip.ModelMetadataRequest(name="echo", version="1")),
    "config": ("ModelConfig", lambda: oip.ModelConfigRequest(name="echo")),
    "statistics": ("ModelStatistics", lambda: oip.ModelStatisticsRequest(name="echo")),
}
OTHER_NAMES = [
    "x" * 100_000,
    "echo",
    "ECHO",
    "simple ",
    " simple",
    "Simple",
    "simple\x00",
    "simple/../echo",
    "simple\n",
    "*",
    "sim*",
]


@pytest.fixture
def narrow(stack: Stack) -> "Client":
    return Client(stack.grpc, with_key(NARROW_KEY))


@pytest.mark.parametrize(("method", "request_"), HIDDEN.values(), ids=HIDDEN.keys())
def test_a_hidden_model_answers_as_one_that_nobody_has(
    narrow: Client, method: str, request_: Callable[[], Message]
) -> None:
    hidden, nobodys = request_(), request_()
    named = "model_name" if method == "ModelInfer" else "name"
    setattr(nobodys, named, "nobodys")
    told = []
    for each in (hidden, nobodys):
        with pytest.raises(grpc.RpcError) as caught:
            narrow.ask(method, each)
        how = ended(caught.value)
        told.append((how.code, how.reason, how.text.replace(getattr(each, named), "…")))

    assert told[0] == told[1]
    assert told[0][:2] == (NOT_FOUND, "MODEL_UNKNOWN")


@pytest.mark.parametrize("key", [OBSERVER_KEY, STRANGER_KEY, CURBED_ADMIN_KEY], ids=["observer", "stranger", "admin"])
@pytest.mark.parametrize("method", ["ModelInfer", "RepositoryModelUnload", "RepositoryModelLoad", "TraceSetting"])
def test_nobody_learns_from_a_refusal_what_there_is(stack: Stack, key: str, method: str) -> None:
    """Whatever a caller may: a model that is hidden from it, and one that nobody has, are refused alike."""
    requests: dict[str, Any] = {
        "ModelInfer": oip.ModelInferRequest,
        "RepositoryModelUnload": oip.RepositoryModelUnloadRequest,
        "RepositoryModelLoad": oip.RepositoryModelLoadRequest,
        "TraceSetting": oip.TraceSettingRequest,
    }
    told = []
    with client(stack.grpc, with_key(key)) as caller:
        for name in ("echo", "nobodys"):
            with pytest.raises(grpc.RpcError) as caught:
                caller.ask(method, requests[method](model_name=name))
            how = ended(caught.value)
            told.append((how.code, how.reason, how.text.replace(name, "…")))

    assert told[0] == told[1]


@pytest.mark.parametrize("name", OTHER_NAMES, ids=lambda name: repr(name[:20]))
def test_no_other_name_gets_through(narrow: Client, name: str) -> None:
    request = simple()
    request.model_name = name

    with pytest.raises(grpc.RpcError) as caught:
        narrow.infer(request)
    assert ended(caught.value).reason in {"MODEL_UNKNOWN", "MODEL_NAME_INVALID"}


def test_lists_have_what_the_tenant_sees_alone(narrow: Client) -> None:
    index = narrow.ask("RepositoryIndex", oip.RepositoryIndexRequest())
    statistics = narrow.ask("ModelStatistics", oip.ModelStatisticsRequest())

    assert {model.name for model in index.models} == {"simple"}
    assert {model.name for model in statistics.model_stats} == {"simple"}
    assert not narrow.ask("ModelReady", oip.ModelReadyRequest(name="echo")).ready
    assert narrow.ask("ModelReady", oip.ModelReadyRequest(name="simple")).ready


def test_health_tells_nothing_of_a_hidden_model(narrow: Client) -> None:
    health: Any = health_pb2_grpc.HealthStub(narrow.channel)  # its methods are made at run time

    with refused(NOT_FOUND, "SERVICE_UNKNOWN"):
        health.Check(health_pb2.HealthCheckRequest(service="echo"), metadata=narrow.metadata, timeout=30)
    watch = health.Watch(health_pb2.HealthCheckRequest(service="echo"), metadata=narrow.metadata, timeout=30)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
    seen = health.Check(health_pb2.HealthCheckRequest(service="simple"), metadata=narrow.metadata, timeout=30)
    assert seen.status == health_pb2.HealthCheckResponse.SERVING


FORGED = [
    "x-tenant",
    "tenant",
    "headrace-tenant",
    "x-headrace-tenant",
    "headrace-envelope",
    "x-forwarded-user",
    "x-role",
]


@pytest.mark.parametrize("header", FORGED)
def test_a_forged_header_makes_nobody_another(stack: Stack, header: str) -> None:
    with (
        client(stack.grpc, (*with_key(NARROW_KEY), (header, "guests"))) as forging,
        refused(NOT_FOUND, "MODEL_UNKNOWN"),
    ):
        forging.infer(echo(b"x"))


# Methods.

ADMINISTRATION = ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"]


@pytest.mark.parametrize("method", ADMINISTRATION)
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (GUEST_KEY, "ROLE_REQUIRED"),
        (NARROW_KEY, "ROLE_REQUIRED"),
        (OBSERVER_KEY, "ROLE_REQUIRED"),
        (CURBED_ADMIN_KEY, "METHOD_FORBIDDEN"),
    ],
    ids=["guest", "narrow", "observer", "curbed"],
)
def test_administration_needs_the_role_and_the_grant(stack: Stack, method: str, key: str, reason: str) -> None:
    with client(stack.grpc, with_key(key)) as caller, refused(DENIED, reason):
        caller.send(method, b"")


def test_an_observer_asks_and_runs_nothing(stack: Stack) -> None:
    with client(stack.grpc, with_key(OBSERVER_KEY)) as observer:
        assert observer.ask("ModelMetadata", oip.ModelMetadataRequest(name="simple")).name == "simple"
        with refused(DENIED, "METHOD_FORBIDDEN"):
            observer.infer(simple())


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex", "ModelReady"])
def test_a_tenant_that_the_policy_does_not_know_may_nothing(stack: Stack, method: str) -> None:
    with client(stack.grpc, with_key(STRANGER_KEY)) as stranger:
        with refused(DENIED, "TENANT_UNKNOWN"):
            stranger.send(method, b"")
        with refused(DENIED, "TENANT_UNKNOWN"):
            stranger.infer(simple())


# Limits.


def test_a_limit_refuses_with_all_that_a_client_needs_to_come_back(stack: Stack, tmp_path: Path) -> None:
    gateway, release = stack.ready["admin"][0], tmp_path / "release"
    with client(stack.grpc, with_key(LIMITED_KEY)) as limited:
        with refused(EXHAUSTED, "REQUEST_TOO_LARGE"):
            limited.infer(echo(b"x" * 2000))
        running = limited.begin(held(release), seconds=100)
        try:
            eventually(
                lambda: metric(gateway, "headrace_gateway_calls_waiting") >= 1, seconds=30, what="the call is there"
            )
            with refused(EXHAUSTED, "CONCURRENCY_LIMITED"):
                limited.infer(slow(0))
        finally:
            release.touch()
        running.result(timeout=30)

        for _ in range(2):
            limited.infer(simple())
        with pytest.raises(grpc.RpcError) as caught:
            limited.infer(simple())

    how = ended(caught.value)
    assert (how.code, how.reason) == (EXHAUSTED, "RATE_LIMITED")
    assert isinstance(caught.value, grpc.Call)
    told = {key: value for key, value in caught.value.trailing_metadata() or () if key.startswith("x-ratelimit-")}
    assert (told["x-ratelimit-limit"], told["x-ratelimit-remaining"]) == ("3", "0")
    assert 200 <= int(told["x-ratelimit-reset"]) <= 300
    with client(stack.grpc, with_key(LIMITED_KEY)) as limited, refused(EXHAUSTED, "RATE_LIMITED"):
        limited.send("ServerLive", b"")


def test_a_refusal_leaves_a_line_and_no_key(stack: Stack) -> None:
    with client(stack.grpc) as caller:
        for key in (GUEST_KEY + "x", EXPIRED_KEY, LIMITED_KEY + "y"):
            with pytest.raises(grpc.RpcError):
                caller.send("ServerLive", b"", metadata=(("x-api-key", key),))
    with client(stack.grpc, with_key(NARROW_KEY)) as narrow, refused(NOT_FOUND, "MODEL_UNKNOWN"):
        narrow.infer(echo(b"a payload"))

    eventually(lambda: "model=echo" in stack.log("gateway-0"), seconds=30, what="the refusal is in the log")
    log = stack.log("gateway-0")
    assert "[call_refused]" in log
    for kept in (GUEST_KEY, EXPIRED_KEY, LIMITED_KEY, NARROW_KEY, "a payload"):
        assert kept.rpartition("_")[2] not in log


# Changes, while it runs.


def test_a_key_is_taken_and_refused_again_as_its_file_says(stack: Stack) -> None:
    keys = stack.state_dir.parent / "test-keys.toml"
    before = keys.read_text()
    digest = hashlib.sha256(b"s3cret-new").hexdigest()
    entry = f'[keys.new]\ntenant = "guests"\nsecret_sha256 = "{digest}"\n'
    metadata = with_key("hr_new_s3cret-new")

    def reason() -> str | None:
        with client(stack.grpc, metadata) as caller:
            try:
                caller.infer(simple())
            except grpc.RpcError as error:
                return ended(error).reason
            return None

    assert reason() == "KEY_INVALID"
    try:
        keys.write_text(before + entry)
        eventually(lambda: reason() is None, seconds=30, what="the key is taken")
        keys.write_text(before + entry + "disabled = true\n")
        eventually(lambda: reason() == "KEY_INVALID", seconds=30, what="the key is refused")
    finally:
        keys.write_text(before)


def count_rejections(stack: Stack, *, more_than: int = -1) -> int:
    """How often a file was rejected so far; 0 where it is not often enough."""
    times = stack.log("gateway-0").count("[file_rejected]")
    return times if times > more_than else 0


def test_a_policy_holds_as_soon_as_it_is_written_and_a_bad_one_never(stack: Stack, narrow: Client) -> None:
    policy = stack.state_dir.parent / "test-policy.yaml"
    before = policy.read_text()

    def seen() -> set[str]:
        return {model.name for model in narrow.ask("RepositoryIndex", oip.RepositoryIndexRequest()).models}

    assert seen() == {"simple"}
    try:
        policy.write_text(before.replace("narrow: {models: [simple]}", "narrow: {models: [simple, echo]}"))
        eventually(lambda: seen() == {"simple", "echo"}, seconds=30, what="the new policy is in force")
        for bad in ("tenants: {narrow: {models: 5}}", "tenants: [!!int '']", "{" * 3000):
            rejected = partial(count_rejections, stack, more_than=count_rejections(stack))
            policy.write_text(bad)
            eventually(rejected, seconds=30, what="it is refused")
            assert seen() == {"simple", "echo"}
    finally:
        policy.write_text(before)
    eventually(lambda: seen() == {"simple"}, seconds=30, what="the policy before is in force")

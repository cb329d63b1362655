"""`grpc.health.v1` tells anyone how the gateway is, and callers with a key how each model is."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.acceptance.calls import MODELS, SERVICE, Client, Metadata, refused, with_key

SERVING = health_pb2.HealthCheckResponse.SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
SECONDS = 30.0


@pytest.fixture
def health(gateway: Client) -> Any:
    return health_pb2_grpc.HealthStub(gateway.channel)


def check(health: Any, service: str, metadata: Metadata = ()) -> int:
    asked = health_pb2.HealthCheckRequest(service=service)
    return int(health.Check(asked, timeout=SECONDS, metadata=metadata).status)


@pytest.mark.parametrize("service", ["", SERVICE])
@pytest.mark.parametrize("metadata", [(), with_key(), with_key("wrong")], ids=["no key", "key", "wrong key"])
def test_anyone_may_ask_for_the_gateway_s_health(health: Any, service: str, metadata: Metadata) -> None:
    assert check(health, service, metadata) == SERVING


@pytest.mark.parametrize("model", MODELS)
def test_a_model_s_health_is_told_to_who_has_a_key(health: Any, model: str) -> None:
    assert check(health, model, with_key()) == SERVING


@pytest.mark.parametrize("metadata", [(), with_key("wrong")], ids=["no key", "wrong key"])
def test_to_others_a_model_does_not_exist(health: Any, metadata: Metadata) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN"):
        check(health, "simple", metadata)


def test_an_unknown_name_is_refused(health: Any) -> None:
    with refused(grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN"):
        check(health, "nothing", with_key())


def test_a_watch_begins_with_the_status_of_now(health: Any) -> None:
    for service, metadata, status in (
        ("", (), SERVING),
        ("simple", with_key(), SERVING),
        ("simple", (), SERVICE_UNKNOWN),
        ("nothing", with_key(), SERVICE_UNKNOWN),
    ):
        asked = health_pb2.HealthCheckRequest(service=service)
        watch = health.Watch(asked, timeout=SECONDS, metadata=metadata)
        assert next(watch).status == status
        watch.cancel()

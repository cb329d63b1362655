"""How refusals become gRPC statuses."""

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc import StatusCode

from gateway.errors import (
    AdminTimeout,
    GatewayFull,
    KeyMissing,
    ModelNameInvalid,
    ModelUnknown,
    NoLiveRouter,
    Refusal,
    ShuttingDown,
    leaves,
)
from gateway.status import CODES, code_of, status_of, unforeseen


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (KeyMissing(), StatusCode.UNAUTHENTICATED),
        (ModelUnknown(model="m"), StatusCode.NOT_FOUND),
        (NoLiveRouter(model="m"), StatusCode.UNAVAILABLE),
        (GatewayFull(), StatusCode.RESOURCE_EXHAUSTED),
        (AdminTimeout(), StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_a_refusal_has_the_code_of_its_family(refusal: Refusal, code: StatusCode) -> None:
    assert code_of(refusal) is code
    assert status_of(refusal).code == code.value[0]


def test_every_reason_has_a_code_of_its_own_family() -> None:
    """The code for anything else is for classes that somebody forgot."""
    assert [leaf.reason for leaf in leaves() if code_of(leaf) is CODES[Refusal]] == []


def test_what_is_retriable_may_be_retried_by_code() -> None:
    """Clients that look at codes only must not retry what can't succeed, as far as codes tell."""
    retried_by_clients = {StatusCode.UNAVAILABLE}

    assert all(leaf.retriable for leaf in leaves() if code_of(leaf) in retried_by_clients)


def test_the_details_have_reason_domain_and_metadata() -> None:
    [detail] = status_of(ModelUnknown(model="m")).details

    info = ErrorInfo()
    assert detail.Unpack(info)
    assert (info.reason, info.domain) == ("MODEL_UNKNOWN", "headrace")
    assert dict(info.metadata) == {"model": "m", "retriable": "false"}


def test_a_pause_is_told_as_retry_info() -> None:
    _, detail = status_of(ShuttingDown(retry_after_seconds=1.25)).details

    retry = RetryInfo()
    assert detail.Unpack(retry)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 250_000_000)


def test_a_wrong_field_is_named() -> None:
    _, detail = status_of(ModelNameInvalid()).details

    bad = BadRequest()
    assert detail.Unpack(bad)
    assert [violation.field for violation in bad.field_violations] == ["model_name"]


def test_the_unforeseen_is_logged_once_and_tells_no_internals(caplog: pytest.LogCaptureFixture) -> None:
    refusal = unforeseen(LookupError("host db-7 lost"), method="/s/M", call_id="ab12")

    [line] = caplog.records
    assert (line.levelname, vars(line)["event"], vars(line)["call_id"]) == ("ERROR", "call_failed_unforeseen", "ab12")
    assert line.exc_info is not None
    assert "db-7" not in str(status_of(refusal))
    assert "ab12" in refusal.message


def test_the_unforeseen_gets_a_call_id_where_there_is_none() -> None:
    first, second = (unforeseen(LookupError(), method="/s/M").metadata["call_id"] for _ in range(2))

    assert len(first) == 32
    assert first != second

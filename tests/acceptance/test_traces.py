"""A call's trace, from its caller through gateway, log and router to Triton, as a real receiver of OTLP gets it."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from headrace.bus.topics import request_topic
from tests.acceptance.calls import FEW_MODELS, THE_KEY, client, simple, until_callable
from tests.acceptance.eventually import eventually
from tests.acceptance.stack import Stack, started_stack
from tests.integration.otlp_receiver import Receiver, receiving, tree

MODEL_INFER = "inference.GRPCInferenceService/ModelInfer"
TOPIC = request_topic("default", "interactive", "simple")
SPANS = 5


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def traced(
    _parts: None, few_models: Path, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack of which every call is traced."""
    env = {"HEADRACE_TRACES__ENDPOINT": f"http://{receiver.address}", "HEADRACE_TRACES__SAMPLE_RATIO": "1"}
    options = ("--model-repository", str(few_models))
    with started_stack(tmp_path_factory.mktemp("traced"), *options, env=env) as running:
        until_callable(running, FEW_MODELS)
        yield running


@pytest.fixture
def caller() -> tuple[str, str]:
    """A trace of the caller's, and its span there."""
    return secrets.token_hex(16), secrets.token_hex(8)


def test_one_call_is_one_trace_with_all_its_spans(traced: Stack, receiver: Receiver, caller: tuple[str, str]) -> None:
    """It continues the caller's trace, whatever its flag says: this stack traces every call."""
    trace_id, span_id = caller
    with client(traced.grpc, (*THE_KEY, ("traceparent", f"00-{trace_id}-{span_id}-00"))) as made:
        made.infer(simple())

    spans = receiver.trace(trace_id, spans=SPANS)
    assert tree(spans, times=False) == (
        f"{MODEL_INFER} SERVER headrace-gateway\n"
        f"  send {TOPIC} PRODUCER headrace-gateway\n"
        "    wait INTERNAL headrace-router\n"
        f"    process {TOPIC} CONSUMER headrace-router\n"
        f"      {MODEL_INFER} CLIENT headrace-router"
    ), tree(spans)
    by_kind = {each.kind: each for each in spans}
    called, send, wait, run = (by_kind[kind] for kind in ("SERVER", "PRODUCER", "INTERNAL", "CONSUMER"))
    assert called.parent == span_id
    assert run.links == [send.id]
    waited = run.attributes["headrace.queue_wait_seconds"]
    assert isinstance(waited, float)
    assert 0 <= waited == pytest.approx(wait.seconds, abs=1e-6)
    assert wait.span.end_time_unix_nano == run.span.start_time_unix_nano
    assert called.seconds >= run.seconds >= by_kind["CLIENT"].seconds
    assert called.attributes["headrace.model"] == "simple"
    call_id = called.attributes["headrace.call_id"]
    assert [each.attributes["messaging.message.id"] for each in (send, wait, run)] == [call_id] * 3
    assert not any(each.is_error for each in spans)


def test_what_triton_says_no_to_is_an_error_of_every_span_that_it_passed(
    traced: Stack, receiver: Receiver, caller: tuple[str, str]
) -> None:
    trace_id, span_id = caller
    with (
        client(traced.grpc, (*THE_KEY, ("traceparent", f"00-{trace_id}-{span_id}-01"))) as made,
        pytest.raises(grpc.RpcError) as caught,
    ):
        made.infer(oip.ModelInferRequest(model_name="simple"))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    told = {each.kind: each.attributes.get("error.type") for each in receiver.trace(trace_id, spans=SPANS)}
    assert told == {
        "SERVER": "TRITON",
        "PRODUCER": None,
        "INTERNAL": None,
        "CONSUMER": "TRITON",
        "CLIENT": "INVALID_ARGUMENT",
    }


def test_a_stranger_is_one_span_without_a_tenant(traced: Stack, receiver: Receiver, caller: tuple[str, str]) -> None:
    trace_id, span_id = caller
    with client(traced.grpc, (("traceparent", f"00-{trace_id}-{span_id}-01"),)) as made, pytest.raises(grpc.RpcError):
        made.infer(simple())

    [span] = receiver.trace(trace_id, spans=1)
    assert span.attributes["error.type"] == "KEY_MISSING"
    eventually(lambda: f"trace_id={trace_id}" in traced.log("gateway-0"), seconds=30, what="the refusal is in the log")

"""Spans on their way to a real receiver: over TLS, beside grpc.aio on uvloop, and when the receiver comes late."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme
import uvloop

from headrace.local.ports import FreePorts
from headrace.runtime.settings import TraceSettings
from headrace.runtime.tracing import Tracing
from tests.integration.otlp_receiver import Receiver, receiving
from tests.integration.triton_stand_in import Context, serving

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def begin(tracing: Tracing, name: str) -> None:
    tracing.begin(name, "SERVER", parent=None, attributes={"headrace.tenant": "t"}).end()


async def test_spans_arrive_with_what_their_process_is(receiver: Receiver) -> None:
    settings = TraceSettings(endpoint=f"http://{receiver.address}")
    async with Tracing(settings, service="headrace-gateway", instance="g-1") as tracing:
        begin(tracing, "one")

    [span] = receiver.wait_for(lambda each: each.name == "one")
    assert span.resource["service.name"] == "headrace-gateway"
    assert span.resource["service.instance.id"] == "g-1"
    assert span.attributes == {"headrace.tenant": "t"}


async def test_what_is_left_is_sent_at_the_end_whatever_it_is(receiver: Receiver) -> None:
    settings = TraceSettings(endpoint=f"http://{receiver.address}")
    async with Tracing(settings, service="s", instance="i") as tracing:
        for _ in range(1500):
            begin(tracing, "many")

    assert len(receiver.wait_for(lambda each: each.name == "many", at_least=1500)) == 1500


async def test_tls_and_headers_are_as_the_settings_say(tmp_path: Path) -> None:
    authority = trustme.CA()
    served, ours = authority.issue_cert("127.0.0.1"), authority.issue_cert("client.example")
    ca, certificate, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    ours.cert_chain_pems[0].write_to_path(certificate)
    ours.private_key_pem.write_to_path(key)
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Basic c2VjcmV0\nx-scope: a b\n")
    credentials = grpc.ssl_server_credentials(
        [(served.private_key_pem.bytes(), served.cert_chain_pems[0].bytes())],
        authority.cert_pem.bytes(),
        require_client_auth=True,
    )

    with receiving(credentials) as receiver:
        settings = TraceSettings(
            endpoint=f"https://{receiver.address}",
            ca_file=ca,
            certificate_file=certificate,
            key_file=key,
            headers_file=headers,
        )
        async with Tracing(settings, service="s", instance="i") as tracing:
            begin(tracing, "one")

        receiver.wait_for(lambda each: each.name == "one")
        assert receiver.metadata[0]["authorization"] == "Basic c2VjcmV0"
        assert receiver.metadata[0]["x-scope"] == "a b"


async def test_a_receiver_that_comes_late_gets_what_comes_then(caplog: pytest.LogCaptureFixture) -> None:
    port = FreePorts("127.0.0.1").take()
    caplog.set_level(logging.INFO)
    settings = TraceSettings(endpoint=f"http://127.0.0.1:{port}", export_seconds=0.5)
    async with Tracing(settings, service="s", instance="i") as tracing:
        begin(tracing, "lost")
        async with asyncio.timeout(20):
            while "traces_unsent" not in _events(caplog):  # noqa: ASYNC110  no event tells what a thread has logged
                await asyncio.sleep(0.05)  # the exporter's thread
        with receiving(port=port) as receiver:
            async with asyncio.timeout(20):
                while "traces_sent_again" not in _events(caplog):
                    begin(tracing, "found")
                    await asyncio.sleep(0.05)  # gRPC's own pause before it connects again
            receiver.wait_for(lambda each: each.name == "found")

    # The receiver is gone before the last spans are sent: that may be told once more.
    told = [event for event in _events(caplog) if event.startswith("traces")]
    assert told[:2] == ["traces_unsent", "traces_sent_again"]


def _events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.event for record in caplog.records if hasattr(record, "event")]


def test_it_works_beside_grpc_aio_on_uvloop_and_its_own_calls_are_not_traced(receiver: Receiver) -> None:
    async def answer(request: bytes, _: Context) -> bytes:
        return request

    async def calls() -> None:
        settings = TraceSettings(endpoint=f"http://{receiver.address}")
        async with (
            Tracing(settings, service="s", instance="i") as tracing,
            serving({"ModelInfer": answer}) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            for _ in range(20):
                span = tracing.begin("call", "CLIENT", parent=None, attributes={})
                assert await asyncio.gather(*(method(b"x") for _ in range(10))) == [b"x"] * 10
                span.end()
                await asyncio.sleep(0.1)  # several batches go while calls are made

    uvloop.run(calls())

    spans = receiver.wait_for(lambda _: True, at_least=20)
    assert [span.name for span in spans] == ["call"] * 20
    assert len(receiver.metadata) > 1
    assert not any("traceparent" in metadata for metadata in receiver.metadata)

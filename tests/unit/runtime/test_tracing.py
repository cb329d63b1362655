"""Spans as they leave a process, and what happens where nobody takes them."""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from headrace.local.ports import FreePorts
from headrace.runtime.logs import JsonLines
from headrace.runtime.settings import SettingsError, TraceSettings
from headrace.runtime.trace_context import Parent
from headrace.runtime.tracing import FLUSH_SECONDS, Tracing
from tests.unit.tracing import KeptSpans, attributes, is_error

HERE = "http://127.0.0.1:4317"
PARENT = Parent(0xA, 0xB, sampled=False, state="vendor=1")


@pytest.fixture
def kept() -> KeptSpans:
    return KeptSpans("headrace-test")


def test_a_span_has_its_parent_its_link_and_its_times(kept: KeptSpans) -> None:
    link = Parent(0xC, 0xD, sampled=True)
    span = kept.tracing.begin("n", "CONSUMER", parent=PARENT, attributes={"a": 1}, link=link, at_ns=5)
    inner = kept.tracing.begin("m", "INTERNAL", parent=span, attributes={})
    inner.end()
    span.set({"b": "2"})
    span.end(at_ns=9)

    child, told = kept.ended
    assert (told.name, told.kind.name, told.start_time, told.end_time) == ("n", "CONSUMER", 5, 9)
    assert attributes(told) == {"a": 1, "b": "2"}
    assert told.parent is not None
    assert (told.parent.trace_id, told.parent.span_id, told.parent.is_remote) == (0xA, 0xB, True)
    assert [(each.context.trace_id, each.context.span_id) for each in told.links] == [(0xC, 0xD)]
    assert child.parent is not None
    assert (child.parent.span_id, child.parent.is_remote) == (told.context.span_id, False)
    assert span.context == Parent(0xA, told.context.span_id, sampled=True, state="vendor=1")


def test_a_span_without_a_parent_begins_a_trace(kept: KeptSpans) -> None:
    for _ in range(2):
        kept.tracing.begin("n", "SERVER", parent=None, attributes={}).end()

    first, second = kept.ended
    assert first.parent is None
    assert first.context.trace_id != second.context.trace_id


def test_an_error_is_its_reason_and_no_text(kept: KeptSpans) -> None:
    kept.tracing.begin("n", "SERVER", parent=None, attributes={}).end(error="RATE_LIMITED")
    kept.tracing.begin("n", "SERVER", parent=None, attributes={}).end()

    failed, fine = kept.ended
    assert is_error(failed)
    assert attributes(failed) == {"error.type": "RATE_LIMITED"}
    assert failed.status.description is None
    assert not is_error(fine)
    assert attributes(fine) == {}


def test_every_span_says_which_process_made_it(kept: KeptSpans) -> None:
    kept.tracing.begin("n", "SERVER", parent=None, attributes={}).end()

    told = kept.ended[0].resource.attributes
    assert (told["service.name"], told["service.instance.id"]) == ("headrace-test", "one")
    assert told["service.version"]


@given(st.text(max_size=600))
def test_no_state_of_a_caller_makes_it_fail(state: str) -> None:
    span = KeptSpans().tracing.begin("n", "SERVER", parent=PARENT._replace(state=state), attributes={})

    span.context.state.encode("ascii")


async def test_lines_of_a_traced_call_name_its_trace_until_it_ends(kept: KeptSpans) -> None:
    def line() -> str:
        record = logging.getLogger("gateway").makeRecord("gateway", logging.INFO, "f", 1, "text", (), None)
        return JsonLines("gateway").format(record)

    late: list[str] = []

    async def call() -> None:
        span = kept.tracing.begin("n", "SERVER", parent=PARENT, attributes={})
        span.mark_logs()
        assert f'"trace_id": "{0xA:032x}"' in line()
        asyncio.get_running_loop().call_later(0, lambda: late.append(line()))
        span.end()
        assert "trace_id" not in line()

    await asyncio.create_task(call())
    await asyncio.sleep(0.01)  # the timer, which took over what its call said of itself

    assert "trace_id" not in line()
    assert "trace_id" not in late[0]


# Nobody takes them.


def nowhere(**more: object) -> TraceSettings:
    port = FreePorts("127.0.0.1").take()
    return TraceSettings(endpoint=f"http://127.0.0.1:{port}", **more)  # type: ignore[arg-type]  # of every type


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  no event tells what a thread has logged
            await asyncio.sleep(0.02)  # another thread's doing


async def test_an_absent_receiver_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    def told() -> list[str]:
        return [record.event for record in caplog.records if hasattr(record, "event")]

    async with Tracing(nowhere(export_seconds=0.1, queue_spans=4), service="s", instance="i") as tracing:
        for _ in range(3):
            for _ in range(100):
                tracing.begin("n", "SERVER", parent=None, attributes={}).end()
            await until(lambda: "traces_unsent" in told())

    assert told().count("traces_unsent") == 1
    assert [record.name for record in caplog.records if record.name.startswith("opentelemetry")] == []


@pytest.mark.parametrize("listens", [False, True], ids=["absent", "mute"])
async def test_nobody_waits_for_a_receiver(caplog: pytest.LogCaptureFixture, *, listens: bool) -> None:
    """The SDK by itself would hold up the end for half a minute."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not listens:
            server.close()
        settings = TraceSettings(endpoint=f"http://127.0.0.1:{port}", export_seconds=60, queue_spans=4)
        async with asyncio.timeout(FLUSH_SECONDS + 15), Tracing(settings, service="s", instance="i") as tracing:
            for _ in range(1000):
                tracing.begin("n", "SERVER", parent=None, attributes={}).end()

    assert "traces_lost" in [record.event for record in caplog.records if hasattr(record, "event")]


def test_who_does_not_trace_does_not_load_what_traces() -> None:
    """The Redis client loads some of OpenTelemetry for itself where it is installed."""
    code = "import sys, gateway.app, router.app; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=50, capture_output=True, text=True)

    loaded = set(done.stdout.split())
    assert "headrace.runtime.trace_context" in loaded
    assert loaded.isdisjoint({"headrace.runtime.tracing", "opentelemetry.sdk.trace", "opentelemetry.exporter"})


# Settings.


@pytest.mark.parametrize("url", ["", "h:4317", "grpc://h:4317", "http://h", "http://h:x", "http://h:1/v1/traces"])
def test_what_is_no_receiver_is_told_at_the_start(url: str) -> None:
    with pytest.raises(ValidationError):
        TraceSettings(endpoint=url)


def test_a_secret_does_not_travel_in_clear_text_to_another_machine(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("x-key: s3cret\n")

    assert TraceSettings(endpoint=HERE, headers_file=headers).headers_file == headers
    with pytest.raises(ValidationError, match="headers may hold secrets"):
        TraceSettings(endpoint="http://collector:4317", headers_file=headers)
    with pytest.raises(ValidationError, match="need endpoint"):
        TraceSettings(headers_file=headers)
    with pytest.raises(ValidationError, match="with https://"):
        TraceSettings(endpoint=HERE, ca_file=headers)


def test_a_certificate_comes_with_its_key(tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.write_text("no certificate")
    with pytest.raises(ValidationError, match="go together"):
        TraceSettings(endpoint="https://h:1", key_file=some)
    with pytest.raises(ValidationError, match="no PEM"):
        TraceSettings(endpoint="https://h:1", ca_file=some)


@pytest.mark.parametrize("line", ["no colon", ": no name", "x-key: \x07", "x-k\N{LATIN SMALL LETTER E WITH ACUTE}y: a"])
def test_what_is_no_header_is_told_at_the_start_without_its_text(tmp_path: Path, line: str) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"x-good: 1\n\n{line}\n")

    with pytest.raises(SettingsError) as caught:
        Tracing(TraceSettings(endpoint=HERE, headers_file=headers), service="s", instance="i")
    assert str(caught.value) == "HEADRACE_TRACES__HEADERS_FILE: line 3 is not NAME: VALUE"

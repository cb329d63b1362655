"""What the benchmark of traces makes of what it measured."""

from pathlib import Path

import pytest

from benchmarks import otlp_receiver, telemetry
from headrace.runtime.settings import TraceSettings
from headrace.runtime.tracing import Tracing
from tests.unit.benchmarks.test_access import measured


def test_a_gateway_is_compared_within_its_round() -> None:
    seen = [measured("off", 0, 100), measured("1 %", 0, 102), measured("off", 1, 200), measured("1 %", 1, 210)]

    assert telemetry.ratios(seen, "c", "1 %") == pytest.approx([1.02, 1.05])
    assert telemetry.ratios(seen, "c", "100 %") == []


async def test_the_receiver_counts_spans_by_who_sent_them(tmp_path: Path) -> None:
    async with otlp_receiver.start(tmp_path) as port:
        for instance, spans in (("a", 3), ("b", 5)):
            settings = TraceSettings(endpoint=f"http://127.0.0.1:{port}")
            async with Tracing(settings, service="s", instance=instance) as tracing:
                for _ in range(spans):
                    tracing.begin("n", "SERVER", parent=None, attributes={}).end()

        assert await otlp_receiver.counted(port) == {"a": 3, "b": 5}

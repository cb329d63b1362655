"""What a scrape shows of what is counted anyway."""

from collections import Counter

from prometheus_client.parser import text_string_to_metric_families

from headrace.runtime.telemetry import Counted, Gauge, Telemetry


def test_counts_are_read_at_scrape() -> None:
    ended: Counter[str] = Counter(OK=2)
    telemetry = Telemetry(Counted("headrace_gateway_calls", "Calls.", "reason", ended))
    ended["OK"] += 1
    ended["ROUTER_LOST"] += 1

    families = text_string_to_metric_families(telemetry.scrape().decode())

    (calls,) = [family for family in families if family.name == "headrace_gateway_calls"]
    read = {sample.labels["reason"]: sample.value for sample in calls.samples}
    assert read == {"OK": 3, "ROUTER_LOST": 1}
    assert {sample.name for sample in calls.samples} == {"headrace_gateway_calls_total"}


def test_gauges_are_asked_at_scrape_only() -> None:
    asked = []

    def read() -> float:
        asked.append(True)
        return 5.0

    telemetry = Telemetry(Gauge("headrace_waiting", "Waiting.", read))
    assert not asked

    text = telemetry.scrape().decode()

    assert "headrace_waiting 5.0" in text
    assert "process_cpu_seconds_total" in text
    assert len(asked) == 1

"""What the benchmark concludes from its measurements."""

from benchmarks.cases import Case
from benchmarks.report import markdown, ratios
from benchmarks.rounds import Measurement

CASE = Case(name="small", floats=16, in_flight=1, calls=10, check_every=1, cpu_by_raw_proxy=2.0)


def measured(peer: str, *, number: int, relay: float, p50_ms: float = 1.0) -> Measurement:
    return Measurement(
        round=number,
        case=CASE.name,
        peer=peer,
        calls=10,
        seconds=1.0,
        calls_per_second=10.0,
        p50_ms=p50_ms,
        p99_ms=2.0,
        max_ms=3.0,
        checked=10,
        cpu_us={"client": 5.0, peer: relay},
        relay_cpu_us=relay,
        foreign_cores=0.0,
        rss_mib={},
    )


def test_a_ratio_is_taken_within_a_round_and_not_between_medians() -> None:
    """The machine's pace changes between rounds: 100/50 and 900/300 are 2 and 3, whatever the medians say."""
    measurements = [
        measured("raw proxy", number=0, relay=50),
        measured("Headrace", number=0, relay=100),
        measured("raw proxy", number=1, relay=300),
        measured("Headrace", number=1, relay=900),
    ]

    cpu = next(one for one in ratios(measurements, [CASE]) if one.what == "CPU per request ÷ raw proxy")

    assert (cpu.smallest, cpu.middle, cpu.largest) == (2.0, 2.5, 3.0)
    assert cpu.verdict == "missed by 25%"


def test_a_target_is_met_when_the_median_is_at_most_the_target() -> None:
    measurements = [measured("raw proxy", number=0, relay=50), measured("Headrace", number=0, relay=100)]

    cpu = next(one for one in ratios(measurements, [CASE]) if one.what == "CPU per request ÷ raw proxy")

    assert cpu.verdict == "met"


def test_a_peer_that_was_not_measured_gives_no_ratio() -> None:
    measurements = [measured("Headrace", number=0, relay=100)]

    assert ratios(measurements, [CASE]) == []


def test_a_round_that_only_one_side_finished_gives_no_ratio() -> None:
    measurements = [measured("raw proxy", number=1, relay=50), measured("Headrace", number=0, relay=100)]

    assert ratios(measurements, [CASE]) == []


def test_the_page_shows_medians_and_the_spread_of_the_relay() -> None:
    measurements = [measured("raw proxy", number=number, relay=relay) for number, relay in enumerate((10, 30, 20))]

    page = markdown(measurements, [CASE], about={"commit": "abc"}, command="make bench")

    assert "| raw proxy | 20 (10-30) |" in page
    assert "| commit | abc |" in page

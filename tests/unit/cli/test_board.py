"""What `headrace top` makes of looks at gateways and routers, and how it is laid out."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli import screen
from headrace.cli.board import Board, ModelRow, board
from headrace.cli.rates import Kind, Look, Watched
from headrace.runtime.scraped import samples

AT = datetime(2026, 11, 26, 15, 4, 5, tzinfo=UTC)

GATEWAY = """\
# TYPE headrace_gateway_model_calls_total counter
headrace_gateway_model_calls_total{{model="simple",outcome="ok"}} {ok}
headrace_gateway_model_calls_total{{model="simple",outcome="lost"}} {lost}
headrace_gateway_model_calls_total{{model="asleep",outcome="ok"}} 0
headrace_gateway_model_calls_total{{model="other",outcome="ok"}} 0
# TYPE headrace_gateway_tenant_calls_total counter
headrace_gateway_tenant_calls_total{{tenant="acme",outcome="ok"}} {ok}
headrace_gateway_tenant_calls_total{{tenant="acme",outcome="lost"}} {lost}
headrace_gateway_tenant_calls_total{{tenant="acme",outcome="refused"}} {refused}
headrace_gateway_tenant_calls_total{{tenant="other",outcome="refused"}} 0
headrace_gateway_calls_waiting{{model="simple"}} 2
headrace_gateway_calls_waiting{{model="asleep"}} 1
headrace_gateway_oldest_wait_seconds{{model="simple"}} 0.5
headrace_gateway_oldest_wait_seconds{{model="asleep"}} 42
# TYPE headrace_gateway_call_duration_seconds histogram
headrace_gateway_call_duration_seconds_bucket{{model="simple",le="0.1"}} {ok}
headrace_gateway_call_duration_seconds_bucket{{model="simple",le="+Inf"}} {ok}
headrace_gateway_rate_left_calls{{tenant="acme"}} {left}
headrace_gateway_quota_left_ratio{{tenant="acme",quota="calls_per_day"}} 0.5
headrace_gateway_quota_left_ratio{{tenant="acme",quota="bytes_per_day"}} 0.25
headrace_gateway_routers_live 1
headrace_gateway_models_ready 1
headrace_build_info{{process="gateway",version="0.1.0",python="3.11"}} 1
process_cpu_seconds_total {cpu}
process_resident_memory_bytes 104857600
process_start_time_seconds 1
"""
ROUTER = """\
headrace_router_window{{model="simple"}} 16
headrace_router_running{{model="simple"}} 3
headrace_router_waiting{{model="simple"}} 4
headrace_router_lag_records{{model="simple"}} 5
headrace_router_oldest_wait_seconds{{model="simple"}} 1.5
# TYPE headrace_router_queue_wait_seconds histogram
headrace_router_queue_wait_seconds_bucket{{model="simple",le="2.0"}} {begun}
headrace_router_queue_wait_seconds_bucket{{model="simple",le="+Inf"}} {begun}
headrace_router_gateways_attached 2
headrace_router_triton_ready {triton}
process_start_time_seconds 1
"""


def look(at: float, text: str, *, state: str = "ready") -> Look:
    series: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for sample in samples(text):
        series.setdefault(sample.name, {})[sample.labels] = sample.value
    return Look(at=at, ready=state == "ready", state=state, series=series)


def watched(kind: Kind, address: str, *looks: Look) -> Watched:
    made = Watched(kind, address, span=60.0)
    for each in looks:
        made.took(each)
    return made


def gateway(address: str = "gateway:1", *, left: float = 7) -> Watched:
    return watched(
        "gateway",
        address,
        look(10, GATEWAY.format(ok=100, lost=1, refused=0, left=left, cpu=5.0)),
        look(20, GATEWAY.format(ok=150, lost=2, refused=20, left=left, cpu=7.5)),
    )


def router(address: str = "router:1", *, triton: int = 1) -> Watched:
    return watched(
        "router",
        address,
        look(10, ROUTER.format(begun=10, triton=triton)),
        look(20, ROUTER.format(begun=20, triton=triton), state="ready" if triton else "Triton is not ready"),
    )


def away(kind: Kind, address: str) -> Watched:
    return watched(kind, address, Look(at=20, trouble="connection refused"))


def model(found: Board, name: str = "simple") -> ModelRow:
    return next(row for row in found.models if row.name == name)


def test_a_model_is_what_gateways_and_routers_know_of_it() -> None:
    row = model(board([gateway(), router()]))

    assert asdict(row) == {
        "name": "simple",
        "ready": True,
        "routers": 1,
        "calls": 152,
        "calls_per_second": pytest.approx(5.1),
        "errors_per_second": pytest.approx(0.1),
        "p50_seconds": pytest.approx(0.05),
        "p99_seconds": pytest.approx(0.099),
        "wait_p50_seconds": pytest.approx(1.0),
        "wait_p99_seconds": pytest.approx(1.98),
        "queue_records": 9,
        "oldest_wait_seconds": 1.5,
        "running": 3,
        "window": 16,
    }


def test_several_of_each_are_summed() -> None:
    found = board([gateway("g:1", left=7), gateway("g:2", left=-1), router("r:1"), router("r:2")])

    row = model(found)
    assert (row.calls, row.routers, row.queue_records, row.window) == (304, 2, 18, 32)
    assert row.calls_per_second == pytest.approx(10.2)
    assert row.oldest_wait_seconds == 1.5
    assert found.totals.in_flight == 6
    assert found.totals.calls_per_second == pytest.approx(14.2)
    assert found.totals.refused_per_second == pytest.approx(4.0)
    assert found.tenants[0].rate_left_calls == -1


def test_a_tenant_has_its_rates_and_what_is_left_of_its_limits() -> None:
    (row,) = board([gateway()]).tenants

    assert (row.name, row.calls, row.rate_left_calls) == ("acme", 172, 7)
    assert (row.quota, row.quota_left_ratio) == ("bytes_per_day", 0.25)
    assert row.calls_per_second == pytest.approx(7.1)
    assert row.refused_per_second == pytest.approx(2.0)
    assert row.errors_per_second == pytest.approx(0.1)


def test_a_model_that_no_router_serves_waits_as_its_gateways_tell() -> None:
    row = model(board([gateway(), router()]), "asleep")

    assert (row.ready, row.routers, row.oldest_wait_seconds) == (False, 0, 42)


def test_a_router_without_its_triton_serves_nothing() -> None:
    found = board([gateway(), router(triton=0)])

    assert (model(found).ready, found.routers[0].models) == (False, 0)
    assert (found.routers[0].up, found.routers[0].ready) == (True, False)
    assert found.routers[0].state == "Triton is not ready"


def test_processes_tell_of_themselves() -> None:
    found = board([gateway(), router()])

    (one,), (other,) = found.gateways, found.routers
    assert (one.version, one.memory_bytes) == ("0.1.0", 100 << 20)
    assert one.cpu_ratio == pytest.approx(0.25)
    assert (one.peers, one.models, one.calls) == (1, 1, 3)
    assert (other.peers, other.models, other.calls) == (2, 1, 3)
    assert (other.version, other.memory_bytes) == (None, None)


def test_what_is_away_is_shown_and_counts_for_nothing() -> None:
    found = board([gateway(), away("gateway", "gone:1"), away("router", "gone:2")])

    assert [(each.up, each.state) for each in found.gateways] == [(True, "ready"), (False, "connection refused")]
    assert found.routers[0].up is False
    assert found.up
    assert model(found).calls == 152
    assert (model(found).ready, model(found).queue_records) == (None, None)


def test_without_anything_there_is_an_empty_board() -> None:
    found = board([away("gateway", "gone:1")])

    assert not found.up
    assert (found.models, found.tenants, found.totals.calls_per_second) == ([], [], None)


@pytest.mark.parametrize("text", ["headrace_gateway_models_ready 1\n", "headrace_gateway_calls_total 1\n"])
def test_metrics_of_another_version_leave_gaps_and_stop_nothing(text: str) -> None:
    found = board([watched("gateway", "g:1", look(1, text), look(2, text)), router()])

    assert found.gateways[0].up
    assert model(found).p50_seconds is None
    assert screen.lines(found, at=AT, width=80)


# Layout.


def test_eighty_columns_hold_every_number() -> None:
    found = board([gateway(), router()])

    shown = screen.lines(found, at=AT, width=80)

    assert max(map(len, shown)) <= 80
    assert shown[0] == "headrace top  15:04:05  over 10.0 s  1 gateway, 1 router"
    assert shown[1] == "calls/s 7.1  errors/s 0.1  refused/s 2.0  in flight 3  p50 50ms  p99 99ms"
    rows = {words[0]: words[1:] for line in shown if (words := line.split())}
    assert rows["simple"] == ["1/1", "5.1", "0.1", "50ms", "99ms", "1.0s", "2.0s", "9", "1.5s", "3/16"]
    assert rows["acme"] == ["7.1", "2.0", "0.1", "7", "25%", "bytes_per_day"]
    assert rows["gateway"] == ["gateway:1", "25%", "100M", "3", "1", "1", "ready"]


def test_what_is_away_stands_out_without_colours() -> None:
    shown = screen.lines(board([away("router", "r:1")]), at=AT, width=80)

    assert shown[0].endswith("1 router, 1 AWAY")
    assert shown[-1].endswith("AWAY: connection refused")


def many(number: int) -> Board:
    text = "".join(
        f'headrace_gateway_model_calls_total{{model="{"m" * 40}{each:03}",outcome="ok"}} {{n}}\n'
        f'headrace_gateway_tenant_calls_total{{tenant="t{each:03}",outcome="ok"}} {{n}}\n'
        for each in range(number)
    )
    first = look(1, text.replace("{n}", "0"))
    second: Mapping[str, Mapping[tuple[tuple[str, str], ...], float]] = {
        name: dict.fromkeys(series, 0.0) | {list(series)[-1]: 10.0} for name, series in first.series.items()
    }
    return board([watched("gateway", "g:1", first, Look(at=2, ready=True, state="ready", series=second))])


def test_a_long_name_is_cut_and_no_number_is() -> None:
    shown = screen.lines(many(3), at=AT, width=80)

    busy = next(line for line in shown if line.startswith("mmm") and " 10 " in line)
    assert "mmm… " in busy
    assert len(busy) <= 80


@pytest.mark.parametrize("height", [12, 24, 50])
def test_where_not_all_fit_the_busiest_stay_and_the_rest_is_counted(height: int) -> None:
    shown = screen.lines(many(200), at=AT, width=120, height=height)

    assert len(shown) <= height
    assert any(line.startswith("t199") for line in shown)
    assert sum("more, less busy" in line for line in shown) == 2


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 30))
def test_no_line_is_wider_and_no_board_higher_than_there_is_room(width: int, height: int, models: int) -> None:
    shown = screen.lines(many(models), at=AT, width=width, height=height)

    assert len(shown) <= height
    assert max(map(len, shown)) <= width


def test_what_a_process_says_moves_no_cursor() -> None:
    hostile = watched("gateway", "g:1", look(1, "headrace_x 1\n", state="\x1b[2Jgone\u202e"))

    assert all(line.isprintable() for line in screen.lines(board([hostile]), at=AT, width=80))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (0, "0"), (0.00001, "<0.1ms"), (0.0004, "0.4ms"), (0.034, "34ms"), (0.9994, "999ms"),
        (0.9996, "1.0s"), (9.94, "9.9s"), (9.96, "10s"), (99, "99s"), (150, "2.5m"), (7200, "2.0h"), (1e6, "278h"),
    ],
)  # fmt: skip
def test_a_duration_is_short(value: float | None, shown: str) -> None:
    assert screen.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0, "0"), (0.01, "<0.1"), (0.2, "0.2"), (1234.5, "1234"), (12_345, "12k"), (2e7, "20M")],
)
def test_a_rate_is_short(value: float | None, shown: str) -> None:
    assert screen.rate(value) == shown


@given(st.floats(0, 1e9))
def test_no_figure_takes_more_than_six_characters(value: float) -> None:
    assert len(screen.rate(value)) <= 5
    assert len(screen.count(round(value))) <= 5
    assert len(screen.size(value)) <= 5
    assert len(screen.duration(min(value, 3e6))) <= 6

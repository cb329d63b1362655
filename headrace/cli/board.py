"""What `headrace top` shows: models, tenants and processes, from looks at gateways and routers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from headrace.cli.rates import Change, Kind, Watched, buckets, together

_SETTLED = frozenset({"ok", "refused", "cancelled"})
"""Outcomes of calls that are nobody's error."""
_OTHER = "other"
"""What shares a series because there are too many."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """All calls of all gateways that answered. Rates are None where there was one look only."""

    calls_per_second: float | None
    errors_per_second: float | None
    refused_per_second: float | None
    in_flight: int
    p50_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model. What only routers know is None where none answered, and so is what gateways know."""

    name: str
    ready: bool | None
    routers: int | None
    """Those that serve it, beside a Triton that is ready."""
    calls: int | None
    """Since the gateways started."""
    calls_per_second: float | None
    errors_per_second: float | None
    p50_seconds: float | None
    p99_seconds: float | None
    wait_p50_seconds: float | None
    wait_p99_seconds: float | None
    queue_records: int | None
    """Published and not begun."""
    oldest_wait_seconds: float | None
    running: int | None
    window: int | None


@dataclass(frozen=True, kw_only=True)
class TenantRow:
    """One tenant that called."""

    name: str
    calls: int
    calls_per_second: float | None
    refused_per_second: float | None
    errors_per_second: float | None
    rate_left_calls: float | None
    """The least that any gateway has left of its tightest rate; None where it has no such limit."""
    quota: str | None
    """The one of which least is left."""
    quota_left_ratio: float | None


@dataclass(frozen=True, kw_only=True)
class ProcessRow:
    """One gateway or router."""

    kind: Kind
    address: str
    up: bool
    ready: bool
    state: str
    """`ready`, why it is not, or why it did not answer."""
    version: str | None
    cpu_ratio: float | None
    """1 is one core."""
    memory_bytes: int | None
    peers: int | None
    """Routers that take a gateway's calls; gateways that a router is attached to."""
    models: int | None
    """That are ready."""
    calls: int | None
    """In flight at a gateway; running in a router's Triton."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """All of it, at one moment."""

    seconds: float
    """What rates and quantiles are of; 0 where there are none yet."""
    totals: Totals
    models: Sequence[ModelRow]
    tenants: Sequence[TenantRow]
    gateways: Sequence[ProcessRow]
    routers: Sequence[ProcessRow]

    @property
    def up(self) -> bool:
        """Whether any process answered."""
        return any(each.up for each in (*self.gateways, *self.routers))


def board(watched: Iterable[Watched]) -> Board:
    """What is known of these processes together. One that is away is shown so, and counts for nothing else."""
    asked = [(each, change) for each in watched if (change := each.change) is not None]
    gateways = [change for each, change in asked if each.kind == "gateway" and not change.now.trouble]
    routers = [change for each, change in asked if each.kind == "router" and not change.now.trouble]
    return Board(
        seconds=max((change.seconds for _, change in asked), default=0.0),
        totals=_totals(gateways),
        models=_models(gateways, routers),
        tenants=_tenants(gateways),
        gateways=[_process(each, change) for each, change in asked if each.kind == "gateway"],
        routers=[_process(each, change) for each, change in asked if each.kind == "router"],
    )


def _totals(gateways: Sequence[Change]) -> Totals:
    by_tenant = _outcome_rates(gateways, "headrace_gateway_tenant_calls_total", "tenant")
    calls, errors, refused = _summed(rates for rates in by_tenant.values())
    known = any(change.then for change in gateways)
    durations = together(buckets(gateways, "headrace_gateway_call_duration_seconds").values())
    return Totals(
        calls_per_second=calls if known else None,
        errors_per_second=errors if known else None,
        refused_per_second=refused if known else None,
        in_flight=round(sum(_gauges(gateways, "headrace_gateway_calls_waiting").values())),
        p50_seconds=durations.quantile(0.5),
        p99_seconds=durations.quantile(0.99),
    )


def _models(gateways: Sequence[Change], routers: Sequence[Change]) -> list[ModelRow]:
    rates = _outcome_rates(gateways, "headrace_gateway_model_calls_total", "model")
    calls = _gauges(gateways, "headrace_gateway_model_calls_total")
    durations = buckets(gateways, "headrace_gateway_call_duration_seconds")
    waits = buckets(routers, "headrace_router_queue_wait_seconds")
    waiting = _gauges(gateways, "headrace_gateway_calls_waiting")
    held_up = _gauges(gateways, "headrace_gateway_oldest_wait_seconds", join=max)
    fetched = _gauges(routers, "headrace_router_waiting")
    lag = _gauges(routers, "headrace_router_lag_records")
    oldest = _gauges(routers, "headrace_router_oldest_wait_seconds", join=max)
    running = _gauges(routers, "headrace_router_running")
    windows = _gauges(routers, "headrace_router_window")
    with_triton = [change for change in routers if change.now.value("headrace_router_triton_ready")]
    serving = [{name for name, _ in change.gauges("headrace_router_window")} for change in with_triton]
    known = any(change.then for change in gateways)

    def row(name: str) -> ModelRow:
        every, errors, _ = _summed([rates.get(name, {})])
        serve = sum(name in each for each in serving)
        queue = fetched.get(name, 0.0) + lag.get(name, 0.0)
        of_routers = bool(routers)
        return ModelRow(
            name=name,
            ready=serve > 0 if of_routers else None,
            routers=serve if of_routers else None,
            calls=round(calls.get(name, 0.0)) if gateways else None,
            calls_per_second=every if known else None,
            errors_per_second=errors if known else None,
            p50_seconds=durations[name].quantile(0.5) if name in durations else None,
            p99_seconds=durations[name].quantile(0.99) if name in durations else None,
            wait_p50_seconds=waits[name].quantile(0.5) if name in waits else None,
            wait_p99_seconds=waits[name].quantile(0.99) if name in waits else None,
            queue_records=round(queue) if of_routers else None,
            # A model without a router waits in the log, and only gateways know for how long.
            oldest_wait_seconds=oldest.get(name, held_up.get(name)),
            running=round(running.get(name, 0.0)) if of_routers else None,
            window=round(windows.get(name, 0.0)) if of_routers else None,
        )

    names = calls.keys() | waiting.keys() | windows.keys()
    return [row(name) for name in sorted(names) if name != _OTHER or calls.get(_OTHER) or windows.get(_OTHER)]


def _tenants(gateways: Sequence[Change]) -> list[TenantRow]:
    name = "headrace_gateway_tenant_calls_total"
    rates = _outcome_rates(gateways, name, "tenant")
    calls = _gauges(gateways, name, label="tenant")
    rate_left = _gauges(gateways, "headrace_gateway_rate_left_calls", label="tenant", join=min)
    quotas: dict[str, tuple[float, str]] = {}
    for change in gateways:
        for labels, left in change.now.series.get("headrace_gateway_quota_left_ratio", {}).items():
            told = dict(labels)
            tenant, quota = told.get("tenant", ""), told.get("quota", "")
            quotas[tenant] = min(quotas.get(tenant, (left, quota)), (left, quota))
    known = any(change.then for change in gateways)
    rows = []
    for tenant in sorted(calls.keys() | rate_left.keys() | quotas.keys()):
        if tenant == _OTHER and not calls.get(_OTHER):
            continue
        every, errors, refused = _summed([rates.get(tenant, {})])
        least = quotas.get(tenant)
        rows.append(
            TenantRow(
                name=tenant,
                calls=round(calls.get(tenant, 0.0)),
                calls_per_second=every if known else None,
                refused_per_second=refused if known else None,
                errors_per_second=errors if known else None,
                rate_left_calls=rate_left.get(tenant),
                quota=least[1] if least else None,
                quota_left_ratio=least[0] if least else None,
            )
        )
    return rows


def _process(watched: Watched, change: Change) -> ProcessRow:
    now = change.now
    gateway = watched.kind == "gateway"
    cpu = [rate for _, rate in change.rates("process_cpu_seconds_total")]
    build = next((dict(labels) for labels in now.series.get("headrace_build_info", {})), {})
    serving = [name for name, _ in change.gauges("headrace_router_window")]
    models = now.value("headrace_gateway_models_ready")
    if not gateway:
        models = len(serving) if now.value("headrace_router_triton_ready") else 0.0
    calls = _gauges([change], "headrace_gateway_calls_waiting" if gateway else "headrace_router_running")
    up = not now.trouble
    return ProcessRow(
        kind=watched.kind,
        address=watched.address,
        up=up,
        ready=up and now.ready,
        state=now.trouble or now.state,
        version=build.get("version"),
        cpu_ratio=cpu[0] if cpu else None,
        memory_bytes=_whole(now.value("process_resident_memory_bytes")),
        peers=_whole(now.value(f"headrace_{'gateway_routers_live' if gateway else 'router_gateways_attached'}")),
        models=_whole(models) if up else None,
        calls=round(sum(calls.values())) if up else None,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _gauges(
    changes: Iterable[Change],
    name: str,
    *,
    label: str = "model",
    join: Callable[[float, float], float] = lambda one, other: one + other,
) -> dict[str, float]:
    """What a metric is now at all of them, by the value of a label."""
    found: dict[str, float] = {}
    for change in changes:
        for value, number in change.gauges(name, label):
            found[value] = join(found[value], number) if value in found else number
    return found


def _outcome_rates(changes: Iterable[Change], name: str, label: str) -> dict[str, dict[str, float]]:
    """Calls a second by the value of a label and by outcome, at all of them."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for change in changes:
        for labels, rate in change.rates(name):
            found[labels.get(label, "")][labels.get("outcome", "")] += rate
    return found


def _summed(outcomes: Iterable[dict[str, float]]) -> tuple[float, float, float]:
    """All of them, errors, and refusals."""
    every = errors = refused = 0.0
    for rates in outcomes:
        for outcome, rate in rates.items():
            every += rate
            errors += rate if outcome not in _SETTLED else 0.0
            refused += rate if outcome == "refused" else 0.0
    return every, errors, refused

# ruff: noqa: INP001  scripts are run, and are no package
"""What the dashboards show, as data: titles, why one looks, what is asked of Prometheus, by legend, and in which unit.

Two things are written short, and `scripts.dashboards` writes them out. `{` begins every selector, also where it has no
matcher: `{pool=~"$pool"` stands there in the end. `[i]` is Grafana's `[$__rate_interval]`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

COLUMNS = 24
"""How wide Grafana's page is."""

Steps = Mapping[float | None, str]


@dataclass(frozen=True)
class Panel:
    """Numbers over time, of now, or as a map of a histogram."""

    title: str
    description: str
    unit: str
    queries: Mapping[str, str]
    """PromQL by legend."""
    kind: Literal["timeseries", "stat", "heatmap"] = "timeseries"
    width: int = 8
    stacked: bool = False
    most: float | None = None
    """Of the axis: 1 for shares."""
    steps: Steps = field(default_factory=dict)
    """From which value on which colour; the first from None."""


@dataclass(frozen=True)
class Variable:
    """What is chosen at the top."""

    name: str
    label: str
    query: str
    several: bool = False
    """Also all: that matches everything, targets without the label too."""


@dataclass(frozen=True)
class Dashboard:
    """One page: panels by the heading of their row."""

    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: Mapping[str, tuple[Panel, ...]]


POOL = Variable("pool", "Pool", "label_values(headrace_build_info, pool)", several=True)
MODEL = Variable("model", "Model", 'label_values(headrace_gateway_calls_waiting{pool=~"$pool"}, model)')
TENANT = Variable("tenant", "Tenant", 'label_values(headrace_gateway_tenant_calls_total{pool=~"$pool"}, tenant)')

OURS = (
    "GATEWAY_FULL|GATEWAY_STARTING|INTERNAL|KEYS_UNAVAILABLE|LOG_FULL|LOG_UNAVAILABLE|MODEL_NOT_READY|NO_LIVE_ROUTER"
    "|QUOTAS_UNAVAILABLE|ROUTER_LOST|SEQUENCE_LOST|SHUTTING_DOWN|TRITON_LOST"
)
"""Reasons that are our fault, as in rules/slo.yaml."""
_NONE_IS_GOOD: Steps = {None: "green", 1: "red"}
_NONE_IS_BAD: Steps = {None: "red", 1: "green"}


def _up_to(value: float, then: str = "orange") -> Steps:
    return {None: "green", value: then}


def _quantiles(histogram: str, matchers: str = "") -> dict[str, str]:
    """Median and tail of one."""
    return {
        name: f"histogram_quantile({share}, sum by (le) (rate({histogram}_bucket{{{matchers}}}[i])))"
        for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99}.items()
    }


def _mean(histogram: str, matchers: str) -> str:
    return f"sum(rate({histogram}_sum{{{matchers}}}[i])) / sum(rate({histogram}_count{{{matchers}}}[i]))"


FLEET = Dashboard(
    "Headrace: fleet",
    "Whether callers get what they ask for, what waits, and which part is short.",
    (POOL,),
    {
        "Do callers get what they ask for?": (
            Panel(
                "Availability, 30 days",
                "Calls that did not end by our fault. The objective is 99.9 %: rules/slo.yaml.",
                "percentunit",
                {"{{pool}}": "1 - headrace:slo_availability_errors:ratio_rate30d{}"},
                kind="stat",
                width=4,
                steps={None: "red", 0.999: "green"},
            ),
            Panel(
                "Budget left, 30 days",
                "Of the calls that may fail by our fault. Below 0 the objective is missed.",
                "percentunit",
                {"{{pool}}": "1 - headrace:slo_availability_errors:ratio_rate30d{} / 0.001"},
                kind="stat",
                width=4,
                steps={None: "red", 0: "orange", 0.25: "green"},
            ),
            Panel(
                "Within 2.5 s, 30 days",
                "Accepted calls that took no longer. The objective is 99 %: rules/slo.yaml.",
                "percentunit",
                {"{{pool}}": "1 - headrace:slo_latency_errors:ratio_rate30d{}"},
                kind="stat",
                width=4,
                steps={None: "red", 0.99: "green"},
            ),
            Panel(
                "Gateways",
                "Those that can be scraped.",
                "short",
                {"gateways": 'sum(up{job="headrace-gateway"})'},
                kind="stat",
                width=4,
                steps=_NONE_IS_BAD,
            ),
            Panel(
                "Routers",
                "Those that take calls, as the gateway sees it that knows of fewest.",
                "short",
                {"routers": "min(headrace_gateway_routers_live{})"},
                kind="stat",
                width=4,
                steps=_NONE_IS_BAD,
            ),
            Panel(
                "Models without a router",
                "Ready somewhere, and no live router owns their partitions. For longer than a rebalance takes: their"
                " calls are refused, or wait.",
                "short",
                {"models": "max(headrace_gateway_models_unowned{})"},
                kind="stat",
                width=4,
                steps=_NONE_IS_GOOD,
            ),
            Panel(
                "Calls by outcome",
                "Of models that exist. Which reasons an outcome stands for is in docs/reference/metrics.md.",
                "reqps",
                {"{{outcome}}": "sum by (outcome) (rate(headrace_gateway_model_calls_total{}[i])) > 0"},
                stacked=True,
            ),
            Panel(
                "Reasons of ours",
                "Calls that ended by our fault: what burns the budget. Empty is as it should be;"
                " docs/reference/errors.md has each reason.",
                "reqps",
                {"{{reason}}": f'sum by (reason) (rate(headrace_gateway_calls_total{{reason=~"{OURS}"}}[i])) > 0'},
                stacked=True,
            ),
            Panel(
                "How fast the budget burns",
                "At 1 a month's budget lasts the month. 14.4 over an hour, or 6 over six hours, gets somebody up.",
                "none",
                {
                    "availability, 1 h, {{pool}}": "headrace:slo_availability_errors:ratio_rate1h{} / 0.001",
                    "availability, 6 h, {{pool}}": "headrace:slo_availability_errors:ratio_rate6h{} / 0.001",
                    "latency, 1 h, {{pool}}": "headrace:slo_latency_errors:ratio_rate1h{} / 0.01",
                    "latency, 6 h, {{pool}}": "headrace:slo_latency_errors:ratio_rate6h{} / 0.01",
                },
                steps={None: "green", 1: "orange", 6: "red"},
            ),
            Panel(
                "How long accepted calls take",
                "From the request's last byte to the answer, all models together; expired calls are in it.",
                "s",
                _quantiles("headrace_gateway_call_duration_seconds"),
            ),
            Panel(
                "p99 by model",
                "Which model is slow. The model dashboard says where its time goes.",
                "s",
                {
                    "{{model}}": "histogram_quantile(0.99, sum by (model, le) ("
                    "rate(headrace_gateway_call_duration_seconds_bucket{}[i])))"
                },
            ),
            Panel(
                "Refused to callers",
                "By policy, limits and credentials: no fault of ours. KEY_INVALID that rises without a deployment:"
                " somebody guesses.",
                "reqps",
                {
                    "{{reason}}": "sum by (reason) (rate(headrace_gateway_access_refusals_total{}[i])) > 0",
                    "{{reason}} (who)": "sum by (reason) (rate(headrace_gateway_credential_refusals_total{}[i])) > 0",
                },
                stacked=True,
            ),
        ),
        "What waits, and for what?": (
            Panel(
                "Queue",
                "Records that no router has begun: in the log, and fetched. It should come back to 0.",
                "short",
                {"{{model}}": "headrace:queue_records:sum{}"},
                stacked=True,
            ),
            Panel(
                "Wait for a slot, p90",
                "Of calls that began: the log and the router. Above 10 s for five minutes it is a ticket.",
                "s",
                {
                    "{{model}}": "histogram_quantile(0.9, sum by (model, le) ("
                    "rate(headrace_router_queue_wait_seconds_bucket{}[i])))"
                },
            ),
            Panel(
                "Oldest wait",
                "Of records that routers have fetched and that may still begin. In a burst older ones are in the log.",
                "s",
                {"{{model}}": "headrace:oldest_wait_seconds:max{}"},
            ),
            Panel(
                "Slots taken",
                "Time in Triton a second, over the slots there are: how busy routers are on average. Near 1: add some."
                " Far from 1 with a queue: a router is stuck, or a burst has come.",
                "percentunit",
                {
                    "{{model}}": "sum by (model) (rate(headrace_router_triton_duration_seconds_sum{}[i]))"
                    " / sum by (model) (headrace_router_window{})"
                },
                most=1,
                steps=_up_to(0.7),
            ),
            Panel(
                "Calls in flight",
                "At all gateways: they wait, run, or are on their way.",
                "short",
                {"{{model}}": "sum by (model) (headrace_gateway_calls_waiting{})"},
                stacked=True,
            ),
            Panel(
                "Calls that no router may have",
                "They wait in the log: for a pool that sleeps, or for partitions that move. Wake the pool.",
                "short",
                {"{{model}}": "sum by (model) (headrace_gateway_calls_unowned{})"},
            ),
            Panel(
                "Records by outcome",
                "What routers did with them. What is expired or cancelled was skipped, and cost no model time.",
                "ops",
                {"{{outcome}}": "sum by (outcome) (rate(headrace_router_records_total{}[i])) > 0"},
                width=COLUMNS,
                stacked=True,
            ),
        ),
        "Gateways": (
            Panel(
                "Calls by gateway",
                "Uneven for long: callers' connections stick to few. They should reconnect now and then.",
                "reqps",
                {"{{instance}}": "sum by (instance) (rate(headrace_gateway_calls_total{}[i]))"},
            ),
            Panel(
                "CPU",
                "Cores. A gateway or router has one busy thread: at some 0.8 it is full, whatever its limit.",
                "none",
                {
                    "{{job}} {{instance}}": "sum by (job, instance) ("
                    'rate(process_cpu_seconds_total{job=~"headrace-.*"}[i]))'
                },
                steps=_up_to(0.8),
            ),
            Panel(
                "Loop lag, p99",
                "How late a clock of 0.25 s rings. Above 0.1 s: too little CPU.",
                "s",
                {"{{job}} {{instance}}": "headrace:loop_lag_seconds:p99_rate5m{}"},
                steps=_up_to(0.1),
            ),
            Panel(
                "Memory",
                "Resident. What calls in flight need comes back; what only grows is a leak: report it.",
                "bytes",
                {"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"headrace-.*"}'},
            ),
            Panel(
                "Request bytes in flight",
                "Near HEADRACE_GATEWAY__BOUNDS__REQUEST_BYTES calls are refused with GATEWAY_FULL: add gateways.",
                "bytes",
                {"{{instance}}": "headrace_gateway_request_bytes{}"},
            ),
            Panel(
                "Bytes in and out",
                "Requests and answers of all calls.",
                "Bps",
                {
                    "requests": "sum(rate(headrace_gateway_received_bytes_total{}[i]))",
                    "answers": "sum(rate(headrace_gateway_sent_bytes_total{}[i]))",
                },
            ),
            Panel(
                "The log, as each process sees it",
                "Since when it has not read its own announcement back; one comes each second. Above 1.5 s the log"
                " counts as away.",
                "s",
                {
                    "gateway {{instance}}": "headrace_gateway_announcements_age_seconds{}",
                    "router {{instance}}": "headrace_router_announcements_age_seconds{}",
                },
            ),
            Panel(
                "Not delivered, not waited for",
                "Calls that the log did not take; calls that routers were told to drop; answers that came when nobody"
                " waited.",
                "ops",
                {
                    "not delivered: {{reason}}": "sum by (reason) ("
                    "rate(headrace_gateway_delivery_failures_total{}[i]))",
                    "dropped": "sum(rate(headrace_gateway_cancellations_total{}[i]))",
                    "stray answers": "sum(rate(headrace_gateway_stray_answers_total{}[i]))",
                },
            ),
            Panel(
                "REST, at Envoy",
                "Answers by class of status: Envoy alone knows of calls that never came as far as a gateway.",
                "reqps",
                {
                    "{{envoy_response_code_class}}xx": "sum by (envoy_response_code_class) ("
                    'rate(envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="rest"}[i])) > 0'
                },
                stacked=True,
            ),
        ),
        "Routers and model servers": (
            Panel(
                "Partitions",
                "Of all models. Routers that serve the same should have about the same.",
                "short",
                {"{{instance}}": "sum by (instance) (headrace_router_partitions{})"},
                stacked=True,
            ),
            Panel(
                "Rebalances",
                "While partitions move their calls wait. `lost` that grows: a router stalls for seconds.",
                "short",
                {"{{event}}": "sum by (event) (increase(headrace_router_rebalances_total{}[i]))"},
            ),
            Panel(
                "Triton ready",
                "1 where it is. At 0 its router begins no call.",
                "none",
                {"{{instance}}": "headrace_router_triton_ready{}"},
                most=1,
            ),
            Panel(
                "Triton starts in an hour",
                "How often it became ready. Again and again: it crashes, look at its log.",
                "short",
                {"{{instance}}": "sum by (instance) (increase(headrace_router_triton_starts_total{}[1h]))"},
            ),
            Panel(
                "Gateways attached",
                "By router. Fewer than there are gateways: answers to the others have no way home.",
                "short",
                {"{{instance}}": "headrace_router_gateways_attached{}"},
            ),
            Panel(
                "Held by routers",
                "Requests that are fetched and not begun, and answers that gateways have not acknowledged. Near its"
                " bound (256 MiB unless set otherwise) either stops the intake.",
                "bytes",
                {
                    "requests, {{instance}}": "headrace_router_waiting_bytes{}",
                    "answers, {{instance}}": "headrace_router_unacknowledged_bytes{}",
                },
            ),
            Panel(
                "Calls published again",
                "Why the attempt before was lost. Callers notice a wait. Beside no restart of yours something dies.",
                "ops",
                {"{{reason}}": "sum by (reason) (rate(headrace_gateway_republished_total{}[i]))"},
                stacked=True,
            ),
            Panel(
                "GPUs",
                "How busy they are, as Triton tells: nobody else of ours can. Near 1 with a queue: more of them; far"
                " from 1 with a queue: batches, instances, or the window.",
                "percentunit",
                {"{{instance}} {{gpu_uuid}}": "nv_gpu_utilization{}"},
                width=16,
                most=1,
            ),
        ),
        "Limits, usage, versions": (
            Panel(
                "Store of shared limits",
                "Shared: 1 while gateways count together. Away: 1 while the store does not answer, look after Redis.",
                "none",
                {
                    "shared, {{instance}}": "headrace_gateway_limits_shared{}",
                    "away, {{instance}}": "headrace_gateway_limit_store_away{}",
                },
                most=1,
            ),
            Panel(
                "Requests to that store",
                "How often gateways ask it, and in vain.",
                "ops",
                {"{{outcome}}": "sum by (outcome) (rate(headrace_gateway_limit_store_requests_total{}[i]))"},
            ),
            Panel(
                "Shared limits in use",
                "Near 2,000 at a gateway those beyond count there alone.",
                "short",
                {"{{instance}}": "headrace_gateway_limit_leases{}"},
            ),
            Panel(
                "Usage that is not summed",
                "Since when there is any: by so much quotas know too little. And records of it.",
                "s",
                {"since, {{instance}}": "headrace_aggregator_lag_seconds{}"},
            ),
            Panel(
                "Records of usage that wait",
                "They are small, and their topic keeps them for a week.",
                "short",
                {"{{instance}}": "headrace_aggregator_lag{}"},
            ),
            Panel(
                "Reports of usage",
                "`known` came twice, which is harmless; malformed, unknown_version and missing want a look."
                " Transactions that failed are tried again.",
                "ops",
                {
                    "{{outcome}}": "sum by (outcome) (rate(headrace_aggregator_reports_total{}[i]))",
                    "transactions {{outcome}}": "sum by (outcome) (rate(headrace_aggregator_batches_total{}[i]))",
                },
            ),
            Panel(
                "Versions",
                "What runs. Two of a kind for long: an upgrade that got stuck.",
                "short",
                {"{{process}} {{version}}": "count by (process, version) (headrace_build_info{})"},
                width=12,
                stacked=True,
            ),
            Panel(
                "Series",
                "Of each process, as Prometheus counted at its last scrape. docs/reference/metrics.md states how many"
                " there may be.",
                "short",
                {"{{job}} {{instance}}": 'scrape_samples_scraped{job=~"headrace-.*"}'},
                width=12,
            ),
        ),
    },
)

ONE_MODEL = Dashboard(
    "Headrace: model",
    "What the callers of one model get, where the time goes, and whether it has room.",
    (POOL, MODEL),
    {
        "What its callers get": (
            Panel(
                "Calls by outcome",
                "Which reasons an outcome stands for is in docs/reference/metrics.md.",
                "reqps",
                {"{{outcome}}": 'sum by (outcome) (rate(headrace_gateway_model_calls_total{model="$model"}[i])) > 0'},
                stacked=True,
            ),
            Panel(
                "How long calls take",
                "From the request's last byte to the answer, for accepted calls whose caller stayed.",
                "s",
                _quantiles("headrace_gateway_call_duration_seconds", 'model="$model"'),
            ),
            Panel(
                "Share that expires",
                "Of the same calls. Above 10 % for ten minutes somebody gets up.",
                "percentunit",
                {"{{pool}}": 'headrace:model_expired:ratio_rate5m{model="$model"}'},
                steps=_up_to(0.1, "red"),
            ),
            Panel(
                "How long calls take, as a map",
                "Two bands: two kinds of calls, or of hardware. A band that rises: a queue.",
                "s",
                {
                    "{{le}}": 'sum by (le) (rate(headrace_gateway_call_duration_seconds_bucket{model="$model"}[i]))',
                },
                kind="heatmap",
                width=12,
            ),
            Panel(
                "Bytes of a call",
                "On average, of all its calls. What large ones cost is in docs/howto/capacity-planning.md.",
                "bytes",
                {
                    "request": 'sum(rate(headrace_gateway_received_bytes_total{model="$model"}[i]))'
                    ' / sum(rate(headrace_gateway_model_calls_total{model="$model"}[i]))',
                    "answer": 'sum(rate(headrace_gateway_sent_bytes_total{model="$model"}[i]))'
                    ' / sum(rate(headrace_gateway_model_calls_total{model="$model", outcome="ok"}[i]))',
                },
                width=12,
            ),
        ),
        "Where the time goes": (
            Panel(
                "On average",
                "Waiting and Triton are parts of the call; the rest is the gateway, and the way there and back.",
                "s",
                {
                    "call": _mean("headrace_gateway_call_duration_seconds", 'model="$model"'),
                    "waiting": _mean("headrace_router_queue_wait_seconds", 'model="$model"'),
                    "in Triton": _mean("headrace_router_triton_duration_seconds", 'model="$model"'),
                },
            ),
            Panel(
                "Waiting",
                "From when the record was published to when its call began. Long: more routers, or a wider window.",
                "s",
                _quantiles("headrace_router_queue_wait_seconds", 'model="$model"'),
            ),
            Panel(
                "In Triton",
                "Its own queue, and the run. Long: its batches and instances, or the model itself.",
                "s",
                _quantiles("headrace_router_triton_duration_seconds", 'model="$model"'),
            ),
            Panel(
                "Inside Triton",
                "On average, as it says itself: nobody else can tell its queue from the run.",
                "µs",
                {
                    "queue": 'sum(rate(nv_inference_queue_duration_us{model="$model"}[i]))'
                    ' / sum(rate(nv_inference_request_success{model="$model"}[i]))',
                    "run": 'sum(rate(nv_inference_compute_infer_duration_us{model="$model"}[i]))'
                    ' / sum(rate(nv_inference_request_success{model="$model"}[i]))',
                },
                width=12,
            ),
            Panel(
                "Batch",
                "Inputs that Triton runs at once, on average; Triton alone knows. 1 with a queue: dynamic_batching is"
                " off, or the window is narrower than a batch.",
                "short",
                {
                    "inputs": 'sum(rate(nv_inference_count{model="$model"}[i]))'
                    ' / sum(rate(nv_inference_exec_count{model="$model"}[i]))'
                },
                width=12,
            ),
        ),
        "Whether it has room": (
            Panel(
                "Queue",
                "Records that no router has begun.",
                "short",
                {
                    "in the log": 'sum(headrace_router_lag_records{model="$model"})',
                    "at routers": 'sum(headrace_router_waiting{model="$model"})',
                },
                stacked=True,
            ),
            Panel(
                "Oldest wait",
                "A router's is until the call begins, a gateway's until it ends.",
                "s",
                {
                    "at routers": 'max(headrace_router_oldest_wait_seconds{model="$model"})',
                    "at gateways": 'max(headrace_gateway_oldest_wait_seconds{model="$model"})',
                },
            ),
            Panel(
                "Running, and slots",
                "By router. All slots taken and a queue: more routers, more instances, or a wider window.",
                "short",
                {
                    "running, {{instance}}": 'headrace_router_running{model="$model"}',
                    "slots, {{instance}}": 'headrace_router_window{model="$model"}',
                },
            ),
            Panel(
                "Partitions",
                "A router without any runs nothing of this model: no more routers than partitions.",
                "short",
                {"{{instance}}": 'headrace_router_partitions{model="$model"}'},
                stacked=True,
            ),
            Panel(
                "Calls in flight",
                "At all gateways, and those of them that no router may have.",
                "short",
                {
                    "in flight": 'sum(headrace_gateway_calls_waiting{model="$model"})',
                    "without a router": 'sum(headrace_gateway_calls_unowned{model="$model"})',
                },
            ),
            Panel(
                "Routers that are busy",
                "How many it would take to run what runs, with every slot taken; and how many have partitions of the"
                " model. Leave a third free.",
                "short",
                {
                    "busy": 'sum(rate(headrace_router_triton_duration_seconds_sum{model="$model"}[i]))'
                    ' / avg(headrace_router_window{model="$model"} > 0)',
                    "there": 'count(headrace_router_partitions{model="$model"} > 0)',
                },
            ),
        ),
    },
)

ONE_TENANT = Dashboard(
    "Headrace: tenant",
    "What one tenant gets, what it is refused and has left, and how that is among the others.",
    (POOL, TENANT),
    {
        "What it gets": (
            Panel(
                "Calls by outcome",
                "Which reasons an outcome stands for is in docs/reference/metrics.md.",
                "reqps",
                {
                    "{{outcome}}": "sum by (outcome) ("
                    'rate(headrace_gateway_tenant_calls_total{tenant="$tenant"}[i])) > 0'
                },
                stacked=True,
            ),
            Panel(
                "Share that is refused",
                "Of all its calls. The log's call_refused lines say why.",
                "percentunit",
                {
                    "refused": '(sum(rate(headrace_gateway_tenant_calls_total{tenant="$tenant", outcome="refused"}[i]))'
                    ' or vector(0)) / sum(rate(headrace_gateway_tenant_calls_total{tenant="$tenant"}[i]))'
                },
                most=1,
            ),
            Panel(
                "Share that expires or is lost",
                "Of its accepted calls. In a fleet that is well: its deadlines are too short.",
                "percentunit",
                {
                    "expired, lost or failed": "(sum(rate(headrace_gateway_tenant_calls_total"
                    '{tenant="$tenant", outcome=~"expired|lost|failed"}[i])) or vector(0))'
                    ' / sum(rate(headrace_gateway_tenant_calls_total{tenant="$tenant", outcome!="refused"}[i]))'
                },
                most=1,
            ),
        ),
        "What it has left": (
            Panel(
                "Calls left at once",
                "Of the tightest of its own rates, by gateway. At 0 the next call is RATE_LIMITED. Empty for who has no"
                " rate, or has not called for ten minutes.",
                "short",
                {"{{instance}}": 'headrace_gateway_rate_left_calls{tenant="$tenant"}'},
                width=12,
            ),
            Panel(
                "Quotas left",
                "As the gateway sees it that knows of least. At 0 it is QUOTA_EXHAUSTED until the day or month is over."
                " Empty for who has none, or has not called for ten minutes.",
                "percentunit",
                {"{{quota}}": 'min by (quota) (headrace_gateway_quota_left_ratio{tenant="$tenant"})'},
                width=12,
                most=1,
            ),
        ),
        "Among the others": (
            Panel(
                "Ten that call most",
                "All their calls, refused ones too.",
                "reqps",
                {"{{tenant}}": "topk(10, sum by (tenant) (rate(headrace_gateway_tenant_calls_total{}[i])))"},
                stacked=True,
            ),
            Panel(
                "Ten that are refused most",
                "One alone: tell it. All at once: a policy that was just changed.",
                "reqps",
                {
                    "{{tenant}}": "topk(10, sum by (tenant) ("
                    'rate(headrace_gateway_tenant_calls_total{outcome="refused"}[i])))'
                },
            ),
            Panel(
                "Ten nearest to a quota's end",
                "What is left of it.",
                "percentunit",
                {
                    "{{tenant}} {{quota}}": "bottomk(10, min by (tenant, quota) (headrace_gateway_quota_left_ratio{}))",
                },
                most=1,
            ),
        ),
    },
)

DASHBOARDS = {"fleet": FLEET, "model": ONE_MODEL, "tenant": ONE_TENANT}

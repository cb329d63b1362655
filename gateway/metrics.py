"""What the gateway measures, by the names that operators see.

Read at scrape; the call path only counts, in `gateway.tally`. `docs/reference/metrics.md` lists what is here, and how
many series that makes.
"""

import time
from collections.abc import Callable, Iterator, Mapping

from gateway.access import Access
from gateway.calls import InFlight, WaitingCalls
from gateway.registry import Registry
from gateway.tally import OUTCOMES, Tally, TenantTally
from headrace.runtime.certificates import OwnCertificate
from headrace.runtime.telemetry import (
    OTHER,
    BuildInfo,
    Counted,
    Counter,
    Counters,
    Gauge,
    Gauges,
    Histograms,
    Instrument,
    LoopLag,
    Samples,
)

OF_LATE_SECONDS = 600.0
"""What is left is told of tenants that called within this time."""
_NONE_WAITS = InFlight(oldest_seconds=0.0)


def instruments(
    registry: Registry,
    calls: WaitingCalls,
    tally: Tally,
    access: Access,
    *,
    republished: Mapping[str, int],
    cancelled: Callable[[], int],
    certificates: Mapping[str, OwnCertificate | None],
    lag: LoopLag,
    clock: Callable[[], float] = time.monotonic,
) -> list[Instrument]:
    """All of them. `cancelled` tells how many attempts routers were told not to run, `republished` is Delivery's."""
    started = clock()
    # A policy that grants otherwise leaves no gate in force: what a tenant has to pass is known with its next call.
    access.admission.subscribe(tally.forget_gates)
    return [
        BuildInfo("gateway"),
        *_calls(tally, registry, access, clock),
        *_in_flight(tally, registry, calls),
        *_access(tally, access, clock),
        Gauge(
            "headrace_gateway_routers_live",
            "Routers that take calls.",
            lambda: sum(1 for _ in registry.live_routers()),
        ),
        Gauge(
            "headrace_gateway_models_ready",
            "Models that some live model server has ready.",
            lambda: sum(model.ready for model in registry.models.values()),
        ),
        Gauge(
            "headrace_gateway_models_unowned",
            "Models that are ready and whose partitions no live router owns at this moment.",
            lambda: sum(model.ready and not model.owners for model in registry.models.values()),
        ),
        Gauge(
            "headrace_gateway_announcements_age_seconds",
            "Since when this gateway has not read its own announcement back.",
            lambda: clock() - started if (age := registry.announcements_age(clock())) is None else age,
        ),
        Counter("headrace_gateway_stray_answers_total", "Answers that nobody waited for.", lambda: calls.strays),
        Counted(
            "headrace_gateway_delivery_failures_total",
            "Calls that the log did not take, by reason.",
            "reason",
            calls.delivery_failures,
        ),
        Counted(
            "headrace_gateway_republished_total",
            "Calls that were published again, by why the attempt before was lost.",
            "reason",
            republished,
        ),
        Counter("headrace_gateway_cancellations_total", "Attempts that routers were told not to run.", cancelled),
        Gauges(
            "headrace_gateway_certificate_expiration_timestamp_seconds",
            "Until when the certificate in force holds.",
            ("port",),
            lambda: [((port,), each.current.ends) for port, each in certificates.items() if each is not None],
        ),
        Histograms("headrace_gateway_loop_lag_seconds", "How late a clock rings.", (), lambda: [((), lag.seconds)]),
    ]


def _calls(tally: Tally, registry: Registry, access: Access, clock: Callable[[], float]) -> Iterator[Instrument]:
    """Calls that have ended."""
    models, tenants = tally.models, tally.tenants

    def by_model() -> Samples:
        # The first that is read, and so the one that tidies up.
        for name in registry.models:
            models.label(name)
        models.forget(registry.models.__contains__, clock())
        tenants.forget(lambda name: access.admission.policy.tenant(name) is not None, clock())
        return [
            ((name, outcome), number)
            for name, model in models.items()
            for outcome, number in zip(OUTCOMES, model.outcomes, strict=True)
        ]

    yield Counted("headrace_gateway_calls_total", "Calls of ModelInfer by how they ended.", "reason", tally.reasons)
    yield Counters("headrace_gateway_model_calls_total", "Calls by model and outcome.", ("model", "outcome"), by_model)
    yield Counters(
        "headrace_gateway_tenant_calls_total",
        "Calls by tenant and outcome.",
        ("tenant", "outcome"),
        lambda: [
            ((name, outcome), number)
            for name, tenant in tenants.items()
            for outcome, number in zip(OUTCOMES, tenant.outcomes, strict=True)
            if number
        ],
    )
    yield Histograms(
        "headrace_gateway_call_duration_seconds",
        "How long accepted calls took whose caller stayed.",
        ("model",),
        lambda: [((name,), model.seconds) for name, model in models.items()],
    )
    yield Counters(
        "headrace_gateway_received_bytes_total",
        "Bytes of requests.",
        ("model",),
        lambda: [((name,), model.received) for name, model in models.items()],
    )
    yield Counters(
        "headrace_gateway_sent_bytes_total",
        "Bytes of answers.",
        ("model",),
        lambda: [((name,), model.sent) for name, model in models.items()],
    )


def _in_flight(tally: Tally, registry: Registry, calls: WaitingCalls) -> Iterator[Instrument]:
    """Calls that wait for their answer."""

    def by_model() -> Iterator[tuple[str, InFlight]]:
        waiting = calls.by_model()
        told: dict[str, InFlight] = {}
        for name in registry.models.keys() | waiting.keys():
            each, label = waiting.get(name, _NONE_WAITS), tally.models.label(name)
            known = told.get(label)
            told[label] = each if known is None else known.together(each)
        yield from told.items()

    yield Gauges(
        "headrace_gateway_calls_waiting",
        "Calls that wait for their answer.",
        ("model",),
        lambda: (((name,), each.calls) for name, each in by_model()),
    )
    yield Gauges(
        "headrace_gateway_calls_unowned",
        "Calls that wait in the log for a router.",
        ("model",),
        lambda: (((name,), each.unowned) for name, each in by_model()),
    )
    yield Gauges(
        "headrace_gateway_oldest_wait_seconds",
        "How long the oldest call that waits has waited.",
        ("model",),
        lambda: (((name,), each.oldest_seconds) for name, each in by_model()),
    )
    yield Gauge("headrace_gateway_request_bytes", "Request bytes of calls that wait.", lambda: calls.request_bytes)


def _access(tally: Tally, access: Access, clock: Callable[[], float]) -> Iterator[Instrument]:
    """Who was let in, and what is left."""
    admission, leases = access.admission, access.leases

    def of_late() -> Iterator[tuple[str, TenantTally]]:
        since = clock() - OF_LATE_SECONDS
        return (
            (name, tenant)
            for name, tenant in tally.tenants.items()
            if name != OTHER and tenant.gate is not None and tenant.called_at >= since
        )

    def rates() -> Samples:
        for name, tenant in of_late():
            left = None if tenant.gate is None else admission.left(tenant.gate)
            if left is not None:
                yield (name,), left[1]

    def quotas() -> Samples:
        for name, tenant in of_late():
            account = None if tenant.gate is None else tenant.gate.account
            for meter in () if account is None else account.meters:
                yield (name, meter.quota.name), meter.share_left

    yield Counted(
        "headrace_gateway_access_refusals_total",
        "Calls that the policy or a limit refused, by reason.",
        "reason",
        admission.refused,
    )
    yield Counted(
        "headrace_gateway_credential_refusals_total",
        "Calls that were refused for who made them, by reason.",
        "reason",
        access.audit.strangers,
    )
    yield Gauges(
        "headrace_gateway_rate_left_calls", "What is left of a tenant's tightest own rate.", ("tenant",), rates
    )
    yield Gauges("headrace_gateway_quota_left_ratio", "Which share of a quota is left.", ("tenant", "quota"), quotas)
    yield Gauge(
        "headrace_gateway_limits_shared",
        "1 while limits are counted by all gateways together, 0 where each counts by itself.",
        lambda: int(access.limits_are_shared),
    )
    yield Gauge(
        "headrace_gateway_limit_store_away",
        "1 while the store of shared limits does not answer.",
        lambda: int(leases is not None and leases.away),
    )
    yield Counted(
        "headrace_gateway_limit_store_requests_total",
        "Requests to the store of shared limits, by outcome.",
        "outcome",
        {} if leases is None else leases.requests,
    )
    yield Gauge("headrace_gateway_limit_leases", "Shared limits in use.", lambda: 0 if leases is None else leases.kept)

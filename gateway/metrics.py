"""What the gateway measures, by the names that operators see."""

from gateway.access import Access
from gateway.calls import WaitingCalls
from gateway.infer import ModelInfer
from gateway.registry import Registry
from headrace.runtime.telemetry import Counted, Gauge, Instrument


def instruments(registry: Registry, calls: WaitingCalls, infer: ModelInfer, access: Access) -> list[Instrument]:
    """Read at scrape; the call path only counts."""
    return [
        Counted("headrace_gateway_calls", "Calls of ModelInfer by how they ended.", "reason", infer.ended),
        Counted(
            "headrace_gateway_access_refusals",
            "Calls that the policy or a limit refused, by reason.",
            "reason",
            access.admission.refused,
        ),
        Gauge(
            "headrace_gateway_limits_shared",
            "1 while limits are counted by all gateways together, 0 where each counts by itself.",
            lambda: int(access.limits_are_shared),
        ),
        Gauge("headrace_gateway_calls_waiting", "Calls that wait for their answer.", lambda: len(calls)),
        Gauge("headrace_gateway_request_bytes", "Request bytes of calls that wait.", lambda: calls.request_bytes),
        Gauge("headrace_gateway_stray_answers", "Answers that nobody waited for.", lambda: calls.strays),
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
    ]

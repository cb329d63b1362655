"""What the router measures, by the names that operators see."""

from headrace.bus.answers.links import GrpcAnswerLinks
from headrace.bus.protocols import LinkState
from headrace.runtime.telemetry import Counted, Gauge, Instrument
from router.intake import Intake
from router.inventory import Inventory


def instruments(inventory: Inventory, intake: Intake, links: GrpcAnswerLinks) -> list[Instrument]:
    """Read at scrape; the call path only counts."""
    return [
        Counted("headrace_router_records", "Records of the request log by how they ended.", "outcome", intake.ended),
        Gauge("headrace_router_running", "Calls that Triton runs now.", lambda: intake.running),
        Gauge("headrace_router_waiting", "Records that are fetched and not begun.", lambda: intake.waiting),
        Gauge("headrace_router_triton_ready", "1 while Triton is ready.", lambda: float(inventory.ready)),
        Gauge(
            "headrace_router_gateways_attached",
            "Gateways that this router is attached to.",
            lambda: sum(link.state is LinkState.ATTACHED for link in links.links.values()),
        ),
    ]

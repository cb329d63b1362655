"""The page of metrics, compared with what the processes export; and how many series that makes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import gateway.metrics
import router.metrics
from aggregator.app import Summing
from gateway.access import Access
from gateway.calls import WaitingCalls
from gateway.delivery import Loss
from gateway.identity import Caller
from gateway.infer import METHOD
from gateway.limits.leases import MAX_BUCKETS
from gateway.metrics import OF_LATE_SECONDS
from gateway.quotas import Account
from gateway.registry import Registry
from gateway.settings import GatewaySection, ReplySettings
from gateway.tally import OUTCOMES, Tally
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.memory.usage import MemoryUsage
from headrace.bus.protocols import RouterKey
from headrace.bus.settings import KafkaSettings, ReplyTrustSettings
from headrace.bus.topics import request_topic
from headrace.runtime.telemetry import CALL_SECONDS, FORGET_SECONDS, MOST_NAMES, OTHER, Instrument, LoopLag, Telemetry
from headrace.store.engine import Store
from headrace.store.settings import DatabaseSettings
from router.app import Router
from router.intake import OUTCOMES as RECORD_OUTCOMES
from router.settings import RouterSection, RouterSettings, TritonSettings
from tests.unit.gateway.announcing import POOL, description, heartbeat, registry
from tests.unit.test_docs import DOCS, bare, cells, table, text_of

PAGE = DOCS / "reference" / "metrics.md"
TENANTS, MODELS = 1000, 200
ALL_QUOTAS = ", ".join(
    f"{what}_per_{period}: 1000" for what in ("calls", "bytes", "model_seconds") for period in ("day", "month")
)
GRANTS = f"{{models: ['*'], limits: {{calls_per_second: 10}}, quotas: {{{ALL_QUOTAS}}}}}"
PATIENCE_SECONDS = 20.0


def gateway_access(folder: Path, tenants: int = 1) -> Access:
    """Every tenant has a rate, and every quota there is."""
    policy = folder / "policy.yaml"
    policy.write_text("tenants:\n" + "".join(f"  tenant-{number}: {GRANTS}\n" for number in range(tenants)))
    section = GatewaySection(reply=ReplySettings(advertised_host="gateway"), policy_file=policy)
    database = DatabaseSettings(url=f"sqlite:///{folder / 'headrace.db'}")
    return Access(section, database, pool=POOL, source="gateway/g/0", gateways=lambda: 1)


def gateway_instruments(known: Registry, access: Access, tally: Tally) -> list[Instrument]:
    calls = WaitingCalls(max_calls=10, max_bytes=10)
    republished = dict.fromkeys(Loss.__members__, 0)
    return gateway.metrics.instruments(
        known, calls, tally, access, republished=republished, cancelled=lambda: 0, certificates={}, lag=LoopLag()
    )


def a_router(folder: Path) -> Router:
    secret = folder / "secret"
    secret.write_text("shared")
    settings = RouterSettings(
        kafka=KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        reply_trust=ReplyTrustSettings(secret_file=secret),
        router=RouterSection(id="r", triton=TritonSettings(address="127.0.0.1:1")),
    )
    return Router(settings, Whereabouts(["127.0.0.1"]))


def router_instruments(made: Router) -> list[Instrument]:
    return router.metrics.instruments(
        made._inventory,
        made._intake,
        made._links,
        made.consumer,
        pool=POOL,
        certificate=None,
        lag=LoopLag(),
        announcements_age=lambda: 0.0,
    )


def aggregator_instruments(folder: Path) -> list[Instrument]:
    return Summing(MemoryUsage(), Store(f"sqlite:///{folder / 'a.db'}")).instruments()


Row = tuple[str, str, tuple[str, ...]]


def rows_of(section: str) -> list[Row]:
    """Name, type and labels of every metric in a section's table."""
    text = text_of(PAGE).split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [cells(line) for line in text.splitlines() if line.startswith("| `headrace_")]
    return [(bare(row[0]), row[1], tuple(re.findall(r"`(\w+)`", row[2]))) for row in lines]


def exported(instruments: Iterable[Instrument]) -> list[Row]:
    return [(each.name, each.kind, each.labels) for each in instruments]


@pytest.fixture
async def everything(tmp_path: Path) -> dict[str, list[Instrument]]:
    """The instruments of every process, by its section of the page."""
    return {
        "Gateway": gateway_instruments(registry(), gateway_access(tmp_path), Tally()),
        "Router": router_instruments(a_router(tmp_path)),
        "Aggregator": aggregator_instruments(tmp_path),
    }


@pytest.mark.parametrize("process", ["Gateway", "Router", "Aggregator"])
async def test_the_page_has_every_metric_and_no_other(process: str, everything: dict[str, list[Instrument]]) -> None:
    shared, own = rows_of("Every process"), rows_of(process)

    assert Counter(shared + own) == Counter(exported(everything[process]))


async def test_names_say_what_they_are(everything: dict[str, list[Instrument]]) -> None:
    """By Prometheus' conventions: one prefix a process, `_total` on counters and on them alone, base units."""
    for process, instruments in everything.items():
        for name, kind, labels in exported(instruments):
            assert name.startswith((f"headrace_{process.lower()}_", "headrace_build_info"))
            assert re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name)
            assert name.endswith("_total") == (kind == "counter"), name
            assert name.endswith("_seconds") or kind != "histogram"
            assert not re.search(r"_(ms|millis|micros|minutes|hours|kb|mb|percent)(_|$)", name)
            assert "le" not in labels


async def test_the_units_of_the_page_are_those_of_the_names() -> None:
    for row in table(PAGE, "metric", columns=5, every=True):
        name, unit = bare(row[0]).removesuffix("_total"), row[3]
        for known in ("seconds", "bytes", "ratio"):
            assert name.endswith(known) == (unit == known), name


def test_the_page_has_every_outcome_of_a_call() -> None:
    rows = table(PAGE, "outcome")

    assert sorted(bare(row[0]) for row in rows) == sorted(OUTCOMES)
    tally = Tally()
    for outcome, reasons in ((bare(row[0]), re.findall(r"`([A-Z_]+)`", row[1])) for row in rows):
        for reason in reasons:
            entry = tally.begin("acme")
            entry.model = outcome
            tally.ended(entry, reason)
            assert tally.models[outcome].outcomes[OUTCOMES.index(outcome)], reason


def test_the_page_has_every_outcome_of_a_record() -> None:
    [row] = [row for row in table(PAGE, "metric", every=True) if bare(row[0]) == "headrace_router_records_total"]

    assert set(re.findall(r"`(\w+)`", row[4])) == set(RECORD_OUTCOMES)


def test_the_page_has_the_bounds() -> None:
    text = text_of(PAGE)

    assert f"first {MOST_NAMES:,} models and the first {MOST_NAMES:,} tenants" in text
    assert f"the series `{OTHER}`" in text
    for bounds in (CALL_SECONDS, LoopLag().seconds.bounds):
        *most, last = (f"{bound:g}" for bound in bounds)
        assert f"end at {', '.join(most)} and {last} s" in text or f"lag at {', '.join(most)} and {last} s" in text
    assert "within ten minutes" in text
    assert OF_LATE_SECONDS == 600
    assert f"Near {MAX_BUCKETS:,} those" in text
    assert FORGET_SECONDS == 3600
    assert "an hour after a scrape has found it gone" in text


# How many series.


def stated(process: str) -> int:
    """What the page says, which its formula gives."""
    [row] = [row for row in table(PAGE, "process") if row[0] == process]
    formula = row[1].replace("\N{MULTIPLICATION SIGN}", "*").replace("M", str(MODELS)).replace("T", str(TENANTS))
    assert re.fullmatch(r"[\d+* ()]+", formula)
    assert eval(formula) == int(row[2])  # noqa: S307  digits and signs, by the line above
    return int(row[2])


def series(instruments: Sequence[Instrument]) -> Counter[str]:
    """How many series a scrape has, by metric; what every process has is in it."""
    text = Telemetry(*instruments).scrape().decode()
    return Counter({family.name: len(family.samples) for family in text_string_to_metric_families(text)})


async def test_a_gateway_has_no_more_series_than_the_page_states(tmp_path: Path) -> None:
    """With every model known, and every tenant having called in every way there is; and as many strangers."""
    models = [f"model-{number}" for number in range(MODELS)]
    live = RouterKey("r", 1)
    known = registry(heartbeat(live), *(description(live, model=model) for model in models), attached=(live,))
    access, tally = gateway_access(tmp_path, TENANTS), Tally()
    instruments = gateway_instruments(known, access, tally)
    for tenant in range(TENANTS):
        name = f"tenant-{tenant}"
        gate = access.admission.gate(Caller(name, "key"), models[tenant % MODELS], method=METHOD)
        assert gate is not None
        assert isinstance(gate.account, Account)
        for reason in tally.reasons:
            entry = tally.begin(name)
            entry.model, entry.gate = models[tenant % MODELS], gate
            tally.ended(entry, reason)
            tally.ended(tally.begin(f"stranger {tenant}"), reason)
    for reason in tally.reasons:
        access.admission.refused[reason] += 1
        access.audit.strangers[reason] += 1

    told = series(instruments)

    assert told["headrace_gateway_tenant_calls"] == (TENANTS + 1) * len(OUTCOMES)
    assert told["headrace_gateway_quota_left_ratio"] == TENANTS * 6
    assert told["headrace_gateway_rate_left_calls"] == TENANTS
    assert told["headrace_gateway_oldest_wait_seconds"] == MODELS
    assert 0.95 * stated("gateway") < told.total() <= stated("gateway"), told


async def test_a_router_has_no_more_series_than_the_page_states(tmp_path: Path) -> None:
    made = a_router(tmp_path)
    made._intake.connect(made.consumer, made._links)
    made._intake.set_windows({request_topic(POOL, "interactive", f"model-{number}"): 4 for number in range(MODELS)})
    for times in made._intake.times.values():
        times.in_log.observe(0.1)
        times.in_triton.observe(0.1)

    told = series(router_instruments(made))

    assert told["headrace_router_oldest_wait_seconds"] == MODELS
    assert 0.95 * stated("router") < told.total() <= stated("router"), told


async def test_an_aggregator_has_no_more_series_than_the_page_states(tmp_path: Path) -> None:
    told = series(aggregator_instruments(tmp_path))

    assert told.total() <= stated("aggregator"), told

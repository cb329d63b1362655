"""A real Prometheus scrapes the running stack, and answers what dashboards and alerts ask."""

import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
import yaml

from headrace.local.ports import FreePorts
from tests.acceptance.calls import client, echo, simple, slow, with_key
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import get
from tests.acceptance.stack import Stack
from tests.acceptance.stack_fixture import LIMITED_KEY
from tests.monitoring import FOLDER, Query, dashboard_queries, documented_queries, read, rules
from tests.parts import missing

SECONDS = 30.0
SETTLE_SECONDS = 60.0
"""Scraped each second, a rate has two samples after some two; the rules then build on each other."""
CHOSEN = {"$__rate_interval": "30s", "[7d:5m]": "[30s:1s]", "$pool": ".*", "$model": "simple"}
TENANTS = ("limited", "development")
"""One has a rate and is refused all its calls, the other is answered."""
JOBS = {"gateway": "headrace-gateway", "router": "headrace-router", "aggregator": "headrace-aggregator"}

EMPTY: Mapping[str, str] = {
    "fleet: GPUs": "this Triton has no GPU",
    "fleet: Requests to that store": "there is no store of shared limits",
    "fleet: Reasons of ours": "nothing fails by our fault",
    "tenant: Quotas left": "no tenant of the stack has a quota",
    "tenant: Ten nearest to a quota's end": "no tenant of the stack has a quota",
    'HeadraceGatewayDown: absent(up{job="headrace-gateway"})': "the gateway is there",
    **dict.fromkeys(
        (
            "HeadraceCertificateExpiring: min by (pool, instance, port)"
            f" (headrace_{process}_certificate_expiration_timestamp_seconds) - time() < 14 * 86400"
            for process in ("gateway", "router")
        ),
        "a local stack has no certificates",
    ),
}
"""Queries that may give nothing here, and why."""


class Prometheus:
    """One that runs, asked over HTTP."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises AssertionError with what Prometheus says where it is an error."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()) from None

    def ask(self, query: str) -> list[Any]:
        """The series of an answer."""
        for variable, value in CHOSEN.items():
            query = query.replace(variable, value)
        series: list[Any] = []
        for tenant in TENANTS if "$tenant" in query else TENANTS[:1]:
            series += self.get("query", query=query.replace("$tenant", tenant))["result"]
        return series

    def ready(self) -> bool:
        """Whether it answers."""
        with suppress(OSError, AssertionError):
            return bool(self.get("query", query="vector(1)"))
        return False

    def up(self) -> set[str]:
        """The jobs that were scraped."""
        return {each["metric"]["job"] for each in self.ask("up == 1")}


def configuration(stack: Stack) -> dict[str, Any]:
    """The example for `headrace up`, each second, with this stack's targets."""
    made: dict[str, Any] = read(FOLDER / "prometheus.yaml")
    made["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    made["rule_files"] = [str(FOLDER / pattern) for pattern in made["rule_files"]]
    described = json.loads((stack.state_dir / "stack.json").read_text())
    targets = []
    for component in described["components"]:
        name, ports = component["name"].rsplit("-", 1)[0], component["ports"]
        job = JOBS.get(name, name)
        if job in {*JOBS.values(), "triton", "envoy"}:
            port = ports["metrics"] if job == "triton" else ports["admin"]
            targets.append({"targets": [f"127.0.0.1:{port}"], "labels": {"job": job, "pool": "default"}})
    [scrape] = made["scrape_configs"]
    del scrape["file_sd_configs"]
    scrape["static_configs"] = targets
    return made


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that scrapes every process of the stack each second, and has the rules."""
    binary = shutil.which("prometheus") or shutil.which("prometheus", path="/usr/bin")
    if binary is None:
        missing("prometheus", "install Debian's package `prometheus`")
    home = tmp_path_factory.mktemp("prometheus")
    (home / "prometheus.yaml").write_text(yaml.safe_dump(configuration(stack)))
    address = f"127.0.0.1:{FreePorts('127.0.0.1').take()}"
    command = [
        binary,
        f"--config.file={home / 'prometheus.yaml'}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (home / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            made = Prometheus(address)
            eventually(made.ready, seconds=SECONDS, what="Prometheus answers")
            jobs = {*JOBS.values(), "triton", "envoy"}
            eventually(lambda: made.up() == jobs, seconds=SECONDS, what="all processes are scraped")
            yield made
        finally:
            process.terminate()
            process.wait(SECONDS)


@pytest.fixture(scope="module")
def told(stack: Stack, prometheus: Prometheus) -> Iterator[Prometheus]:
    """The same, while calls are made that are answered, refused, limited, left and out of time."""
    over = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="calls") as calls:
        calling = calls.submit(_call, stack, over)
        try:
            yield prometheus
        finally:
            over.set()
            calling.result()


def _call(stack: Stack, over: threading.Event) -> None:
    with client(stack.grpc) as caller, client(stack.grpc, with_key(LIMITED_KEY)) as limited:
        while not over.wait(0.1):
            caller.infer(simple())
            get(stack.http, "/v2/health/live")
            caller.begin(slow(100)).cancel()
            for refused in (
                lambda: caller.infer(simple(), seconds=0.001),
                lambda: caller.infer(echo(b"x"), seconds=0.001),
                # Of all limits the one that uses nothing up: others are for the tests of limits.
                lambda: limited.infer(echo(b"x" * 2000)),
                lambda: caller.send("ModelInfer", b"", metadata=with_key("hr_nobody_s3cret")),
            ):
                with suppress(grpc.RpcError):
                    refused()


def unanswered(prometheus: Prometheus, queries: Iterable[Query]) -> set[str]:
    """Where the queries stand that give nothing."""
    return {query.where for query in queries if not prometheus.ask(query.expr)}


def conditions() -> Iterator[Query]:
    """What alerts fire for: each condition by itself, as 0 or 1 instead of nothing or the value."""
    for alert in rules("alert"):
        for condition in alert.conditions:
            judged = re.sub(r"(==|!=|>=|<=|>|<)(\s+)(?=[\d.])", r"\1 bool\2", condition)
            yield Query(f"{alert.name}: {condition}", judged)


def test_every_query_has_an_answer(told: Prometheus) -> None:
    queries = [*dashboard_queries(), *conditions(), *documented_queries()]

    def those_alone_are_empty() -> bool:
        # In one look: a rate that had an answer has none for a while when a busy machine scrapes late.
        assert unanswered(told, queries) == EMPTY.keys()
        return True

    eventually(those_alone_are_empty, seconds=SETTLE_SECONDS, what="every query has an answer")


def test_every_rule_is_evaluated_and_nothing_fires(told: Prometheus) -> None:
    def evaluated() -> list[Any]:
        found = [rule for group in told.get("rules")["groups"] for rule in group["rules"]]
        return found if found and all(rule["health"] != "unknown" for rule in found) else []

    found = eventually(evaluated, seconds=SETTLE_SECONDS, what="every rule was evaluated")

    assert {rule["name"] for rule in found} == {rule.name for kind in ("record", "alert") for rule in rules(kind)}
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in found if rule.get("state") == "firing"] == []

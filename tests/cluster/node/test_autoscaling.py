"""The Triton pods' autoscaler, by Headrace's own metrics, while a real backlog grows and drains.

Prometheus scrapes by deploy/monitoring's configuration and prometheus-adapter answers by components/monitoring's rules.
Two times are shorter than what is deployed: a scrape each 5 s instead of 15, and going down after half a minute without
need instead of ten minutes.
"""

import csv
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, fields
from typing import Self

import pytest
import yaml

from tests.acceptance.eventually import eventually
from tests.cluster.conftest import ROOT
from tests.cluster.kubectl import FIELD_MANAGER, Document
from tests.cluster.node import chart
from tests.cluster.node.conftest import HERE, Node
from tests.cluster.node.deployed.headrace import NAMESPACE, TRITON, Headrace

DONE = "headrace_router_triton_duration_seconds_count"
METRICS = "/apis/custom.metrics.k8s.io/v1beta1/namespaces/headrace/pods/%2A/"
WAIT, LAG = "headrace_router_oldest_wait_seconds", "headrace_router_lag_records"
MOST = 3
"""Of the local overlay's autoscaler."""
SERVED_SECONDS = 180.0
GAP_SECONDS = 30.0
SCALED_SECONDS = 300.0
CALLERS, CALLS = 40, 400
OUT = ROOT / "build" / "cluster" / "autoscaling"


@pytest.fixture(scope="module")
def metrics(node: Node, headrace: Headrace) -> Iterator[None]:
    """Metrics of pods, as an administrator sets them up from this repository's files."""
    node.require_own()
    kubectl = node.kubectl
    scraping = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus-pods.yaml").read_text())
    scraping["global"]["scrape_interval"] = "5s"
    del scraping["rule_files"]
    (pods,) = scraping["scrape_configs"]
    assert pods.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    pods["http_sd_configs"] = [{"url": "http://127.0.0.1:8080", "refresh_interval": "5s"}]
    values = yaml.safe_load((ROOT / "deploy/k8s/components/monitoring/prometheus-adapter.yaml").read_text())
    manager = ("--server-side", f"--field-manager={FIELD_MANAGER}")
    monitoring = str(HERE / "monitoring.yaml")
    kubectl.run("apply", *manager, f"--filename={monitoring}")
    kubectl.apply(
        [
            _map(
                "prometheus",
                {"prometheus.yaml": json.dumps(scraping), "discovery.py": (HERE / "discovery.py").read_text()},
            ),
            _map("prometheus-adapter", {"config.yaml": json.dumps({"rules": values["rules"]["custom"]})}),
        ]
    )
    for name in ("prometheus", "prometheus-adapter"):
        kubectl.run("--namespace=monitoring", "rollout", "status", f"deployment/{name}", "--timeout=120s", seconds=130)
    headrace.scale(TRITON, 1)
    eventually(
        lambda: _served(headrace),
        seconds=SERVED_SECONDS,
        what=f"{LAG} and {WAIT} are served",
    )
    yield
    kubectl.run("delete", f"--filename={monitoring}", "--timeout=120s", seconds=130)


def _map(name: str, data: dict[str, str]) -> Document:
    metadata = {"name": name, "namespace": "monitoring"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def _served(headrace: Headrace) -> tuple[float, float] | None:
    """Lag and wait; None while either is not told."""
    lag, wait = _metric(headrace, LAG), _metric(headrace, WAIT)
    return None if lag is None or wait is None else (lag, wait)


def _metric(headrace: Headrace, name: str) -> float | None:
    """The largest value of any pod, as the autoscaler's controller is told; None where it is told none."""
    done = headrace.kubectl.attempt("get", "--raw", METRICS + name)
    values = [_number(item["value"]) for item in json.loads(done.stdout)["items"]] if done.returncode == 0 else []
    return max(values, default=None)


def _number(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


@dataclass(frozen=True)
class Sample:
    """One look."""

    seconds: float
    lag: float
    wait: float
    wanted: int
    ready: int


@dataclass
class Watch:
    """Looks once a second, from a thread of its own, until the block ends."""

    headrace: Headrace
    began: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _failed: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._check()

    def last(self) -> Sample:
        """The last look."""
        self._check()
        return self.samples[-1]

    def _check(self) -> None:
        if self._failed is not None:
            # No AssertionError, which who waits for something would take for "not yet".
            raise RuntimeError("nobody watches any more") from self._failed

    def _look(self) -> None:
        try:
            while not self._ended.is_set():
                self.samples.append(self._sample())
                self._ended.wait(1.0)
        except BaseException as exc:  # noqa: BLE001  told by `last`, or at the end
            self._failed = exc

    def _sample(self) -> Sample:
        # Served before the watch began, and there is never no pod; but a scrape may come late.
        lag, wait = eventually(lambda: _served(self.headrace), seconds=GAP_SECONDS, what=f"{LAG}, {WAIT} are served")
        found = self.headrace.kubectl.get("deployment", "--namespace", NAMESPACE, TRITON)
        seconds = round(time.monotonic() - self.began, 1)
        return Sample(seconds, lag, wait, found["spec"]["replicas"], found["status"].get("readyReplicas", 0))


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("metrics")
def test_a_backlog_brings_pods_that_take_part_and_go_again(headrace: Headrace) -> None:
    shorter = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 30}}}
    headrace.run("patch", "hpa", TRITON, "--type=merge", f"--patch={json.dumps({'spec': shorter})}")
    words = ("--model", "slow", "--seconds", "1", "--pause", "0", "--callers", str(CALLERS), "--calls", str(CALLS))
    with Watch(headrace) as watch:
        with headrace.load(*words) as load:
            headrace.await_ready(TRITON, MOST, seconds=SCALED_SECONDS)
            report = load.stop()
        drained = time.monotonic() - watch.began
        # Before any of them goes again.
        ran = {pod["metadata"]["name"]: headrace.metric(pod, DONE, model="slow") for pod in headrace.pods(TRITON)}
        eventually(
            lambda: watch.last().wanted == 1 and watch.last().ready == 1,
            seconds=2 * SCALED_SECONDS,
            what="one pod is left",
        )
    _keep(watch.samples)
    assert (len(report.answered), report.errors) == (CALLS, ())
    assert len(ran) == MOST
    assert all(ran.values()), ran
    assert max(sample.wanted for sample in watch.samples) == MOST
    rises = [later.wanted - earlier.wanted for earlier, later in zip(watch.samples, watch.samples[1:], strict=False)]
    first_down = next(number for number, rise in enumerate(rises) if rise < 0)
    assert all(rise >= 0 for rise in rises[:first_down])
    assert all(rise <= 0 for rise in rises[first_down:])
    assert watch.samples[first_down + 1].seconds > drained - 30


def _keep(samples: list[Sample]) -> None:
    """The figures and their picture, for docs/reliability.md."""
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with OUT.with_suffix(".csv").open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(column.name for column in fields(Sample))
        rows.writerows(astuple(sample) for sample in samples)
    OUT.with_suffix(".svg").write_text(
        chart.svg(
            f"{CALLS} calls of 1 s each, {CALLERS} at a time; a pod runs two at once",
            [sample.seconds for sample in samples],
            [
                chart.Panel(
                    "backlog: headrace_router_lag_records, of the pod with most", {"": [s.lag for s in samples]}
                ),
                chart.Panel("headrace_router_oldest_wait_seconds; the target is 2", {"": [s.wait for s in samples]}),
                chart.Panel(
                    "Triton pods", {"wanted": [s.wanted for s in samples], "ready": [s.ready for s in samples]}
                ),
            ],
        )
    )

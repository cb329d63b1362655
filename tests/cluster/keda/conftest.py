"""KEDA on the real node: its operator and metrics adapter, and a Prometheus for it to ask.

Collected only where this folder is named, as `make test-keda` does: KEDA takes minutes to build.
"""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import PROGRAMS, ROOT
from tests.cluster.kubectl import FIELD_MANAGER, Document, Kubectl
from tests.cluster.node import conftest as nodes
from tests.cluster.node.conftest import DEPLOY_SECONDS, Node
from tests.cluster.node.deployed.headrace import TRITON, Headrace
from tests.parts import missing

HERE = Path(__file__).parent
IMAGES = PROGRAMS.home / "images-keda.tar"
IMPORT_SECONDS = 180.0
# The operator makes certificates, and waits until its kubelet shows it what it made: up to two minutes.
KEDA_SECONDS = 300.0
PROMETHEUS = ("monitoring", "prometheus", "headrace-test-prometheus", "prometheus-operated")
"""Of tests/cluster/node/monitoring.yaml: KEDA's adapter answers in place of Prometheus' own."""
TIMES = pytest.StashKey[list[tuple[str, float]]]()

node = nodes.node


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave this folder out of runs that do not name it."""
    named = [Path(config.invocation_params.dir, word.split("::")[0]).resolve() for word in config.args]
    if any(path == HERE or HERE in path.parents for path in named):
        return None
    return HERE in collection_path.parents or None


@pytest.fixture(scope="session")
def headrace(node: Node) -> Headrace:
    """The local overlay with components/keda, scaled by KEDA, and serving with the pod that a new pool starts with."""
    node.require_own()
    _start_keda(node.kubectl)
    _start_prometheus(node.kubectl)
    deployed = Headrace(node.kubectl)
    deployed.deploy(HERE / "deployed", seconds=DEPLOY_SECONDS)
    deployed.await_ready(TRITON, 1, seconds=DEPLOY_SECONDS)
    return deployed


def _start_keda(kubectl: Kubectl) -> None:
    if not IMAGES.exists() or not (PROGRAMS.home / "keda").exists():
        missing("KEDA", "`make test-keda` builds it, and runs these tests in tests/cluster/node/enter")
    words = ("ctr", "-n", "k8s.io", "images", "import", "--no-unpack", str(IMAGES))
    subprocess.run(words, check=True, capture_output=True, timeout=IMPORT_SECONDS)
    _apply(kubectl, "--kustomize", str(HERE / "operator"))
    for name in ("keda-operator", "keda-metrics-apiserver"):
        _await_rollout(kubectl, "keda", name, KEDA_SECONDS)
    kubectl.run("wait", "--for=condition=Available", "apiservice/v1beta1.external.metrics.k8s.io", "--timeout=50s")


def _start_prometheus(kubectl: Kubectl) -> None:
    """With deploy/monitoring's configuration, where components/keda looks for it."""
    scraping = yaml.safe_load((ROOT / "deploy" / "monitoring" / "prometheus-pods.yaml").read_text())
    del scraping["rule_files"]
    (pods,) = scraping["scrape_configs"]
    assert pods.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    pods["http_sd_configs"] = [{"url": "http://127.0.0.1:8080", "refresh_interval": "5s"}]
    files = {
        "prometheus.yaml": json.dumps(scraping),
        "discovery.py": (nodes.HERE / "discovery.py").read_text(),
    }
    named = yaml.safe_load_all((nodes.HERE / "monitoring.yaml").read_text())
    documents: list[Document] = [document for document in named if document["metadata"]["name"] in PROMETHEUS]
    settings = {"name": "prometheus", "namespace": "monitoring"}
    kubectl.apply([*documents, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": settings, "data": files}])
    _await_rollout(kubectl, "monitoring", "prometheus", DEPLOY_SECONDS)


def _apply(kubectl: Kubectl, *words: str) -> None:
    kubectl.run("apply", "--server-side", f"--field-manager={FIELD_MANAGER}", *words)


def _await_rollout(kubectl: Kubectl, namespace: str, name: str, seconds: float) -> None:
    words = ("rollout", "status", f"deployment/{name}", f"--timeout={int(seconds)}s")
    kubectl.run("--namespace", namespace, *words, seconds=seconds + 10)


def pytest_configure(config: pytest.Config) -> None:
    """One list for the whole run."""
    config.stash[TIMES] = []


@pytest.fixture
def times(pytestconfig: pytest.Config) -> list[tuple[str, float]]:
    """What happened, and after how many seconds; shown at the end."""
    return pytestconfig.stash[TIMES]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, as Markdown."""
    told = config.stash[TIMES]
    if told:
        terminalreporter.write_line("")
        rows = ("| what | after |", "| --- | --- |", *(f"| {what} | {seconds:.0f} s |" for what, seconds in told))
        for row in rows:
            terminalreporter.write_line(row)

"""What is there twice is the same: copies that kustomize needs within its folders, and what the docs promise."""

import re
from pathlib import Path

import pytest

from tests.manifests.conftest import Rendered
from tests.manifests.effective import SECRETS
from tests.manifests.modules import module
from tests.manifests.rendering import K8S, ROOT
from tests.manifests.scaling import adapted, pod_metrics

MONITORING = K8S / "components" / "monitoring"
ENVOY = K8S / "components" / "envoy"


def test_rules_and_dashboards_are_those_of_deploy_monitoring() -> None:
    """`deploy/k8s/components/monitoring/generate.py` makes them so."""
    generate = module(MONITORING / "generate.py")

    assert (MONITORING / "prometheusrule.yaml").read_text() == generate.rules()
    there = {path.name: path.read_text() for path in (MONITORING / "dashboards").glob("*.json")}
    assert there == generate.dashboards()


def test_every_dashboard_is_given_to_grafana(rendered: Rendered) -> None:
    found = rendered("production").find("ConfigMap", "headrace-dashboards")

    assert found is not None
    assert set(found["data"]) == {path.name for path in (MONITORING / "dashboards").glob("*.json")}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_envoy_is_told_what_the_local_one_is() -> None:
    """`deploy/k8s/components/envoy/generate.py` makes it so."""
    generate = module(ENVOY / "generate.py")

    assert (ENVOY / "envoy.json").read_text() == generate.text(tls=False)
    assert (K8S / "components" / "envoy-tls" / "envoy.json").read_text() == generate.text(tls=True)
    assert (ENVOY / "rest.binpb").read_bytes() == generate.descriptors().read_bytes()


def test_envoys_ports_are_its_containers(rendered: Rendered) -> None:
    generate = module(ENVOY / "generate.py")
    envoy = next(pod for pod in rendered("staging").pods if pod.component == "envoy").container("envoy")

    declared = {port["name"]: port["containerPort"] for port in envoy["ports"]}
    assert declared == {"rest": generate.REST_PORT, "admin": generate.OPS_PORT}


@pytest.mark.parametrize("name", ["config.pbtxt", "1/model.py"])
def test_the_local_model_is_that_of_the_repository(name: str) -> None:
    local = K8S / "overlays" / "local" / "models" / "simple" / name

    assert local.read_text() == (ROOT / "model_repository" / "simple" / name).read_text()


def test_the_adapter_serves_what_autoscalers_ask_for(rendered: Rendered) -> None:
    asked = {name for each in rendered("production").of("HorizontalPodAutoscaler") for name in pod_metrics(each)}

    assert asked
    assert asked == adapted()


def test_pod_monitors_find_every_port_that_is_scraped(rendered: Rendered) -> None:
    """Each pod of ours that measures, by labels and by the port's name."""
    manifests = rendered("production")
    measured = set()
    for monitor in manifests.of("PodMonitor"):
        chosen = monitor["spec"]["selector"]
        for pod in manifests.pods:
            if not chosen["matchLabels"].items() <= pod.labels.items():
                continue
            if not all(pod.labels.get(e["key"]) in e["values"] for e in chosen.get("matchExpressions", ())):
                continue
            ports = {port["name"] for container in pod.lasting for port in container.get("ports", ())}
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                assert endpoint["port"] in ports, (monitor["metadata"]["name"], pod.name)
                measured.add((pod.component, endpoint["port"]))

    assert measured == {
        ("gateway", "admin"),
        ("router", "admin"),
        ("router", "metrics"),
        ("aggregator", "admin"),
        ("envoy", "admin"),
    }


def test_the_page_lists_the_secrets_that_pods_want() -> None:
    page = (ROOT / "docs" / "howto" / "deploy.md").read_text()
    rows = re.findall(r"^ *\| `(headrace-[a-z-]+)` \| ([^|]+) \|", page, re.MULTILINE)

    assert {name: frozenset(re.findall(r"`([^`]+)`", keys)) for name, keys in rows} == dict(SECRETS)


@pytest.mark.parametrize("page", sorted(K8S.rglob("README.md")), ids=lambda page: str(page.relative_to(K8S)))
def test_every_link_of_a_readme_leads_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in target]

    assert [each for each in targets if not (page.parent / each.partition("#")[0]).resolve().exists()] == []


@pytest.mark.parametrize("folder", sorted(p.parent for p in K8S.glob("components/**/kustomization.yaml")), ids=str)
def test_every_component_says_what_it_is(folder: Path) -> None:
    if "kind: Component" in (folder / "kustomization.yaml").read_text():
        assert (folder / "README.md").exists()

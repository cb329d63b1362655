"""Every rule, on every overlay and every set of components that makes sense."""

from collections.abc import Callable, Iterator

import pytest

from tests.manifests import grace, network, pod_rules, scaling
from tests.manifests.conftest import Rendered
from tests.manifests.rendering import CASES, Manifests

Rule = Callable[[Manifests], Iterator[str]]
RULES: tuple[Rule, ...] = (*pod_rules.RULES, *grace.RULES, *scaling.RULES, *network.RULES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}")
def test_what_is_rendered_keeps_the_rule(rule: Rule, case: str, rendered: Rendered) -> None:
    assert list(rule(rendered(case))) == []


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_there_once(case: str, rendered: Rendered) -> None:
    found = [(each["kind"], each["metadata"]["name"]) for each in rendered(case).objects]

    assert sorted(set(found)) == sorted(found)


@pytest.mark.parametrize("case", ["staging", "production", "production-spot", "canary", "local"])
def test_policies_know_the_ports_that_there_are(case: str, rendered: Rendered) -> None:
    """The table that flows are tried with is the pods' own."""
    for pod in rendered(case).pods:
        assert network.declared(pod) <= set(network.PORTS.get(pod.component, ())), pod.name

"""What a service account may not do is refused by the cluster's own RBAC, asked with the account's own token."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.cluster import manifests
from tests.cluster.applied import Applied
from tests.cluster.conftest import Cluster
from tests.cluster.kubectl import Document
from tests.cluster.tokens import Bearer

NOBODY = "headrace-test-nobody"
OWNERS = "headrace-test-owners"
FORBIDDEN = 403


@pytest.fixture(scope="module")
def owner(cluster: Cluster) -> Iterator[Bearer]:
    """An account that may do everything."""
    kubectl = cluster.kubectl
    kubectl.run("create", "namespace", OWNERS)
    kubectl.run("create", "serviceaccount", "owner", f"--namespace={OWNERS}")
    who = f"--serviceaccount={OWNERS}:owner"
    kubectl.run("create", "clusterrolebinding", OWNERS, "--clusterrole=cluster-admin", who)
    yield Bearer.of(kubectl, OWNERS, "owner")
    kubectl.run("delete", "clusterrolebinding", OWNERS)
    kubectl.run("delete", "namespace", OWNERS, "--wait=false")


@dataclass(frozen=True)
class Deed:
    """Something that a pod taken over by someone else would try."""

    name: str
    method: str
    path: str
    body: Document | None = None


def _pod() -> Document:
    container = {"name": "shell", "image": "shell"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "taken"}, "spec": {"containers": [container]}}


def _binding(namespace: str) -> Document:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "taken"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }


def deeds(namespace: str) -> list[Deed]:
    """From reading a neighbour's keys to owning the cluster."""
    here = f"/api/v1/namespaces/{namespace}"
    return [
        Deed("read secrets", "GET", f"{here}/secrets"),
        Deed("read one secret", "GET", f"{here}/secrets/headrace-keys"),
        Deed("read settings", "GET", f"{here}/configmaps"),
        Deed("see pods", "GET", f"{here}/pods"),
        Deed("run pods", "POST", f"{here}/pods?dryRun=All", _pod()),
        Deed("enter pods", "POST", f"{here}/pods/any/exec?command=id&stdout=true"),
        Deed("evict pods", "DELETE", f"{here}/pods?dryRun=All"),
        Deed(
            "scale itself",
            "PATCH",
            f"/apis/apps/v1/namespaces/{namespace}/deployments/headrace-gateway/scale?dryRun=All",
            {"spec": {"replicas": 1000}},
        ),
        Deed(
            "bind itself to a role",
            "POST",
            f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings?dryRun=All",
            _binding(namespace),
        ),
        Deed(
            "make tokens of others",
            "POST",
            f"{here}/serviceaccounts/default/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        ),
        Deed("read the secrets of all", "GET", "/api/v1/secrets"),
        Deed("see nodes", "GET", "/api/v1/nodes"),
        Deed("see other namespaces", "GET", "/api/v1/namespaces"),
    ]


def accounts(applied: Applied) -> list[str]:
    """Those that the manifests bring, and the one that pods get which name none."""
    named = [found["metadata"]["name"] for found in manifests.of_kind(applied.known, "ServiceAccount")]
    return [*named, "default"]


def granted(applied: Applied, account: str) -> list[Document]:
    """The rules of the roles that the manifests bind it to."""
    roles = {
        (role["kind"], role["metadata"]["name"]): role["rules"]
        for role in manifests.of_kind(applied.known, "Role", "ClusterRole")
    }
    return [
        rule
        for binding in manifests.of_kind(applied.known, "RoleBinding", "ClusterRoleBinding")
        if any(subject["name"] == account for subject in binding["subjects"])
        for rule in roles[binding["roleRef"]["kind"], binding["roleRef"]["name"]]
    ]


def rules(cluster: Cluster, namespace: str, account: str) -> list[Document]:
    """Everything that the server says it may do there."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    user = f"system:serviceaccount:{namespace}:{account}"
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated")
    whom = (f"--as={user}", *(f"--as-group={group}" for group in groups))
    words = ("create", "--validate=false", "-f", "-", "--output=json")
    answer = cluster.kubectl.run(*words, *whom, given=json.dumps(review))
    status: Document = json.loads(answer)["status"]
    return [*status["resourceRules"], *status["nonResourceRules"]]


def test_no_account_may_do_more_than_its_role_says(applied: Applied, cluster: Cluster) -> None:
    """All that it may, as the server lists it, beyond what everybody may: ask who it is, and what there is."""
    everybody = rules(cluster, applied.namespace, NOBODY)

    for account in accounts(applied):
        beyond = [rule for rule in rules(cluster, applied.namespace, account) if rule not in everybody]
        assert beyond == granted(applied, account), account


def test_what_an_account_may_not_do_is_refused(applied: Applied, cluster: Cluster) -> None:
    """With its real token; a 403 and no 401: the server knows who asks."""
    for account in accounts(applied):
        if granted(applied, account):
            continue  # what it may do is compared above
        bearer = Bearer.of(cluster.kubectl, applied.namespace, account)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        _, who = bearer.ask("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        assert who["status"]["userInfo"]["username"] == f"system:serviceaccount:{applied.namespace}:{account}"

        answers = {deed.name: bearer.ask(deed.method, deed.path, deed.body) for deed in deeds(applied.namespace)}

        assert {name: status for name, (status, _) in answers.items()} == dict.fromkeys(answers, FORBIDDEN)
        for _, refusal in answers.values():
            assert f'User "system:serviceaccount:{applied.namespace}:{account}" cannot' in refusal["message"]


def test_who_may_is_let_do_it(owner: Bearer) -> None:
    """So it is rights that refuse the others, and nothing about the requests."""
    for deed in deeds(OWNERS):
        status, answer = owner.ask(deed.method, deed.path, deed.body)
        assert status != FORBIDDEN, (deed.name, answer)

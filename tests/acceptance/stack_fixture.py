"""The running system, for all tests that do it no harm."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.local.doctor import examine
from headrace.local.paths import cache_dir
from tests.acceptance.calls import FEW_MODELS, MODELS, until_callable
from tests.acceptance.stack import Stack, started_stack
from tests.integration.triton_fixture import both_repositories
from tests.parts import missing

GUEST_KEY = "hr_guest_s3cret"
"""A key of the key file, without any role, of a tenant that sees everything."""
NARROW_KEY = "hr_narrow_s3cret2"
"""Of a tenant that sees `simple` only."""
OBSERVER_KEY = "hr_observer_s3cret3"
"""Of the same tenant: may ask, and run nothing."""
CURBED_ADMIN_KEY = "hr_curbed_s3cret4"
"""Has the role admin, in that tenant, which is not granted administration."""
LIMITED_KEY = "hr_limited_s3cret5"
"""Of a tenant with limits that are soon met."""
LIMITED_REST_KEY = "hr_limitedrest_s3cret10"
"""Of one for the tests of REST: the few calls of either are for one test."""
STRANGER_KEY = "hr_stranger_s3cret6"
"""Of a tenant that the policy does not know."""
EXPIRED_KEY, EARLY_KEY, DISABLED_KEY = "hr_expired_s3cret7", "hr_early_s3cret8", "hr_disabled_s3cret9"

_POLICY = """\
tenants:
  development: {models: ["*"], allow: [infer, metadata, admin]}
  guests: {models: ["*"], allow: [infer, metadata, admin]}
  narrow: {models: [simple]}
  limited:
    models: ["*"]
    limits: {calls_per_second: 0.01, burst: 3}
    by_model:
      slow: {concurrency: 1}
      echo: {request_bytes: 1000}
  limited-rest:
    models: ["*"]
    limits: {calls_per_second: 0.01, burst: 3}
"""


def _keys() -> str:
    rows = [
        (GUEST_KEY, "guests", "[]", ""),
        (NARROW_KEY, "narrow", "[]", ""),
        (OBSERVER_KEY, "narrow", '["observer"]', ""),
        (CURBED_ADMIN_KEY, "narrow", '["admin"]', ""),
        (LIMITED_KEY, "limited", "[]", ""),
        (LIMITED_REST_KEY, "limited-rest", "[]", ""),
        (STRANGER_KEY, "stranger", "[]", ""),
        (EXPIRED_KEY, "guests", "[]", "expires = 2020-01-01T00:00:00Z"),
        (EARLY_KEY, "guests", "[]", "not_before = 2090-01-01T00:00:00Z"),
        (DISABLED_KEY, "guests", "[]", "disabled = true"),
    ]
    return "".join(
        f'[keys.{key.split("_")[1]}]\ntenant = "{tenant}"\nroles = {roles}\n'
        f'secret_sha256 = "{hashlib.sha256(key.rpartition("_")[2].encode()).hexdigest()}"\n{more}\n'
        for key, tenant, roles, more in rows
    )


@pytest.fixture(scope="session")
def _parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `headrace up` needs is here, as `headrace doctor` sees it."""
    for found in examine(state_dir=tmp_path_factory.getbasetemp(), cache=cache_dir(), ports=(), host="127.0.0.1"):
        if found.needed and not found.ok:
            missing(f"{found.subject} ({found.text})", found.remedy)
    request.getfixturevalue("broker_install")  # prepares what every stack's broker starts quicker with


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled models and those of the tests."""
    return both_repositories(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="session")
def few_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models without weights, for stacks that are not about models: they start in half the time."""
    return both_repositories(tmp_path_factory.mktemp("few_models"), FEW_MODELS)


@pytest.fixture(scope="session")
def stack(_parts: None, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One of each, with all models. Tests leave it as they found it."""
    home = tmp_path_factory.mktemp("stack")
    keys, policy = home / "test-keys.toml", home / "test-policy.yaml"
    keys.write_text(_keys())
    policy.write_text(_POLICY)
    env = {"HEADRACE_GATEWAY__IDENTITY__KEY_FILE": str(keys), "HEADRACE_GATEWAY__POLICY_FILE": str(policy)}
    with started_stack(home, "--model-repository", str(repository), env=env) as running:
        until_callable(running, MODELS)
        yield running

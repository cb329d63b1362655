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
"""A key of the key file, without any role."""


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
    keys = home / "keys.toml"
    digest = hashlib.sha256(GUEST_KEY.rpartition("_")[2].encode()).hexdigest()
    keys.write_text(f'[keys.guest]\ntenant = "guests"\nroles = []\nsecret_sha256 = "{digest}"\n')
    env = {"HEADRACE_GATEWAY__IDENTITY__KEY_FILE": str(keys)}
    with started_stack(home, "--model-repository", str(repository), env=env) as running:
        until_callable(running, MODELS)
        yield running

"""Options of all tests, and an environment that none of them can lean on."""

import os

import pytest
from hypothesis import settings

# An example that takes long on a busy machine is no failure; one that hangs meets pytest's timeout.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

pytest_plugins = [  # the last one imports from the others, which pytest must load first
    "tests.integration.broker_fixture",
    "tests.integration.postgres_fixture",
    "tests.integration.redis_fixture",
    "tests.integration.triton_fixture",
    "tests.acceptance.stack_fixture",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("headrace", "the parts that tests run against")
    group.addoption(
        "--kafka", default="embedded", metavar="embedded|HOST:PORT", help="the broker: one of our own, or one that runs"
    )
    group.addoption(
        "--triton",
        default="embedded",
        metavar="embedded|HOST:PORT",
        help="Triton's gRPC port: our own, or one that runs",
    )


def pytest_configure() -> None:
    """Forget the settings of whoever runs the tests: the processes that tests start would inherit them."""
    for name in list(os.environ):
        if name.upper().startswith("HEADRACE_"):
            del os.environ[name]

"""A test machine that stands still for a while is no member that has died, and no broker that is away."""

import pytest

from headrace.bus.control import announcements, client, topics, usage
from headrace.bus.log import consumer
from tests.integration.broker_fixture import MEMBER_SECONDS

REQUEST_SECONDS = 30.0
"""How long our own clients wait for a broker that is there."""


@pytest.fixture
def members_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of a group is missed late, as the broker that tests share does it for the newer protocol."""
    monkeypatch.setitem(consumer._MEMBERSHIP["classic"], "session.timeout.ms", MEMBER_SECONDS * 1000)


@pytest.fixture(autouse=True)
def brokers_have_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where a broker is killed: how soon that is told is what those tests are about."""
    if "mortal" not in request.fixturenames:
        for module in (announcements, client, topics, usage):
            monkeypatch.setattr(module, "REQUEST_SECONDS", REQUEST_SECONDS)

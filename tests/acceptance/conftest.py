"""Clients of the running system."""

from collections.abc import Generator, Iterator

import pytest

from tests.acceptance.calls import Client, client, with_key
from tests.acceptance.stack import Stack
from tests.acceptance.stack_fixture import GUEST_KEY


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure comes what its stack did."""
    report = yield
    if report.failed:
        stacks = {id(each): (name, each) for name, each in item.funcargs.items() if isinstance(each, Stack)}
        report.sections += [(f"stack {name}", stack.account()) for name, stack in stacks.values()]
    return report


@pytest.fixture
def gateway(stack: Stack) -> Iterator[Client]:
    """A client of the gateway, with the development key."""
    with client(stack.grpc) as made:
        yield made


@pytest.fixture
def guest(stack: Stack) -> Iterator[Client]:
    """A client of the gateway whose key has no role."""
    with client(stack.grpc, with_key(GUEST_KEY)) as made:
        yield made


@pytest.fixture
def anonymous(stack: Stack) -> Iterator[Client]:
    """A client of the gateway without a key."""
    with client(stack.grpc, ()) as made:
        yield made


@pytest.fixture
def triton(stack: Stack) -> Iterator[Client]:
    """A client of the Triton behind the gateway."""
    with client(stack.triton, ()) as made:
        yield made

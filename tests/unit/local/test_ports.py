"""Which ports a stack takes for itself."""

import os
import random
import subprocess
import sys

import pytest

from headrace.local import ports
from headrace.local.ports import FreePorts, PortsError, is_free

HOST = "127.0.0.1"
FIRST = 10_000 + os.getpid() % 400 * 20
PAIRS = (range(port, port + 2) for port in range(FIRST, FIRST + 1000, 2))
"""A pair is used once: what a process was given it keeps."""


@pytest.fixture
def two_ports(monkeypatch: pytest.MonkeyPatch) -> range:
    """No others are there to choose from, and nobody else chooses from those."""
    two = next(pair for pair in PAIRS if all(is_free(HOST, port) for port in pair))
    monkeypatch.setattr(ports, "CHOSEN_PORTS", two)
    monkeypatch.setattr(ports, "TRIES", len(two))
    return two


def test_no_port_is_given_twice(two_ports: range) -> None:
    given = {FreePorts(HOST).take(), FreePorts(HOST).take()}

    assert given == set(two_ports)
    with pytest.raises(PortsError, match="found no free port"):
        FreePorts(HOST).take()


def test_what_the_user_named_is_given_to_nobody_else(two_ports: range) -> None:
    free = FreePorts(HOST, taken=frozenset({two_ports[0]}))

    assert free.take() == two_ports[1]
    with pytest.raises(PortsError):
        free.take()


def test_a_port_that_a_living_process_was_given_is_not_given_to_another(two_ports: range) -> None:
    """Not even while nothing listens there, as when a child of that process is restarted."""
    take_both = f"""if True:
        from headrace.local import ports
        ports.CHOSEN_PORTS, ports.TRIES = {two_ports!r}, 2
        free = ports.FreePorts({HOST!r})
        print(free.take(), free.take(), flush=True)
        input()
    """
    other = subprocess.Popen(
        [sys.executable, "-c", take_both], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert {int(port) for port in other.stdout.readline().split()} == set(two_ports)

        with pytest.raises(PortsError):
            FreePorts(HOST).take()

    assert FreePorts(HOST).take() in two_ports


def test_processes_that_are_seeded_alike_choose_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ports, "is_free", lambda _, port: asked.append(port))

    for _ in range(2):
        random.seed(7)
        with pytest.raises(PortsError):
            FreePorts(HOST).take()

    assert asked[: ports.TRIES] != asked[ports.TRIES :]

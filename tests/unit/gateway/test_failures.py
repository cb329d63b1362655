"""Who fails again and again hears of it late, and nobody else does."""

import asyncio

import pytest

from gateway import failures as failures_module
from gateway.failures import Failures, Slowed

ONE, OTHER = "ipv4:10.0.0.7:5000", "ipv4:10.0.0.8:5000"
HOUR = 3600.0
PATIENCE_SECONDS = 30.0


def test_ten_failures_go_unpunished_and_one_more_each_second() -> None:
    failures = Failures()

    assert [failures.delay(ONE, 0.0) for _ in range(12)] == [0.0] * 10 + [1.0] * 2
    assert [failures.delay(ONE, 1.0) for _ in range(2)] == [0.0, 1.0]
    assert [failures.delay(ONE, 100.0) for _ in range(11)] == [0.0] * 10 + [1.0]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (ONE, "ipv4:10.0.0.7:5001", True),
        (ONE, OTHER, False),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8::ffff%5D:2", True),
        ("ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8:0:1::1%5D:1", False),
        ("unix:", "unix:", True),
    ],
)
def test_a_network_fails_together(one: str, other: str, together: bool) -> None:
    failures = Failures()
    for _ in range(10):
        failures.delay(one, 0.0)

    assert (failures.delay(other, 0.0) > 0) is together


def test_so_many_networks_are_remembered_and_the_last_ones_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures_module, "_MOST_NETWORKS", 100)
    failures = Failures(burst=1)
    failures.delay(ONE, 0.0)
    failures.delay(OTHER, 0.0)
    for number in range(98):
        failures.delay(f"ipv4:10.1.0.{number}:1", 0.0)
    assert failures.delay(ONE, 0.0), "used again: not the next to be forgotten"

    failures.delay("ipv4:10.2.0.1:1", 0.0)

    assert len(failures) == 100
    assert failures.delay(ONE, 0.0)
    assert not failures.delay(OTHER, 0.0), "forgotten"


async def kept_back(slowed: Slowed, peer: str = ONE) -> "asyncio.Task[None]":
    """A failure whose refusal waits."""
    task = asyncio.create_task(slowed.failed(peer))
    before = slowed.waiting
    async with asyncio.timeout(PATIENCE_SECONDS):
        while slowed.waiting == before:
            assert not task.done()
            await asyncio.sleep(0)
    return task


async def test_a_refusal_is_kept_back_for_its_time() -> None:
    slowed = Slowed(Failures(burst=1, delay_seconds=0.01))
    await slowed.failed(ONE)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await (await kept_back(slowed))

    assert slowed.waiting == 0


async def test_others_are_told_at_once_meanwhile() -> None:
    slowed = Slowed(Failures(burst=1, delay_seconds=HOUR))
    await slowed.failed(ONE)
    task = await kept_back(slowed)

    async with asyncio.timeout(PATIENCE_SECONDS):
        await slowed.failed(OTHER)

    assert not task.done()
    task.cancel()
    await asyncio.wait({task})
    assert slowed.waiting == 0, "who leaves is forgotten"


async def test_what_is_kept_back_is_let_go_at_the_end() -> None:
    slowed = Slowed(Failures(burst=1, delay_seconds=HOUR))
    await slowed.failed(ONE)
    waiting = [await kept_back(slowed) for _ in range(3)]

    slowed.release()

    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*waiting)
        await slowed.failed(ONE)


async def test_so_many_are_kept_back_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures_module, "_MOST_SLOWED", 2)
    slowed = Slowed(Failures(burst=1, delay_seconds=HOUR))
    await slowed.failed(ONE)
    waiting = [await kept_back(slowed) for _ in range(2)]

    async with asyncio.timeout(PATIENCE_SECONDS):
        await slowed.failed(ONE)

    assert slowed.waiting == 2
    slowed.release()
    await asyncio.gather(*waiting)

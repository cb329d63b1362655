"""What the benchmarks of access make of what they measured."""

from pathlib import Path

import pytest

from benchmarks import access, fairness, shared_limits
from benchmarks.load import Offered
from benchmarks.rounds import Measurement
from benchmarks.tenants import few, many
from gateway.identity import KeyFile
from gateway.policy.document import load_policy


def measured(peer: str, round_number: int, cpu_us: float) -> Measurement:
    return Measurement(
        round=round_number,
        case="c",
        peer=peer,
        calls=1,
        seconds=1,
        calls_per_second=1,
        p50_ms=1,
        p99_ms=1,
        max_ms=1,
        checked=0,
        cpu_us={},
        relay_cpu_us=cpu_us,
        foreign_cores=0,
        rss_mib={},
    )


def offered(*accepted: int, p99_ms: float = 1.0, **refused: int) -> Offered:
    return Offered(accepted=accepted, refused=refused, unsent=1, p50_ms=1, p99_ms=p99_ms, max_ms=1, checked=0)


def test_a_gateway_is_compared_within_its_round() -> None:
    seen = [measured("off", 0, 100), measured("limits", 0, 110), measured("off", 1, 200), measured("limits", 1, 202)]

    assert access.ratios(seen, "c", "limits") == pytest.approx([1.1, 1.01])
    assert access.ratios(seen, "another", "limits") == []


def test_the_quiet_tenant_is_compared_with_itself_alone_in_its_round() -> None:
    windows = [
        fairness.Window(round=number, beside=beside, quiet=offered(p99_ms=p99), noisy=None, cores={})
        for number, beside, p99 in ((0, "alone", 10), (0, "noise", 15), (1, "alone", 20), (1, "noise", 50))
    ]

    assert fairness.ratios(windows, "noise") == [1.5, 2.5]


def test_what_came_in_is_added_up_over_gateways_second_by_second() -> None:
    run = shared_limits.together("deny", [offered(5, 1, RATE_LIMITED=2), offered(6, 2, RATE_LIMITED=1, LOG_FULL=1)])

    assert list(run.accepted) == [11, 3]
    assert run.refused == {"RATE_LIMITED": 3, "LOG_FULL": 1}
    assert run.unsent == 2


def test_the_most_that_may_come_in_is_that_of_the_design() -> None:
    assert shared_limits.most(100, 30, gateways=3) == pytest.approx(100 + 3000 + 3 * (25 + 25 / 3))


def test_written_policies_and_keys_are_what_a_gateway_reads(tmp_path: Path) -> None:
    for made, names in (
        (many(tmp_path / "a", tenants=3, keys=7, quotas=True, everywhere=True), {"tenant-0", "tenant-1", "tenant-2"}),
        (few(tmp_path / "b", {"x": "concurrency: 1", "y": "calls_per_second: 2"}), {"x", "y"}),
    ):
        assert load_policy(made.policy_file).tenants.keys() == names
        known = KeyFile(made.key_file)
        for tenant, key in made.keys.items():
            caller = known(key)
            assert caller is not None
            assert caller.tenant == tenant

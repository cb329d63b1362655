"""The loads that are measured, and the ratios that Headrace is to reach."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Case:
    """One load: how large a tensor, how many calls at a time."""

    name: str
    floats: int
    in_flight: int
    calls: int
    """Calls of one measured window: three to eight seconds for the quicker peers."""
    check_every: int
    """Every how many answers one is compared byte by byte."""
    cpu_by_raw_proxy: float | None = None
    """Headrace's CPU per request (gateway and router) is to be at most so many times the raw proxy's."""
    cpu_by_mlserver: float | None = None
    """The same against MLServer."""
    p50_by_raw_proxy: float | None = None
    """Headrace's p50 is to be at most so many times the raw proxy's."""


CASES = (
    Case(name="16 floats, 1 in flight", floats=16, in_flight=1, calls=6000, check_every=64, p50_by_raw_proxy=3.0),
    Case(name="16 floats, 8 in flight", floats=16, in_flight=8, calls=10000, check_every=64),
    Case(
        name="16 floats, 32 in flight",
        floats=16,
        in_flight=32,
        calls=16000,
        check_every=64,
        cpu_by_raw_proxy=1.8,
        cpu_by_mlserver=1.35,
    ),
    Case(
        name="16 floats, 128 in flight",
        floats=16,
        in_flight=128,
        calls=20000,
        check_every=64,
        cpu_by_raw_proxy=1.6,
        cpu_by_mlserver=1.0,
    ),
    Case(
        name="64 KiB, 8 in flight",
        floats=16 * 1024,
        in_flight=8,
        calls=8000,
        check_every=64,
        cpu_by_raw_proxy=2.2,
        cpu_by_mlserver=0.9,
    ),
    Case(
        name="4 MiB, 2 in flight",
        floats=1024 * 1024,
        in_flight=2,
        calls=250,
        check_every=16,
        cpu_by_raw_proxy=1.3,
        cpu_by_mlserver=0.25,
    ),
)

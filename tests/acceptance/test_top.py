"""`headrace top` against a running stack."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

from tests.acceptance.calls import Client, simple
from tests.acceptance.eventually import eventually
from tests.acceptance.stack import Stack, headrace

SECONDS = 60.0
CALLS = 5


def top(stack: Stack, *arguments: str) -> str:
    """What it says once every process has answered it: it gives each half a second, and a busy machine needs more."""

    def look() -> str:
        command = headrace("top", "--once", "--interval", "0.3", "--state-dir", str(stack.state_dir), *arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.stderr == ""
        assert "no answer in time" not in done.stdout
        assert done.returncode == 0, done.stdout
        return done.stdout

    return eventually(look, seconds=SECONDS, what="all processes answer in time")


def told(stack: Stack) -> Any:
    return json.loads(top(stack, "--json"))


def told_while(stack: Stack, work: Callable[[], object]) -> Any:
    """What it sees in a second in which the work is done time and again."""
    command = headrace("top", "--once", "--json", "--interval", "1", "--state-dir", str(stack.state_dir))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as looking:
        try:
            while looking.poll() is None:
                work()
            assert looking.stdout is not None
            return json.load(looking.stdout)
        finally:
            looking.kill()


def model(board: Any) -> Any:
    return next(each for each in board["models"] if each["name"] == "simple")


def test_calls_are_seen_at_their_model_and_their_tenant(stack: Stack, gateway: Client) -> None:
    before = model(told(stack))["calls"]
    for _ in range(CALLS):
        gateway.infer(simple())

    board = told(stack)

    row = model(board)
    assert row["calls"] == before + CALLS
    assert (row["ready"], row["routers"], row["queue_records"]) == (True, 1, 0)
    assert row["window"] >= 1
    assert next(each for each in board["tenants"] if each["name"] == "development")["calls"] >= CALLS


def test_what_runs_meanwhile_has_rates_and_latencies(stack: Stack, gateway: Client) -> None:
    def board_with_calls() -> Any:
        board = told_while(stack, lambda: gateway.infer(simple()))
        # A machine that stands still for that second lets no call through, or processes answer too late.
        if not all(each["up"] for each in (*board["gateways"], *board["routers"])):
            return None
        row = model(board)
        return board if row["calls_per_second"] and row["wait_p50_seconds"] is not None else None

    board = eventually(board_with_calls, seconds=SECONDS, what="calls are seen")

    row = model(board)
    assert 0 < row["p50_seconds"] <= row["p99_seconds"]
    assert 0 <= row["wait_p50_seconds"] <= row["wait_p99_seconds"]
    assert board["totals"]["calls_per_second"] >= row["calls_per_second"]


def test_gateway_and_router_are_up_and_know_each_other(stack: Stack) -> None:
    board = told(stack)

    assert [each["address"] for each in board["gateways"]] == stack.ready["admin"]
    assert [each["address"] for each in board["routers"]] == stack.ready["router_admin"]
    for each in (*board["gateways"], *board["routers"]):
        assert (each["up"], each["ready"], each["state"], each["peers"]) == (True, True, "ready", 1)
        assert each["memory_bytes"] > 1 << 20


def test_the_table_says_the_same(stack: Stack) -> None:
    table = top(stack)

    assert {"simple", "gateway", "router"} <= {line.split()[0] for line in table.splitlines() if line}

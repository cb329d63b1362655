"""Two gateways before two routers: all share the work, and one of each can leave or die under load without a loss."""

import asyncio
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import (
    FEW_MODELS,
    Client,
    client,
    echo,
    ended,
    held,
    recording,
    simple,
    slow,
    sums,
    until_callable,
)
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import get, metric
from tests.acceptance.stack import HEAL_SECONDS, LONG_DRAIN, Stack, started_stack

SECONDS = 60.0
CALL_SECONDS = 120.0
"""For calls that are held while something happens."""
PAUSE_SECONDS = 0.02
"""Between the calls of one caller: more of them would show no more, and take what CPU there is from what is tested."""
SLOW_WINDOW = 2
"""How many calls of `slow` a router hands to Triton at once, by the model's own config."""
PATIENT = {**LONG_DRAIN, "HEADRACE_GATEWAY__DELIVERY_SECONDS": "60"}
"""Settings for stacks under load: when the machine has stood still, some call is always on its way to the broker, and
leaves it too late for the usual 10 s."""


@pytest.fixture(scope="module")
def pair(_parts: None, few_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two of each. Tests leave it whole."""
    options = ("--model-repository", str(few_models), "--replicas", "2", "--gateways", "2")
    with started_stack(tmp_path_factory.mktemp("pair"), *options, env=PATIENT) as running:
        until_callable(running, FEW_MODELS)
        yield running


@pytest.fixture
def whole(pair: Stack) -> Stack:
    """The stack once both routers are live to both gateways."""
    for admin in pair.ready["admin"]:
        eventually(
            lambda: metric(admin, "headrace_gateway_routers_live") == 2,  # noqa: B023
            seconds=HEAL_SECONDS,
            what="both routers are live",
        )
    return pair


@contextmanager
def tritons(stack: Stack) -> Iterator[list[Client]]:
    addresses = [each["grpc"] for each in stack.ready["triton"]]
    with client(addresses[0], ()) as first, client(addresses[1], ()) as second:
        yield [first, second]


@pytest.mark.parametrize("place", [0, 1])
def test_each_gateway_answers_and_both_tritons_work(whole: Stack, place: int) -> None:
    """Calls of several models, so that whoever owns which, both Tritons are asked."""
    with tritons(whole) as both, client(whole.ready["grpc"][place]) as gateway:
        before = [executions(each) for each in both]
        calls = [gateway.begin(build) for _ in range(25) for build in (simple(), echo(b"x"), recording(b"x"), slow(1))]
        assert all(call.result().raw_output_contents for call in calls)
        ran = [executions(each) - count for each, count in zip(both, before, strict=True)]

    assert min(ran) > 0, ran


def executions(triton: Client) -> int:
    told = triton.ask("ModelStatistics", oip.ModelStatisticsRequest()).model_stats
    return sum(int(each.execution_count) for each in told)


def test_statistics_are_the_sum_of_both(whole: Stack) -> None:
    def agree() -> bool:
        with tritons(whole) as both, client(whole.grpc) as gateway:
            return gateway.executions("simple") == sum(each.executions("simple") for each in both)

    assert eventually(agree, seconds=SECONDS, what="the gateway tells the sum")


def test_an_unload_reaches_every_triton_and_every_gateway(whole: Stack) -> None:
    request = oip.RepositoryModelUnloadRequest(model_name="recording")
    asked = oip.ModelReadyRequest(name="recording")
    with tritons(whole) as both, client(whole.ready["grpc"][0]) as first, client(whole.ready["grpc"][1]) as second:
        first.ask("RepositoryModelUnload", request)
        try:
            assert not any(each.ask("ModelReady", asked).ready for each in (first, *both))
            eventually(lambda: not second.ask("ModelReady", asked).ready, seconds=SECONDS, what="the other hears of it")
        finally:
            first.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="recording"))
        assert all(each.ask("ModelReady", asked).ready for each in (first, *both))
        eventually(lambda: second.ask("ModelReady", asked).ready, seconds=SECONDS, what="the other hears of it")


class Load:
    """Callers that call time and again, until they are told to stop; how their calls ended is counted."""

    def __init__(self, addresses: list[str], callers: int = 4) -> None:
        self.ended: Counter[str] = Counter()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._callers = [(addresses[number % len(addresses)], number) for number in range(callers)]

    @contextmanager
    def running(self) -> Iterator[None]:
        with ThreadPoolExecutor(len(self._callers)) as pool:
            callers = [pool.submit(self._call, *caller) for caller in self._callers]
            try:
                eventually(lambda: self.ended["answered"] > 50, seconds=SECONDS, what="the load runs")
                yield
                answered = self.ended["answered"]
                eventually(lambda: self.ended["answered"] > answered + 50, seconds=SECONDS, what="and goes on")
            finally:
                self._stop.set()
                for caller in callers:
                    caller.result()

    def _call(self, address: str, value: int) -> None:
        with client(address) as gateway:
            while not self._stop.wait(PAUSE_SECONDS):
                outcome = self._outcome(gateway, value)
                with self._lock:
                    self.ended[outcome] += 1
                if outcome == "no connection":
                    return

    def _outcome(self, gateway: Client, value: int) -> str:
        try:
            assert sums(gateway.infer(simple(value=value)))[0] == value
        except grpc.RpcError as error:
            how = ended(error)
            return how.reason or ("no connection" if "connect" in how.text.lower() else f"{how.code} {how.text}")
        return "answered"


def test_a_router_leaves_under_load_without_a_loss(whole: Stack, tmp_path: Path) -> None:
    """What it runs it answers; what it has not begun is run by the other one. It leaves its group and comes back."""
    load, release = Load(whole.ready["grpc"]), tmp_path / "release"
    with client(whole.grpc) as gateway:
        # More than both windows: whoever owns the model runs as many of them as it may, until they are released.
        calls = [gateway.begin(held(release), seconds=CALL_SECONDS) for _ in range(8)]
        leaving = eventually(lambda: busy_router(whole), seconds=SECONDS, what="a router has calls that wait")
        calls += [gateway.begin(slow(1), seconds=CALL_SECONDS) for _ in range(40)]
        admin = whole.ready["router_admin"][int(leaving[-1])]
        with load.running():
            since = whole.kill(leaving, signal.SIGTERM)
            eventually(lambda: metric(admin, "headrace_router_waiting") == 0, seconds=SECONDS, what="it gave them back")
            assert metric(admin, "headrace_router_running") >= SLOW_WINDOW, "what it runs it does not give back"
            release.touch()
            outcomes = Counter(how(call) for call in calls)
            whole.until_back(leaving, since)

    assert set(load.ended) == {"answered"}, load.ended
    assert set(outcomes) == {"answered"}, outcomes


@pytest.mark.parametrize(
    ("part", "signum"), [("router", signal.SIGKILL), ("triton", signal.SIGKILL), ("router", signal.SIGTERM)]
)
def test_one_of_two_goes_under_load_and_no_caller_notices(
    whole: Stack, tmp_path: Path, part: str, signum: signal.Signals
) -> None:
    """What it had is run by the other one, and every call has its own answer, once."""
    load, release = Load(whole.ready["grpc"]), tmp_path / "release"
    answered = answers(whole)
    with client(whole.grpc) as gateway:
        calls = [gateway.begin(held(release), seconds=CALL_SECONDS) for _ in range(8)]
        calls += [gateway.begin(slow(1), seconds=CALL_SECONDS) for _ in range(40)]
        busy = eventually(lambda: busy_router(whole), seconds=SECONDS, what="a router has calls that run and wait")
        name = busy.replace("router", part)
        with load.running():
            since = whole.kill(name, signum)
            release.touch()
            outcomes = Counter(how(call) for call in calls)
            whole.until_back(name, since)

    assert set(load.ended) == {"answered"}, load.ended
    assert set(outcomes) == {"answered"}, outcomes
    total = load.ended["answered"] + len(calls)
    eventually(lambda: answers(whole) == answered + total, seconds=SECONDS, what="each was answered once")


def answers(stack: Stack) -> float:
    return sum(metric(admin, "headrace_gateway_calls_total", reason="OK") for admin in stack.ready["admin"])


def busy_router(stack: Stack) -> str | None:
    """A router that runs as many calls of `slow` as it may, and has more of them that wait."""
    for number, admin in enumerate(stack.ready["router_admin"]):
        if metric(admin, "headrace_router_running") == SLOW_WINDOW and metric(admin, "headrace_router_waiting") > 0:
            return f"router-{number}"
    return None


def how(call: Any) -> str:
    error = call.exception()
    return "answered" if error is None else str(ended(error))


class Balancer:
    """Takes connections for those gateways that say that they are ready, as a Service of Kubernetes does.

    It knows nothing of calls: a connection stays where it is.
    """

    def __init__(self, stack: Stack) -> None:
        self._gateways = list(zip(stack.ready["admin"], stack.ready["grpc"], strict=True))
        self._turn = 0
        self.lied: list[str] = []
        """Gateways that said that they are ready, took no connection, and said it again."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await self._connected()
        self._writers.add(back)
        await asyncio.gather(self._pass_on(reader, back), self._pass_on(there, writer))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(SECONDS):
            while True:
                for admin, address in self._in_turn():
                    for _ in range(2):  # one that was ready may have gone by the time that a busy machine asks it
                        if not await asyncio.to_thread(is_ready, admin):
                            break
                        with suppress(OSError):
                            host, _, port = address.rpartition(":")
                            return await asyncio.open_connection(host, int(port))
                    else:
                        self.lied.append(address)
                await asyncio.sleep(0.05)  # the pace of asking

    def _in_turn(self) -> list[tuple[str, str]]:
        self._turn += 1
        first = self._turn % len(self._gateways)
        return self._gateways[first:] + self._gateways[:first]

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


def is_ready(admin: str) -> bool:
    try:
        return get(admin, "/readyz")[0] == HTTPStatus.OK
    except (OSError, HTTPException):
        return False


@pytest.mark.usefixtures("_parts")
async def test_gateways_restart_one_by_one_behind_a_balancer_and_no_caller_notices(
    few_models: Path, tmp_path: Path
) -> None:
    """Callers are plain clients with one connection each, which they make anew when they are asked to."""
    # Notice for callers to move, several times their connections' age for a busy machine. Each restart takes so much
    # longer, and so does the stop of the stack, which gives a gateway 15 s.
    env = PATIENT | {
        "HEADRACE_GATEWAY__GRPC__CONNECTION_AGE_SECONDS": "1",
        "HEADRACE_GATEWAY__DRAIN__NOTICE_SECONDS": "5",
    }
    options = ("--model-repository", str(few_models), "--gateways", "2")
    with started_stack(tmp_path / "restarted", *options, env=env) as stack:
        await asyncio.to_thread(until_callable, stack)
        balancer = Balancer(stack)
        async with balancer as address:
            load = Load([address], callers=8)
            await asyncio.to_thread(restart_each, stack, load)

    assert balancer.lied == []
    assert set(load.ended) == {"answered"}, load.ended


def restart_each(stack: Stack, load: Load) -> None:
    with load.running():
        for name in ("gateway-0", "gateway-1"):
            since = stack.kill(name, signal.SIGTERM)
            stack.until_back(name, since)
            admin = stack.ready["admin"][int(name[-1])]
            eventually(lambda: is_ready(admin), seconds=HEAL_SECONDS, what=f"{name} takes calls")  # noqa: B023


def test_a_gateway_says_that_it_leaves_and_answers_what_it_has(whole: Stack, tmp_path: Path) -> None:
    """Watchers hear NOT_SERVING, calls that run are answered, and the other gateway never notices."""
    leaving, staying = whole.ready["grpc"]
    load, release = Load([staying]), tmp_path / "release"
    with client(leaving) as gateway, load.running():
        health: Any = health_pb2_grpc.HealthStub(gateway.channel)  # its types lack Watch
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=CALL_SECONDS)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        calls = [gateway.begin(held(release), seconds=CALL_SECONDS) for _ in range(4)]
        admin = whole.ready["admin"][0]
        eventually(
            lambda: metric(admin, "headrace_gateway_calls_waiting") == len(calls), seconds=SECONDS, what="they wait"
        )

        since = whole.kill("gateway-0", signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not any(call.done() for call in calls), "it is told before the calls end"
        release.touch()
        outcomes = Counter(how(call) for call in calls)
        whole.until_back("gateway-0", since)
        watch.cancel()

    assert set(outcomes) == {"answered"}, outcomes
    assert set(load.ended) == {"answered"}, load.ended

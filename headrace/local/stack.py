"""`headrace up`: puts the plan into processes, says what happens, and ends when it is told to."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headrace.local import broker as kafka
from headrace.local import envoy, guard, plan, state, triton
from headrace.local.database import DatabaseError, upgrade_database
from headrace.local.jars import JarsError, fetch_jars, missing_jars
from headrace.local.java import NoJavaError, find_java
from headrace.local.models import ModelRepositoryError, bundled, materialise
from headrace.local.options import UpOptions, UsageError, join_address, parse_address
from headrace.local.paths import cache_dir
from headrace.local.probe import Probe, reachable_host
from headrace.local.program import Program
from headrace.local.routed import until_routed
from headrace.local.supervisor import (
    Component,
    ComponentFailedError,
    NotStartableError,
    Standing,
    State,
    Supervisor,
    leashed,
)
from headrace.local.tenants import kept_tenants

STILL_SECONDS = 30.0
"""How often it is said what a start still waits for."""
ROUTED_SECONDS = 15.0
MAX_MESSAGE_BYTES = 64 << 20
"""As the gateways' own limit is, where nobody sets another."""
FETCH_STOP_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The stack answers calls."""

    description: state.Description
    key: str
    sample_key: str
    """Of the tenant that has limits; empty where the user keeps keys of their own."""
    seconds: float
    """Since the start of `up`."""


class Tell(Protocol):
    """Says to the user what happens. Must not raise: a closed terminal is no reason to stop."""

    def change(self, standing: Standing) -> None:
        """A component changed."""

    def fetching(self, done: int, total: int) -> None:
        """So many of the broker's jars came."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def ready(self, ready: Ready) -> None:
        """Everything is ready for the first time."""

    def stopping(self, *, hurried: bool) -> None:
        """The stop began, or was asked for again."""


def up(options: UpOptions, tell: Tell) -> None:
    """Run a stack until SIGINT, SIGTERM or SIGHUP; on return no process of it is left.

    Raises:
        UsageError, StateError: the options, a port, the state folder or the model repository can't be used.
        ComponentFailedError: a part can't be brought up.
    """
    began = time.monotonic()
    state_dir = options.state_dir.absolute()
    with state.locked(state_dir):
        if left := guard.kill_marked(lambda mark: mark.startswith(f"{state_dir}#")):
            tell.note(f"ended {left} processes that an earlier run left behind")
        stack = _Stack(options, plan.make_plan(options), state_dir, tell, began)
        asyncio.run(stack.run())


class _Stack:
    def __init__(self, options: UpOptions, made: plan.Plan, state_dir: Path, tell: Tell, began: float) -> None:
        self._plan = made
        self._state_dir = state_dir
        self._tell = tell
        self._began = began
        self._mark = f"{state_dir}#{os.getpid()}.{time.time_ns()}"
        self._models = state_dir / "models"
        self._own_models = (
            options.model_repository is None
        )  # their configs are complete: Triton starts in half the time
        if made.tritons:
            try:
                materialise(options.model_repository or bundled(), self._models)
            except ModelRepositoryError as exc:
                raise UsageError(str(exc)) from None
        given = options.api_key
        tenants = kept_tenants(state_dir)
        self._sample_key = tenants.sample_key
        self._secrets = plan.Secrets(
            tenant_keys_file=tenants.keys_file,
            policy_file=tenants.policy_file,
            key_file=state_dir / (state.GENERATED_KEY if given is None else state.GIVEN_KEY),
            reply_secret_file=state_dir / state.REPLY_SECRET,
        )
        key_file = self._secrets.key_file
        self._key = (
            state.kept_secret(key_file, prefix="hr_dev_") if given is None else state.given_secret(key_file, given)
        )
        state.kept_secret(self._secrets.reply_secret_file)
        self._records: dict[str, state.ComponentRecord] = {}
        self._is_ready = False

    async def run(self) -> None:
        stop, hurry = asyncio.Event(), asyncio.Event()
        with self._signals(stop, hurry):
            async with AsyncExitStack() as owned:
                owned.callback(state.forget, self._state_dir)
                await owned.enter_async_context(_guarded(self._mark))
                supervisor = await owned.enter_async_context(
                    Supervisor(logs=self._state_dir / "logs", mark=self._mark, tell=self._changed, hurry=hurry)
                )
                await _first(stop.wait(), supervisor.failed(), self._bring_up(supervisor))

    @contextlib.contextmanager
    def _signals(self, stop: asyncio.Event, hurry: asyncio.Event) -> Iterator[None]:
        def asked() -> None:
            again = stop.is_set()
            self._tell.stopping(hurried=again)
            (hurry if again else stop).set()

        loop = asyncio.get_running_loop()
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for name in names:
            loop.add_signal_handler(name, asked)
        try:
            yield
        finally:
            for name in names:
                loop.remove_signal_handler(name)

    async def _bring_up(self, supervisor: Supervisor) -> None:
        """Start everything at once: each part waits for the others by itself. Returns never, unless it raises."""
        for spec in self._plan.tritons:
            self._start(supervisor, plan.triton_component(spec, self._triton_program(spec)), vars(spec))
        for router in self._plan.routers:
            component = plan.router_component(self._plan, router, self._secrets, cwd=self._state_dir)
            self._start(supervisor, component, {"admin_port": router.admin_port})
        self._start_envoy(supervisor)
        try:
            async with asyncio.TaskGroup() as together:
                together.create_task(self._start_broker(supervisor), name="start broker")
                together.create_task(self._start_on_database(supervisor), name="start on database")
                for name, probe in self._attached():
                    together.create_task(self._mention_absence(name, probe), name=f"look for {name}")
        except* ComponentFailedError as failures:
            raise failures.exceptions[0] from None
        waiting = asyncio.create_task(self._say_what_is_missing(supervisor), name="say what is missing")
        try:
            await supervisor.until_ready()
            await self._until_routed()
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
        self._is_ready = True
        description = self._describe()
        self._tell.ready(
            Ready(
                description=description,
                key=self._key,
                sample_key=self._sample_key,
                seconds=time.monotonic() - self._began,
            )
        )
        await asyncio.Event().wait()

    async def _until_routed(self) -> None:
        host = reachable_host(self._plan.host)
        gateways = [join_address(host, each.admin_port) for each in self._plan.gateways]
        try:
            async with asyncio.timeout(ROUTED_SECONDS):
                await until_routed(gateways, len(self._plan.routers))
        except TimeoutError:
            # A broker that is shared with others may know models that nobody serves any more.
            self._tell.note("not every model can be called yet; see headrace models")

    def _start(self, supervisor: Supervisor, component: Component, ports: dict[str, Any]) -> None:
        numbers = {name.removesuffix("_port"): port for name, port in ports.items() if isinstance(port, int)}
        assert isinstance(component.health, Probe)  # noqa: S101  for the type checker: all of ours are
        self._records[component.name] = state.ComponentRecord(
            name=component.name, state=State.STARTING, probe=component.health, ports=numbers
        )
        supervisor.start(component)

    async def _start_broker(self, supervisor: Supervisor) -> None:
        spec = self._plan.broker
        if spec is None:
            return
        if missing_jars(cache_dir()):
            await self._fetch_jars()
        home = self._state_dir / "broker"

        def make_program() -> Program:
            with _named("broker"):
                install = kafka.BrokerInstall(java=find_java(), jars=fetch_jars(cache_dir()))
                kafka.prepare_storage(
                    install,
                    home,
                    port=spec.port,
                    controller_port=spec.controller_port,
                    sasl=None,
                    env={guard.MARK_VARIABLE: self._mark},
                )
                return kafka.program(install, home)

        self._start(supervisor, plan.broker_component(spec, make_program), vars(spec))

    async def _start_on_database(self, supervisor: Supervisor) -> None:
        """Bring the database's schema up to date, then start who uses it."""
        try:
            await asyncio.to_thread(upgrade_database, self._plan.database)
        except DatabaseError as exc:
            raise ComponentFailedError(str(exc)) from None
        aggregator = plan.aggregator_component(self._plan, self._plan.aggregator, cwd=self._state_dir)
        self._start(supervisor, aggregator, vars(self._plan.aggregator))
        for gateway in self._plan.gateways:
            component = plan.gateway_component(self._plan, gateway, self._secrets, cwd=self._state_dir)
            self._start(supervisor, component, vars(gateway))

    async def _fetch_jars(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *leashed((sys.executable, "-P", "-m", "headrace.local.jars", str(cache_dir()))),
            env={**os.environ, guard.MARK_VARIABLE: self._mark},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None  # noqa: S101  it is a pipe
        words = ""
        try:
            async for line in process.stdout:
                text = line.decode(errors="replace").strip()
                # Libraries may print what they like in between; its last line is what ended it.
                if progress := re.fullmatch(r"(\d+) (\d+)", text):
                    self._tell.fetching(int(progress[1]), int(progress[2]))
                else:
                    words = text or words
            if await process.wait() != 0:
                raise ComponentFailedError(f"the broker can't be installed: {words}")
        finally:
            if process.returncode is None:
                await _ended(process)

    def _start_envoy(self, supervisor: Supervisor) -> None:
        spec, host = self._plan.envoy, self._plan.host
        gateways = [(reachable_host(host), gateway.grpc_port) for gateway in self._plan.gateways]

        def make_program() -> Program:
            with _named("envoy"):
                return envoy.program(
                    name="envoy",
                    home=self._state_dir / "envoy",
                    configuration=envoy.configuration(
                        host=host,
                        port=spec.http_port,
                        admin_port=spec.admin_port,
                        gateways=gateways,
                        max_message_bytes=MAX_MESSAGE_BYTES,
                    ),
                )

        self._start(supervisor, plan.envoy_component(spec, make_program), vars(spec))

    def _triton_program(self, spec: plan.TritonSpec) -> Callable[[], Program]:
        def make_program() -> Program:
            with _named(spec.name):
                return triton.program(
                    name=spec.name,
                    state_dir=self._state_dir,
                    repository=self._models,
                    host=plan.LOOPBACK,
                    grpc_port=spec.grpc_port,
                    http_port=spec.http_port,
                    metrics_port=spec.metrics_port,
                    complete_configs=not self._own_models,
                )

        return make_program

    def _attached(self) -> Iterator[tuple[str, Probe]]:
        if self._plan.broker is None:
            host, port = parse_address("--broker", self._plan.kafka.split(",")[0])
            yield f"the broker {self._plan.kafka}", Probe(kind="kafka", host=host, port=port)
        if not self._plan.tritons:
            for router in self._plan.routers:
                host, port = parse_address("--triton", router.triton)
                yield f"Triton {router.triton}", Probe(kind="tcp", host=host, port=port)
        if self._plan.redis is not None:
            host, port = parse_address("--redis", self._plan.redis)
            yield f"Redis {self._plan.redis}", Probe(kind="tcp", host=host, port=port)

    async def _mention_absence(self, name: str, probe: Probe) -> None:
        if not await probe.healthy():
            self._tell.note(f"{name} does not answer yet; everything else starts, and uses it when it does")

    async def _say_what_is_missing(self, supervisor: Supervisor) -> None:
        while True:
            await asyncio.sleep(STILL_SECONDS)
            missing = [s.name for s in supervisor.standings if s.state is not State.READY]
            text = ", ".join(missing) or "a live router for every model"
            self._tell.note(f"not ready yet: {text}; the logs are in {self._state_dir / 'logs'}")

    def _changed(self, standing: Standing) -> None:
        record = self._records[standing.name]
        self._records[standing.name] = state.ComponentRecord(
            name=record.name,
            state=standing.state,
            probe=record.probe,
            ports=record.ports,
            pid=standing.pid,
            restarts=standing.restarts,
        )
        self._describe()
        self._tell.change(standing)

    def _describe(self) -> state.Description:
        description = state.Description(
            pid=os.getpid(),
            started=state.start_time(os.getpid()) or 0,
            ready=self._is_ready,
            state_dir=str(self._state_dir),
            key_file=str(self._secrets.key_file),
            database=self._plan.database,
            policy_file=str(plan.policy_file(self._secrets, cwd=self._state_dir)),
            endpoints=self._plan.endpoints,
            components=list(self._records.values()),
        )
        try:
            state.describe(self._state_dir, description)
        except OSError as exc:
            self._tell.note(f"can't write to {self._state_dir}: {exc.strerror}")
        return description


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except (NoJavaError, JarsError, kafka.BrokerError, triton.TritonUnavailableError, envoy.EnvoyMissingError) as exc:
        raise NotStartableError(f"{name}: {exc}") from None


@asynccontextmanager
async def _guarded(mark: str) -> AsyncIterator[None]:
    """Whatever happens to this process: what carries the mark is gone soon after, and on leaving at once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        str(Path(guard.__file__)),
        mark,
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None  # noqa: S101  it is a pipe
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End a child of our own, with a moment to clear up; what it still says is passed over."""
    process.terminate()
    try:
        async with asyncio.timeout(FETCH_STOP_SECONDS):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()


async def _first(*awaitables: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first one to end, cancel the others, raise what it raised."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()

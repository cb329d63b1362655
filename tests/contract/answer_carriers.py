"""Both carriers of answers behind one set of levers, so that one suite drives them: in memory, and gRPC on loopback."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Protocol, Self

from headrace.bus.answers.hub import GrpcAnswerHub
from headrace.bus.answers.links import GrpcAnswerLinks, LinkTerms
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.answers.wire import Trust
from headrace.bus.memory.answers import MemoryAnswerHub, MemoryAnswerLinks, MemoryNetwork
from headrace.bus.protocols import AnswerHub, AnswerLinks, Link, Outcome, RouterKey
from headrace.bus.settings import ReplyTrustSettings

POOL = "default"
PATIENCE_SECONDS = 30.0
STALL_SECONDS = 0.5
UNACKNOWLEDGED_BYTES = 1 << 20


class Heard:
    """What one side heard, in order; a test waits for it to hear something."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self._grown = asyncio.Event()

    def add(self, *what: object) -> None:
        self.said.append(what)
        self._grown.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not enough():
                self._grown.clear()
                await self._grown.wait()


class Gateway(Heard):
    """A gateway's side: see HubEvents."""

    def __init__(self) -> None:
        super().__init__()
        self.address = ""
        self.hub: AnswerHub

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        self.add("answered", call_id, attempt, outcome)

    def attached(self, router: RouterKey) -> None:
        self.add("attached", router)

    def left(self, router: RouterKey) -> None:
        self.add("left", router)

    def detached(self, router: RouterKey) -> None:
        self.add("detached", router)

    @property
    def answers(self) -> list[tuple[object, ...]]:
        return [each[1:] for each in self.said if each[0] == "answered"]

    @property
    def present(self) -> list[object]:
        """The routers that are attached, by what was told."""
        there: dict[object, None] = {}
        for kind, who, *_ in self.said:
            if kind == "attached":
                there[who] = None  # attached anew is attached, whether or not the end of the old stream was noticed
            elif kind == "detached":
                there.pop(who, None)
        return list(there)


class Router(Heard):
    """A router's side: see LinkEvents."""

    def __init__(self, key: RouterKey) -> None:
        super().__init__()
        self.key = key
        self.links: AnswerLinks
        self.commands: asyncio.Queue[tuple[str, bytes, int]] = asyncio.Queue()
        self.results: asyncio.Queue[Outcome | Exception] = asyncio.Queue()

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        self.add("cancelled", call_id, attempt, expire_time_unix_micros)

    def link_changed(self, link: Link) -> None:
        self.add("state", link.state, link.has_room)

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        self.commands.put_nowait((method, request, expire_time_unix_micros))
        result = await self.results.get()
        if isinstance(result, Exception):
            raise result
        return result


class AnswerCarrier(Protocol):
    """What the suite does to a carrier."""

    async def gateway(self, incarnation: int, *, address: str | None = None) -> Gateway:
        """Start a gateway, at a new address or where another one was."""
        ...

    async def stop(self, gateway: Gateway) -> None:
        """End a gateway; its address remains known."""
        ...

    async def router(
        self, name: str = "router-0", *, forbidden: Collection[str] = (), stall_seconds: float = STALL_SECONDS
    ) -> Router:
        """Start a router."""
        ...

    async def flush(self, router: Router) -> None:
        """Return when every answer of a router is acknowledged."""
        ...

    async def leave(self, router: Router) -> None:
        """End a router."""
        ...

    def cut(self, gateway: Gateway) -> None:
        """Break the streams to a gateway; new ones can be made."""
        ...

    def hold_acknowledgements(self, gateway: Gateway, *, hold: bool) -> None:
        """Have what the gateway says reach nobody, until the streams are cut."""
        ...

    def stall(self, gateway: Gateway, *, stalled: bool) -> None:
        """Have the gateway hang: it takes nothing and says nothing, and its connections stand."""
        ...


class MemoryCarrier:
    """The twins."""

    def __init__(self, owned: AsyncExitStack) -> None:
        self._owned = owned
        self._network = MemoryNetwork()
        self._last = 0

    async def gateway(self, incarnation: int, *, address: str | None = None) -> Gateway:
        self._last += 1
        gateway = Gateway()
        gateway.address = address or f"127.0.0.1:{self._last}"
        gateway.hub = hub = MemoryAnswerHub(
            self._network, address=gateway.address, incarnation=incarnation, pool=POOL, events=gateway
        )
        await hub.__aenter__()
        return gateway

    async def stop(self, gateway: Gateway) -> None:
        await self._hub(gateway).__aexit__()

    async def router(
        self, name: str = "router-0", *, forbidden: Collection[str] = (), stall_seconds: float = STALL_SECONDS
    ) -> Router:
        router = Router(RouterKey(name, 1))
        router.links = links = MemoryAnswerLinks(
            self._network,
            router=router.key,
            pool=POOL,
            events=router,
            unacknowledged_bytes=UNACKNOWLEDGED_BYTES,
            stall_seconds=stall_seconds,
        )
        links.forbidden = set(forbidden)
        await self._owned.enter_async_context(links)
        return router

    async def flush(self, router: Router) -> None:
        assert isinstance(router.links, MemoryAnswerLinks)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await router.links.flush()

    async def leave(self, router: Router) -> None:
        assert isinstance(router.links, MemoryAnswerLinks)
        await router.links.__aexit__()

    def cut(self, gateway: Gateway) -> None:
        self._hub(gateway).acknowledging = True
        self._network.cut(gateway.address)

    def hold_acknowledgements(self, gateway: Gateway, *, hold: bool) -> None:
        self._hub(gateway).acknowledging = not hold

    def stall(self, gateway: Gateway, *, stalled: bool) -> None:
        if stalled:
            self._network.stalled.add(gateway.address)
        else:
            self._network.stalled.discard(gateway.address)
            self._network.retry(gateway.address)

    @staticmethod
    def _hub(gateway: Gateway) -> MemoryAnswerHub:
        assert isinstance(gateway.hub, MemoryAnswerHub)
        return gateway.hub


class GrpcCarrier:
    """ReplyService on loopback; between the two ends stands a proxy that can be cut and stopped up."""

    def __init__(self, owned: AsyncExitStack, folder: Path) -> None:
        self._owned = owned
        secret = folder / "secret"
        secret.write_text("a secret that both sides know\n")
        self.trust = Trust(ReplyTrustSettings(secret_file=secret))
        self._proxies: dict[str, Proxy] = {}

    async def gateway(self, incarnation: int, *, address: str | None = None) -> Gateway:
        gateway = Gateway()
        gateway.hub = hub = GrpcAnswerHub(
            incarnation=incarnation, pool=POOL, trust=self.trust, max_message_bytes=64 << 20, events=gateway
        )
        port = hub.bind("127.0.0.1", 0)
        await hub.__aenter__()
        self._owned.push_async_callback(hub.__aexit__)
        if address is None:
            proxy = await self._owned.enter_async_context(Proxy())
            gateway.address = f"127.0.0.1:{proxy.port}"
            self._proxies[gateway.address] = proxy
        else:
            gateway.address = address
        self._proxies[gateway.address].target = port
        return gateway

    async def stop(self, gateway: Gateway) -> None:
        assert isinstance(gateway.hub, GrpcAnswerHub)
        self._proxies[gateway.address].target = None
        await gateway.hub.__aexit__()

    async def router(
        self, name: str = "router-0", *, forbidden: Collection[str] = (), stall_seconds: float = STALL_SECONDS
    ) -> Router:
        router = Router(RouterKey(name, 1))
        router.links = links = GrpcAnswerLinks(
            terms=LinkTerms(
                router=router.key,
                pool=POOL,
                attach_seconds=PATIENCE_SECONDS,
                stall_seconds=stall_seconds,
                unacknowledged_bytes=UNACKNOWLEDGED_BYTES,
                max_message_bytes=64 << 20,
            ),
            trust=self.trust,
            whereabouts=Whereabouts(["10.0.0.0/8"] if forbidden else ["127.0.0.0/8"]),
            events=router,
        )
        await self._owned.enter_async_context(links)
        return router

    async def flush(self, router: Router) -> None:
        assert isinstance(router.links, GrpcAnswerLinks)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await router.links.flush()

    async def leave(self, router: Router) -> None:
        assert isinstance(router.links, GrpcAnswerLinks)
        await router.links.__aexit__()

    def cut(self, gateway: Gateway) -> None:
        self._proxies[gateway.address].cut()

    def hold_acknowledgements(self, gateway: Gateway, *, hold: bool) -> None:
        self._proxies[gateway.address].stop_up(down=hold)

    def stall(self, gateway: Gateway, *, stalled: bool) -> None:
        self._proxies[gateway.address].stop_up(up=stalled, down=stalled)


class Proxy:
    """Passes connections on to a port of this machine."""

    def __init__(self) -> None:
        self.target: int | None = None
        self.port = 0
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._served: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.stop_up()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    def stop_up(self, *, up: bool = False, down: bool = False) -> None:
        """Hold back what goes to the gateway, or what comes from it."""
        for way, held in (("up", up), ("down", down)):
            if held:
                self._open[way].clear()
            else:
                self._open[way].set()

    def cut(self) -> None:
        """Break all connections, and hold nothing back from here on."""
        for writer in self._writers:
            writer.transport.abort()
        self.stop_up()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)  # a task that is cancelled before its first step closes nothing
        task = asyncio.create_task(self._serve(reader, writer))
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            if self.target is not None:
                there, back = await asyncio.open_connection("127.0.0.1", self.target)
                ends.append(back)
                self._writers.add(back)
                await asyncio.gather(
                    self._pump(reader, back, self._open["up"]), self._pump(there, writer, self._open["down"])
                )
        except OSError:
            pass  # nobody listens there
        finally:
            self._writers.difference_update(ends)
            for end in ends:
                end.transport.abort()
            for end in ends:
                with suppress(OSError):
                    await end.wait_closed()

    @staticmethod
    async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, opened: asyncio.Event) -> None:
        with suppress(ConnectionError):
            while data := await source.read(1 << 16):
                await opened.wait()
                sink.write(data)
                await sink.drain()
        sink.transport.abort()

"""Who may attach to whom: what only the carrier over gRPC can show."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from headrace.bus.answers.hub import MAX_STANDING_CANCELLATIONS, GrpcAnswerHub
from headrace.bus.answers.links import GrpcAnswerLinks, LinkTerms
from headrace.bus.answers.whereabouts import Whereabouts
from headrace.bus.answers.wire import ATTACH_METHOD, Trust
from headrace.bus.protocols import LinkState, RouterKey, RouterLostError
from headrace.bus.settings import ReplyTrustSettings
from headrace.bus.v1.reply_pb2 import AttachRequest, AttachResponse, Hello, Welcome
from headrace.runtime.lifecycle import Background
from tests.contract.answer_carriers import PATIENCE_SECONDS, Gateway, Router

INCARNATION, POOL = 70, "default"

StartGateway = Callable[..., Awaitable[Gateway]]
StartRouter = Callable[..., Awaitable[Router]]


@pytest.fixture
async def owned() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def gateway_with(owned: AsyncExitStack) -> StartGateway:
    async def start(trust: Trust, *, max_message_bytes: int = 1 << 20) -> Gateway:
        gateway = Gateway()
        gateway.hub = hub = GrpcAnswerHub(
            incarnation=INCARNATION, pool=POOL, trust=trust, max_message_bytes=max_message_bytes, events=gateway
        )
        gateway.address = f"127.0.0.1:{hub.bind('127.0.0.1', 0)}"
        await owned.enter_async_context(hub)
        return gateway

    return start


@pytest.fixture
def router_with(owned: AsyncExitStack) -> StartRouter:
    async def start(trust: Trust, *, pool: str = POOL, allowed: str = "127.0.0.0/8", **terms_of_test: Any) -> Router:
        router = Router(RouterKey("r", 1))
        agreed: dict[str, Any] = {
            "router": router.key,
            "pool": pool,
            "attach_seconds": 2.0,
            "stall_seconds": 5.0,
            "unacknowledged_bytes": 1 << 20,
            "max_message_bytes": 1 << 20,
        }
        terms = LinkTerms(**agreed | terms_of_test)
        router.links = await owned.enter_async_context(
            GrpcAnswerLinks(terms=terms, trust=trust, whereabouts=Whereabouts([allowed]), events=router)
        )
        return router

    return start


def secret(folder: Path, text: str, *, plain: bool = False) -> Trust:
    path = folder / f"secret-{text}"
    path.write_text(text)
    return Trust(ReplyTrustSettings(secret_file=path, allow_secret_without_tls=plain))


def certificates(folder: Path, authority: trustme.CA, name: str, *, believes: trustme.CA | None = None) -> Trust:
    """A certificate for one process, signed by an authority; what it believes is signed by that one or another."""
    issued = authority.issue_cert("127.0.0.1", common_name=name)
    ca, certificate, key = (folder / f"{name}.{part}" for part in ("ca", "crt", "key"))
    ca.write_bytes((believes or authority).cert_pem.bytes())
    key.write_bytes(issued.private_key_pem.bytes())
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return Trust(ReplyTrustSettings(tls_ca_file=ca, tls_certificate_file=certificate, tls_key_file=key))


async def assert_refused(gateway: Gateway, router: Router) -> None:
    link = router.links.link(gateway.address, INCARNATION)
    assert link is not None
    await router.until(lambda: link.state is LinkState.UNREACHABLE)
    assert gateway.said == []


async def assert_attached(gateway: Gateway, router: Router) -> None:
    link = router.links.link(gateway.address, INCARNATION)
    assert link is not None
    link.send(b"c", 1, b"answer")
    await gateway.until(lambda: gateway.said == [("attached", router.key), ("answered", b"c", 1, b"answer")])


async def test_a_router_that_knows_the_secret_attaches(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    await assert_attached(await gateway_with(secret(tmp_path, "s")), await router_with(secret(tmp_path, "s")))


async def test_a_router_with_a_wrong_secret_is_refused_and_both_sides_say_so(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        await assert_refused(await gateway_with(secret(tmp_path, "s")), await router_with(secret(tmp_path, "t")))

    assert {record.name for record in caplog.records if getattr(record, "event", "") == "attach_refused"} == {
        "headrace.bus.answers.hub",
        "headrace.bus.answers.links",
    }
    assert "s" not in [word for record in caplog.records for word in record.getMessage().split()]


async def test_a_router_of_another_pool_is_refused(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    trust = secret(tmp_path, "s")
    await assert_refused(await gateway_with(trust), await router_with(trust, pool="other"))


async def test_certificates_of_one_authority_prove_both_ends(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    authority = trustme.CA()
    gateway = await gateway_with(certificates(tmp_path, authority, "gateway"))
    await assert_attached(gateway, await router_with(certificates(tmp_path, authority, "router")))


async def test_a_router_of_another_authority_is_refused(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    ours = trustme.CA()
    gateway = await gateway_with(certificates(tmp_path, ours, "gateway"))
    stranger = certificates(tmp_path, trustme.CA(), "stranger", believes=ours)

    await assert_refused(gateway, await router_with(stranger))


async def test_a_gateway_of_another_authority_is_not_believed(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    ours, other = trustme.CA(), trustme.CA()
    impostor = certificates(tmp_path, other, "impostor", believes=ours)
    router = certificates(tmp_path, ours, "router")

    await assert_refused(await gateway_with(impostor), await router_with(router))


async def test_a_router_without_a_certificate_is_refused(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    gateway = await gateway_with(certificates(tmp_path, trustme.CA(), "gateway"))

    await assert_refused(gateway, await router_with(secret(tmp_path, "s")))


async def test_certificates_that_are_renewed_are_taken_by_both_ends_and_no_answer_is_lost(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    """All three files of both, the authority's too: what is attached stays, and what attaches proves itself anew."""
    before, after = trustme.CA(), trustme.CA()
    trusts = [certificates(tmp_path, before, name) for name in ("gateway", "router")]
    gateway = await gateway_with(trusts[0])
    router = await router_with(trusts[1])
    await assert_attached(gateway, router)
    late = await router_with(certificates(tmp_path, before, "late"))

    for name in ("gateway", "router"):
        certificates(tmp_path, after, name)
    async with Background() as watching:
        for trust in trusts:
            watching.spawn("certificate", trust.keep())
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                if {_authorities(trust) for trust in trusts} == {after.cert_pem.bytes()}:
                    break
                await asyncio.sleep(0.05)  # files are looked at now and then, and nothing tells of it

    link = router.links.link(gateway.address, INCARNATION)
    assert link is not None
    link.send(b"d", 1, b"on the old connection")
    await gateway.until(lambda: gateway.answers == [(b"c", 1, b"answer"), (b"d", 1, b"on the old connection")])
    old = late.links.link(gateway.address, INCARNATION)
    assert old is not None
    await late.until(lambda: old.state is LinkState.UNREACHABLE)

    for attached in gateway.hub._routers.values():  # type: ignore[attr-defined]  # as when the connection breaks
        attached.close()
    await gateway.until(lambda: [each[0] for each in gateway.said].count("attached") == 2)
    link.send(b"e", 1, b"on a new one")
    await gateway.until(lambda: gateway.answers[-1] == (b"e", 1, b"on a new one"))


def _authorities(trust: Trust) -> bytes | None:
    return None if trust.certificate is None else trust.certificate.current.authorities


async def test_a_secret_does_not_leave_the_machine_unencrypted_unless_that_is_allowed(
    tmp_path: Path, router_with: StartRouter
) -> None:
    for plain in (False, True):
        router = await router_with(secret(tmp_path, "s", plain=plain), allowed="192.0.2.0/24")
        assert (router.links.link("192.0.2.1:1", 1) is not None) is plain


@pytest.mark.parametrize(
    ("first", "code"),
    [
        pytest.param(b"\xff", grpc.StatusCode.INVALID_ARGUMENT, id="no protobuf"),
        pytest.param(AttachRequest(), grpc.StatusCode.INVALID_ARGUMENT, id="no hello"),
        pytest.param(AttachRequest(hello=Hello(pool=POOL)), grpc.StatusCode.INVALID_ARGUMENT, id="no name"),
        pytest.param(None, grpc.StatusCode.INVALID_ARGUMENT, id="nothing"),
    ],
)
async def test_who_does_not_say_who_it_is_is_refused(
    tmp_path: Path, gateway_with: StartGateway, first: bytes | AttachRequest | None, code: grpc.StatusCode
) -> None:
    trust = secret(tmp_path, "s")
    gateway = await gateway_with(trust)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        attach: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(ATTACH_METHOD)
        call = attach(metadata=grpc.aio.Metadata(*trust.metadata()), timeout=PATIENCE_SECONDS)
        if first is None:
            await call.done_writing()
        else:
            await call.write(first if isinstance(first, bytes) else first.SerializeToString())
        assert await call.code() is code
    assert gateway.said == []


async def test_who_says_nothing_is_not_waited_for(tmp_path: Path, gateway_with: StartGateway) -> None:
    trust = secret(tmp_path, "s")
    gateway = await gateway_with(trust)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        attach: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(ATTACH_METHOD)
        call = attach(metadata=grpc.aio.Metadata(*trust.metadata()), timeout=PATIENCE_SECONDS)
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_router_that_turns_to_nonsense_is_detached(tmp_path: Path, gateway_with: StartGateway) -> None:
    trust = secret(tmp_path, "s")
    gateway = await gateway_with(trust)
    hello = Hello(router_id="r", router_incarnation=1, pool=POOL, expected_gateway_incarnation=INCARNATION)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        attach: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(ATTACH_METHOD)
        call = attach(metadata=grpc.aio.Metadata(*trust.metadata()), timeout=PATIENCE_SECONDS)
        await call.write(AttachRequest(hello=hello).SerializeToString())
        await call.read()
        await gateway.until(lambda: gateway.present == [RouterKey("r", 1)])

        await call.write(b"\xff\xff")
        await gateway.until(lambda: gateway.present == [])
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_router_that_attaches_anew_ends_its_stream_before(tmp_path: Path, gateway_with: StartGateway) -> None:
    """The other end learns of it, and does not wait on a stream that nobody reads."""
    trust = secret(tmp_path, "s")
    gateway = await gateway_with(trust)
    hello = Hello(router_id="r", router_incarnation=1, pool=POOL, expected_gateway_incarnation=INCARNATION)
    async with grpc.aio.insecure_channel(gateway.address) as channel:
        attach: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(ATTACH_METHOD)
        calls = [attach(metadata=grpc.aio.Metadata(*trust.metadata()), timeout=PATIENCE_SECONDS) for _ in range(2)]
        for call in calls:
            await call.write(AttachRequest(hello=hello).SerializeToString())
            await call.read()

        assert await calls[0].code() is grpc.StatusCode.ABORTED
        assert not calls[1].done()
        assert gateway.present == [RouterKey("r", 1)]
        assert ("detached", RouterKey("r", 1)) not in gateway.said


class Hesitant(grpc.GenericRpcHandler):
    """A gateway that refuses the first attempt to attach, and says Welcome to the second one when told to."""

    def __init__(self) -> None:
        self.attempts = 0
        self.asked = asyncio.Event()
        self.welcome = asyncio.Event()
        self.heard: asyncio.Queue[AttachRequest] = asyncio.Queue()

    def service(self, _details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_stream_rpc_method_handler(self._attach)

    async def _attach(self, requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        self.attempts += 1
        if self.attempts == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        await anext(aiter(requests))
        self.asked.set()
        await self.welcome.wait()
        await context.write(AttachResponse(welcome=Welcome()).SerializeToString())
        async for request in requests:
            self.heard.put_nowait(AttachRequest.FromString(request))


async def test_a_silent_gateway_that_answers_an_attempt_under_way_is_not_gone(
    tmp_path: Path, owned: AsyncExitStack, router_with: StartRouter
) -> None:
    """Or the stream would stand, and nobody would use it."""
    gateway, server = Hesitant(), grpc.aio.server()
    server.add_generic_rpc_handlers((gateway,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    owned.push_async_callback(server.stop, None)
    router = await router_with(secret(tmp_path, "s"), attach_seconds=PATIENCE_SECONDS)
    link = router.links.link(address, INCARNATION)
    assert link is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        await gateway.asked.wait()
    assert link.state is LinkState.UNREACHABLE

    router.links.silence_all_but(set())
    gateway.welcome.set()
    await router.until(lambda: link.state is LinkState.ATTACHED)

    link.send(b"c", 1, b"answer")
    async with asyncio.timeout(PATIENCE_SECONDS):
        heard = await gateway.heard.get()
    assert heard.answers.answers[0].response == b"answer"


class Unreadable(Trust):
    """Certificates that can't be read the first few times."""

    def __init__(self, settings: ReplyTrustSettings) -> None:
        super().__init__(settings)
        self.failures = 3

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        if self.failures:
            self.failures -= 1
            raise PermissionError("router.key")
        return super().channel_credentials()


async def test_a_link_survives_certificates_that_can_not_be_read_and_says_so_once(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    gateway = await gateway_with(certificates(tmp_path, authority, "gateway"))
    certificates(tmp_path, authority, "router")
    ca, certificate, key = (tmp_path / f"router.{part}" for part in ("ca", "crt", "key"))
    trust = Unreadable(ReplyTrustSettings(tls_ca_file=ca, tls_certificate_file=certificate, tls_key_file=key))
    router = await router_with(trust)

    await assert_attached(gateway, router)

    assert [each[1] for each in router.said] == [LinkState.UNREACHABLE, LinkState.ATTACHED]
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["link_failed"]


async def test_a_gateway_that_acknowledges_nothing_is_detached_though_it_takes_all(
    tmp_path: Path, owned: AsyncExitStack, router_with: StartRouter
) -> None:
    """Each answer that is written would otherwise keep the stream for longer, and all of them in memory."""
    gateway, server = Hesitant(), grpc.aio.server()
    gateway.welcome.set()
    server.add_generic_rpc_handlers((gateway,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    owned.push_async_callback(server.stop, None)
    router = await router_with(secret(tmp_path, "s"), stall_seconds=0.2)
    link = router.links.link(address, INCARNATION)
    assert link is not None
    await router.until(lambda: link.state is LinkState.ATTACHED)
    told = len(router.said)

    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(router.said) == told:
            link.send(b"c", 1, b"answer")
            await gateway.heard.get()

    assert router.said[told] == ("state", LinkState.UNREACHABLE, True)


LARGE = 65 << 20


async def test_a_command_may_be_as_large_as_the_settings_allow(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    trust = secret(tmp_path, "s")
    gateway = await gateway_with(trust, max_message_bytes=LARGE)
    router = await router_with(trust, max_message_bytes=LARGE)
    assert router.links.link(gateway.address, INCARNATION) is not None
    await gateway.until(lambda: gateway.present == [router.key])
    router.results.put_nowait(b"done")

    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await gateway.hub.administer(router.key, "/s/M", bytes(LARGE), 1 << 60) == b"done"

    assert router.commands.get_nowait() == ("/s/M", bytes(LARGE), 1 << 60)


async def test_a_router_attaches_however_many_cancellations_stand(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    """The Welcome has them all, and small messages leave room for it too."""
    trust = secret(tmp_path, "s")
    gateway, router = await gateway_with(trust), await router_with(trust, attach_seconds=PATIENCE_SECONDS)
    for number in range(MAX_STANDING_CANCELLATIONS):
        gateway.hub.cancel(number.to_bytes(16), 1, 1 << 60)

    await assert_attached(gateway, router)


async def test_a_command_that_is_too_large_is_refused_and_breaks_no_stream(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    """All calls of the gateway would be lost with it."""
    trust = secret(tmp_path, "s")
    gateway, router = await gateway_with(trust), await router_with(trust)
    await assert_attached(gateway, router)

    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(RouterLostError, match="bytes"):
            await gateway.hub.administer(router.key, "/s/M", bytes((1 << 20) + 1), 1 << 60)

    router.results.put_nowait(b"done")
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await gateway.hub.administer(router.key, "/s/M", b"", 1 << 60) == b"done"
    assert gateway.present == [router.key]


async def test_a_busy_port_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        hub = GrpcAnswerHub(
            incarnation=1, pool=POOL, trust=secret(tmp_path, "s"), max_message_bytes=1, events=Gateway()
        )
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            hub.bind("127.0.0.1", port)


async def test_flushing_returns_when_every_answer_has_arrived(
    tmp_path: Path, gateway_with: StartGateway, router_with: StartRouter
) -> None:
    trust = secret(tmp_path, "s")
    gateway, router = await gateway_with(trust), await router_with(trust)
    link = router.links.link(gateway.address, INCARNATION)
    assert link is not None
    assert isinstance(router.links, GrpcAnswerLinks)
    for number in range(1000):
        link.send(b"%d" % number, 1, bytes(1000))

    async with asyncio.timeout(PATIENCE_SECONDS):
        await router.links.flush()

    assert len(gateway.answers) == 1000

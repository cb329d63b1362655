"""Certificates that are renewed in place: new connections get the new one, standing ones stay, half a pair is none."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from cryptography import x509

from headrace.runtime.certificates import OwnCertificate
from headrace.runtime.settings import SettingsError

HELLO, SLOW = "/s/hello", "/s/slow"
SECONDS = 30.0


class Files:
    """Certificate, key and authorities in a folder that stands for a mounted Secret."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate, self.key, self.authorities = (folder / name for name in ("tls.crt", "tls.key", "ca.crt"))

    def write(self, authority: trustme.CA, *, only: str = "") -> trustme.LeafCert:
        """A new pair of an authority, or one half of it."""
        issued = authority.issue_cert("localhost", "127.0.0.1")
        contents = {
            "tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            "tls.key": issued.private_key_pem.bytes(),
            "ca.crt": authority.cert_pem.bytes(),
        }
        for name, content in contents.items():
            if only in {name, ""}:
                (self.folder / name).write_bytes(content)
        return issued

    def own(self, *, asks: bool = True) -> OwnCertificate:
        return OwnCertificate(self.certificate, self.key, self.authorities if asks else None, what="certificate")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def call(channel: grpc.aio.Channel, method: str, request: bytes) -> "grpc.aio.UnaryUnaryCall[bytes, bytes]":
    made: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return made(request, timeout=SECONDS)


async def greeted(channel: grpc.aio.Channel) -> bool:
    """Whether a connection comes about."""
    try:
        return await call(channel, HELLO, b"hello") == b"hello"
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


class Server:
    """A port with such a certificate."""

    def __init__(self, own: OwnCertificate) -> None:
        self.own = own
        self.go_on = asyncio.Event()
        self.began = asyncio.Event()
        self._server = grpc.aio.server()
        methods: dict[str, Any] = {  # Any: grpc's handlers are typed by serialisers, and these have none
            "hello": grpc.unary_unary_rpc_method_handler(self._hello),
            "slow": grpc.unary_unary_rpc_method_handler(self._slow),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
        self.port = self._server.add_secure_port("127.0.0.1:0", own.server_credentials())

    async def _hello(self, request: bytes, context: object) -> bytes:
        del context
        return request

    async def _slow(self, request: bytes, context: object) -> bytes:
        del context
        self.began.set()
        await self.go_on.wait()
        return request

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    def channel(self, believed: trustme.CA, shown: trustme.LeafCert | None = None) -> grpc.aio.Channel:
        key = None if shown is None else shown.private_key_pem.bytes()
        chain = None if shown is None else b"".join(blob.bytes() for blob in shown.cert_chain_pems)
        credentials = grpc.ssl_channel_credentials(believed.cert_pem.bytes(), key, chain)
        return grpc.aio.secure_channel(
            f"127.0.0.1:{self.port}", credentials, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def takes(self, believed: trustme.CA, shown: trustme.LeafCert | None = None) -> bool:
        """Whether a new connection comes about."""
        async with self.channel(believed, shown) as channel:
            return await greeted(channel)


@pytest.fixture
async def server(files: Files) -> AsyncIterator[Server]:
    """It asks for certificates."""
    files.write(BEFORE)
    made = Server(files.own())
    await made.start()
    yield made
    await made.stop()


BEFORE, AFTER = trustme.CA(), trustme.CA()


async def test_new_connections_get_the_new_certificate_and_standing_ones_go_on(files: Files, server: Server) -> None:
    """The authorities change with it: whose certificates are taken, too."""
    old, new = BEFORE.issue_cert("old"), AFTER.issue_cert("new")
    async with server.channel(BEFORE, old) as channel:
        under_way = call(channel, SLOW, b"slow")
        await server.began.wait()
        assert not await server.takes(AFTER, new)

        files.write(AFTER)
        await server.own._files.look()

        assert await server.takes(AFTER, new)
        assert not await server.takes(BEFORE, old)
        assert not await server.takes(AFTER, old)
        assert not await server.takes(AFTER)
        server.go_on.set()
        assert await under_way == b"slow"
        assert await greeted(channel)


async def test_a_port_that_asks_for_no_certificate_changes_its_own(files: Files) -> None:
    files.write(BEFORE)
    server = Server(files.own(asks=False))
    await server.start()
    try:
        assert await server.takes(BEFORE)
        files.write(AFTER)
        await server.own._files.look()

        assert (await server.takes(BEFORE), await server.takes(AFTER)) == (False, True)
    finally:
        await server.stop()


@pytest.mark.parametrize("first", ["tls.crt", "tls.key"])
async def test_half_a_pair_is_not_taken_and_the_whole_one_is(
    files: Files, server: Server, caplog: pytest.LogCaptureFixture, first: str
) -> None:
    """Whoever copies one file after the other is between them for a while."""
    old, new = BEFORE.issue_cert("old"), AFTER.issue_cert("new")
    caplog.set_level(logging.INFO)
    files.write(AFTER, only=first)
    await server.own._files.look()
    await server.own._files.look()
    assert await server.takes(BEFORE, old)

    files.write(AFTER)
    await server.own._files.look()

    assert (await server.takes(BEFORE, old), await server.takes(AFTER, new)) == (False, True)
    told = [(vars(record)["event"], vars(record)["what"]) for record in caplog.records if "event" in vars(record)]
    assert told == [("file_rejected", "certificate"), ("file_changed", "certificate")]


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n", None])
async def test_what_is_no_certificate_leaves_the_one_before_in_force(
    files: Files, server: Server, caplog: pytest.LogCaptureFixture, name: str, content: bytes | None
) -> None:
    """A file that is cut off, emptied or gone for a moment, of the three."""
    old = BEFORE.issue_cert("old")
    whole = (files.folder / name).read_bytes()
    if content is None:
        (files.folder / name).unlink()
    else:
        (files.folder / name).write_bytes(content)
    await server.own._files.look()

    assert await server.takes(BEFORE, old)
    assert [record.event for record in caplog.records if hasattr(record, "event")] == ["file_rejected"]
    assert name in caplog.text

    (files.folder / name).write_bytes(whole)
    await server.own._files.look()
    assert await server.takes(BEFORE, old)


async def test_a_mounted_secret_changes_all_of_its_files_at_once(tmp_path: Path) -> None:
    """As the kubelet does: a link in the folder is turned to a folder of new files."""
    for number, authority in enumerate((BEFORE, AFTER)):
        (tmp_path / f"..{number}").mkdir()
        Files(tmp_path / f"..{number}").write(authority)
    (tmp_path / "..data").symlink_to("..0")
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    own = Files(tmp_path).own()
    assert own.current.authorities == BEFORE.cert_pem.bytes()

    (tmp_path / "..new").symlink_to("..1")
    (tmp_path / "..new").replace(tmp_path / "..data")
    await own._files.look()

    assert own.current.authorities == AFTER.cert_pem.bytes()
    assert own.current.key == (tmp_path / "tls.key").read_bytes()


async def test_files_that_change_while_they_are_read_are_read_again_and_not_told_as_wrong(
    files: Files, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate of before and the key of after: it is no mistake of anybody's."""
    files.write(BEFORE)
    own = files.own()
    files.write(AFTER, only="ca.crt")
    read = Path.read_bytes

    def overtaken(path: Path) -> bytes:
        content = read(path)
        if path == files.certificate:
            monkeypatch.undo()
            files.write(AFTER)
        return content

    monkeypatch.setattr(Path, "read_bytes", overtaken)
    await own._files.look()
    assert own.current.authorities == BEFORE.cert_pem.bytes()
    assert caplog.records == []

    await own._files.look()

    assert own.current.authorities == AFTER.cert_pem.bytes()


async def test_a_new_channel_shows_what_is_in_force(files: Files, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    theirs = Files(tmp_path / "server")
    theirs.write(AFTER)
    server = Server(theirs.own())
    await server.start()
    files.write(BEFORE)
    own = files.own()

    async def comes_about() -> bool:
        async with grpc.aio.secure_channel(f"127.0.0.1:{server.port}", own.channel_credentials()) as channel:
            return await greeted(channel)

    try:
        assert not await comes_about()
        files.write(AFTER)
        await own._files.look()
        assert await comes_about()
    finally:
        await server.stop()


def test_until_when_it_holds_is_known(files: Files) -> None:
    issued = files.write(BEFORE)
    certificate = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())

    assert files.own().current.ends == certificate.not_valid_after_utc.timestamp()


def test_files_that_do_not_belong_together_are_no_beginning(files: Files) -> None:
    files.write(BEFORE)
    files.write(BEFORE, only="tls.key")

    with pytest.raises(SettingsError, match=r"tls\.key: the key is another certificate's"):
        files.own()
    files.key.unlink()
    with pytest.raises(SettingsError, match=r"tls\.key: cannot be read"):
        files.own()

"""What both ends of a reply stream do alike: encode answers, write one message at a time, prove who they are."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Iterable

import grpc

from headrace.bus.protocols import Failure, Outcome
from headrace.bus.settings import ReplyTrustSettings
from headrace.bus.v1.reply_pb2 import AdminResult, Answer, ModelServerStatus
from headrace.runtime.certificates import OwnCertificate
from headrace.runtime.settings import read_secret

ATTACH_METHOD = "/headrace.bus.v1.ReplyService/Attach"
SECRET_METADATA_KEY = "headrace-reply-secret"  # noqa: S105  the name of the entry, not a secret


def outcome_of(message: Answer | AdminResult) -> Outcome:
    """The outcome that an answer or an administrative result carries."""
    kind = message.WhichOneof("outcome")
    if kind == "response":
        return message.response
    if kind == "status":
        return message.status
    try:
        return Failure(message.failure)
    except ValueError:  # a reason of a later version
        return Failure.INTERNAL


def fill(message: Answer | AdminResult, outcome: Outcome) -> None:
    """Put an outcome into an answer or an administrative result."""
    if isinstance(outcome, bytes):
        message.response = outcome
    elif isinstance(outcome, ModelServerStatus):
        message.status.CopyFrom(outcome)
    else:
        message.failure = outcome.value


class Outbox:
    """Writes what gathers, one message at a time: a gRPC stream takes one write, and a second one breaks it.

    `take` yields the messages that are due now and forgets them; it is asked again after each `wake`.
    """

    def __init__(self, take: Callable[[], Iterable[bytes]], write: Callable[[bytes], Awaitable[object]]) -> None:
        self._take = take
        self._write = write
        self._due = asyncio.Event()
        self._finishing = False

    def wake(self) -> None:
        """Something is due."""
        self._due.set()

    def finish(self) -> None:
        """Write what is due now, and nothing after it."""
        self._finishing = True
        self._due.set()

    async def run(self) -> None:
        """Write until finished or cancelled, or the stream breaks."""
        finished = False
        while not finished:
            await self._due.wait()
            self._due.clear()
            finished = self._finishing
            for message in self._take():
                await self._write(message)


class Trust:
    """How the two ends prove to each other who they are: certificates, a shared secret, or both."""

    def __init__(self, settings: ReplyTrustSettings) -> None:
        """Raises SettingsError where the certificates are not usable."""
        self._settings = settings
        self._certificate = _certificate(settings)
        self._secret = None if settings.secret_file is None else read_secret(settings.secret_file).encode()

    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """What a router sends with its call."""
        return () if self._secret is None else ((SECRET_METADATA_KEY, self._secret.decode()),)

    def proven(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether the other end knows the secret. With certificates alone, the handshake was the proof."""
        if self._secret is None:
            return True
        said = [value for key, value in metadata if key == SECRET_METADATA_KEY]
        given = said[0] if len(said) == 1 else b""
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._secret)

    def may_be_plain(self, *, loopback: bool) -> bool:
        """Whether this end may talk to that address without TLS."""
        return self._settings.mutual_tls or loopback or self._settings.allow_secret_without_tls

    @property
    def certificate(self) -> OwnCertificate | None:
        """This end's, where there is TLS."""
        return self._certificate

    async def keep(self) -> None:
        """Take certificates that are renewed, until cancelled; return at once where there are none."""
        if self._certificate is not None:
            await self._certificate.keep()

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For the gateway's port; None for a plain one."""
        return None if self._certificate is None else self._certificate.server_credentials()

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a channel of the router's that is about to be opened; None for a plain one."""
        return None if self._certificate is None else self._certificate.channel_credentials()


def _certificate(settings: ReplyTrustSettings) -> OwnCertificate | None:
    certificate, key, authorities = settings.tls_certificate_file, settings.tls_key_file, settings.tls_ca_file
    if certificate is None or key is None or authorities is None:
        return None
    return OwnCertificate(certificate, key, authorities, what="certificate of the reply channel")

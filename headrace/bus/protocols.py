"""The seams of the bus: what a carrier of requests, answers or announcements promises.

Every protocol has a real carrier and an in-memory twin (`memory`); both pass the contract suite of their protocol. All
methods are called on the event loop's thread and all callbacks come there.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

from headrace.bus.v1 import reply_pb2
from headrace.bus.v1.announcement_pb2 import Announcement
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from headrace.bus.v1.usage_pb2 import UsageReport


class TopicPartition(NamedTuple):
    """One partition of one topic."""

    topic: str
    partition: int


@dataclass(slots=True)
class Record:
    """One request as the log holds it. `envelope` is empty where the record carries none."""

    place: TopicPartition
    offset: int
    call_id: bytes
    envelope: bytes
    payload: bytes
    timestamp_millis: int = field(default=0, compare=False)
    """When it was published, in ms since the Unix epoch, by its gateway's clock or the broker's; 0 where unknown."""


class SeenEnd(NamedTuple):
    """A partition was seen to end there: what lies before was written by then, in seconds since the Unix epoch."""

    at: float
    offset: int


class LogError(Exception):
    """The request log did not take the record."""


class LogFullError(LogError):
    """The queue towards the broker is full: the broker is away or slow."""


class LogUnavailableError(LogError):
    """The broker did not take the record in time, or refused it."""


class RecordTooLargeError(LogError):
    """The record is larger than the log takes."""


PublishFailed = Callable[[bytes, int, LogError], None]
"""Told the call id and the attempt of a record that `publish` took and the broker did not."""


class RequestPublisher(Protocol):
    """The gateway's end of the request log."""

    def publish(
        self, place: TopicPartition, call_id: bytes, envelope: bytes, payload: bytes, *, attempt: int = 1
    ) -> None:
        """Send a record on its way and return at once. An earlier attempt of the call is withdrawn before.

        Raises a LogError where it can't be sent: LogFullError, RecordTooLargeError, or LogUnavailableError where the
        client knows of no such place; a failure that comes later is told once to the PublishFailed callback. Silence
        is not a delivery: the answer is the acknowledgement.
        """
        ...

    def withdraw(self, call_id: bytes) -> bool:
        """Never send the newest record of this call, and tell nothing of it. Returns False where that is too late."""
        ...


class IntakeEvents(Protocol):
    """What the router hears from its end of the request log."""

    def records(self, batch: Sequence[Record]) -> None:
        """Records have been fetched, in order within each partition."""
        ...

    def assigned(self, places: Collection[TopicPartition]) -> None:
        """These partitions are this consumer's from now on. None where the group has none for it: it has joined."""
        ...

    def revoked(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """These partitions are another's from now on; records of them that have not begun must not begin.

        Returns the offsets to commit before they go. Must return at once.
        """
        ...

    def lost(self, places: Collection[TopicPartition]) -> None:
        """These partitions have been another's for a while already: as `revoked`, and nothing can be committed."""
        ...


class RequestConsumer(Protocol):
    """The router's end of the request log: one member of the pool's consumer group."""

    @property
    def lag(self) -> Mapping[TopicPartition, int]:
        """How many records follow the last one handed over, of each partition of which that is known.

        As of some seconds ago.
        """
        ...

    @property
    def unread(self) -> Mapping[TopicPartition, Sequence[SeenEnd]]:
        """Where partitions with such records ended, and when, oldest first; as of some seconds ago.

        The first end beyond what was handed over says by when the oldest of them was there, by the clock of their own
        timestamps: too late by some five seconds or by an eighth of its age at most. Where it was there before the
        partition was this consumer's, at least a quarter of what it had waited until then is told.
        """
        ...

    def subscribe(self, topics: Collection[str]) -> None:
        """Take part in these topics from now on, instead of the ones before. Partitions arrive by `assigned`."""
        ...

    def pause(self, topic: str) -> None:
        """Fetch no more of this topic until `resume`. Records already handed over stay so."""
        ...

    def resume(self, topic: str) -> None:
        """Fetch this topic again, from the record after the last one handed over."""
        ...

    def set_room(self, records: int) -> None:
        """How many records may be handed over from now on, before the next `set_room`."""
        ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit, in the background, where reading would start again. Of no effect for partitions of others."""
        ...


class RouterKey(NamedTuple):
    """One run of one router process."""

    id: str
    incarnation: int


class Failure(IntEnum):
    """Why a router has no answer from the model server; see FailureReason in reply.proto."""

    EXPIRED = reply_pb2.FAILURE_REASON_EXPIRED
    TRITON_LOST = reply_pb2.FAILURE_REASON_TRITON_LOST
    ANSWER_TOO_LARGE = reply_pb2.FAILURE_REASON_ANSWER_TOO_LARGE
    BAD_RECORD = reply_pb2.FAILURE_REASON_BAD_RECORD
    INTERNAL = reply_pb2.FAILURE_REASON_INTERNAL
    ROUTER_LEFT = reply_pb2.FAILURE_REASON_ROUTER_LEFT
    GATEWAY_FULL = reply_pb2.FAILURE_REASON_GATEWAY_FULL


Outcome = bytes | ModelServerStatus | Failure
"""What became of a call: the model server's response as it came, its own error, or why there is neither."""


class RouterLostError(Exception):
    """The router detached before it did what it was asked."""


class HubEvents(Protocol):
    """What a gateway hears from the routers attached to it."""

    def answered(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        """An answer came. It may be for a call that this gateway does not know any more."""
        ...

    def attached(self, router: RouterKey) -> None:
        """A router of this gateway's pool attached."""
        ...

    def left(self, router: RouterKey) -> None:
        """A router said goodbye: all its answers were acknowledged, and none is to come. `detached` follows at once."""
        ...

    def detached(self, router: RouterKey) -> None:
        """A router's stream ended, whatever the cause."""
        ...


class AnswerHub(Protocol):
    """The gateway's end of the answers' way home."""

    @property
    def heard_at(self) -> Mapping[RouterKey, float]:
        """When something last came from each attached router, on the loop's clock."""
        ...

    def cancel(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        """Tell every attached router, and every one that attaches before the deadline, not to run this call."""
        ...

    async def administer(self, router: RouterKey, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        """Have one router make an administrative call. Raises RouterLostError; the caller brings the deadline."""
        ...


class LinkState(Enum):
    """How a router's link to one gateway stands."""

    ATTACHING = "attaching"
    """Calls of this gateway wait aside until it is one of the others."""
    ATTACHED = "attached"
    UNREACHABLE = "unreachable"
    """Attaching failed for now and is tried again; the gateway has given up what it waited for here."""
    GONE = "gone"
    """That incarnation of the gateway is no more, and its callers with it."""


class Link(Protocol):
    """A router's link to one incarnation of one gateway."""

    @property
    def state(self) -> LinkState:
        """How it stands."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether the answers that the gateway has not acknowledged yet leave room for more.

        Asked before a call begins, and not reserved: what runs is answered, and what is refused is told, when there is
        no room too. So what is kept exceeds its bound by at most one answer for each call that runs, and by refusals,
        which have no body.
        """
        ...

    def send(self, call_id: bytes, attempt: int, outcome: Outcome) -> None:
        """Send an answer home; it is kept and sent again until it is acknowledged or the gateway is gone."""
        ...


class LinkEvents(Protocol):
    """What a router hears from the gateways that it is attached to."""

    def cancelled(self, call_id: bytes, attempt: int, expire_time_unix_micros: int) -> None:
        """Nobody waits for this attempt of the call, nor for an earlier one."""
        ...

    def link_changed(self, link: Link) -> None:
        """The link's state changed, or it has room again."""
        ...

    async def administer(self, method: str, request: bytes, expire_time_unix_micros: int) -> Outcome:
        """Make an administrative call to the model server."""
        ...


class AnswerLinks(Protocol):
    """The router's end of the answers' way home: its links to all gateways."""

    def link(self, address: str, incarnation: int) -> Link | None:
        """The link to a gateway, attaching it where there is none; None where the address may not be dialled."""
        ...

    def gateway_announced(self, address: str, incarnation: int) -> None:
        """The gateway announces itself: attach to it, also where it had been given up."""
        ...

    def silence_all_but(self, announcing: Collection[tuple[str, int]]) -> None:
        """These gateways alone announce themselves, by address and incarnation: others end when attaching fails."""
        ...


class AnnouncementLog(Protocol):
    """The announcements topic."""

    async def announce(self, key: str, announcement: Announcement | None) -> None:
        """Say something, or take it back with None. Returns when the broker has it.

        Raises LogUnavailableError, or RecordTooLargeError where saying it again is of no use.
        """
        ...

    def read(self) -> AsyncIterator[tuple[str, Announcement | None] | None]:
        """All that holds, oldest first, then all that comes. None is said once: when the reader has caught up.

        Survives an absent broker by waiting for it.
        """
        ...


@dataclass(frozen=True, slots=True)
class UsageBatch:
    """Reports that follow each other in the usage topic."""

    first_offset: int
    """Where it begins: where the one before ended, except after a gap."""
    next_offset: int
    reports: Sequence[UsageReport]
    malformed: int = 0
    """Records in it that are no reports."""
    behind: int = 0
    """Records that follow it already."""


class UsageLog(Protocol):
    """The usage topic."""

    async def publish(self, report: UsageReport) -> None:
        """Return when the broker has the report. Raises LogUnavailableError; the broker may have it all the same.

        Raises RecordTooLargeError where trying again is of no use.
        """
        ...

    def read(self, offset: int | None) -> AsyncIterator[UsageBatch]:
        """What was published, from an offset on, or from the start; and what comes.

        Where the topic does not have that offset any more, or not yet, reading begins at its start. Survives an absent
        broker by waiting for it.
        """
        ...

"""One session on a pod: its sockets, and those of them that read their log to catch up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from backplane.position import Batch, Gap, Position, newer
from gateway.framing import Framing
from gateway.text_stream import Have, PartName, Place, TextStream

_KEPT_ASIDE_BYTES = 256 * 1024  # live messages that a catch-up keeps; beyond, it reads them from the log


class Subscriber(Protocol):
    """A socket, as the hub sees it.

    Attributes:
        seq: the last log message that it was sent.
        generation: grows with every connection of the session.
        wants_chunks: whether it is sent what is published but not logged.
        behind: set by the hub when there was more than the socket could take.
    """

    seq: int
    generation: int
    wants_chunks: bool
    behind: bool

    @property
    def framing(self) -> Framing:
        """How messages are written to it."""

    @property
    def envelope(self) -> bytes:
        """What its messages have in common (see `gateway.text_stream.envelope`)."""

    @property
    def writable(self) -> bool:
        """Whether it takes more now; when it does again it calls `Hub.resumed`."""

    @property
    def sent(self) -> int | None:
        """The last log message that has left this process; None while it cannot be told."""

    def write(self, data: bytes) -> None:
        """Send whole messages, as `framing` has made them."""

    def replaced(self) -> None:
        """Close it: a newer connection took over."""

    def restart(self, reason: str) -> None:
        """Close it: it has to come back and be told where it stands."""


class CatchUp:
    """Sockets of one session that read their log from the same place on.

    Attributes:
        missed: they should have had it live.
    """

    __slots__ = ("live", "live_bytes", "missed", "position", "sockets")

    def __init__(self, sockets: list[Subscriber], position: Position, *, missed: bool = False) -> None:
        self.missed = missed
        self.sockets = sockets
        self.position = position
        self.live: list[Batch] = []
        self.live_bytes = 0

    def keep(self, batch: Batch) -> None:
        """Set a live batch aside; past the limit the oldest go, which shows as a gap when merging."""
        self.live.append(batch)
        self.live_bytes += sum(map(len, batch.entries))
        while self.live_bytes > _KEPT_ASIDE_BYTES and len(self.live) > 1:
            self.live_bytes -= sum(map(len, self.live.pop(0).entries))

    def send(self, batch: Batch) -> int:
        """Send each socket what it lacks of ``batch``; one that is full leaves, to come back later.

        Returns:
            How many messages were written, to all of them together.
        """
        sent = 0
        for socket in self.sockets:
            entries = newer(batch, socket.seq)
            if isinstance(entries, Gap) or not entries:
                continue
            if not socket.writable:
                socket.behind = True
                continue
            socket.write(socket.framing.log(batch.epoch, socket.seq + 1, entries))
            socket.seq = batch.last
            sent += len(entries)
        self.position = Position(batch.epoch, max(batch.last, self.position.seq))
        return sent


class Stream:
    """An answer that is streamed, and how far each socket has been sent it.

    Attributes:
        timer: runs while pieces are merged.
        due: there is something to send when it ends.
    """

    __slots__ = ("due", "places", "text", "timer")

    def __init__(self, task_id: str, attempt: int) -> None:
        self.text = TextStream(task_id, attempt)
        self.places: dict[Subscriber, Place] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.due = False

    def stop(self) -> None:
        """Send nothing more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Loading:
    """A read of a session's streams, and what is published before its reply is dealt with.

    The reply has all that came before it, but not what came in the same packet behind it.

    Attributes:
        taken: tasks of which something was taken: of these the reply may be the older word.
        ended: tasks whose answers are over, whatever the reply says.
        missed: how far pieces reach that could not be taken (attempt and characters), by task and part.
    """

    __slots__ = ("ended", "missed", "taken")

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.ended: set[str] = set()
        self.missed: dict[tuple[str, PartName], tuple[int, int]] = {}

    def miss(self, task_id: str, part: PartName, attempt: int, end: int) -> None:
        """A piece did not follow what is held."""
        reached = (attempt, end)
        self.missed[task_id, part] = max(reached, self.missed.get((task_id, part), reached))

    def lacks(self, streams: Mapping[str, Stream]) -> bool:
        """Whether a piece was missed that the reply did not have either."""
        return any(
            task_id not in self.ended
            and (task_id not in streams or streams[task_id].text.reached(part) < missed)
            for (task_id, part), missed in self.missed.items()
        )


class Feed:
    """One session on this pod.

    Attributes:
        streams: answers that are streamed to its sockets, by task.
        has: of sockets that have come since the streams were read: what their clients have of such.
        loading: the streams are being read; None if they are not.
        pieces: of answers that were published since this pod is subscribed.
        acks: whether a client of it acknowledges messages.
        awaited: a message of which the acknowledgement is awaited: its seq, and when it was written
            (monotonic seconds).
    """

    __slots__ = (
        "acks", "awaited", "catching", "channel", "epoch", "has", "loading", "marked", "pieces", "replaced",
        "sockets", "streams",
    )  # fmt: skip

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self.epoch: str | None = None
        self.sockets: list[Subscriber] = []  # live, or behind
        self.catching: list[CatchUp] = []
        self.marked = 0
        self.replaced = 0  # sockets of an older generation have to go
        self.streams: dict[str, Stream] = {}
        self.has: dict[Subscriber, Mapping[str, Have]] = {}
        self.loading: Loading | None = None
        self.pieces = 0
        self.acks = False
        self.awaited: tuple[int, float] | None = None

    @property
    def session(self) -> str:
        """The session's base key."""
        return self.channel.decode()

    @property
    def placed(self) -> list[Subscriber]:
        """Sockets whose seq is one of the present epoch."""
        groups = [group for group in self.catching if group.position.epoch == self.epoch]
        return [*self.sockets, *(socket for group in groups for socket in group.sockets)]

    @property
    def everyone(self) -> list[Subscriber]:
        """All sockets, live or catching up."""
        return [*self.sockets, *(socket for group in self.catching for socket in group.sockets)]

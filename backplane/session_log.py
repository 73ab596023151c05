"""The session log as a pod sees it: subscribe, resume, read on, and what live messages look like."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from backplane.errors import NotYours, RedisUnavailable
from backplane.keys import ANY_USER, Keys, is_id
from backplane.position import Batch, Position, new_epoch
from backplane.scripts import MARK_SENT, READ, RESUME, STREAMS, Script
from backplane.settings import Settings
from backplane.store import Store
from backplane.wire import Argument, forget

ResumeStatus = Literal["fresh", "replayed", "reset"]

_PAGE_ENTRIES = 256
_PAGES_AT_ONCE = 32
_HISTORIES_AT_ONCE = 8  # of these: who reads without a socket must not keep sockets waiting
_MARKS_A_CALL = 200
_ATTEMPT_OVER = 2**53  # of an answer that is over (see lua/_stream.lua)


class Running(NamedTuple):
    """A task that has not ended, as its record has it; times in ms since 1970."""

    task_id: str
    status: str
    agent_id: str
    attempt: str
    accepted: str
    deadline: str


class Resumed(NamedTuple):
    """Where a connection begins.

    Attributes:
        status: ``fresh`` nothing is waiting, ``replayed`` what is missing follows, ``reset`` the log does
            not reach back to the cursor: what is left follows.
        start: the seq before the first message that will be sent.
        head: the seq of the newest message.
        oldest: the seq of the oldest message in the log (``head + 1`` if it is empty).
        generation: grows with every connection of the session.
        page: the first messages.
        running: the session's tasks that have not ended.
        streams: whether an answer of the session may be streamed.
        unknown: with ``reset``: nothing is known of what the cursor is of.
    """

    status: ResumeStatus
    start: int
    head: int
    oldest: int
    generation: int
    page: Batch
    running: tuple[Running, ...] = ()
    streams: bool = True
    unknown: bool = False


class Page(NamedTuple):
    """A part of a log.

    Attributes:
        epoch: the log's own, which may be a later one than was asked for.
        standing: the highest seq of the asked epoch that stands in this one too; -1 if none does. Behind it
            are positions of messages that Redis has lost. The batch is empty if the asked position is one.
    """

    epoch: str
    head: int
    oldest: int
    standing: int
    batch: Batch


class Spoken(NamedTuple):
    """What an agent has said so far of an answer.

    Attributes:
        text_chars: how many characters.
        text: the inside of a JSON string.
    """

    task_id: str
    attempt: int
    text_chars: int
    text: bytes
    reasoning_chars: int
    reasoning: bytes


class History(NamedTuple):
    """A page of a log for who asks once.

    Attributes:
        status: as `Resumed`'s; ``fresh`` if nothing follows.
        start: the seq before the first message of the page.
    """

    status: ResumeStatus
    start: int
    head: int
    oldest: int
    batch: Batch


class Mark(NamedTuple):
    """How far a session's sockets have been sent their log."""

    session: str
    position: Position


class SessionLog:
    """Reads logs, and subscribes to their channels, over one store.

    Both go over *one* connection on purpose: what `resume` returns was read after the subscription that was
    made before it, so nothing can fall between.

    Args:
        feed: carries subscriptions and reads; its pushes are `parse_push`'s.
        commands: carries everything else.
        keys: names.
        settings: sizes and ages.
    """

    def __init__(self, feed: Store, commands: Store, keys: Keys, settings: Settings) -> None:
        self._feed = feed
        self._commands = commands
        self._keys = keys
        self._page: list[Argument] = [_PAGE_ENTRIES, settings.replay_page_bytes]
        self._reading = asyncio.Semaphore(_PAGES_AT_ONCE)
        self._histories = asyncio.Semaphore(_HISTORIES_AT_ONCE)
        self._ttl_ms = settings.session_log_max_age_s * 1125

    async def callback_list(self, tenant_id: str, session_id: str) -> str:
        """The list of a session's callbacks.

        A session that began while its tenant had one list stays with that one.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys = self._keys
        own, first = keys.callbacks_of(tenant_id, session_id), keys.callbacks(tenant_id)
        if own != first and await self._commands.call("EXISTS", keys.session(first, session_id)):
            return first
        return own

    async def locate(self, tenant_id: str, session_id: str) -> str:
        """A session's base key, which is the name of its channel too.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        return self._keys.session(await self.callback_list(tenant_id, session_id), session_id)

    def subscribe(self, channels: Sequence[str]) -> None:
        """Have the channels' messages pushed to the feed; while it is down, connecting again will."""
        self._feed.subscribe(channels)

    def unsubscribe(self, channel: str) -> None:
        """Have no more of a channel's messages."""
        self._feed.unsubscribe(channel)

    async def resume(
        self, session: str, cursor: Position | None, user: str = "", reread: int | None = None
    ) -> Resumed:
        """Where a new connection stands; begins the session if there is none.

        Args:
            user: to whom the session belongs from now on, if it is not used yet; empty: to its whole tenant.
                `backplane.keys.ANY_USER` for who may use all of the tenant's.
            reread: a seq before the cursor's, behind which the log is read all the same; whether the log
                reaches back is judged by the cursor.

        Raises:
            NotYours: the session belongs to another user.
            RedisUnavailable: Redis did not answer.
        """
        epoch, seq = cursor or Position("", 0)
        args: list[Argument] = [epoch, seq, *self._page, new_epoch(time.time()), self._ttl_ms, user]
        args += [self._keys.tasks_beside(session), "" if reread is None else reread]
        reply = await self._pages(RESUME, session, args)
        if not reply:
            raise NotYours
        status, epoch, start, head, oldest, generation, streams, tasks, *entries = reply
        size = len(Running._fields)
        words = [word.decode("utf-8", "replace") for word in tasks]
        running = tuple(Running(*words[at : at + size]) for at in range(0, len(words), size))
        batch = Batch(epoch.decode(), start + 1, entries)
        unknown = status == b"unknown"
        told: ResumeStatus = "reset" if unknown else status.decode()
        return Resumed(
            told, start, head, oldest, generation, batch, running, streams=bool(streams), unknown=unknown
        )

    async def read(self, session: str, position: Position) -> Page:
        """The messages that follow a position, as many as a page holds.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        args: list[Argument] = [position.epoch, position.seq, *self._page]
        epoch, head, oldest, standing, *entries = await self._pages(READ, session, args)
        first = max(position.seq + 1, oldest)
        return Page(epoch.decode(), head, oldest, standing, Batch(epoch.decode(), first, entries))

    async def history(self, session: str, cursor: Position | None, user: str) -> History:
        """The messages behind a cursor, or without one from the oldest on; begins and changes nothing.

        Args:
            user: as for `resume`.

        Raises:
            NotYours: the session belongs to another user.
            RedisUnavailable: Redis did not answer.
        """
        async with self._histories:
            return await self._history(session, cursor, user)

    async def _history(self, session: str, cursor: Position | None, user: str) -> History:
        owner, epoch = await self._commands.call("HMGET", session, "u", "e")
        if owner and user not in (owner.decode(), ANY_USER):
            raise NotYours
        asked = cursor or Position("" if epoch is None else epoch.decode(), 0)
        page = await self.read(session, asked)
        if asked.seq > page.standing and cursor is not None:
            page = await self.read(session, Position(page.epoch, 0))
            return History("reset", page.oldest - 1, page.head, page.oldest, page.batch)
        gone = asked.seq + 1 < page.oldest and cursor is not None
        status: ResumeStatus = "reset" if gone else "replayed" if page.batch.entries else "fresh"
        return History(status, max(asked.seq, page.oldest - 1), page.head, page.oldest, page.batch)

    async def _pages(self, script: Script, session: str, args: list[Argument]) -> list[Any]:
        """Read a page over the feed, a few at a time.

        Redis drops a subscriber whose unread replies pass its limit (32 MiB by default), and a storm of
        clients that come back would do that.
        """
        async with self._reading:
            if not self._feed.serves(session):  # not subscribed again yet: a message could fall between
                raise RedisUnavailable(f"the feed is down: {self._feed.last_error}")
            reply: list[Any] = await self._feed.script(script, [session, f"{session}:log"], args)
            return reply

    async def spoken(self, session: str) -> list[Spoken]:
        """What the agents of a session's tasks have said so far, read in its place among what is published.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        async with self._reading:
            if not self._feed.serves(session):
                raise RedisUnavailable(f"the feed is down: {self._feed.last_error}")
            prefix = self._keys.tasks_beside(session)
            told = await self._feed.script(STREAMS, [f"{session}:streams"], [prefix])
        return [
            Spoken(told[at].decode(), told[at + 1], *told[at + 2 : at + 6]) for at in range(0, len(told), 6)
        ]

    async def reached(self, session: str, tasks: Sequence[str]) -> list[tuple[int, int, int] | None]:
        """How far agents have come with their answers: attempt, characters of text and of reasoning.

        None for an answer that is over, or has not begun. Read in its place among what is published.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        prefix, fields = self._keys.tasks_beside(session), ("attempt", "text", "reasoning")
        calls = [self._feed.call("HMGET", f"{prefix}{task}:stream", *fields) for task in tasks]
        told = await asyncio.gather(*calls)
        reached = [None if one[0] is None else (int(one[0]), int(one[1]), int(one[2])) for one in told]
        return [None if one is None or one[0] >= _ATTEMPT_OVER else one for one in reached]

    async def belongs(self, callback_list: str, session_id: str, user: str) -> bool:
        """Whether a session is the user's (or of the whole tenant); who is nobody's is everybody's.

        Args:
            user: as for `resume`.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        owner = await self._commands.call("HGET", self._keys.session(callback_list, session_id), "u")
        return not owner or user in (owner.decode(), ANY_USER)

    async def heads(
        self, sessions: Sequence[str], *, renew: bool = False
    ) -> list[Position | RedisUnavailable | None]:
        """The newest positions of several logs: None for one that is gone, an error for one unreadable now.

        Args:
            sessions: their base keys.
            renew: put off the sessions' expiry too.
        """
        replies = await asyncio.gather(
            *[self._head(session, renew=renew) for session in sessions], return_exceptions=True
        )
        return [_head(reply) for reply in replies]

    def _head(self, session: str, *, renew: bool) -> asyncio.Future[Any]:
        try:
            if renew:
                self._feed.call("PEXPIRE", session, self._ttl_ms).add_done_callback(forget)
            return self._feed.call("HMGET", session, "e", "h")
        except RedisUnavailable as error:  # this one's server only, perhaps
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    async def mark_sent(self, marks: Iterable[Mark]) -> None:
        """Note what sessions have been sent, for clients that come without a cursor.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        by_slot: dict[int, list[Mark]] = {}
        for mark in marks:
            by_slot.setdefault(self._commands.slot(mark.session), []).append(mark)
        calls = []
        for todo in by_slot.values():
            for start in range(0, len(todo), _MARKS_A_CALL):
                some = todo[start : start + _MARKS_A_CALL]
                args: list[Argument] = [part for mark in some for part in mark.position]
                calls.append(self._commands.script(MARK_SENT, [mark.session for mark in some], args))
        for end in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(end, BaseException):
                raise end

    async def replace_older(self, session: str, generation: int) -> None:
        """Ask every pod to close the session's connections that are older than ``generation``.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self._commands.publish(session, f"!{generation}")


def _head(reply: list[bytes | None] | BaseException) -> Position | RedisUnavailable | None:
    """One session that cannot be read must not keep the others from being compared."""
    if isinstance(reply, RedisUnavailable):
        return reply
    if isinstance(reply, BaseException):
        raise reply
    epoch, head = reply
    return None if epoch is None or head is None else Position(epoch.decode(), int(head))


class Live(NamedTuple):
    """Published messages that are in no log: sent to whoever is there."""

    frame: bytes


class Replaced(NamedTuple):
    """Connections of a session that are older than ``generation`` have to go."""

    generation: int


class Piece(NamedTuple):
    """What an agent says next of its answer.

    Attributes:
        attempt: a higher one begins the answer anew.
        part: ``text`` or ``reasoning``.
        offset: characters of that part before it.
        chars: its own.
        inner: the inside of a JSON string, as msgspec writes it.
    """

    task_id: str
    attempt: int
    part: str
    offset: int
    chars: int
    inner: bytes


class StreamEnd(NamedTuple):
    """An answer is over; what follows in the log is the whole of it, or why there is none."""

    task_id: str


class Begun(NamedTuple):
    """An agent has begun to work on a task."""

    task_id: str


_PIECE = re.compile(
    r"([A-Za-z0-9._~-]{1,128}) ([1-9]\d{0,15}) (text|reasoning) (\d{1,16}) (\d{1,16})", re.ASCII
)

Published = Batch | Live | Replaced | Piece | StreamEnd | Begun


def _of_task(kind: bytes, head: str, rest: bytes) -> Piece | StreamEnd | Begun:
    if kind == b"+":
        match = _PIECE.fullmatch(head)
        if match is None:
            raise ValueError("no piece of an answer")
        task_id, attempt, part, offset, chars = match.groups()
        return Piece(task_id, int(attempt), part, int(offset), int(chars), rest)
    if rest or not is_id(head):
        raise ValueError("no task")
    return StreamEnd(head) if kind == b"-" else Begun(head)


def parse_push(payload: bytes) -> Published:
    """What was published on a session's channel (see ``lua/_append.lua``).

    Raises:
        ValueError: it was not published by this project.
    """
    head, _, rest = payload.partition(b"\n")
    if head.startswith((b"+", b"-", b"?")):
        return _of_task(head[:1], head[1:].decode("ascii"), rest)
    if head == b"~":
        return Live(rest)
    if head.startswith(b"!"):
        return Replaced(int(head[1:]))
    epoch, _, first = head.partition(b":")
    return Batch(epoch.decode("ascii"), int(first), rest.split(b"\n"))

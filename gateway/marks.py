"""How far sessions have been sent, noted in Redis for clients that come without a cursor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable

from backplane.errors import RedisUnavailable
from backplane.log import Logger
from backplane.position import Position
from backplane.session_log import Mark, SessionLog
from gateway.feed import Feed, Subscriber


class Marks:
    """The marks of one pod's sessions.

    Args:
        log: for operators.
        holds: whether the pod still has a session.
    """

    def __init__(self, session_log: SessionLog, log: Logger, holds: Callable[[Feed], bool]) -> None:
        self._session_log = session_log
        self._log = log
        self._holds = holds
        self._due: set[Feed] = set()

    def add(self, feed: Feed) -> None:
        """Something was sent."""
        self._due.add(feed)

    def discard(self, feed: Feed) -> None:
        """The pod has no connection of it any more."""
        self._due.discard(feed)

    async def flush(self) -> None:
        """Note how far the sessions' sockets have been sent.

        Raises:
            RedisUnavailable: Redis did not answer; it is noted the next time.
        """
        feeds, self._due = self._due, set()
        marks = []
        for feed in feeds:
            everyone = feed.everyone
            mark = self._mark(feed, feed.placed)
            if mark is not None:
                marks.append(mark)
            if any(socket.sent is None for socket in everyone):
                self._due.add(feed)  # its buffers are not empty yet
        try:
            await self._session_log.mark_sent(marks)
        except RedisUnavailable:
            for feed in feeds:
                self._again(feed)
            raise

    def noting(self, feed: Feed, socket: Subscriber) -> Coroutine[None, None, None] | None:
        """What notes how far a socket was sent that leaves; None if that is known."""
        mark = self._mark(feed, [socket])
        return None if mark is None else self._note(feed, mark)

    def _mark(self, feed: Feed, sockets: Iterable[Subscriber]) -> Mark | None:
        sent = max((socket.sent or 0 for socket in sockets), default=0)
        if sent <= feed.marked or feed.epoch is None:
            return None
        feed.marked = sent
        return Mark(feed.session, Position(feed.epoch, sent))

    def _again(self, feed: Feed) -> None:
        feed.marked = 0  # marks only move forward in Redis, so one too many does no harm
        if self._holds(feed):
            self._due.add(feed)

    async def _note(self, feed: Feed, mark: Mark) -> None:
        try:
            await self._session_log.mark_sent([mark])
        except RedisUnavailable as error:
            self._again(feed)
            self._log.warning("mark_lost", session=feed.session, seq=mark.position.seq, reason=str(error))

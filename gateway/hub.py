"""From channels to sockets: which sessions this pod holds, and where each of their sockets stands.

A socket is either *live* — what is published on its session's channel follows what it has — or it is
*catching up*: its messages are read from the log while what is published meanwhile is kept aside, and then
both are merged. A new socket, one that did not read for a while, and one whose pod missed something all
catch up by the same way. Pub/sub is only a hint; the log is the truth, and it is also each socket's queue:
a socket that does not read is sent nothing until it has, so nothing piles up for it here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.log import Logger
from backplane.position import Batch, Gap, Position, merge
from backplane.session_log import (
    Begun,
    Live,
    Piece,
    Replaced,
    Resumed,
    SessionLog,
    StreamEnd,
    parse_push,
)
from backplane.store import Store
from backplane.tracing import NO_TRACER, Tracer
from gateway.delays import Delays
from gateway.deliveries import Deliveries
from gateway.feed import CatchUp, Feed, Subscriber
from gateway.framing import Framing
from gateway.marks import Marks
from gateway.streams import Streams
from gateway.text_stream import Have, typing_message

_CROWD = 8  # sockets of one session; above, their messages are gathered for a moment
_SESSIONS_A_CHECK = 64  # more would keep live messages waiting for milliseconds
_REFUSED_PAUSE_S = 0.5
_MESSAGES = (b"message", b"smessage")


class Hub:
    """All sessions on this pod.

    Args:
        feed: the store that carries subscriptions and reads; give it `on_push` and `channels`.
        session_log: reads logs over that store.
        log: for operators.
        others: gets the pushes of channels that are no session's.
        merge_s: see `Streams`.
        delays: told what goes out when.
        tracer: gets the spans of deliveries.
    """

    def __init__(
        self,
        feed: Store,
        session_log: SessionLog,
        log: Logger,
        others: Callable[[bytes, bytes], None],
        merge_s: float = 0.0,
        tracer: Tracer = NO_TRACER,
        delays: Delays | None = None,
    ) -> None:
        self._store = feed
        self._session_log = session_log
        self._log = log
        self._others = others
        self._feeds: dict[bytes, Feed] = {}
        self._gathered: dict[Feed, list[Batch]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.marks = Marks(session_log, log, self._holds)
        self.streams = Streams(feed, session_log, merge_s, self._spawn)
        self._delays = delays or Delays()
        self._deliveries = Deliveries(tracer, log)
        self.delivered = 0
        self.caught_up = 0
        self.gaps = 0
        self.restarts = 0

    @property
    def sessions(self) -> int:
        """How many sessions have a socket here."""
        return len(self._feeds)

    # Sockets come and go.

    async def attach(
        self,
        session: str,
        socket: Subscriber,
        cursor: Position | None,
        greet: Callable[[Resumed], bool],
        user: str = "",
        has: Mapping[str, Have] = MappingProxyType({}),
        reread: int | None = None,
    ) -> Feed | None:
        """Put a socket on its session and send it what it lacks.

        Args:
            session: the session's base key.
            socket: must not be used before ``greet`` is called.
            cursor: what the client has; None for what no socket has been sent.
            greet: called once, right before the first message is written; False if the socket has gone.
            user: see `SessionLog.resume`.
            has: what the client has of answers that are streamed, by task.
            reread: see `SessionLog.resume`.

        Returns:
            The session's feed, None if the socket has gone.

        Raises:
            RedisUnavailable: nothing was attached.
            NotYours: likewise; the session belongs to another user.
        """
        feed = self._feed(session.encode())
        group = CatchUp([], Position("", 0))
        feed.catching.append(group)  # from here on live messages are kept aside
        pieces = feed.pieces
        try:
            resumed = await self._session_log.resume(session, cursor, user, reread)
            epoch = resumed.page.epoch
            socket.seq = resumed.start
            socket.generation = resumed.generation
            here = greet(resumed)
        except BaseException:
            self._abandon(feed, group)
            raise
        if not here:
            self._abandon(feed, group)
            return None
        if feed.epoch != epoch:
            self._begin_epoch(feed, epoch)
        group.position = Position(epoch, resumed.start)
        group.sockets.append(socket)
        if socket.wants_chunks and (resumed.streams or feed.pieces > pieces):
            self.streams.attach(feed, socket, has)
        self._send(group, resumed.page)
        if not self._join_live(feed, group, resumed.head):
            self._spawn(self._read_on(feed, group))
        if socket.generation < feed.replaced:  # that word came before the log's answer
            asyncio.get_running_loop().call_soon(socket.replaced)  # soon: the caller has to know its feed
        return feed

    def detach(self, feed: Feed, socket: Subscriber) -> asyncio.Task[None] | None:
        """Take a socket off its session; the last one unsubscribes the pod.

        Returns:
            The task that notes what the socket was sent, if that has to be noted.
        """
        placed = socket in feed.placed
        if socket in feed.sockets:
            feed.sockets.remove(socket)
        for group in feed.catching:
            if socket in group.sockets:
                group.sockets.remove(socket)
        if socket.wants_chunks:
            self.streams.detach(feed, socket)
        work = self.marks.noting(feed, socket) if placed else None
        noting = None if work is None else self._spawn(work)
        self._drop_if_empty(feed)
        return noting

    def resumed(self, feed: Feed, socket: Subscriber) -> None:
        """A socket that could not take more can again."""
        if socket.behind and socket in feed.sockets:
            self._catch_up(feed, [socket])
        elif feed.streams and socket.wants_chunks:
            self.streams.go_on(feed)

    def acked(self, feed: Feed, seq: int) -> None:
        """A client has acknowledged messages up to ``seq``: its socket's `sent` has moved."""
        self.marks.add(feed)
        self._delays.acked(feed, seq)

    def _feed(self, channel: bytes) -> Feed:
        feed = self._feeds.get(channel)
        if feed is None:
            feed = self._feeds[channel] = Feed(channel)
            self._session_log.subscribe([feed.session])
        return feed

    def _abandon(self, feed: Feed, group: CatchUp) -> None:
        feed.catching.remove(group)
        self._drop_if_empty(feed)

    def _holds(self, feed: Feed) -> bool:
        return self._feeds.get(feed.channel) is feed

    def _drop_if_empty(self, feed: Feed) -> None:
        if not feed.sockets and not feed.catching and self._holds(feed):
            del self._feeds[feed.channel]
            self.marks.discard(feed)
            self._session_log.unsubscribe(feed.session)

    # Live messages.

    def on_push(self, push: list[Any]) -> None:
        """What Redis pushed on the feed."""
        if push[0] not in _MESSAGES:
            return
        feed = self._feeds.get(push[1])
        if feed is None:
            self._others(push[1], push[2])
            return
        try:
            message = parse_push(push[2])
        except ValueError:
            self._log.warning("foreign_publish", channel=feed.session)
            return
        if isinstance(message, Batch):
            if len(feed.sockets) > _CROWD or feed in self._gathered:
                self._gather(feed, message)
            else:
                self._deliver(feed, message)
        elif isinstance(message, Piece):
            self.streams.on_piece(feed, message)
        elif isinstance(message, StreamEnd):
            self.streams.on_end(feed, message.task_id)
        elif isinstance(message, Begun):
            self._tell_begun(feed, message.task_id)
        elif isinstance(message, Live):
            self._deliver_unlogged(feed, message.frame)
        else:
            self._replace(feed, message)

    def _gather(self, feed: Feed, batch: Batch) -> None:
        """For a session with many sockets: what comes at the same moment is written in one go.

        Else the sessions whose messages stand behind in the same read would wait for thousands of writes.
        """
        gathered = self._gathered.get(feed)
        if gathered is None:
            if not self._gathered:
                asyncio.get_running_loop().call_soon(self._deliver_gathered)
            self._gathered[feed] = [batch]
        elif gathered[-1].epoch == batch.epoch and gathered[-1].last + 1 == batch.first:
            gathered[-1].entries.extend(batch.entries)
        else:
            gathered.append(batch)

    def _deliver_gathered(self) -> None:
        gathered, self._gathered = self._gathered, {}
        for feed, batches in gathered.items():
            for batch in batches:
                self._deliver(feed, batch)

    def _deliver(self, feed: Feed, batch: Batch) -> None:
        if self._deliveries.on:
            before, began_ns = self.delivered, time.time_ns()
            self._deliver_live(feed, batch)
            sockets = (self.delivered - before) // max(1, len(batch.entries))
            self._deliveries.told(batch, sockets, began_ns)
        else:
            self._deliver_live(feed, batch)

    def _deliver_live(self, feed: Feed, batch: Batch) -> None:
        for group in feed.catching:
            group.keep(batch)
        if feed.streams:
            self.streams.before_log(feed)
        made: dict[Framing, bytes] = {}
        before, last = batch.first - 1, batch.last
        lost: list[Subscriber] = []
        for socket in feed.sockets:
            if socket.seq == before and feed.epoch == batch.epoch and not socket.behind:
                if socket.writable:
                    data = made.get(socket.framing)
                    if data is None:
                        data = made[socket.framing] = socket.framing.log(
                            batch.epoch, batch.first, batch.entries
                        )
                    socket.write(data)
                    socket.seq = last
                    self.delivered += len(batch.entries)
                else:
                    socket.behind = True
            elif not socket.behind and (feed.epoch != batch.epoch or socket.seq < last):
                lost.append(socket)
        if made:
            self.marks.add(feed)
            self._delays.delivered(feed, batch)
        if lost:
            self.gaps += 1
            self._catch_up(feed, lost, missed=True)

    def _deliver_unlogged(self, feed: Feed, text: bytes) -> None:
        """Best effort: who cannot take it now gets the whole answer from the log."""
        for socket in feed.sockets:
            if socket.wants_chunks and socket.writable and not socket.behind:
                socket.write(socket.framing.message(text))

    def _tell_begun(self, feed: Feed, task_id: str) -> None:
        for socket in feed.sockets:
            if socket.writable and not socket.behind:
                message = typing_message(socket.envelope, task_id, time.time())
                socket.write(socket.framing.message(message))

    def _replace(self, feed: Feed, message: Replaced) -> None:
        feed.replaced = max(feed.replaced, message.generation)
        for socket in feed.everyone:
            if socket.generation < message.generation:
                socket.replaced()

    # Catching up.

    def _begin_epoch(self, feed: Feed, epoch: str) -> None:
        """The log goes on under another epoch: where the sockets stand in it, it has to say itself."""
        before, feed.epoch = feed.epoch, epoch
        feed.marked = 0
        if before is None:
            return
        feed.replaced = 0  # generations may have been lost too
        if feed.sockets:
            self._read_from(feed, list(feed.sockets), before)

    def _catch_up(self, feed: Feed, sockets: list[Subscriber], *, missed: bool = False) -> None:
        """Read on from the log for sockets that are not at its head."""
        self._read_from(feed, sockets, feed.epoch or "", missed=missed)

    def _read_from(self, feed: Feed, sockets: list[Subscriber], epoch: str, *, missed: bool = False) -> None:
        for socket in sockets:
            feed.sockets.remove(socket)
            socket.behind = False
        group = CatchUp(sockets, Position(epoch, min(socket.seq for socket in sockets)), missed=missed)
        feed.catching.append(group)
        self._spawn(self._read_on(feed, group))

    def _send(self, group: CatchUp, batch: Batch) -> None:
        sent = self._deliveries.watch(group, batch) if self._deliveries.on else group.send(batch)
        self.caught_up += sent
        if sent and group.missed:
            self._delays.missed(batch.entries)

    async def _read_on(self, feed: Feed, group: CatchUp) -> None:
        try:
            while group.sockets:
                try:
                    page = await self._session_log.read(feed.session, group.position)
                except RedisRefused:
                    await asyncio.sleep(_REFUSED_PAUSE_S)  # the link is up: it would be refused at once again
                    continue
                except RedisUnavailable:
                    await self._store.wait_for(feed.session)
                    continue
                # They were sent what Redis has lost since; what has these seqs now is something else.
                ahead = [socket for socket in group.sockets if socket.seq > page.standing]
                self._restart(ahead, "Redis lost the end of the session's log")
                if not group.sockets:
                    return
                if page.oldest > group.position.seq + 1:
                    self._restart(group.sockets, "the session's log no longer reaches back")
                    return
                if page.epoch != feed.epoch:
                    self._begin_epoch(feed, page.epoch)
                self._send(group, page.batch)
                if self._join_live(feed, group, page.head):
                    return
        finally:
            if group in feed.catching:
                feed.catching.remove(group)
            self._drop_if_empty(feed)  # its sockets may have gone meanwhile

    def _join_live(self, feed: Feed, group: CatchUp, head: int) -> bool:
        """Merge what came meanwhile; False if the log has to be read again before that.

        Runs without a pause, so that no live message falls between the merge and going live.
        """
        if group.position.epoch != feed.epoch:
            return False  # another epoch has begun meanwhile
        if all(socket.behind for socket in group.sockets):
            pass  # they read on when they can take more
        elif group.position.seq < head:
            return False
        else:
            merged = merge(*group.position, group.live)
            if isinstance(merged, Gap):
                group.live.clear()
                group.live_bytes = 0
                return False
            if merged:
                self._send(group, Batch(group.position.epoch, group.position.seq + 1, merged))
        feed.catching.remove(group)
        feed.sockets += group.sockets
        joined = [socket for socket in group.sockets if not socket.behind]
        for socket in group.sockets:
            if socket.behind and socket.writable:  # it has read in the meantime
                self._catch_up(feed, [socket])
        group.sockets = []
        self.marks.add(feed)
        if feed.streams:
            self.streams.go_on(feed)
        self.streams.caught_up(feed, joined)
        return True

    def _restart(self, sockets: Iterable[Subscriber], reason: str) -> None:
        for socket in list(sockets):
            self.restarts += 1
            socket.restart(reason)

    # After a lost connection, and every few seconds.

    def channels(self) -> list[str]:
        """All sessions' channels, for a connection that has to subscribe them again."""
        return [feed.session for feed in self._feeds.values()]

    async def check_positions(self, pause_s: float, *, renew: bool = False) -> int:
        """Compare all sessions with their logs, and catch up where something was missed.

        Args:
            pause_s: time over which to spread it (0: at once).
            renew: also put off the expiry of the sessions, which have sockets and so are in use.

        Returns:
            How many sessions could not be compared, as their server is away.
        """
        feeds = list(self._feeds.values())
        slices = [feeds[i : i + _SESSIONS_A_CHECK] for i in range(0, len(feeds), _SESSIONS_A_CHECK)]
        unread = 0
        for some in slices:
            heads = await self._session_log.heads([feed.session for feed in some], renew=renew)
            for feed, head in zip(some, heads, strict=True):
                if isinstance(head, RedisRefused):
                    self._log.warning("position_unreadable", session=feed.session, reason=str(head))
                elif isinstance(head, RedisUnavailable):
                    unread += 1
                else:
                    self._compare(feed, head)
            await asyncio.sleep(pause_s / len(slices))
        return unread

    def _compare(self, feed: Feed, head: Position | None) -> None:
        self.streams.check(feed)
        # Whatever is not as it should be is read: that tells a log that was rewound or began anew from a
        # reply that is only older than what has been pushed, or opened, since.
        seq = head.seq if head is not None and head.epoch == feed.epoch else -1
        off = [socket for socket in feed.sockets if socket.seq != seq and not socket.behind]
        if off:
            missed = any(socket.seq < seq for socket in off)
            self.gaps += missed
            self._catch_up(feed, off, missed=missed)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._log.error("hub_task_died", exc_info=task.exception())

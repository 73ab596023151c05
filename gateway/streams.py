"""Answers while they are streamed: what each socket has of them, and when it is sent more.

The first piece goes out at once; then what comes within a moment is merged. A socket that cannot take more is
passed over until it can, and then gets all that it lacks in one piece: its queue never grows. A piece that
was missed shows by its offset. Then the whole is read, over the connection that also brings the pieces, so
that it has its place among them: those that come before the reply are in it, and those behind follow it. What
comes until the reply is dealt with is kept: it may be either, and its offset says which.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.session_log import Piece, SessionLog, Spoken
from backplane.store import Store
from gateway.feed import Aside, Feed, Stream, Subscriber
from gateway.text_stream import PARTS, Have, Place, chunk_message

_TAIL_BYTES = 64 * 1024  # of an answer that a socket lacks; what is beyond it reads
_REFUSED_PAUSE_S = 0.5
_NOTHING = Have(0, 0, 0)


class Streams:
    """All answers that are streamed to this pod's sockets.

    Args:
        store: the one that carries the pieces.
        merge_s: time for which pieces are merged.
        spawn: runs a coroutine.
    """

    def __init__(
        self,
        store: Store,
        session_log: SessionLog,
        merge_s: float,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._store = store
        self._session_log = session_log
        self._merge_s = merge_s
        self._spawn = spawn
        self.healed = 0

    # Sockets come and go.

    def attach(self, feed: Feed, socket: Subscriber, has: Mapping[str, Have]) -> None:
        """A socket that wants pieces has come, perhaps in the middle of an answer.

        Args:
            has: what its client has, by task.
        """
        if has:
            feed.has[socket] = has
        self._load(feed)

    def detach(self, feed: Feed, socket: Subscriber) -> None:
        """A socket has gone."""
        feed.has.pop(socket, None)
        for stream in feed.streams.values():
            stream.places.pop(socket, None)
        if feed.streams and not any(one.wants_chunks for one in feed.everyone):
            for stream in feed.streams.values():
                stream.stop()
            feed.streams.clear()

    def go_on(self, feed: Feed) -> None:
        """Some of the sockets can take more, or have caught up with the log."""
        for stream in list(feed.streams.values()):
            self._flush(feed, stream)

    def check(self, feed: Feed) -> None:
        """Something may have been missed of which nothing tells."""
        if feed.streams:
            self._load(feed)

    # What is published.

    def on_piece(self, feed: Feed, piece: Piece) -> None:
        """The agent has said more."""
        if feed.loading:
            feed.aside.keep(piece)
            return
        stream = feed.streams.get(piece.task_id)
        if stream is None:
            readers = [socket for socket in feed.everyone if socket.wants_chunks]
            if not readers:
                return
            stream = feed.streams[piece.task_id] = Stream(piece.task_id, piece.attempt)
            if not piece.offset:
                first = Have(piece.attempt, 0, 0)
                stream.places = {socket: Place(first, late=False) for socket in readers}
        if piece.attempt < stream.text.attempt:
            return
        if piece.attempt > stream.text.attempt:
            stream.text.begin(piece.attempt)
        part = stream.text.parts["text" if piece.part == "text" else "reasoning"]
        if not part.add(piece.offset, piece.chars, piece.inner):
            self.healed += 1
            self._load(feed)
        elif stream.timer is None:
            self._turn(feed, stream)
        else:
            stream.due = True

    def on_end(self, feed: Feed, task_id: str) -> None:
        """The answer is over: the log has the whole, or why there is none."""
        if feed.loading:
            feed.aside.over.add(task_id)
        stream = feed.streams.pop(task_id, None)
        if stream is not None:
            self._flush(feed, stream)
            stream.stop()

    # Sending.

    def _turn(self, feed: Feed, stream: Stream) -> None:
        stream.timer, stream.due = None, False
        self._flush(feed, stream)
        if self._merge_s:
            loop = asyncio.get_running_loop()
            stream.timer = loop.call_later(self._merge_s, self._merged, feed, stream)

    def _merged(self, feed: Feed, stream: Stream) -> None:
        stream.timer = None
        if stream.due:
            self._turn(feed, stream)

    def _flush(self, feed: Feed, stream: Stream) -> None:
        """Send what sockets lack, and hold nothing that all of them have."""
        now, frames, lacking = time.time(), dict[tuple[Any, ...], bytes](), False
        for socket in feed.sockets:
            if socket.wants_chunks and socket.writable and not socket.behind:
                lacking |= not self._send(stream, socket, now, frames)
        places = [stream.places.get(socket) for socket in feed.sockets if socket.wants_chunks]
        for name, part in stream.text.parts.items():
            sent = [0 if place is None else place.sent(name) for place in places]
            part.forget(min(sent, default=part.end), _TAIL_BYTES)
        if lacking and feed.streams.get(stream.text.task_id) is stream:
            self._load(feed)

    def _send(
        self, stream: Stream, socket: Subscriber, now: float, frames: dict[tuple[Any, ...], bytes]
    ) -> bool:
        """Send one socket what it lacks; False if that has to be read."""
        text, place = stream.text, stream.places.get(socket)
        if place is None:
            place = stream.places[socket] = Place(_NOTHING, late=True)
        if place.attempt != text.attempt:
            place.attempt, place.text, place.reasoning = text.attempt, 0, 0
        complete = True
        for name in reversed(PARTS):  # what was thought comes before what was said
            part, sent = text.parts[name], place.sent(name)
            if sent >= part.end:
                continue
            inner = part.since(sent)
            if inner is None:
                complete = False
                continue
            snapshot = place.late and not sent
            key = (name, sent, snapshot, socket.envelope, socket.framing)
            frame = frames.get(key)
            if frame is None:
                message = chunk_message(
                    socket.envelope, text.task_id, text.attempt, name, sent, inner, now, snapshot=snapshot
                )
                frame = frames[key] = socket.framing.message(message)
            socket.write(frame)
            place.move(name, part.end)
        return complete

    # Reading the whole.

    def _load(self, feed: Feed) -> None:
        if not feed.loading:
            feed.loading = True
            self._spawn(self._read(feed))

    async def _read(self, feed: Feed) -> None:
        spoken: list[Spoken] | None = None
        try:
            spoken = await self._ask(feed)
        finally:
            feed.loading = False
            aside, feed.aside = feed.aside, Aside()
        if spoken is not None:
            self._loaded(feed, spoken)
            self._go_through(feed, aside)

    async def _ask(self, feed: Feed) -> list[Spoken] | None:
        """What the agents have said so far; None if nobody wants to know any more."""
        while any(socket.wants_chunks for socket in feed.everyone):
            try:
                return await self._session_log.spoken(feed.session)
            except RedisRefused:
                await asyncio.sleep(_REFUSED_PAUSE_S)
            except RedisUnavailable:
                await self._store.wait_for(feed.session)
        return None

    def _go_through(self, feed: Feed, aside: Aside) -> None:
        """Deal with what came while the streams were read: before the reply, and so known, or behind it."""
        if aside.size < 0:
            self._load(feed)
        for piece in aside.pieces:
            if piece.task_id not in aside.over:
                self.on_piece(feed, piece)
        for task_id in aside.over:
            self.on_end(feed, task_id)

    def _loaded(self, feed: Feed, spoken: list[Spoken]) -> None:
        for gone in feed.streams.keys() - {one.task_id for one in spoken}:
            feed.streams.pop(gone).stop()
        for one in spoken:
            stream = feed.streams.get(one.task_id)
            if stream is None:
                stream = feed.streams[one.task_id] = Stream(one.task_id, one.attempt)
            if one.attempt > stream.text.attempt:
                stream.text.begin(one.attempt)
            if one.attempt == stream.text.attempt:
                stream.text.parts["text"].replace(one.text_chars, one.text)
                stream.text.parts["reasoning"].replace(one.reasoning_chars, one.reasoning)
            for socket, has in feed.has.items():
                if one.task_id in has and socket not in stream.places:
                    stream.places[socket] = Place(_within(has[one.task_id], one), late=True)
        feed.has.clear()
        self.go_on(feed)


def _within(has: Have, spoken: Spoken) -> Have:
    """What a client says that it has, as far as that can be."""
    if has.attempt != spoken.attempt:
        return _NOTHING
    return Have(has.attempt, min(has.text, spoken.text_chars), min(has.reasoning, spoken.reasoning_chars))

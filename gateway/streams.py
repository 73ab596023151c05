"""Answers while they are streamed: what each socket has of them, and when it is sent more.

The first piece goes out at once; then what comes within a moment is merged. A socket that cannot take more is
passed over until it can, and then gets all that it lacks in one piece: its queue never grows. A piece that
was missed shows by its offset. Then the whole is read, over the connection that also brings the pieces, so
that it has its place among them: those that come before the reply are in it, and those behind follow it. What
follows what is held is taken meanwhile too, or a socket that comes would interrupt the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.session_log import Piece, SessionLog, Spoken
from backplane.store import Store
from gateway.feed import Feed, Loading, Stream, Subscriber
from gateway.text_stream import PART_NAMES, PARTS, Have, Place, chunk_message

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
        """A socket that wants pieces has come in the middle of an answer: that is read first.

        Args:
            has: what its client has, by task.
        """
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
        lacking = [stream for stream in feed.streams.values() if self._flush(feed, stream)]
        if lacking:
            self._load(feed)

    def caught_up(self, feed: Feed, sockets: Iterable[Subscriber]) -> None:
        """Tell sockets that have all of the log so, unless what was said is still being read for them."""
        if feed.loading is not None:
            return
        for socket in list(sockets):
            if socket.wants_chunks and not socket.behind and socket not in feed.has:
                told = socket.framing.caught_up()
                if told:
                    socket.write(told)

    def before_log(self, feed: Feed) -> None:
        """Something of the log is about to be sent: what was said before goes first."""
        lacking = False
        for stream in feed.streams.values():
            if stream.due:
                stream.due = False
                lacking |= self._flush(feed, stream)
        if lacking:
            self._load(feed)

    def check(self, feed: Feed) -> None:
        """Something may have been missed of which nothing tells."""
        if feed.has:
            self._load(feed)
        elif feed.streams and feed.loading is None:
            self._spawn(self._compare(feed))

    # What is published.

    def on_piece(self, feed: Feed, piece: Piece) -> None:
        """The agent has said more."""
        feed.pieces += 1
        stream = feed.streams.get(piece.task_id) or self._begin(feed, piece)
        loading, name = feed.loading, PART_NAMES[piece.part]
        attempt, offset, chars = piece.attempt, piece.offset, piece.chars
        if stream is not None and stream.text.take(attempt, name, offset, chars, piece.inner):
            if loading is not None:
                loading.taken.add(piece.task_id)
            if stream.timer is None:
                self._turn(feed, stream)
            else:
                stream.due = True
        elif loading is not None:
            loading.miss(piece.task_id, name, attempt, offset + chars)
        elif any(socket.wants_chunks for socket in feed.everyone):
            self.healed += 1
            self._load(feed)

    def _begin(self, feed: Feed, piece: Piece) -> Stream | None:
        """The stream that begins with a piece, if one does and somebody wants it."""
        readers = [socket for socket in feed.everyone if socket.wants_chunks]
        if piece.offset or not readers:
            return None
        stream = feed.streams[piece.task_id] = Stream(piece.task_id, piece.attempt)
        first = Have(piece.attempt, 0, 0)
        stream.places = {socket: Place(first, late=False) for socket in readers if socket not in feed.has}
        return stream

    def on_end(self, feed: Feed, task_id: str) -> None:
        """The answer is over: the log has the whole, or why there is none."""
        if feed.loading is not None:
            feed.loading.ended.add(task_id)
        stream = feed.streams.pop(task_id, None)
        if stream is not None:
            self._flush(feed, stream)
            stream.stop()

    # Sending.

    def _turn(self, feed: Feed, stream: Stream) -> None:
        stream.timer, stream.due = None, False
        if self._flush(feed, stream):
            self._load(feed)
        if self._merge_s:
            loop = asyncio.get_running_loop()
            stream.timer = loop.call_later(self._merge_s, self._merged, feed, stream)

    def _merged(self, feed: Feed, stream: Stream) -> None:
        stream.timer = None
        if stream.due:
            self._turn(feed, stream)

    def _flush(self, feed: Feed, stream: Stream) -> bool:
        """Send what sockets lack, and hold nothing that all have; True if one lacks what is not held."""
        now, frames, lacking = time.time(), dict[tuple[Any, ...], bytes](), False
        for socket in feed.sockets:
            if socket.wants_chunks and socket.writable and not socket.behind and socket not in feed.has:
                lacking |= not self._send(stream, socket, now, frames)
        places = [stream.places.get(socket) for socket in feed.sockets if socket.wants_chunks]
        attempt = stream.text.attempt
        for name, part in stream.text.parts.items():
            sent = [place.sent(name) if place and place.attempt == attempt else 0 for place in places]
            part.forget(min(sent, default=part.end), _TAIL_BYTES)
        return lacking

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

    # Reading the whole, and whether it has to be.

    async def _compare(self, feed: Feed) -> None:
        tasks = list(feed.streams)
        try:
            reached = await self._session_log.reached(feed.session, tasks)
        except RedisUnavailable:
            return  # somebody looks again soon
        if any(_is_behind(feed.streams.get(task), there) for task, there in zip(tasks, reached, strict=True)):
            self._load(feed)

    def _load(self, feed: Feed) -> None:
        if feed.loading is None:
            feed.loading = Loading()
            self._spawn(self._read(feed, feed.loading))

    async def _read(self, feed: Feed, loading: Loading) -> None:
        try:
            while any(socket.wants_chunks for socket in feed.everyone):
                try:
                    spoken = await self._session_log.spoken(feed.session)
                except RedisRefused:
                    await asyncio.sleep(_REFUSED_PAUSE_S)
                    continue
                except RedisUnavailable:
                    await self._store.wait_for(feed.session)
                    continue
                feed.loading = None
                if any(socket.wants_chunks for socket in feed.everyone):
                    self._loaded(feed, loading, spoken)
                return
        finally:
            if feed.loading is loading:
                feed.loading = None

    def _loaded(self, feed: Feed, loading: Loading, spoken: list[Spoken]) -> None:
        here = [one for one in spoken if one.task_id not in loading.ended]
        for gone in feed.streams.keys() - {one.task_id for one in here} - loading.taken:
            feed.streams.pop(gone).stop()
        for one in here:
            self._take(feed, one, older=one.task_id in loading.taken)
        feed.has.clear()
        # What a socket lacks even now is not in Redis either, unless the reply was the older word.
        lacking = [task for task, stream in feed.streams.items() if self._flush(feed, stream)]
        if loading.lacks(feed.streams) or not loading.taken.isdisjoint(lacking):
            self._load(feed)
        else:
            self.caught_up(feed, feed.sockets)

    def _take(self, feed: Feed, one: Spoken, *, older: bool) -> None:
        """Hold the whole of an answer.

        Args:
            older: what is held may be more; else it is less, or Redis has lost the rest.
        """
        stream = feed.streams.get(one.task_id)
        if stream is None:
            stream = feed.streams[one.task_id] = Stream(one.task_id, one.attempt)
        text = stream.text
        if one.attempt > text.attempt:
            text.begin(one.attempt)
        if one.attempt == text.attempt:
            wholes = ((one.text_chars, one.text), (one.reasoning_chars, one.reasoning))
            for name, (chars, inner) in zip(PARTS, wholes, strict=True):
                if chars >= text.parts[name].end or not older:
                    text.parts[name].replace(chars, inner)
        for socket, has in feed.has.items():
            if one.task_id in has:
                stream.places[socket] = Place(_within(has[one.task_id], one), late=True)


def _is_behind(stream: Stream | None, there: tuple[int, int, int] | None) -> bool:
    """Whether Redis has more of an answer than is held here, or knows of its end."""
    if stream is None or there is None:
        return stream is not None
    attempt, *chars = there
    return any((attempt, end) > stream.text.reached(name) for name, end in zip(PARTS, chars, strict=True))


def _within(has: Have, spoken: Spoken) -> Have:
    """What a client says that it has, as far as that can be."""
    if has.attempt != spoken.attempt:
        return _NOTHING
    return Have(has.attempt, min(has.text, spoken.text_chars), min(has.reasoning, spoken.reasoning_chars))

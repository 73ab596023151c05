"""How long messages take on the last part of their way: from the log to sockets, and to clients' acks."""

from __future__ import annotations

import time

from backplane.messages import seconds
from backplane.metrics import FAST_S, Histogram
from backplane.position import Batch
from gateway.feed import Feed

_MADE_AT = slice(14, 38)  # of an entry: see `backplane.messages`
_REPORT = b'"type":"task_update"'
_TYPE = slice(40, 40 + len(_REPORT))
_FORGET_S = 60.0  # a client that has not acknowledged by then may be gone


class Delays:
    """Told of every message that goes out live; looks at none of them as a whole.

    Args:
        delivery: from a message's making, right before it is appended, to its write. Between two machines it
            is as exact as their clocks.
        acknowledgement: from there to the client's word that it has it.
    """

    def __init__(self, delivery: Histogram | None = None, acknowledgement: Histogram | None = None) -> None:
        self._delivery = delivery or Histogram(FAST_S)
        self._acknowledgement = acknowledgement or Histogram(FAST_S)
        self._second = b""
        self._second_at = 0.0

    def delivered(self, feed: Feed, batch: Batch) -> None:
        """A session's messages were written to its sockets."""
        entries = batch.entries
        if len(entries) == 1:
            self._observe(entries[0])
        else:
            self.missed(entries)  # each has its own time
        if feed.acks:
            now = time.monotonic()
            if feed.awaited is None or now - feed.awaited[1] > _FORGET_S:
                feed.awaited = (batch.last, now)

    def missed(self, entries: list[bytes]) -> None:
        """Messages were written, perhaps late, as this pod had missed them."""
        for entry in entries:
            self._observe(entry)

    def acked(self, feed: Feed, seq: int) -> None:
        """A client of a session has its messages up to ``seq``."""
        feed.acks = True
        if feed.awaited is not None and seq >= feed.awaited[0]:
            self._acknowledgement.observe(time.monotonic() - feed.awaited[1])
            feed.awaited = None

    def _observe(self, entry: bytes) -> None:
        if entry[_TYPE] == _REPORT:  # the newest of a step's is held back on purpose (PROGRESS_INTERVAL_MS)
            return
        try:
            late_s = time.time() - self._made_at(entry)
        except ValueError:  # not of our making; nobody is to wait for that
            return
        self._delivery.observe(max(0.0, late_s))

    def _made_at(self, entry: bytes) -> float:
        """Seconds since 1970; most messages of one moment were made in the same second."""
        at = entry[_MADE_AT]
        if at[:19] != self._second:
            self._second_at = seconds(at[:19].decode() + "Z")
            self._second = at[:19]
        return self._second_at + int(at[20:23]) / 1000

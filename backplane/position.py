"""Where a reader stands in a session log: [P] pure functions.

A position is ``(epoch, seq)``. Within an epoch the seqs of a log are 1, 2, 3, … without gaps; a log that
was lost and begun anew has another epoch, so that an old position can never be mistaken for a new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from backplane.errors import InvalidCursor

CURSOR = re.compile(r"([0-9a-z]{1,32}):(0|[1-9][0-9]{0,15})", re.ASCII)
"""What a cursor looks like to a client."""


class Position(NamedTuple):
    """A position in a session log; ``seq`` is the last message that the reader has."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}"


class Batch(NamedTuple):
    """Consecutive entries of one log.

    Attributes:
        epoch: the epoch of the log.
        first: the seq of the first entry.
        entries: the stored bodies, oldest first.
    """

    epoch: str
    first: int
    entries: list[bytes]

    @property
    def last(self) -> int:
        """The seq of the last entry (``first - 1`` for an empty batch)."""
        return self.first + len(self.entries) - 1


class Gap(NamedTuple):
    """What a reader at ``after`` lacks before it can take live messages again."""

    after: int


def parse_cursor(text: str) -> Position:
    """Read a client's cursor.

    Raises:
        InvalidCursor: it is not ``epoch:seq``.
    """
    match = CURSOR.fullmatch(text)
    if match is None:
        raise InvalidCursor("cursor must be epoch:seq as the server sent it, for example 1m2k3j:42")
    return Position(match[1], int(match[2]))


def new_epoch(now: float) -> str:
    """An epoch that no earlier log of a session can have had: the time in µs, and 24 random bits."""
    return f"{int(now * 1e6):x}{os.urandom(3).hex()}"


def newer(batch: Batch, after: int) -> list[bytes] | Gap:
    """The entries of ``batch`` that a reader at ``after`` has not had, or the gap in front of them."""
    if batch.first > after + 1:
        return Gap(after)
    return batch.entries[after + 1 - batch.first :]


def merge(epoch: str, after: int, live: Iterable[Batch]) -> list[bytes] | Gap:
    """What came live while a reader was reading history up to ``after``, each entry once and in order.

    Args:
        epoch: the epoch of the history that was read.
        after: the seq of its last entry.
        live: batches in the order in which they arrived; they may overlap the history and each other.

    Returns:
        The entries that follow ``after`` without a hole, or the first gap: then the history has to be
        read again. A batch of another epoch is a gap too.
    """
    merged: list[bytes] = []
    for batch in live:
        if batch.epoch != epoch:
            return Gap(after + len(merged))
        fresh = newer(batch, after + len(merged))
        if isinstance(fresh, Gap):
            return fresh
        merged += fresh
    return merged

"""How targets read their input: numbers and choices from the front, and stretches that stand for many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_REPEATED = re.compile(rb"\xff\xfe(.)(.*?)\xff\xfe", re.DOTALL)
_MOST_BYTES = 256 * 1024


class Reader:
    """Takes an input apart; behind its end come zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def done(self) -> bool:
        """Whether all is read."""
        return self._position >= len(self._data)

    def byte(self) -> int:
        """The next byte."""
        self._position += 1
        return 0 if self._position > len(self._data) else self._data[self._position - 1]

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit - 1``; two bytes where one is not enough."""
        return (self.byte() if limit <= 256 else self.byte() << 8 | self.byte()) % limit

    def pick(self, choices: Sequence[T]) -> T:
        """One of ``choices``."""
        return choices[self.below(len(choices))]

    def take(self, most: int) -> bytes:
        """Up to ``most`` bytes."""
        taken = self._data[self._position : self._position + most]
        self._position += most
        return taken

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """``data`` in pieces of ``sizes``, over and over; whole if there are none."""
    if not any(sizes):
        yield data
        return
    start, turn = 0, 0
    while start < len(data):
        size = sizes[turn % len(sizes)]
        yield data[start : start + size]
        start, turn = start + size, turn + 1


def expand(data: bytes) -> bytes:
    """Write out what an input abbreviates: ``FF FE n … FF FE`` is ``…`` repeated 16 n times.

    So that a few mutated bytes reach what only a long input reaches; cut at 256 KiB.
    """

    def repeat(match: re.Match[bytes]) -> bytes:
        return match[2] * min(16 * match[1][0], _MOST_BYTES // max(1, len(match[2])))

    return _REPEATED.sub(repeat, data)[:_MOST_BYTES]

"""One answer while it is streamed, as a pod has it: [P] pure.

Only what is on its way is held: what some socket still lacks, and of that no more than a bound. Whoever lacks
more is sent it from Redis, where the whole stands until the answer is complete.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import msgspec

from backplane.messages import timestamp

PartName = Literal["text", "reasoning"]
PARTS: tuple[PartName, ...] = ("text", "reasoning")
PART_NAMES: dict[str, PartName] = {name: name for name in PARTS}

_PIECE_BYTES = 128  # what a piece takes beside its text

_string = msgspec.json.Decoder(str).decode


class Have(NamedTuple):
    """How much of an answer a client has: characters of each part, of one attempt."""

    attempt: int
    text: int
    reasoning: int


_MOST_HAVE = 8
_HAVE = re.compile(
    r"([A-Za-z0-9._~-]{1,128}):([1-9][0-9]{0,15}):(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})", re.ASCII
)


def parse_have(text: str) -> dict[str, Have]:
    """Read what a client says that it has of answers: ``task:attempt:text:reasoning``, several with commas.

    Raises:
        ValueError: it says something else.
    """
    has = {}
    for one in text.split(",", _MOST_HAVE - 1):
        match = _HAVE.fullmatch(one)
        if match is None:
            raise ValueError(
                "have must be task_id:attempt:text:reasoning, at most 8 of them with commas between"
            )
        has[match[1]] = Have(int(match[2]), int(match[3]), int(match[4]))
    return has


class Part:
    """Text or reasoning: consecutive pieces, of which the first ones may be gone.

    Attributes:
        start: characters before the first piece that is held.
        end: characters in all.
        size: bytes that this takes.
    """

    __slots__ = ("_pieces", "end", "size", "start")

    def __init__(self) -> None:
        self._pieces: list[tuple[int, bytes]] = []
        self.start = self.end = self.size = 0

    def add(self, offset: int, chars: int, inner: bytes) -> bool:
        """Take a piece, or what is new of it; False if something before it is missing."""
        if offset > self.end:
            return False
        if offset + chars > self.end:
            self._append(offset + chars, inner if offset == self.end else without(inner, self.end - offset))
        return True

    def replace(self, chars: int, inner: bytes) -> None:
        """Hold the whole, from the beginning."""
        self._pieces.clear()
        self.start = self.end = self.size = 0
        if chars:
            self._append(chars, inner)

    def _append(self, end: int, inner: bytes) -> None:
        self._pieces.append((self.end, inner))
        self.end = end
        self.size += len(inner) + _PIECE_BYTES

    def since(self, sent: int) -> bytes | None:
        """What follows the first ``sent`` characters; None if that is not all held."""
        if sent < self.start:
            return None
        found = []
        for index, (offset, inner) in enumerate(self._pieces):
            after = self._pieces[index + 1][0] if index + 1 < len(self._pieces) else self.end
            if after > sent:
                found.append(inner if offset >= sent else without(inner, sent - offset))
        return b"".join(found)

    def forget(self, before: int, most: int) -> None:
        """Hold no piece that all have who have ``before`` characters, nor take more bytes than ``most``."""
        while self._pieces:
            after = self._pieces[1][0] if len(self._pieces) > 1 else self.end
            if after > before and self.size <= most:
                return
            self.size -= len(self._pieces.pop(0)[1]) + _PIECE_BYTES
            self.start = after


class Place:
    """How far one socket has been sent an answer.

    Attributes:
        late: it was not there when the answer began: its first piece is a snapshot.
    """

    __slots__ = ("attempt", "late", "reasoning", "text")

    def __init__(self, have: Have, *, late: bool) -> None:
        self.attempt, self.text, self.reasoning = have
        self.late = late

    def sent(self, part: PartName) -> int:
        """Characters."""
        return self.text if part == "text" else self.reasoning

    def move(self, part: PartName, sent: int) -> None:
        """It has been sent so much."""
        if part == "text":
            self.text = sent
        else:
            self.reasoning = sent


class TextStream:
    """One task's answer."""

    __slots__ = ("attempt", "parts", "task_id")

    def __init__(self, task_id: str, attempt: int) -> None:
        self.task_id = task_id
        self.begin(attempt)

    def begin(self, attempt: int) -> None:
        """The answer begins anew."""
        self.attempt = attempt
        self.parts: dict[PartName, Part] = {name: Part() for name in PARTS}

    def take(self, attempt: int, part: PartName, offset: int, chars: int, inner: bytes) -> bool:
        """Take a piece, or what is new of it, in any attempt; False if something before it is missing."""
        if attempt > self.attempt:
            self.begin(attempt)
        return attempt < self.attempt or self.parts[part].add(offset, chars, inner)

    def reached(self, part: PartName) -> tuple[int, int]:
        """How far it has come: attempt and characters."""
        return self.attempt, self.parts[part].end


def without(inner: bytes, chars: int) -> bytes:
    """The inside of a JSON string without its first characters."""
    return msgspec.json.encode(_string(b'"%b"' % inner)[chars:])[1:-1]


def chunk_message(
    envelope: bytes,
    task_id: str,
    attempt: int,
    part: PartName,
    offset: int,
    inner: bytes,
    now: float,
    *,
    snapshot: bool,
) -> bytes:
    """An ``agent_chunk``, as JSON.

    Args:
        envelope: see `envelope`.
        now: seconds since 1970.
    """
    flag = b',"snapshot":true' if snapshot else b""
    name = task_id.encode()
    return (
        b'{"timestamp":"%b","type":"agent_chunk","task_id":"%b",%b,"data":{"task_id":"%b","delta":"%b","offset":%d,'
        b'"attempt":%d,"part":"%b"%b},"metadata":{}}'
        % (timestamp(now).encode(), name, envelope, name, inner, offset, attempt, part.encode(), flag)
    )


def typing_message(envelope: bytes, task_id: str, now: float) -> bytes:
    """A ``typing_indicator``, as JSON; arguments as of `chunk_message`."""
    name = task_id.encode()
    return (
        b'{"timestamp":"%b","type":"typing_indicator","task_id":"%b",%b,"data":{"task_id":"%b"},"metadata":{}}'
        % (timestamp(now).encode(), name, envelope, name)
    )


def envelope(session_id: str, tenant_id: str, tenant_tier: str) -> bytes:
    """What all messages of a socket have in common; the ids are valid ones."""
    return b'"session_id":"%b","tenant_id":"%b","tenant_tier":"%b"' % (
        session_id.encode(),
        tenant_id.encode(),
        tenant_tier.encode(),
    )

"""Messages to clients as they stand in a session log and go over a socket: [P] pure.

A log entry is a message's JSON without its position, cut where the position belongs: it ends in
``"metadata":{`` (or with other metadata and a comma). Its seq is known only when a script appends it, so the
pod writes ``"epoch":…,"seq":…}}`` behind it. That is one bytes operation per message and pod, and neither
Redis nor the pod has to decode anything. The timestamp stands first, at a fixed place, where the transfer
script reads how old an entry is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

MessageData = dict[str, Any]

_encode = msgspec.json.Encoder().encode


class Message(msgspec.Struct):
    """A message to a client; the order of fields is the order on the wire."""

    timestamp: str
    type: str
    task_id: str | None
    session_id: str | None
    tenant_id: str | None
    tenant_tier: str | None
    data: MessageData
    metadata: MessageData


def timestamp(now: float) -> str:
    """``2026-01-31T12:00:00.000Z`` for a time in seconds since 1970."""
    second, millisecond = divmod(int(now * 1000), 1000)  # fromtimestamp would round, even into the next
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{millisecond:03d}Z"


def seconds(at: str) -> float:
    """The time of a `timestamp`, in seconds since 1970."""
    return datetime.fromisoformat(at).timestamp()


def to_json(message: Message) -> bytes:
    """A message that does not belong to a log, whole."""
    return _encode(message)


def to_entry(message: Message) -> bytes:
    """A message as a log entry; one line, valid UTF-8.

    Raises:
        UnicodeDecodeError: raw JSON that the message carries is not UTF-8.
    """
    entry = _one_line(_encode(message)[:-2])
    return entry + b"," if message.metadata else entry


def to_live(message: Message) -> bytes:
    """A message that is published but not logged (a chunk); one line, valid UTF-8.

    Raises:
        UnicodeDecodeError: raw JSON that the message carries is not UTF-8.
    """
    return _one_line(_encode(message))


def with_position(entry: bytes, epoch: str, seq: int) -> bytes:
    """The message of a log entry, whole."""
    return b'%b"epoch":"%b","seq":%d}}' % (entry, epoch.encode(), seq)


def _one_line(encoded: bytes) -> bytes:
    """Raw JSON may hold line ends between its tokens (never in a string) and bytes that nobody checked."""
    if not encoded.isascii():
        encoded.decode()
    if b"\n" in encoded or b"\r" in encoded:
        encoded = encoded.replace(b"\n", b" ").replace(b"\r", b" ")
    return encoded

"""Redis Cluster's arithmetic: [P] pure. Which slot a key is in, and what redirections say.

Source: the Redis Cluster specification (keys distribution model, hash tags, redirection).
"""

from __future__ import annotations

import binascii
import re
from typing import Any, NamedTuple

SLOTS = 16_384

_REDIRECTION = re.compile(r"(MOVED|ASK) ([0-9]+) (\S*):([0-9]+)")


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Redirection(NamedTuple):
    """A reply that says where a key is; ``ask`` for this one command only."""

    ask: bool
    slot: int
    address: Address


class Range(NamedTuple):
    """Slots ``first`` to ``last`` are served by ``primary``."""

    first: int
    last: int
    primary: Address


def key_slot(key: str | bytes) -> int:
    """The slot of a key or sharded channel: CRC16 (XMODEM) of its hash tag, or of all of it."""
    name = key.encode() if isinstance(key, str) else key
    opening = name.find(b"{")
    if opening >= 0:
        closing = name.find(b"}", opening + 1)
        if closing > opening + 1:
            name = name[opening + 1 : closing]
    return binascii.crc_hqx(name, 0) % SLOTS


def parse_redirection(message: str, asked: Address) -> Redirection | None:
    """Read a MOVED or ASK error; None if it is another error.

    Args:
        asked: the node that said it; an empty host in its words means its own.
    """
    match = _REDIRECTION.match(message)
    if match is None or int(match[2]) >= SLOTS:
        return None
    return Redirection(match[1] == "ASK", int(match[2]), Address(match[3] or asked.host, int(match[4])))


def parse_slots(reply: list[Any], asked: Address) -> list[Range]:
    """Read the reply of ``CLUSTER SLOTS``.

    Args:
        asked: the node that said it; a missing host means its own.
    """
    ranges = []
    for first, last, primary, *_replicas in reply:
        host = primary[0].decode() if primary[0] else ""
        ranges.append(Range(first, last, Address(asked.host if host in {"", "?"} else host, primary[1])))
    return ranges

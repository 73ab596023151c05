"""What the client of an event stream has, as the id of the last event that it saw: [P] pure.

A position of the session log is not enough. Chunks of an answer are in no log, and the clients of the other
protocols append what they get; so the id also says how much of each running answer was told:

    epoch:seq
    epoch:seq!task*attempt*text*reasoning*since
    epoch:seq*told!task*attempt*text*reasoning*since!task*…

For example ``1m2k3j:42!t-7*1*120.2o.9ad3f01b*40.1.1f00c0de*17``: up to message 42 of the log, and of the
first attempt of task ``t-7`` 120 characters of text in two blocks, the second of which is still open, and 40
of reasoning in one closed block; the first message of the log about ``t-7`` was 17.

- *told* counts the events of the message after ``seq`` that were told before the connection broke and must
  not be told twice (see `gateway.encoders.ledger`); it is left out when it is 0.
- *text* and *reasoning* are ``chars.blocks`` with ``o`` if the last block is open, and a CRC-32: with it
  the server knows without having kept the text whether what it has now begins with what the client has.
- *since* is where the log has to be read again, so that the encoder knows the tool calls that the client has.

The signs between the fields occur neither in numbers nor in ids (``A-Z a-z 0-9 . _ ~ -``), so nothing is
escaped. They are printable ASCII that may stand in a header, and in a query as they are (RFC 3986, 3.4); a
comma could be taken for a list, a plus for a space.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from backplane.position import Position, parse_cursor

MAX_CHARS = 1024
MAX_GROUPS = 4
"""Tasks in one id: of the longest ids, as many as fit into `MAX_CHARS`."""

MAX_NUMBER = 9_999_999_999
MAX_BLOCKS = 9_999
MAX_TOLD = 9_999

_NUMBER = "(0|[1-9][0-9]{0,9})"
_PART = rf"\*{_NUMBER}\.(0|[1-9][0-9]{{0,3}})(o?)\.([0-9a-f]{{8}})"
_GROUP = re.compile(
    rf"!([A-Za-z0-9._~-]{{1,128}})\*{_NUMBER}{_PART}{_PART}\*(0|[1-9][0-9]{{0,15}})", re.ASCII
)
_HEAD = re.compile(r"([0-9a-z]{1,32}:(?:0|[1-9][0-9]{0,15}))(?:\*([1-9][0-9]{0,3}))?", re.ASCII)


class Part(NamedTuple):
    """What a client has of the text or the reasoning of one attempt.

    Attributes:
        chars: code points.
        blocks: messages or parts of the other protocol into which they were cut.
        open: the end of the last block was not told.
        check: CRC-32 of the characters as UTF-8.
    """

    chars: int = 0
    blocks: int = 0
    open: bool = False
    check: int = 0


class Have(NamedTuple):
    """What a client has of one task that has not ended.

    Attributes:
        since: seq of the first message of the log that it was told of this task; 0 for none.
    """

    attempt: int = 1
    text: Part = Part()
    reasoning: Part = Part()
    since: int = 0


_NOTHING: Mapping[str, Have] = MappingProxyType({})


class EventId(NamedTuple):
    """What a client has of a session.

    Attributes:
        cursor: ``epoch:seq``; it was told every message of the log up to here.
        have: by task id, those that were begun and have not ended, oldest first.
        told: how many events of the next message it was told already.
    """

    cursor: str
    have: Mapping[str, Have] = _NOTHING
    told: int = 0

    @property
    def replay_from(self) -> str:
        """The cursor behind which the log has to be read, for an encoder that is given this id.

        That is before ``cursor`` if tasks run of which the client was told something; the encoder then takes
        the messages up to ``cursor`` as a reminder, and says nothing.
        """
        position = parse_cursor(self.cursor)
        firsts = [have.since - 1 for have in self.have.values() if have.since]
        return str(Position(position.epoch, min([position.seq, *firsts])))


def parse_event_id(text: str) -> EventId:
    """Read an id as `format_event_id` writes it; a plain cursor is one too.

    Raises:
        ValueError: it is none that the server can have sent.
    """
    if len(text) > MAX_CHARS or not text.isascii():
        raise ValueError(f"an event id is at most {MAX_CHARS} ASCII characters")
    head, *_ = text.partition("!")
    match = _HEAD.fullmatch(head)
    groups = list(_GROUP.finditer(text, len(head)))
    if match is None or sum(len(group[0]) for group in groups) != len(text) - len(head):
        raise ValueError("event id must be one that the server sent, for example 1m2k3j:42")
    have = {group[1]: _have(group) for group in groups}
    if len(have) != len(groups) or len(have) > MAX_GROUPS:
        raise ValueError(f"event id must name at most {MAX_GROUPS} tasks, each once")
    return EventId(match[1], have, int(match[2] or 0))


def _have(group: re.Match[str]) -> Have:
    fields = group.groups()
    return Have(int(fields[1]), _part(*fields[2:6]), _part(*fields[6:10]), int(fields[10]))


def _part(chars: str, blocks: str, is_open: str, check: str) -> Part:
    part = Part(int(chars), int(blocks), bool(is_open), int(check, 16))
    if (part.chars and not part.blocks) or (part.open and not part.blocks) or (part.check and not part.chars):
        raise ValueError("event id contradicts itself: text without a block, or a checksum without text")
    return part


def format_event_id(event_id: EventId) -> str:
    """Write an id: at most `MAX_CHARS` characters if it names at most `MAX_GROUPS` tasks."""
    told = f"*{event_id.told}" if event_id.told else ""
    groups = [
        f"!{task_id}*{have.attempt}*{_shown(have.text)}*{_shown(have.reasoning)}*{have.since}"
        for task_id, have in event_id.have.items()
    ]
    return f"{event_id.cursor}{told}{''.join(groups)}"


def _shown(part: Part) -> str:
    return f"{part.chars}.{part.blocks}{'o' if part.open else ''}.{part.check:08x}"

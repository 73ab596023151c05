"""The ids of AG-UI messages and tool calls, and what they say when a client posts them back: [P] pure.

They are made of what identifies a thing to us, so that they are the same on every connection; a task id has
no slash. Call ids carry the task's, because an agent may number its calls from 1 in each task.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple
from zlib import crc32

from gateway.encoders import fields
from gateway.encoders.event_id import MAX_BLOCKS, MAX_NUMBER, Have, Part
from gateway.encoders.ledger import FINAL, MAX_CALLS, PARTS, Call, PartName, Task, attempt_name

_MESSAGE_ID = re.compile(
    r"([A-Za-z0-9._~-]{1,128})/([0-9]{1,10}|final)/(text|reasoning)/([0-9]{1,4})", re.ASCII
)


def message_id(task: Task, name: PartName, block: int | None = None) -> str:
    """The message that a block is; the last block's by default."""
    number = task.part(name).blocks - 1 if block is None else block
    return f"{task.id}/{attempt_name(task.attempt)}/{name}/{number}"


def call_id(task: Task, own_id: str) -> str:
    """A tool call's id, from the one that its agent gave it."""
    return f"{task.id}/call/{own_id}"


class _Block(NamedTuple):
    attempt: int
    name: str
    number: int
    content: str


def posted_task(messages: Iterable[Mapping[str, Any]], task_id: str) -> Task | None:
    """What the messages that a client posted say that it has of a task; None for nothing.

    Only what stands at their end may still be open: a tool call ends the text before it. A part without its
    first message was being withdrawn: what is withdrawn becomes an activity, and those are not posted.
    """
    blocks: list[_Block] = []
    calls: dict[str, Call] = {}
    last: _Block | None = None
    for message in messages:
        if block := _block(message, task_id):
            blocks.append(block)
            last = block
        elif _note_calls(message, f"{task_id}/call/", calls):
            last = None
    if not blocks and not calls:
        return None
    attempt = max([block.attempt for block in blocks], default=1)
    blocks.sort(key=lambda block: block.number)
    own = {
        name: [block for block in blocks if block.attempt == attempt and block.name == name] for name in PARTS
    }
    task = Task(task_id, Have(attempt, _part(own["text"], last), _part(own["reasoning"], last)))
    task.torn = tuple(name for name in PARTS if own[name] and own[name][0].number)
    task.calls = calls
    return task


def _block(message: Mapping[str, Any], task_id: str) -> _Block | None:
    match = _MESSAGE_ID.fullmatch(fields.text(message.get("id")))
    if match is None or match[1] != task_id:
        return None
    attempt = FINAL if match[2] == "final" else int(match[2])
    return _Block(attempt, match[3], int(match[4]), fields.text(message.get("content")))


def _part(blocks: list[_Block], last: _Block | None) -> Part:
    if not blocks:
        return Part()
    text = "".join([block.content for block in blocks])
    check = crc32(text.encode("utf-8", "surrogatepass"))
    count = min(blocks[-1].number + 1, MAX_BLOCKS)
    return Part(min(len(text), MAX_NUMBER), count, blocks[-1] is last, check)


def _note_calls(message: Mapping[str, Any], prefix: str, calls: dict[str, Call]) -> bool:
    """Note the calls that a message makes, or the one that it answers; whether there are any."""
    answered = fields.text(message.get("toolCallId"))
    if answered.startswith(prefix):
        if call := calls.get(answered.removeprefix(prefix)):
            call.ended = call.result = True
        return True
    made = message.get("toolCalls")
    found = False
    for tool_call in made if isinstance(made, list) else []:
        own_id = fields.text(fields.mapping(tool_call).get("id"))
        if own_id.startswith(prefix) and len(calls) < MAX_CALLS:
            function = fields.mapping(fields.mapping(tool_call).get("function"))
            call = calls[own_id.removeprefix(prefix)] = Call(fields.text(function.get("name")))
            call.args = bool(function.get("arguments"))
            found = True
    return found

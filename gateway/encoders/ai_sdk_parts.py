"""What a message of the AI SDK says when its client posts it back: [P] pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

from gateway.encoders import fields
from gateway.encoders.event_id import MAX_BLOCKS, MAX_NUMBER, Have, Part
from gateway.encoders.ledger import MAX_CALLS, Call, Task
from gateway.encoders.questions import Answer, read_answer

TOOL = "dynamic-tool"


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A message's parts; what is none is an empty one."""
    parts = message.get("parts")
    return [fields.mapping(part) for part in parts] if isinstance(parts, list) else []


def posted_task(message: Mapping[str, Any], task_id: str) -> Task:
    """What an answer that a client posted says that it has of a task."""
    said: dict[str, list[str]] = {"text": [], "reasoning": []}
    calls: dict[str, Call] = {}
    prefix = f"{task_id}/call/"
    for part in parts_of(message):
        kind = fields.text(part.get("type"))
        if kind in said:
            said[kind].append(fields.text(part.get("text")))
        elif kind == "data-superseded":
            for name in _names(fields.mapping(part.get("data")).get("parts")):
                said.get(name, []).clear()
        elif (
            kind == TOOL and fields.text(part.get("toolCallId")).startswith(prefix) and len(calls) < MAX_CALLS
        ):
            calls[part["toolCallId"].removeprefix(prefix)] = _call(part)
    attempt = fields.whole(fields.mapping(message.get("metadata")).get("attempt"), 1)
    task = Task(task_id, Have(attempt, _part(said["text"]), _part(said["reasoning"])))
    task.calls = calls
    return task


def posted_answer(message: Mapping[str, Any]) -> Answer | None:
    """The answer to the last question of a message; None if there is none, or none to it."""
    for part in reversed(parts_of(message)):
        if part.get("type") != TOOL or part.get("providerExecuted") is True:
            continue
        state = part.get("state")
        if state not in ("output-available", "output-error"):
            return None
        given_up = state == "output-error"
        return read_answer(fields.text(part.get("toolCallId")), part.get("output"), given_up=given_up)
    return None


def _names(value: object) -> list[str]:
    return [fields.text(name) for name in value] if isinstance(value, list) else []


def _call(part: Mapping[str, Any]) -> Call:
    call, state = Call(fields.text(part.get("toolName"))), fields.text(part.get("state"))
    call.ended = call.result = state.startswith("output-")
    call.args = call.ended or state == "input-available"
    return call


def _part(pieces: list[str]) -> Part:
    text = "".join(pieces)
    check = crc32(text.encode("utf-8", "surrogatepass"))
    return Part(min(len(text), MAX_NUMBER), min(len(pieces), MAX_BLOCKS), check=check)

"""Reading and writing JSON that may be anything: [P] pure; nothing here raises.

What an agent sends reaches clients as it came. A field of a wrong type is taken as missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from backplane.keys import is_id
from gateway.encoders.event_id import MAX_NUMBER

MAX_CALL_ID = 128
_MAX_DEPTH = 64
_EMPTY: Mapping[str, Any] = MappingProxyType({})

Outcome: TypeAlias = Literal["running", "done", "failed"]

_RUNNING = frozenset(
    {"started", "running", "working", "pending", "queued", "in_progress", "called", "requested", "streaming"}
)
_FAILED = frozenset({"failed", "error", "cancelled", "canceled", "timeout", "rejected", "denied", "aborted"})
_DONE = frozenset({"completed", "complete", "done", "success", "succeeded", "ok", "finished"})


def mapping(value: object) -> Mapping[str, Any]:
    """``value`` if it is a JSON object, else an empty one."""
    return value if isinstance(value, Mapping) else _EMPTY


def text(value: object) -> str:
    """``value`` if it is text, else none."""
    return value if isinstance(value, str) else ""


def whole(value: object, default: int) -> int:
    """``value`` if it is a whole number that an event id can hold, else ``default``."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER:
        return value
    return default


def task_id(message: Mapping[str, Any]) -> str | None:
    """Which task a message is about, if it says so by a valid id."""
    for found in (mapping(message.get("data")).get("task_id"), message.get("task_id")):
        if is_id(found):
            return str(found)
    return None


class ToolReport(NamedTuple):
    """What a ``task_update`` says of a tool call.

    Attributes:
        args: any JSON; None if they are not told.
        result: likewise.
    """

    call_id: str
    name: str
    outcome: Outcome
    args: Any
    result: Any


def tool_report(data: Mapping[str, Any]) -> ToolReport | None:
    """The tool call of a ``task_update``, None if there is none that can be told from others."""
    tool = mapping(data.get("tool"))
    call_id = tool.get("call_id")
    name = text(tool.get("name"))
    if isinstance(call_id, int) and not isinstance(call_id, bool):
        call_id = str(call_id) if abs(call_id) <= MAX_NUMBER else None
    key = (text(call_id) or name)[:MAX_CALL_ID]
    if not key:
        return None
    result = tool.get("result")
    return ToolReport(key, name or "tool", _outcome(tool.get("status"), result), tool.get("args"), result)


def _outcome(status: object, result: object) -> Outcome:
    """What a status means; one that is unknown or missing is judged by whether there is a result."""
    word = text(status).lower()
    if word in _FAILED:
        return "failed"
    if word in _DONE or (word not in _RUNNING and result is not None):
        return "done"
    return "running"


def to_json(value: object) -> bytes:
    """``value`` as JSON on one line; what JSON or UTF-8 cannot say is put into other words."""
    try:
        return msgspec.json.encode(value)
    except (ValueError, TypeError, RecursionError):
        return msgspec.json.encode(_sayable(value, _MAX_DEPTH))


def as_text(value: object) -> str:
    """Text as it is, anything else as JSON."""
    return value if isinstance(value, str) else to_json(value).decode()


def _sayable(value: object, depth: int) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half of a surrogate pair has no UTF-8
    if value is None or isinstance(value, int | float):
        return value
    if not depth:
        return "…"
    if isinstance(value, Mapping):
        return {str(_sayable(str(key), 1)): _sayable(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(item, depth - 1) for item in value]
    return type(value).__name__

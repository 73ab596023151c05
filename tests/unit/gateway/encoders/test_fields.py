"""JSON that may be anything: what is understood of it, and that it can always be written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.encoders import fields
from gateway.encoders.fields import ToolReport


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"data": {"task_id": "a"}, "task_id": "b"}, "a"),
        ({"data": {"task_id": "a b"}, "task_id": "b"}, "b"),
        ({"data": [], "task_id": "b.~"}, "b.~"),
        ({"data": {"task_id": 1}}, None),
        ({"task_id": "x" * 129}, None),
        ({}, None),
    ],
)
def test_task_id(message: dict[str, Any], found: str | None) -> None:
    """Only a valid id is one: it stands in event ids."""
    assert fields.task_id(message) == found


@pytest.mark.parametrize(
    ("value", "found"), [(3, 3), (0, 0), (-1, 7), (True, 7), (1.0, 7), ("1", 7), (None, 7), (10**10, 7)]
)
def test_whole(value: object, found: int) -> None:
    """A number that an event id can hold."""
    assert fields.whole(value, 7) == found


@pytest.mark.parametrize(
    ("tool", "report"),
    [
        ({"call_id": "c", "name": "n", "status": "started"}, ToolReport("c", "n", "running", None, None)),
        ({"call_id": "c", "status": "Completed"}, ToolReport("c", "tool", "done", None, None)),
        ({"call_id": "c", "status": "error", "result": 1}, ToolReport("c", "tool", "failed", None, 1)),
        ({"call_id": "c", "status": "running", "result": 1}, ToolReport("c", "tool", "running", None, 1)),
        ({"call_id": "c", "result": 0}, ToolReport("c", "tool", "done", None, 0)),
        ({"call_id": "c", "status": "?"}, ToolReport("c", "tool", "running", None, None)),
        ({"call_id": 7, "args": []}, ToolReport("7", "tool", "running", [], None)),
        ({"name": "n"}, ToolReport("n", "n", "running", None, None)),
        ({"call_id": "c" * 999}, ToolReport("c" * 128, "tool", "running", None, None)),
        ({"call_id": True}, None),
        ({"status": "started"}, None),
        (None, None),
        ("search", None),
    ],
)
def test_tool_report(tool: object, report: ToolReport | None) -> None:
    """A call is told by its id, else by its name; a status that is unknown is judged by the result."""
    assert fields.tool_report({"tool": tool}) == report


@pytest.mark.parametrize(
    "value",
    ["\ud83d", {"\udc00": ["\ud83d"]}, {None: 1, "a": {1, 2}}, float("nan"), 2**200, {"a": object()}],
    ids=repr,
)
def test_anything_can_be_written(value: object) -> None:
    """What JSON or UTF-8 cannot say is said in other words."""
    json.loads(fields.to_json(value).decode())


def test_deep_json_is_cut() -> None:
    """Nesting that no client reads does not end the stream."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    found = json.loads(fields.to_json({"deep": deep, "flat": 1}))

    assert found["flat"] == 1
    while found != "…":
        found = found["deep"] if isinstance(found, dict) else found[0]
    while deep:  # so that it is not taken down with the stack
        deep = deep.pop()


def test_as_text() -> None:
    """Text stays; anything else is JSON."""
    assert fields.as_text("a") == "a"
    assert fields.as_text({"a": 1}) == '{"a":1}'

"""`docs/logs.md` lists the log events that the code has, and no others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from backplane.log import LEVELS

ROOT = Path(__file__).parents[2]
METHODS = {**dict.fromkeys(LEVELS), "exception": None}
PROCESSES = {"pod", "router", "demo-agent"}


class Logged(NamedTuple):
    """An event, as the code logs it."""

    event: str
    level: str
    where: str


def trees() -> Iterator[tuple[str, ast.Module]]:
    for package in ("backplane", "gateway"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))


def is_logger(node: ast.expr) -> bool:
    """``log``, ``self._log``, ``pod.log``, ``get_logger(…)`` and the like."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "get_logger"
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name.strip("_") in ("log", "logger")


def names(node: ast.expr) -> list[str]:
    """The events that an argument can be; it has to be words, so that this can tell."""
    if isinstance(node, ast.IfExp):
        return [*names(node.body), *names(node.orelse)]
    assert isinstance(node, ast.Constant), ast.unparse(node)
    assert isinstance(node.value, str), ast.unparse(node)
    return [node.value]


def logged() -> Iterator[Logged]:
    for where, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in METHODS and is_logger(node.func.value):
                    level = node.func.attr.replace("exception", "error")
                    yield from (Logged(name, level, where) for name in names(node.args[0]))
            elif isinstance(node, ast.Dict):  # a line of the log itself
                told = {
                    key.value: value.value
                    for key, value in zip(node.keys, node.values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
                }
                if {"event", "level"} <= told.keys():
                    yield Logged(str(told["event"]), str(told["level"]), where)


def listed() -> dict[str, tuple[str, str]]:
    """Level and processes of each event on the page."""
    page = (ROOT / "docs/logs.md").read_text("utf-8").partition("## Events")[2]
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([\w, -]+) \| (.+) \| (.+) \|$", page, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows}), "an event stands there twice"
    return {event: (level, processes) for event, level, processes, _meaning, _todo in rows}


def test_the_code_is_found() -> None:
    """What follows is about something."""
    found = {one.event for one in logged()}
    assert {"pod_started", "message_delivered", "redis_back", "request_failed", "log_lines_dropped"} <= found


def test_every_event_is_listed_with_its_level() -> None:
    """And nothing is listed that the code does not say."""
    of_code: dict[str, set[str]] = {}
    for one in logged():
        of_code.setdefault(one.event, set()).add(one.level)
    of_page = {event: set(level.split(", ")) for event, (level, _processes) in listed().items()}
    assert of_page == of_code


def test_every_event_is_listed_with_its_process() -> None:
    """As far as the place of the code tells it."""
    for one in logged():
        processes = set(listed()[one.event][1].split(", "))
        assert processes <= PROCESSES, one
        if one.where.startswith("gateway/"):
            assert "pod" in processes, one
        elif one.where.startswith("backplane/router/"):
            assert "router" in processes, one
        elif one.where == "backplane/demo_agent.py":
            assert "demo-agent" in processes, one


@pytest.mark.parametrize("name", sorted({one.event for one in logged()}))
def test_an_event_has_a_plain_name(name: str) -> None:
    """Words with underscores: they are what people search for."""
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)

"""Streamed answers, as their agents say them and as clients put them together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from backplane.session_log import Spoken
from gateway.text_stream import Have

ODD = 'a\x00\x01\x1f\n\t\r\b\f"\\/\x7f\x80é߿ࠀ\u2028\uffff𐀀\U0001f680\U0010ffff'
"""Characters of each length in UTF-8, and each kind of escape."""


def inside(text: str) -> bytes:
    """The inside of a JSON string, as the router writes it."""
    return msgspec.json.encode(text)[1:-1]


def text_of(inner: bytes) -> str:
    """As a client reads it: by another JSON library."""
    text: str = json.loads(b'"%b"' % inner)
    return text


class Said:
    """What an agent has said of one task, attempt by attempt."""

    def __init__(self) -> None:
        self.attempts: list[dict[str, str]] = [{"text": "", "reasoning": ""}]

    @property
    def attempt(self) -> int:
        """The last one."""
        return len(self.attempts)

    @property
    def now(self) -> dict[str, str]:
        """Of the last attempt."""
        return self.attempts[-1]

    def spoken(self, task_id: str) -> Spoken:
        """As Redis has it."""
        text, reasoning = self.now["text"], self.now["reasoning"]
        return Spoken(task_id, self.attempt, len(text), inside(text), len(reasoning), inside(reasoning))


class Reader:
    """What a client puts together of what it is sent; it believes nothing that does not fit.

    Args:
        said: what the agents have said, by task.
        ended: the task that a message of the log ends; empty if it ends none.
        have: what the client has from earlier.

    Attributes:
        whole: tasks whose ends it was told.
    """

    def __init__(
        self,
        said: Mapping[str, Said],
        ended: Callable[[dict[str, Any]], str],
        have: Mapping[str, Have] | None = None,
    ) -> None:
        self._said, self._ended = said, ended
        self.attempts: dict[str, int] = {}
        self._text: dict[tuple[str, str], str] = {}
        self.whole: set[str] = set()
        for task_id, has in (have or {}).items():
            self.attempts[task_id] = has.attempt
            past = said[task_id].attempts[has.attempt - 1]
            self._text[task_id, "text"] = past["text"][: has.text]
            self._text[task_id, "reasoning"] = past["reasoning"][: has.reasoning]

    def take(self, told: Sequence[dict[str, Any]]) -> None:
        """Messages, as they came.

        Raises:
            AssertionError: a piece is not what the agent said, does not fit what was put together before, or
                comes behind the end.
        """
        for message in told:
            if "seq" in message["metadata"]:
                self.whole.add(self._ended(message))
            elif message["type"] == "agent_chunk":
                self._take(**message["data"])

    def _take(
        self, task_id: str, delta: str, offset: int, attempt: int, part: str, snapshot: bool = False
    ) -> None:
        assert task_id not in self.whole, "a piece behind the end"
        assert delta, "an empty piece"
        assert attempt >= self.attempts.get(task_id, 1), "a piece of an earlier attempt"
        if attempt != self.attempts.get(task_id):
            self.attempts[task_id] = attempt
            self._text[task_id, "text"] = self._text[task_id, "reasoning"] = ""
        if snapshot:
            self._text[task_id, part] = ""
        assert offset == len(self._text[task_id, part]), "a gap, or something twice"
        self._text[task_id, part] += delta
        said = self._said[task_id].attempts[attempt - 1][part]
        assert said.startswith(self._text[task_id, part]), "not what the agent said"

    def has(self, task_id: str) -> dict[str, str]:
        """Of the attempt that it knows."""
        return {part: self._text.get((task_id, part), "") for part in ("text", "reasoning")}

"""Sessions that hypothesis makes up, and clients whose connection breaks wherever it likes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from hypothesis import strategies as st

from gateway.encoders.encoder import Encoder
from gateway.encoders.event_id import EventId, parse_event_id
from tests.support.front_ends import ServerEvent, server_events
from tests.support.stories import (
    Story,
    chunk,
    failure,
    message,
    question,
    response,
    tool,
    update,
)

JSON = dict[str, Any]
Asks = Literal["never", "ever", "answered"]
"""Whether the user is asked, and whether the session is always told next that he has answered."""

TEXTS = st.text("abü🙂\n ", min_size=1, max_size=5)


@dataclass
class Script:
    """One task: what it says, and what has to be left of that in the end.

    Attributes:
        attempts: text and reasoning of each.
        text: the response.
    """

    task_id: str
    messages: list[JSON] = field(default_factory=list)
    attempts: list[dict[str, str]] = field(default_factory=list)
    text: str = ""
    status: str = "completed"
    calls: dict[str, JSON] = field(default_factory=dict)


_STAGES: tuple[tuple[str, JSON], ...] = (
    ("started", {}),
    ("running", {"args": {"q": "x"}}),
    ("running", {}),
    ("completed", {"args": {"q": "x"}, "result": [1, "two"]}),
    ("completed", {"result": "plain"}),
    ("completed", {}),
    ("failed", {}),
)


@st.composite
def scripts(draw: st.DrawFn, task_id: str, *, asks: Asks = "never") -> Script:
    """A task with any attempts, pieces, tool calls and end; it may ask the user too."""
    kinds = ["text", "text", "reasoning", "tool", "step", *(["ask"] if asks != "never" else [])]
    script = Script(task_id)
    if draw(st.booleans()):
        script.messages.append(question(task_id, client_message_id=f"m-{task_id}"))
    if draw(st.booleans()):
        script.messages.append(message("typing_indicator", task_id))
    for attempt in range(1, draw(st.integers(1, 3)) + 1):
        told = {"text": "", "reasoning": ""}
        for kind in draw(st.lists(st.sampled_from(kinds), max_size=6)):
            if kind in told:
                piece = draw(TEXTS)
                script.messages.append(chunk(task_id, piece, len(told[kind]), attempt=attempt, part=kind))
                told[kind] += piece
            elif kind == "ask":
                asked = f"i-{len(script.messages)}"
                script.messages.append(message("input_required", task_id, input_id=asked, prompt="Sure?"))
                if asks == "answered" or draw(st.booleans()):
                    script.messages.append(update(task_id, step="input_received", input_id=asked))
            elif kind == "step":
                script.messages.append(
                    update(task_id, step=draw(st.sampled_from(["plan", "act"])), progress=0.5)
                )
            else:
                call_id = draw(st.sampled_from(["1", "2"]))
                status, about = draw(st.sampled_from(_STAGES))
                script.messages.append(tool(task_id, call_id, status, **about))
                _expect(script.calls.setdefault(call_id, {"args": "", "results": []}), status, about)
        script.attempts.append(told)
    text = next((told["text"] for told in reversed(script.attempts) if any(told.values())), "")
    script.text = draw(st.sampled_from([text, text, text + "!", "other", text[:-1], ""]))
    _end(script, draw(st.sampled_from(["completed", "completed", "failed", "cancelled"])))
    return script


def _expect(call: JSON, status: str, about: JSON) -> None:
    if "args" in about:
        call["args"] = call["args"] or json.dumps(about["args"], separators=(",", ":"))
    over = status in ("completed", "failed")
    if over and not call["results"] and ("result" in about or status == "failed"):
        result = about.get("result", "failed")
        call["results"] = [result if isinstance(result, str) else json.dumps(result, separators=(",", ":"))]


def _end(script: Script, status: str) -> None:
    script.status = status
    if status == "completed":
        script.messages.append(response(script.task_id, script.text, sources=["a", {"url": "https://b"}]))
    else:
        script.messages.append(failure(script.task_id, status))
    for call in script.calls.values():
        call["results"] = call["results"] or ["" if status == "completed" else status]


@st.composite
def stories(draw: st.DrawFn, most: int = 3, *, asks: bool = True) -> tuple[Story, list[Script]]:
    """Tasks that overlap in any way."""
    told = [
        draw(scripts(f"t{n}.~", asks="ever" if asks else "never")) for n in range(draw(st.integers(1, most)))
    ]
    turns = draw(st.permutations([script.task_id for script in told for _ in script.messages]))
    left = {script.task_id: iter(script.messages) for script in told}
    return Story([next(left[task_id]) for task_id in turns]), told


class Client(Protocol):
    """A model client."""

    ids: list[str]

    def connect(self) -> None:
        """A new response."""

    def take(self, event: ServerEvent) -> None:
        """One event of it."""


CUTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), max_size=4)
"""After how many events a connection breaks, and how many messages are said until the client is back."""


def listen(
    story: Story,
    client: Client,
    cuts: Sequence[tuple[int, int]],
    new_encoder: Callable[[EventId | None], Encoder],
    *,
    begin: str | None = None,
    resumes: bool = True,
) -> Encoder:
    """Let a client hear a story over connections that break; the last one does not.

    Args:
        begin: the cursor of the first connection.
        resumes: later ones give the last id that the client saw; else they are as the first.
    """
    at = 0
    for cut, away in [*cuts, (None, 0)]:
        last = client.ids[-1] if client.ids and resumes else None
        resume = None if last is None else parse_event_id(last)
        encoder = new_encoder(resume)
        left, now = cut, at
        client.connect()
        for said_now, event in _stream(story, at, begin if resume is None else resume.replay_from, encoder):
            now = said_now
            if left == 0:
                break
            client.take(event)
            left = None if left is None else left - 1
        else:
            now = len(story)
        at = min(now + away, len(story))
    for event in server_events(encoder.finish()):
        client.take(event)
    return encoder


def hear(story: Story, client: Client, encoder: Encoder, at: int, cut: int) -> int:
    """Let a client hear a story over one connection that breaks after ``cut`` events, or ends by itself.

    Returns:
        How many messages had been said then.
    """
    for now, event in _stream(story, at, None, encoder):
        at = now
        if cut == 0:
            return at
        client.take(event)
        cut -= 1
    for event in server_events(encoder.finish()):
        client.take(event)
    return at if encoder.done else len(story)


def _stream(story: Story, at: int, cursor: str | None, encoder: Encoder) -> Iterator[tuple[int, ServerEvent]]:
    for now, said in story.connection(at, cursor):
        told = encoder.caught_up() if said is None else encoder.encode(said.message, said.position)
        for event in server_events(told):
            yield now, event

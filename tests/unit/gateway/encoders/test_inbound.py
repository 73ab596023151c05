"""What clients post: the text of the user's last message, and what says that it is the same one again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.encoders.inbound import read_ag_ui, read_ai_sdk
from gateway.encoders.questions import Answer

USER = {"id": "m-1", "role": "user", "content": "why?"}
REPLY = {"id": "t/1/text/0", "role": "assistant", "content": "Because"}


def run(*messages: object, **about: object) -> bytes:
    body = {"threadId": "s", "runId": "r", "tools": [], "context": [], "messages": list(messages)}
    return json.dumps({**body, **about}).encode()


def chat(*messages: object, **about: object) -> bytes:
    return json.dumps({"id": "s", "messages": list(messages), "trigger": "submit-message", **about}).encode()


def said(*parts: object, message_id: object = "m-1", role: str = "user") -> dict[str, Any]:
    return {"id": message_id, "role": role, "parts": list(parts)}


def test_ag_ui() -> None:
    """Text, id, and what the encoder needs; what follows the question is what it has of the answer."""
    found = read_ag_ui(run({**USER, "id": "m-0"}, USER, REPLY, protocolVersion="1.0"))

    assert found[:2] == ("why?", "m-1")
    assert (found.thread_id, found.run_id, found.protocol_version) == ("s", "r", "1.0")
    assert found.messages[-1] == REPLY
    assert found.answers == ()


def test_ag_ui_parts() -> None:
    """A message in parts is their text."""
    parts = [{"type": "text", "text": "wh"}, {"type": "text", "text": "y?"}]

    assert read_ag_ui(run({**USER, "content": parts})).message == "why?"


def test_ag_ui_answers() -> None:
    """A run that continues from an interrupt has answers instead of a message."""
    resume = [
        {"interruptId": "t/input/i", "status": "resolved", "payload": {"ok": True}},
        {"interruptId": "t/input/j", "status": "cancelled", "payload": 1},
        {"interruptId": "t/input/k", "status": "resolved"},
    ]
    found = read_ag_ui(run(USER, REPLY, resume=resume))

    assert found[:2] == ("", None)
    assert found.answers == (
        Answer("t", "i", False, {"ok": True}),
        Answer("t", "j", True, None),
        Answer("t", "k", False, None),
    )
    assert found.messages == [USER, REPLY]


def test_ag_ui_answer_beside_a_message() -> None:
    """The user's message is told, so that one that is new can be refused: only the answers are sent."""
    found = read_ag_ui(run(USER, resume=[{"interruptId": "t/input/i", "status": "cancelled"}]))

    assert found[:2] == ("", "m-1")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "truncated"),
        (b"[]", "array"),
        (b"\xff", "malformed|utf-8|invalid"),
        (b'{"threadId": "s", "runId": "r"}', "messages"),
        (b'{"runId": "r", "messages": []}', "threadId"),
        (run(), "role is user"),
        (run(REPLY), "role is user"),
        (run(3), "messages"),
        (run({**USER, "content": ""}), "no text"),
        (run({**USER, "content": None}), "no text"),
        (run({**USER, "content": [{"type": "image", "source": {}}]}), "only text"),
        (run({**USER, "id": "x" * 129}), "128"),
        (run({**USER, "id": 3}), "128"),
        (run(USER, resume=[{"status": "resolved"}]), "interruptId"),
        (run(USER, resume=[{"interruptId": "i", "status": "resolved"}]), "none that was asked"),
        (
            run(
                USER,
                resume=[{"interruptId": f"{task}/input/i", "status": "resolved"} for task in ("t", "u")],
            ),
            "POST /api/chat/tasks/{task_id}/input",
        ),
    ],
)
def test_ag_ui_refuses(body: bytes, why: str) -> None:
    """What cannot be sent is refused in words, not changed."""
    with pytest.raises(ValueError, match=why):
        read_ag_ui(body)


TEXT = {"type": "text", "text": "why?"}


def test_ai_sdk() -> None:
    """The last message is the one to send; alone too, as the documentation does it for resumable streams."""
    assert read_ai_sdk(chat(said(TEXT, message_id="m-0"), said(TEXT)))[:2] == ("why?", "m-1")
    assert read_ai_sdk(json.dumps({"id": "s", "message": said(TEXT)}).encode())[:2] == ("why?", "m-1")
    assert (
        read_ai_sdk(chat(said({"type": "data-x", "data": 1}, TEXT, {"type": "text", "text": "!"})))[0]
        == "why?!"
    )


def test_ai_sdk_regenerate() -> None:
    """The same message, to be answered anew: its id would find the first answer."""
    body = chat(said(TEXT), trigger="regenerate-message", messageId="t-1")

    assert read_ai_sdk(body)[:2] == ("why?", None)


def asked(state: str, call_id: str = "t/input/i", **about: object) -> dict[str, object]:
    """A question as the client keeps it."""
    tool = {"type": "dynamic-tool", "toolName": "input_required", "toolCallId": call_id, "input": {}}
    return {**tool, "state": state, **about}


@pytest.mark.parametrize("alone", [False, True])
def test_ai_sdk_answers(alone: bool) -> None:
    """The output of the last question of the answer so far; what the agent's own tools said is none."""
    other = {**asked("output-available", "t/call/1", output=1), "providerExecuted": True}
    parts = (
        TEXT,
        asked("output-available", "t/input/h", output="old"),
        asked("output-available", output=[1]),
    )
    last = said(*parts, other, message_id="t", role="assistant")
    found = read_ai_sdk(json.dumps({"message": last}).encode() if alone else chat(said(TEXT), last))

    assert found[:2] == ("", None)
    assert found.answers == (Answer("t", "i", False, [1]),)
    assert found.messages == [last]


def test_ai_sdk_answer_that_is_none() -> None:
    """An error as output: the user does not answer."""
    given_up = asked("output-error", output="x", errorText="not now")

    assert read_ai_sdk(chat(said(given_up, role="assistant"))).answers == (Answer("t", "i", True, None),)


@pytest.mark.parametrize("message_id", [None, ""])
def test_message_without_id(message_id: object) -> None:
    """It is sent, and cannot be known again."""
    assert read_ai_sdk(chat(said(TEXT, message_id=message_id)))[1] is None
    assert read_ag_ui(run({**USER, "id": message_id}))[1] is None


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "truncated"),
        (chat(), "role is user"),
        (chat(said(TEXT, role="system")), "role is user"),
        (chat(said(TEXT), said(TEXT, role="assistant")), "POST /api/chat/tasks/{task_id}/input"),
        (chat(said(asked("input-available"), role="assistant")), "no answer"),
        (chat(said(asked("output-available", "i", output=1), role="assistant")), "no answer"),
        (chat({"id": "m", "role": "assistant"}), "no answer"),
        (chat(said()), "no text"),
        (chat({"id": "m", "role": "user"}), "no text"),
        (chat(said(TEXT, {"type": "file", "url": "data:,"})), "only text"),
        (chat(said(TEXT), trigger="resume"), "trigger"),
        (chat(said(TEXT, message_id=["m"])), "128"),
    ],
)
def test_ai_sdk_refuses(body: bytes, why: str) -> None:
    """What cannot be sent is refused in words, not changed."""
    with pytest.raises(ValueError, match=why):
        read_ai_sdk(body)


_NAMES = [
    "id",
    "role",
    "content",
    "parts",
    "type",
    "text",
    "message",
    "messages",
    "threadId",
    "runId",
    "resume",
    "interruptId",
    "status",
    "toolCallId",
    "state",
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_NAMES),
            inner
            | st.sampled_from(
                [
                    "user",
                    "text",
                    "why?",
                    "s",
                    "assistant",
                    "t/input/i",
                    "dynamic-tool",
                    "resolved",
                    "output-error",
                ]
            ),
            max_size=6,
        )
    ),
    max_leaves=15,
)


@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary() | st.just(b"[" * 100_000))
def test_any_body(body: bytes) -> None:
    """It is read, or refused by ValueError."""
    for read in (read_ag_ui, read_ai_sdk):
        try:
            found = read(body)
        except ValueError:
            continue
        assert found.message or found.answers

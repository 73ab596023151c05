"""What exactly clients of the AI SDK are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.encoders.ai_sdk import MAX_SOURCES, AiSdkEncoder
from gateway.encoders.ai_sdk_parts import posted_task
from gateway.encoders.event_id import EventId, parse_event_id
from tests.support.front_ends import AiSdkClient, server_events
from tests.support.stories import (
    EPOCH,
    chunk,
    chunks,
    failure,
    greeting,
    message,
    question,
    response,
    snapshot,
    tool,
    update,
)
from tests.unit.gateway.encoders.test_ag_ui import kinds, said, told

JSON = dict[str, Any]


def test_answer_that_is_streamed() -> None:
    """A message with reasoning, text and sources, and all that the response has beside as its metadata."""
    encoder = AiSdkEncoder()
    events = told(
        encoder,
        message("typing_indicator", "t"),
        chunk("t", "Hm", 0, part="reasoning"),
        *chunks("t", "Yes", ", 42"),
        response("t", "Yes, 42", sources=[{"url": "https://a", "title": "A"}], cost=3),
    )
    metadata = events[-1].pop("messageMetadata")

    assert events == [
        {"type": "start", "messageId": "t", "messageMetadata": {"task_id": "t"}},
        {"type": "reasoning-start", "id": "reasoning-1-0"},
        {"type": "reasoning-delta", "id": "reasoning-1-0", "delta": "Hm"},
        {"type": "reasoning-end", "id": "reasoning-1-0"},
        {"type": "text-start", "id": "text-1-0"},
        {"type": "text-delta", "id": "text-1-0", "delta": "Yes"},
        {"type": "text-delta", "id": "text-1-0", "delta": ", 42"},
        {"type": "text-end", "id": "text-1-0"},
        {"type": "source-url", "sourceId": "t/source/0", "url": "https://a", "title": "A"},
        {"type": "finish", "finishReason": "stop"},
    ]
    assert (metadata["cost"], metadata["status"]) == (3, "completed")
    assert "response" not in metadata
    assert encoder.done
    assert encoder.finish() == b"data: [DONE]\n\n"
    assert encoder.headers == (("x-vercel-ai-ui-message-stream", "v1"),)


def test_first_task_is_the_one() -> None:
    """A response is one message, so what comes of other tasks is left out, of the log too."""
    encoder = AiSdkEncoder()
    events = told(encoder, chunk("t", "a", 0), chunk("u", "b", 0), response("u", "b"), response("t", "a"))

    assert {event.get("messageId", "t") for event in events} == {"t"}
    assert "b" not in [event.get("delta") for event in events]
    assert told(encoder, chunk("u", "b", 0)) == []


def test_client_that_goes_on() -> None:
    """Neither the message nor the open part begins again."""
    *_, last = said(AiSdkEncoder(), question("t"), *chunks("t", "Gr", "üß"))
    resume = parse_event_id(last.event_id or "")
    again = AiSdkEncoder(resume=resume)
    events = told(
        again, greeting(f"{EPOCH}:0"), question("t"), snapshot("t", "Grüße"), response("t", "Grüße")
    )

    assert kinds(events) == ["text-delta", "text-end", "finish"]
    assert events[0] == {"type": "text-delta", "id": "text-1-0", "delta": "e"}


def test_client_that_asks_for_another_task() -> None:
    """What it has of the one says nothing about the other."""
    *_, last = said(AiSdkEncoder(), question("t"), chunk("t", "a", 0))
    events = told(AiSdkEncoder(task_id="u", resume=parse_event_id(last.event_id or "")), chunk("u", "b", 0))

    assert kinds(events) == ["start", "text-start", "text-delta"]


def test_attempts() -> None:
    """What does not count is marked, unless the client can take it away."""
    messages = [
        chunk("t", "Hm", 0, part="reasoning"),
        chunk("t", "a", 0),
        chunk("t", "b", 0, attempt=2),
        response("t", "bc"),
    ]
    marked, taken = told(AiSdkEncoder(), *messages), told(AiSdkEncoder(reset_step=True), *messages)

    assert {"type": "data-superseded", "data": {"parts": ["text", "reasoning"], "attempt": 1}} in marked
    assert "reset-step" not in kinds(marked)
    assert kinds(taken)[:2] == ["start", "start-step"]
    assert "data-superseded" not in kinds(taken)
    for events in (marked, taken):
        client = AiSdkClient()
        for event in server_events(b"".join([b"data: %b\n\n" % _json(event) for event in events])):
            client.take(event)
        assert (client.text(), client.text("reasoning")) == ("bc", "")


def _json(event: JSON) -> bytes:
    from gateway.encoders.fields import to_json

    return to_json(event)


@pytest.mark.parametrize("before", [tool("t", "c", "running"), chunk("t", "Hm", 0, part="reasoning")])
def test_response_that_is_not_what_was_streamed(before: JSON) -> None:
    """To take back the step would take away the tool call, or the reasoning; so the text is marked."""
    client = AiSdkClient()
    encoder = AiSdkEncoder(reset_step=True)
    for event in said(encoder, before, chunk("t", "Wrong", 0), response("t", "Right")):
        client.take(event)

    assert client.text() == "Right"
    assert [part["data"]["parts"] for part in client.of_kind("data-superseded")] == [["text"]]
    assert client.of_kind("dynamic-tool") or client.text("reasoning") == "Hm"


@pytest.mark.parametrize(
    ("reports", "part"),
    [
        ([("started", {}), ("completed", {"args": 1, "result": 2})], ("output-available", 1, 2, None)),
        ([("running", {"args": 1}), ("completed", {"result": 2})], ("output-available", 1, 2, None)),
        ([("completed", {}), ("completed", {"result": 2})], ("output-available", None, 2, None)),
        ([("completed", {"result": 2}), ("completed", {})], ("output-available", None, 2, None)),
        ([("completed", {"result": 2}), ("completed", {"args": 1})], ("output-available", None, 2, None)),
        (
            [("completed", {"result": 2}), ("completed", {"args": 1, "result": 2})],
            ("output-available", 1, 2, None),
        ),
        ([("started", {})], ("output-available", None, None, None)),
        ([("running", {"args": 1})], ("output-available", 1, None, None)),
        ([("failed", {"args": 1})], ("output-error", 1, None, "the tool call failed")),
        ([("failed", {"result": {"why": 1}})], ("output-error", None, None, '{"why":1}')),
    ],
)
def test_tool_reports_in_any_order(reports: list[tuple[str, JSON]], part: tuple[Any, ...]) -> None:
    """A call has one part, which says at the end what is known."""
    client = AiSdkClient()
    messages = [tool("t", "c", status, **about) for status, about in reports]
    for event in said(AiSdkEncoder(), *messages, response("t", "")):
        client.take(event)
    [call] = client.of_kind("dynamic-tool")

    assert (call["state"], call["input"], call["output"], call["error"]) == part


def test_progress() -> None:
    """A part of its own, which replaces the one before it."""
    client = AiSdkClient()
    for event in said(AiSdkEncoder(), update("t", progress=0.1), update("t", progress=0.2)):
        client.take(event)

    [progress] = client.of_kind("data-task-update")
    assert progress["data"]["progress"] == 0.2


ASKED = message("input_required", "t", input_id="i", prompt="Sure?", schema={"type": "boolean"})


@pytest.mark.parametrize("reset_step", [False, True])
def test_question_of_the_agent(reset_step: bool) -> None:
    """A tool call for the client, and the end of the response; the rest is a step of the same message."""
    first, client = AiSdkEncoder(reset_step=reset_step), AiSdkClient()
    for event in said(first, chunk("t", "a", 0, attempt=2), ASKED, update("t", progress=0.5)):
        client.take(event)
    for event in server_events(first.finish()):
        client.take(event)
    call = client.asked()
    assert call is not None
    assert (call["toolCallId"], call["toolName"]) == ("t/input/i", "input_required")
    assert call["input"] == {"prompt": "Sure?", "schema": {"type": "boolean"}, "expires_at": None}
    assert (client.ended, client.complete) == (["finish"], True)

    call.update(state="output-available", output=True)
    second = AiSdkEncoder(task_id="t", message=client.posted(), reset_step=reset_step, replays=True)
    client.connect(posted=True)
    replayed = said(second, ASKED, update("t", step="input_received", input_id="i"))
    more = said(second, snapshot("t", "ab", attempt=2), response("t", "abc"), first=3)
    for event in [*replayed, *server_events(second.caught_up()), *more, *server_events(second.finish())]:
        client.take(event)
    assert [part["text"] for part in client.of_kind("text")] == ["a", "bc"]
    assert client.message_id == "t"
    assert client.asked() is None
    assert client.complete


def test_question_of_the_agent_that_was_replaced_after_it() -> None:
    """What an earlier step said cannot be removed any more; a part says that it does not count."""
    first, client = AiSdkEncoder(reset_step=True), AiSdkClient()
    for event in said(first, chunk("t", "a", 0), ASKED):
        client.take(event)
    second = AiSdkEncoder(task_id="t", message=client.posted(), reset_step=True)
    client.connect(posted=True)
    for event in said(second, response("t", "b"), first=2):
        client.take(event)

    assert len(client.of_kind("data-superseded")) == 1
    assert client.text() == "b"


def test_question_among_what_was_said_before() -> None:
    """Whether it still stands is known when all is told: it is told last, or only shown."""
    open_still, answered = AiSdkEncoder(replays=True), AiSdkEncoder(replays=True)
    begun = told(open_still, ASKED, snapshot("t", "a"))
    asked = [json.loads(event.data) for event in server_events(open_still.caught_up())]
    shown = told(answered, ASKED, update("t", step="input_received", input_id="i"), snapshot("t", "a"))

    assert kinds(begun) == ["start", "text-start", "text-delta"]
    assert kinds(asked) == ["text-end", "tool-input-available", "finish"]
    assert open_still.done
    assert open_still.caught_up() == b""
    assert kinds(shown)[:2] == ["start", "data-input-required"]
    assert answered.caught_up() == b""
    assert not answered.done


def test_question_to_which_there_is_no_answer() -> None:
    """A client that has given up is not asked again, but by another question."""
    encoder = AiSdkEncoder(task_id="t", given_up=["i"], replays=True)
    told(encoder, ASKED)

    assert encoder.caught_up() == b""
    assert not encoder.done
    told(encoder, message("input_required", "t", input_id="j"), first=2)
    assert encoder.done


def test_message_that_is_posted_back() -> None:
    """It says what the client has: of the text what counts, and which calls."""
    parts = [
        {"type": "text", "text": "old"},
        {"type": "data-superseded", "data": {"parts": ["text", 3, "x"]}},
        {"type": "dynamic-tool", "toolCallId": "t/call/1", "toolName": "search", "state": "output-available"},
        {"type": "dynamic-tool", "toolCallId": "t/call/2", "toolName": "search", "state": "input-streaming"},
        {"type": "dynamic-tool", "toolCallId": "u/call/1", "state": "output-error"},
        {"type": "text", "text": "new"},
        7,
    ]
    task = posted_task({"parts": parts, "metadata": {"attempt": 3}}, "t")

    assert (task.attempt, task.text.chars, task.text.agrees("newer")) == (3, 3, True)
    assert {name: (call.args, call.ended) for name, call in task.calls.items()} == {
        "1": (True, True), "2": (False, False),
    }  # fmt: skip
    for odd in ({}, {"parts": 3}, {"parts": [{"type": "data-superseded", "data": {"parts": 3}}]}):
        assert not posted_task(odd, "t").text.chars


def test_asides() -> None:
    """What is about the session, until a task is chosen, is told to the application alone."""
    client = AiSdkClient()
    trouble = message("error", None, error="slow down", error_code="rate_limited")
    event, lost = message("event", None, topic="a"), greeting(f"{EPOCH}:1", "reset")
    for one in said(AiSdkEncoder(), event, lost, trouble, question("t"), event, first=2):
        client.take(one)

    assert client.parts == []
    assert [part["type"][5:] for part in client.aside] == ["event", "reset", "error", "user-message"]


def test_sources() -> None:
    """Web addresses are links, anything else a document; of very many the metadata has the rest."""
    sources = [
        "https://a",
        {"url": "http://b", "title": "B"},
        "a book",
        {"title": "C", "page": 3},
        {"page": 4},
    ]
    events = told(AiSdkEncoder(), response("t", "", sources=[*sources, *["x"] * 200]))
    found = [event for event in events if event["type"].startswith("source-")]

    assert [(s.get("url"), s.get("title")) for s in found[:5]] == [
        ("https://a", None), ("http://b", "B"), (None, "a book"), (None, "C"), (None, '{"page":4}'),
    ]  # fmt: skip
    assert len(found) == MAX_SOURCES
    assert len(events[-1]["messageMetadata"]["sources"]) == 205


def test_connection_that_breaks_between_sources() -> None:
    """Each source once: the id says how many were told of the message that is not over."""
    answer = response("t", "", sources=["a", "b", "c"])
    events = said(AiSdkEncoder(), answer)
    at = [parse_event_id(event.event_id).told for event in events if event.event_id]
    encoder = AiSdkEncoder(
        resume=EventId(f"{EPOCH}:0", {"t": parse_event_id(f"{EPOCH}:0!t{_NOTHING}").have["t"]}, 2)
    )

    assert at == [0]  # before the first position there are no ids
    assert [event["title"] for event in told(encoder, answer) if "title" in event] == ["c"]


_NOTHING = "*1*0.0.00000000*0.0.00000000*0"


@pytest.mark.parametrize(
    ("status", "end"), [("failed", "error"), ("timeout", "error"), ("cancelled", "abort")]
)
def test_failures(status: str, end: str) -> None:
    """What is known of it stands before the error, behind which the client reads nothing."""
    encoder = AiSdkEncoder()
    events = told(encoder, chunk("t", "a", 0), tool("t", "c", "running"), failure("t", status))

    assert kinds(events)[-2:] == ["message-metadata", end]
    assert events[-2]["messageMetadata"]["error_code"] == "agent_failed"
    assert events[-1] in ({"type": "error", "errorText": "it broke"}, {"type": "abort", "reason": "it broke"})
    assert encoder.done
    assert encoder.finish() == b"data: [DONE]\n\n"


def test_orderly_end_in_mid_answer() -> None:
    """A client takes the end of a stream for the end of the answer, so it is told that it is not."""
    encoder = AiSdkEncoder()
    told(encoder, chunk("t", "a", 0))

    assert b'"type":"error"' in encoder.finish()
    assert AiSdkEncoder().finish() == b"data: [DONE]\n\n"

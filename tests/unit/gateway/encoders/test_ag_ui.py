"""What exactly clients of AG-UI are told."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest

from gateway.encoders.ag_ui import AgUiEncoder
from gateway.encoders.encoder import Encoder
from gateway.encoders.event_id import EventId, Have, Part, parse_event_id
from gateway.encoders.ledger import MAX_CALLS, MAX_TASKS
from tests.support.front_ends import AgUiClient, ServerEvent, server_events
from tests.support.stories import (
    EPOCH,
    chunk,
    chunks,
    failure,
    greeting,
    is_logged,
    message,
    question,
    response,
    snapshot,
    tool,
    update,
)

JSON = dict[str, Any]


def said(encoder: Encoder, *messages: JSON, first: int = 1) -> list[ServerEvent]:
    """What becomes of messages; those of the log get the positions from ``first`` on."""
    events: list[ServerEvent] = []
    for one in messages:
        position = f"{EPOCH}:{first}" if is_logged(one) else None
        first += is_logged(one)
        events += server_events(encoder.encode(one, position))
    return events


def told(encoder: Encoder, *messages: JSON, first: int = 1) -> list[JSON]:
    return [json.loads(event.data) for event in said(encoder, *messages, first=first)]


def kinds(events: list[JSON]) -> list[str]:
    return [event["type"] for event in events]


def encoder(**about: Any) -> AgUiEncoder:
    return AgUiEncoder("s-1", **about)


def test_answer_that_is_streamed() -> None:
    """A run, its reasoning, its text, and an end with all that the response has beside its text."""
    events = told(
        encoder(),
        message("typing_indicator", "t"),
        chunk("t", "Hm", 0, part="reasoning"),
        *chunks("t", "Yes", ", 42"),
        response("t", "Yes, 42", sources=["a"], cost=3),
    )

    reasoning, text = {"messageId": "t/1/reasoning/0"}, {"messageId": "t/1/text/0"}
    result = {
        "task_id": "t",
        "sources": ["a"],
        "agent_info": {},
        "status": "completed",
        "metadata": {},
        "cost": 3,
    }
    assert events == [
        {"type": "RUN_STARTED", "threadId": "s-1", "runId": "t"},
        {"type": "REASONING_START", **reasoning},
        {"type": "REASONING_MESSAGE_START", **reasoning, "role": "reasoning"},
        {"type": "REASONING_MESSAGE_CONTENT", **reasoning, "delta": "Hm"},
        {"type": "REASONING_MESSAGE_END", **reasoning},
        {"type": "REASONING_END", **reasoning},
        {"type": "TEXT_MESSAGE_START", **text, "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", **text, "delta": "Yes"},
        {"type": "TEXT_MESSAGE_CONTENT", **text, "delta": ", 42"},
        {"type": "TEXT_MESSAGE_END", **text},
        {"type": "RUN_FINISHED", "threadId": "s-1", "runId": "t", "result": result},
    ]


def test_answer_that_is_not_streamed() -> None:
    """The response is the message."""
    events = told(encoder(), response("t", "42"))

    assert kinds(events) == [
        "RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "RUN_FINISHED",
    ]  # fmt: skip
    assert events[1]["messageId"] == "t/final/text/0"


@pytest.mark.parametrize("text", ["", None, 3, ["a"]])
def test_answer_without_text(text: object) -> None:
    """There is no empty message, and an answer that is no text does not take away what was streamed."""
    assert kinds(told(encoder(), response("t", text))) == ["RUN_STARTED", "RUN_FINISHED"]
    if text is not None and not isinstance(text, str):
        kept = told(encoder(), chunk("t", "Hm", 0), response("t", text))
        assert "ACTIVITY_SNAPSHOT" not in kinds(kept)


def test_client_s_names() -> None:
    """A client that began a run finds its own thread and run."""
    events = told(encoder(task_id="t", run_id="r-1"), response("t", "42"))

    assert {event["runId"] for event in events if "runId" in event} == {"r-1"}


def test_the_question_comes_with_the_run() -> None:
    """By the id that its client gave it, so that the device that asked does not show it twice."""
    first, *_ = told(encoder(), question("t", "why?", "m-7"))
    other, *_ = told(encoder(), question("t", "why?", None))

    assert first["input"]["messages"] == [{"id": "m-7", "role": "user", "content": "why?"}]
    assert other["input"]["messages"][0]["id"] == "t/question"


def test_ids_say_what_the_client_has() -> None:
    """Each event's id, also in the middle of one message; its position comes with its last event."""
    events = said(encoder(), question("t"), *chunks("t", "Gr", "üße"), response("t", "Grüße!"))
    ids = [parse_event_id(event.event_id or "") for event in events[1:]]

    assert events[0].event_id is None or events[0].event_id.startswith(f"{EPOCH}:1")
    has = [(found.cursor, found.have["t"].text[:3]) for found in ids[:-1]]
    assert has == [
        (f"{EPOCH}:1", (0, 1, True)),
        (f"{EPOCH}:1", (2, 1, True)),
        (f"{EPOCH}:1", (5, 1, True)),
        (f"{EPOCH}:1", (6, 1, True)),
        (f"{EPOCH}:1", (6, 1, False)),
    ]
    assert ids[-1] == EventId(f"{EPOCH}:2")


def test_coming_back_in_mid_answer() -> None:
    """The run and the open message are begun again, and only what is lacking follows."""
    *_, last = said(encoder(), question("t"), *chunks("t", "Gr", "üß"))
    resume = parse_event_id(last.event_id or "")
    events = told(encoder(resume=resume), greeting(f"{EPOCH}:0"), question("t"), snapshot("t", "Grüße"))

    assert resume.replay_from == f"{EPOCH}:0"
    assert kinds(events) == ["RUN_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT"]
    assert events[2]["delta"] == "e"
    assert "input" not in events[0]


def test_coming_back_after_the_end() -> None:
    """What the client has not seen of the answer, and the end."""
    *_, last = said(encoder(), *chunks("t", "Gr", "üß"), greeting(f"{EPOCH}:4"), chunk("t", "e", 4))
    resume = parse_event_id(last.event_id or "")
    events = told(encoder(resume=resume), response("t", "Grüße!"), first=5)

    assert [event["delta"] for event in events if "delta" in event] == ["!"]
    assert kinds(events)[-1] == "RUN_FINISHED"


def test_response_that_is_not_what_was_streamed() -> None:
    """The message that was streamed is replaced by an activity, and another one has the response."""
    client = AgUiClient()
    for event in said(encoder(), *chunks("t", "Wrong"), response("t", "Right")):
        client.take(event)

    assert [(m["id"], m["role"]) for m in client.messages] == [
        ("t/1/text/0", "activity"), ("t/final/text/0", "assistant"),
    ]  # fmt: skip
    assert client.text("t") == "Right"


def test_snapshot_that_is_not_what_was_streamed() -> None:
    """Text that changed while the client was away is told whole."""
    have = {"t": Have(1, Part(5, 1, True, 1))}
    client = AgUiClient()
    client.messages.append({"id": "t/1/text/0", "role": "assistant", "content": "Wrong"})
    back = encoder(resume=EventId(f"{EPOCH}:1", have))
    for event in said(back, snapshot("t", "Right!"), chunk("t", "?", 6), response("t", "Right!?"), first=2):
        client.take(event)

    assert client.text("t") == "Right!?"


def test_attempts() -> None:
    """A later attempt takes the place of text and reasoning; pieces of an earlier one come too late."""
    client = AgUiClient()
    for event in said(
        encoder(),
        chunk("t", "Hm", 0, part="reasoning"),
        *chunks("t", "a", "b"),
        *chunks("t", "c", attempt=3),
        chunk("t", "late", 2, attempt=1),
        chunk("t", "hole", 9, attempt=3),
        response("t", "cd"),
    ):
        client.take(event)

    assert client.text("t") == "cd"
    assert client.text("t", "reasoning") == ""


def test_text_around_a_tool_call() -> None:
    """A call ends the message before it; what follows is another one."""
    events = told(
        encoder(),
        chunk("t", "I look", 0),
        tool("t", "c", "running", args={"q": 1}),
        tool("t", "c", "completed", result="found"),
        chunk("t", "Found", 6),
        response("t", "I lookFound"),
    )
    call = {"toolCallId": "t/call/c"}

    assert [event["messageId"] for event in events if event["type"] == "TEXT_MESSAGE_START"] == [
        "t/1/text/0", "t/1/text/1",
    ]  # fmt: skip
    assert [event for event in events if event["type"].startswith("TOOL")] == [
        {"type": "TOOL_CALL_START", **call, "toolCallName": "search"},
        {"type": "TOOL_CALL_ARGS", **call, "delta": '{"q":1}'},
        {"type": "TOOL_CALL_END", **call},
        {"type": "TOOL_CALL_RESULT", "messageId": "t/result/c", **call, "content": "found", "role": "tool"},
    ]


@pytest.mark.parametrize(
    ("reports", "args", "results"),
    [
        ([("started", {}), ("completed", {"args": "x", "result": 1})], "x", ["1"]),
        ([("completed", {"result": 1}), ("completed", {"args": "late", "result": 2})], "late", ["1"]),
        ([("completed", {}), ("completed", {"result": {}})], "", ["{}"]),
        ([("started", {})], "", [""]),
        ([("failed", {})], "", ["failed"]),
        ([("failed", {"result": "why"})], "", ["why"]),
        ([("running", {"args": 0}), ("running", {"args": 1})], "0", [""]),
    ],
)
def test_tool_reports_in_any_order(reports: list[tuple[str, JSON]], args: str, results: list[str]) -> None:
    """Arguments once, one result; without one an empty one, or the call would be the client's to make."""
    client = AgUiClient()
    messages = [tool("t", "c", status, **about) for status, about in reports]
    for event in said(encoder(), *messages, response("t", "")):
        client.take(event)

    assert client.calls("t") == {"c": [args, results]}


def test_calls_of_two_tasks_are_two() -> None:
    """An agent may number its calls from 1 in each task."""
    client = AgUiClient()
    for event in said(
        encoder(), tool("t", 1, "done"), tool("u", 1, "done"), response("t", ""), response("u", "")
    ):
        client.take(event)

    assert (client.calls("t"), client.calls("u")) == ({"1": ["", [""]]},) * 2


def test_steps_and_progress() -> None:
    """A step ends with the next one; two tasks may have one of the same name."""
    events = told(
        encoder(),
        update("t", step="plan", progress=0.1),
        update("u", step="plan"),
        update("t", step="plan"),
        update("u", step="plan"),
        update("t", step="act"),
        response("t", ""),
        response("u", ""),
    )
    steps = [(event["type"][5:], event["stepName"]) for event in events if event["type"].startswith("STEP")]

    assert steps == [
        ("STARTED", "plan"), ("STARTED", "plan (u)"), ("FINISHED", "plan"), ("STARTED", "act"),
        ("FINISHED", "act"), ("FINISHED", "plan (u)"),
    ]  # fmt: skip
    assert [e["value"]["progress"] for e in events if e.get("name") == "task_update"] == [
        0.1,
        None,
        None,
        None,
        None,
    ]


def test_tasks_that_overlap_share_a_run() -> None:
    """The run ends with the last of them; the others' ends are told in it."""
    events = told(
        encoder(), chunk("t", "a", 0), question("u"), chunk("u", "b", 0), failure("t"), response("u", "b")
    )

    assert [kind for kind in kinds(events) if kind.startswith("RUN")] == ["RUN_STARTED", "RUN_FINISHED"]
    assert [event["name"] for event in events if event["type"] == "CUSTOM"] == [
        "user_message",
        "task_finished",
    ]


def test_too_many_tasks_at_once() -> None:
    """Those over the limit are told when they end, so that an id has room for all that run."""
    client = AgUiClient()
    tasks = [f"t{n}" for n in range(MAX_TASKS + 3)]
    streamed = [chunk(task, task, 0) for task in tasks]
    for event in said(encoder(), *streamed, *[response(task, task + "!") for task in reversed(tasks)]):
        assert event.event_id is None or len(event.event_id) <= 1024
        client.take(event)

    assert [client.text(task) for task in tasks] == [task + "!" for task in tasks]
    assert len(client.runs) == 1


def test_one_task() -> None:
    """Nothing of others, nothing of the session, and after its end nothing at all."""
    narrow = encoder(task_id="t")
    event = message("event", None, topic="a", payload=1)
    events = told(
        narrow, chunk("u", "b", 0), event, chunk("t", "a", 0), event, response("u", "b"), response("t", "a")
    )

    assert not [e for e in events if "u" in e.get("messageId", "") or e["type"] == "CUSTOM"]
    assert narrow.done
    assert told(narrow, chunk("t", "late", 0)) == []
    assert narrow.finish() == b""


def test_asides_of_the_session() -> None:
    """Events, troubles of the connection and a lost log are custom events of the run, if there is one."""
    event = message("event", None, topic="a", payload=1)
    trouble = message("error", None, error="slow down", error_code="rate_limited", status="failed")
    lost = greeting(f"{EPOCH}:1", "reset")
    leave = message("reconnect", None, reason="restart", after_ms=5)
    events = told(encoder(), event, lost, chunk("t", "a", 0), event, trouble, leave)

    assert [e["name"] for e in events if e["type"] == "CUSTOM"] == ["reset", "event", "error", "reconnect"]


def test_tasks_that_a_lost_log_ended() -> None:
    """After a reset no run waits for a task that does not run any more."""
    have = {"gone": Have(1, Part(1, 1, True, 1)), "t": Have()}
    events = told(
        encoder(resume=EventId("old:9", have)), greeting(f"{EPOCH}:0", "reset", ["t"]), response("t", "a")
    )

    assert kinds(events)[-1] == "RUN_FINISHED"


@pytest.mark.parametrize(
    ("version", "status", "ends"),
    [
        ("1.0", "cancelled", "RUN_FINISHED"),
        ("2.1", "cancelled", "RUN_FINISHED"),
        ("0.9", "cancelled", "RUN_ERROR"),
        ("one", "cancelled", "RUN_ERROR"),
        (None, "cancelled", "RUN_ERROR"),
        ("1.0", "failed", "RUN_ERROR"),
        ("1.0", "timeout", "RUN_ERROR"),
    ],
)
def test_failures(version: str | None, status: str, ends: str) -> None:
    """Clients before 1.0 do not know that a run can be cancelled."""
    *_, end = told(encoder(protocol_version=version), failure("t", status))

    assert end["type"] == ends
    if ends == "RUN_ERROR":
        assert (end["message"], end["code"]) == ("it broke", "agent_failed")
    else:
        assert end["outcome"] == {"type": "cancelled"}


def test_question_of_the_agent() -> None:
    """It ends the run by an interrupt; the task's next sign begins one, and its message goes on."""
    asked = message(
        "input_required", "t", input_id="i", prompt="Sure?", schema={"type": "string"}, expires_at="2026"
    )
    client = AgUiClient()
    session = encoder()
    for event in said(session, chunk("t", "a", 0), asked, update("t", status="input_required")):
        client.take(event)

    assert client.interrupts == [
        {
            "id": "t/input/i",
            "reason": "input_required",
            "message": "Sure?",
            "responseSchema": {"type": "string"},
            "expiresAt": "2026",
        }
    ]
    for event in said(session, chunk("t", "b", 1), response("t", "ab"), first=3):
        client.take(event)
    assert [run["type"] for run in client.runs] == ["RUN_FINISHED"] * 2
    assert [m["content"] for m in client.messages] == ["ab"]


def test_question_of_the_agent_while_others_work() -> None:
    """It waits for the end of the run, and is told at once by a custom event; after a re-connect too."""
    asked = message("input_required", "t", input_id="i", prompt="Sure?")
    messages = [update("t"), chunk("u", "a", 0), asked, response("u", "a")]
    events = said(encoder(), *messages)
    names = [json.loads(event.data).get("name") for event in events]
    resume = parse_event_id(events[names.index("input_required")].event_id or "")
    again = told(encoder(resume=resume), *messages)

    assert json.loads(events[-1].data)["outcome"]["interrupts"][0]["id"] == "t/input/i"
    assert resume.replay_from == f"{EPOCH}:0"
    assert again[-1]["outcome"]["interrupts"][0]["id"] == "t/input/i"


def test_one_task_that_asks() -> None:
    """The answer comes with the client's next run, so this one is over."""
    narrow = encoder(task_id="t")
    told(narrow, message("input_required", "t", input_id="i"))

    assert narrow.done


def test_question_among_what_was_said_before() -> None:
    """Whether it still stands is known when all is told: it is told last, also to a client that knows it."""
    asked = message("input_required", "t", input_id="i")
    open_still, answered = encoder(task_id="t", replays=True), encoder(task_id="t", replays=True)
    begun = told(open_still, asked, snapshot("t", "a"), chunk("t", "b", 1))
    ends = [json.loads(event.data) for event in server_events(open_still.caught_up())]
    told(answered, asked, update("t", step="input_received", input_id="i"), snapshot("t", "a"))
    known = encoder(resume=parse_event_id(f"{EPOCH}:1!t*1*0.0.00000000*0.0.00000000*1"), replays=True)
    told(known, asked)
    again = [json.loads(event.data) for event in server_events(known.caught_up())]

    assert kinds(begun) == ["RUN_STARTED", "TEXT_MESSAGE_START", *["TEXT_MESSAGE_CONTENT"] * 2]
    assert kinds(ends) == ["TEXT_MESSAGE_END", "RUN_FINISHED"]
    assert ends[-1]["outcome"]["interrupts"][0]["id"] == "t/input/i"
    assert open_still.done
    assert answered.caught_up() == b""
    assert kinds(again) == ["RUN_STARTED", "RUN_FINISHED"]
    assert known.caught_up() == b""


def test_question_among_what_was_said_before_while_others_work() -> None:
    """They are known from the last connection, and nothing is told of them on this one: a run is begun."""
    have = "*1*0.0.00000000*0.0.00000000*1"
    known = encoder(resume=parse_event_id(f"{EPOCH}:1!t{have}!u{have}"), replays=True)
    told(known, message("input_required", "t", input_id="i"))
    events = [json.loads(event.data) for event in server_events(known.caught_up())]

    assert kinds(events) == ["RUN_STARTED", "CUSTOM"]
    assert events[-1]["name"] == "input_required"


def test_text_from_before_a_question() -> None:
    """It is told although the task waits, and the task still does."""
    session = encoder()
    told(session, message("input_required", "t", input_id="i"))
    late = told(session, snapshot("t", "a"))

    assert kinds(late)[::4] == ["RUN_STARTED", "RUN_FINISHED"]
    assert late[-1]["outcome"]["type"] == "interrupt"


def test_question_to_which_there_is_no_answer() -> None:
    """A client that has given up is not asked again, but by another question."""
    narrow = encoder(task_id="t", given_up=["i"])
    told(narrow, message("input_required", "t", input_id="i"))
    assert not narrow.done
    told(narrow, message("input_required", "t", input_id="j"), first=2)
    assert narrow.done


def test_withdrawal_that_was_cut_off() -> None:
    """Of a part whose first message is not posted any more, the rest is withdrawn before all else."""
    posted = [{"id": "t/1/text/1", "role": "assistant", "content": "aa"}]
    events = told(encoder(task_id="t", messages=posted), response("t", "aaa"))

    withdrawn = [event["messageId"] for event in events if event["type"] == "ACTIVITY_SNAPSHOT"]
    assert withdrawn == ["t/1/text/0", "t/1/text/1"]
    [content] = [event for event in events if event["type"] == "TEXT_MESSAGE_CONTENT"]
    assert (content["messageId"], content["delta"]) == ("t/final/text/0", "aaa")


def test_orderly_end_in_mid_run() -> None:
    """A client takes the end of a stream for the end of the run, so it is told that it is not."""
    session = encoder()
    told(session, chunk("t", "a", 0))
    [end] = [json.loads(event.data) for event in server_events(session.finish())]

    assert (end["type"], end["code"]) == ("RUN_ERROR", "disconnected")
    assert encoder().finish() == b""


def test_messages_that_are_posted_back() -> None:
    """They say what the client has, calls too; what is not ours is passed over."""
    posted = [
        {"id": "m-1", "role": "user", "content": "why?"},
        {"id": "t/1/text/0", "role": "assistant", "content": "stale"},
        {"id": "t/2/text/0", "role": "assistant", "content": "I look"},
        {"id": "x", "role": "assistant", "toolCalls": [
            {"id": "t/call/c", "function": {"name": "search", "arguments": "{}"}}, 3, {"id": "u/call/c"},
        ]},
        {"id": "y", "role": "tool", "toolCallId": "t/call/c", "content": "found"},
        {"id": "t/2/text/1", "role": "assistant", "content": "Fou"},
        {"id": "u/9/text/0", "role": "assistant", "content": "another's"},
        {"id": "t/text", "role": "assistant"},
        {"role": "assistant", "toolCalls": 7},
    ]  # fmt: skip
    narrow = encoder(task_id="t", messages=posted)
    events = told(
        narrow,
        tool("t", "c", "completed", args={}, result="found"),
        snapshot("t", "I lookFound", attempt=2),
        response("t", "I lookFound!"),
    )

    assert not [event for event in events if event["type"].startswith("TOOL")]
    assert [(event["messageId"], event["delta"]) for event in events if "delta" in event] == [
        ("t/2/text/1", "nd"), ("t/2/text/1", "!"),
    ]  # fmt: skip


def test_late_messages_of_a_task_that_has_ended() -> None:
    """They would open a message that is complete."""
    session = encoder()
    told(session, response("t", "a"))

    assert told(session, chunk("t", "b", 1), response("t", "c"), first=2) == []


def test_message_that_comes_twice() -> None:
    """A log entry that the client has is not told again."""
    session = encoder()
    told(session, tool("t", "c", "done", result=1))

    assert told(session, tool("t", "c", "done", result=1)) == []


def test_memory_is_bounded() -> None:
    """Whatever an agent sends and however long, the encoder keeps counts, not what was said."""
    session = encoder()
    tracemalloc.start()
    try:
        for number in range(MAX_CALLS * 3):
            told(session, tool("t", f"{number}{'c' * 500}", "running", args="a" * 500), first=number + 1)
        told(session, *chunks("t", *["x" * 10_000] * 300))
        for number in range(2000):
            told(session, response(f"u{number}", "a" * 500), first=10_000 + number)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert used < 1_000_000

"""What must hold for every session, cut anywhere: what a client has in the end is what was said."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.encoders.ag_ui import AgUiEncoder
from gateway.encoders.ai_sdk import AiSdkEncoder
from gateway.encoders.encoder import Encoder
from gateway.encoders.event_id import EventId, parse_event_id
from tests.support.front_ends import AgUiClient, AiSdkClient, server_events
from tests.support.stories import Story, chunk, tool
from tests.support.stories import response as answer
from tests.unit.gateway.encoders.scripts import CUTS, Script, hear, listen, scripts, stories

Cuts = Sequence[tuple[int, int]]


def begins(script: Script, part: str, told: str) -> bool:
    """Whether it is the beginning of one attempt's part: chunks are in no log, so their end may be missed."""
    return any(attempt[part].startswith(told) for attempt in script.attempts)


def check_ag_ui(client: AgUiClient, script: Script) -> None:
    """A client of AG-UI has a task's answer, once."""
    if script.status == "completed":
        assert client.text(script.task_id) == script.text
    else:
        assert begins(script, "text", client.text(script.task_id))
    assert begins(script, "reasoning", client.text(script.task_id, "reasoning"))
    calls = {call_id: [call["args"], call["results"]] for call_id, call in script.calls.items()}
    assert client.calls(script.task_id) == calls


@settings(deadline=None, max_examples=300)
@given(stories(), CUTS)
def test_ag_ui_session(told: tuple[Story, list[Script]], cuts: Cuts) -> None:
    """All tasks of a session, however they overlap, over connections that break between any two events."""
    story, tasks = told
    client = AgUiClient()
    listen(story, client, cuts, lambda resume: AgUiEncoder("s-1", resume=resume, replays=True))

    for script in tasks:
        check_ag_ui(client, script)
    assert client.runs
    assert client.runs[-1].get("code") != "disconnected"


@settings(deadline=None, max_examples=200)
@given(stories(asks=False), CUTS)
def test_ag_ui_task(told: tuple[Story, list[Script]], cuts: Cuts) -> None:
    """One task of a session: nothing of the others, and an end."""
    story, tasks = told
    own = tasks[0].task_id
    client = AgUiClient()
    encoder = listen(
        story, client, cuts, lambda resume: AgUiEncoder("s-1", task_id=own, resume=resume, replays=True)
    )

    check_ag_ui(client, tasks[0])
    assert encoder.done or not client.ids or not parse_event_id(client.ids[-1]).have
    assert not [m for m in client.messages if m["id"].startswith(tuple(t.task_id for t in tasks[1:]))]
    assert len(client.runs) == 1


def split_by_calls(*pieces: str, response: str) -> Script:
    """A task whose text comes in blocks, with a tool call between any two, and whose response is another."""
    script = Script("t.~", attempts=[{"text": "".join(pieces), "reasoning": ""}], text=response)
    for number, piece in enumerate(pieces):
        if number:
            script.messages.append(tool("t.~", str(number), "started"))
            script.calls[str(number)] = {"args": "", "results": [""]}
        script.messages.append(chunk("t.~", piece, len("".join(pieces[:number]))))
    script.messages.append(answer("t.~", response, sources=["a", {"url": "https://b"}]))
    return script


@settings(deadline=None, max_examples=200)
@given(scripts("t.~"), CUTS)
@example(split_by_calls("aa", "aa", response="aaa"), [(10, 0)])
@example(split_by_calls("a", "aa", "a", response="aaa"), [(7, 0), (12, 0)])
def test_ag_ui_client_that_posts_what_it_has(script: Script, cuts: Cuts) -> None:
    """Without any id: the messages that the client posts again say what it has."""
    story = Story(script.messages)
    client = AgUiClient()

    def new_encoder(resume: EventId | None) -> Encoder:
        # The protocol does not post activities back.
        posted = [m for m in client.messages if m["role"] != "activity"]
        return AgUiEncoder("s-1", task_id=script.task_id, run_id="r", messages=posted, replays=True)

    encoder = listen(story, client, cuts, new_encoder, resumes=False)

    check_ag_ui(client, script)
    assert encoder.done


def check_ai_sdk(client: AiSdkClient, script: Script) -> None:
    """A client of the AI SDK has a task's answer, once."""
    ends = {"completed": "finish", "failed": "error", "cancelled": "abort"}
    assert client.ended == [ends[script.status]]
    assert client.complete
    assert client.message_id == script.task_id
    if script.status == "completed":
        assert client.text() == script.text
        assert len(client.of_kind("source-url")) == len(client.of_kind("source-document")) == 1
    else:
        assert begins(script, "text", client.text())
    assert begins(script, "reasoning", client.text("reasoning"))
    states = {part["toolCallId"].rpartition("/")[2]: part for part in client.of_kind("dynamic-tool")}
    assert states.keys() == script.calls.keys()
    assert {part["state"] for part in states.values()} <= {"output-available", "output-error"}


@settings(deadline=None, max_examples=300)
@given(stories(2, asks=False), CUTS)
def test_ai_sdk_client_that_goes_on(told: tuple[Story, list[Script]], cuts: Cuts) -> None:
    """One that gives the last id gets what it lacks, and each tool call and source once."""
    story, tasks = told
    own = tasks[0].task_id
    client = AiSdkClient()
    listen(story, client, cuts, lambda resume: AiSdkEncoder(task_id=own, resume=resume))

    if client.ended:  # else its connection broke behind the last chunk, before [DONE]
        check_ai_sdk(client, tasks[0])


@settings(deadline=None, max_examples=300)
@given(stories(2, asks=False), CUTS, st.booleans())
def test_ai_sdk_client_that_begins_anew(
    told: tuple[Story, list[Script]], cuts: Cuts, reset_step: bool
) -> None:
    """One that gives no id builds the message anew, and has it whole."""
    story, tasks = told
    own = tasks[0].task_id
    client = AiSdkClient(replays=True)

    def new_encoder(resume: EventId | None) -> Encoder:
        client.ended.clear()
        return AiSdkEncoder(task_id=own, reset_step=reset_step, replays=True)

    encoder = listen(story, client, cuts, new_encoder, begin=story.first(own), resumes=False)

    check_ai_sdk(client, tasks[0])
    assert encoder.done


@settings(deadline=None, max_examples=200)
@given(scripts("t.~"), CUTS)
def test_ai_sdk_takes_back_with_reset_step(script: Script, cuts: Cuts) -> None:
    """A client of version 7 that goes on has the right text too."""
    client = AiSdkClient()
    listen(Story(script.messages), client, cuts, lambda r: AiSdkEncoder(resume=r, reset_step=True))

    if client.ended:
        check_ai_sdk(client, script)


# Questions of the agent.


@settings(deadline=None, max_examples=300)
@given(scripts("t.~", asks="answered"), st.lists(st.integers(0, 12), max_size=8))
def test_ag_ui_client_that_is_asked(script: Script, cuts: list[int]) -> None:
    """Every run that ends by a question is followed by one that has the answer, and they make one answer."""
    story, client, at, answered = Story(script.messages), AgUiClient(), 0, list[str]()
    for cut in [*cuts, *[999] * 20]:
        posted = [m for m in client.messages if m["role"] != "activity"]
        client.connect()
        client.interrupts = []
        runs = len(client.runs)
        encoder = AgUiEncoder("s-1", task_id=script.task_id, run_id="r", messages=posted, replays=True)
        at = hear(story, client, encoder, at, cut)
        for asked in client.interrupts:
            assert asked["id"] not in answered
            answered.append(asked["id"])
            at += 1  # what the session is told when it is answered
        if len(client.runs) > runs and not client.interrupts:
            break

    check_ag_ui(client, script)


@settings(deadline=None, max_examples=300)
@given(scripts("t.~", asks="answered"), st.lists(st.integers(0, 12), max_size=8), st.booleans())
def test_ai_sdk_client_that_is_asked(script: Script, cuts: list[int], reset_step: bool) -> None:
    """It posts its message with the answer, and what follows goes on in it; after a break it begins anew."""
    story, client, at, answered = Story(script.messages), AiSdkClient(replays=True), 0, list[str]()
    message: dict[str, Any] | None = None
    for cut in [*cuts, *[999] * 20]:
        client.connect(posted=message is not None)
        client.ended.clear()
        encoder = AiSdkEncoder(task_id=script.task_id, reset_step=reset_step, message=message, replays=True)
        message = None
        at = hear(story, client, encoder, at, cut)
        asked = client.asked()
        if client.ended == ["finish"] and asked is not None:
            assert asked["toolCallId"] not in answered
            answered.append(asked["toolCallId"])
            asked.update(state="output-available", output=True)
            message = copy.deepcopy(client.posted())
            at += 1
        elif client.ended:
            break

    ends = {"completed": "finish", "failed": "error", "cancelled": "abort"}
    assert client.ended == [ends[script.status]]
    assert client.asked() is None
    if script.status == "completed":
        assert client.text() == script.text
    else:
        assert begins(script, "text", client.text())
    assert begins(script, "reasoning", client.text("reasoning"))
    calls = [part for part in client.of_kind("dynamic-tool") if part["providerExecuted"]]
    assert sorted(part["toolCallId"].rpartition("/")[2] for part in calls) == sorted(script.calls)


# Anything.

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
# fmt: off
KINDS = st.sampled_from((
    "connection_ack", "agent_chunk", "task_update", "typing_indicator", "agent_response", "error",
    "user_message", "input_required", "event", "reconnect", "ping", "pong", "ack", "subscribed",
    "unsubscribed", "other",
))
NAMES = st.sampled_from((
    "task_id", "delta", "offset", "attempt", "part", "snapshot", "status", "step", "message",
    "progress", "tool", "response", "sources", "error", "error_code", "prompt", "schema", "input_id",
    "expires_at", "client_message_id", "cursor", "resume", "active_tasks", "payload",
))
TELLING = st.sampled_from((
    "t", "u", "v", "w", "x", "text", "reasoning", 1, 2, True, "failed", "cancelled", "input_required", "e:7",
    {"call_id": "c"}, {"call_id": "c", "args": "x"}, {"call_id": 1, "name": 2, "status": "ok", "result": []},
    {"status": "reset", "from": 1, "epoch": "e"}, [{"task_id": "t"}, 3],
))
# fmt: on
MESSAGES = st.fixed_dictionaries(
    {"type": KINDS | ANYTHING, "data": st.dictionaries(NAMES, TELLING | ANYTHING, max_size=6) | ANYTHING},
    optional={"task_id": TELLING | ANYTHING, "metadata": ANYTHING},
)
POSITIONS = (
    st.none() | st.builds("{}:{}".format, st.sampled_from("ef"), st.integers(0, 9)) | st.text(max_size=4)
)
RESUMES = st.none() | st.sampled_from(
    [
        parse_event_id("e:3"),
        parse_event_id("e:3*2!t*1*3.1o.352441c2*4.2.00000001*2"),
        parse_event_id("e:3!t*1*0.0.00000000*0.0.00000000*0!u*2*3.9999o.352441c2*0.0.00000000*2"),
    ]
)


@pytest.mark.parametrize("narrow", [None, "t"])
@settings(deadline=None, max_examples=500)
@given(sent=st.lists(st.tuples(MESSAGES, POSITIONS), max_size=15), resume=RESUMES, reset_step=st.booleans())
def test_no_message_is_too_odd(
    narrow: str | None,
    sent: list[tuple[dict[str, Any], str | None]],
    resume: EventId | None,
    reset_step: bool,
) -> None:
    """Whatever comes is told or left out: nothing raises, ids stay ids, and strict clients take it all."""
    for encoder, client in (
        (AgUiEncoder("s-1", task_id=narrow, resume=resume), None if resume else AgUiClient()),
        (
            AiSdkEncoder(task_id=narrow, resume=resume, reset_step=reset_step),
            None if resume else AiSdkClient(),
        ),
    ):
        stream = b"".join([encoder.encode(*pair) for pair in sent]) + encoder.finish()
        for event in server_events(stream):
            assert event.event_id is None or parse_event_id(event.event_id)
            if client is not None:
                client.take(event)
        assert encoder.caught_up() == b""
        assert encoder.encode({"type": "typing_indicator", "task_id": "z"}, None) == b""

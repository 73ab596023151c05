"""Event streams in the words of other protocols, at real pods; their own clients are in tests/clients."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.agent import Agent
from tests.support.event_source import Stream, events_path, until_cut
from tests.support.processes import Cluster, Pod, post, wait_for

ACTIONS = "nooble4:dev:agent_execution_service:actions:free"
WHO = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Agent-ID": "agent-1"}
FORMATS = ["ag-ui", "ai-sdk"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods and a router, without limits of sends."""
    with Cluster(tmp_path_factory.mktemp("formats"), pods=2, routers=1, unlimited=True) as running:
        yield running


def asked(kind: str, text: str = "why?", message_id: str = "m-1") -> bytes:
    """What the clients post."""
    body: dict[str, Any]
    if kind == "ag-ui":
        message: dict[str, Any] = {"id": message_id, "role": "user", "content": text}
        body = {"threadId": "t", "runId": "r-1", "messages": [message], "protocolVersion": "1.0"}
    else:
        parts = [{"type": "text", "text": text}]
        message = {"id": message_id, "role": "user", "parts": parts}
        body = {"id": "c", "trigger": "submit-message", "messages": [message]}
    return json.dumps(body).encode()


def posted(pod: Pod, kind: str, session_id: str, body: bytes | None = None, **query: str) -> Stream:
    """Post to a session's events."""
    content = asked(kind) if body is None else body
    path = events_path(session_id, format=kind, **query)
    return Stream(pod.port, path, WHO, method="POST", body=content)


def sent(pod: Pod, session_id: str, text: str = "why?") -> str:
    """Send in the ordinary way; returns the task."""
    headers = {**WHO, "X-Session-ID": session_id}
    status, answer = post(f"{pod.url}/api/chat/send", {"message": text}, headers=headers)
    assert status == 200
    return str(answer["task_id"])


def taken(aes: redis.Redis) -> dict[str, Any]:
    """The action that is taken next."""
    found: Any = aes.brpop([ACTIONS], 10)
    action: dict[str, Any] = json.loads(found[1])
    return action


def types(stream: Stream, until: str) -> list[str]:
    """The types of the events, up to one of this type."""
    found: list[str] = []
    while not found or found[-1] != until:
        event = stream.receive()
        assert event is not None
        found.append(event.message["type"])
    return found


LAST = {"ag-ui": "RUN_FINISHED", "ai-sdk": "finish"}
GROWS = {"ag-ui": "TEXT_MESSAGE_CONTENT", "ai-sdk": "text-delta"}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_post_is_sent_and_answered(cluster: Cluster, aes: redis.Redis, kind: str) -> None:
    """The stream is the answer's, and ends with it; the same message again is the same task."""
    pod, name = cluster.pods[0], f"post-{kind}"
    with posted(pod, kind, name) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert ("x-vercel-ai-ui-message-stream" in stream.headers) == (kind == "ai-sdk")
        action = taken(aes)
        assert (action["message"], action["session_id"]) == ("why?", name)
        agent = Agent(aes, name, action["task_id"])
        other = Agent(aes, name)
        other.say("somebody else")
        agent.say("because")
        other.finish()
        agent.finish()
        found = types(stream, LAST[kind])
        assert found.count(GROWS[kind]) == 1
        if kind == "ai-sdk":
            end = stream.receive()
            assert end is not None
            assert end.data == "[DONE]"
        assert stream.receive() is None
    with posted(cluster.pods[1], kind, name) as stream:
        assert types(stream, LAST[kind])[-1] == LAST[kind]
    assert aes.llen(ACTIONS) == 0


def _wait_for_the_next_note(pod: Pod, aes: redis.Redis, session_id: str) -> None:
    """A pod notes for all its sessions at once what was sent: once this one is noted, the others are."""
    with Stream(pod.port, events_path(session_id)) as whole:
        agent = Agent(aes, session_id)
        agent.finish()
        whole.logged(1)
        key = f"ao:{{orchestrator:acme:callbacks}}:s:{session_id}"
        wait_for(lambda: int(aes.hget(key, "d") or 0) == 1, "it is noted")


@pytest.mark.parametrize("kind", FORMATS)
def test_what_a_part_was_told_is_still_to_be_told(cluster: Cluster, aes: redis.Redis, kind: str) -> None:
    """A stream of one task does not count for the session: the rest comes to who comes without a cursor."""
    pod, name = cluster.pods[0], f"part-{kind}"
    with posted(pod, kind, name) as stream:
        action = taken(aes)
        other = Agent(aes, name)
        other.say("somebody else")
        other.finish()
        agent = Agent(aes, name, action["task_id"])
        agent.say("because")
        agent.finish()
        types(stream, LAST[kind])
    _wait_for_the_next_note(pod, aes, f"{name}-whole")
    with Stream(cluster.pods[1].port, events_path(name)) as native:
        assert other.task_id in {event.message["task_id"] for event in native.logged(2)}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "not_json"),
        (b"[]", 422, "not_an_object"),
        (b"{}", 422, "invalid_field"),
        (b'{"messages":' + b"[" * 100 + b"]" * 100 + b"}", 422, "invalid_field"),
        (b"x" * 100_000, 413, "message_too_large"),
    ],
)
def test_bodies_that_are_none(cluster: Cluster, kind: str, body: bytes, status: int, code: str) -> None:
    """They are refused as any other."""
    with posted(cluster.pods[0], kind, "bodies", body) as stream:
        assert stream.problem == (status, code)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_sent(cluster: Cluster, aes: redis.Redis, kind: str) -> None:
    """Too long, without an agent, or under a name that was used for something else; nothing is queued."""
    pod, before = cluster.pods[0], aes.llen(ACTIONS)
    with posted(pod, kind, "unsent", asked(kind, "x" * 4_001)) as stream:
        assert stream.problem == (422, "invalid_field")
    path = events_path("unsent", format=kind)
    with Stream(pod.port, path, method="POST", body=asked(kind)) as stream:
        assert stream.problem == (400, "missing_id")
    assert aes.llen(ACTIONS) == before
    with posted(pod, kind, "unsent") as stream:
        assert stream.status == 200
    with posted(pod, kind, "unsent", asked(kind, "something else")) as stream:
        assert stream.problem == (409, "idempotency_conflict")
    aes.delete(ACTIONS)


# What an agent asks its user.


def ask(agent: Agent, input_id: str, **about: Any) -> None:
    agent.report(status="input_required", input={"input_id": input_id, "prompt": "Sure?", **about})


def asked_in(kind: str, events: list[dict[str, Any]]) -> str:
    """The id of the question with which a stream has ended."""
    if kind == "ag-ui":
        [interrupt] = events[-1]["outcome"]["interrupts"]
        assert (interrupt["message"], interrupt["reason"]) == ("Sure?", "input_required")
        return str(interrupt["id"])
    assert events[-1]["finishReason"] == "tool-calls"
    [call] = [event for event in events if event["type"] == "tool-input-available"]
    assert (call["toolName"], call["input"]["prompt"]) == ("input_required", "Sure?")
    return str(call["toolCallId"])


def answering(kind: str, asked_id: str, value: Any, *, said: str = "", given_up: bool = False) -> bytes:
    """What the clients post to answer; ``said`` is what they have of the agent's text."""
    task_id = asked_id.partition("/")[0]
    body: dict[str, Any]
    if kind == "ag-ui":
        resume = {"interruptId": asked_id, "status": "cancelled" if given_up else "resolved"}
        messages = [
            {"id": "m-1", "role": "user", "content": "why?"},
            {"id": f"{task_id}/1/text/0", "role": "assistant", "content": said},
        ]
        about = {"threadId": "t", "runId": "r-2", "messages": messages[: 2 if said else 1]}
        body = {**about, "resume": [resume if given_up else {**resume, "payload": value}]}
    else:
        state = {"state": "output-error"} if given_up else {"state": "output-available", "output": value}
        tool = {"type": "dynamic-tool", "toolName": "input_required", "toolCallId": asked_id, **state}
        parts = [{"type": "text", "text": said}, tool]
        message = {"id": task_id, "role": "assistant", "parts": parts}
        body = {"id": "c", "trigger": "submit-message", "messages": [message]}
    return json.dumps(body).encode()


def whole(stream: Stream) -> list[dict[str, Any]]:
    """All of a stream that ends by itself."""
    found = []
    while (event := stream.receive()) is not None:
        if event.data != "[DONE]":
            found.append(event.message)
    return found


def grown(kind: str, events: list[dict[str, Any]]) -> str:
    return "".join([event["delta"] for event in events if event["type"] == GROWS[kind]])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_question_and_its_answer(cluster: Cluster, aes: redis.Redis, kind: str) -> None:
    """The question ends the stream; a post with the answer reaches the agent, and its stream is the rest."""
    one, other, name = *cluster.pods[:2], f"asks-{kind}"
    with posted(one, kind, name) as stream:
        agent = Agent(aes, name, taken(aes)["task_id"])
        agent.say("Let me")
        agent.say(" see. ")
        ask(agent, "i-1")
        events = whole(stream)
    asked_id = asked_in(kind, events)
    assert grown(kind, events) == "Let me see. "
    with Stream(other.port, events_path(name, format=kind, task_id=agent.task_id)) as stream:
        again = whole(stream)
    assert (asked_in(kind, again), grown(kind, again)) == (asked_id, "Let me see. ")

    body = answering(kind, asked_id, {"a": [1]}, said="Let me see. ")
    with posted(other, kind, name, body) as stream:
        action = taken(aes)
        assert (action["action_type"], action["task_id"]) == ("execution.input", agent.task_id)
        assert action["data"] == {"input_id": "i-1", "value": {"a": [1]}}
        agent.say("Yes.")
        agent.finish()
        events = whole(stream)
    assert (events[-1]["type"], grown(kind, events)) == (LAST[kind], "Yes.")
    with posted(one, kind, name, body) as stream:  # its answer was lost
        assert grown(kind, whole(stream)) == "Yes."
    with posted(one, kind, name, answering(kind, asked_id, "another")) as stream:
        assert stream.problem == (409, "input_not_wanted")
    assert aes.llen(ACTIONS) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_a_question_to_which_there_is_no_answer(cluster: Cluster, aes: redis.Redis, kind: str) -> None:
    """The agent gets null; where it waits no longer, the client goes on all the same."""
    pod, name = cluster.pods[0], f"unanswered-{kind}"
    with posted(pod, kind, name) as stream:
        agent = Agent(aes, name, taken(aes)["task_id"])
        ask(agent, "i-1")
        first = asked_in(kind, whole(stream))
    with posted(pod, kind, name, answering(kind, first, None, given_up=True)) as stream:
        assert taken(aes)["data"] == {"input_id": "i-1", "value": None}
        ask(agent, "i-2", expires_in=0.05)
        second = asked_in(kind, whole(stream))
    expired_at = time.time() + 0.1
    wait_for(lambda: time.time() > expired_at, "expired")
    with posted(pod, kind, name, answering(kind, second, 1)) as stream:
        assert stream.problem == (409, "input_expired")
    with posted(pod, kind, name, answering(kind, second, None, given_up=True)) as stream:
        agent.say("Never mind.")
        agent.finish()
        assert grown(kind, whole(stream)) == "Never mind."
    assert aes.llen(ACTIONS) == 0


def test_answers_that_cannot_be_sent(cluster: Cluster, aes: redis.Redis) -> None:
    """Nothing that comes with an answer is dropped in silence, and no other session is reached."""
    pod = cluster.pods[0]
    with posted(pod, "ag-ui", "asks-beside") as stream:
        agent = Agent(aes, "asks-beside", taken(aes)["task_id"])
        ask(agent, "i-1")
        asked_id = asked_in("ag-ui", whole(stream))
    beside = json.loads(answering("ag-ui", asked_id, 1))
    beside["messages"].append({"id": "m-2", "role": "user", "content": "and another thing"})
    with posted(pod, "ag-ui", "asks-beside", json.dumps(beside).encode()) as stream:
        assert stream.problem == (422, "invalid_field")
    for kind in FORMATS:
        with posted(pod, kind, "asks-elsewhere", answering(kind, asked_id, 1, said="x")) as stream:
            assert stream.problem == (403, "forbidden")
        with posted(pod, kind, "asks-beside", answering(kind, "nobody/input/i-1", 1, said="x")) as stream:
            assert stream.problem == (404, "unknown_task")
    assert aes.llen(ACTIONS) == 0
    agent.finish()


@pytest.mark.parametrize("path", ["/events/c-1/stream", "/events?format=ai-sdk"])
def test_nothing_to_resume(cluster: Cluster, path: str) -> None:
    """204 is what the AI SDK's client takes for that."""
    target = events_path("idle").replace("/events?", f"{path}{'&' if '?' in path else '?'}")
    with Stream(cluster.pods[0].port, target) as stream:
        assert stream.status == 204


def test_resuming_without_a_position(cluster: Cluster, aes: redis.Redis) -> None:
    """The AI SDK's client begins anew, with the task that runs, from its first message on."""
    first = Agent(aes, "anew")
    first.say("another")
    first.finish()
    agent = Agent(aes, "anew", sent(cluster.pods[0], "anew"))
    agent.report(step="look", message="looking")
    agent.say("so far")
    wait_for(lambda: bool(aes.keys(f"*{agent.task_id}:text")), "something was said")
    target = events_path("anew").replace("/events", "/events/chat-of-the-client/stream")
    with Stream(cluster.pods[1].port, target) as stream:
        start, question, progress, begun, text = stream.messages(5)
        assert (start["type"], start["messageId"]) == ("start", agent.task_id)
        assert question["type"] == "data-user-message"
        assert (progress["type"], begun["type"]) == ("data-task-update", "text-start")
        assert text["delta"] == "so far"
        agent.say(" and on")
        assert stream.messages(1)[0]["delta"] == " and on"
        last = stream.last_event_id
    agent.say("!")
    with Stream(cluster.pods[0].port, target, {"Last-Event-ID": last}) as stream:
        assert stream.messages(1)[0]["delta"] == "!"
        agent.finish()
        assert types(stream, "finish")[-1] == "finish"
    aes.delete(ACTIONS)


def test_a_session_with_all_its_tasks(cluster: Cluster, aes: redis.Redis) -> None:
    """AG-UI by GET: run after run, and with the last id nothing again; a task of its own by its id."""
    one, two = Agent(aes, "all"), Agent(aes, "all")
    with Stream(cluster.pods[0].port, events_path("all", format="ag-ui")) as stream:
        one.say("one")
        one.finish()
        assert types(stream, "RUN_FINISHED").count("TEXT_MESSAGE_CONTENT") == 1
        two.say("tw")
        assert types(stream, "TEXT_MESSAGE_CONTENT")[0] == "RUN_STARTED"
        last = stream.last_event_id
    two.say("o")
    two.finish()
    accept = {"Accept": "text/event-stream;format=ag-ui", "Last-Event-ID": last}
    with Stream(cluster.pods[1].port, events_path("all"), accept) as stream:
        found: list[dict[str, Any]] = []
        while not found or found[-1]["type"] != "RUN_FINISHED":
            found += stream.messages(1)
    assert [event["delta"] for event in found if event["type"] == "TEXT_MESSAGE_CONTENT"] == ["o"]
    with Stream(cluster.pods[1].port, events_path("all", format="ag-ui", task_id="no-such")) as stream:
        assert stream.problem == (404, "unknown_task")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_drain_cuts(tmp_path: Path, kind: str) -> None:
    """An end would be the end of the answer to these clients; what breaks is gone on with elsewhere."""
    with (
        Cluster(tmp_path, RECONNECT_JITTER_S="0") as cluster,
        redis.Redis(port=cluster.redis_port, decode_responses=True) as aes,
    ):
        first, second = cluster.pods
        agent = Agent(aes, "s", sent(first, "s"))
        path = events_path("s", format=kind, task_id=agent.task_id)
        with Stream(first.port, path) as stream:
            agent.say("before")
            types(stream, GROWS[kind])
            first.signal(signal.SIGTERM)
            list(until_cut(stream))
            last = stream.last_event_id
        agent.say(" and after")
        with Stream(second.port, path, {"Last-Event-ID": last}) as stream:
            found: list[dict[str, Any]] = []
            agent.finish()
            while not found or found[-1]["type"] != LAST[kind]:
                found += stream.messages(1)
        assert "".join([e["delta"] for e in found if e["type"] == GROWS[kind]]) == " and after"
        assert first.popen is not None
        assert first.popen.wait(10) == 0


@pytest.mark.parametrize("kind", FORMATS)
def test_an_answer_that_is_lost(cluster: Cluster, aes: redis.Redis, kind: str) -> None:
    """A task that ended, and whose end the log has no more: the stream ends, without an answer."""
    task_id = sent(cluster.pods[0], f"lost-{kind}")
    agent = Agent(aes, f"lost-{kind}", task_id)
    agent.finish()
    key = f"ao:{{orchestrator:acme:callbacks}}:s:lost-{kind}"
    wait_for(lambda: aes.llen(f"{key}:log") == 2, "question and answer are in the log")
    aes.delete(key, f"{key}:log")
    with Stream(cluster.pods[0].port, events_path(f"lost-{kind}", format=kind, task_id=task_id)) as stream:
        events = []
        while (event := stream.receive()) is not None:
            events.append(event.data)
    assert not any(LAST[kind] in event for event in events)

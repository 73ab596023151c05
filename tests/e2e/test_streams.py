"""Answers while they are streamed: whole at the end of it, whatever comes in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from tests.support.processes import Cluster, post, wait_for
from tests.support.talk import Message, open_socket, receive, receive_other

LIST = "orchestrator:acme:callbacks"
WHO = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Agent-ID": "agent-1"}
WORDS = ["Hello, ", "wörld", ' \u2014 "quoted"\n', "tab\tback\\slash ", "\U0001f680 ", "\x00end. "]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two pods and a router, without limits."""
    with Cluster(tmp_path_factory.mktemp("cluster"), unlimited=True) as running:
        yield running


class Agent:
    """An agent that says what a test wants, of one task."""

    def __init__(self, aes: redis.Redis, session_id: str, task_id: str | None = None) -> None:
        self._aes = aes
        self.session_id = session_id
        self.task_id = task_id or str(uuid4())
        self.said = {"text": "", "reasoning": ""}
        self.attempt = 1

    def _push(self, **more: Any) -> None:
        base = {"tenant_id": "acme", "session_id": self.session_id, "task_id": self.task_id}
        self._aes.lpush(LIST, json.dumps({**base, "action_id": str(uuid4()), **more}))

    def say(self, delta: str, part: str = "text", offset: int | None = None) -> None:
        place = len(self.said[part]) if offset is None else offset
        data = {"delta": delta, "offset": place, "part": part}
        self._push(action_type="execution.chunk", attempt=self.attempt, data=data)
        if offset is None:
            self.said[part] += delta

    def again(self) -> None:
        self.attempt += 1
        self.said = {"text": "", "reasoning": ""}

    def finish(self) -> None:
        self._push(
            action_type="execution.callback", status="completed", result={"response": self.said["text"]}
        )


class Reader:
    """What a client puts together."""

    def __init__(self) -> None:
        self.text = {"text": "", "reasoning": ""}
        self.attempt = 0
        self.pieces = self.snapshots = 0
        self.response: str | None = None

    def take(self, message: Message) -> None:
        if message["type"] == "agent_response":
            self.response = message["data"]["response"]
        if message["type"] != "agent_chunk":
            return
        data = message["data"]
        if data["attempt"] > self.attempt:
            self.attempt, self.text = data["attempt"], {"text": "", "reasoning": ""}
        if data.get("snapshot"):
            self.snapshots += 1
            self.text[data["part"]] = ""
        assert data["offset"] == len(self.text[data["part"]]), message
        self.text[data["part"]] += data["delta"]
        self.pieces += 1

    def read_until(self, socket: Any, done: Any) -> None:
        while not done():
            self.take(receive(socket))


def test_an_answer_is_streamed(cluster: Cluster, aes: redis.Redis) -> None:
    """Piece by piece to who wants it, and whole to everybody; what is kept meanwhile is gone then."""
    with (
        open_socket(cluster.pods[0], "plain", stream="1") as socket,
        open_socket(cluster.pods[1], "plain") as other,
    ):
        assert receive(socket)["type"] == receive(other)["type"] == "connection_ack"
        agent, reader = Agent(aes, "plain"), Reader()
        agent.say("Let me see. ", "reasoning")
        for word in WORDS * 20:
            agent.say(word)
        reader.read_until(socket, lambda: reader.text == agent.said)
        assert aes.keys(f"*{agent.task_id}:text")
        agent.finish()
        reader.read_until(socket, lambda: reader.response is not None)
        assert reader.response == reader.text["text"] == agent.said["text"]
        assert reader.snapshots == 0
        assert receive(other)["data"]["response"] == agent.said["text"]
    assert not aes.keys(f"*{agent.task_id}:text")
    assert not aes.keys("*plain:streams")


def test_work_begins(cluster: Cluster, aes: redis.Redis) -> None:
    """The first word of a task is told to all of its session's sockets, once."""
    with open_socket(cluster.pods[0], "begin") as socket:
        receive(socket)
        url = f"{cluster.pods[1].url}/api/chat/send"
        _, sent = post(url, {"message": "hello"}, headers={**WHO, "X-Session-ID": "begin"})
        agent = Agent(aes, "begin", sent["task_id"])
        agent.say("a")
        agent.say("b")
        agent.finish()
        told = [receive_other(socket)["type"] for _ in range(2)]
        assert told == ["typing_indicator", "agent_response"]


def test_who_comes_in_the_middle(cluster: Cluster, aes: redis.Redis) -> None:
    """Gets what was said so far in one piece, and then what follows; on any pod."""
    agent = Agent(aes, "middle")
    for word in WORDS:
        agent.say(word)
    wait_for(lambda: bool(aes.keys(f"*{agent.task_id}:text")), "something was said")
    for pod in cluster.pods:
        reader = Reader()
        with open_socket(pod, "middle", stream="1") as socket:
            reader.read_until(socket, lambda reader=reader: reader.text == agent.said)
            assert (reader.pieces, reader.snapshots) == (1, 1)
            agent.say("and on")
            reader.read_until(socket, lambda reader=reader: reader.text == agent.said)
            assert reader.snapshots == 1
    agent.finish()


def test_who_knows_what_he_has(cluster: Cluster, aes: redis.Redis) -> None:
    """A client that comes back gets only what it lacks; what it says falsely costs it nothing but bytes."""
    agent = Agent(aes, "have")
    for word in WORDS:
        agent.say(word)
    agent.say("hm", "reasoning")
    wait_for(lambda: bool(aes.keys(f"*{agent.task_id}:reasoning")), "something was said")
    text = agent.said["text"]
    for attempt, chars, at in ((1, 9, 9), (1, len(text), None), (1, 10**6, None), (2, 3, 0)):
        have = f"{agent.task_id}:{attempt}:{chars}:0"
        with open_socket(cluster.pods[1], "have", stream="1", have=have) as socket:
            told: list[dict[str, Any]] = []
            while (message := receive(socket))["type"] != "pong":
                if message["type"] == "agent_chunk":
                    told.append(message["data"])
                    if message["data"]["part"] == "reasoning":  # the text, if any, comes right behind it
                        socket.send('{"type": "ping"}')
            texts = [(one["offset"], one["delta"]) for one in told if one["part"] == "text"]
            assert texts == ([] if at is None else [(at, text[at:])])
    agent.finish()


def test_what_runs_is_told_to_who_comes(cluster: Cluster, aes: redis.Redis) -> None:
    """With its deadline and attempt; not what has ended."""
    url = f"{cluster.pods[1].url}/api/chat/send"
    sent = [post(url, {"message": "hello"}, headers={**WHO, "X-Session-ID": "runs"})[1] for _ in range(2)]
    agent = Agent(aes, "runs", sent[0]["task_id"])
    agent.again()
    agent.say("a")
    Agent(aes, "runs", sent[1]["task_id"]).finish()

    def active() -> list[dict[str, Any]]:
        with open_socket(cluster.pods[0], "runs") as socket:
            tasks: list[dict[str, Any]] = receive(socket)["data"]["active_tasks"]
            return tasks

    wait_for(lambda: len(active()) == 1 and active()[0]["status"] == "working", "one runs")
    (task,) = active()
    assert (task["task_id"], task["attempt"], task["agent_id"]) == (sent[0]["task_id"], 2, "agent-1")
    assert task["deadline_at"] == sent[0]["deadline_at"]


def test_another_attempt_replaces(cluster: Cluster, aes: redis.Redis) -> None:
    """What an earlier one says afterwards is ignored."""
    with open_socket(cluster.pods[0], "again", stream="1") as socket:
        agent, reader = Agent(aes, "again"), Reader()
        agent.say("first try")
        reader.read_until(socket, lambda: reader.text == agent.said)
        agent.again()
        agent.say("second ")
        agent.attempt = 1
        agent.say(" and more", offset=9)
        agent.attempt = 2
        agent.say("try")
        reader.read_until(socket, lambda: reader.text["text"] == "second try")
        assert (reader.attempt, reader.text) == (2, agent.said)
        agent.finish()


def test_copies_and_gaps(cluster: Cluster, aes: redis.Redis) -> None:
    """A piece that comes twice is one, one that overlaps is cut, one that does not follow is left out."""
    with open_socket(cluster.pods[0], "copies", stream="1") as socket:
        agent, reader = Agent(aes, "copies"), Reader()
        agent.say("wörld\n\x00\U0001f680!")
        agent.say("wörld\n\x00\U0001f680!", offset=0)
        agent.say("\n\x00\U0001f680! on", offset=5)
        agent.say("far off", offset=50)
        agent.said["text"] += " on"
        agent.say(" and on")
        reader.read_until(socket, lambda: reader.text == agent.said)
        agent.finish()
        reader.read_until(socket, lambda: reader.response is not None)


def test_a_cancelled_answer_streams_no_more(cluster: Cluster, aes: redis.Redis) -> None:
    """What the agent goes on to say is not shown."""
    with open_socket(cluster.pods[0], "cancelled", stream="1") as socket:
        receive(socket)
        url = f"{cluster.pods[0].url}/api/chat/"
        _, sent = post(f"{url}send", {"message": "hello"}, headers={**WHO, "X-Session-ID": "cancelled"})
        agent, reader = Agent(aes, "cancelled", sent["task_id"]), Reader()
        agent.say("one")
        reader.read_until(socket, lambda: reader.text["text"] == "one")
        assert post(f"{url}tasks/{sent['task_id']}/cancel", {}, headers=WHO)[1]["cancelled"]
        while (message := receive_other(socket))["type"] != "error":
            assert message["type"] == "typing_indicator"
        agent.say("two")
        socket.send('{"type": "ping", "ref": 1}')
        wait_for(lambda: aes.llen(LIST) == 0, "the router has it")
        while (message := receive(socket))["type"] != "pong":
            assert message["type"] != "agent_chunk"
    assert not aes.keys(f"*{agent.task_id}:text")

"""The clients of the other protocols, unmodified, at real pods of which one is killed in mid-answer.

Both pods listen on one port, as behind a load balancer. The agent is played by the test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.clients.conftest import JSON, Run
from tests.support.agent import Agent
from tests.support.processes import Cluster, Pod, get, post, wait_for

ACTIONS = "nooble4:dev:agent_execution_service:actions:free"
WHO = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Agent-ID": "agent-1"}
THOUGHTS = ["Let me", " think. "]
PIECES = [f"word {n} 🙂, " for n in range(30)]
ANSWER = "".join(PIECES)
BEAT_S = 0.2


class Twins(Cluster):
    """Two pods on one port."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, pods=2, routers=1, unlimited=True, PRESENCE_INTERVAL_S=str(BEAT_S))
        first, second = self.pods
        second.port = first.port
        second.command[-1] = str(first.port)

    @property
    def url(self) -> str:
        return self.pods[0].url

    def revive(self, pod: Pod) -> None:
        """Start a pod that was killed, and wait until both are known."""
        pod.start()
        wait_for(lambda: len(self.holding()) == 2, "two pods")

    def holding(self) -> dict[int, int]:
        """How many connections each pod has, by process id."""
        status, stats = get(f"{self.url}/ws/stats")
        if status != 200:
            return {}
        alive = {pod.pid for pod in self.pods if pod.popen is not None and pod.popen.poll() is None}
        pods = {int(one["pod_id"].split("-")[-2]): one["connections"] for one in stats["pods"]}
        return {pid: count for pid, count in pods.items() if pid in alive}

    def holder(self) -> Pod | None:
        """The pod that has the connection, if one has; what the other says of itself may be a beat old."""
        holding = [self.holding() for _ in range(8)]
        pids = {pid for one in holding for pid, count in one.items() if count}
        sure = len(pids) == 1 and all(any(one.values()) for one in holding)
        return next((pod for pod in self.pods if sure and pod.pid in pids), None)

    def kill_holder(self) -> Pod:
        """``kill -9`` the pod that has a connection."""
        wait_for(lambda: self.holder() is not None, "a pod has the connection")
        pod = self.holder()
        assert pod is not None
        pod.kill()
        return pod

    def __enter__(self) -> Twins:
        super().__enter__()
        return self


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    """With a router."""
    with Twins(tmp_path_factory.mktemp("twins")) as running:
        wait_for(lambda: len(running.holding()) == 2, "two pods")
        yield running


@pytest.fixture
def aes(twins: Twins) -> Iterator[redis.Redis]:
    """Redis as the agent sees it."""
    with redis.Redis(port=twins.redis_port, decode_responses=True) as client:
        yield client


async def answered(twins: Twins, aes: redis.Redis, session_id: str, *, kill: bool) -> None:
    """Answer a session's action; in the middle the pod that tells it to the client is killed."""
    action = await _taken(aes, session_id)
    agent = Agent(aes, session_id, action["task_id"])
    for thought in THOUGHTS:
        agent.say(thought, "reasoning")
    agent.report(step="write", message="writing", progress=0.5)
    for number, piece in enumerate(PIECES):
        agent.say(piece)
        if number == 10:
            args = {"q": "life"}
            agent.report(tool={"call_id": "1", "name": "search", "status": "running", "args": args})
        if number == 14:
            done = {
                "call_id": "1",
                "name": "search",
                "status": "completed",
                "args": args,
                "result": {"n": 42},
            }
            agent.report(tool=done)
        await asyncio.sleep(0.02)
        if kill and number == 12:
            killed = await asyncio.to_thread(twins.kill_holder)
            await asyncio.sleep(0.3)
    agent.finish(sources=[{"url": "https://example.org/", "title": "Example"}])
    if kill:
        await asyncio.to_thread(twins.revive, killed)


async def _run(run: Run, *words: str) -> JSON:
    return await run(*words)


async def talk(
    run: Run,
    twins: Twins,
    aes: redis.Redis,
    session_id: str,
    script: str,
    *words: str,
    kill: bool,
) -> JSON:
    """Run a client at a session's events while the agent answers."""
    url = f"{twins.url}/api/chat/sessions/{session_id}/events"
    if script == "ag_ui.mjs":
        url += "?format=ag-ui&task_id=TASK" if "--get" in words else "?format=ag-ui"
    if "--get" in words:
        body = {"message": "why?", "client_message_id": "m-1"}
        headers = {**WHO, "X-Session-ID": session_id}
        status, sent = await asyncio.to_thread(post, f"{twins.url}/api/chat/send", body, headers=headers)
        assert status == 200
        url = url.replace("TASK", sent["task_id"])
    await asyncio.to_thread(wait_for, lambda: not any(twins.holding().values()), "nobody is there")
    await asyncio.sleep(2 * BEAT_S)
    async with asyncio.TaskGroup() as group:
        client = group.create_task(_run(run, script, url, "--session", session_id, *words))
        await asyncio.to_thread(wait_for, lambda: twins.holder() is not None, "the client is there")
        await answered(twins, aes, session_id, kill=kill)
    return client.result()


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed"])
@pytest.mark.parametrize("way", [("--get",), ("--post", "why?")], ids=lambda way: way[0])
async def test_ag_ui(run: Run, twins: Twins, aes: redis.Redis, way: tuple[str, ...], kill: bool) -> None:
    """AG-UI's own client: the whole answer, once, though the pod died in the middle of it."""
    name = f"ag-ui-{way[0][2:]}-{kill}"
    words = [*way, "--headers", json.dumps(WHO), "--most", "9"]
    told = await talk(run, twins, aes, name, "ag_ui.mjs", *words, kill=kill)

    assert "".join(told["texts"]) == ANSWER
    assert "".join(told["reasoning"]) in ("".join(THOUGHTS), "")
    assert [(call["name"], call["args"]) for call in told["calls"]] == [("search", '{"q":"life"}')]
    assert [result for _, result in told["results"]] == ['{"n":42}']
    assert len(told["ids"]) == len(set(told["ids"]))
    assert told["errors"] == told["warnings"] == []
    assert bool(told["breaks"]) == kill


AI_WAYS = [("--post", "why?", "--continue"), ("--post", "why?"), ("--get", "--continue"), ("--get",)]


@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed"])
@pytest.mark.parametrize("way", AI_WAYS, ids=" ".join)
@pytest.mark.parametrize("version", ["6", "7"])
async def test_ai_sdk(
    run: Run, twins: Twins, aes: redis.Redis, way: tuple[str, ...], version: str, kill: bool
) -> None:
    """The AI SDK's: likewise, whether it goes on or begins anew; with an address that has no query."""
    name = f"ai-{version}-{''.join(way).replace('?', '').replace(' ', '')}-{kill}"
    headers = json.dumps({**WHO, "Accept": f"text/event-stream;format=ai-sdk;v={version}"})
    words = [*way, "--headers", headers, "--version", version, "--most", "9"]
    told = await talk(run, twins, aes, name, "ai_sdk.mjs", *words, kill=kill)

    assert "".join(told["texts"]) == ANSWER
    assert told["open"] == 0
    [call] = told["calls"]
    assert (call["state"], call["input"], call["output"]) == ("output-available", {"q": "life"}, {"n": 42})
    assert told["sources"] == ["https://example.org/"]
    assert len(told["messages"]) == 1
    assert told["statuses"][-1] == "ready"
    assert bool(told["breaks"]) == kill


# What an agent asks its user.


async def asks(aes: redis.Redis, session_id: str) -> list[Any]:
    """Answer a session's action, and ask twice before the end; returns what the user said."""
    found, said = await _taken(aes, session_id), []
    agent = Agent(aes, session_id, found["task_id"])
    for number, piece in enumerate(("First, ", "then ", "done.")):
        agent.say(piece)
        if number < 2:
            agent.report(
                status="input_required", input={"input_id": f"i-{number}", "prompt": "Sure?", "schema": {}}
            )
            answer = await _taken(aes, session_id)
            assert answer["action_type"] == "execution.input"
            said.append(answer["data"])
    agent.finish()
    return said


async def _taken(aes: redis.Redis, session_id: str) -> JSON:
    while True:
        found: Any = await asyncio.to_thread(aes.brpop, [ACTIONS], 20)
        action: JSON = json.loads(found[1])
        if action["session_id"] == session_id:
            return action


@pytest.mark.parametrize("script", ["ag_ui.mjs", "ai_sdk.mjs 6", "ai_sdk.mjs 7"])
async def test_questions(run: Run, twins: Twins, aes: redis.Redis, script: str) -> None:
    """Each client shows the question as its protocol does, and its answer reaches the agent."""
    name, _, version = script.partition(" ")
    session_id = f"asks-{version or 'ag-ui'}"
    kind = f"ai-sdk;v={version}" if version else "ag-ui"
    headers = json.dumps({**WHO, "Accept": f"text/event-stream;format={kind}"})
    url = f"{twins.url}/api/chat/sessions/{session_id}/events" + ("" if version else "?format=ag-ui")
    words = ["--post", "why?", "--session", session_id, "--headers", headers, "--answer", '{"ok":true}']
    async with asyncio.TaskGroup() as group:
        client = group.create_task(_run(run, name, url, *words, *(["--version", version] if version else [])))
        said = await asks(aes, session_id)
    told = client.result()

    assert said == [{"input_id": f"i-{number}", "value": {"ok": True}} for number in range(2)]
    assert "".join(told["texts"]) == "First, then done."
    assert told["breaks"] == told["errors"] == []
    assert len(told["requests"]) == 3
    if version:
        assert [call["output"] for call in told["calls"]] == [{"ok": True}] * 2
        assert [end["finishReason"] for end in told["finished"]] == ["tool-calls", "tool-calls", "stop"]
        assert len(told["messages"]) == 1
    else:
        assert [end["outcome"] for end in told["ends"]] == ["interrupt", "interrupt", "success"]
        assert told["warnings"] == []

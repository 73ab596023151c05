"""The demo agent: what it answers, and how it takes actions, with a Redis made of Python."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from backplane.demo_agent import Cancel, DemoAgent, Run, callbacks_for, read_action
from backplane.router.dispatch import dispatch
from backplane.settings import Settings
from gateway.chat import ChatBody, Context, build_action
from gateway.identity import ANYONE, Identity

NOW = 1_769_860_800.0
KEYS = Settings().keys()
QUEUE = "orchestrator:acme:callbacks"


def run(message: str = "hello there", task_id: str = "t-1", timeout: float = 60) -> Run:
    return Run(task_id, "acme", "s-1", QUEUE, message, "free", timeout)


def decoded(action: Run) -> list[dict[str, Any]]:
    return [msgspec.json.decode(callback) for callback in callbacks_for(action, NOW, 0.3)]


def encoded(action: Run | Cancel) -> bytes:
    return msgspec.json.encode(action)


# Pure.


def test_reads_what_the_gateway_pushes() -> None:
    """The gateway's own action, with everything in it."""
    identity = Identity("acme", "enterprise", "s-1", "u@x", None, ANYONE)
    ids = {
        "task_id": "6f2f1b1e-0000-4000-8000-000000000001",
        "action_id": "6f2f1b1e-0000-4000-8000-000000000002",
    }
    raw = build_action(
        Settings(), identity, Context("sales"), ChatBody("hi"),
        **cast("Any", ids), queue_name="q", callback_queue=QUEUE, now=NOW, deadline=NOW + 300,
    )  # fmt: skip
    read = read_action(raw)
    assert isinstance(read, Run)
    assert msgspec.structs.replace(read, metadata=msgspec.Raw(b"null")) == Run(
        ids["task_id"], "acme", "s-1", QUEUE, "hi", "enterprise", 300
    )


def test_reads_a_cancel() -> None:
    """Of which only the task is needed."""
    raw = b'{"action_type":"chat.cancel","task_id":"t-1","reason":"enough","session_id":"s-1"}'
    assert read_action(raw) == Cancel("t-1")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"{}",
        b'{"action_type":"something.else"}',
        b'{"action_type":"execution.agent_run","task_id":"t"}',
        encoded(run()).replace(b'"t-1"', b'""'),
        encoded(run()).replace(b'"t-1"', b"1"),
        encoded(run()).replace(b"60", b"0"),
        b"[" * 100_000,
    ],
)
def test_unreadable_actions_are_said_to_be(raw: bytes) -> None:
    """Always with the one error that the agent logs and passes over."""
    with pytest.raises(ValueError, match=r"\w"):
        read_action(raw)


def test_an_answer_is_progress_then_chunks_then_the_end() -> None:
    """In this order, and all of one task."""
    answer = decoded(run())
    kinds = [callback["action_type"].removeprefix("execution.") for callback in answer]
    assert kinds == ["progress", *["chunk"] * (len(kinds) - 2), "callback"]
    assert len(kinds) > 4
    owners = {(c["task_id"], c["tenant_id"], c["tenant_tier"], c["session_id"]) for c in answer}
    assert owners == {("t-1", "acme", "free", "s-1")}


def test_the_end_is_completed() -> None:
    """As the contract has it, with the fixed id."""
    end = decoded(run())[-1]
    assert end["action_id"] == "exec_cb_t-1"
    assert end["status"] == "completed"
    assert "hello there" in end["result"]["response"]
    assert end["result"]["sources"] == []
    assert end["result"]["agent_info"] == {"model_used": "demo"}
    assert end["execution_time"] == 0.3
    tokens = end["tokens_used"]
    assert tokens["total_tokens"] == tokens["prompt_tokens"] + tokens["completion_tokens"]


@given(st.text(min_size=1, max_size=4000).filter(lambda text: text.strip() not in {"fail", "silence"}))
def test_chunks_grow_to_the_answer(message: str) -> None:
    """Whatever the message: each chunk begins where the one before ended, counted in characters."""
    answer = decoded(run(message))
    grown = ""
    for callback in answer[1:-1]:
        assert callback["data"]["offset"] == len(grown)
        grown += callback["data"]["delta"]
    assert grown == answer[-1]["result"]["response"]
    assert len(answer) <= 2 + 40


def test_a_short_answer_comes_word_by_word() -> None:
    """One word and the space behind it a chunk."""
    deltas = [callback["data"]["delta"] for callback in decoded(run())[1:-1]]
    assert deltas[:4] == ["You ", "said: ", "hello ", "there\n"]


def test_fail_fails() -> None:
    """One terminal callback with the error, no text."""
    *before, end = decoded(run(" fail\n"))
    assert [callback["action_type"] for callback in before] == ["execution.progress"]
    assert (end["action_id"], end["status"]) == ("exec_cb_t-1", "failed")
    assert end["result"]["error"]["type"] == "DemoFailure"
    assert end["result"]["error"]["message"]


def test_silence_says_nothing() -> None:
    """Not even progress: the task has to end by its deadline."""
    assert callbacks_for(run("silence"), NOW, 0.3) == []


@pytest.mark.parametrize("message", ["hello", "fail"])
def test_the_router_understands_every_callback(message: str) -> None:
    """And tells those that belong into the log apart."""
    entries = [
        dispatch(raw, "acme", "2026-01-31T12:00:00.000Z") for raw in callbacks_for(run(message), NOW, 0)
    ]
    assert {entry.session_id for entry in entries} == {"s-1"}
    digests = [entry.digest for entry in entries if entry.digest]
    assert len(digests) == len(set(digests)) == 2


# Taking and pushing.


class PythonRedis:
    """The three commands that the agent uses; the first ones of a command raise its ``failures``."""

    def __init__(self, *actions: bytes, **failures: list[Exception]) -> None:
        self.waiting = list(actions)
        self.failures = failures
        self.pushed: list[tuple[str, dict[str, Any]]] = []
        self.handed_back: list[bytes] = []
        self.asked: list[Any] = []
        self.popping = asyncio.Event()  # nothing was left to pop
        self.popped = asyncio.Event()
        self.release = asyncio.Event()
        self.connection_pool = cast("Any", type("Pool", (), {"connection_kwargs": {"socket_timeout": 0.2}}))

    def _fail(self, command: str) -> None:
        if self.failures.get(command):
            raise self.failures[command].pop(0)

    async def brpop(self, keys: list[str], timeout: float) -> tuple[bytes, bytes] | None:  # noqa: ASYNC109
        self.asked = [keys, timeout]
        self._fail("brpop")
        if self.waiting:
            self.popped.set()
            return keys[0].encode(), self.waiting.pop(0)
        self.popping.set()
        await self.release.wait()
        return (keys[0].encode(), self.waiting.pop(0)) if self.waiting else None

    async def lpush(self, queue: str, callback: bytes) -> int:
        self._fail("lpush")
        self.pushed.append((queue, msgspec.json.decode(callback)))
        return len(self.pushed)

    async def rpush(self, queue: bytes, action: bytes) -> int:
        self._fail("rpush")
        self.handed_back.append(action)
        return 1

    @property
    def ends(self) -> list[str]:
        return [callback["task_id"] for _, callback in self.pushed if "status" in callback]


def agent_of(redis: PythonRedis, stop: asyncio.Event | None = None, think_s: float = 0) -> DemoAgent:
    return DemoAgent(cast("Redis", redis), KEYS, structlog.get_logger(), stop or asyncio.Event(), think_s)


async def work_until_idle(redis: PythonRedis) -> DemoAgent:
    """Run one worker until it has answered everything and waits for more."""
    agent = agent_of(redis)
    working = asyncio.create_task(agent.work())
    await asyncio.wait(
        {asyncio.create_task(redis.popping.wait()), working}, timeout=5, return_when="FIRST_COMPLETED"
    )
    working.cancel()
    redis.release.set()
    await asyncio.gather(working, return_exceptions=True)
    await agent.finish(1)
    return agent


async def test_answers_where_it_is_asked_to() -> None:
    """Every callback goes to the action's queue; silence goes nowhere."""
    redis = PythonRedis(encoded(run()), encoded(run("silence", "t-2")), encoded(run("fail", "t-3")))
    agent = await work_until_idle(redis)
    assert {queue for queue, _ in redis.pushed} == {QUEUE}
    assert redis.ends == ["t-1", "t-3"]
    assert agent.answered == 2


async def test_the_highest_tier_comes_first() -> None:
    """And BRPOP ends well before redis-py's socket timeout would drop the connection under it."""
    redis = PythonRedis()
    await work_until_idle(redis)
    tiers = [name.rpartition(":")[2] for name in redis.asked[0]]
    assert tiers == ["enterprise", "professional", "advance", "free"]
    assert redis.asked[1] == 0.1


async def test_passes_over_what_it_cannot_read() -> None:
    """And goes on with the next."""
    redis = PythonRedis(b"not json", encoded(Cancel("t-0")), b'{"action_type":"x"}', encoded(run()))
    await work_until_idle(redis)
    assert redis.ends == ["t-1"]


async def test_outlives_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking and pushing are tried again until they work; nothing that was taken stays unanswered."""
    monkeypatch.setattr("backplane.demo_agent._RETRY_FIRST_S", 0)
    away = RedisConnectionError("away")
    redis = PythonRedis(encoded(run()), brpop=[away, away], lpush=[away, ResponseError("MISCONF later")])
    await work_until_idle(redis)
    assert redis.failures == {"brpop": [], "lpush": []}
    kinds = [callback["action_type"] for _, callback in redis.pushed]
    assert kinds == [callback["action_type"] for callback in decoded(run())]
    assert redis.ends == ["t-1"]


async def test_an_unusable_callback_queue_is_given_up() -> None:
    """It would be unusable the next time, too; the next action is answered."""
    refused = ResponseError("WRONGTYPE not a list")
    redis = PythonRedis(encoded(run()), encoded(run(task_id="t-2")), lpush=[refused])
    await work_until_idle(redis)
    assert redis.ends == ["t-2"]


async def test_a_task_that_has_timed_out_is_not_answered() -> None:
    """Its time is over; the gateway has ended it."""
    redis = PythonRedis(encoded(run(timeout=0.01)))
    agent = agent_of(redis, think_s=60)
    working = asyncio.create_task(agent.work())
    await asyncio.wait_for(redis.popping.wait(), 5)
    working.cancel()
    redis.release.set()
    await agent.finish(1)
    assert redis.ends == []
    assert agent.answered == 0


async def test_an_action_taken_while_stopping_is_handed_back() -> None:
    """Popped between the signal and the end of BRPOP, it is the next in line for another agent."""
    redis, stop = PythonRedis(), asyncio.Event()
    agent = agent_of(redis, stop)
    working = asyncio.create_task(agent.work())
    await redis.popping.wait()
    stop.set()
    working.cancel()
    redis.waiting.append(encoded(run()))
    redis.release.set()
    await agent.finish(1)
    assert redis.handed_back == [encoded(run())]
    assert redis.pushed == []


async def test_answers_in_progress_are_finished() -> None:
    """`work` is cancelled in the middle of an answer; `finish` lets it end."""
    redis, stop = PythonRedis(encoded(run())), asyncio.Event()
    agent = agent_of(redis, stop)
    working = asyncio.create_task(agent.work())
    await redis.popped.wait()
    assert redis.pushed == []
    stop.set()
    working.cancel()
    await agent.finish(1)
    assert redis.ends == ["t-1"]


async def test_finishing_has_an_end() -> None:
    """An answer that takes too long is cut off."""
    redis = PythonRedis(encoded(run()))
    agent = agent_of(redis, think_s=60)
    working = asyncio.create_task(agent.work())
    await redis.popped.wait()
    working.cancel()
    await agent.finish(0.01)
    assert redis.ends == []
    await agent.finish(0.01)

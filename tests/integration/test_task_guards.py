"""What must not become of tasks, whatever comes at a bad moment, from the wrong place or by another clock."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from backplane.store import Store
from backplane.task import Duplicate, Reserved, send_name
from tests.integration.tasks import KEYS, LIST, OVER_S, QUEUE, SETTINGS, World
from tests.integration.test_deadlines import Router
from tests.support.valkey import Client

NAME = send_name("key", "s-1", "n")


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def router(store: Store) -> Router:
    return Router(store)


# A cancel before the action is pushed.


async def test_a_cancel_before_the_push(world: World, redis_client: Client) -> None:
    """It is never pushed or shown, and its name is free: nobody was told that it was accepted."""
    await world.accept(names=[NAME])
    await world.begin_cancel("t-1")
    assert await world.finish_cancel("t-1") == ""
    assert not await world.push("t-1")

    assert redis_client.llen(QUEUE) == 0
    assert (await world.log(), await world.status(), await world.running()) == ([], "cancelled", set())
    assert isinstance(await world.accept("t-2", names=[NAME]), Reserved)
    assert (await world.begin_cancel("t-1")).status == "cancelled"
    assert 0 < redis_client.ttl(KEYS.task(LIST, "t-1")) <= 60


async def test_a_cancel_between_push_and_settling(world: World, redis_client: Client) -> None:
    """The AES has it, and is told to stop, in this order; the client is told the end."""
    await world.accept(names=[NAME])
    await world.push("t-1")
    await world.begin_cancel("t-1")
    await world.finish_cancel("t-1")

    assert [b"chat.cancel" in action for action in reversed(redis_client.lrange(QUEUE, 0, -1))] == [
        False,
        True,
    ]
    assert await world.check_ended_once("t-1") == "cancelled"
    assert isinstance(await world.accept("t-2", names=[NAME]), Duplicate)


async def test_an_interruption_of_what_is_not_pushed_yet(world: World, redis_client: Client) -> None:
    """Whoever sends it is refused then, and may send it again."""
    await world.accept("t-1", names=[NAME])
    accepted = await world.accept("t-2", policy="interrupt")
    assert isinstance(accepted, Reserved)
    assert accepted.interrupted == ["t-1"]
    await world.finish_cancel("t-1")
    assert not await world.push("t-1")

    assert redis_client.llen(QUEUE) == 0
    assert await world.log() == []
    assert isinstance(await world.accept("t-3", names=[NAME]), Reserved)


async def test_a_canceller_that_died_before_the_push(
    world: World, router: Router, redis_client: Client
) -> None:
    """A router does the same."""
    await world.accept(names=[NAME])
    await world.begin_cancel("t-1")
    await world.look_at_all()
    await router.look()

    assert (await world.status(), await world.log(), redis_client.llen(QUEUE)) == ("cancelled", [], 0)


# Time.


async def test_the_same_report_again_gives_time(world: World) -> None:
    """An agent that says the same each second is alive; the log has it once."""
    await world.begin(timeout_s=2, latest_s=60)
    for _ in range(3):
        before = int((await world.record())["deadline"])
        await world.say(
            "t-1", action_type="execution.progress", action_id="exec_cb_t-1", data={"timeout": 10}
        )
        await world.store.call("HSET", KEYS.task(LIST, "t-1"), "deadline", before - 1_000)
        await world.move()
        assert int((await world.record())["deadline"]) / 1000 == pytest.approx(time.time() + 10, abs=1)
    assert len(await world.log()) == 1
    assert world.transfer.counts.duplicates == 2
    assert await world.due_at() == pytest.approx(time.time() + 10, abs=1)


@pytest.mark.parametrize("off_s", [-40.0, 40.0])
async def test_a_pod_whose_clock_is_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    """All times are the server's."""
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr("backplane.tasks.time.time", lambda: now + off_s)
        accepted = await world.accept(timeout_s=30)
        assert isinstance(accepted, Reserved)
        assert accepted.at == pytest.approx(now, abs=1)
        await world.tasks.catch_up(LIST, "s-1", "t-1")  # behind it, over the same connection
    assert int((await world.record())["deadline"]) / 1000 == pytest.approx(now + 30, abs=1)
    assert await world.due_at() == pytest.approx(now + 10, abs=1)
    assert await world.list_due_at() == pytest.approx(now + (-30 if off_s < 0 else 10), abs=1)


async def test_the_running_tasks_are_known_for_as_long(store: Store, redis_client: Client) -> None:
    """Also where a session's log is kept for less time than a task may take."""
    world = World(store, replace(SETTINGS, session_log_max_age_s=60))
    await world.accept("t-1", timeout_s=3_600, latest_s=7_200)
    await world.accept("t-2", timeout_s=10, latest_s=10)
    assert redis_client.ttl(f"{world.session()}:tasks") > 7_200


# What stands in the way.


async def test_a_record_of_another_type(world: World, router: Router, redis_client: Client) -> None:
    """The other tasks of its list go on."""
    for number in range(5):
        await world.begin(f"t-{number}", session=f"s-{number}", timeout_s=OVER_S)
    redis_client.delete(KEYS.task(LIST, "t-2"))
    redis_client.lpush(KEYS.task(LIST, "t-2"), "x")
    await world.look_at_all()
    await router.look()

    for number in (0, 1, 3, 4):
        assert await world.check_ended_once(f"t-{number}", f"s-{number}") == "timeout"
    assert redis_client.zcard(KEYS.due(LIST)) == 0


async def test_what_a_failover_has_lost(world: World, router: Router, redis_client: Client) -> None:
    """Which lists have tasks is found out again from the lists that are known."""
    await world.begin(timeout_s=OVER_S)
    redis_client.delete(KEYS.due_lists)
    await router.look()
    assert await world.status() == "queued"
    await router.deadlines.find_forgotten([LIST.encode(), KEYS.callbacks("nobody").encode()])
    await router.look()

    assert await world.check_ended_once("t-1") == "timeout"
    assert redis_client.zcard(KEYS.due_lists) == 0


# From the wrong place.


async def test_an_answer_in_another_session(world: World) -> None:
    """Is told there; the task of this one goes on."""
    await world.begin("t-1")
    await world.say("t-1", action_type="execution.chunk", data={"delta": "a", "offset": 0})
    await world.move()
    other: dict[str, Any] = {"action_type": "execution.chunk", "data": {"delta": "b", "offset": 1}}
    await world.say("t-1", session="s-2", **other)
    await world.report("t-1", session="s-2", status="input_required")
    await world.answer("t-1", session="s-2")

    assert (await world.status(), await world.running()) == ("working", {"t-1"})
    assert [message["type"] for message in await world.log("s-2")] == ["task_update", "agent_response"]
    assert await world.store.call("GET", f"{KEYS.task(LIST, 't-1')}:text") == b"a"
    assert world.transfer.counts.pieces_ignored == 1
    await world.answer("t-1")
    assert await world.check_ended_once("t-1") == "completed"


async def test_a_repeated_send_tells_where_its_action_belongs(world: World) -> None:
    """In the queue of its task, whatever tier its tenant has by now."""
    await world.accept(names=[NAME])
    again = await world.accept("t-2", names=[NAME])
    assert isinstance(again, Duplicate)
    assert again.queue == QUEUE


async def test_a_copy_behind_the_end_of_what_was_started_elsewhere(
    world: World, redis_client: Client
) -> None:
    """Begins no answer again."""
    first: dict[str, Any] = {"action_type": "execution.chunk", "data": {"delta": "a", "offset": 0}}
    await world.say("t-9", **first)
    await world.answer("t-9")
    await world.say("t-9", **first)
    await world.move()

    assert world.transfer.counts.pieces_ignored == 1
    assert redis_client.exists(f"{world.session()}:streams", f"{KEYS.task(LIST, 't-9')}:text") == 0
    assert 0 < redis_client.ttl(f"{KEYS.task(LIST, 't-9')}:stream") <= 3_600


# Questions.


ASKED: dict[str, Any] = {"status": "input_required", "input": {"input_id": "i-1", "prompt": "Which city?"}}


async def test_what_is_said_beside_a_question(world: World) -> None:
    """Neither its words nor another tool's work take it back; what is answered, or asked anew, does."""
    await world.begin()
    await world.report("t-1", **ASKED)
    await world.say("t-1", action_type="execution.chunk", attempt=1, data={"delta": "Which?", "offset": 0})
    await world.report("t-1", status="working", step="search")
    assert (await world.status(), (await world.record())["input"]) == ("input_required", "i-1")

    await world.report("t-1", status="input_required", input={"input_id": "i-2"})
    assert (await world.record())["input"] == "i-2"
    await world.store.call("HSET", KEYS.task(LIST, "t-1"), "input_answer", "i-2 f")
    await world.report("t-1", status="working")
    assert (await world.status(), (await world.record())["input"]) == ("working", "")


async def test_a_question_that_has_expired(world: World) -> None:
    """Is over with the next thing that is said."""
    await world.begin()
    await world.report("t-1", **ASKED)
    await world.store.call("HSET", KEYS.task(LIST, "t-1"), "input_expires", int(time.time() * 1000) - 1)
    await world.report("t-1", status="working")
    assert await world.status() == "working"

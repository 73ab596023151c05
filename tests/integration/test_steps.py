"""Steps that are reported again and again, on a real Valkey: the log gets the newest, now and then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from backplane.redis_client import parse_redis_url
from backplane.router.consumer import Consumer
from backplane.settings import Settings
from backplane.store import Store
from tests.integration.tasks import KEYS, LIST, SETTINGS, World
from tests.integration.test_deadlines import Router
from tests.support.valkey import Client, eventually
from tests.unit.gateway.fakes import FakeLogger

LONG = replace(SETTINGS, progress_interval_ms=60_000)  # nothing is due before a test says so
SHORT = replace(SETTINGS, progress_interval_ms=100)


class Steps(World):
    """A world with one task that reports.

    Attributes:
        soon: the lists at which a router was told to look.
    """

    def __init__(
        self, store: Store, settings: Settings = LONG, on_due: Callable[[str], None] | None = None
    ) -> None:
        self.soon: list[str] = []
        super().__init__(store, settings, on_due=on_due or self.soon.append)

    async def step(self, number: int, step: str = "read", **more: Any) -> None:
        """A report of a step, how far it is being its number; moved at once."""
        await self.report("t-1", step=step, progress=number / 1000, **more)

    async def told(self) -> list[int | str]:
        """What the log says: reports by their number, all else by its type."""
        return [
            round(message["data"]["progress"] * 1000)
            if message["data"].get("progress") is not None
            else message["type"]
            for message in await self.log()
        ]

    async def later(self) -> None:
        """An interval passes."""
        step, at = (await self.record())["shown"].split()
        passed = int(at) - self.settings.progress_interval_ms
        await self.store.call("HSET", KEYS.task(LIST, "t-1"), "shown", f"{step} {passed}")


@pytest.fixture
async def world(store: Store) -> Steps:
    world = Steps(store)
    await world.begin()
    return world


# What is left out.


async def test_a_step_again_and_again(world: Steps, store: Store) -> None:
    """The first at once; of the others the newest, once, when a router looks. None is left out unseen."""
    for number in range(1, 8):
        await world.step(number)
    assert (await world.told(), world.soon) == ([1], [LIST])
    assert await world.store.call("ZSCORE", KEYS.due(LIST), "pending t-1") == pytest.approx(
        time.time() * 1000 + 60_000, abs=2_000
    )
    await world.look_at_all()
    await Router(store, LONG).look()
    record = await world.record()

    assert await world.told() == [1, 7]
    assert (world.transfer.counts.collapsed, world.transfer.counts.duplicates) == (5, 0)
    assert (record["first"], record["last"], "pending" in record) == ("1", "2", False)
    assert await world.store.call("ZSCORE", KEYS.due(LIST), "pending t-1") is None


async def test_after_an_interval(world: Steps) -> None:
    """The next one is logged at once, and what has waited is left out for it."""
    for number in (1, 2, 3):
        await world.step(number)
    await world.later()
    for number in (4, 5):
        await world.step(number)
    await world.answer("t-1")

    assert await world.told() == [1, 4, 5, "agent_response"]
    assert world.transfer.counts.collapsed == 2


async def test_many_in_one_batch(world: Steps) -> None:
    """As one by one."""
    for step in ("read", "write", "read"):
        for number in range(1, 31):
            await world.say(
                "t-1",
                action_type="execution.progress",
                data={"step": step, "progress": number / 1000},
            )
    await world.move()
    await world.answer("t-1")

    assert await world.told() == [1, 30, 1, 30, 1, 30, "agent_response"]
    assert world.transfer.counts.collapsed == 3 * 28


# What brings it into the log.


@pytest.mark.parametrize("what", ["step", "question", "answer", "failure", "cancel", "deadline"])
async def test_what_comes_behind_it(store: Store, what: str) -> None:
    """Another step, a question and any end stand behind what was pending, and leave nothing pending."""
    world = Steps(store)
    await world.begin(timeout_s=-60 if what == "deadline" else 30)
    for number in (1, 2, 3):
        await world.step(number)
    if what == "step":
        await world.step(4, "write")
    elif what == "question":
        await world.report("t-1", status="input_required", step="read", input={"input_id": "i-1"})
    elif what in {"answer", "failure"}:
        await world.answer("t-1", status="completed" if what == "answer" else "failed")
    elif what == "cancel":
        await world.begin_cancel("t-1")
        await world.step(4)
        await world.finish_cancel("t-1")
    else:
        await world.time_out("t-1")
    last = {"step": 4, "question": "input_required", "answer": "agent_response"}.get(what, "error")

    assert await world.told() == [1, 3, last]
    assert "pending" not in await world.record()
    if what not in {"step", "question"}:
        await world.check_ended_once()
        assert "shown" not in await world.record()
        await world.look_at_all()
        assert (await world.due_tasks.due(LIST))[1] == []
        assert await world.store.call("EXISTS", KEYS.due(LIST)) == 0


# What is not left out.


async def test_what_was_started_elsewhere(store: Store, redis_client: Client) -> None:
    """Has no record in which something could wait."""
    world = Steps(store)
    for number in range(5):
        await world.step(number)

    assert (await world.told(), world.transfer.counts.collapsed) == ([0, 1, 2, 3, 4], 0)
    assert redis_client.exists(KEYS.due(LIST), KEYS.task(LIST, "t-1")) == 0


async def test_questions(world: Steps) -> None:
    """Each is told, whatever its step."""
    for number in range(4):
        await world.report("t-1", status="input_required", step="ask", message=str(number))
        await world.report("t-1", status="input_required", step="ask", input={"input_id": f"i-{number}"})

    assert len(await world.log()) == 8
    assert (await world.record())["input"] == "i-3"


async def test_calls_of_tools(world: Steps) -> None:
    """Each call is told, and what becomes of it; what is reported of one that runs is not."""
    for call in ("c-1", "c-2"):
        for status in ("called", "running", "running", "done"):
            tool = {"call_id": call, "name": "search", "status": status, "result": len(await world.log())}
            await world.report("t-1", step="search", tool=tool)
    await world.answer("t-1")

    assert [message["data"]["tool"]["status"] for message in (await world.log())[:-1]] == [
        "called", "running", "running", "done"
    ] * 2  # fmt: skip


async def test_without_an_interval(store: Store) -> None:
    """Each is told."""
    world = Steps(store, replace(SETTINGS, progress_interval_ms=0))
    await world.begin()
    for number in range(5):
        await world.step(number)

    assert (await world.told(), world.soon) == ([0, 1, 2, 3, 4], [])
    assert "shown" not in await world.record()


async def test_what_counts_all_the_same(world: Steps, redis_client: Client) -> None:
    """What is left out of the log is not left out of the record: status, attempt, and more time."""
    await world.settle("t-1", pushed=True)
    await world.step(1)
    redis_client.hset(KEYS.task(LIST, "t-1"), "status", "input_required")
    await world.step(2, timeout=50)
    await world.say("t-1", action_type="execution.progress", attempt=3, data={"step": "read"})
    await world.move()
    record = await world.record()

    assert await world.told() == [1]
    assert (record["status"], record["attempt"]) == ("working", "3")
    assert int(record["deadline"]) / 1000 == pytest.approx(time.time() + 50, abs=1)
    assert await world.due_at() == int(record["deadline"]) / 1000


# In time.


async def test_a_router_tells_what_is_pending(redis_url: str, store: Store) -> None:
    """An interval later, whatever comes: the newest is never more than half a second old in the log."""
    consumer = Consumer(parse_redis_url(redis_url), KEYS, SHORT, FakeLogger().as_logger(), "r-1")
    world = Steps(store, SHORT)
    tasks = [asyncio.create_task(work) for work in consumer.tasks().values()]
    try:
        await eventually(lambda: consumer.commands.up and consumer.store.up)
        await world.begin()
        for number in range(1, 6):
            for offset in range(20):
                await world.say(
                    "t-1",
                    action_type="execution.progress",
                    data={"step": "s", "progress": number / 1000 + offset / 1e6},
                )
            wanted, began = number / 1000 + 19 / 1e6, time.monotonic()
            while [message["data"]["progress"] for message in await world.log()][-1:] != [wanted]:
                assert time.monotonic() - began < 0.6
                await asyncio.sleep(0.01)
        assert len(await world.log()) < 15
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_step_that_is_pending_anew(world: Steps) -> None:
    """Waits for its own interval, not for what is left of an earlier one's."""
    await world.step(1)
    await world.step(2)
    member = (KEYS.due(LIST), "pending t-1")
    await world.store.call("ZADD", KEYS.due(LIST), int(time.time() * 1000) + 100, "pending t-1")
    await world.step(3, "write")
    await world.step(4, "write")

    assert float(await world.store.call("ZSCORE", *member)) / 1000 == pytest.approx(time.time() + 60, abs=2)
    assert await world.told() == [1, 2, 3]

"""Sessions of which anything may come, on a real Valkey: what waits is never overtaken, and all end once."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from backplane.errors import Busy, RedisUnavailable
from backplane.scripts import ENQUEUE, RELEASE, SETTLE, Script
from backplane.store import Store
from backplane.task import ENDED, Duplicate, send_name
from backplane.wire import Argument
from tests.integration.tasks import KEYS, LIST, OVER_S, QUEUE, World, question
from tests.integration.test_deadlines import Meddled, Router
from tests.support.valkey import Client


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("script", [RELEASE, ENQUEUE, SETTLE])
async def test_a_router_that_dies(world: World, store: Store, script: Script, after: bool) -> None:
    """At any step, its answer lost or it never made: the next one goes on, and the AES gets one action."""
    meddled = Meddled(store)
    dying = Router(meddled.as_store())
    await world.begin()
    await world.enqueue("t-2", question=question("t-2"))
    await world.answer("t-1")

    async def die(args: list[Argument]) -> None:
        if after:
            keys = {
                RELEASE: [KEYS.task(LIST, "t-2"), KEYS.due(LIST), f"{world.session()}:tasks"],
                ENQUEUE: [QUEUE, KEYS.action_mark(QUEUE, "t-2", "run")],
            }
            if script in keys:
                await store.script(script, keys[script], args)
            else:
                await world.settle("t-2", pushed=True)
        raise RedisUnavailable("connection to Redis lost")

    meddled.before[script] = die
    await dying.look()
    await world.look_at_all()
    await Router(store).look()

    assert (await world.status("t-2"), await world.pushed()) == ("queued", ["t-1", "t-2"])
    await world.answer("t-2")
    assert await world.check_ended_once("t-2") == "completed"
    assert [message["type"] for message in await world.log()] == [
        "agent_response", "user_message", "agent_response"
    ]  # fmt: skip


POLICIES = ("enqueue", "enqueue", "enqueue", "concurrent", "reject", "interrupt")


class Crowd:
    """Sessions of which anything may come, and a router that may die at any step.

    Attributes:
        order: the tasks that were accepted, by session.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self.choose = random.Random(seed)
        self.world = World(store)
        self.meddled = Meddled(store)
        self.router = Router(self.meddled.as_store())
        self.order: dict[str, list[str]] = {"s-1": [], "s-2": []}
        self.held = set[str]()
        self.meddled.before |= {ENQUEUE: self._pushes, RELEASE: self._steps, SETTLE: self._steps}

    async def _pushes(self, args: list[Argument]) -> None:
        """The router pushes: what has waited has nothing before it that runs."""
        said = json.loads(str(args[0], "utf-8")) if isinstance(args[0], bytes) and args[0] else {}
        if said.get("task_id") in self.held and said.get("action_type") is None:
            mine = next(tasks for tasks in self.order.values() if said["task_id"] in tasks)
            for earlier in mine[: mine.index(said["task_id"])]:
                assert await self.world.status(earlier) in {"", *ENDED}, f"{said} overtakes {earlier}"
        await self._steps(args)

    async def _steps(self, _args: list[Argument]) -> None:
        """It may die before each of its steps; another one goes on."""
        if self.choose.random() < 0.2:
            raise RedisUnavailable("connection to Redis lost")

    async def send(self, task_id: str) -> None:
        session = self.choose.choice(list(self.order))
        names = [send_name("key", session, str(self.choose.randrange(6)))]
        more: dict[str, Any] = {
            "policy": self.choose.choice(POLICIES),
            "timeout_s": self.choose.choice((OVER_S, 30.0)),
        }
        if self.choose.random() < 0.5:
            more["names"] = names
        try:
            sent = await self.world.accept(task_id, session=session, **more)
        except Busy:
            return
        if isinstance(sent, Duplicate):
            return
        self.order[session].append(task_id)
        if sent.held:
            self.held.add(task_id)
        elif self.choose.random() < 0.8:
            await self.world.push(task_id)

    async def end(self) -> None:
        """An answer of what the AES has, a cancel in one or two steps, a deadline."""
        task_id, session = self.choose.choice([(one, at) for at, some in self.order.items() for one in some])
        what = self.choose.choice(("answer", "answer", "begin cancel", "cancel", "deadline"))
        if what == "answer":
            pushed = await self.world.store.call("GET", KEYS.action_mark(QUEUE, task_id, "run"))
            if pushed == b"pushed":
                await self.world.answer(task_id, session)
        elif what == "deadline" and await self.world.status(task_id) not in {"held", "reserved"}:
            await self.world.time_out(task_id, session)
        elif "cancel" in what and await self.world.record(task_id):
            await self.world.begin_cancel(task_id)
            if what == "cancel":
                await self.world.finish_cancel(task_id)

    async def look(self) -> None:
        """As if all were due."""
        await self.world.look_at_all()
        self.router.deadlines.look_at_all()
        await self.router.look()

    async def until_all_have_ended(self) -> None:
        """The AES answers all that it has, and the router looks."""
        self.choose.random = lambda: 1.0  # type: ignore[method-assign]  # nobody dies any more
        for _ in range(3 + max(map(len, self.order.values()))):
            await self.look()
            for session, tasks in self.order.items():
                for task_id in tasks:
                    if await self.world.status(task_id) in {"queued", "working"}:
                        await self.world.answer(task_id, session)
        await self.look()


@pytest.mark.parametrize("seed", range(10))
async def test_any_sequence(store: Store, redis_client: Client, seed: int) -> None:
    """Each task that was accepted has one end, or was never pushed; none overtakes; nothing is left."""
    crowd = Crowd(store, seed)
    for number in range(150):
        step = crowd.choose.choice(("send", "send", "end", "look"))
        if step == "send" or not any(crowd.order.values()):
            await crowd.send(f"t-{number}")
        elif step == "end":
            await crowd.end()
        else:
            await crowd.look()
    await crowd.until_all_have_ended()

    world, ended = crowd.world, list[str]()
    for session, tasks in crowd.order.items():
        for task_id in tasks:
            if await world.was_accepted(task_id):
                await world.check_ended_once(task_id, session)
                ended.append(task_id)
            else:
                assert task_id not in crowd.held, f"{task_id} was accepted and forgotten"
        assert await world.running(session) == set()
    told = [task_id for session in crowd.order for task_id, _ in await world.ends(session)]
    assert sorted(told) == sorted(ended)
    assert len(crowd.held) > 5
    assert redis_client.exists(KEYS.due(LIST), KEYS.due_lists) == 0
    assert "task_unusable" not in crowd.router.logger.names

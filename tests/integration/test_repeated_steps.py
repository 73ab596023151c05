"""Steps that are reported twice, while something fails, and in any order with all else; on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import RedisUnavailable
from backplane.scripts import CATCH_UP, PUT_OFF, Script
from backplane.store import Store
from backplane.wire import Argument
from tests.integration.tasks import KEYS, LIST
from tests.integration.test_deadlines import Meddled, Router
from tests.integration.test_steps import LONG, SHORT, Steps
from tests.support.valkey import Client


@pytest.fixture
async def world(store: Store) -> Steps:
    world = Steps(store)
    await world.begin()
    return world


def report(number: int, step: str = "read") -> str:
    """A report as the AES may send it again: the same in each byte."""
    said = {"task_id": "t-1", "session_id": "s-1", "action_type": "execution.progress", "action_id": "a"}
    data = {"step": step, "progress": number / 1000, "message": str(number)}
    return json.dumps({**said, "data": data})


async def copy(world: Steps, number: int) -> None:
    """The AES sends a report, perhaps again."""
    await world.store.call("LPUSH", LIST, report(number))
    await world.move()


@pytest.mark.parametrize("look", [False, True], ids=["pending", "logged"])
async def test_a_copy_of_what_was_left_out(world: Steps, look: bool) -> None:
    """Takes nobody's place, and is not told: not even when what took its own is in the log."""
    for number in (1, 2, 3):
        await copy(world, number)
    if look:
        await world.tasks.catch_up(LIST, "s-1", "t-1")
        await world.later()
    for number in (2, 1, 3, 2):
        await copy(world, number)
    await world.answer("t-1")

    assert await world.told() == [1, 3, "agent_response"]
    assert (world.transfer.counts.collapsed, world.transfer.counts.duplicates) == (1, 4)


async def test_what_is_remembered_of_those_is_bounded(store: Store, redis_client: Client) -> None:
    """Like all that a session remembers: a flood of one step costs no more than any other."""
    world = Steps(store, replace(LONG, session_remembered_callbacks=100))
    await world.begin()
    for number in range(1, 1_000):
        await world.say(
            "t-1", action_type="execution.progress", data={"step": "s", "progress": number / 1000}
        )
    await world.move()

    assert redis_client.zcard(f"{world.session()}:seen") <= 100 + 256
    assert redis_client.pttl(f"{world.session()}:seen") > 0


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_a_router_that_dies_while_something_is_pending(store: Store, lost: str) -> None:
    """Another one tells it, once."""
    world, meddled = Steps(store), Meddled(store)
    await world.begin()
    for number in (1, 2, 3):
        await world.step(number)
    await world.look_at_all()

    async def die(args: list[Argument]) -> None:
        if lost == "after":
            await store.script(CATCH_UP, [world.session(), KEYS.due(LIST)], args)
        raise RedisUnavailable("connection to Redis lost")

    meddled.before[CATCH_UP] = die
    await Router(meddled.as_store(), LONG).look()
    await world.look_at_all()
    await Router(store, LONG).look()

    assert await world.told() == [1, 3]


async def test_a_step_while_its_list_is_looked_at(store: Store) -> None:
    """It is told in time, although the router has found out by then when to look next."""
    meddled = Meddled(store)
    router = Router(meddled.as_store(), SHORT)
    world = Steps(store, SHORT, router.deadlines.look_soon)
    await world.begin()
    await world.step(1)
    await world.look_at_all()

    async def step(_args: list[Argument]) -> None:
        del meddled.before[PUT_OFF]
        await world.step(2)

    meddled.before[PUT_OFF] = step
    await router.look()
    assert await world.told() == [1]
    began = time.monotonic()
    async with router.running():
        while await world.told() != [1, 2]:
            assert time.monotonic() - began < 1
            await asyncio.sleep(0.01)


async def test_a_transfer_whose_answer_was_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """May have left something pending: a router looks at the list all the same."""
    world = Steps(store)
    await world.begin()
    await world.step(1)
    moving = store.script_and_watch

    async def lose(script: Script, keys: list[str], args: list[Argument], watched: str) -> Any:
        await moving(script, keys, args, watched)
        raise RedisUnavailable("connection to Redis lost")

    with monkeypatch.context() as patch:
        patch.setattr(store, "script_and_watch", lose)
        with pytest.raises(RedisUnavailable):
            await world.step(2)

    assert world.soon == [LIST]


@pytest.mark.parametrize("seed", range(10))
async def test_any_sequence(store: Store, seed: int) -> None:
    """Never back, nothing twice, and the newest of each step before all that comes behind it."""
    choose, world, router = random.Random(seed), Steps(store), Router(store, LONG)
    await world.begin()
    said, copies, step = list[tuple[str, str]](), list[str](), "a"
    for number in range(1, 150):
        what = choose.choice(("report",) * 6 + ("copy", "copy", "look", "later", "question", "step", "move"))
        if what == "step":
            step = choose.choice("abc")
        elif what == "report":
            said.append((step, f"{number}"))
            copies.append(report(number, step))
            await store.call("LPUSH", LIST, copies[-1])
        elif what == "copy" and copies:
            await store.call("LPUSH", LIST, choose.choice(copies[-5:]))
        elif what == "question":
            said.append(("?", f"i-{number}"))
            await world.say(
                "t-1",
                action_type="execution.progress",
                data={"status": "input_required", "input": {"input_id": f"i-{number}"}},
            )
        elif what == "later" and "shown" in await world.record():
            await world.later()
        elif what == "look":
            await world.look_at_all()
            await router.look()
        elif what == "move":
            await world.move()
    await world.move()
    await world.answer("t-1")

    told = [
        message["data"].get("input_id") or str(message["data"]["message"])
        for message in (await world.log())[:-1]
    ]
    names = [name for _, name in said]
    assert told == [name for name in names if name in told], "back, or twice"
    for at, (about, name) in enumerate(said):
        steps_before = [one for one, _ in said[:at] if one != "?"][-1:]
        if about == "?" or at + 1 == len(said) or said[at + 1][0] != about or steps_before != [about]:
            assert name in told, f"{name} of {said} is not in {told}"
    assert await world.check_ended_once() == "completed"

"""Sends that wait for the other tasks of their session (`enqueue`), on a real Valkey: in order, each once."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest

from backplane.errors import Busy
from backplane.messages import timestamp
from backplane.scripts import ENQUEUE, RELEASE, SETTLE, Script
from backplane.store import Store
from backplane.task import Duplicate, send_name
from backplane.wire import Argument
from tests.integration.tasks import KEYS, LIST, OVER_S, QUEUE, SETTINGS, World, question
from tests.integration.test_deadlines import Meddled, Router, status_is
from tests.support.valkey import Client

NAME = send_name("key", "s-1", "n")


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def router(store: Store) -> Router:
    return Router(store)


async def look(world: World, router: Router) -> None:
    """A router looks, as if all were due."""
    await world.look_at_all()
    router.deadlines.look_at_all()
    await router.look()


# Waiting.


async def test_a_send_that_waits(world: World, router: Router) -> None:
    """It is accepted, counts as running, and nobody pushes it; what was asked is told at once."""
    await world.begin(question=question("t-1"))
    await world.enqueue(question=question("t-2"))
    await world.tasks.catch_up(LIST, "s-1", "t-2")
    await look(world, router)

    assert (await world.status("t-2"), await world.running()) == ("held", {"t-1", "t-2"})
    assert await world.pushed() == ["t-1"]
    assert [message["task_id"] for message in await world.log()] == ["t-1", "t-2"]
    assert (await world.due_at("t-2")) == pytest.approx(time.time() + 60, abs=2)


async def test_a_free_session(world: World) -> None:
    """There nothing has to wait: not even for tasks that are gone or have ended."""
    await world.begin()
    await world.answer("t-1")
    accepted = await world.accept("t-2", policy="enqueue")

    assert not accepted.held  # type: ignore[union-attr]
    assert (await world.status("t-2"), "action" in await world.record("t-2")) == ("reserved", False)


async def test_a_session_whose_tasks_are_enough(store: Store) -> None:
    """What waits counts as well."""
    world = World(store, replace(SETTINGS, session_tasks_max=2))
    await world.begin()
    await world.enqueue("t-2")
    for policy in ("enqueue", "concurrent"):
        with pytest.raises(Busy):
            await world.accept("t-3", policy=policy)


async def test_a_record_is_kept_while_it_waits(store: Store, redis_client: Client) -> None:
    """However long that is: each look prolongs it."""
    settings = replace(SETTINGS, task_kept_s=60)
    world, router = World(store, settings), Router(store, settings)
    await world.begin()
    await world.enqueue("t-2")
    redis_client.pexpire(KEYS.task(LIST, "t-2"), 1_000)
    await look(world, router)

    assert redis_client.pttl(KEYS.task(LIST, "t-2")) > 60_000 + 60_000


# Going on.


async def end_of(world: World, how: str) -> None:
    if how == "answer":
        await world.answer("t-1")
    elif how == "cancel":
        await world.begin_cancel("t-1")
        await world.finish_cancel("t-1")
    else:
        await world.time_out("t-1")


@pytest.mark.parametrize("how", ["answer", "cancel", "deadline"])
async def test_it_goes_on_at_once(store: Store, how: str) -> None:
    """When the one before has ended, however; within half a second, and only the first that waits."""
    router = Router(store)
    world = World(store, on_due=router.deadlines.look_soon)
    await world.begin(timeout_s=OVER_S if how == "deadline" else 30)
    for task_id in ("t-2", "t-3"):
        await world.enqueue(task_id)
    await world.store.call("DEL", QUEUE)
    await world.store.call("ZADD", KEYS.due(LIST), int(time.time() * 1000) + 60_000, "t-1")
    async with router.running() as deadlines:
        began = time.monotonic()
        await end_of(world, how)
        await status_is(world, "t-2", "queued")
        assert time.monotonic() - began < 0.5
        assert [name for name in await world.pushed() if name[0] != "-"] == ["t-2"]
        assert (await world.status("t-3"), deadlines.released) == ("held", 1)
        await world.answer("t-2")
        await status_is(world, "t-3", "queued")


async def test_its_time_runs_from_then(world: World, router: Router, redis_client: Client) -> None:
    """So do what it may be put off, and what its action says of it."""
    await world.begin()
    await world.enqueue("t-2", timeout_s=7, latest_s=20)
    for field in ("accepted", "deadline", "latest"):  # it has waited for an hour
        redis_client.hincrby(KEYS.task(LIST, "t-2"), field, -3_600_000)
    await world.answer("t-1")
    redis_client.delete(QUEUE)
    await router.look()
    record, action = await world.record("t-2"), json.loads(redis_client.lindex(QUEUE, 0))
    deadline = int(record["deadline"]) / 1000

    assert deadline == pytest.approx(time.time() + 7, abs=1)
    assert int(record["latest"]) / 1000 == pytest.approx(deadline + 13, abs=0.1)
    assert await world.due_at("t-2") == deadline
    assert (action["timeout"], action["deadline_at"]) == (7, timestamp(deadline).replace("Z", "000+00:00"))
    assert timestamp(time.time() - 2) < action["queue_metadata"]["enqueued_at"]
    assert "action" not in record


async def test_it_waits_for_all_before_it(world: World, router: Router) -> None:
    """Not only for the one that was the newest."""
    for task_id in ("t-1", "t-2"):
        await world.begin(task_id)
    await world.enqueue("t-3")
    for task_id in ("t-2", "t-1"):
        assert await world.status("t-3") == "held"
        await world.answer(task_id)
        await look(world, router)
    assert await world.pushed() == ["t-1", "t-2", "t-3"]


async def test_one_before_it_that_is_gone(world: World, router: Router, redis_client: Client) -> None:
    """It is not waited for; those behind it are."""
    for task_id in ("t-1", "t-2"):
        await world.begin(task_id)
    await world.enqueue("t-3")
    redis_client.delete(KEYS.task(LIST, "t-1"))
    await look(world, router)
    assert (await world.status("t-3"), await world.running()) == ("held", {"t-2", "t-3"})
    redis_client.delete(KEYS.task(LIST, "t-2"))
    await look(world, router)
    assert await world.status("t-3") == "queued"


async def test_it_does_not_wait_for_what_came_later(world: World, router: Router) -> None:
    """A send that runs beside the others is behind it, however little time that has."""
    await world.begin()
    await world.enqueue("t-2")
    await world.begin("t-3", timeout_s=1)
    await world.answer("t-1")
    await look(world, router)

    assert await world.status("t-2") == "queued"


async def test_a_pod_whose_clock_is_late(
    world: World, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sends have no place before others."""
    await world.begin()
    await world.enqueue("t-2")
    late = time.time() - 120
    with monkeypatch.context() as patch:
        patch.setattr("backplane.tasks.time.time", lambda: late)
        await world.enqueue("t-3")
    await world.answer("t-1")
    await router.look()

    assert (await world.status("t-2"), await world.status("t-3")) == ("queued", "held")


async def test_one_before_it_that_is_forgotten(world: World, router: Router) -> None:
    """As its queue was full: it was the only one to be waited for."""
    await world.accept("t-1")
    await world.enqueue("t-2")
    await router.look()
    async with router.running():
        await world.settle("t-1", pushed=False)
        began = time.monotonic()
        await status_is(world, "t-2", "queued")
    assert time.monotonic() - began < 1


# Its end.


@pytest.mark.parametrize("who", ["pod", "router"])
async def test_a_cancel_before_it_goes_on(world: World, router: Router, who: str) -> None:
    """It ends, the AES hears nothing of it, and the next one does not wait for it."""
    await world.begin()
    await world.enqueue("t-2")
    await world.enqueue("t-3")
    await world.begin_cancel("t-2", reason="enough")
    if who == "pod":
        assert await world.finish_cancel("t-2") == ""
    await look(world, router)
    assert await world.check_ended_once("t-2") == "cancelled"
    assert "action" not in await world.record("t-2")
    await world.answer("t-1")
    await look(world, router)

    assert await world.pushed() == ["t-1", "t-3"]
    assert await world.ends() == [("t-2", "cancelled"), ("t-1", "completed")]


@pytest.mark.parametrize("script", [RELEASE, ENQUEUE, SETTLE])
async def test_a_cancel_while_it_goes_on(world: World, store: Store, script: Script) -> None:
    """Either the AES hears of both or of none."""
    meddled = Meddled(store)
    router = Router(meddled.as_store())
    await world.begin()
    await world.enqueue("t-2")
    await world.answer("t-1")

    async def cancel(_args: list[Argument]) -> None:
        del meddled.before[script]
        await world.begin_cancel("t-2")
        await world.finish_cancel("t-2")

    meddled.before[script] = cancel
    await router.look()
    await look(world, router)

    assert await world.check_ended_once("t-2") == "cancelled"
    assert await world.pushed() == (["t-1", "t-2", "-t-2"] if script is SETTLE else ["t-1"])


async def test_an_interruption(world: World, router: Router) -> None:
    """Ends what waits like what runs, and the AES hears only of the latter."""
    await world.begin()
    await world.enqueue("t-2")
    interrupting = await world.accept("t-3", policy="interrupt")
    assert interrupting.interrupted == ["t-1", "t-2"]  # type: ignore[union-attr]
    await world.push("t-3")
    await look(world, router)

    assert [await world.check_ended_once(task) for task in ("t-1", "t-2")] == ["cancelled"] * 2
    assert (await world.pushed(), await world.status("t-3")) == (["t-1", "t-3", "-t-1"], "queued")


async def test_a_full_queue(store: Store) -> None:
    """Is tried again, without anybody going ahead; who finds no room until his time is over has a timeout."""
    settings = replace(SETTINGS, actions_queue_max=1)
    world, router = World(store, settings), Router(store, settings)
    await world.begin()
    for task_id, timeout_s in (("t-2", 30.0), ("t-3", OVER_S), ("t-4", 30.0)):
        await world.enqueue(task_id, timeout_s=timeout_s)
    await world.answer("t-1")
    for _ in range(2):
        await look(world, router)
        assert (await world.pushed(), await world.status("t-2")) == (["t-1"], "reserved")
    await store.call("DEL", QUEUE)
    await look(world, router)
    assert await world.pushed() == ["t-2"]
    await world.answer("t-2")
    await look(world, router)

    assert await world.check_ended_once("t-3") == "timeout"
    assert not await world.push("t-3")
    assert (await world.pushed(), await world.status("t-4")) == (["t-2"], "reserved")


# Sent again.


async def test_a_repeated_send(world: World, router: Router) -> None:
    """Is the same task, while it waits and when it goes on; neither of them is pushed twice."""
    await world.begin()
    await world.enqueue("t-2", names=[NAME])
    statuses = []
    for ends in (False, True):
        if ends:
            await world.answer("t-1")
            await look(world, router)
        again = await world.accept("t-3", policy="enqueue", names=[NAME])
        assert isinstance(again, Duplicate)
        statuses.append((again.task_id, again.status))

    assert statuses == [("t-2", "held"), ("t-2", "queued")]
    assert await world.pushed() == ["t-1", "t-2"]

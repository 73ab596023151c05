"""Tasks on a real cluster: every script finds all of its keys in one slot, also while that slot is moved."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from backplane.errors import RedisUnavailable
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.router.deadlines import Deadlines
from backplane.store import Store
from backplane.task import Duplicate, Reserved, send_name
from tests.integration.tasks import LIST, OVER_S, QUEUE, SETTINGS, World, question
from tests.support.topology import ValkeyCluster
from tests.support.valkey import running
from tests.unit.gateway.fakes import FakeLogger

NAME = send_name("key", "s-1", "n")
LONG = replace(SETTINGS, progress_interval_ms=60_000)
MOVES = pytest.mark.parametrize("atomic", [False, True], ids=["key by key", "atomic"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    with ValkeyCluster(tmp_path_factory.mktemp("cluster"), node_timeout_ms=2_000) as cluster:
        yield cluster


@pytest.fixture
async def store(cluster: ValkeyCluster) -> AsyncIterator[Store]:
    for node, _ in cluster.primaries():
        node.ask("FLUSHALL")
    async with running(open_store(parse_redis_url(cluster.url), "test", timeout_s=10)) as up:
        yield up


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


def router(world: World) -> Deadlines:
    logger = FakeLogger().as_logger()
    due = world.due_tasks
    return Deadlines(world.store, world.keys, world.tasks, due, world.queue, lambda _name: True, logger)


def elsewhere(cluster: ValkeyCluster, count: int) -> list[str]:
    """Tenants, so that every primary has the list of one."""
    tenants, nodes = list[str](), set[object]()
    for number in range(1_000):
        node = cluster.node_of(SETTINGS.keys().callbacks(f"tenant-{number}"))
        if node not in nodes:
            nodes.add(node)
            tenants.append(f"tenant-{number}")
        if len(nodes) == count:
            return tenants
    raise LookupError("a primary without slots")


async def test_a_tasks_whole_life(cluster: ValkeyCluster, store: Store) -> None:
    """Every script, in each primary, with the tier's queue and the list of lists wherever they are."""
    for tenant_id in elsewhere(cluster, 3):
        world = World(store, tenant_id=tenant_id)
        accepted = await world.accept(names=[NAME])
        assert isinstance(accepted, Reserved)
        known = await world.accept("t-2", names=[NAME])
        assert isinstance(known, Duplicate)
        deadline = int((await world.record())["deadline"]) / 1000
        assert known[1:] == ("t-1", "reserved", deadline, str(accepted.position), QUEUE, "")
        assert await world.push("t-1")
        await world.settle("t-1", pushed=True)
        await world.report("t-1", timeout=50)
        await world.answer("t-1", tokens_used={"total": 7})
        assert await world.check_ended_once() == "completed"
        await world.answer("t-1", status="failed")
        assert (await world.record())["late"] == "1"
        await world.begin("t-3", names=[send_name("key", "s-1", "o")])
        interrupting = await world.accept("t-4", policy="interrupt")
        assert isinstance(interrupting, Reserved)
        assert interrupting.interrupted == ["t-3"]
        await world.finish_cancel("t-3")
        assert await world.check_ended_once("t-3") == "cancelled"
        await world.settle("t-4", pushed=False)
        assert await world.record("t-4") == {}
        await world.begin("t-5", timeout_s=OVER_S)
        await world.begin_cancel("t-5")
        await world.finish_cancel("t-5")
        assert await world.check_ended_once("t-5") == "cancelled"
        await world.begin("t-6", timeout_s=OVER_S)
        await world.time_out("t-6")
        assert await world.check_ended_once("t-6") == "timeout"
        assert await world.running() == set()


async def look(deadlines: Deadlines) -> None:
    """One look at what is due."""
    await deadlines._look()
    await asyncio.gather(*deadlines._looks.values())


async def test_deadlines(cluster: ValkeyCluster, store: Store) -> None:
    """Of lists in every primary: timeouts, cancels left half done, sends that were never pushed."""
    worlds = [World(store, tenant_id=tenant_id) for tenant_id in elsewhere(cluster, 3)]
    for world in worlds:
        await world.begin("t-1", timeout_s=OVER_S)
        await world.begin("t-2")
        await world.begin_cancel("t-2")
        await world.accept("t-3")
        await world.accept("t-4", names=[NAME])
        await world.push("t-4")
        await world.look_at_all()
    deadlines = router(worlds[0])
    await look(deadlines)

    for world in worlds:
        assert await world.check_ended_once("t-1") == "timeout"
        assert await world.check_ended_once("t-2") == "cancelled"
        assert (await world.record("t-3"), await world.status("t-4")) == ({}, "queued")
        assert await world.list_due_at() == await world.due_at("t-4")
    assert (deadlines.timeouts, deadlines.cancelled, deadlines.forgotten) == (3, 3, 3)


async def test_what_waits_reports_and_is_left(cluster: ValkeyCluster, store: Store) -> None:
    """In each primary: the log catches up, what waited goes on, and what nobody is left for is cancelled."""
    worlds = [World(store, LONG, tenant_id) for tenant_id in elsewhere(cluster, 3)]
    for world in worlds:
        await world.begin("t-1", question=question("t-1"))
        await world.enqueue("t-2", question=question("t-2"))
        await world.tasks.catch_up(world.list, "s-1", "t-2")
        for number in range(3):
            await world.report("t-1", step="read", message=str(number))
        await world.begin("t-3", session="s-2", left_s=60)
        await world.look_at_all()
    deadlines = router(worlds[0])
    await look(deadlines)
    for world in worlds:
        assert [message["data"].get("message") for message in await world.log()] == [None, None, "0", "2"]
        since = str(int(time.time() * 1000) - 60_000)
        await store.call("HSET", world.keys.task(world.list, "t-3"), "alone", f"0 {since}")
        await world.answer("t-1")
        await world.look_at_all()
    deadlines.look_at_all()
    await look(deadlines)

    for world in worlds:
        assert await world.check_ended_once("t-3", "s-2") == "cancelled"
        assert await world.status("t-2") == "queued"
    assert (deadlines.released, deadlines.left_alone) == (3, 3)


async def test_nothing_goes_on_while_its_slot_is_on_its_way(cluster: ValkeyCluster, world: World) -> None:
    """A task before it whose record has been moved already has not ended for that."""
    await world.begin("t-1")
    await world.enqueue("t-2")
    slot, source = cluster.slot_of(LIST), cluster.node_of(LIST)
    target = next(node for node, _ in cluster.primaries() if node is not source)
    await world.look_at_all()
    deadlines = router(world)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
    source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", world.keys.task(LIST, "t-1"))
    await look(deadlines)
    assert (source.ask("HGET", world.keys.task(LIST, "t-2"), "status"), deadlines.released) == (b"held", 0)
    await asyncio.to_thread(cluster.move_slots, [slot], source, target, atomic=False)
    await persistently(lambda: world.answer("t-1"))
    await world.look_at_all()
    deadlines.look_at_all()
    await look(deadlines)

    assert await world.status("t-2") == "queued"


async def persistently(work: Callable[[], Awaitable[object]], within_s: float = 20.0) -> None:
    """Try until Redis takes it: a slot on its way refuses what it has only a part of."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            await work()
        except RedisUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        else:
            return


@MOVES
async def test_slots_on_their_way(cluster: ValkeyCluster, world: World, atomic: bool) -> None:
    """The list's slot goes to another primary and back while tasks begin and end: each of them ends once."""
    slot, source = cluster.slot_of(LIST), cluster.node_of(LIST)
    target = next(node for node, _ in cluster.primaries() if node is not source)
    moved = asyncio.Event()

    async def move() -> None:
        for here, there in ((source, target), (target, source)):
            await asyncio.to_thread(
                cluster.move_slots, [slot], here, there, atomic=atomic, batch=5, pause_s=0.02
            )
        moved.set()

    async def life(number: int) -> None:
        task_id = f"t-{number}"
        named = {"names": [send_name("key", "s-1", task_id)], "session": f"s-{number % 3}"}
        await persistently(lambda: world.accept(task_id, timeout_s=OVER_S, latest_s=OVER_S, **named))
        await persistently(lambda: world.queue.push(QUEUE, task_id, "run", b"{}"))
        await persistently(lambda: world.settle(task_id, pushed=True))
        if number % 3 == 0:
            await persistently(lambda: world.answer(task_id, f"s-{number % 3}", action_id=task_id))
        elif number % 3 == 1:
            await persistently(lambda: world.begin_cancel(task_id))
            await persistently(lambda: world.finish_cancel(task_id))
        else:
            await persistently(lambda: world.time_out(task_id, f"s-{number % 3}"))

    moving, number = asyncio.create_task(move()), 0
    while not moved.is_set():
        assert not moving.done() or moved.is_set(), moving.exception()
        await asyncio.gather(*(life(number + offset) for offset in range(6)))
        number += 6
    await moving

    wanted = ("completed", "cancelled", "timeout")
    for done in range(number):
        assert await world.check_ended_once(f"t-{done}", f"s-{done % 3}") == wanted[done % 3]


@MOVES
async def test_deadlines_while_slots_are_on_their_way(
    cluster: ValkeyCluster, store: Store, atomic: bool
) -> None:
    """A list that is refused for a while is not forgotten: all of its tasks end."""
    world = World(store, replace(SETTINGS, session_tasks_max=1_000))
    for number in range(40):
        await world.begin(f"t-{number}", session=f"s-{number}", timeout_s=0.3 + number / 40)
    slot, source = cluster.slot_of(LIST), cluster.node_of(LIST)
    target = next(node for node, _ in cluster.primaries() if node is not source)
    deadlines = router(world)
    looking = asyncio.create_task(deadlines.run())
    try:
        await world.store.call("ZADD", world.keys.due_lists, 1, LIST)
        for here, there in ((source, target), (target, source)):
            await asyncio.to_thread(
                cluster.move_slots, [slot], here, there, atomic=atomic, batch=10, pause_s=0.05
            )
        ends_by = time.monotonic() + 10
        while deadlines.timeouts < 40:
            assert time.monotonic() < ends_by, deadlines.timeouts
            assert not looking.done()
            await asyncio.sleep(0.02)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    for number in range(40):
        assert await world.check_ended_once(f"t-{number}", f"s-{number}") == "timeout"

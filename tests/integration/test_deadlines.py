"""The router's share of tasks on a real Valkey: deadlines, sends never pushed, cancels left half done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from backplane.due_tasks import DueTasks
from backplane.errors import RedisUnavailable
from backplane.redis_client import parse_redis_url
from backplane.router.consumer import Consumer
from backplane.router.deadlines import Deadlines
from backplane.scripts import ACCEPT, CANCEL, DUE, ENQUEUE, PUT_OFF, Script
from backplane.settings import Settings
from backplane.store import Store
from backplane.task import Reserved, send_name
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks
from backplane.wire import Argument, Reply
from tests.integration.tasks import KEYS, LIST, OVER_S, QUEUE, SETTINGS, World
from tests.support.valkey import Client, eventually
from tests.unit.gateway.fakes import FakeLogger

NAME = send_name("key", "s-1", "n")
SOON_S = 3.0


class Router:
    """A router's deadlines.

    Attributes:
        serves: whether it serves a list.
    """

    def __init__(self, store: Store, settings: Settings = SETTINGS) -> None:
        self.logger = FakeLogger()
        self.serves: Callable[[bytes], bool] = lambda _name: True
        self.deadlines = Deadlines(
            store,
            KEYS,
            Tasks(store, KEYS, settings),
            DueTasks(store, KEYS, settings),
            TaskQueue(store, KEYS, settings.actions_queue_max),
            self._mine,
            self.logger.as_logger(),
        )

    def _mine(self, name: bytes) -> bool:
        return self.serves(name)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Deadlines]:
        """While the body runs; it must not have died by the end."""
        task = asyncio.create_task(self.deadlines.run())
        try:
            yield self.deadlines
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def look(self) -> None:
        """One look at what is due."""
        await self.deadlines._look()
        await asyncio.gather(*self.deadlines._looks.values())


class Meddled:
    """A store in which something happens just before a script runs.

    Attributes:
        before: what, by script; it may raise.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.before: dict[Script, Callable[[list[Argument]], Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        if script in self.before:
            await self.before[script](args)
        return await self._store.script(script, keys, args)

    def as_store(self) -> Store:
        return cast("Store", self)


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def router(store: Store) -> Router:
    return Router(store)


async def status_is(world: World, task_id: str, *wanted: str) -> None:
    """Return when a task has one of these statuses."""
    deadline = time.monotonic() + SOON_S
    while await world.status(task_id) not in wanted:
        assert time.monotonic() < deadline, f"{await world.record(task_id)} is not {wanted}"
        await asyncio.sleep(0.01)


# What it does.


async def test_timeouts_are_in_time(world: World, router: Router) -> None:
    """Within half a second of the deadline, and not before; also of one that nobody has settled."""
    async with router.running() as deadlines:
        for number in range(10):
            session = f"s-{number}"
            timeout_s = 0.3 + number / 20
            if number % 2:
                await world.begin(f"t-{number}", session=session, timeout_s=timeout_s)
                await world.store.call("ZADD", KEYS.due_lists, "LT", int(time.time() * 1000 + 200), LIST)
            else:
                await world.accept(f"t-{number}", session=session, timeout_s=timeout_s)
                await world.push(f"t-{number}")
        for number in range(10):
            await status_is(world, f"t-{number}", "timeout")
            record = await world.record(f"t-{number}")
            assert 0 <= int(record["ended"]) - int(record["deadline"]) <= 500
            await world.check_ended_once(f"t-{number}", f"s-{number}")
        assert deadlines.timeouts == 10
    assert router.logger.names == ["task_timed_out"] * 10


async def test_a_report_does_not_delay_the_end(world: World, router: Router) -> None:
    """A task whose reserve and deadline fall into different looks ends in time, too."""
    await world.accept(timeout_s=1)
    await world.push("t-1")
    await world.report("t-1", timeout=1.2)
    async with router.running():
        await status_is(world, "t-1", "timeout")
    record = await world.record()

    assert 0 <= int(record["ended"]) - int(record["deadline"]) <= 500


async def test_a_task_that_was_never_pushed(world: World, router: Router, redis_client: Client) -> None:
    """Its pod has died: it is forgotten, its name free, and its action never pushed after that."""
    await world.accept(names=[NAME])
    await world.look_at_all()
    await router.look()

    assert (await world.record(), await world.running(), await world.due_at()) == ({}, set(), None)
    assert not await world.push("t-1")
    assert redis_client.llen(QUEUE) == 0
    assert isinstance(await world.accept("t-2", names=[NAME]), Reserved)
    assert (router.deadlines.forgotten, await world.log()) == (1, [])


async def test_a_task_that_was_pushed(world: World, router: Router, redis_client: Client) -> None:
    """Its pod has died after that: it waits for its answer."""
    await world.accept(names=[NAME])
    await world.push("t-1")
    await world.look_at_all()
    await router.look()
    record = await world.record()

    assert record["status"] == "queued"
    assert await world.due_at() == await world.list_due_at() == int(record["deadline"]) / 1000
    assert redis_client.exists(KEYS.send(LIST, NAME))
    assert router.deadlines.forgotten == 0


async def test_a_task_that_was_given_up_half_way(world: World, router: Router) -> None:
    """A router that died after it had made the action void: the next one forgets the task."""
    await world.accept()
    await world.queue.void(QUEUE, "t-1", "run")
    await world.look_at_all()
    await router.look()

    assert await world.record() == {}


@pytest.mark.parametrize("told", [False, True])
async def test_a_cancel_whose_canceller_died(
    world: World, router: Router, redis_client: Client, told: bool
) -> None:
    """It is carried out; the AES is told once, whether it was told by then or not."""
    await world.begin()
    await world.begin_cancel("t-1", reason="enough")
    if told:
        await world.queue.push(QUEUE, "t-1", "cancel", b"stop")
    await world.look_at_all()
    await router.look()

    assert await world.check_ended_once() == "cancelled"
    assert (await world.log())[0]["data"]["metadata"]["reason"] == "enough"
    assert redis_client.llen(QUEUE) == 2
    assert (router.deadlines.cancelled, router.deadlines.timeouts) == (1, 0)


async def test_a_cancel_is_finished_in_time(world: World, router: Router) -> None:
    """Two seconds after its canceller has died."""
    await world.begin()
    async with router.running():
        await world.begin_cancel("t-1")
        began = time.time()
        await status_is(world, "t-1", "cancelled")
    assert 1.9 < time.time() - began < 2.6


async def test_a_deadline_that_was_put_off(world: World, router: Router) -> None:
    """Ends nothing; the list is looked at again when the later one is over."""
    await world.begin(timeout_s=OVER_S)
    await world.report("t-1", timeout=40)
    await world.look_at_all()
    await router.look()

    assert await world.status() == "working"
    assert router.deadlines.timeouts == 0


async def test_more_tasks_than_one_look_has(world: World, router: Router) -> None:
    """All of them end at once."""
    for number in range(230):
        await world.accept(f"t-{number}", session=f"s-{number % 7}", timeout_s=OVER_S, latest_s=OVER_S)
        await world.push(f"t-{number}")
    for _ in range(3):
        await router.look()
        await world.look_at_all()

    assert router.deadlines.timeouts == 230
    assert await world.due_tasks.due(LIST) == (None, [])


async def test_two_routers(world: World, store: Store) -> None:
    """That both think a list theirs end each of its tasks once."""
    for number in range(30):
        await world.begin(f"t-{number}", timeout_s=OVER_S)
    await world.look_at_all()
    routers = [Router(store), Router(store)]
    await asyncio.gather(*(router.look() for router in routers))

    assert sum(router.deadlines.timeouts for router in routers) == 30
    assert len(await world.ends()) == 30


# When it looks.


async def test_a_list_without_tasks_is_forgotten(world: World, router: Router, redis_client: Client) -> None:
    """Nothing of what ran is left among the lists that are looked at."""
    await world.begin(timeout_s=OVER_S)
    await world.look_at_all()
    await router.look()

    assert redis_client.exists(KEYS.due_lists, KEYS.due(LIST)) == 0


async def test_lists_of_another_router(world: World, router: Router, store: Store) -> None:
    """Are left alone, and where they stand."""
    theirs = World(store, tenant_id="other")
    for one in (world, theirs):
        await one.begin(timeout_s=OVER_S)
        await one.look_at_all()
    router.serves = lambda name: name == LIST.encode()
    await router.look()

    assert (await world.status(), await theirs.status()) == ("timeout", "queued")
    assert await theirs.list_due_at() == 0.001


async def test_what_is_no_callback_list(router: Router, world: World, redis_client: Client) -> None:
    """Is struck off, and keeps nobody waiting."""
    redis_client.zadd(KEYS.due_lists, {"nonsense": 0, b"\xff": 0})
    await world.begin(timeout_s=OVER_S)
    await world.look_at_all()
    await router.look()

    assert (await world.status(), redis_client.exists(KEYS.due_lists)) == ("timeout", 0)


async def test_after_another_router_has_died(world: World, router: Router, redis_client: Client) -> None:
    """It may have put a list off and looked at nothing: whoever has the list then looks at all of his."""
    await router.look()
    await world.begin(timeout_s=OVER_S)
    redis_client.zadd(KEYS.due_lists, {LIST: (time.time() + 60) * 1000})
    await router.look()
    assert await world.status() == "queued"
    router.deadlines.look_at_all()
    await router.look()

    assert await world.status() == "timeout"


async def test_a_router_that_begins(world: World, router: Router, redis_client: Client) -> None:
    """Looks at everything: the only other one may have died while it looked."""
    await world.begin(timeout_s=OVER_S)
    redis_client.zadd(KEYS.due_lists, {LIST: (time.time() + 60) * 1000})
    await router.look()

    assert await world.status() == "timeout"


async def test_a_view_that_changes(redis_url: str, world: World, redis_client: Client) -> None:
    """Has a router look at all of its lists."""
    settings = replace(SETTINGS, sweep_interval_s=3_600)
    consumer = Consumer(parse_redis_url(redis_url), KEYS, settings, FakeLogger().as_logger(), "r-1")
    tasks = [asyncio.create_task(work) for work in consumer.tasks().values()]
    try:
        await eventually(lambda: consumer.commands.up and not consumer.deadlines._all.is_set())
        await world.begin(timeout_s=OVER_S)
        redis_client.zadd(KEYS.due_lists, {LIST: (time.time() + 60) * 1000})
        consumer._on_view()
        await status_is(world, "t-1", "timeout")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_send_while_its_list_is_looked_at(world: World, store: Store, redis_client: Client) -> None:
    """It moves the list to when it is due itself, and to no later than what was found then."""
    meddled = Meddled(store)
    router = Router(meddled.as_store())
    await world.begin("t-1", timeout_s=1.5)
    await world.store.call("ZADD", KEYS.due_lists, 1, LIST)

    async def send(_args: list[Argument]) -> None:
        del meddled.before[PUT_OFF]
        await world.accept("t-2", timeout_s=30)

    meddled.before[PUT_OFF] = send
    await router.look()

    assert await world.list_due_at() == await world.due_at("t-1")


@pytest.mark.parametrize("script", [ACCEPT, CANCEL])
async def test_a_list_that_is_looked_at_before_its_task_is_there(
    store: Store, redis_client: Client, script: Script
) -> None:
    """The list is announced first. A router that finds nothing then does not forget the task for that."""
    meddled = Meddled(store)
    world, router = World(meddled.as_store()), Router(store)
    if script is CANCEL:
        await world.begin()

    async def look(_args: list[Argument]) -> None:
        await eventually(lambda: redis_client.zscore(KEYS.due_lists, LIST) is not None)
        redis_client.zadd(KEYS.due_lists, {LIST: 1})
        await router.look()

    meddled.before[script] = look
    if script is CANCEL:
        await world.begin_cancel("t-1")
    else:
        await world.accept(timeout_s=5)
    due_at = redis_client.zscore(KEYS.due(LIST), "t-1")

    assert due_at is not None
    await eventually(lambda: abs((redis_client.zscore(KEYS.due_lists, LIST) or 0) - due_at) < 100)


# When something is refused or away.


async def test_a_refused_end(world: World, router: Router, redis_client: Client) -> None:
    """Is told to the operator, does not stop the others, and is made once it can be."""
    for number in range(3):
        await world.begin(f"t-{number}", session=f"s-{number}", timeout_s=OVER_S)
    kept = redis_client.dump(world.session("s-1"))
    redis_client.delete(world.session("s-1"))
    redis_client.set(world.session("s-1"), "x")
    async with router.running() as deadlines:
        await world.look_at_all()
        await status_is(world, "t-2", "timeout")
        assert [await world.status(f"t-{number}") for number in range(2)] == ["timeout", "queued"]
        assert ("task_not_ended" in router.logger.names, deadlines.timeouts) == (True, 2)
        redis_client.restore(world.session("s-1"), 0, kept, replace=True)
        await status_is(world, "t-1", "timeout")


async def test_a_refused_list(world: World, router: Router, store: Store, redis_client: Client) -> None:
    """Is told to the operator, does not stop the others, and is not forgotten."""
    others = [World(store, tenant_id=f"tenant-{number}") for number in range(5)]
    for one in (world, *others):
        await one.begin(timeout_s=OVER_S)
    redis_client.rename(KEYS.due(LIST), f"{KEYS.due(LIST)}:kept")
    redis_client.set(KEYS.due(LIST), "x")
    for one in others:
        await one.look_at_all()
    redis_client.zadd(KEYS.due_lists, {LIST: 0})
    await router.look()
    assert [await one.status() for one in others] == ["timeout"] * 5
    assert "deadlines_refused" in router.logger.names
    assert (await world.list_due_at()) == pytest.approx(time.time() + 2, abs=1)
    redis_client.rename(f"{KEYS.due(LIST)}:kept", KEYS.due(LIST))
    async with router.running():
        await status_is(world, "t-1", "timeout")


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_a_connection_that_is_lost_half_way(
    world: World, store: Store, redis_client: Client, lost: str
) -> None:
    """The list stays put off, and nobody has said until when: it is looked at again at once."""
    meddled = Meddled(store)
    router = Router(meddled.as_store())
    await world.begin(timeout_s=OVER_S)
    await world.begin("t-2", timeout_s=1.0)
    await world.look_at_all()
    await world.store.call("ZADD", KEYS.due(LIST), int(time.time() * 1000 + 1000), "t-2")

    async def lose(args: list[Argument]) -> None:
        del meddled.before[PUT_OFF]
        if lost == "after":
            await store.script(PUT_OFF, [KEYS.due_lists], args)
        raise RedisUnavailable("connection to Redis lost")

    meddled.before[PUT_OFF] = lose
    async with router.running():
        await status_is(world, "t-2", "timeout")
    record = await world.record("t-2")

    assert int(record["ended"]) - int(record["deadline"]) <= 500
    assert await world.status("t-1") == "timeout"


async def test_a_queue_that_is_away(world: World, store: Store) -> None:
    """On a cluster that may be all that is away: what does not need it ends, and the rest waits for it."""
    meddled = Meddled(store)
    router = Router(meddled.as_store())
    await world.accept("t-1")
    await world.begin("t-2", timeout_s=OVER_S)
    await world.look_at_all()

    async def lose(_args: list[Argument]) -> None:
        raise RedisUnavailable("not connected to Redis")

    meddled.before[ENQUEUE] = lose
    await router.look()
    assert (await world.status("t-1"), await world.status("t-2")) == ("reserved", "timeout")
    assert await world.list_due_at() == await world.due_at("t-1") == pytest.approx(time.time() + 2, abs=1)
    del meddled.before[ENQUEUE]
    await world.look_at_all()
    await router.look()

    assert await world.record("t-1") == {}


async def test_a_router_that_stops_while_it_looks(world: World, store: Store) -> None:
    """Stops, also if its connection has been closed before."""
    meddled, looking = Meddled(store), asyncio.Event()
    router = Router(meddled.as_store())
    await world.begin(timeout_s=OVER_S)
    await world.look_at_all()

    async def wait(_args: list[Argument]) -> None:
        looking.set()
        await asyncio.Event().wait()

    async def lose(_args: list[Argument]) -> None:
        raise RedisUnavailable("not connected to Redis")

    meddled.before = {DUE: wait, PUT_OFF: lose}
    task = asyncio.create_task(router.deadlines.run())
    await asyncio.wait_for(looking.wait(), SOON_S)
    task.cancel()
    await asyncio.wait([task], timeout=SOON_S)

    assert task.cancelled()


async def test_everything_is_still_to_be_looked_at_when_redis_is_back(
    world: World, store: Store, redis_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that was asked to look at all while Redis was away does it then."""
    router = Router(store)
    await world.begin(timeout_s=OVER_S)
    redis_client.zadd(KEYS.due_lists, {LIST: (time.time() + 60) * 1000})
    router.deadlines.look_at_all()

    def away(*_command: object) -> None:
        raise RedisUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "call", away)
        patch.setattr(store, "script", away)
        with pytest.raises(RedisUnavailable):
            await router.look()
    await router.look()

    assert await world.status() == "timeout"

"""Tasks that are cancelled when nobody is left of their session (`cancel_if_left_s`), on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from backplane.connection_counts import ConnectionCounts, Most, Place, session_connections
from backplane.errors import RedisUnavailable
from backplane.scripts import CANCEL, END_TASK, ENQUEUE, Script
from backplane.session_log import SessionLog
from backplane.store import Store
from backplane.tasks import look_for_anybody_s
from backplane.wire import Argument
from tests.integration.tasks import KEYS, LIST, QUEUE, SETTINGS, World
from tests.integration.test_deadlines import Meddled, Router, status_is
from tests.support.valkey import Client
from tests.unit.gateway.fakes import FakeLogger

UNLIMITED = Most(0, 0, 0)
LEFT = "left t-1"


class Pod:
    """A pod as far as its sockets go."""

    def __init__(self, store: Store, pod_id: str = "pod-1", lease_s: float = 30) -> None:
        self._counts = ConnectionCounts(store, KEYS, pod_id, lease_s, FakeLogger().as_logger())
        self._log = SessionLog(store, store, KEYS, SETTINGS)

    async def connect(self, session: str = "s-1", user: str | None = None) -> None:
        """A socket of a session opens."""
        assert await self._counts.join(Place("acme", session, user), UNLIMITED) is None
        await self._log.resume(KEYS.session(LIST, session), None, user or "")

    async def leave(self, session: str = "s-1", user: str | None = None) -> None:
        """It closes."""
        self._counts.leave(Place("acme", session, user))
        await asyncio.gather(*self._counts._tasks)


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def router(store: Store) -> Router:
    return Router(store)


@pytest.fixture
def pod(store: Store) -> Pod:
    return Pod(store)


async def look(world: World, router: Router) -> None:
    """A router looks whether anybody is left, as if that were due."""
    await world.store.call("ZADD", KEYS.due(LIST), "XX", 1, LEFT)
    router.deadlines.look_at_all()
    await router.look()


async def look_at(world: World) -> float:
    """In how many seconds a router looks whether anybody is left."""
    return float(await world.store.call("ZSCORE", KEYS.due(LIST), LEFT)) / 1000 - time.time()


async def alone_for(world: World, seconds: float) -> None:
    """So much time passes in which nobody looks."""
    generation, since = (await world.record())["alone"].split()
    since = str(int(since) - int(seconds * 1000))
    await world.store.call("HSET", KEYS.task(LIST, "t-1"), "alone", f"{generation} {since}")


# When it is cancelled.


async def test_nobody_is_left(world: World, router: Router, pod: Pod) -> None:
    """A second after the last one has gone, and not before; the AES and the log are told why."""
    await pod.connect()
    async with router.running() as deadlines:
        await world.begin(left_s=1)
        await status_is(world, "t-1", "queued")
        await pod.leave()
        left_at = time.time()
        await status_is(world, "t-1", "cancelled")
        assert 1.0 <= time.time() - left_at < 2.6
        assert (deadlines.left_alone, deadlines.cancelled) == (1, 0)
    assert await world.check_ended_once() == "cancelled"
    assert (await world.log())[0]["data"]["metadata"] == {"reason": "nobody_left"}
    assert json.loads((await world.store.call("LRANGE", QUEUE, 0, 0))[0])["reason"] == "nobody_left"
    assert await world.pushed() == ["t-1", "-t-1"]


@pytest.mark.parametrize(("left_s", "every_s"), [(1, 1), (4, 1), (20, 5), (60, 15), (86_400, 15)])
async def test_how_long_it_takes(world: World, router: Router, pod: Pod, left_s: int, every_s: int) -> None:
    """It is looked for somebody now and then, and once there is nobody, exactly when the time is over."""
    assert look_for_anybody_s(left_s) == every_s
    await pod.connect()
    await world.begin(left_s=left_s)
    assert await look_at(world) == pytest.approx(every_s, abs=0.5)
    assert await world.list_due_at() == pytest.approx(time.time() + min(every_s, 10), abs=0.5)
    await look(world, router)
    assert await look_at(world) == pytest.approx(every_s, abs=0.5)
    await pod.leave()
    await look(world, router)
    assert await look_at(world) == pytest.approx(left_s, abs=0.5)
    await alone_for(world, left_s - 0.5)
    await look(world, router)
    assert await look_at(world) == pytest.approx(0.5, abs=0.3)
    assert await world.status() == "queued"
    await alone_for(world, 0.5)
    await look(world, router)

    assert await world.status() == "cancelled"


async def test_nobody_has_ever_been_there(world: World, router: Router) -> None:
    """That counts as nobody left."""
    await world.begin(left_s=60)
    await look(world, router)
    await alone_for(world, 60)
    await look(world, router)

    assert await world.status() == "cancelled"


async def test_one_that_waits_for_others(world: World, router: Router) -> None:
    """The AES hears nothing of it."""
    await world.begin("t-2")
    await world.enqueue("t-1", left_s=60)
    await look(world, router)
    await alone_for(world, 60)
    await look(world, router)

    assert await world.check_ended_once() == "cancelled"
    assert await world.pushed() == ["t-2"]


async def test_a_users_session(world: World, router: Router, pod: Pod) -> None:
    """Whosever it is."""
    await pod.connect(user="ann")
    await world.begin(user="ann", left_s=60)
    await pod.leave(user="ann")
    await look(world, router)
    await alone_for(world, 60)
    await look(world, router)

    assert await world.status() == "cancelled"


async def test_the_sockets_of_a_dead_pod(world: World, router: Router, store: Store) -> None:
    """Are gone with it, although it has told nobody."""
    dying = Pod(store, "pod-2", lease_s=0.2)
    await dying.connect()
    await world.begin(left_s=60)
    await look(world, router)
    assert "alone" not in await world.record()
    async with asyncio.timeout(5):
        while "alone" not in await world.record():
            await look(world, router)
    assert await session_connections(store, KEYS, "acme", "s-1") == 0


# When it is not.


async def test_somebody_is_left(world: World, router: Router, pod: Pod, store: Store) -> None:
    """On any pod, however long the others have been gone."""
    other = Pod(store, "pod-2")
    for one in (pod, other):
        await one.connect()
    await world.begin(left_s=60)
    await pod.leave()
    for _ in range(3):
        await look(world, router)
        assert "alone" not in await world.record()
    await other.leave()
    await look(world, router)
    assert "alone" in await world.record()


async def test_a_router_whose_clock_is_wrong(
    world: World, router: Router, pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes nobody's pod for dead: leases are by Redis's clock."""
    await pod.connect()
    await world.begin(left_s=60)
    now = time.time() + 3_600
    monkeypatch.setattr(time, "time", lambda: now)
    await look(world, router)

    assert "alone" not in await world.record()


async def test_somebody_comes_back(world: World, router: Router, pod: Pod) -> None:
    """All begins anew when he has gone again, also if nobody has looked while he was there."""
    await world.begin(left_s=60)
    for seen in (True, False):
        await look(world, router)
        await alone_for(world, 60)
        await pod.connect()
        if seen:
            await look(world, router)
            assert "alone" not in await world.record()
        await pod.leave()
        await look(world, router)
        assert await look_at(world) == pytest.approx(60, abs=0.5)
    assert await world.status() == "queued"


async def test_other_sessions(world: World, router: Router, pod: Pod) -> None:
    """Are no company."""
    await pod.connect("s-2")
    await world.begin(left_s=60)
    await look(world, router)

    assert "alone" in await world.record()


async def test_who_did_not_ask_for_it(world: World, router: Router, pod: Pod, redis_client: Client) -> None:
    """Closing a socket cancels nothing; nobody even looks."""
    await pod.connect()
    await world.begin()
    await pod.leave()
    await look(world, router)

    assert redis_client.zscore(KEYS.due(LIST), LEFT) is None
    assert (await world.status(), "alone" in await world.record()) == ("queued", False)


@pytest.mark.parametrize("how", ["answer", "cancel", "forgotten"])
async def test_a_task_that_has_ended(world: World, router: Router, redis_client: Client, how: str) -> None:
    """Nobody looks any more, and its end stays the one that it had."""
    await world.accept(left_s=60)
    await look(world, router)
    await alone_for(world, 60)
    if how == "forgotten":
        await world.settle("t-1", pushed=False)
    else:
        await world.push("t-1")
        await world.settle("t-1", pushed=True)
    if how == "answer":
        await world.answer("t-1")
    elif how == "cancel":
        await world.begin_cancel("t-1", reason="enough")
        await look(world, router)
        assert (await world.record())["reason"] == "enough"
        await world.finish_cancel("t-1")
    await look(world, router)

    assert (redis_client.zscore(KEYS.due(LIST), LEFT), router.deadlines.left_alone) == (None, 0)
    if how == "answer":
        assert await world.check_ended_once() == "completed"
        assert "alone" not in await world.record()


# Who does it.


@pytest.mark.parametrize("script", [CANCEL, ENQUEUE, END_TASK])
async def test_a_router_that_dies(world: World, store: Store, script: Script) -> None:
    """At any step: another one goes on, and it ends once."""
    meddled = Meddled(store)
    dying, other = Router(meddled.as_store()), Router(store)
    await world.begin(left_s=60)
    await look(world, dying)
    await alone_for(world, 60)

    async def die(_args: list[Argument]) -> None:
        raise RedisUnavailable("connection to Redis lost")

    meddled.before[script] = die
    await look(world, dying)
    await world.look_at_all()
    await look(world, other)
    await world.look_at_all()
    await look(world, other)

    assert await world.check_ended_once() == "cancelled"
    assert await world.pushed() == ["t-1", "-t-1"]
    assert other.deadlines.left_alone + other.deadlines.cancelled == 1


async def test_two_routers(world: World, store: Store) -> None:
    """That both think a list theirs end it once."""
    routers = [Router(store), Router(store)]
    await world.begin(left_s=60)
    await look(world, routers[0])
    await alone_for(world, 60)
    await asyncio.gather(*(look(world, one) for one in routers))

    assert await world.check_ended_once() == "cancelled"
    assert sum(one.deadlines.left_alone + one.deadlines.cancelled for one in routers) == 1
    assert await world.pushed() == ["t-1", "-t-1"]

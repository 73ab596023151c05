"""Every script that knows tasks: what is accepted, what becomes of it, and that it ends once."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from backplane.errors import (
    Busy,
    NameUsed,
    NotYours,
    QueueFull,
    RedisRefused,
    UnknownTask,
)
from backplane.keys import ANY_USER
from backplane.scripts import PUT_OFF
from backplane.store import Store
from backplane.task import ENDED, Duplicate, Found, Reserved, send_name
from backplane.task_end import end_entry
from backplane.task_queue import TaskQueue
from tests.integration.tasks import KEYS, LIST, OVER_S, QUEUE, SETTINGS, World
from tests.support.valkey import Client

NAME = send_name("key", "s-1", "n")
OTHER = send_name("message", "s-1", "n")


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


def everything(redis: Client) -> dict[bytes, Any]:
    """All that Redis holds, but how long it is kept."""
    return {key: redis.dump(key) for key in redis.scan_iter()}


def bounded(redis: Client) -> set[bytes]:
    """The keys that never expire by themselves: what is in them does."""
    return {key for key in redis.scan_iter() if redis.ttl(key) < 0}


# Accepting.


async def test_a_task_is_reserved(world: World, redis_client: Client) -> None:
    """Its record says all that was said; its session and its list know it, and its names."""
    before = time.time()
    accepted = await world.accept(names=[NAME, OTHER], user="ann")
    record = await world.record()

    assert isinstance(accepted, Reserved)
    assert (accepted.position.seq, accepted.interrupted) == (0, [])
    told = {
        name: record[name]
        for name in ("status", "cursor", "session_id", "tier", "queue", "names", "agent_id")
    }
    assert told == {
        "status": "reserved",
        "cursor": str(accepted.position),
        "session_id": "s-1",
        "tier": "free",
        "queue": QUEUE,
        "names": f"{NAME} {OTHER}",
        "agent_id": "sales",
    }
    assert int(record["accepted"]) / 1000 == pytest.approx(before, abs=1)
    assert int(record["deadline"]) / 1000 == pytest.approx(before + 30, abs=1)
    assert int(record["latest"]) / 1000 == pytest.approx(before + 60, abs=1)
    assert await world.running() == {"t-1"}
    assert await world.due_at() == pytest.approx(before + 10, abs=1)
    assert await world.list_due_at() == pytest.approx(await world.due_at(), abs=0.1)
    assert redis_client.hget(world.session(), "u") == b"ann"
    for name in (NAME, OTHER):
        assert redis_client.get(KEYS.send(LIST, name)) == b"t-1 f"


async def test_a_short_task_is_looked_at_at_its_deadline(world: World) -> None:
    """Not ten seconds later."""
    await world.accept(timeout_s=2)

    assert await world.due_at() == pytest.approx(time.time() + 2, abs=0.5)


async def test_a_list_is_looked_at_when_its_first_task_is_due(world: World) -> None:
    """A later one does not put it off."""
    await world.accept("t-1", timeout_s=2)
    first = await world.list_due_at()
    await world.accept("t-2")

    assert await world.list_due_at() == first


async def test_everything_expires(world: World, redis_client: Client) -> None:
    """But two sorted sets, from which what has ended is taken."""
    await world.begin("t-1", names=[NAME])
    await world.begin("t-2")
    await world.begin_cancel("t-2")
    await world.finish_cancel("t-2")
    await world.report("t-1", timeout=40)
    assert bounded(redis_client) - {QUEUE.encode()} == {
        KEYS.due(LIST).encode(),
        KEYS.due_lists.encode(),
    }
    await world.answer("t-1")

    assert await world.due_at("t-1") is None
    assert KEYS.due(LIST).encode() not in bounded(redis_client)


async def test_a_record_is_kept_until_its_task_has_ended_for_long(store: Store, redis_client: Client) -> None:
    """However long an agent may put its deadline off, and however long it is waited for then."""
    settings = replace(SETTINGS, task_kept_s=60, deadline_grace_s=600.0)
    world = World(store, settings)
    await world.accept(timeout_s=30, latest_s=300)

    assert redis_client.ttl(KEYS.task(LIST, "t-1")) == pytest.approx(300 + 600 + 60, abs=2)
    assert redis_client.ttl(KEYS.send(LIST, NAME)) == -2
    await world.accept("t-2", names=[NAME])
    assert redis_client.ttl(KEYS.send(LIST, NAME)) == pytest.approx(settings.idempotency_kept_s, abs=2)


async def test_fifty_at_once_under_one_name(world: World, redis_client: Client) -> None:
    """One is accepted; the others are told of it, with the same cursor and deadline."""
    sent = await asyncio.gather(*(world.accept(f"t-{number}", names=[NAME]) for number in range(50)))
    [reserved] = [one for one in sent if isinstance(one, Reserved)]
    [task_id] = await world.running()
    record = await world.record(task_id)
    others = [one for one in sent if isinstance(one, Duplicate)]

    assert len(others) == 49
    assert {one.task_id for one in others} == {task_id}
    assert {one.cursor for one in others} == {str(reserved.position)}
    assert {one.deadline for one in others} == {int(record["deadline"]) / 1000}
    assert redis_client.zcard(KEYS.due(LIST)) == 1
    assert len(list(redis_client.scan_iter(f"{KEYS.task(LIST, '')}*"))) == 1


async def test_under_either_name(world: World) -> None:
    """The same task, and a name that came with the repeated send is not taken by it."""
    await world.begin(names=[NAME])
    again = await world.accept("t-2", names=[OTHER, NAME])

    assert isinstance(again, Duplicate)
    assert (again.task_id, again.status) == ("t-1", "queued")
    assert isinstance(await world.accept("t-3", names=[OTHER]), Reserved)


async def test_a_name_of_something_else(world: World, redis_client: Client) -> None:
    """Is refused, and nothing is changed by that."""
    await world.begin(names=[NAME])
    before = everything(redis_client)
    with pytest.raises(NameUsed) as caught:
        await world.accept("t-2", names=[NAME], fingerprint="other")

    assert caught.value.task_id == "t-1"
    assert everything(redis_client) == before


async def test_a_name_whose_record_has_expired(world: World, redis_client: Client) -> None:
    """It is not accepted again: nobody knows whether it ran."""
    await world.begin(names=[NAME])
    redis_client.delete(KEYS.task(LIST, "t-1"))

    known = await world.accept("t-2", names=[NAME])
    assert isinstance(known, Duplicate)
    assert known[1:] == ("t-1", "", None, "", "", "")
    with pytest.raises(NameUsed):
        await world.accept("t-2", names=[NAME], fingerprint="other")


async def test_a_name_that_cannot_be_read(world: World, redis_client: Client) -> None:
    """What somebody else has written there is not taken for a task."""
    redis_client.set(KEYS.send(LIST, NAME), "nonsense")
    with pytest.raises(NameUsed) as caught:
        await world.accept(names=[NAME])

    assert caught.value.task_id == ""


@pytest.mark.parametrize(
    "wrong",
    [KEYS.session(LIST, "s-1"), f"{KEYS.session(LIST, 's-1')}:tasks", KEYS.due(LIST), KEYS.send(LIST, NAME)],
)
@pytest.mark.parametrize("policy", ["concurrent", "reject", "interrupt"])
async def test_wrong_types(world: World, redis_client: Client, wrong: str, policy: str) -> None:
    """Nothing is accepted, no name is taken, and Redis says why."""
    redis_client.lpush(wrong, "x")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await world.accept(names=[NAME], policy=policy)

    assert await world.record() == {}
    redis_client.delete(wrong)
    assert isinstance(await world.accept(names=[NAME], policy=policy), Reserved)


async def test_a_session_of_another_user(world: World, redis_client: Client) -> None:
    """Nothing is accepted, also not under a name that is known."""
    await world.begin(names=[NAME], user="ann")
    before = everything(redis_client)
    for user in ("bob", ""):
        with pytest.raises(NotYours):
            await world.accept("t-2", user=user, names=[NAME])
    assert everything(redis_client) == before
    assert isinstance(await world.accept("t-2", user=ANY_USER), Reserved)
    assert isinstance(await world.accept("t-3", user="ann"), Reserved)


# A busy session.


async def test_a_session_that_refuses_while_it_is_busy(world: World, redis_client: Client) -> None:
    """It is told which tasks run; nothing is changed."""
    await world.begin("t-1")
    await world.accept("t-2")
    before = everything(redis_client)
    with pytest.raises(Busy) as caught:
        await world.accept("t-3", policy="reject", names=[NAME])

    assert set(caught.value.tasks) == {"t-1", "t-2"}
    assert everything(redis_client) == before
    assert isinstance(await world.accept("t-3", session="s-2", policy="reject"), Reserved)


async def test_a_repeated_send_to_a_busy_session(world: World) -> None:
    """Is the one that keeps it busy, and is not refused for itself."""
    await world.accept(names=[NAME], policy="reject")

    assert isinstance(await world.accept("t-2", names=[NAME], policy="reject"), Duplicate)


@pytest.mark.parametrize("policy", ["reject", "interrupt"])
async def test_tasks_that_run_no_more(world: World, redis_client: Client, policy: str) -> None:
    """Ended ones and vanished ones keep nobody waiting, and are struck off."""
    await world.begin("ended")
    redis_client.hset(KEYS.task(LIST, "ended"), "status", "failed")
    await world.begin("gone")
    redis_client.delete(KEYS.task(LIST, "gone"))
    assert await world.running() == {"ended", "gone"}

    accepted = await world.accept(policy=policy)
    assert isinstance(accepted, Reserved)
    assert accepted.interrupted == []
    assert await world.running() == {"t-1"}


@pytest.mark.parametrize("policy", ["concurrent", "reject", "enqueue"])
async def test_the_most_tasks_of_a_session(store: Store, redis_client: Client, policy: str) -> None:
    """Then the others are refused; those that have ended do not count."""
    world = World(store, replace(SETTINGS, session_tasks_max=2))
    for task_id in ("t-1", "t-2"):
        await world.begin(task_id)
    before = everything(redis_client)
    with pytest.raises(Busy) as caught:
        await world.accept("t-3", policy=policy)
    assert (set(caught.value.tasks), everything(redis_client)) == ({"t-1", "t-2"}, before)
    await world.answer("t-1")
    if policy != "reject":
        assert isinstance(await world.accept("t-3", policy=policy), Reserved)
    await world.answer("t-2")

    assert isinstance(await world.accept("t-4", session="s-2"), Reserved)


async def test_an_interruption(world: World) -> None:
    """Tasks that run are cancelled from now on; one that is already is left to who does it."""
    await world.begin("working")
    await world.report("working")
    await world.accept("reserved")
    await world.begin("cancelling")
    await world.begin_cancel("cancelling", reason="by hand")
    await world.begin("elsewhere", session="s-2")
    accepted = await world.accept("t-1", policy="interrupt")

    assert isinstance(accepted, Reserved)
    assert sorted(accepted.interrupted) == ["reserved", "working"]
    for task_id in ("reserved", "working", "cancelling"):
        assert await world.status(task_id) == "cancelling"
    reasons = [
        (await world.record(task_id)).get("reason") for task_id in ("working", "cancelling", "elsewhere")
    ]
    assert reasons == ["interrupted", "by hand", None]
    assert await world.due_at("working") == pytest.approx(time.time() + 10, abs=1)
    assert (await world.status("t-1"), await world.status("elsewhere")) == ("reserved", "queued")


async def test_an_interruption_of_as_many_as_may_run(store: Store) -> None:
    """It takes their place, so there is room for it."""
    world = World(store, replace(SETTINGS, session_tasks_max=1))
    await world.begin("t-1")
    accepted = await world.accept("t-2", policy="interrupt")
    assert isinstance(accepted, Reserved)
    assert accepted.interrupted == ["t-1"]


async def test_many_interruptions_at_once(world: World) -> None:
    """Each task is interrupted by one send; the last one to come runs."""
    sent = await asyncio.gather(*(world.accept(f"t-{number}", policy="interrupt") for number in range(20)))
    interrupted = [task for one in sent if isinstance(one, Reserved) for task in one.interrupted]
    statuses = [await world.status(f"t-{number}") for number in range(20)]

    assert len(set(interrupted)) == len(interrupted) == 19
    assert sorted(statuses) == ["cancelling"] * 19 + ["reserved"]


# What became of a reserved task.


async def test_a_task_that_was_pushed(world: World, redis_client: Client) -> None:
    """Waits, and is looked at again when it has to have ended; its name stays taken."""
    await world.accept(names=[NAME])
    await world.settle("t-1", pushed=True)
    record = await world.record()

    assert record["status"] == "queued"
    assert await world.due_at() == int(record["deadline"]) / 1000
    assert redis_client.exists(KEYS.send(LIST, NAME))


async def test_a_task_that_was_not_pushed(world: World, redis_client: Client) -> None:
    """Nothing of it is left, and both its names are free."""
    new = world.new(names=[NAME, OTHER])
    await world.tasks.accept(new)
    await world.tasks.forget(new)

    assert (await world.record(), await world.running(), await world.due_at()) == ({}, set(), None)
    assert not redis_client.exists(KEYS.send(LIST, NAME), KEYS.send(LIST, OTHER))
    await world.tasks.forget(new)
    assert isinstance(await world.accept("t-2", names=[NAME, OTHER]), Reserved)


async def test_a_name_that_another_task_has_now(world: World, redis_client: Client) -> None:
    """Is not freed with a task that had it before; ids that begin alike are different ones."""
    await world.accept("t-1", names=[NAME])
    redis_client.set(KEYS.send(LIST, NAME), "t-10 f")
    await world.settle("t-1", pushed=False)

    assert await world.record() == {}
    assert redis_client.get(KEYS.send(LIST, NAME)) == b"t-10 f"


@pytest.mark.parametrize("pushed", [True, False])
@pytest.mark.parametrize("then", ["queued", "working", "cancelling", "completed", "cancelled"])
async def test_a_task_that_is_further(world: World, redis_client: Client, then: str, pushed: bool) -> None:
    """Who comes late with such news changes nothing."""
    await world.accept(names=[NAME])
    redis_client.hset(KEYS.task(LIST, "t-1"), "status", then)
    before = everything(redis_client)
    await world.settle("t-1", pushed=pushed)

    assert everything(redis_client) == before


async def test_a_report_before_it_was_settled(world: World) -> None:
    """So it was pushed; it is waited for until its deadline, not looked at every other second until then."""
    await world.accept()
    await world.report("t-1")
    record = await world.record()

    assert record["status"] == "working"
    assert await world.due_at() == int(record["deadline"]) / 1000
    await world.settle("t-1", pushed=False)
    assert await world.status() == "working"


async def test_an_answer_before_it_was_settled(world: World) -> None:
    """Ends it like any other."""
    await world.accept()
    await world.answer("t-1")
    await world.settle("t-1", pushed=False)

    assert await world.check_ended_once() == "completed"


# What is due.


async def test_due_in_order_and_up_to_a_limit(world: World, redis_client: Client) -> None:
    """The earliest first, a hundred at a time; and when the next one is."""
    for number in range(105):
        await world.accept(f"t-{number}", session=f"s-{number}")
        redis_client.zadd(KEYS.due(LIST), {f"t-{number}": 1_000 + number})
    following, due = await world.due_tasks.due(LIST)
    assert [one.task_id for one in due] == [f"t-{number}" for number in range(100)]
    assert following == 1.1
    _, rest = await world.due_tasks.due(LIST)
    assert [one.task_id for one in rest] == [f"t-{number}" for number in range(100, 105)]
    following, none = await world.due_tasks.due(LIST)

    assert none == []
    assert following == pytest.approx(time.time() + 2, abs=1)


async def test_what_is_told_of_a_due_task(world: World) -> None:
    """All that its end needs."""
    await world.begin(names=[NAME])
    await world.begin_cancel("t-1", reason="enough")
    await world.look_at_all()
    _, [due] = await world.due_tasks.due(LIST)

    assert due[:9] == ("t-1", "cancelling", "s-1", "free", QUEUE, NAME, "enough", "agent-sales", "sales")


async def test_nothing_is_due(world: World) -> None:
    """A list without tasks says so, one with later ones says when."""
    assert await world.due_tasks.due(LIST) == (None, [])
    await world.accept()

    assert await world.due_tasks.due(LIST) == (await world.due_at(), [])


async def test_a_task_that_is_looked_at_is_looked_at_again(world: World) -> None:
    """In two seconds, in case that who looks now dies."""
    await world.accept()
    await world.look_at_all()
    _, due = await world.due_tasks.due(LIST)

    assert len(due) == 1
    assert await world.due_at() == pytest.approx(time.time() + 2, abs=1)


@pytest.mark.parametrize("how", ["gone", "ended"])
async def test_a_task_that_needs_nothing(world: World, redis_client: Client, how: str) -> None:
    """Is struck off, and hides no other one."""
    for task_id in ("t-1", "t-2"):
        await world.accept(task_id)
    if how == "gone":
        redis_client.delete(KEYS.task(LIST, "t-1"))
    else:
        redis_client.hset(KEYS.task(LIST, "t-1"), "status", "completed")
    await world.look_at_all()
    _, due = await world.due_tasks.due(LIST)

    assert [one.task_id for one in due] == ["t-2"]
    assert await world.due_at("t-1") is None


# When a list is looked at.


@pytest.mark.parametrize(
    ("score", "next_at", "then"),
    [
        (500, 700, 700),  # nobody has touched it
        (500, "", None),
        (400, 700, 400),  # a send has moved it
        (400, "", 400),
        (400, 300, 300),  # … and an earlier task is due before that
        (None, "", None),
        (None, 700, 700),
    ],
)
async def test_put_off(
    store: Store, redis_client: Client, score: int | None, next_at: int | str, then: int | None
) -> None:
    """To when its next task is due, and never to later than a send says that came in between."""
    if score is not None:
        redis_client.zadd(KEYS.due_lists, {LIST: score})
    await store.script(PUT_OFF, [KEYS.due_lists], [LIST, 500, next_at])

    assert redis_client.zscore(KEYS.due_lists, LIST) == then


# Pushing.


async def test_an_action_is_pushed_once(world: World, redis_client: Client) -> None:
    """However often it is tried, and by however many."""
    assert all(await asyncio.gather(*(world.push("t-1") for _ in range(20))))
    assert await world.queue.push(QUEUE, "t-1", "cancel", b"stop")
    assert await world.push("t-2")

    assert redis_client.lrange(QUEUE, 0, -1) == [b"t-2", b"stop", b"t-1"]
    assert await world.queue.length(QUEUE) == 3
    assert 0 < redis_client.ttl(KEYS.action_mark(QUEUE, "t-1", "run")) <= 6 * 3600


async def test_an_action_that_was_taken_is_not_pushed_again(world: World, redis_client: Client) -> None:
    """The mark stays when the queue is empty."""
    await world.push("t-1")
    redis_client.delete(QUEUE)
    assert await world.push("t-1")

    assert redis_client.llen(QUEUE) == 0


async def test_a_void_action(world: World, redis_client: Client) -> None:
    """Is never pushed; one that was pushed cannot be made void. Void is void for its own kind only."""
    assert await world.queue.void(QUEUE, "t-1", "run")
    assert not await world.push("t-1")
    assert await world.queue.void(QUEUE, "t-1", "run")
    assert redis_client.llen(QUEUE) == 0
    assert await world.queue.push(QUEUE, "t-1", "cancel", b"stop")
    assert await world.push("t-2")
    assert not await world.queue.void(QUEUE, "t-2", "run")

    assert redis_client.llen(QUEUE) == 2
    assert 0 < redis_client.ttl(KEYS.action_mark(QUEUE, "t-1", "run")) <= 6 * 3600


async def test_pushed_or_void(world: World, redis_client: Client) -> None:
    """A push and a router that gives the task up race: one of them has it, and both know which."""
    for number in range(50):
        task_id = f"t-{number}"
        race: list[Awaitable[bool]] = [world.push(task_id), world.queue.void(QUEUE, task_id, "run")]
        if number % 2:
            race.reverse()
        assert sorted(await asyncio.gather(*race)) == [False, True]
    pushed = [task.decode() for task in redis_client.lrange(QUEUE, 0, -1)]

    assert len(pushed) == 25


async def test_a_full_queue(store: Store, redis_client: Client) -> None:
    """Takes nothing and notes nothing; what it has taken before it has still, and void is void."""
    queue = TaskQueue(store, KEYS, 1)
    assert await queue.push(QUEUE, "t-1", "run", b"1")
    with pytest.raises(QueueFull):
        await queue.push(QUEUE, "t-2", "run", b"2")
    assert await queue.push(QUEUE, "t-1", "run", b"1")
    assert await queue.void(QUEUE, "t-3", "run")
    assert not await queue.push(QUEUE, "t-3", "run", b"3")
    redis_client.delete(QUEUE)

    assert await queue.push(QUEUE, "t-2", "run", b"2")
    assert redis_client.lrange(QUEUE, 0, -1) == [b"2"]


# Cancelling.


async def test_a_cancel(world: World, redis_client: Client) -> None:
    """From its first half on nothing of the task is shown; its second half ends it."""
    await world.begin()
    due = await world.begin_cancel("t-1", reason="enough")
    assert due[:9] == ("t-1", "queued", "s-1", "free", QUEUE, "", "enough", "agent-sales", "sales")
    assert await world.due_at() == pytest.approx(time.time() + 2, abs=1)
    assert await world.list_due_at() == pytest.approx(time.time() + 2, abs=1)
    await world.report("t-1")
    assert await world.log() == []
    assert await world.finish_cancel("t-1") == ""
    assert await world.finish_cancel("t-1") == "cancelled"

    assert await world.check_ended_once() == "cancelled"
    assert (await world.log())[0]["data"]["metadata"] == {"reason": "enough"}
    [cancel, _run] = redis_client.lrange(QUEUE, 0, -1)
    assert json.loads(cancel)["reason"] == "enough"


@pytest.mark.parametrize("then", ["completed", "failed", "timeout", "cancelled"])
async def test_a_cancel_of_what_has_ended(world: World, redis_client: Client, then: str) -> None:
    """Says how, and changes nothing."""
    await world.begin()
    await world.answer("t-1", status=then)
    before = everything(redis_client)
    due = await world.begin_cancel("t-1", reason="enough")

    assert due.status == then
    del before[KEYS.due_lists.encode()]
    after = everything(redis_client)
    del after[KEYS.due_lists.encode()]
    assert after == before


async def test_a_second_cancel(world: World) -> None:
    """Has no other reason than the first: the record and the last message say the same."""
    await world.begin()
    await world.begin_cancel("t-1", reason="first")
    again = await world.begin_cancel("t-1", reason="second")
    await world.finish_cancel("t-1")

    assert (again.status, again.reason) == ("cancelling", "first")
    [message] = await world.log()
    assert message["data"]["metadata"]["reason"] == (await world.record())["reason"] == "first"


@pytest.mark.parametrize(
    ("owner", "user", "may"),
    [
        ("ann", "ann", True),
        ("ann", "bob", False),
        ("ann", "", False),
        ("ann", ANY_USER, True),
        ("", "bob", True),
        (ANY_USER, "bob", True),
    ],
)
async def test_whose_task_may_be_cancelled(world: World, owner: str, user: str, may: bool) -> None:
    """Its session's user's, and anybody's where the session is nobody's."""
    await world.begin(user=owner)
    if may:
        assert (await world.begin_cancel("t-1", user)).status == "queued"
    else:
        with pytest.raises(NotYours):
            await world.begin_cancel("t-1", user)
        assert await world.status() == "queued"


async def test_a_cancel_of_what_is_gone(world: World, redis_client: Client) -> None:
    """Makes nothing."""
    with pytest.raises(UnknownTask):
        await world.tasks.begin_cancel(Found(LIST, {"session_id": "s-1"}), "t-1", "", "")

    assert redis_client.exists(KEYS.task(LIST, "t-1"), KEYS.due(LIST)) == 0
    assert await world.finish_cancel("t-1") == "unknown"
    assert await world.log() == []


# Ends that the AES does not make.


async def test_a_deadline_that_is_not_over(world: World) -> None:
    """Ends nothing; one that was put off meanwhile neither."""
    await world.begin("t-1")
    assert await world.time_out("t-1") == "queued"
    await world.begin("t-2", timeout_s=OVER_S)
    await world.report("t-2", timeout=50)
    assert await world.time_out("t-2") == "working"

    assert [message["type"] for message in await world.log()] == ["task_update"]


async def test_the_grace(store: Store, redis_client: Client) -> None:
    """Is waited for after the deadline."""
    world = World(store, replace(SETTINGS, deadline_grace_s=60.0))
    await world.begin(timeout_s=-58)
    assert await world.due_at() == int((await world.record())["deadline"]) / 1000 + 60
    assert await world.time_out("t-1") == "queued"
    redis_client.hincrby(KEYS.task(LIST, "t-1"), "deadline", -3_000)

    assert await world.time_out("t-1") == ""


@pytest.mark.parametrize("status", ["reserved", "queued", "working", "input_required"])
async def test_a_deadline_that_is_over(world: World, redis_client: Client, status: str) -> None:
    """Ends a task that runs, whatever it does; once."""
    await world.begin(timeout_s=OVER_S)
    redis_client.hset(KEYS.task(LIST, "t-1"), "status", status)
    assert [await world.time_out("t-1") for _ in range(2)] == ["", "timeout"]

    assert await world.check_ended_once() == "timeout"


async def test_a_deadline_of_what_is_being_cancelled(world: World) -> None:
    """It ends as cancelled."""
    await world.begin(timeout_s=OVER_S)
    await world.begin_cancel("t-1")

    assert await world.time_out("t-1") == "cancelling"
    assert await world.finish_cancel("t-1") == ""
    assert await world.check_ended_once() == "cancelled"


async def test_an_end_that_is_wanted_of_another_status(world: World) -> None:
    """Is none."""
    await world.begin(timeout_s=OVER_S)
    entry = end_entry("cancelled", "t-1", "s-1", "acme", "free", "", time.time())
    assert await world.end(entry, "cancelling") == "queued"
    assert await world.end(entry._replace(task_id="gone"), "") == "unknown"

    assert await world.log() == []


@pytest.mark.parametrize("part", ["", ":log", ":seen"])
async def test_a_session_that_cannot_be_written(world: World, redis_client: Client, part: str) -> None:
    """The end is refused, and made once it can be."""
    await world.begin(timeout_s=OVER_S)
    key = f"{world.session()}{part}"
    kept = redis_client.dump(key)
    redis_client.delete(key)
    redis_client.set(key, "x")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await world.time_out("t-1")
    assert await world.status() == "queued"
    redis_client.delete(key)
    if kept is not None:
        redis_client.restore(key, 0, kept)

    assert await world.time_out("t-1") == ""
    assert await world.check_ended_once() == "timeout"


async def test_an_end_is_published(world: World, redis_client: Client) -> None:
    """As the router publishes an answer, with its position."""
    await world.begin(timeout_s=OVER_S)
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(world.session())
        pubsub.get_message(timeout=5)
        await world.time_out("t-1")
        message = pubsub.get_message(timeout=5)

    epoch = redis_client.hget(world.session(), "e")
    assert message["data"].startswith(b"%b:1\n{" % epoch)


# What the AES says.


async def test_an_answer(world: World) -> None:
    """How it ended, when, where, and what it has used."""
    await world.begin()
    await world.report("t-1", status="input_required")
    record = await world.record()
    assert (record["status"], record["first"], record["last"]) == ("input_required", "1", "1")
    await world.answer("t-1", execution_time=1.5, tokens_used={"total": 7})
    record = await world.record()

    assert await world.check_ended_once() == "completed"
    assert json.loads(record["usage"]) == {
        "processing_time": 1.5,
        "tokens_used": {"total": 7},
        "model_used": None,
    }
    assert record["epoch"] == record["cursor"].split(":")[0]


async def test_a_task_starts_once(world: World, redis_client: Client) -> None:
    """With the first that is heard of it."""
    await world.begin()
    await world.report("t-1")
    redis_client.hset(KEYS.task(LIST, "t-1"), "started", 5)
    await world.report("t-1")
    await world.answer("t-1")

    assert (await world.record())["started"] == "5"


async def test_everything_of_a_task_in_one_batch(world: World) -> None:
    """Two reports, an answer, and what is late by then; and another task's beside."""
    await world.begin("t-1")
    await world.begin("t-2")
    for task_id in ("t-1", "t-2"):
        await world.say(task_id, action_type="execution.progress", data={"step": "a", "timeout": 50})
        await world.say(task_id, action_type="execution.progress", data={"step": "b"})
    await world.say("t-1", status="completed", result={"response": "1"})
    await world.say("t-1", action_type="execution.progress", data={"step": "late"})
    await world.say("t-1", status="failed")
    await world.move()

    assert await world.check_ended_once("t-1") == "completed"
    assert (await world.record("t-1"))["late"] == "2"
    assert len(await world.log()) == 5
    assert await world.status("t-2") == "working"
    assert (await world.due_at("t-2")) == pytest.approx(time.time() + 50, abs=2)


@pytest.mark.parametrize(("asked_s", "granted_s"), [(40, 40), (1_000, 60), (5, 30), (0.001, 30)])
async def test_more_time(world: World, asked_s: float, granted_s: float) -> None:
    """From now on, up to the latest; a deadline never comes nearer."""
    await world.begin(timeout_s=30, latest_s=60)
    began = time.time()
    await world.report("t-1", timeout=asked_s)
    deadline = int((await world.record())["deadline"]) / 1000

    assert deadline == pytest.approx(began + granted_s, abs=1)
    assert await world.due_at() == deadline


async def test_what_was_started_elsewhere(world: World, redis_client: Client) -> None:
    """Is shown, and makes no record."""
    await world.report("t-9", timeout=5)
    await world.answer("t-9")
    await world.answer("t-9", status="failed")

    assert await world.ends() == [("t-9", "completed"), ("t-9", "failed")]
    assert (await world.record("t-9"), redis_client.exists(KEYS.due(LIST))) == ({}, 0)


@pytest.mark.parametrize("wrong", [":tasks", "due"])
async def test_what_is_beside_the_log_and_cannot_be_written(
    world: World, redis_client: Client, wrong: str
) -> None:
    """Keeps no list waiting: the answer gets through, and the record is right."""
    await world.begin()
    key = KEYS.due(LIST) if wrong == "due" else f"{world.session()}{wrong}"
    redis_client.set(key, "x")
    await world.report("t-1", timeout=50)
    await world.answer("t-1")

    assert redis_client.llen(LIST) == 0
    assert (await world.status(), await world.ends()) == ("completed", [("t-1", "completed")])


async def test_a_record_that_cannot_be_read(world: World, redis_client: Client) -> None:
    """The task is then one of elsewhere."""
    await world.begin()
    redis_client.delete(KEYS.task(LIST, "t-1"))
    redis_client.set(KEYS.task(LIST, "t-1"), "x")
    await world.answer("t-1")

    assert await world.ends() == [("t-1", "completed")]
    assert redis_client.llen(LIST) == 0


# Too late.


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_what_is_late(world: World, end: str) -> None:
    """Is counted and the answer kept with the task; not shown, and its list moves on."""
    await world.begin(timeout_s=OVER_S)
    if end == "cancel":
        await world.begin_cancel("t-1")
        await world.finish_cancel("t-1")
    else:
        await world.time_out("t-1")
    told = await world.log()
    await world.report("t-1", timeout=50)
    await world.answer("t-1", result={"response": "too late"})
    await world.answer("t-1", status="failed")
    record = await world.record()

    assert await world.log() == told
    assert (record["late"], world.transfer.counts.late) == ("3", 3)
    assert b"too late" not in record["late_answer"].encode()
    assert json.loads(record["late_answer"].removesuffix(",") + "}}")["type"] == "error"
    await world.check_ended_once()


async def test_a_late_answer_that_is_too_large(world: World) -> None:
    """Is counted, not kept."""
    await world.begin(timeout_s=OVER_S)
    await world.time_out("t-1")
    await world.answer("t-1", result={"response": "x" * 70_000})
    record = await world.record()

    assert (record["late"], record.get("late_answer")) == ("1", None)


async def test_late_answers_that_are_shown(store: Store) -> None:
    """After a timeout, once each; the task stays what it was. After a cancel nothing is."""
    world = World(store, replace(SETTINGS, late_answers="show"))
    await world.begin("t-1", timeout_s=OVER_S)
    await world.time_out("t-1")
    for _ in range(2):
        await world.answer("t-1", action_id="same")
    await world.report("t-1")
    assert await world.ends() == [("t-1", "timeout"), ("t-1", "completed")]
    assert (await world.status(), len(await world.log())) == ("timeout", 2)
    assert (await world.record())["last"] == "1"
    await world.begin("t-2", session="s-2")
    await world.begin_cancel("t-2")
    await world.finish_cancel("t-2")
    await world.answer("t-2", session="s-2")

    assert await world.ends("s-2") == [("t-2", "cancelled")]


async def test_a_late_answer_does_not_keep_its_record(world: World, redis_client: Client) -> None:
    """It goes when it would have gone."""
    await world.begin()
    await world.answer("t-1")
    redis_client.expire(KEYS.task(LIST, "t-1"), 50)
    await world.answer("t-1", status="failed")

    assert (await world.record())["late"] == "1"
    assert redis_client.ttl(KEYS.task(LIST, "t-1")) <= 50


# An error half-way.


@pytest.mark.parametrize("end", ["answer", "deadline", "cancel"])
async def test_an_end_that_was_noted_only_in_the_log(world: World, redis_client: Client, end: str) -> None:
    """Its digest is known and its task runs: whoever tries again notes it, and appends nothing."""
    await world.begin(timeout_s=OVER_S)
    key = KEYS.task(LIST, "t-1")
    if end == "cancel":
        await world.begin_cancel("t-1")
    ends: dict[str, Callable[[], Awaitable[Any]]] = {
        "answer": lambda: world.answer("t-1", action_id="same"),
        "deadline": lambda: world.time_out("t-1"),
        "cancel": lambda: world.finish_cancel("t-1"),
    }
    before = {name: redis_client.dump(name) for name in (key, f"{world.session()}:tasks", KEYS.due(LIST))}
    await ends[end]()
    for name, value in before.items():
        redis_client.restore(name, 0, value, replace=True)
    redis_client.expire(key, 50)
    await ends[end]()
    record = await world.record()

    assert [status for _, status in await world.ends()] == [record["status"]]
    assert record["ended"]
    assert (await world.due_at(), await world.running()) == (None, set())


# One end.

STEPS = ("answer", "copy", "begin cancel", "finish cancel", "deadline")


async def take(world: World, step: str, task_id: str, session: str) -> None:
    """One of those who race for a task's end makes its step."""
    if step in {"answer", "copy"}:
        await world.answer(task_id, session, status="failed", action_id=f"{task_id}-a")
    elif step == "other answer":
        await world.answer(task_id, session)
    elif step == "report":
        await world.report(task_id, session, timeout=5)
    elif step == "begin cancel":
        await world.begin_cancel(task_id)
    elif step == "finish cancel":
        await world.finish_cancel(task_id)
    else:
        await world.time_out(task_id, session)


@pytest.mark.parametrize("first", STEPS)
async def test_whoever_comes_first(world: World, first: str) -> None:
    """Answer, its copy, cancel in two steps and deadline in every order: one end, the first one's."""
    decides = {"answer": "failed", "copy": "failed", "begin cancel": "cancelled", "deadline": "timeout"}
    orders = [order for order in itertools.permutations(STEPS) if order[0] == first]
    for number, order in enumerate(orders):
        task_id, session = f"t-{number}", f"s-{number}"
        await world.begin(task_id, session=session, timeout_s=OVER_S)
        for step in order:
            await take(world, step, task_id, session)
        await world.finish_cancel(task_id)  # as a router does for one that was left cancelling
        winner = next(step for step in order if step in decides)
        assert await world.check_ended_once(task_id, session) == decides[winner], order


@pytest.mark.parametrize("seed", range(5))
async def test_all_at_once(world: World, seed: int) -> None:
    """Nobody waits for anybody: still one end."""
    choose = random.Random(seed)
    steps = [*STEPS, "other answer", "report", "finish cancel", "deadline"]
    for number in range(20):
        task_id, session = f"t-{number}", f"s-{number}"
        await world.begin(task_id, session=session, timeout_s=OVER_S)
        choose.shuffle(steps)
        await asyncio.gather(*(take(world, step, task_id, session) for step in steps))
        await world.finish_cancel(task_id)
        await world.check_ended_once(task_id, session)


@pytest.mark.parametrize("seed", range(12))
async def test_any_sequence(world: World, seed: int) -> None:
    """Sends, reports, answers, cancels, deadlines, routers, and batches of any size, in any order.

    Every task that was accepted has one end in the end, which its record tells; one that was forgotten, as
    it was never pushed, has none.
    """
    choose = random.Random(seed)
    accepted: dict[str, str] = {}
    for number in range(150):
        if not accepted or choose.random() < 0.15:
            session = choose.choice(("s-1", "s-2"))
            if await send(world, f"t-{number}", session, choose):
                accepted[f"t-{number}"] = session
        else:
            task_id = choose.choice(list(accepted))
            await take_any(world, task_id, accepted[task_id], choose)
    await world.move()
    await look(world)
    for task_id, session in accepted.items():
        if await world.status(task_id) not in {"", *ENDED}:
            await world.answer(task_id, session)
    ended = {task_id for task_id in accepted if await world.was_accepted(task_id)}
    for task_id in ended:
        await world.check_ended_once(task_id, accepted[task_id])

    told = [task_id for session in ("s-1", "s-2") for task_id, _ in await world.ends(session)]
    assert sorted(told) == sorted(ended)
    assert await world.due_tasks.due(LIST) == (None, [])
    assert await world.running("s-1") == await world.running("s-2") == set()


async def take_any(world: World, task_id: str, session: str, choose: random.Random) -> None:
    """Any step; an AES that has not got the action says nothing, and nobody asks of a task that is gone."""
    step = choose.choice([*STEPS, "other answer", "report", "say", "say", "router"])
    pushed = await world.store.call("GET", KEYS.action_mark(QUEUE, task_id, "run")) == b"pushed"
    if step == "router":
        await look(world)
    elif step == "say" and pushed:
        await world.say(task_id, session, status=choose.choice(("completed", "timeout", "cancelled")))
    elif (step in {"answer", "copy", "other answer", "report"} and pushed) or (
        step in {"begin cancel", "finish cancel", "deadline"} and await world.record(task_id)
    ):
        await take(world, step, task_id, session)


async def send(world: World, task_id: str, session: str, choose: random.Random) -> bool:
    """A send of any policy, perhaps repeated, whose pod may die before it pushes; whether it is a new one."""
    names = [send_name("key", session, str(choose.randrange(4)))] if choose.random() < 0.5 else []
    policy = choose.choice(("concurrent", "reject", "interrupt"))
    timeout_s = choose.choice((OVER_S, OVER_S, 30.0))
    try:
        sent = await world.accept(task_id, session=session, names=names, policy=policy, timeout_s=timeout_s)
    except Busy:
        return False
    if isinstance(sent, Duplicate):
        return False
    for interrupted in sent.interrupted:
        if choose.random() < 0.5:
            await world.finish_cancel(interrupted)
    if choose.random() < 0.7:
        await world.push(task_id)
    return True


async def look(world: World) -> None:
    """What a router does with all that is due, as if it were."""
    await world.look_at_all()
    _, found = await world.due_tasks.due(LIST)
    for due in found:
        if due.status == "reserved":
            void = await world.queue.void(due.queue, due.task_id, "run")
            await world.tasks.settle(LIST, due, pushed=not void)
        elif due.status == "cancelling":
            await world.finish_cancel(due.task_id)
        else:
            await world.time_out(due.task_id, due.session_id)


# Finding.


async def test_the_newest_task(world: World) -> None:
    """The one that runs and was accepted last, with the session's cursor before it; none if all ended."""
    assert await world.tasks.newest(LIST, "s-1") is None
    await world.accept("t-1")
    await asyncio.sleep(0.005)
    accepted = await world.accept("t-2")
    await asyncio.sleep(0.005)
    await world.accept("t-3", session="s-2")
    assert isinstance(accepted, Reserved)
    assert await world.tasks.newest(LIST, "s-1") == ("t-2", str(accepted.position))
    for task_id, left in (("t-2", "t-1"), ("t-1", None)):
        entry = end_entry("cancelled", task_id, "s-1", "acme", "free", "", time.time())
        assert await world.tasks.end(LIST, entry, "reserved", time.time()) == ""
        newest = await world.tasks.newest(LIST, "s-1")
        assert (newest and newest[0]) == left

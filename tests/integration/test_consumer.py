"""The router in-process: every callback of every list reaches its log, once and in order."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import structlog
from redis.exceptions import RedisError
from structlog.testing import capture_logs

from backplane.errors import RedisUnavailable
from backplane.redis_client import parse_redis_url
from backplane.router.backlog import Backlog
from backplane.router.consumer import Consumer
from backplane.router.leases import owner
from backplane.settings import Settings
from tests.support.valkey import Client, Valkey, eventually

SETTINGS = Settings(sweep_interval_s=3_600)  # what is found is found by wake-up, unless a test says otherwise
QUIET = replace(SETTINGS, router_lease_s=60, probe_interval_s=60)  # a router that says nothing unasked
KEYS = SETTINGS.keys()


@asynccontextmanager
async def routing(
    url: str, settings: Settings = SETTINGS, kind: type[Consumer] = Consumer, router_id: str = "r-1"
) -> AsyncIterator[Consumer]:
    """A router whose first sweep is over; no part of it may have died by the end."""
    consumer = kind(parse_redis_url(url), KEYS, settings, structlog.get_logger(), router_id)
    swept, sweep = asyncio.Event(), consumer._sweep

    async def sweep_and_tell() -> None:
        await sweep()
        swept.set()

    consumer._sweep = sweep_and_tell  # type: ignore[method-assign]
    tasks = [asyncio.create_task(work, name=name) for name, work in consumer.tasks().items()]
    try:
        await asyncio.wait_for(swept.wait(), 5)
        yield consumer
        assert not [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def callback(n: int, session_id: str = "s-1") -> bytes:
    """The n-th answer."""
    return json.dumps(
        {
            "action_id": f"a-{session_id}-{n}",
            "task_id": f"t-{n}",
            "session_id": session_id,
            "status": "completed",
            "result": {"response": str(n)},
        }
    ).encode()


def push(redis: Client, tenant: str, *callbacks: bytes | str) -> None:
    """What the AES does."""
    if callbacks:
        redis.lpush(KEYS.callbacks(tenant), *callbacks)


def answers(redis: Client, tenant: str = "acme", session_id: str = "s-1") -> list[int]:
    """What a session's log says, in order."""
    log = redis.lrange(f"{KEYS.session(KEYS.callbacks(tenant), session_id)}:log", 0, -1)
    return [int(json.loads(entry + b'"":0}}')["data"]["response"]) for entry in log]


async def arrived(redis: Client, numbers: list[int], tenant: str = "acme", within_s: float = 5) -> None:
    """Return when the log of the tenant's session says exactly this."""
    await eventually(lambda: answers(redis, tenant) == numbers, within_s)


def reasons(redis: Client, tenant: str = "acme") -> list[str]:
    letters = redis.xrange(KEYS.dead_letters(KEYS.callbacks(tenant)))
    return [fields[b"reason"].decode() for _, fields in letters]


def calls(redis: Client, command: str) -> int:
    """How often a command was called since the statistics were reset."""
    stats: dict[str, Any] = redis.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})
    return int(stats["calls"])


# Wake-up.


async def test_an_unknown_tenant_is_found_at_once(redis_url: str, redis_client: Client) -> None:
    """A tenant's very first callback needs no registration and no sweep."""
    async with routing(redis_url):
        push(redis_client, "never-seen", callback(1))
        await arrived(redis_client, [1], "never-seen", within_s=1)
        assert redis_client.zrange(KEYS.callback_lists, 0, -1) == [b"orchestrator:never-seen:callbacks"]


async def test_callbacks_from_before_the_router_are_found(redis_url: str, redis_client: Client) -> None:
    """What was pushed while no router ran is moved by the next one, known tenants' and unknown ones'."""
    redis_client.zadd(
        KEYS.callback_lists, {KEYS.callbacks("known"): int(time.time()), "gone": int(time.time())}
    )
    for tenant in ("known", *(f"t-{n}" for n in range(50))):
        push(redis_client, tenant, callback(1), callback(2))
    for n in range(2_000):
        redis_client.set(f"other:{n}", "keys between them")
    async with routing(redis_url):
        for tenant in ("known", *(f"t-{n}" for n in range(50))):
            await arrived(redis_client, [1, 2], tenant, within_s=2)


async def test_callbacks_pushed_while_the_link_was_cut_are_found(
    redis_url: str, redis_client: Client
) -> None:
    """Nobody told the router of them; connecting again looks for all lists."""
    async with routing(redis_url) as router:
        [victim] = [
            client["id"] for client in redis_client.client_list() if client["name"] == "orchestrator-router"
        ]
        with redis_client.pipeline(transaction=True) as together:
            together.client_kill_filter(_id=victim)
            together.lpush(KEYS.callbacks("acme"), callback(1))
            together.lpush(KEYS.callbacks("unknown"), callback(2))
            together.execute()
        await arrived(redis_client, [1], within_s=1)
        await arrived(redis_client, [2], "unknown", within_s=1)
        assert router.store.connects == 2
        push(redis_client, "later", callback(3))
        await arrived(redis_client, [3], "later", within_s=1)


class Deaf(Consumer):
    """A router that no wake-up reaches."""

    def _on_push(self, push: list[Any]) -> None:
        """Hears nothing."""


async def test_what_no_wake_up_told_of_is_found_by_the_sweep(redis_url: str, redis_client: Client) -> None:
    """A lost wake-up delays a callback, it does not lose it."""
    async with routing(redis_url, replace(SETTINGS, sweep_interval_s=0.1), Deaf):
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [1], within_s=2)


async def test_a_long_list_is_moved_to_its_end(redis_url: str, redis_client: Client) -> None:
    """What one turn leaves is taken in the next, whether or not anything wakes the router again."""
    push(redis_client, "acme", *map(callback, range(100)))
    async with routing(redis_url, replace(SETTINGS, transfer_batch=2), Deaf):
        await arrived(redis_client, list(range(100)))


async def test_a_wake_up_during_a_turn_is_not_lost(redis_url: str, redis_client: Client) -> None:
    """A callback that comes when the turn has looked for the last time is found by the next turn."""
    async with routing(redis_url) as router:
        drain = router.transfer.drain
        turns = 0

        async def drain_slowly(callback_list: str, tenant_id: str, batches: int, backlog: Backlog) -> bool:
            nonlocal turns
            turns += 1
            more = await drain(callback_list, tenant_id, batches, backlog)
            if turns == 1:
                push(redis_client, "acme", callback(2))
                await router.store.call("EXISTS", "acme")  # its wake-up comes before the answer
            return more

        router.transfer.drain = drain_slowly  # type: ignore[method-assign, assignment]
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [1, 2], within_s=1)


async def test_own_writes_do_not_wake_the_router(redis_url: str, redis_client: Client) -> None:
    """One callback costs one look and one move, and then there is quiet."""
    async with routing(redis_url, QUIET):
        push(redis_client, "acme", callback(0))  # the scripts are loaded, the list is known
        await arrived(redis_client, [0])
        await asyncio.sleep(0.2)
        redis_client.config_resetstat()
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [0, 1])
        await asyncio.sleep(0.5)
        looks = calls(redis_client, "zrange")  # at the lists that have tasks that are due
        assert calls(redis_client, "evalsha") - looks == 2
        assert calls(redis_client, "llen") == 2  # one within the transfer script, one to watch the list
        assert calls(redis_client, "lpush") == 1


# Order, and nothing lost or doubled.


async def test_order_of_many_callbacks_of_many_sessions(redis_url: str, redis_client: Client) -> None:
    """Each session's log has its callbacks in the order of the list."""
    async with routing(redis_url, replace(SETTINGS, transfer_batch=50)) as router:
        for start in range(0, 200, 10):
            push(
                redis_client,
                "acme",
                *(callback(n, f"s-{s}") for n in range(start, start + 10) for s in range(10)),
            )
            await asyncio.sleep(0)
        await eventually(lambda: redis_client.llen(KEYS.callbacks("acme")) == 0)
        for s in range(10):
            assert answers(redis_client, session_id=f"s-{s}") == list(range(200))
        assert router.transfer.counts.conflicts == 0  # its own workers never work on one list together


async def test_the_same_callback_twice_is_one_entry(redis_url: str, redis_client: Client) -> None:
    """In one batch, in the next, and long after."""
    async with routing(redis_url) as router:
        push(redis_client, "acme", callback(1), callback(1))
        await arrived(redis_client, [1])
        push(redis_client, "acme", callback(1), callback(2))
        await arrived(redis_client, [1, 2])
        await eventually(lambda: router.transfer.counts.duplicates == 2)


class Alone(Consumer):
    """A router that does not know of others, as all do for a moment when one comes or goes."""

    def _on_view(self) -> None:
        self.leases.routers = frozenset({"it has not heard of the others"})
        super()._on_view()


async def test_several_routers_keep_order_and_double_nothing(redis_url: str, redis_client: Client) -> None:
    """While each thinks that all lists are its own, each callback wakes all; the fence lets one move it."""
    small = replace(SETTINGS, transfer_batch=7)
    async with (
        routing(redis_url, small, Alone, "r-1") as one,
        routing(redis_url, small, Alone, "r-2") as two,
        routing(redis_url, small, Alone, "r-3") as three,
    ):
        for start in range(0, 600, 20):
            push(redis_client, "acme", *map(callback, range(start, start + 20)))
            await asyncio.sleep(0.001)
        await eventually(lambda: redis_client.llen(KEYS.callbacks("acme")) == 0, within_s=10)
        assert answers(redis_client) == list(range(600))
        counts = [router.transfer.counts for router in (one, two, three)]
        assert [count.duplicates for count in counts] == [0, 0, 0]
        assert sum(count.conflicts for count in counts) > 0  # they were all there


async def test_routers_cut_down_again_and_again(redis_url: str, redis_client: Client) -> None:
    """A router that goes at any instant has moved a batch wholly or not at all."""
    numbers = itertools.count()
    for _ in range(30):
        async with routing(redis_url, replace(SETTINGS, transfer_batch=3)):
            push(redis_client, "acme", *(callback(next(numbers)) for _ in range(20)))
            for _ in range(random.randrange(40)):
                await asyncio.sleep(0)
    total = next(numbers)
    async with routing(redis_url):
        await eventually(lambda: len(answers(redis_client)) >= total)
    assert answers(redis_client) == list(range(total))


async def test_a_server_killed_under_load(own_valkey: Valkey) -> None:
    """``kill -9`` of a Redis that keeps its data: what it accepted arrives once and in order."""
    accepted: list[int] = []
    pushed = itertools.count()
    done = asyncio.Event()

    async def produce() -> None:
        while not done.is_set():
            try:
                with own_valkey.client() as client:
                    while not done.is_set():
                        n = next(pushed)
                        push(client, "acme", callback(n))
                        accepted.append(n)
                        await asyncio.sleep(0)
            except (RedisError, OSError):
                await asyncio.sleep(0.01)

    settings = replace(SETTINGS, transfer_batch=5, session_log_max_entries=100_000)
    async with routing(own_valkey.url, settings) as router:
        producer = asyncio.create_task(produce())
        for _ in range(3):
            enough = len(accepted) + 50
            await eventually(partial(lambda enough: len(accepted) > enough, enough))
            await asyncio.to_thread(own_valkey.kill)
            await asyncio.to_thread(own_valkey.restart)
        await eventually(lambda: router.store.up)
        done.set()
        await producer
        with own_valkey.client() as client:
            await eventually(lambda: client.llen(KEYS.callbacks("acme")) == 0)
            arrived = answers(client)
    assert arrived == sorted(set(arrived))
    assert set(accepted) <= set(arrived)
    assert router.store.connects == 4


# Several routers.

SEVERAL = replace(SETTINGS, router_lease_s=0.5)
TENANTS = [f"t-{n}" for n in range(24)]


class Team:
    """Some routers."""

    def __init__(self, *routers: Consumer) -> None:
        self.routers = routers

    async def divided(self) -> None:
        """Return when each list that is known has one router, and all have told so."""
        views = {frozenset({router.leases._router_id for router in self.routers})}
        await eventually(lambda: {router.leases.routers for router in self.routers} == views)
        await eventually(lambda: not any(router._sweep_now.is_set() for router in self.routers))
        await asyncio.sleep(0.05)

    @property
    def moved(self) -> list[int]:
        """How many callbacks each has moved."""
        return [router.transfer.counts.appended for router in self.routers]

    @property
    def on_duty(self) -> Consumer:
        """The lookout."""
        [lookout] = [router for router in self.routers if router.lookout.on_duty]
        return lookout


async def test_routers_divide_the_lists(redis_url: str, redis_client: Client) -> None:
    """Each list is one router's: with all at work, none gets in another's way, and one is the lookout."""
    async with routing(redis_url, SEVERAL) as one, routing(redis_url, SEVERAL, router_id="r-2") as two:
        team = Team(one, two)
        await team.divided()
        for n in range(10):
            for tenant in TENANTS:
                push(redis_client, tenant, callback(n))
            await asyncio.sleep(0.01)
        for tenant in TENANTS:
            await arrived(redis_client, list(range(10)), tenant)
        await eventually(lambda: sum(team.moved) == 240)
        assert one.lists_served + two.lists_served == 24
        assert min(team.moved) == 10 * min(one.lists_served, two.lists_served) > 0
        assert team.on_duty
        assert one.transfer.counts.conflicts == two.transfer.counts.conflicts == 0


async def test_a_new_tenant_of_another_router_is_told_to_it(redis_url: str, redis_client: Client) -> None:
    """Only the lookout sees an unknown list; whoever serves it moves it at once."""
    async with routing(redis_url, SEVERAL) as one, routing(redis_url, SEVERAL, router_id="r-2") as two:
        team = Team(one, two)
        await team.divided()
        others = [t for t in TENANTS if not team.on_duty.leases.mine(KEYS.callbacks(t).encode())]
        assert others
        push(redis_client, others[0], callback(1))
        await arrived(redis_client, [1], others[0], within_s=1)
        assert team.on_duty.transfer.counts.appended == 0
        push(redis_client, others[0], callback(2))
        await arrived(redis_client, [1, 2], others[0], within_s=1)


@pytest.mark.parametrize(("stays", "dies"), [("r-1", "r-2"), ("r-2", "r-1")])
async def test_a_router_that_dies_is_replaced(
    redis_url: str, redis_client: Client, stays: str, dies: str
) -> None:
    """Without a goodbye: within its lease and a renewal the others have its lists, and its duty."""
    async with routing(redis_url, SEVERAL, router_id=stays) as one:
        async with routing(redis_url, SEVERAL, router_id=dies) as two:
            await Team(one, two).divided()
            for tenant in TENANTS:
                push(redis_client, tenant, callback(0))
            for tenant in TENANTS:
                await arrived(redis_client, [0], tenant)
            assert two.lists_served > 0
        began = time.monotonic()
        for tenant in TENANTS:
            push(redis_client, tenant, callback(1))
        for tenant in TENANTS:
            await arrived(redis_client, [0, 1], tenant)
        assert time.monotonic() - began < 0.5 + 0.1 + 0.5
        assert one.lists_served == 24
        assert one.lookout.on_duty


async def test_a_router_that_leaves_is_replaced_at_once(redis_url: str, redis_client: Client) -> None:
    """Nobody waits for a lease that was given back: the next renewal is enough."""
    calm = replace(SEVERAL, router_lease_s=2.5)
    async with routing(redis_url, calm) as one:
        async with routing(redis_url, calm, router_id="r-2") as two:
            await Team(one, two).divided()
        await one.commands.call("ZREM", KEYS.leases, "r-2")  # what `leave` does
        began = time.monotonic()
        await eventually(lambda: one.leases.routers == {"r-1"})
        assert time.monotonic() - began < 1.0
        for tenant in TENANTS:
            push(redis_client, tenant, callback(0))
        for tenant in TENANTS:
            await arrived(redis_client, [0], tenant, within_s=1)


class Unreached(Consumer):
    """A router that hears of no new list."""

    def _on_push(self, push: list[Any]) -> None:
        if push[0] != b"message":
            super()._on_push(push)


async def test_the_lookout_takes_on_what_nobody_moves(redis_url: str, redis_client: Client) -> None:
    """A list whose own router does not know it, or cannot move it, waits for two sweeps and no more."""
    settings = replace(SEVERAL, sweep_interval_s=0.3)
    with capture_logs() as logs:
        async with (
            routing(redis_url, settings, Unreached, "r-1") as one,
            routing(redis_url, replace(settings, sweep_interval_s=3_600), Unreached, "r-2") as two,
        ):
            team = Team(one, two)
            await team.divided()
            if team.on_duty is two:  # the other one does not sweep
                two._settings = settings
                two._sweep_now.set()
                one._settings = SEVERAL
                one._sweep_now.set()
            await asyncio.sleep(0.1)
            others = [t for t in TENANTS if not team.on_duty.leases.mine(KEYS.callbacks(t).encode())]
            push(redis_client, others[0], callback(1))
            await arrived(redis_client, [1], others[0], within_s=2)
            await eventually(lambda: team.on_duty.transfer.counts.appended == 1)
    stuck = [entry for entry in logs if entry["event"] == "list_stuck"]
    assert [(entry["list"], entry["callbacks"]) for entry in stuck][:1] == [(KEYS.callbacks(others[0]), 1)]


# What Redis forgets.


async def test_an_emptied_redis_is_watched_again(redis_url: str, redis_client: Client) -> None:
    """FLUSHALL ends every watch; the router looks at all its lists, and so finds what comes."""
    async with routing(redis_url, QUIET) as router:
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [1])
        for n in range(2, 5):
            redis_client.flushall()
            await asyncio.sleep(0.1 * (n % 2))
            push(redis_client, "acme", callback(n))
            await arrived(redis_client, [n], within_s=1)
        assert router.store.connects == 1


async def test_a_full_table_of_watches_loses_none(redis_url: str, redis_client: Client) -> None:
    """Redis forgets watches past its limit, not always with a word; the sweep finds what nobody told of."""
    before = redis_client.config_get("tracking-table-max-keys")["tracking-table-max-keys"]
    redis_client.config_set("tracking-table-max-keys", 5)
    try:
        async with routing(redis_url, replace(QUIET, sweep_interval_s=0.2)):
            for n in range(3):
                for tenant in TENANTS:
                    push(redis_client, tenant, callback(n))
                for tenant in TENANTS:
                    await arrived(redis_client, list(range(n + 1)), tenant, within_s=2)
    finally:
        redis_client.config_set("tracking-table-max-keys", before)


async def test_a_router_whose_wake_ups_do_not_come_says_so(redis_url: str, redis_client: Client) -> None:
    """Its connection looks well; the proof is missing, and it is made anew."""
    settings = replace(SETTINGS, probe_interval_s=0.1)
    async with routing(redis_url, settings) as router:
        await eventually(lambda: router.problem() is None)
        await router.store.links[0].call("CLIENT", "TRACKING", "OFF")
        await eventually(router.problem)
        await eventually(lambda: router.store.connects == 2)
        await eventually(lambda: router.problem() is None)
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [1], within_s=1)


async def test_a_list_that_went_to_another_router_is_no_worry(redis_url: str, redis_client: Client) -> None:
    """Lost in the middle of a move, with the connection: nothing waits here, and the router is ready."""
    async with routing(redis_url, SEVERAL) as router:
        name = KEYS.callbacks("acme").encode()
        other = next(f"r-{n}" for n in range(2, 99) if owner(["r-1", f"r-{n}"], name) != "r-1")

        async def move_in_vain(callback_list: str, tenant_id: str, batches: int, backlog: Backlog) -> bool:
            router.store.links[0].abort("a test")
            await eventually(lambda: not router.store.up)
            redis_client.zadd(KEYS.leases, {other: 2**53})
            await router.leases.renew()
            redis_client.delete(name)  # the other router has moved it
            raise RedisUnavailable("connection to Redis lost")

        router.transfer.drain = move_in_vain  # type: ignore[method-assign, assignment]
        push(redis_client, "acme", callback(1))
        await eventually(lambda: router.store.connects == 2)
        await eventually(lambda: router.lists_served == 0)
        router._sweep_now.set()
        await asyncio.sleep(0.2)
        assert router.oldest_s == 0


# What must not stop it.


async def test_poison_becomes_dead_letters_and_the_others_go_on(redis_url: str, redis_client: Client) -> None:
    """Whatever is pushed, the callbacks around it arrive and the router lives."""
    poison: list[bytes | str] = [
        b"", b"\x00\xff", "[" * 100_000, '{"session_id":7}', '{"session_id":"a:b"}', "null",
        '{"session_id":"s-1","tenant_id":"other"}', "x" * 2_000_000, '{"session_id":"s-1","status":"odd"}',
    ]  # fmt: skip
    async with routing(redis_url):
        for n, bad in enumerate(poison):
            push(redis_client, "acme", callback(n), bad)
        await arrived(redis_client, list(range(len(poison))))
        await eventually(lambda: len(reasons(redis_client)) == len(poison))
    assert reasons(redis_client) == [
        "not_json", "not_json", "wrong_type", "wrong_type", "wrong_type", "wrong_type", "wrong_tenant",
        "too_large", "unknown_status",
    ]  # fmt: skip


async def test_a_list_of_the_wrong_type_stops_no_other(redis_url: str, redis_client: Client) -> None:
    """It is told once for each time that the lists are looked at, and moved when it has become a list."""

    def refused() -> list[tuple[str, str]]:
        told = [entry for entry in logs if entry["event"] == "transfer_refused"]
        return [(entry["tenant_id"], entry["reason"][:9]) for entry in told]

    with capture_logs() as logs:
        redis_client.set(KEYS.callbacks("broken"), "no list")
        async with routing(redis_url, replace(SETTINGS, transfer_concurrency=1)) as router:
            push(redis_client, "acme", callback(1))
            await arrived(redis_client, [1])
            await eventually(refused)
            await asyncio.sleep(0.2)  # a router that begins looks more than once
            logs.clear()
            router._sweep_now.set()
            await eventually(refused)
            await asyncio.sleep(0.2)
            assert refused() == [("broken", "WRONGTYPE")]
            assert router.oldest_s == 0  # nothing waits that could be moved
            redis_client.delete(KEYS.callbacks("broken"))
            push(redis_client, "broken", callback(2))
            await arrived(redis_client, [2], "broken", within_s=1)
    assert len(refused()) == 1


async def test_a_list_that_is_none_at_first_is_watched(redis_url: str, redis_client: Client) -> None:
    """Seen when the router has been there for long: what becomes of it needs no sweep either."""
    with capture_logs() as logs:
        async with routing(redis_url):
            push(redis_client, "acme", callback(1))
            await arrived(redis_client, [1])
            redis_client.set(KEYS.callbacks("broken"), "no list")
            await eventually(lambda: "transfer_refused" in [entry["event"] for entry in logs])
            redis_client.delete(KEYS.callbacks("broken"))
            push(redis_client, "broken", callback(2))
            await arrived(redis_client, [2], "broken", within_s=1)


async def test_names_that_are_no_tenants_lists_are_left_alone(redis_url: str, redis_client: Client) -> None:
    """They are told once and not touched, however often they are written to."""
    with capture_logs() as logs:
        async with routing(redis_url):
            for n in range(3):
                redis_client.lpush("orchestrator:a b:callbacks", callback(n))
                redis_client.lpush("orchestrator:other", callback(n))
                push(redis_client, "acme", callback(n))
                await arrived(redis_client, list(range(n + 1)))
    assert redis_client.llen("orchestrator:a b:callbacks") == 3
    told = [entry["list"] for entry in logs if entry["event"] == "list_ignored"]
    assert sorted(told) == ["'orchestrator:a b:callbacks'", "'orchestrator:other'"]


async def test_a_busy_tenant_does_not_delay_the_others(redis_url: str, redis_client: Client) -> None:
    """With one worker for all, a tenant with thousands waiting gives the next one its turn."""
    push(redis_client, "busy", *map(callback, range(2_000)))
    settings = replace(SETTINGS, transfer_batch=5, transfer_concurrency=1, session_log_max_entries=5_000)
    async with routing(redis_url, settings):
        push(redis_client, "quiet", callback(1))
        await arrived(redis_client, [1], "quiet")
        assert redis_client.llen(KEYS.callbacks("busy")) > 0
        await eventually(lambda: redis_client.llen(KEYS.callbacks("busy")) == 0, within_s=10)
        assert answers(redis_client, "busy") == list(range(2_000))


async def test_what_redis_refuses_is_tried_again_but_not_in_a_circle(
    valkey: Valkey, redis_url: str, redis_client: Client
) -> None:
    """A refusal that passes (memory, a replica, rights) delays a callback by a second or two."""
    user = ["ACL", "SETUSER", "router", "reset", "on", ">secret", "~*", "&*", "+@all"]
    redis_client.execute_command(*user, "-rpush")
    try:
        async with routing(valkey.url.replace("://", "://router:secret@")):
            redis_client.config_resetstat()
            push(redis_client, "acme", callback(1))
            await eventually(lambda: calls(redis_client, "evalsha") + calls(redis_client, "eval") >= 2)
            await asyncio.sleep(0.3)
            looks = calls(redis_client, "zrange")  # at the lists that have tasks that are due
            assert calls(redis_client, "evalsha") + calls(redis_client, "eval") - looks <= 6
            assert redis_client.llen(KEYS.callbacks("acme")) == 1
            redis_client.execute_command("ACL", "SETUSER", "router", "+rpush")
            await arrived(redis_client, [1], within_s=3)
    finally:
        redis_client.execute_command("ACL", "DELUSER", "router")


@pytest.mark.parametrize("suffix", ["", ":log"])
async def test_an_unusable_session_stops_no_other(redis_url: str, redis_client: Client, suffix: str) -> None:
    """Its callbacks are dead letters; the tenant's other sessions go on."""
    redis_client.set(KEYS.session(KEYS.callbacks("acme"), "broken") + suffix, "something else")
    async with routing(redis_url):
        push(redis_client, "acme", callback(1, "broken"), callback(1), callback(2, "broken"), callback(2))
        await arrived(redis_client, [1, 2])
        assert reasons(redis_client) == ["session_unusable"] * 2


async def test_a_refused_lease_is_told(redis_url: str, redis_client: Client) -> None:
    """A router that cannot say that it is there does not pass for one that is well."""
    async with routing(redis_url) as router:
        await eventually(lambda: router.problem() is None)
        redis_client.delete(KEYS.leases)
        redis_client.set(KEYS.leases, "no sorted set")
        await eventually(lambda: "refuses the lease" in (router.problem() or ""))
        redis_client.delete(KEYS.leases)
        await eventually(lambda: router.problem() is None)

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

from backplane.redis_client import parse_redis_url
from backplane.router.consumer import Consumer
from backplane.settings import Settings
from tests.support.valkey import Client, Valkey, eventually

SETTINGS = Settings(sweep_interval_s=3_600)  # what is found is found by wake-up, unless a test says otherwise
KEYS = SETTINGS.keys()


@asynccontextmanager
async def routing(
    url: str, settings: Settings = SETTINGS, kind: type[Consumer] = Consumer
) -> AsyncIterator[Consumer]:
    """A router whose first sweep is over; no part of it may have died by the end."""
    consumer = kind(parse_redis_url(url), KEYS, settings, structlog.get_logger())
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
        assert router.link.connects == 2
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

        async def drain_slowly(callback_list: str, tenant_id: str, batches: int) -> bool:
            nonlocal turns
            turns += 1
            more = await drain(callback_list, tenant_id, batches)
            if turns == 1:
                push(redis_client, "acme", callback(2))
                await router.link.call("PING")  # its wake-up comes before the answer
            return more

        router.transfer.drain = drain_slowly  # type: ignore[method-assign]
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [1, 2], within_s=1)


async def test_own_writes_do_not_wake_the_router(redis_url: str, redis_client: Client) -> None:
    """One callback costs one look and one move, and then there is quiet."""
    async with routing(redis_url) as router:
        push(redis_client, "acme", callback(0))  # the scripts are loaded, the list is known
        await arrived(redis_client, [0])
        await eventually(lambda: not router._drained)  # it has heard of its own first trim
        redis_client.config_resetstat()
        push(redis_client, "acme", callback(1))
        await arrived(redis_client, [0, 1])
        await asyncio.sleep(0.5)
        assert calls(redis_client, "evalsha") == 2
        assert calls(redis_client, "llen") <= 3  # one within the transfer script, one for its own trim


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
        assert router.transfer.counts.duplicates == 2


async def test_several_routers_keep_order_and_double_nothing(redis_url: str, redis_client: Client) -> None:
    """All of them are woken by every callback; the fence lets one through."""
    small = replace(SETTINGS, transfer_batch=7)
    async with routing(redis_url, small) as one, routing(redis_url, small) as two, routing(redis_url, small):
        for start in range(0, 600, 20):
            push(redis_client, "acme", *map(callback, range(start, start + 20)))
            await asyncio.sleep(0.001)
        await eventually(lambda: redis_client.llen(KEYS.callbacks("acme")) == 0, within_s=10)
        assert answers(redis_client) == list(range(600))
        assert one.transfer.counts.duplicates == two.transfer.counts.duplicates == 0


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
        await eventually(lambda: router.link.up)
        done.set()
        await producer
        with own_valkey.client() as client:
            await eventually(lambda: client.llen(KEYS.callbacks("acme")) == 0)
            arrived = answers(client)
    assert arrived == sorted(set(arrived))
    assert set(accepted) <= set(arrived)
    assert router.link.connects == 4


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
    """It is told once, not tried in a circle, and moved when it has become a list."""
    with capture_logs() as logs:
        redis_client.set(KEYS.callbacks("broken"), "no list")
        async with routing(redis_url, replace(SETTINGS, transfer_concurrency=1)):
            push(redis_client, "acme", callback(1))
            await arrived(redis_client, [1])
            redis_client.delete(KEYS.callbacks("broken"))
            push(redis_client, "broken", callback(2))
            await arrived(redis_client, [2], "broken")
    refused = [entry for entry in logs if entry["event"] == "transfer_refused"]
    assert [entry["tenant_id"] for entry in refused] == ["broken"]
    assert "WRONGTYPE" in refused[0]["reason"]


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
            assert calls(redis_client, "evalsha") + calls(redis_client, "eval") <= 6
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

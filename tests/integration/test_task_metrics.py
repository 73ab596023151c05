"""What a router learns of tasks while it moves their callbacks: how long they took, how they ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest

from backplane.keys import TIERS
from backplane.metrics import Histogram
from backplane.router.backlog import Backlog
from backplane.router.depths import Depths, age_s
from backplane.store import Store
from tests.integration.tasks import KEYS, QUEUE, World, question


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


def observed(members: Mapping[tuple[str, ...], Histogram]) -> dict[tuple[str, ...], int]:
    return {labels: sum(histogram.counts) for labels, histogram in members.items()}


def ended(world: World) -> dict[tuple[str, ...], float]:
    return {
        labels: member.value for labels, member in world.metrics.named._ended.members.items() if member.value
    }


async def test_first_word_and_end(world: World) -> None:
    """The time runs from the send's acceptance, by Redis's clock; the first word is counted once."""
    await world.begin()
    accepted = time.monotonic()
    await asyncio.sleep(0.15)
    await world.report("t-1", status="working", message="thinking")
    await world.report("t-1", status="working", message="still thinking")
    await world.answer("t-1")
    took_s = time.monotonic() - accepted

    first, duration = world.metrics._first_word.members, world.metrics._duration.members
    assert observed(first) == {("free",): 1}
    assert observed(duration) == {("free", "completed"): 1}
    assert 0.14 < first[("free",)].total < took_s + 0.1
    assert first[("free",)].total <= duration[("free", "completed")].total < took_s + 0.1
    assert ended(world) == {("free", "completed"): 1}


async def test_an_answer_without_a_word_before(world: World) -> None:
    """It is the first word as well, and all that there is."""
    await world.begin(tier="enterprise", agent_id="sales")
    await world.answer("t-1", status="failed", result={"error": {"message": "no"}})

    assert observed(world.metrics._first_word.members) == {("enterprise",): 1}
    assert observed(world.metrics._duration.members) == {("enterprise", "failed"): 1}
    by_agent = world.metrics.named._ended_by_agent.members
    assert {labels: member.value for labels, member in by_agent.items() if member.value} == {
        ("sales", "failed"): 1
    }


async def test_the_first_token_is_the_first_word(world: World) -> None:
    """Of an answer that is streamed, whatever comes after it."""
    await world.begin()
    for offset, delta in enumerate("abc"):
        await world.say("t-1", action_type="execution.chunk", data={"delta": delta, "offset": offset})
        await world.move()
    assert observed(world.metrics._first_word.members) == {("free",): 1}
    assert world.transfer.counts.streamed == 3


async def test_what_comes_again_or_too_late_is_no_end(world: World) -> None:
    """A task ends once, also in the numbers; and nothing is known of one that was begun elsewhere."""
    await world.begin()
    for _ in range(2):
        await world.answer("t-1")
    await world.answer("t-1", status="failed", action_id="another")
    await world.answer("t-elsewhere")

    assert ended(world) == {("free", "completed"): 1}
    assert observed(world.metrics._duration.members) == {("free", "completed"): 1}


async def test_a_record_that_somebody_has_spoilt(world: World) -> None:
    """Its answer is shown all the same; it is only measured as of no tier, and at once."""
    await world.begin()
    key = KEYS.task(world.list, "t-1")
    await world.store.call("HSET", key, "accepted", "yesterday", "tier", b"\xff gold", "agent_id", b"\xfe")
    await world.answer("t-1")

    assert [message["type"] for message in await world.log()] == ["agent_response"]
    assert observed(world.metrics._duration.members) == {("unknown", "completed"): 1}


async def test_a_question_is_no_callback(world: World) -> None:
    """An answer that is faster than the pod brings what was asked into the log as well."""
    await world.accept(question=question("t-1"))
    assert await world.push("t-1")
    await world.answer("t-1")

    assert [message["type"] for message in await world.log()] == ["user_message", "agent_response"]
    assert world.transfer.counts.appended == 1


async def test_dead_letters_by_reason(world: World) -> None:
    """Those that could not be read, and those whose session is unusable."""
    await world.store.call("SET", KEYS.session(world.list, "s-odd"), "no session")
    await world.store.call("LPUSH", world.list, "not JSON", "{}", "neither")
    await world.move()
    await world.answer("t-9", session="s-odd")

    dead = {labels: member.value for labels, member in world.metrics._dead.members.items() if member.value}
    assert dead == {("not_json",): 2, ("no_session",): 1, ("session_unusable",): 1}
    assert world.transfer.counts.dead_letters == 4


async def test_waiting_is_measured_from_the_wake_up(world: World) -> None:
    """Once a batch, and not where nobody knows since when."""
    backlog = Backlog()
    backlog.found(time.monotonic() - 7.0)
    await world.store.call("LPUSH", world.list, "x")
    await world.transfer.drain(world.list, "acme", 1, backlog)
    await world.store.call("LPUSH", world.list, "y")
    await world.transfer.drain(world.list, "acme", 1, backlog)

    assert sum(world.metrics.wait.counts) == 1
    assert 7.0 <= world.metrics.wait.total < 8.0
    assert sum(world.metrics.transfer.counts) == 2
    callbacks = world.metrics._callbacks.members
    assert {labels: member.value for labels, member in callbacks.items()} == {("acme",): 2}


# What waits.


def action(enqueued_at: str) -> str:
    return json.dumps({"task_id": "t", "queue_metadata": {"enqueued_at": enqueued_at}})


async def test_depths(store: Store) -> None:
    """Actions by tier with the age of the next one to be taken, and dead letters of all lists."""
    world, depths = World(store), Depths(store, KEYS, lambda _duty: True)
    old = datetime.fromtimestamp(time.time() - 100, UTC).isoformat()
    await store.call("LPUSH", QUEUE, action(old), action("2031-01-31T12:00:00Z"))
    await store.call("LPUSH", world.list, "not JSON", "{}")
    await world.move()
    await store.call("SADD", KEYS.dead_letter_lists, b"\xff")
    await depths.look()

    assert depths.actions == {tier: 2 * (tier == "free") for tier in TIERS}
    assert depths.actions_oldest_s["free"] == pytest.approx(100, abs=5)
    assert depths.actions_oldest_s["enterprise"] == 0.0
    assert depths.dead_letters == 2


@pytest.mark.parametrize(
    ("raw", "age"),
    [
        (action("2026-01-31T12:00:00+02:00"), 7_200.0),
        (action("2026-01-31T12:00:00"), 0.0),
        (action("2026-01-31T11:59:00.5"), 59.5),
        (action("2027-01-31T11:59:00Z"), 0.0),
        (action("0001-01-01T00:00:00"), 0.0),
        ("{}", 0.0),
        ("\\xff", 0.0),
        (action("yesterday"), 0.0),
    ],
)
def test_the_age_of_an_action(raw: str, age: float) -> None:
    """By its own word; one that does not say, or is ahead of time, has none."""
    assert age_s(raw.encode(), 1_769_860_800.0) == age


async def test_only_one_router_tells_depths(store: Store) -> None:
    """What was known is forgotten with the duty: an old number looks like a new one."""
    duty = True
    depths = Depths(store, KEYS, lambda _duty: duty)
    await depths.look()
    assert depths.dead_letters is not None
    duty = False
    running = asyncio.create_task(depths.run())
    await asyncio.sleep(0)
    running.cancel()
    assert not depths.actions
    assert not depths.actions_oldest_s
    assert depths.dead_letters is None

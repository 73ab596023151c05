"""Closing many sockets evenly: who goes when, by a clock that the test turns, and the task that turns it."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.drain import TICK_S, Pace, close_paced, pause, unless
from tests.unit.gateway.fakes import settle


class Socket:
    """One that goes when it is asked."""

    def __init__(self) -> None:
        self.attached = True
        self.busy = False
        self.reason = ""

    def retire(self, reason: str) -> None:
        assert self.attached, "it was asked twice"
        self.attached = False
        self.reason = reason


class Turning:
    """A pace and its clock."""

    def __init__(self, count: int, over_s: float) -> None:
        self.sockets = [Socket() for _ in range(count)]
        self.pace = Pace(self.sockets, over_s)
        self.now_s = 0.0
        self.went: list[tuple[float, Socket]] = []

    def turn(self, step_s: float = TICK_S) -> None:
        """Retire those whose turn it is, and let time pass."""
        for socket in self.pace.due(self.now_s):
            socket.retire("the pod restarts")
            self.went.append((self.now_s, socket))
        self.now_s += step_s

    def until(self, elapsed_s: float) -> None:
        while self.now_s < elapsed_s and not self.pace.done:
            self.turn()

    def between(self, start_s: float, end_s: float) -> int:
        """How many went in a part of the time."""
        times = [at for at, _socket in self.went]
        return bisect_left(times, end_s) - bisect_left(times, start_s)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2_000), st.floats(0.05, 30), st.integers())
def test_all_go_and_no_second_has_more_than_its_share(count: int, over_s: float, seed: int) -> None:
    """However many and however long: each goes once, by the end, evenly, also where the clock jitters."""
    turning, rng = Turning(count, over_s), random.Random(seed)
    while not turning.pace.done:
        turning.turn(rng.uniform(0.5, 1.5) * TICK_S)

    assert len(turning.went) == count
    assert turning.now_s <= over_s + 3 * TICK_S
    second_s = min(1.0, over_s)
    share = count * (second_s + 2 * TICK_S) / over_s
    for at in {at for at, _socket in turning.went}:
        assert turning.between(at, at + second_s) <= share + 2


def test_first_at_once_and_last_at_the_end() -> None:
    """Five in 20 s: one every 5 s, so that a pod with one client does not wait for nothing."""
    turning = Turning(5, 20.0)
    turning.until(30)

    assert [at for at, _socket in turning.went] == pytest.approx([0, 5, 10, 15, 20], abs=2 * TICK_S)


def test_one_alone_goes_at_once() -> None:
    """And then it is over."""
    turning = Turning(1, 20.0)
    turning.turn()

    assert turning.pace.done


def test_none() -> None:
    """Nobody to wait for."""
    pace: Pace[Socket] = Pace([], 20.0)
    assert pace.due(0) == []
    assert pace.done


def test_who_goes_by_himself_needs_no_turn() -> None:
    """Where half leave by themselves, the others are closed half as fast and fill the time all the same."""
    turning = Turning(400, 20.0)
    turning.until(5)
    went = len(turning.went)
    assert went == pytest.approx(100, abs=3)
    here = [socket for socket in turning.sockets if socket.attached]
    for socket in here[::2]:
        socket.attached = False
    turning.until(30)

    assert len(turning.went) - went == pytest.approx(150, abs=3)
    assert turning.between(5, 10) == pytest.approx(50, abs=3)
    assert turning.between(15, 20.1) == pytest.approx(50, abs=3)


def test_all_leave_by_themselves() -> None:
    """Then there is nothing left to wait for."""
    turning = Turning(100, 20.0)
    turning.turn()
    for socket in turning.sockets:
        socket.attached = False
    turning.turn()

    assert turning.pace.done
    assert len(turning.went) == 1


def test_busy_ones_go_last() -> None:
    """A socket that waits for an ack lets all others go first, and is closed at the end of the time."""
    turning = Turning(20, 10.0)
    busy = turning.sockets[:3]
    for socket in busy:
        socket.busy = True
    turning.until(9.9)
    assert [socket.attached for socket in busy] == [True] * 3
    assert len(turning.went) == 17
    turning.until(11)

    assert [socket for _at, socket in turning.went[-3:]] == busy
    assert turning.now_s == pytest.approx(10.0, abs=2 * TICK_S)


def test_a_busy_one_goes_when_it_has_its_answer() -> None:
    """It is not kept until the end."""
    turning = Turning(1, 10.0)
    turning.sockets[0].busy = True
    turning.until(3)
    assert turning.went == []
    turning.sockets[0].busy = False
    turning.turn()

    assert turning.pace.done
    assert len(turning.went) == 1


def test_many_busy_ones_do_not_all_go_when_redis_is_back() -> None:
    """Turns that busy sockets did not take are not saved up for one moment."""
    turning = Turning(1_000, 10.0)
    for socket in turning.sockets:
        socket.busy = True
    turning.until(5)
    for socket in turning.sockets:
        socket.busy = False
    turning.until(11)

    assert len(turning.went) == 1_000
    assert turning.between(5, 6) == pytest.approx(200, abs=15)
    assert turning.between(9, 10.1) == pytest.approx(200, abs=15)


def test_a_stopped_process_goes_on_evenly() -> None:
    """What was missed in a pause of four seconds is spread over the time that is left."""
    turning = Turning(1_000, 10.0)
    turning.until(2)
    turning.now_s = 6.0
    turning.until(11)

    assert len(turning.went) == 1_000
    assert turning.between(6, 7) == pytest.approx(200, abs=20)
    assert turning.between(9, 10.1) == pytest.approx(200, abs=20)


async def test_closing_takes_its_time() -> None:
    """The task asks each socket once, with the reason, and ends when the last was asked."""
    sockets = [Socket() for _ in range(20)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    closing = asyncio.create_task(close_paced(sockets, 0.2, "the pod restarts", asyncio.Event()))
    await settle()
    assert [socket.attached for socket in sockets].count(False) == 1
    await closing

    assert loop.time() - began >= 0.2
    assert {socket.reason for socket in sockets} == {"the pod restarts"}


async def test_in_a_hurry_the_rest_goes_at_once() -> None:
    """Busy or not; what was closed before is not closed again."""
    sockets = [Socket() for _ in range(20)]
    sockets[-1].busy = True
    skip = asyncio.Event()
    closing = asyncio.create_task(close_paced(sockets, 3_600, "the pod restarts", skip))
    await settle()
    skip.set()
    async with asyncio.timeout(5):
        await closing

    assert not any(socket.attached for socket in sockets)


async def test_waiting_ends_with_the_first_of_three() -> None:
    """What is waited for, the time, or the hurry; nothing is left running."""
    before = asyncio.all_tasks()
    never, skip, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    done.set()
    async with asyncio.timeout(5):
        await unless(skip, done.wait(), 3_600)
        await unless(skip, never.wait(), 0.001)
        await unless(skip, never.wait(), -1)
        skip.set()
        await unless(skip, never.wait(), 3_600)
        await pause(3_600, skip)
    await settle()

    assert asyncio.all_tasks() == before

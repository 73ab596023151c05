"""Whose turn is next, of lists that talk, lists that were silent, and lists with something left over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.router.line import Line


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr("backplane.router.line.time", clock)
        yield clock


async def called(line: Line, count: int) -> list[bytes]:
    return [await line.next() for _ in range(count)]


async def test_first_come_first_served() -> None:
    """Lists of one kind are called in the order in which they joined, each once."""
    line = Line()
    for name in (b"a", b"b", b"a", b"c"):
        line.join(name)
    assert len(line) == 3
    assert b"a" in line
    assert await called(line, 3) == [b"a", b"b", b"c"]
    assert len(line) == 0
    assert b"a" not in line


async def test_a_herd_of_sleepers_does_not_delay_a_conversation(clock: Clock) -> None:
    """A list that had a turn a moment ago waits for one sleeper at most, not for thousands."""
    line = Line()
    line.join(b"talking")
    await line.next()
    for n in range(1_000):
        line.join(b"silent-%d" % n)
    clock.now += 59
    line.join(b"talking")
    assert b"talking" in await called(line, 2)


async def test_sleepers_are_called_too(clock: Clock) -> None:
    """However many talk, at least every fourth call is a sleeper's, and one what is left over."""
    line = Line()
    for n in range(100):
        line.join(b"talking-%d" % n)
    await called(line, 100)
    for n in range(100):
        line.join(b"talking-%d" % n)
        line.join(b"left-%d" % n, left_over=True)
        line.join(b"silent-%d" % n)
    calls = await called(line, 100)
    for kind, share in ((b"talking", 50), (b"silent", 25), (b"left", 25)):
        assert sum(name.startswith(kind) for name in calls) == share


async def test_after_a_minute_a_list_counts_as_silent(clock: Clock) -> None:
    """Who has not talked for a while stands with the others of that kind."""
    line = Line()
    line.join(b"once")
    await line.next()
    clock.now += 61
    line.join(b"silent")
    line.join(b"once")
    assert await called(line, 2) == [b"silent", b"once"]


async def test_what_is_left_over_does_not_keep_others_out() -> None:
    """A tenant with a million callbacks, back in line after every turn, gets every other turn at most."""
    line = Line()
    line.join(b"busy", left_over=True)
    for n in range(50):
        line.join(b"other-%d" % n)
    others = 0
    for _ in range(101):
        name = await line.next()
        if name == b"busy":
            line.join(b"busy", left_over=True)
        else:
            others += 1
            if others == 50:
                break
    assert others == 50


async def test_workers_wait_and_are_woken_one_by_one() -> None:
    """A worker that was cancelled while it waited takes no list with it."""
    line = Line()
    workers = [asyncio.create_task(line.next()) for _ in range(3)]
    await asyncio.sleep(0)
    workers[0].cancel()
    line.join(b"a")
    line.join(b"b")
    await asyncio.wait(workers)
    assert workers[0].cancelled()
    assert {worker.result() for worker in workers[1:]} == {b"a", b"b"}


async def test_a_worker_cancelled_when_it_was_woken_loses_nothing() -> None:
    """Its list stays in line for the next one."""
    line = Line()
    worker = asyncio.create_task(line.next())
    await asyncio.sleep(0)
    line.join(b"a")
    worker.cancel()
    await asyncio.wait([worker])
    assert await called(line, 1) == [b"a"]


async def test_forgotten_lists_take_no_room() -> None:
    """Nothing is kept of a list that is not known any more."""
    line = Line()
    for name in (b"a", b"b"):
        line.join(name)
    await called(line, 2)
    line.forget({b"b"})
    assert line._called.keys() == {b"b"}


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), st.booleans(), st.booleans())))
def test_every_list_is_called_once_for_each_time_it_joined(moves: list[tuple[bytes, bool, bool]]) -> None:
    """Whatever joins and is called in between: nothing is lost, nothing is doubled."""

    async def run() -> None:
        line, standing = Line(), set[bytes]()
        for name, left_over, call in moves:
            line.join(name, left_over=left_over)
            standing.add(name)
            if call:
                standing.remove(await line.next())
        while standing:
            standing.remove(await line.next())
        assert len(line) == 0

    asyncio.run(run())

"""How long callbacks wait, known from lengths alone: never less than nothing, and nearly what it is."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from backplane.router.backlog import Backlog

BATCH = 8


def test_a_list_that_is_emptied_at_once() -> None:
    """Its callbacks have waited since the wake-up."""
    backlog = Backlog()
    backlog.found(10.0)
    assert backlog.age_s(10.5) == 0.5
    assert backlog.took(1, 0, 10.5) == 0.5
    assert (backlog.age_s(20.0), backlog.length) == (0.0, 0)


def test_what_was_not_announced() -> None:
    """Nobody knows how long it waited; what was left behind waits from then on."""
    backlog = Backlog()
    assert backlog.took(8, 5, 10.0) is None
    assert backlog.age_s(12.0) == 2.0


def test_a_backlog_that_was_there_ages_while_it_is_moved() -> None:
    """60,000 callbacks, of which the last waits until all others were moved."""
    backlog, now = Backlog(), 0.0
    backlog.found(0.0)
    left, waits = 60_000, []
    while left:
        now += 0.001
        left -= BATCH
        waits.append(backlog.took(BATCH, left, now))
        assert (backlog.length, backlog.age_s(now) > 0) == (left, left > 0 and now > 0.001)
    assert max(wait for wait in waits if wait is not None) > 7.49


def test_a_list_that_is_never_empty_but_moves() -> None:
    """As many come as are moved: none waits for long, however long that goes on."""
    backlog = Backlog()
    backlog.found(0.0)
    for step in range(1, 5_000):
        waited = backlog.took(BATCH, 2 * BATCH, step * 0.01)
        assert waited is not None
        assert waited <= 0.04
        assert backlog.age_s(step * 0.01) <= 0.04


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=200))
def test_it_is_nearly_what_it_is(steps: list[tuple[int, int]]) -> None:
    """Against a list that knows when each came: never older, and hardly younger."""
    backlog, waiting, now = Backlog(), deque[float](), 0.0
    for come, taken in steps:
        now += 1.0
        if come and not waiting:
            backlog.found(now, 1)
        waiting.extend([now] * come)
        batch = [waiting.popleft() for _ in range(min(taken, len(waiting)))]
        if batch:
            waited = backlog.took(len(batch), len(waiting), now)
            assert waited is not None
            assert waited <= now - batch[0]
            assert waited >= now - batch[0] - 1 - len(steps) / 16
        age = backlog.age_s(now)
        assert age <= (now - waiting[0] if waiting else 0.0)
        assert age >= (now - waiting[0] - 1 - len(steps) / 16 if waiting else 0.0)
        assert len(backlog._marks) <= 65

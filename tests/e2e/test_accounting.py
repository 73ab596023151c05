"""The accounting of streamed answers and of tasks' ends, in small: all texts whole, all tasks ended once."""

from __future__ import annotations

import pytest
import uvloop

from tests.support import streaming, task_ends


@pytest.mark.parametrize("have", [0.0, 1.0], ids=["snapshots", "what they have"])
def test_streamed_answers_through_drops_and_kills(have: float) -> None:
    """Whatever is dropped or killed, what a client has put together is what the agent said."""
    assert uvloop.run(streaming.run(20, 200, 40.0, drops=3, kills=1, seed=7, have=have))


def test_an_answer_that_is_wrong_is_seen() -> None:
    """A missing piece, unless the client came behind the end; one too many, and another text."""
    right, short, late, long, other = (streaming.Answer("t-1", "s-1", ["a", "b"]) for _ in range(5))
    for answer, text in ((right, "ab"), (short, "a"), (late, "a"), (long, "abb"), (other, "ba")):
        answer.text = answer.streamed = text
        answer.response = "ab"
        answer.joined_at, answer.over_at = 1.0, 10.0
    late.joined_at = 11.0
    assert streaming.wrong([right, short, late, long, other]) == [short, long, other]


def test_every_task_ends_once() -> None:
    """Agents are killed; cancel, answer, its copy and the deadline race."""
    assert uvloop.run(task_ends.run(100))

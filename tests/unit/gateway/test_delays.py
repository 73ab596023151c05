"""How long messages take: from their making to sockets, and to clients' acks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backplane.messages import Message, timestamp, to_entry
from backplane.metrics import Histogram
from backplane.position import Batch
from gateway.delays import Delays
from gateway.feed import Feed

BOUNDS = (0.1, 1.0, 10.0)
NOW = 1_800_000_000.0


class Clock:
    """Both clocks of the machine."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - 5.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr("gateway.delays.time", clock)
        yield clock


class Measured:
    """Delays, and what they have told."""

    def __init__(self) -> None:
        self.delivery, self.acks = Histogram(BOUNDS), Histogram(BOUNDS)
        self.delays = Delays(self.delivery, self.acks)
        self.feed = Feed(b"session")

    def deliver(self, seq: int, *made_at: float) -> None:
        entries = [b'{"timestamp":"%b","type":"event"' % timestamp(at).encode() for at in made_at]
        self.delays.delivered(self.feed, Batch("e1", seq, entries))


def test_time_since_a_message_was_made(clock: Clock) -> None:
    """In the same second and in others, to the millisecond."""
    measured = Measured()
    for late_s in (0.05, 0.2, 0.05, 3.5, 86_400.0):
        measured.deliver(1, NOW - late_s)

    assert measured.delivery.counts == [2, 1, 1, 1]
    assert measured.delivery.total == pytest.approx(86_403.8, abs=0.01)


def test_reports_of_progress_are_left_out(clock: Clock) -> None:
    """A step's newest waits in Redis on purpose until the one before has been shown for a while."""
    measured = Measured()
    at = timestamp(NOW - 5.0)
    report = to_entry(Message(at, "task_update", "t", "s", "acme", "free", {}, {}))
    answer = to_entry(Message(at, "agent_response", "t", "s", "acme", "free", {}, {}))
    measured.delays.delivered(measured.feed, Batch("e1", 1, [report]))
    measured.delays.delivered(measured.feed, Batch("e1", 2, [report, answer]))
    assert measured.delivery.counts == [0, 0, 1, 0]


def test_a_batch_counts_each_of_its_messages(clock: Clock) -> None:
    """They were made in one go."""
    measured = Measured()
    measured.deliver(1, NOW - 0.2, NOW - 0.2)
    assert measured.delivery.counts == [0, 2, 0, 0]


def test_what_was_missed_counts_with_its_own_time(clock: Clock) -> None:
    """A gap that was filled late must show, each message as late as it was."""
    measured = Measured()
    entries = [b'{"timestamp":"%b",' % timestamp(NOW - late_s).encode() for late_s in (0.05, 5.0)]
    measured.delays.missed(entries)
    assert measured.delivery.counts == [1, 0, 1, 0]


def test_a_clock_that_is_ahead(clock: Clock) -> None:
    """Nothing takes less than no time."""
    measured = Measured()
    measured.deliver(1, NOW + 3.0)
    assert (measured.delivery.counts[0], measured.delivery.total) == (1, 0.0)


@pytest.mark.parametrize(
    "entry", [b"", b"{}", b'{"timestamp":"2026-13-45T99:99:99.999Z"', b"x" * 100, b"\xff" * 100]
)
def test_what_is_not_of_our_making_is_not_measured(clock: Clock, entry: bytes) -> None:
    """And keeps nobody from being sent it."""
    measured = Measured()
    measured.delays.delivered(measured.feed, Batch("e1", 1, [entry]))
    assert sum(measured.delivery.counts) == 0


def test_time_until_a_client_acknowledges(clock: Clock) -> None:
    """From the first message that nobody has acknowledged, once a client has shown that it acks at all."""
    measured = Measured()
    measured.deliver(1, NOW)
    clock.now += 0.5
    measured.delays.acked(measured.feed, 1)
    assert sum(measured.acks.counts) == 0  # when that was written, nobody knew that somebody acks
    measured.deliver(2, clock.now)
    clock.now += 0.5
    measured.deliver(3, clock.now)
    measured.delays.acked(measured.feed, 1)
    assert sum(measured.acks.counts) == 0
    clock.now += 1.0
    measured.delays.acked(measured.feed, 3)
    measured.delays.acked(measured.feed, 3)

    assert measured.acks.counts == [0, 0, 1, 0]
    assert measured.acks.total == pytest.approx(1.5)


def test_a_client_that_went_without_an_ack(clock: Clock) -> None:
    """What is awaited for a minute is awaited no more: the next one is measured instead."""
    measured = Measured()
    measured.delays.acked(measured.feed, 1)
    measured.deliver(2, clock.now)
    clock.now += 61.0
    measured.deliver(3, clock.now)
    clock.now += 0.05
    measured.delays.acked(measured.feed, 3)

    assert measured.acks.counts == [1, 0, 0, 0]

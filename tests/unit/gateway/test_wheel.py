"""The wheel: every socket is pinged once per heartbeat, and only a silent one is closed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.identity import ANYONE, Identity
from gateway.listener import Listener
from gateway.wheel import TICKS_A_HEARTBEAT, Wheel

IDENTITY = Identity("acme", "free", "s-1", None, None, ANYONE)


class StubConnection:
    """What the wheel sees of a socket."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.identity: Identity | None = IDENTITY
        self.slot = -1
        self.heard = 0
        self.expires = 0
        self.busy = False
        self.writable = True
        self.written: list[int] = []  # at which ticks
        self.closes: list[int] = []
        self.retired: list[int] = []  # at which ticks

    def beat(self) -> None:
        self.written.append(self.wheel.tick)

    def close(self, code: int, _reason: str) -> None:
        self.closes.append(code)
        self.wheel.remove(self.as_connection())

    def retire(self, _reason: str) -> None:
        self.retired.append(self.wheel.tick)
        self.wheel.remove(self.as_connection())

    def as_connection(self) -> Listener:
        return cast("Listener", self)


def turn(wheel: Wheel, heartbeats: float, talking: list[StubConnection] | None = None) -> None:
    """Let so many heartbeats pass; those who talk are heard at every tick."""
    for _ in range(int(heartbeats * TICKS_A_HEARTBEAT)):
        wheel.turn()
        for connection in talking or ():
            connection.heard = wheel.tick


def connected(wheel: Wheel, count: int) -> list[StubConnection]:
    connections = [StubConnection(wheel) for _ in range(count)]
    for connection in connections:
        wheel.add(connection.as_connection())
    return connections


@pytest.mark.parametrize("before", [0, 1, 31, 40])
def test_every_socket_once_per_heartbeat(before: int) -> None:
    """However many sockets there are and whenever they came, each gets one ping in each heartbeat."""
    wheel = Wheel(25)
    for _ in range(before):
        wheel.turn()
    connections = connected(wheel, 100)
    turn(wheel, 3, talking=connections)

    assert [len(connection.written) for connection in connections] == [3] * 100
    assert not any(connection.closes for connection in connections)


def test_pings_are_spread_over_the_heartbeat() -> None:
    """No tick pings more than its share of the sockets."""
    wheel = Wheel(25)
    connections = connected(wheel, 4 * TICKS_A_HEARTBEAT)
    pinged = []
    for _ in range(TICKS_A_HEARTBEAT):
        before = sum(len(connection.written) for connection in connections)
        turn(wheel, 1 / TICKS_A_HEARTBEAT, talking=connections)
        pinged.append(sum(len(connection.written) for connection in connections) - before)

    assert pinged == [4] * TICKS_A_HEARTBEAT


@pytest.mark.parametrize("before", [0, 5, 31, 100])
def test_silent_sockets_are_closed(before: int) -> None:
    """A socket of which nothing is heard for two heartbeats is closed with 4002 before a third is over."""
    wheel = Wheel(25)
    for _ in range(before):
        wheel.turn()
    silent, talking = connected(wheel, 2)
    turn(wheel, 2, talking=[talking])
    assert silent.closes == []
    turn(wheel, 1, talking=[talking])

    assert silent.closes == [4002]
    assert talking.closes == []
    assert len(wheel) == 1
    turn(wheel, 5, talking=[talking])
    assert silent.closes == [4002]


def test_a_word_in_time_is_enough() -> None:
    """Whatever a client says, it is alive for two heartbeats more."""
    wheel = Wheel(25)
    [connection] = connected(wheel, 1)
    for _ in range(5):
        turn(wheel, 2)
        connection.heard = wheel.tick

    assert connection.closes == []


def test_a_socket_that_takes_no_more_is_not_pinged() -> None:
    """A ping would only add to what a full socket does not read; its silence still counts."""
    wheel = Wheel(25)
    [connection] = connected(wheel, 1)
    connection.writable = False
    turn(wheel, 2)
    assert connection.written == []
    turn(wheel, 1)

    assert connection.closes == [4002]


def test_old_sockets_are_retired_each_at_its_time() -> None:
    """Sockets that came together go between 80 % and 120 % of the greatest age, spread over that time."""
    wheel = Wheel(25, 100 * 25)
    turn(wheel, 7)
    began = wheel.tick
    connections = connected(wheel, 1_000)
    turn(wheel, 79.9, talking=connections)
    assert len(wheel) == 1_000
    turn(wheel, 41.2, talking=connections)  # a socket is looked at once per heartbeat

    assert len(wheel) == 0
    assert all(len(connection.retired) == 1 for connection in connections)
    assert not any(connection.closes for connection in connections)
    ages = [(connection.retired[0] - began) / TICKS_A_HEARTBEAT for connection in connections]
    for start in range(80, 120, 4):
        assert 50 < sum(start <= age - 0.5 < start + 4 for age in ages) < 150


def test_without_a_greatest_age_nobody_is_retired() -> None:
    """0 means never; and one that is younger than its age stays."""
    never, later = Wheel(25, 0), Wheel(25, 1_000 * 25)
    for wheel in (never, later):
        connections = connected(wheel, 50)
        turn(wheel, 500, talking=connections)
        assert len(wheel) == 50
    assert {connection.expires for connection in never.connections} == {0}


def test_ages_far_below_a_heartbeat() -> None:
    """Such a socket is retired by the next look at it, not never."""
    wheel = Wheel(25, 0.001)
    connections = connected(wheel, 50)
    turn(wheel, 1, talking=connections)

    assert len(wheel) == 0


def test_an_old_socket_gets_its_ack_first() -> None:
    """One whose client waits for an answer is pinged as ever, and retired a heartbeat later."""
    wheel = Wheel(25, 2 * 25)
    [connection] = connected(wheel, 1)
    connection.busy = True
    turn(wheel, 10, talking=[connection])
    assert connection.retired == []
    assert len(connection.written) == 10
    connection.busy = False
    turn(wheel, 1, talking=[connection])

    assert len(connection.retired) == 1


def test_sockets_that_are_gone_are_left_alone() -> None:
    """A socket that was taken off is not pinged, counted or closed; taking it off twice is harmless."""
    wheel = Wheel(25)
    gone, stays = connected(wheel, 2)
    wheel.remove(gone.as_connection())
    wheel.remove(gone.as_connection())
    turn(wheel, 4, talking=[stays])

    assert gone.slot == -1
    assert gone.written == []
    assert gone.closes == []
    assert wheel.connections == [stays.as_connection()]
    assert len(wheel) == 1


async def test_time_is_counted_in_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that was stopped for an hour closes nobody for the silence of that hour.

    The clocks jump by an hour at every tick; only ticks make a socket silent.
    """
    wheel = Wheel(TICKS_A_HEARTBEAT * 1e-9)
    connections = connected(wheel, TICKS_A_HEARTBEAT)
    ticked = asyncio.Event()
    hours = 0

    def an_hour_later() -> float:
        nonlocal hours
        hours += 1
        return 3_600.0 * hours

    turn_once = wheel.turn

    def turn() -> None:
        turn_once()
        if wheel.tick == 2 * TICKS_A_HEARTBEAT:
            ticked.set()

    monkeypatch.setattr(wheel, "turn", turn)
    monkeypatch.setattr("time.time", an_hour_later)
    monkeypatch.setattr("time.monotonic", an_hour_later)
    running = asyncio.create_task(wheel.run())
    await ticked.wait()
    running.cancel()

    assert hours > 0
    assert not any(connection.closes for connection in connections)
    assert all(len(connection.written) == 2 for connection in connections)

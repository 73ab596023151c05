"""The wheel: every socket is pinged once per heartbeat, and only a silent one is closed."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gateway.auth import Identity
from gateway.connection import Connection
from gateway.wheel import TICKS_A_HEARTBEAT, Wheel
from tests.unit.gateway.fakes import messages, split_frames

IDENTITY = Identity("acme", "free", "s-1", None, None, None)
PING = 9


class StubConnection:
    """What the wheel sees of a socket."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.identity: Identity | None = IDENTITY
        self.slot = -1
        self.heard = 0
        self.writable = True
        self.written: list[bytes] = []
        self.closes: list[int] = []

    def write(self, frames: bytes) -> None:
        self.written.append(frames)

    def close(self, code: int, _reason: str) -> None:
        self.closes.append(code)
        self.wheel.remove(self.as_connection())

    def as_connection(self) -> Connection:
        return cast("Connection", self)


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


def test_a_ping_is_a_frame_and_a_message() -> None:
    """Libraries answer the frame; a browser's code cannot see it, and learns from the message."""
    wheel = Wheel(25)
    [connection] = connected(wheel, 1)
    turn(wheel, 1)
    [written] = connection.written

    assert split_frames(written)[0] == (PING, b"")
    assert [message["type"] for message in messages(written)] == ["ping"]


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

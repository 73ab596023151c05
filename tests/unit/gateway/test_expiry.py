"""When the tokens of open sockets end: they are told, and closed after the grace if nothing comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import expiry
from gateway.expiry import Expiries
from gateway.identity import Grant, Identity
from gateway.listener import Listener
from tests.unit.gateway.fakes import Clock, StubConnection


def socket(expires_at: float | None) -> Listener:
    """A socket whose token ends then."""
    one = StubConnection().as_connection()
    renew(one, expires_at)
    return one


def renew(connection: Listener, expires_at: float | None) -> None:
    grant = Grant("acme", "free", None, None, None, frozenset(), None, 0.0, expires_at)
    connection.identity = Identity("acme", "free", "s-1", None, None, grant)


class World:
    """Who was told what."""

    def __init__(self, grace_s: float = 10.0) -> None:
        self.told: list[Listener] = []
        self.closed: list[Listener] = []
        self.on_closed: Callable[[Listener], Any] = lambda _connection: None
        self.expiries = Expiries(grace_s, self.told.append, self._close)

    def _close(self, connection: Listener) -> None:
        self.closed.append(connection)
        self.on_closed(connection)

    def add(self, *sockets: Listener) -> None:
        for one in sockets:
            self.expiries.add(one)

    def at(self, now: float) -> tuple[int, int]:
        """How many were told and closed so far."""
        self.expiries.turn(now)
        return len(self.told), len(self.closed)


def test_told_and_then_closed() -> None:
    """Each once, when it is time, and not a second earlier."""
    world, one = World(10.0), socket(100.0)
    world.add(one)
    assert world.at(99.9) == (0, 0)
    assert world.at(100.0) == (1, 0)
    assert world.at(105.0) == (1, 0)
    assert world.at(109.9) == (1, 0)
    assert world.at(110.0) == (1, 1)
    assert world.at(1_000.0) == (1, 1)
    assert world.told == world.closed == [one]


def test_within_a_second() -> None:
    """A token is in force until it ends, so a socket is told a moment late rather than early."""
    world = World(10.0)
    world.add(socket(100.3))
    assert world.at(100.9) == (0, 0)
    assert world.at(101.0) == (1, 0)
    assert world.at(110.9) == (1, 0)
    assert world.at(111.0) == (1, 1)


def test_without_grace() -> None:
    """Then there is nothing to wait for."""
    world = World(0.0)
    world.add(socket(100.0))

    assert world.at(100.0) == (0, 1)


def test_tokens_that_never_end() -> None:
    """They are not watched."""
    world = World()
    world.add(socket(None))

    assert world.at(1e12) == (0, 0)


def test_a_token_that_has_ended_already() -> None:
    """Between the look at the token and the socket's opening, or within the leeway for clocks."""
    world = World(10.0)
    world.add(socket(98.0))

    assert world.at(100.0) == (1, 0)
    assert world.at(108.0) == (1, 1)


def test_after_a_pause_of_the_pod() -> None:
    """A process that stood still closes those whose grace is over without telling them first."""
    world = World(10.0)
    world.add(socket(100.0), socket(195.0))

    assert world.at(200.0) == (1, 1)
    assert world.at(205.0) == (1, 2)


@pytest.mark.parametrize("when", [50.0, 100.0, 105.0])
def test_renewed(when: float) -> None:
    """Before its end or in its grace: what counts from then on is the new one."""
    world, one = World(10.0), socket(100.0)
    world.add(one)
    before = world.at(when)
    renew(one, 300.0)
    world.add(one)
    assert world.at(299.0) == before
    assert world.at(300.0) == (before[0] + 1, 0)
    assert world.at(310.0) == (before[0] + 1, 1)


def test_renewed_by_a_shorter_one() -> None:
    """That is in force too."""
    world, one = World(10.0), socket(100.0)
    world.add(one)
    renew(one, 50.0)
    world.add(one)

    assert world.at(60.0) == (0, 1)
    assert world.at(200.0) == (0, 1)


def test_renewed_for_ever() -> None:
    """Or not watched any more."""
    world, one = World(10.0), socket(100.0)
    world.add(one)
    renew(one, None)
    world.add(one)

    assert world.at(200.0) == (0, 0)


def test_gone() -> None:
    """Who has left is told nothing, also in its grace; leaving twice is nothing."""
    world, one, two = World(10.0), socket(100.0), socket(100.0)
    world.add(one, two)
    world.expiries.remove(one)
    assert world.at(100.0) == (1, 0)
    world.expiries.remove(two)
    world.expiries.remove(two)
    world.expiries.remove(socket(5.0))

    assert world.at(200.0) == (1, 0)


def test_gone_while_others_are_closed() -> None:
    """One closing takes another with it, in the middle of the turn."""
    world = World(0.0)
    sockets = [socket(100.0), socket(100.0), socket(101.0)]
    world.add(*sockets)

    def take_along(_closed: Listener) -> None:
        for other in sockets:
            world.expiries.remove(other)

    world.on_closed = take_along
    world.expiries.turn(200.0)

    assert 1 <= len(world.closed) <= 3
    assert len(set(map(id, world.closed))) == len(world.closed)
    assert world.at(500.0)[1] == len(world.closed)


def test_in_order() -> None:
    """Who ends first is told first."""
    world = World()
    late, early = socket(94.0), socket(86.0)
    world.add(late, early)
    world.expiries.turn(95.0)

    assert world.told == [early, late]


@given(
    st.floats(0, 20),
    st.lists(
        st.tuples(st.floats(1, 100), st.none() | st.tuples(st.floats(0, 100), st.floats(1, 200))), max_size=8
    ),
    st.floats(0.1, 7),
)
def test_whatever_comes(grace_s: float, plans: list[Any], step_s: float) -> None:
    """No socket is told or closed before its time, and each is closed, once, within a step of it."""
    world = World(grace_s)
    sockets = [socket(first) for first, _renewal in plans]
    world.add(*sockets)
    renewals = {id(one): plan[1] for one, plan in zip(sockets, plans, strict=True)}
    now = 0.0
    while now < 250:
        now += step_s
        for one in sockets:
            renewal = renewals[id(one)]
            if renewal is not None and renewal[0] <= now and one not in world.closed:
                renewals[id(one)] = None
                renew(one, renewal[1])
                world.add(one)
        before = list(world.closed)
        world.expiries.turn(now)
        for one in sockets:
            assert one.identity is not None
            over_at = (one.identity.grant.expires_at or 0.0) + grace_s
            assert world.closed.count(one) <= 1
            if one in world.closed and one not in before:
                assert now >= over_at
            if now >= over_at + 1 + step_s and one not in world.closed:
                pytest.fail("a socket was forgotten")


async def test_it_turns_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice a second, by the time of day: that is what tokens are about."""
    clock = Clock(99.0)
    monkeypatch.setattr(expiry, "time", clock)
    monkeypatch.setattr(expiry, "asyncio", clock.sleeping)
    world = World(1.0)
    world.add(socket(100.0))
    task = asyncio.create_task(world.expiries.run())
    await clock.forward(0.9)
    assert (len(world.told), len(world.closed)) == (0, 0)
    await clock.forward(0.2)
    assert (len(world.told), len(world.closed)) == (1, 0)
    await clock.forward(1.0)
    assert (len(world.told), len(world.closed)) == (1, 1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

"""Sockets that are closed evenly over a time, so that those who take their clients in hardly notice.

`Pace` decides and knows no clock; `close_paced` turns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

TICK_S = 0.05
_LONGEST_STEP_S = 2 * TICK_S


class Leaving(Protocol):
    """A socket, as far as it can be asked to leave."""

    @property
    def attached(self) -> bool:
        """Whether it is still to be asked; False from `retire` on, and once it went by itself."""

    @property
    def busy(self) -> bool:
        """Whether its client waits for something that is about to come."""

    def retire(self, reason: str) -> None:
        """Ask its client to come back elsewhere, and close it."""


LeavingT = TypeVar("LeavingT", bound=Leaving)


class Pace(Generic[LeavingT]):
    """Says which sockets go when: the first at once, the last at the end, the others evenly between.

    A busy one lets the others go first; at the end it goes too. One that went by itself needs no turn: those
    that are left share the time that is left. So they do after a pause of the whole process.

    Args:
        sockets: those that shall go.
        over_s: when the last goes, from 0.
    """

    def __init__(self, sockets: Iterable[LeavingT], over_s: float) -> None:
        self._waiting = list(sockets)
        self._over_s = over_s
        self._asked_at_s = 0.0
        self._share = 1.0  # how many may go, with the fraction that is no whole socket yet

    @property
    def done(self) -> bool:
        """Whether nobody is left."""
        return not self._waiting

    def due(self, elapsed_s: float) -> list[LeavingT]:
        """The sockets that go now, ``elapsed_s`` after the beginning; the caller retires them."""
        waiting = [socket for socket in self._waiting if socket.attached]
        left_s = self._over_s - elapsed_s
        if left_s <= 0:
            self._waiting = []
            return waiting
        step_s = min(elapsed_s - self._asked_at_s, _LONGEST_STEP_S)
        self._asked_at_s = elapsed_s
        # What busy sockets left unused is not saved up: they would all go in one moment.
        self._share = min(self._share, 1.0)
        self._share += (len(waiting) - self._share) * step_s / (left_s + step_s)
        going = list(islice((socket for socket in waiting if not socket.busy), int(self._share)))
        self._share -= len(going)
        gone = set(map(id, going))
        self._waiting = [socket for socket in waiting if id(socket) not in gone]
        return going


async def close_paced(
    connections: Iterable[LeavingT], over_s: float, reason: str, skip: asyncio.Event
) -> None:
    """Retire sockets evenly over a time.

    Args:
        connections: those that are there now; who comes later is left alone.
        over_s: when the last is retired.
        reason: told to the clients.
        skip: once it is set, the rest goes at once.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    pace = Pace(connections, over_s)
    while True:
        for connection in pace.due(over_s if skip.is_set() else loop.time() - began):
            connection.retire(reason)
        if pace.done:
            return
        await pause(TICK_S, skip)


async def pause(time_s: float, skip: asyncio.Event) -> None:
    """Wait, but not once ``skip`` is set."""
    await unless(skip, asyncio.sleep(time_s), time_s)


async def unless(skip: asyncio.Event, work: Coroutine[Any, Any, Any], most_s: float) -> None:
    """Wait for ``work``, but not longer than a time, nor once ``skip`` is set; then it is cancelled."""
    waits = [asyncio.create_task(work), asyncio.create_task(skip.wait())]
    try:
        await asyncio.wait(waits, timeout=max(most_s, 0.0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()

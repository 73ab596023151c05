"""One timer for the heartbeats of all sockets.

The sockets stand in as many slots as a heartbeat has ticks; each tick looks at one slot. A socket costs a
place in a set, and the pings are spread over the whole interval. Time is counted in ticks, not read from a
clock: a pod that was stopped for a minute does not then find all its clients silent for a minute.
"""

from __future__ import annotations

import asyncio
import random

from gateway.close_codes import CloseCode
from gateway.listener import Listener

TICKS_A_HEARTBEAT = 32
_AGE_SPREAD = 0.2  # who came together does not go together


class Wheel:
    """Pings every socket once per heartbeat, closes those that are silent for two, and retires the old.

    Args:
        heartbeat_s: time between two pings of one socket.
        max_age_s: age, ±20 %, at which a socket is asked to reconnect; 0: never.
    """

    def __init__(self, heartbeat_s: float, max_age_s: float = 0.0) -> None:
        self._tick_s = heartbeat_s / TICKS_A_HEARTBEAT
        self._max_age = max_age_s / self._tick_s
        self._slots: list[set[Listener]] = [set() for _ in range(TICKS_A_HEARTBEAT)]
        self._next = 0
        self.tick = 0

    def add(self, connection: Listener) -> None:
        """Begin to ping a socket."""
        connection.slot = self._next
        connection.heard = self.tick
        if self._max_age:
            age = self._max_age * random.uniform(1 - _AGE_SPREAD, 1 + _AGE_SPREAD)
            connection.expires = self.tick + max(round(age), 1)
        self._slots[self._next].add(connection)
        self._next = (self._next + 1) % TICKS_A_HEARTBEAT

    def remove(self, connection: Listener) -> None:
        """Stop to ping a socket."""
        if connection.slot >= 0:
            self._slots[connection.slot].discard(connection)
            connection.slot = -1

    @property
    def connections(self) -> list[Listener]:
        """All sockets."""
        return [connection for slot in self._slots for connection in slot]

    def __len__(self) -> int:
        return sum(map(len, self._slots))

    async def run(self) -> None:
        """Turn until cancelled."""
        while True:
            await asyncio.sleep(self._tick_s)
            self.turn()

    def turn(self) -> None:
        """Go on by one tick."""
        self.tick += 1
        for connection in list(self._slots[self.tick % TICKS_A_HEARTBEAT]):
            self._beat(connection)

    def _beat(self, connection: Listener) -> None:
        if self.tick - connection.heard > 2 * TICKS_A_HEARTBEAT:
            connection.close(CloseCode.HEARTBEAT_MISSED, "nothing was heard for two heartbeats")
        elif 0 < connection.expires <= self.tick and not connection.busy:
            connection.retire("the connection has reached its greatest age")
        elif connection.writable and connection.identity is not None:
            connection.beat()

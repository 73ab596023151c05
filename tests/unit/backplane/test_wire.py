"""A connection to Redis that reads nothing for a moment, so that pushes are read in one go."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from backplane.wire import Wire

PUSH = b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"
REST_S = 0.0001


class Pipe:
    """A transport that can be read from or not."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.reading = True
        self.resumed = asyncio.Event()
        wire.connection_made(cast("asyncio.Transport", self))

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.resumed.set()

    async def comes(self, data: bytes) -> None:
        """Something has come; read as soon as the connection does not rest."""
        if not self.reading:
            await self.resumed.wait()
        self.resumed.clear()
        self._wire.data_received(data)


async def test_it_rests_after_each_reading() -> None:
    """And then reads again, by itself."""
    pushes: list[Any] = []
    wire = Wire(pushes.append)
    pipe = Pipe(wire)
    for _ in range(3):
        await pipe.comes(PUSH)
        wire.rest(REST_S)
        assert not pipe.reading
    await pipe.resumed.wait()

    assert pushes == [[b"invalidate", [b"a"]]] * 3


async def test_a_busy_one_does_not_keep_another_from_reading() -> None:
    """Whoever had nothing yet since it rested last does not rest again only because another has much."""
    told: list[str] = []
    wires: list[Wire] = []

    def rest() -> None:
        for wire in wires:
            wire.rest(REST_S)

    def on_push_of(name: str) -> None:
        told.append(name)
        rest()

    wires += [Wire(lambda _push: on_push_of("busy")), Wire(lambda _push: on_push_of("other"))]
    busy, other = map(Pipe, wires)
    await busy.comes(PUSH)
    for _ in range(5):
        await busy.comes(PUSH)
    async with asyncio.timeout(5):
        await other.resumed.wait() if not other.reading else None
    await busy.comes(PUSH)
    assert other.reading
    await other.comes(PUSH)

    assert told[-1] == "other"
    assert not other.reading

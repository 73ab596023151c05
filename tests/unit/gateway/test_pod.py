"""How a pod stops: in which order, and bounded whatever Redis does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backplane.errors import RedisUnavailable
from backplane.settings import Settings
from gateway import pod as pod_module
from gateway.pod import Pod
from tests.unit.gateway.fakes import settle


class Stopping:
    """A pod whose parts note when they are asked; each step waits for its event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.pod = Pod(Settings(auth="none", **settings))
        self.hurry = asyncio.Event()
        self.steps: list[Any] = []
        self.gates: dict[str, asyncio.Event] = {}
        pod, step = self.pod, self.step
        monkeypatch.setattr(pod.sockets, "close_all", self.close_all)
        monkeypatch.setattr(pod.sockets, "noted", step("noted"))
        monkeypatch.setattr(pod.hub.marks, "flush", step("flush_marks"))
        monkeypatch.setattr(pod.presence, "leave", step("leave"))
        monkeypatch.setattr(pod.counts, "left", step("left"))

    async def close_all(self, over_s: float, reason: str, hurry: asyncio.Event) -> None:
        assert hurry is self.hurry
        self.steps.append(("close_all", over_s, reason))

    def step(self, name: str) -> Callable[[], Awaitable[None]]:
        gate = self.gates[name] = asyncio.Event()
        gate.set()

        async def go() -> None:
            self.steps.append(name)
            await gate.wait()

        return go

    def drain(self, *, by_hand: bool = False) -> asyncio.Task[None]:
        return asyncio.create_task(self.pod.drain(self.hurry, by_hand=by_hand))


async def within(task: asyncio.Task[None], time_s: float = 5.0) -> None:
    async with asyncio.timeout(time_s):
        await task


NOTES = ["noted", "flush_marks"]


async def test_unready_then_sockets_then_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unready at once, sockets not before load balancers had their time, and notes when they are closed."""
    stopping = Stopping(monkeypatch, drain_readiness_s=3_600.0, drain_timeout_s=7.0)
    draining = stopping.drain()
    await settle()
    assert stopping.pod.health.problem() == "draining"
    assert stopping.steps == []
    stopping.hurry.set()
    await within(draining)

    assert stopping.steps == [("close_all", 7.0, "the pod restarts"), *NOTES]


async def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who waits for it waits for load balancers, and the sockets have a second."""
    stopping = Stopping(monkeypatch, drain_readiness_s=3_600.0, drain_timeout_s=3_600.0)
    await within(stopping.drain(by_hand=True))

    assert stopping.steps[0] == ("close_all", 1.0, "the pod restarts")


async def test_sends_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    """A send whose client has gone is waited for, within the budget, and not in a hurry."""
    stopping = Stopping(monkeypatch, drain_readiness_s=0.0, drain_timeout_s=3_600.0)
    queued = asyncio.Event()
    sends = stopping.pod.conversation.sends_in_flight
    sends.add(asyncio.create_task(_until(queued)))
    draining = stopping.drain()
    await settle()
    assert stopping.steps == [("close_all", 3_600.0, "the pod restarts")]
    queued.set()
    await within(draining)
    assert stopping.steps[1:] == NOTES

    sends.add(asyncio.create_task(_until(asyncio.Event())))
    draining = stopping.drain()
    await settle()
    assert not draining.done()
    stopping.hurry.set()
    await within(draining)
    for send in sends:
        send.cancel()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize("silent", [*NOTES, "leave", "left"])
async def test_redis_does_not_answer(
    silent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pod ends all the same, and says what it could not say."""
    monkeypatch.setattr(pod_module, "_LAST_WORDS_S", 0.01)
    stopping = Stopping(monkeypatch, drain_readiness_s=0.0)
    stopping.gates[silent].clear()
    await within(stopping.drain())
    await within(asyncio.create_task(stopping.pod.leave()))

    assert stopping.steps[-2:] == ["leave", "left"]
    printed = capsys.readouterr().out
    assert ("marks_not_written" in printed, "left_without_goodbye" in printed) == (
        silent in NOTES,
        silent not in NOTES,
    )


async def test_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a Redis that is not there keep it."""
    stopping = Stopping(monkeypatch, drain_readiness_s=0.0)

    async def away() -> None:
        raise RedisUnavailable("not connected to Redis")

    monkeypatch.setattr(stopping.pod.hub.marks, "flush", away)
    monkeypatch.setattr(stopping.pod.presence, "leave", away)
    await within(stopping.drain())
    await within(asyncio.create_task(stopping.pod.leave()))

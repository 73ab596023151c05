"""Long-lived tasks of a process: one that dies ends the process, never in silence."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from backplane.log import Logger


def calm_collector() -> None:
    """Collect garbage less often, and never look at what was there from the start.

    Nearly everything here is freed by its reference count; what the collector mostly does is to walk all
    connections, for milliseconds in which no message moves.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 10, 50)


async def _at_once() -> None:
    """For processes that have nothing to finish."""


async def run_until(
    stop: asyncio.Event,
    tasks: dict[str, Coroutine[Any, Any, None]],
    log: Logger,
    goodbye: Callable[[], Awaitable[None]] = _at_once,
) -> bool:
    """Run ``tasks`` until ``stop`` is set and ``goodbye`` has finished, then cancel them.

    A task that raises, or returns before ``stop``, ends all the others: a process that goes on without one of
    its parts is green but deaf.

    Returns:
        True if the process was asked to stop, False if a task died.
    """

    async def until_asked() -> None:
        await stop.wait()
        await goodbye()

    running = {asyncio.create_task(work, name=name) for name, work in tasks.items()}
    stopping = asyncio.create_task(until_asked(), name="goodbye")
    dead: list[asyncio.Task[None]] = []
    try:
        while not stopping.done() and not dead:
            alive = {task for task in running if not task.done()}
            done, _ = await asyncio.wait({*alive, stopping}, return_when=asyncio.FIRST_COMPLETED)
            dead = [task for task in done if task.cancelled() or task.exception() is not None]
            if not stop.is_set():
                dead = list(done)
    finally:
        for task in (stopping, *running):
            task.cancel()
        await asyncio.gather(stopping, *running, return_exceptions=True)
    for task in dead:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        log.error("task_died", task=task.get_name(), exc_info=error)
    return not dead

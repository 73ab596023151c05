"""Long-lived tasks of a process: one that dies ends the process, never in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from backplane.log import Logger


async def run_until(stop: asyncio.Event, tasks: dict[str, Coroutine[Any, Any, None]], log: Logger) -> bool:
    """Run ``tasks`` until ``stop`` is set, then cancel them.

    A task that raises or returns before that stops all the others: a process that goes on without one of its
    parts is green but deaf.

    Returns:
        True if the process was asked to stop, False if a task died.
    """
    running = {asyncio.create_task(work, name=name) for name, work in tasks.items()}
    stopping: asyncio.Task[Any] = asyncio.create_task(stop.wait(), name="stop")
    everything: set[asyncio.Task[Any]] = {*running, stopping}
    try:
        done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        for task in running:
            task.cancel()
        await asyncio.gather(stopping, *running, return_exceptions=True)
    dead = [task for task in done if task is not stopping]
    for task in dead:
        log.error("task_died", task=task.get_name(), exc_info=task.exception())
    return not dead

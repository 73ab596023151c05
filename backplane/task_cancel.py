"""Cancels tasks: the word to the AES, then the task's end; for who asks, and for who died while he did."""

from __future__ import annotations

import time
from contextlib import suppress
from uuid import uuid4

from backplane.errors import QueueFull
from backplane.task import Due
from backplane.task_end import cancel_action, end_entry
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks


async def finish_cancel(tasks: Tasks, queue: TaskQueue, callback_list: str, tenant_id: str, due: Due) -> str:
    """Bring a task to its end that is being cancelled (`Tasks.begin_cancel`).

    Returns:
        Empty if this has ended it, else its status.

    Raises:
        RedisUnavailable: Redis did not answer; a router does it again.
    """
    now, traceparent = time.time(), tasks.traceparent(due.task_id, due.traceparent)
    action = cancel_action(
        uuid4(), due.task_id, due.session_id, tenant_id, due.tier, due.agent_id, due.context, due.queue,
        callback_list, due.reason, now, traceparent,
    )  # fmt: skip
    if due.unpushed and await queue.void(due.queue, due.task_id, "run"):
        # The AES knows nothing of it. If no client does, either, it never was.
        if due.unpushed == "reserved":
            await tasks.settle(callback_list, due, pushed=False)
            return ""
    else:
        with suppress(QueueFull):  # the agent works in vain then; what it says is not shown
            await queue.push(due.queue, due.task_id, "cancel", action)
    entry = end_entry(
        "cancelled", due.task_id, due.session_id, tenant_id, due.tier, due.reason, now, traceparent
    )
    return await tasks.end(callback_list, entry, "cancelling", now)

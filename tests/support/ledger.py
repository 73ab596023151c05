"""When each callback of a chaos run was taken and delivered."""

from __future__ import annotations

import heapq
import math
import time


class Ledger:
    """When each callback was taken by Redis and when its message first reached the client, by task id.

    Times are `time.monotonic`'s.
    """

    def __init__(self) -> None:
        self.accepted: dict[str, float] = {}
        self.delivered: dict[str, float] = {}

    def take(self, task_id: str) -> None:
        """Redis has taken the callback (the first of its copies)."""
        self.accepted.setdefault(task_id, time.monotonic())

    def arrive(self, task_id: str) -> None:
        """The message has come (for the first time)."""
        self.delivered.setdefault(task_id, time.monotonic())

    def delays(self, since: float = -math.inf, until: float = math.inf) -> list[float]:
        """Push to delivery of all that was taken between two moments, or was under way at the first.

        What has not come at all has been under way until now.
        """
        now, delivered = time.monotonic(), self.delivered
        return [
            max(0.0, delivered.get(task_id, now) - at)  # it may come before Redis's own answer does
            for task_id, at in self.accepted.items()
            if at < until and (at >= since or delivered.get(task_id, now) > since)
        ]

    def on_after(self, moment: float) -> float:
        """How long after a moment something came that had been taken after it; nan if nothing did."""
        came = (
            self.delivered.get(task_id, -math.inf) for task_id, at in self.accepted.items() if at >= moment
        )
        return min((at for at in came if at >= moment), default=math.nan) - moment

    def slowest(self, count: int) -> list[str]:
        """The task ids of the messages that took the longest way, the worst first."""
        now = time.monotonic()
        return heapq.nlargest(
            count, self.accepted, key=lambda task: self.delivered.get(task, now) - self.accepted[task]
        )

    def history(self, task_id: str, since: float) -> str:
        """What is known of one callback, in words, with times counted from a moment."""
        taken, came = self.accepted.get(task_id), self.delivered.get(task_id)
        when = [
            f"{what} at {at - since:.2f} s" if at is not None else f"never {what}"
            for what, at in (("taken", taken), ("came", came))
        ]
        return f"{task_id}: {', '.join(when)}"

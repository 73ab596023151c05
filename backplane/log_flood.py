"""Keeps a flood of one log event from becoming a flood of lines: [P] pure."""

from __future__ import annotations

WINDOW_S = 10.0
MOST_A_WINDOW = 20


class Floods:
    """What was let through of each event, and what was not.

    There are as many events as `docs/logs.md` lists, so this has its bound.
    """

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}  # event -> when its window began, and how many came
        self.suppressed = 0

    def admit(self, event: str, now: float) -> tuple[bool, int]:
        """Whether an event is let through, and how many of its name were not since the last that was.

        Args:
            now: seconds, of any clock that only goes forward.
        """
        began, came = self._windows.get(event, (now, 0))
        before = 0
        if now - began >= WINDOW_S:
            before, began, came = max(0, came - MOST_A_WINDOW), now, 0
        self._windows[event] = began, came + 1
        if came >= MOST_A_WINDOW:
            self.suppressed += 1
            return False, 0
        return True, before

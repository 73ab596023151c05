"""How long what waits on a list has been waiting: [P] from lengths alone, as callbacks do not say it.

After each batch it is known how many callbacks have come so far: those that were taken, and those that wait.
The oldest that waits has come by the first moment at which that was more than what has been taken by now. So
a list that is never empty, but moves, is told from one on which a backlog grows.
"""

from __future__ import annotations

from collections import deque

_MARKS = 64  # of one list; between two of them callbacks count as younger than they are


class Backlog:
    """One list.

    Attributes:
        length: callbacks that wait, as far as is known.
    """

    __slots__ = ("_marks", "_taken", "length")

    def __init__(self) -> None:
        self._taken = 0
        self._marks: deque[tuple[float, int]] = deque()  # when, and how many had come by then at least
        self.length = 0

    def found(self, now: float, length: int = 1) -> None:
        """So many wait at least."""
        self.length = max(self.length, length)
        if not self._marks:
            self._marks.append((now, self._taken + self.length))

    def took(self, callbacks: int, length: int, now: float) -> float | None:
        """A batch was taken, and so many wait now.

        Returns:
            For how long the oldest of the batch had been waiting (s); None if nobody knows.
        """
        waited = now - self._marks[0][0] if self._marks else None
        self._taken += callbacks
        self.length = length
        while self._marks and self._marks[0][1] <= self._taken:
            self._marks.popleft()
        come = self._taken + length
        if length and (not self._marks or self._marks[-1][1] < come):
            self._marks.append((now, come))
            if len(self._marks) > _MARKS:
                self._marks = deque(mark for number, mark in enumerate(self._marks) if number % 2 == 0)
        return waited

    def age_s(self, now: float) -> float:
        """For how long the oldest that waits has been waiting."""
        return max(0.0, now - self._marks[0][0]) if self._marks else 0.0

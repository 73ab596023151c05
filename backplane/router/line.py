"""Whose turn is next: the callback lists that wait for a worker.

Three kinds stand in lines of their own and are called in turn, so that none waits for all of another kind:
lists in the middle of a conversation (they had a turn a moment ago), lists that were silent for a while, and
lists of which a turn has left something. A herd of sleepers that wakes at once does not delay the
conversations, and a tenant with a million callbacks counts as one list of one kind.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

_CONVERSATION_S = 60.0


class Line:
    """A list stands in it once."""

    def __init__(self) -> None:
        self._talking: deque[bytes] = deque()
        self._silent: deque[bytes] = deque()
        self._left_over: deque[bytes] = deque()
        self._order = deque((self._talking, self._silent, self._talking, self._left_over))
        self._standing: set[bytes] = set()
        self._called: dict[bytes, float] = {}  # list -> when it had its last turn
        self._free: deque[asyncio.Future[None]] = deque()  # workers that wait

    def __contains__(self, name: bytes) -> bool:
        return name in self._standing

    def __len__(self) -> int:
        return len(self._standing)

    def join(self, name: bytes, *, left_over: bool = False) -> None:
        """Put a list in line; nothing if it stands there.

        Args:
            left_over: it had its turn, and there is more.
        """
        if name in self._standing:
            return
        self._standing.add(name)
        if left_over:
            self._left_over.append(name)
        elif time.monotonic() - self._called.get(name, -_CONVERSATION_S) < _CONVERSATION_S:
            self._talking.append(name)
        else:
            self._silent.append(name)
        while self._free:
            worker = self._free.popleft()
            if not worker.done():
                worker.set_result(None)
                return

    async def next(self) -> bytes:
        """The list whose turn it is, taken out of the line; waits for one."""
        while not self._standing:
            worker = asyncio.get_running_loop().create_future()
            self._free.append(worker)
            await worker
        self._order.rotate(-1)
        name = next(line for line in self._order if line).popleft()
        self._standing.discard(name)
        self._called[name] = time.monotonic()
        return name

    def forget(self, known: set[bytes]) -> None:
        """Keep nothing of lists that are not known any more."""
        self._called = {name: at for name, at in self._called.items() if name in known}

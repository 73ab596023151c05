"""Carries log lines to a file descriptor from a thread of its own.

Whoever logs never waits: a pipe that nobody reads blocks only the thread, and what does not fit into its
queue meanwhile is dropped, counted, and told once lines flow again.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable

_MOST_BYTES = 4 * 1024 * 1024
_POLL_MS = 1_000


class Writer:
    """A bounded queue, and the thread that empties it; the thread begins with the first line.

    Args:
        descriptor: where to; it stays open.
        told: makes the line that tells of so many that were dropped.
        most_bytes: that may wait.

    Attributes:
        dropped: lines, since the process started.
    """

    def __init__(self, descriptor: int, told: Callable[[int], str], most_bytes: int = _MOST_BYTES) -> None:
        self._descriptor = descriptor
        self._told = told
        self._most = most_bytes
        self._changed = threading.Condition()
        self._lines: list[bytes] = []
        self._bytes = 0  # in the queue, and on their way
        self._untold = 0
        self._thread: threading.Thread | None = None
        self._idle = False
        self.dropped = 0

    def write(self, line: str) -> None:
        """Queue a line; never waits."""
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        with self._changed:
            if self._bytes + len(data) > self._most:
                self.dropped += 1
                self._untold += 1
                return
            self._lines.append(data)
            self._bytes += len(data)
            if self._thread is None:
                # A daemon: one that is stuck in a pipe must not keep the process.
                self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
                self._thread.start()
            elif self._idle:
                self._idle = False
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all is written; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._idle = True
                    self._changed.wait()
                lines, self._lines = self._lines, []
            data = b"".join(lines)
            whole = self._out(data)
            with self._changed:
                untold, self._untold = self._untold, 0
                if not whole:
                    self.dropped += len(lines)
                    self._untold = untold + len(lines)
            if whole and untold:
                self._out(f"{self._told(untold)}\n".encode())
            with self._changed:
                self._bytes -= len(data)
                self._changed.notify_all()

    def _out(self, data: bytes) -> bool:
        """Write all of it, however long that takes; False if nobody will ever read it."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody has made it non-blocking, for all that share it
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_POLL_MS)
            except OSError:
                return False
        return True

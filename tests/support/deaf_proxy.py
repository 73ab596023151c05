"""A proxy in front of Redis that can swallow what Redis pushes: connections stay up, commands work."""

from __future__ import annotations

import re
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_MESSAGE = re.compile(rb">3\r\n\$(?:7|8)\r\ns?message\r\n\$(\d+)\r\n")
_INVALIDATE = re.compile(rb">2\r\n\$10\r\ninvalidate\r\n\*(\d+)\r\n")


def without_pushes(data: bytes) -> bytes:
    """Replies without the messages and invalidations that stand whole between them."""
    kept, at = b"", 0
    while at < len(data):
        message, invalidate = _MESSAGE.match(data, at), _INVALIDATE.match(data, at)
        if message is not None:
            at = _after_bulk(data, message.end() + int(message[1]) + 2)
        elif invalidate is not None:
            at = invalidate.end()
            for _ in range(int(invalidate[1])):
                at = _after_bulk(data, at)
        else:
            following = data.find(b"\r\n>", at)
            end = len(data) if following < 0 else following + 2
            kept += data[at:end]
            at = end
    return kept


def _after_bulk(data: bytes, at: int) -> int:
    length = int(data[at + 1 : data.index(b"\r\n", at)])
    return data.index(b"\r\n", at) + 2 + length + 2


class DeafProxy:
    """A context manager; relays to ``target_port`` on this machine, with a thread for each direction.

    Attributes:
        deaf: while True, nothing that Redis pushes gets through.
        swallowed: how many bytes did not.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self.port: int = self._listener.getsockname()[1]
        self.deaf = False
        self.swallowed = 0

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()  # from here on there are no new ones
        for end in self._sockets:
            _shut(end)
        for thread in self._threads[1:]:
            thread.join()
        for end in (self._listener, *self._sockets):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port), 5)
            except OSError:
                _shut(near)
                continue
            far.settimeout(None)
            self._sockets.append(far)
            for source, sink, pushes in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._copy, args=(source, sink, pushes))
                self._threads.append(thread)
                thread.start()

    def _copy(self, source: socket.socket, sink: socket.socket, pushes: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if pushes and self.deaf:
                    kept = without_pushes(data)
                    self.swallowed += len(data) - len(kept)
                    data = kept
                sink.sendall(data)
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)

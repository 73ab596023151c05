"""A bad network in front of a server."""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.topology.server import HOST

CALL_TIMEOUT_S = 10.0
CHUNK_BYTES = 256 * 1024


class TcpProxy:
    """Relays a port to another, until told to hold everything back; a thread, and a context manager.

    Nothing is read that is not written on at once, so at most `CHUNK_BYTES` of a connection are in its hands.

    Args:
        target_port: where connections go, on this machine; may be changed for later ones.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._listener = socket.create_server((HOST, 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._relays: set[_Relay] = set()
        self._holding = self._closed = False
        self._calls: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._bell, self._ringer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}")
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many go through it."""
        return len(self._relays)

    def blackhole(self, on: bool) -> None:
        """Hold everything back from now on, or let it flow again.

        While on, open connections stay open and new ones come about (the kernel takes them), and nothing is
        read from any or written to any: what was sent before and has not got through waits too.
        """
        self._call(lambda: self._hold(on))

    def drop_connections(self) -> None:
        """Reset all connections, at both ends, also those that came during a blackhole."""
        self._call(self._drop)

    def close(self) -> None:
        """Reset all connections and close the port."""
        if self._thread.is_alive():
            self._call(self._shut)
            self._thread.join()

    def _call(self, function: Callable[[], None]) -> None:
        """Have the thread do it: the sockets are its own."""
        done: Future[None] = Future()
        self._calls.append((function, done))
        self._ringer.send(b"!")
        done.result(CALL_TIMEOUT_S)

    # in the thread

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select():
                if key.data is not None:
                    relay, end = key.data
                    self._advance(relay, end, events)
                elif key.fileobj is self._listener:
                    self._accept()
                else:
                    self._bell.recv(CHUNK_BYTES)
            while self._calls:
                function, done = self._calls.popleft()
                function()
                done.set_result(None)

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection((HOST, self.target_port), CALL_TIMEOUT_S)
            except OSError:
                _reset(near)
                return
            relay = _Relay(near, far)
            self._relays.add(relay)
            self._watch(relay)

    def _advance(self, relay: _Relay, end: int, events: int) -> None:
        if relay not in self._relays:
            return  # its other end failed a moment ago
        try:
            relay.advance(end, events)
        except OSError:
            self._end(relay, _reset)
        else:
            self._watch(relay)

    def _watch(self, relay: _Relay) -> None:
        """Wait for what the relay can do next; for nothing during a blackhole."""
        for end in (0, 1):
            self._want(relay, end, 0 if self._holding else relay.wanted(end))
        if all(relay.finished) and not any(relay.held) and not self._holding:
            self._end(relay, _close)

    def _want(self, relay: _Relay, end: int, wanted: int) -> None:
        had, sock = relay.watched[end], relay.ends[end]
        relay.watched[end] = wanted
        if had and wanted and had != wanted:
            self._selector.modify(sock, wanted, (relay, end))
        elif wanted and not had:
            self._selector.register(sock, wanted, (relay, end))
        elif had and not wanted:
            self._selector.unregister(sock)

    def _end(self, relay: _Relay, close: Callable[[socket.socket], None]) -> None:
        for end in (0, 1):
            self._want(relay, end, 0)
            close(relay.ends[end])
        self._relays.discard(relay)

    def _hold(self, on: bool) -> None:
        if on == self._holding:
            return
        self._holding = on
        if on:
            self._selector.unregister(self._listener)
        else:
            self._selector.register(self._listener, selectors.EVENT_READ)
        for relay in list(self._relays):
            self._watch(relay)

    def _drop(self) -> None:
        with suppress(BlockingIOError):
            while True:
                _reset(self._listener.accept()[0])
        for relay in list(self._relays):
            self._end(relay, _reset)

    def _shut(self) -> None:
        self._drop()
        self._closed = True
        self._selector.close()
        for sock in (self._listener, self._bell, self._ringer):
            sock.close()


class _Relay:
    """One connection through a `TcpProxy`: by end, what came from there and did not yet reach the other."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.ends = (near, far)
        self.held = [memoryview(b""), memoryview(b"")]
        self.finished = [False, False]
        self.watched = [0, 0]
        for sock in self.ends:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def wanted(self, end: int) -> int:
        """The selector's events of an end that are of use now."""
        read = 0 if self.held[end] or self.finished[end] else selectors.EVENT_READ
        write = selectors.EVENT_WRITE if self.held[1 - end] else 0
        return read | write

    def advance(self, end: int, events: int) -> None:
        """Do what an end is ready for.

        Raises:
            OSError: it is lost.
        """
        if events & selectors.EVENT_WRITE:
            self._pass_on(1 - end)
        if events & selectors.EVENT_READ:
            with suppress(BlockingIOError):
                data = self.ends[end].recv(CHUNK_BYTES)
                self.held[end], self.finished[end] = memoryview(data), not data
                self._pass_on(end)

    def _pass_on(self, end: int) -> None:
        if self.held[end]:
            with suppress(BlockingIOError):
                self.held[end] = self.held[end][self.ends[1 - end].send(self.held[end]) :]
        if self.finished[end] and not self.held[end]:
            self.ends[1 - end].shutdown(socket.SHUT_WR)


def _close(sock: socket.socket) -> None:
    sock.close()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()

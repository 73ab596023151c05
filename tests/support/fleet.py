"""Pods and routers as one deployment: who is in a fault now, who died unasked, and what their logs say."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from backplane.settings import Settings
from tests.support.processes import Pod, Process

HEARTBEAT_S = 1.0
SETTINGS = {
    "auth": "none",
    "log_format": "json",
    "heartbeat_s": str(HEARTBEAT_S),
    "presence_interval_s": "0.5",
    "probe_interval_s": "0.5",
    "deaf_limit_s": "2",
    "drain_readiness_s": "0.5",
    "drain_timeout_s": "3",
}
MISTAKES = ("task_died", "router_error", "hub_task_died", "handshake_failed", "Traceback")
"""What no fault excuses, wherever it stands in a log."""

_READY_TIMEOUT_S = 30.0
_EXIT_TIMEOUT_S = 20.0
_LOOK_S = 0.05
_choose_port = random.Random()
_given_ports: set[int] = set()


def steady_port() -> int:
    """A port below those that outgoing connections get, so that none takes it while its process is down."""
    while True:
        port = _choose_port.randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given_ports:
                _given_ports.add(port)
                return port


class _SteadyPod(Pod):
    """A pod that finds its port free whenever it is started again."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.port = steady_port()
        command = [sys.executable, "-m", "gateway", "gateway", "--port", str(self.port)]
        Process.__init__(self, command, environ, log)


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until something that may block for a moment is so; False if that takes too long."""
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


class Fleet:
    """The pods and routers; an async context manager, entered when Redis is up.

    Args:
        folder: for logs.
        url_of: the address of Redis that a process, by name, is given.
        pods: how many.
        routers: how many.

    Attributes:
        processes: pods first.
        complaints: what happened that should not have; a run with any has failed.
    """

    def __init__(self, folder: Path, url_of: Callable[[str], str], *, pods: int, routers: int) -> None:
        known = Settings.__dataclass_fields__  # what is not a setting (yet) would stop the start
        settings = {name: value for name, value in SETTINGS.items() if name in known}
        environ = {f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()}
        names = [f"pod-{n}" for n in range(pods)] + [f"router-{n}" for n in range(routers)]
        environs = {name: {**environ, "ORCHESTRATOR_REDIS_URL": url_of(name)} for name in names}
        self.logs = {name: folder / f"{name}.log" for name in names}
        command = [sys.executable, "-m", "gateway", "router"]
        self.pods: list[Pod] = [_SteadyPod(environs[name], self.logs[name]) for name in names[:pods]]
        self.routers = [Process(command, environs[name], self.logs[name]) for name in names[pods:]]
        self.processes: list[Process] = [*self.pods, *self.routers]
        self.names = dict(zip(self.processes, names, strict=True))
        self.complaints: list[str] = []
        self._out: set[Process] = set()
        self._changed = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Fleet:
        try:
            await asyncio.gather(*[self.start(process) for process in self.processes])
        except BaseException:
            self._kill_all()
            raise
        if self.complaints:
            self._kill_all()
            raise RuntimeError("; ".join(self.complaints))
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        self._kill_all()

    def _kill_all(self) -> None:
        for process in self.processes:
            process.kill()

    @asynccontextmanager
    async def out(self, process: Process) -> AsyncIterator[None]:
        """Take a process out of service, as soon as it, and another of its kind, is in no other fault."""
        group: Sequence[Process] = self.pods if isinstance(process, Pod) else self.routers

        def may_go() -> bool:
            return process not in self._out and any(
                other not in self._out for other in group if other is not process
            )

        async with self._changed:
            await self._changed.wait_for(may_go)
            self._out.add(process)
        try:
            yield
        finally:
            async with self._changed:
                self._out.discard(process)
                self._changed.notify_all()

    async def start(self, process: Process) -> None:
        """Start a process and return when it serves; complain if it does not."""
        seen = len(process.output)
        process.start()
        if isinstance(process, Pod):
            serves = process.ready
        else:

            def serves() -> bool:
                return "redis_connected" in process.output[seen:]

        if not await until(serves, _READY_TIMEOUT_S):
            self.complaints.append(f"{self.names[process]} did not serve within {_READY_TIMEOUT_S:.0f} s")

    async def end(self, process: Process) -> None:
        """SIGTERM, and wait; complain if it does not end, or not with status 0."""
        process.signal(signal.SIGTERM)
        assert process.popen is not None
        if not await until(lambda: _exited(process), _EXIT_TIMEOUT_S):
            self.complaints.append(f"{self.names[process]} did not end within {_EXIT_TIMEOUT_S:.0f} s")
            process.kill()
        elif process.popen.returncode != 0:
            self.complaints.append(f"{self.names[process]} ended with {process.popen.returncode} on SIGTERM")

    async def _watch(self) -> None:
        """Start a process again that died without a fault, as a supervisor would, and complain."""
        while True:
            await asyncio.sleep(0.2)
            for process, name in self.names.items():
                if process not in self._out and _exited(process):
                    assert process.popen is not None
                    self.complaints.append(f"{name} ended by itself with {process.popen.returncode}")
                    async with self.out(process):
                        if _exited(process):  # no fault has started it meanwhile
                            await self.start(process)


def _exited(process: Process) -> bool:
    return process.popen is not None and process.popen.poll() is not None


def mistakes(logs: dict[str, Path]) -> dict[str, Counter[str]]:
    """How many lines of each process's log hold one of `MISTAKES`; processes without any are left out."""
    found = {
        name: Counter(mistake for line in _lines(log) for mistake in MISTAKES if mistake in line)
        for name, log in logs.items()
    }
    return {name: counts for name, counts in found.items() if counts}


def error_events(logs: dict[str, Path]) -> dict[str, dict[str, int]]:
    """How often each event of level error stands in each process's log; those without any are left out."""
    found = {
        name: Counter(
            event.get("event", "?") for event in _events(_lines(log)) if event.get("level") == "error"
        )
        for name, log in logs.items()
    }
    return {name: counts for name, counts in found.items() if counts}


def last_errors(log: Path, count: int = 3) -> list[str]:
    """The last lines of a log that tell of an error."""
    return [line for line in _lines(log) if '"error"' in line or any(m in line for m in MISTAKES)][-count:]


def _lines(log: Path) -> list[str]:
    return log.read_text("utf-8", "replace").splitlines() if log.exists() else []


def _events(lines: Iterable[str]) -> Iterable[dict[str, str]]:
    for line in lines:
        with suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event

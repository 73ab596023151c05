"""The gateway process: uvicorn for HTTP, our own protocol for sockets, one supervisor for all."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import signal
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import uvicorn
from starlette.applications import Starlette

from backplane.errors import ConfigurationError
from backplane.settings import Settings
from backplane.supervise import calm_collector, run_until
from gateway.app import build_admin_app, build_app
from gateway.connection import Connection
from gateway.http_protocol import bounded_protocol
from gateway.pod import Pod

_BACKLOG = 4_096
_OTHER_FILES = 128  # Redis, logs, listening sockets
_REQUESTS_S, _REQUESTS_IN_HURRY_S = 5, 1  # for HTTP requests under way, after the sockets are closed


class QuietServer(uvicorn.Server):
    """uvicorn, without its signal handlers: it would close every socket before the pod can say goodbye."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Stopping:
    """What the signals have asked for.

    Attributes:
        asked: the pod shall stop.
        hurry: and wait for nothing; set by a second signal.
        by_hand: the first was SIGINT, Ctrl-C at a terminal.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.by_hand = False

    def on_signal(self, number: int) -> None:
        """SIGTERM or SIGINT has come."""
        if self.asked.is_set():
            self.hurry.set()
        else:
            self.by_hand = number == signal.SIGINT
            self.asked.set()


def check_exposure(settings: Settings) -> None:
    """Refuse to offer a service without tokens to a network.

    Raises:
        ConfigurationError: AUTH=none on an address that is not loopback.
    """
    if settings.auth != "none" or settings.allow_insecure:
        return
    try:
        loopback = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ConfigurationError(
            f"AUTH=none on {settings.host} lets anyone in; use AUTH=jwt, HOST=127.0.0.1 or ALLOW_INSECURE=1"
        )


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that several pods of one machine may share; the kernel deals connections out among them.

    Raises:
        ConfigurationError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except (OSError, TypeError) as error:  # TypeError: a name that cannot even be asked for
        listening.close()
        reason = error.strerror if isinstance(error, OSError) else "it is no host name"
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}") from None
    return listening


class Room(NamedTuple):
    """How many connections a process has open files for."""

    sockets: int
    half_open: int


def make_room(sockets: int, half_open: int) -> Room:
    """Raise the limit of open files as far as needed and allowed, and deal out what there is.

    Raises:
        ConfigurationError: it is too low for any service.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = sockets + half_open + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return Room(sockets, half_open)
    files = soft - _OTHER_FILES
    if files < _OTHER_FILES:
        raise ConfigurationError(
            f"at most {soft} files may be open; raise that limit (ulimit -n) to 1024 or more"
        )
    half_open = min(half_open, files // 8)
    return Room(min(sockets, files - half_open), half_open)


async def run_gateway(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    Returns:
        The exit status: 0 after a clean drain.

    Raises:
        ConfigurationError: the settings do not fit together, or the port cannot be had.
    """
    check_exposure(settings)
    room = make_room(settings.connections_max, settings.half_open_max)
    pod = Pod(settings)
    servers = [QuietServer(_config(pod, build_app(pod), room))]
    listening = [listening_socket(settings.host, settings.port)]
    if settings.admin_port:
        servers.append(QuietServer(_config(pod, build_admin_app(pod), room, sockets=False)))
        listening.append(listening_socket(settings.host, settings.admin_port))
    stopping = Stopping()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.on_signal, number)
    pod.level.listen()
    if settings.auth == "none":
        pod.log.warning("authentication_off", host=settings.host)
    calm_collector()
    if room.sockets < settings.connections_max:
        pod.admission.most = room.sockets
        pod.log.warning("few_open_files", connections_max=room.sockets, hint="raise the limit of open files")
    pod.log.info("pod_started", host=settings.host, port=settings.port, redis=pod.redis_shown)
    http_done = asyncio.Event()

    async def serve_http() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for server, at in zip(servers, listening, strict=True):
                    group.create_task(server.serve(sockets=[at]))
        finally:
            http_done.set()

    async def goodbye() -> None:
        # Only after the pod's own goodbye: until then /readyz says 503 and requests under way are answered.
        await pod.drain(stopping.hurry, by_hand=stopping.by_hand)
        for server in servers:
            if stopping.hurry.is_set():
                server.config.timeout_graceful_shutdown = _REQUESTS_IN_HURRY_S
            server.should_exit = True
        await http_done.wait()
        await asyncio.gather(pod.leave(), pod.tracer.close())

    clean = await run_until(stopping.asked, {**pod.tasks(), "http": serve_http()}, pod.log, goodbye)
    pod.log.info("pod_stopped", clean=clean)
    return 0 if clean else 1


def _config(pod: Pod, app: Starlette, room: Room, *, sockets: bool = True) -> uvicorn.Config:
    settings = pod.settings

    def new_connection(**_uvicorn: Any) -> Connection:
        return Connection(pod.endpoint)

    return uvicorn.Config(
        app,
        ws=new_connection if sockets else "none",  # type: ignore[arg-type]  # it is only called
        http=bounded_protocol(settings.handshake_timeout_s, room.half_open),
        lifespan="off",
        backlog=_BACKLOG,  # uvicorn listens anew, with 2,048 if it is not told otherwise
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_s,
        server_header=False,
        timeout_graceful_shutdown=_REQUESTS_S,
    )

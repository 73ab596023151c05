"""A Valkey server behind TLS, and certificates for it."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trustme
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.topology.server import DURABLE, HOST, Client, Server, Servers, access, login

CALL_TIMEOUT_S = 10.0
CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files.

    Attributes:
        ca: the authority's certificate, for clients.
        cert: the server's, for 127.0.0.1 and localhost.
        key: the server's private key.
    """

    ca: Path
    cert: Path
    key: Path


def tls_files(folder: Path) -> TlsFiles:
    """A new authority and a server certificate by it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = TlsFiles(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority = trustme.CA()
    issued = authority.issue_cert(HOST, "localhost")
    authority.cert_pem.write_to_path(str(files.ca))
    issued.private_key_pem.write_to_path(str(files.key))
    for index, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(str(files.cert), append=index > 0)
    return files


class TlsProxy:
    """Ends TLS in front of a server that knows none; a thread with an event loop of its own.

    Args:
        target_port: of the server.
        files: certificate and key to show.
    """

    def __init__(self, target_port: int, files: TlsFiles) -> None:
        self._target_port = target_port
        self._tasks: set[asyncio.Task[None]] = set()
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.show(files)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-proxy")
        self._thread.start()
        listening = asyncio.start_server(self._accept, HOST, 0, ssl=self._context, ssl_shutdown_timeout=1)
        self._server = self._call(listening)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def show(self, files: TlsFiles) -> None:
        """Show this certificate from now on."""
        self._context.load_cert_chain(files.cert, files.key)

    def close(self) -> None:
        """Close the port and all connections."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(CALL_TIMEOUT_S)

    async def _shut(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports that were aborted are only closed by the next round

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: one that asyncio makes (before 3.12) it reports as failed when it is cancelled.
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            with suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection(HOST, self._target_port)
                writers.append(far_writer)
                await _relay_both_ways((reader, far_writer), (far_reader, writer))
            for open_writer in writers:
                open_writer.close()
                with suppress(OSError):
                    await open_writer.wait_closed()
        finally:
            for open_writer in writers:
                open_writer.transport.abort()


async def _relay_both_ways(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Until one side ends, as TLS cannot be half closed."""
    relays = {asyncio.create_task(_relay(reader, writer)) for reader, writer in ways}
    try:
        await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()


class TlsValkey(Servers):
    """A server behind TLS that lets in one user with a password, and nobody else.

    The binary was built without TLS, so a `TlsProxy` speaks it; `server` can be killed and started behind it.

    Args:
        folder: for data, certificates and logs.
        files: certificates; new ones unless given.
        user: to log in as.
        password: of that user.
    """

    def __init__(
        self, folder: Path, *, files: TlsFiles | None = None, user: str = "app", password: str = "secret"
    ) -> None:
        self.files = files or tls_files(folder / "tls")
        self.user, self.password = user, password
        lines = [*DURABLE, *access(user, password)]
        self.server = Server(folder, lines, user=user, password=password)
        self._proxy: TlsProxy | None = None

    @property
    def port(self) -> int:
        """The one that speaks TLS."""
        assert self._proxy is not None
        return self._proxy.port

    @property
    def url(self) -> str:
        """With user, password and the authority to trust."""
        user = login(self.user, self.password)
        return f"rediss://{user}{HOST}:{self.port}/0?ssl_ca_certs={quote(str(self.files.ca))}"

    def show(self, files: TlsFiles) -> None:
        """Show this certificate from now on; clients have to trust its authority."""
        assert self._proxy is not None
        self._proxy.show(files)

    @contextmanager
    def client(self, **changes: Any) -> Iterator[Client]:
        """A client over TLS that is closed at the end; changes are options of redis-py's."""
        options: dict[str, Any] = {
            "username": self.user,
            "password": self.password,
            "ssl_ca_certs": str(self.files.ca),
            "retry": Retry(NoBackoff(), 0),
        }
        client = Redis(HOST, self.port, ssl=True, **options | changes)
        try:
            yield client
        finally:
            client.close()

    def _everything(self) -> Iterable[Server]:
        return [self.server]

    def _form(self) -> None:
        self.server.start()
        self._proxy = TlsProxy(self.server.port, self.files)

    def _end(self) -> None:
        if self._proxy is not None:
            self._proxy.close()
        super()._end()

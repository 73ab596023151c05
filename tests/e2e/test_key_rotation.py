"""Keys come and go, and who publishes them fails in every way: no client with a good token is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, cast

import jwt
import pytest
import redis
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.fleet import steady_port, until
from tests.support.lean_client import LeanClient
from tests.support.limits_sabotage import sabotaged
from tests.support.processes import Cluster, Pod, get

CLIENTS = 20
MADE_UP_A_SECOND = 50
COOLDOWN_S = 2.0
"""Between two requests of one pod to the provider."""

SETTINGS: dict[str, Any] = {
    "AUTH": "jwt",
    "JWT_ALGORITHMS": "RS256,ES256,EdDSA,HS256",
    "SENDS_PER_SESSION_HOUR": "0,0,0,0",
    "SESSION_TASKS_MAX": "1000",  # nobody answers
}


class KeysCluster(Cluster):
    """A cluster whose pods know keys from somewhere, and no secret."""

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, **(SETTINGS | settings))

    def __enter__(self) -> KeysCluster:
        super().__enter__()
        return self

    def _routers_known(self) -> bool:
        with redis.Redis(port=self.redis_port) as client:
            return bool(client.exists("ao:routers"))


# Who signs.

_CURVE = ec.SECP256R1()


class Signer:
    """A key with its name; signs tokens.

    Args:
        algorithm: RS256, ES256, EdDSA or HS256.
    """

    def __init__(self, kid: str, algorithm: str) -> None:
        self.kid = kid
        self.algorithm = algorithm
        make: dict[str, Callable[[], Any]] = {
            "RS256": lambda: rsa.generate_private_key(65_537, 2048),
            "ES256": lambda: ec.generate_private_key(_CURVE),
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
            "HS256": lambda: secrets.token_hex(32).encode(),
        }
        self._key = make[algorithm]()

    def jwk(self) -> dict[str, Any]:
        """Its public half, for a key set."""
        kind: Any = jwt.get_algorithm_by_name(self.algorithm)
        public: dict[str, Any] = json.loads(kind.to_jwk(self._key.public_key()))
        return public | {"kid": self.kid, "use": "sig", "alg": self.algorithm}

    def write(self, folder: Path) -> Path:
        """Its file in a directory of keys, there at once as a whole."""
        if self.algorithm == "HS256":
            path, content = folder / f"{self.kid}.secret", self._key + b"\n"
        else:
            public = self._key.public_key()
            path = folder / f"{self.kid}.pem"
            content = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        beside = folder / f"{self.kid}.new"
        beside.write_bytes(content)
        return beside.rename(path)

    def token(self, session_id: str, lives_s: float = 60) -> str:
        """A token of the enterprise tier, which has no limit that would matter here."""
        now = int(time.time())
        claims = {"tenant_id": "acme", "tenant_tier": "enterprise", "sub": "user", "iat": now}
        claims |= {"session_id": session_id, "exp": now + lives_s, "jti": secrets.token_hex(8)}
        return jwt.encode(claims, self._key, self.algorithm, {"kid": self.kid})


def made_up() -> str:
    """A token that names a key nobody has."""
    header = {"alg": "EdDSA", "kid": secrets.token_hex(8)}
    claims = {"tenant_id": "acme", "tenant_tier": "enterprise", "exp": int(time.time()) + 60}
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), secrets.token_bytes(64)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


# Who publishes.

_BODIES: dict[str, tuple[int, bytes]] = {
    "500": (500, b"internal server error"),
    "garbage": (200, b"\x00\xff<html>no keys today</html>"),
    "nested": (200, b'{"keys":' + b"[" * 100_000),
    "odd": (
        200,
        b'{"keys":[5,{"kty":"RSA"},{"kty":"OKP","crv":"Ed25519","x":"' + b"A" * 43 + b'","alg":{}}]}',
    ),
    "empty": (200, b'{"keys": []}'),
    "large": (200, b'{"keys": [' + b" " * 10_000_000 + b"]}"),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self._provider.connected(self.connection)

    @property
    def _provider(self) -> Provider:
        return cast("Listening", self.server).provider

    def do_GET(self) -> None:
        provider = self._provider
        provider.asked.append((time.monotonic(), self.path))
        mode, turned = provider.mode_for(self.path), provider.turned
        if mode == "hang":
            turned.wait(20)
            self.close_connection = True
            return
        status, body = _BODIES.get(mode, (200, provider.document))
        if mode == "redirect":
            status, body = 302, b""
        with suppress(OSError):
            self.send_response(status)
            if mode == "redirect":
                self.send_header("Location", f"http://127.0.0.1:{provider.port}/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


class Listening(ThreadingHTTPServer):
    """The provider's server while it is up."""

    provider: Provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A pod that breaks off is no error."""


class Provider:
    """An identity provider's key set, in a thread; a context manager.

    Attributes:
        turned: set when it begins to behave otherwise.
        asked: when it was asked, and with which path.
    """

    def __init__(self) -> None:
        self.port = steady_port()
        self._modes: tuple[str, ...] = ("down",)
        self.turned = threading.Event()
        self.asked: list[tuple[float, str]] = []
        self.document = b""
        self._server: Listening | None = None
        self._thread: threading.Thread | None = None
        self._open: list[Any] = []

    def __enter__(self) -> Provider:
        self.turn("good")
        return self

    def __exit__(self, *_error: object) -> None:
        self.turn("down")

    def url(self, name: str) -> str:
        """The address for a pod, by which its requests are known."""
        return f"http://127.0.0.1:{self.port}/{name}/jwks.json"

    def publish(self, *signers: Signer) -> None:
        """Have these keys in the set, and no others."""
        self.document = json.dumps({"keys": [signer.jwk() for signer in signers]}).encode()

    def connected(self, connection: Any) -> None:
        """Note a connection, to cut it when the provider goes down."""
        self._open.append(connection)

    def mode_for(self, path: str) -> str:
        """How it behaves to the pod that has this path."""
        return self._modes[int(path[5]) % len(self._modes)]

    def turn(self, *modes: str) -> None:
        """Behave otherwise from now on, to the first pod and the second if they differ.

        Args:
            modes: ``good``, ``down`` (to both), ``hang``, ``redirect``, or what `_BODIES` has.
        """
        self._modes = modes
        self.turned.set()
        self.turned = threading.Event()
        if "down" in modes:
            self._stop()
        elif self._server is None:
            self._server = Listening(("127.0.0.1", self.port), _Handler)
            self._server.provider = self
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
            self._thread.start()

    def _stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(2)
        self._open = []

    def count(self, name: str, since: float = 0.0) -> int:
        """How often a pod has asked."""
        return sum(path.startswith(f"/{name}/") for at, path in self.asked if at >= since)


# Who connects.


class Outcome(NamedTuple):
    """What became of an attempt to connect.

    Attributes:
        code: ``ok``; ``503`` or another status; a close code; ``lost`` for a connection that broke.
        error_code: that was told, if there was one.
    """

    code: str
    error_code: str
    took_s: float
    at: float
    port: int


async def attempt(port: int, token: str, session_id: str, *, talk: bool = True) -> Outcome:
    """Connect and, if let in, send a message and wait for its ack."""
    loop, began = asyncio.get_running_loop(), time.monotonic()
    told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def on_text(text: bytes) -> None:
        told.put_nowait(json.loads(text))

    path = f"/ws/{session_id}?agent_id=agent-1&token={token}"
    try:
        _, client = await loop.create_connection(lambda: LeanClient(path, on_text), "127.0.0.1", port)
    except OSError:
        return Outcome("lost", "", time.monotonic() - began, began, port)
    error_code = ""
    try:
        async with asyncio.timeout(15):
            code, error_code = await _greeted(client, told)
            took_s = time.monotonic() - began
            if code == "ok" and talk:
                client.send_text('{"type":"chat","message":"hello","ref":1}')
                code, error_code = await _answered(client, told)
    except TimeoutError:
        code, took_s = "silent", time.monotonic() - began
    finally:
        client.drop()
        await client.lost
    return Outcome(code, error_code, took_s, began, port)


async def _greeted(client: LeanClient, told: asyncio.Queue[dict[str, Any]]) -> tuple[str, str]:
    if not await client.opened:
        status = client.answer.split(b" ")[1].decode() if client.answer else "lost"
        return status, ""
    return await _answered(client, told, "connection_ack")


async def _answered(
    client: LeanClient, told: asyncio.Queue[dict[str, Any]], kind: str = "ack"
) -> tuple[str, str]:
    error_code = ""
    while True:
        getting = asyncio.ensure_future(told.get())
        await asyncio.wait((getting, client.lost), return_when=asyncio.FIRST_COMPLETED)
        if not getting.done():
            getting.cancel()
            return ("lost" if client.lost.result() == 1006 else str(client.lost.result())), error_code
        message = getting.result()
        if message["type"] == kind:
            return "ok", ""
        if message["type"] == "error":
            error_code = message["data"]["error_code"]


class Clients:
    """Clients that connect, send and leave, again and again, each time with a new token.

    Attributes:
        active: who signs now.
        outcomes: of all attempts.
    """

    def __init__(self, pods: Sequence[Pod], active: Signer) -> None:
        self._ports = [pod.port for pod in pods]
        self.active = active
        self.outcomes: list[Outcome] = []

    @asynccontextmanager
    async def coming(self) -> AsyncIterator[None]:
        """They come and go meanwhile; those that are inside are waited for at the end."""
        stop = asyncio.Event()

        async def one(number: int) -> None:
            while not stop.is_set():
                token = self.active.token(f"s{number}")
                self.outcomes.append(await attempt(random.choice(self._ports), token, f"s{number}"))
                await asyncio.sleep(random.uniform(0.2, 0.6))

        tasks = [asyncio.create_task(one(number)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*tasks)

    def refused(self) -> list[Outcome]:
        """Those that did not get through."""
        return [outcome for outcome in self.outcomes if outcome.code != "ok"]

    def worst_s(self, since: float = 0.0) -> float:
        """The longest time to a ``connection_ack``."""
        return max((one.took_s for one in self.outcomes if one.code == "ok" and one.at >= since), default=0.0)


@asynccontextmanager
async def stranger(pods: Sequence[Pod], outcomes: Counter[str]) -> AsyncIterator[None]:
    """Somebody shows tokens with made-up keys meanwhile, fifty a second."""
    attempts: set[asyncio.Task[None]] = set()

    async def one(port: int) -> None:
        outcome = await attempt(port, made_up(), "stranger", talk=False)
        outcomes[outcome.code] += 1

    async def all_of_them() -> None:
        began = time.monotonic()
        for number in range(1_000_000):
            await asyncio.sleep(max(0.0, began + number / MADE_UP_A_SECOND - time.monotonic()))
            task = asyncio.create_task(one(pods[number % len(pods)].port))
            attempts.add(task)
            task.add_done_callback(attempts.discard)

    running = asyncio.create_task(all_of_them())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await asyncio.gather(*attempts)


@asynccontextmanager
async def pings(pod: Pod, token: str, waits: list[tuple[float, float]]) -> AsyncIterator[None]:
    """An open socket pings its pod meanwhile, twenty times a second; notes when, and how long each took."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()

    def on_text(text: bytes) -> None:
        if b'"pong"' in text[:200] or b"connection_ack" in text[:200]:
            came.set()

    path = f"/ws/pings?token={token}"
    _, client = await loop.create_connection(lambda: LeanClient(path, on_text), "127.0.0.1", pod.port)

    async def ping() -> None:
        while True:
            came.clear()
            at = time.monotonic()
            client.send_text('{"type":"ping"}')
            await came.wait()
            waits.append((at, time.monotonic() - at))
            await asyncio.sleep(0.05)

    await came.wait()
    running = asyncio.create_task(ping())
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert not client.lost.done(), "the socket that pings was closed"
        client.drop()
        await client.lost


def worst_ms(waits: list[tuple[float, float]], since: float, before: float) -> float:
    """The longest wait that began in a span of time."""
    return max(wait for at, wait in waits if since <= at < before) * 1e3


async def both_refuse(pods: Sequence[Pod], token: str, timeout_s: float = 8.0) -> float:
    """Wait until every pod refuses a token as invalid; how long that took, in seconds."""
    began = time.monotonic()
    while True:
        tries = [attempt(pod.port, token, "old", talk=False) for pod in pods]
        outcomes = await asyncio.gather(*tries)
        if all(one.code == "4501" and one.error_code == "token_invalid" for one in outcomes):
            return max(one.at for one in outcomes) - began  # the answer itself may wait for the provider
        assert {one.code for one in outcomes} <= {"ok", "4501"}, outcomes
        assert time.monotonic() - began < timeout_s, "a key that has gone still counts"
        await asyncio.sleep(0.1)


# A key set at an address.


@pytest.fixture
def provider() -> Iterator[Provider]:
    """An identity provider that works."""
    with Provider() as running:
        yield running


@contextmanager
def jwks_cluster(folder: Path, provider: Provider, *without: str) -> Iterator[KeysCluster]:
    """Pods that ask the provider; each under a path of its own."""
    cluster = KeysCluster(folder, JWT_JWKS_REFRESH_S="3")
    for number, pod in enumerate(cluster.pods):
        pod.environ["ORCHESTRATOR_JWT_JWKS_URL"] = provider.url(f"pod-{number}")
        if without:
            sabotaged(pod, *without)
    with cluster:
        yield cluster


async def asked_again(provider: Provider, names: Sequence[str], timeout_s: float = 5.0) -> None:
    """Wait until each of the pods has asked once more, and has had time for the answer."""
    since = time.monotonic()
    done = await until(lambda: all(provider.count(name, since) for name in names), timeout_s)
    assert done, f"a pod did not ask within {timeout_s} s"
    await asyncio.sleep(0.2)


def test_no_good_token_is_refused_whatever_the_provider_does(tmp_path: Path, provider: Provider) -> None:
    """Keys are rotated early and at the last moment, and the provider fails in nine ways."""
    first, second, third, fourth = (
        Signer(f"key-{n}", algorithm) for n, algorithm in enumerate(("RS256", "ES256", "EdDSA", "RS256"))
    )
    provider.publish(first)
    names = ("pod-0", "pod-1")
    strangers = Counter[str]()
    waits: list[tuple[float, float]] = []
    lines: list[str] = []

    async def rotate(clients: Clients, pods: Sequence[Pod]) -> None:
        old = first.token("old")
        assert (await attempt(pods[0].port, old, "old")).code == "ok"
        assert (await attempt(pods[1].port, old, "old")).code == "ok"
        await asyncio.sleep(1.0)
        lines.append(f"calm: worst connect {clients.worst_s():.3f} s")
        provider.publish(first, second)
        await asyncio.sleep(1.0)
        clients.active = second
        at = time.monotonic()
        await asyncio.sleep(1.0)
        lines.append(f"a key published 1 s before its use: worst connect {clients.worst_s(at):.3f} s")
        clients.active = third
        provider.publish(first, second, third)
        at = time.monotonic()
        await asyncio.sleep(2.5)
        lines.append(f"at the moment of its use: worst connect {clients.worst_s(at):.3f} s")
        provider.publish(second, third)
        took_s = await both_refuse(pods, old)
        lines.append(f"a token of a retired key is refused after {took_s:.2f} s")

    async def fail(clients: Clients) -> None:
        for modes in (
            ("hang", "500"),
            ("garbage", "hang"),
            ("nested", "odd"),
            ("empty", "nested"),
            ("redirect", "large"),
        ):
            at = time.monotonic()
            provider.turn(*modes)
            await asked_again(provider, names)
            lines.append(
                f"{' and '.join(modes)}: worst connect {clients.worst_s(at):.3f} s, "
                f"worst pong {worst_ms(waits, at, time.monotonic()):.1f} ms"
            )

    async def restart(pod: Pod) -> tuple[float, float]:
        """Kill and start a pod while the provider is down; from when to when it was not ready."""
        provider.turn("down")
        began = time.monotonic()
        pod.kill()
        pod.start()
        assert await until(lambda: get(f"{pod.url}/livez")[0] == 200, 10.0)
        for mode in ("down", "hang"):
            provider.turn(mode)
            said: Any = None

            def says_why() -> bool:
                nonlocal said
                status, said = get(f"{pod.url}/readyz")
                assert status == 503
                return "JWT_JWKS_URL" in said["reason"]

            assert await until(says_why, 5.0), said
            lines.append(f"restarted while {mode}: {said['reason']}")
            if mode == "down":
                outcome = await attempt(pod.port, third.token("s0"), "s0")
                assert outcome.code == "503", outcome
            else:
                await asyncio.sleep(1.0)
        provider.turn("good")
        back = time.monotonic()
        assert await until(pod.ready, 8.0)
        lines.append(f"ready {time.monotonic() - back:.2f} s after the provider is back")
        return began, time.monotonic()

    async def scenario(pods: Sequence[Pod]) -> None:
        clients = Clients(pods, first)
        steady = pings(pods[0], first.token("pings", 600), waits)
        async with clients.coming(), stranger(pods, strangers), steady:
            began = time.monotonic()
            await rotate(clients, pods)
            calm = worst_ms(waits, began, time.monotonic())
            began_to_fail = time.monotonic()
            await fail(clients)
            out = await restart(pods[1])
            troubled = worst_ms(waits, began_to_fail, out[1])
            clients.active = fourth
            provider.publish(third, fourth)
            await asyncio.sleep(2.0)
            seconds = time.monotonic() - began
        apart = [
            one for one in clients.refused() if one.port == pods[1].port and out[0] - 16 < one.at < out[1]
        ]
        refused = [one for one in clients.refused() if one not in apart]
        asked = {name: provider.count(name, began) for name in names}
        lines.append(
            f"{seconds:.1f} s: {len(clients.outcomes)} connects, worst {clients.worst_s():.3f} s, "
            f"refused {len(refused)}; by the restarted pod {dict(Counter(one.code for one in apart))}; "
            f"made-up tokens {dict(strangers)}; provider asked {asked}; "
            f"worst pong {calm:.1f} ms calm, {troubled:.1f} ms in trouble"
        )
        print("", *lines, sep="\n")
        assert not refused
        assert {one.code for one in apart} <= {"503", "lost"}
        assert len(clients.outcomes) > 15 * seconds
        assert clients.worst_s() < 2 * COOLDOWN_S
        assert strangers.total() > 0.8 * MADE_UP_A_SECOND * seconds
        assert set(strangers) <= {"4501", "503", "lost"}
        for name, count in asked.items():
            assert count <= seconds / COOLDOWN_S + 3, name
        assert troubled < max(250.0, 3 * calm)

    with jwks_cluster(tmp_path, provider) as cluster:
        uvloop.run(scenario(cluster.pods))
        for pod in cluster.pods:
            assert "Traceback" not in pod.output


def test_without_a_pause_the_provider_is_asked_for_every_made_up_key(
    tmp_path: Path, provider: Provider
) -> None:
    """Control: where nothing paces the requests, the bound on them does not hold."""
    provider.publish(Signer("key", "EdDSA"))

    async def scenario(pods: Sequence[Pod]) -> None:
        began = time.monotonic()
        async with stranger(pods, Counter()):
            await asyncio.sleep(2)
        seconds = time.monotonic() - began
        assert provider.count("pod-0", began) > 3 * (seconds / COOLDOWN_S + 3)

    with jwks_cluster(tmp_path, provider, "pace") as cluster:
        uvloop.run(scenario(cluster.pods))


# A directory of keys.


def _told(pod: Pod, event: str) -> int:
    return sum(f'"{event}"' in line for line in pod.output.splitlines())


def test_keys_in_a_directory_come_and_go(tmp_path: Path) -> None:
    """Public keys and secrets are added and removed; a broken file changes nothing, and is told once."""
    folder = tmp_path / "keys"
    folder.mkdir()
    first, second, third, last = (
        Signer(f"key-{n}", algorithm) for n, algorithm in enumerate(("RS256", "HS256", "ES256", "EdDSA"))
    )
    waits: list[tuple[float, float]] = []

    async def known(pods: Sequence[Pod], signer: Signer) -> None:
        """Wait until every pod has read the directory again, and takes the key's tokens."""
        async with asyncio.timeout(6):
            while True:
                tries = [attempt(pod.port, signer.token("new"), "new", talk=False) for pod in pods]
                if all(one.code == "ok" for one in await asyncio.gather(*tries)):
                    return
                await asyncio.sleep(0.1)

    async def scenario(pods: Sequence[Pod]) -> None:
        clients = Clients(pods, first)
        async with clients.coming(), pings(pods[0], first.token("pings", 600), waits):
            old = first.token("old")
            assert (await attempt(pods[1].port, old, "old")).code == "ok"
            second.write(folder)
            await known(pods, second)
            clients.active = second
            await asyncio.sleep(0.5)
            (folder / "key-0.pem").unlink()
            retired_s = await both_refuse(pods, old)
            third.write(folder)
            await known(pods, third)
            clients.active = third
            (folder / "broken.pem").write_text("-----BEGIN PUBLIC KEY-----\nnone\n")
            await asyncio.sleep(4.2)  # it is read twice
            assert [_told(pod, "keys_not_read") for pod in pods] == [1, 1]
            assert (await attempt(pods[1].port, second.token("kept"), "kept")).code == "ok"
            (folder / "broken.pem").unlink()
            last.write(folder)
            await known(pods, last)
            clients.active = last
            (folder / "key-1.secret").unlink()
            await both_refuse(pods, second.token("old"))
            await asyncio.sleep(0.5)
        print(
            f"\n{len(clients.outcomes)} connects, worst {clients.worst_s():.3f} s, "
            f"refused {len(clients.refused())}; a removed key's token is refused after {retired_s:.2f} s; "
            f"worst pong {max(wait for _, wait in waits) * 1e3:.1f} ms"
        )
        assert not clients.refused()
        assert max(wait for _, wait in waits) < 0.25

    first.write(folder)
    with KeysCluster(tmp_path, JWT_KEYS_DIR=str(folder)) as cluster:
        uvloop.run(scenario(cluster.pods))
        for pod in cluster.pods:
            assert "Traceback" not in pod.output
            assert _told(pod, "keys_not_read") == 1

"""The processes under attack: a cluster that trusts every kind of key, and pods that lack a guard."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.adversary.key_server import KeyServer
from tests.support.adversary.tokens import AUDIENCE, ISSUER, Mint
from tests.support.processes import Cluster, Pod, Process, wait_for
from tests.support.sabotage import sabotaged

ORIGIN, ORIGINS_BELOW = "https://app.example.com", "https://*.example.org"
HANDSHAKES, SOCKETS = 12, 4
"""Per client address: handshakes in a minute, and open sockets of a pod."""


class _Guarded(Cluster):
    """A cluster whose operators' tokens are of the mint."""

    def __init__(self, folder: Path, mint: Mint, settings: dict[str, Any]) -> None:
        super().__init__(folder, **settings)
        self._mint = mint

    def operator(self, *scopes: str) -> dict[str, str]:
        token = self._mint.token(self._mint.claims(tenant_id="*", scope=" ".join(scopes)))
        return {"Authorization": f"Bearer {token}"}


def has_ended(process: Process) -> bool:
    """Whether a process is gone."""
    return process.popen is None or process.popen.poll() is not None


def _port_apart() -> int:
    """A port that none of the attacker's many connections gets until the pod listens on it."""
    while True:
        port = random.randrange(15_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Camp:
    """Two pods, a router, Valkey and an identity provider; and a server of the attacker's. A context manager.

    Args:
        folder: for data, logs and keys.
        seed: of all secrets and choices.

    Attributes:
        provider: serves the key set.
        lure: where tokens of the attacker's say that keys are.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.mint = Mint(seed)
        self.provider = KeyServer(self.mint.key_set())
        self.lure = KeyServer(self.mint.stranger_set())
        self.mint.write_keys(folder / "keys")
        self._folder = folder
        self.cluster = _Guarded(folder, self.mint, self._settings(folder / "keys"))
        self._early: dict[str, Pod] = {}

    def _settings(self, keys: Path) -> dict[str, Any]:
        return {
            "AUTH": "jwt",
            "JWT_SECRET": self.mint.secret,
            "JWT_ALGORITHMS": "HS256,RS256,ES256",
            "JWT_KEYS_DIR": str(keys),
            "JWT_JWKS_URL": self.provider.url,
            "JWT_AUDIENCE": AUDIENCE,
            "JWT_ISSUER": ISSUER,
            "ALLOWED_ORIGINS": f"{ORIGIN},{ORIGINS_BELOW}",
            "TRUSTED_PROXIES": "127.0.0.1",
            "HANDSHAKES_PER_ADDRESS": str(HANDSHAKES),
            "CONNECTIONS_PER_ADDRESS": str(SOCKETS),
            "HANDSHAKE_TIMEOUT_S": "10",
            "LOG_LEVEL": "debug",
            "REQUEST_TIMEOUT_S": "2",
            # An attacker who is slowed down is no measure of the guards.
            "MESSAGES_PER_S": "0",
            "CONNECTIONS_PER_SESSION": "0",
            "CONNECTIONS_PER_USER": "0",
            "CONNECTIONS_PER_TENANT": "0,0,0,0",
            "SENDS_PER_MINUTE": "0,0,0,0",
            "SENDS_PER_DAY": "0,0,0,0",
            "SENDS_PER_SESSION_HOUR": "0,0,0,0",
            "SESSION_TASKS_MAX": "1000",
            "TOPICS_PER_CONNECTION": "1000",
            "TASK_TIMEOUT_S": "3600,3600,3600,3600",
        }

    def __enter__(self) -> Camp:
        self.provider.__enter__()
        self.lure.__enter__()
        try:
            self.cluster.__enter__()
        except BaseException:
            self._strike()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.__exit__(kind, error, trace)
        self._strike()

    def _strike(self) -> None:
        for pod in self._early.values():
            pod.kill()
        self.provider.__exit__(None, None, None)
        self.lure.__exit__(None, None, None)

    @contextmanager
    def pod_without(self, guard: str, *soon: str) -> Iterator[Pod]:
        """One more pod, without one of its guards.

        Args:
            soon: what will be asked for next; those pods begin to start already.
        """
        pods = [self._starting(name) for name in (guard, *soon)]
        try:
            wait_for(lambda: pods[0].ready() or has_ended(pods[0]), f"pod without {guard} ready")
            assert not has_ended(pods[0]), pods[0].output
            yield pods[0]
        finally:
            self._early.pop(guard).kill()

    def _starting(self, guard: str) -> Pod:
        if guard not in self._early:
            environ = self.cluster.pods[0].environ
            pod = self._early[guard] = Pod(environ, self._folder / f"pod-without-{guard}.log")
            pod.port = _port_apart()
            pod.command[-1] = str(pod.port)
            sabotaged(pod, guard)
            pod.start()
        return self._early[guard]

    def tokens_in_logs(self) -> list[str]:
        """Parts of tokens that stand in a log; there may be none."""
        processes = (*self.cluster.pods, *self.cluster.routers)
        return [part for process in processes for part in self.mint.found_in(process.output)]

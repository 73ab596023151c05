"""A primary with replicas, watched by Sentinels."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from redis.exceptions import RedisError

from tests.support.processes import wait_for
from tests.support.topology.server import (
    DURABLE,
    HOST,
    QUICK_REPLICATION,
    Server,
    Servers,
    access,
    answered,
    login,
    replaced,
    texts,
)


class SentinelSet(Servers):
    """A primary with replicas (each with an append-only file), watched by Sentinels.

    Args:
        folder: for data, configuration and logs.
        replicas: of the primary.
        sentinels: how many; more than half of them decide.
        down_after_ms: after which a silent primary is suspected.
        failover_timeout_ms: a second attempt waits for twice this.
        user: whom the data servers (not the Sentinels) let in, with `password`; else they let in anybody.
    """

    SERVICE = "orchestrator"

    def __init__(
        self,
        folder: Path,
        *,
        replicas: int = 2,
        sentinels: int = 3,
        down_after_ms: int = 1000,
        failover_timeout_ms: int = 5000,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        lines = [*DURABLE, *QUICK_REPLICATION]
        if user:
            lines += [*access(user, password), f"primaryuser {user}", f'primaryauth "{password}"']
        self._user, self._password = user, password
        first = Server(folder, lines, user=user, password=password)
        lines = [*lines, f"replicaof {HOST} {first.port}"]
        rest = [Server(folder, lines, user=user, password=password) for _ in range(replicas)]
        self.servers = [first, *rest]
        watch = [
            f"sentinel monitor {self.SERVICE} {HOST} {first.port} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds {self.SERVICE} {down_after_ms}",
            f"sentinel failover-timeout {self.SERVICE} {failover_timeout_ms}",
            f"sentinel parallel-syncs {self.SERVICE} {max(replicas, 1)}",
        ]
        if user:
            watch += [f"sentinel auth-user {self.SERVICE} {user}"]
            watch += [f'sentinel auth-pass {self.SERVICE} "{password}"']
        self.sentinels = [Server(folder, watch, sentinel=True) for _ in range(sentinels)]

    @property
    def url(self) -> str:
        """All Sentinels and the service's name, with the data servers' user and password if they have one."""
        addresses = ",".join(sentinel.address for sentinel in self.sentinels)
        return f"redis+sentinel://{login(self._user, self._password)}{addresses}/{self.SERVICE}"

    def primary(self) -> Server:
        """The primary, as a living Sentinel says.

        Raises:
            LookupError: no Sentinel answers.
        """
        for sentinel in self._living_sentinels():
            with suppress(RedisError):
                return self._told_by(sentinel)
        raise LookupError("no Sentinel answers")

    def replicas(self) -> list[Server]:
        """The living servers beside the primary."""
        primary = self.primary()
        return [server for server in self.servers if server.running and server is not primary]

    def kill_primary(self) -> Server:
        """``kill -9`` the primary; returns it, for `wait_failed_over`."""
        primary = self.primary()
        primary.kill()
        return primary

    def failover(self) -> Server:
        """Have the Sentinels replace the living primary; returns that, for `wait_failed_over`."""
        old = self.primary()
        self._living_sentinels()[0].ask("SENTINEL", "FAILOVER", self.SERVICE)
        return old

    def wait_failed_over(self, old: Server, timeout_s: float = 30.0) -> float:
        """Wait until all living Sentinels name another primary than this, and that takes writes.

        Returns: seconds, counted from when it was killed, stopped or frozen, else from this call.
        """
        return replaced(old, lambda: self._named_instead_of(old), timeout_s)

    def wait_healthy(self, timeout_s: float = 30.0) -> float:
        """Wait until the Sentinels know each other and all servers, and every living replica is linked."""
        return wait_for(answered(self._healthy), "Sentinel set healthy", timeout_s)

    def _everything(self) -> Iterable[Server]:
        return [*self.sentinels, *self.servers]

    def _form(self) -> None:
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.wait_answers()
        # First the replicas: a Sentinel that finds none at first looks again only after 10 s.
        wait_for(answered(lambda: all(server.linked() for server in self.servers[1:])), "replicas linked")
        for sentinel in self.sentinels:
            sentinel.launch()
        for sentinel in self.sentinels:
            sentinel.wait_answers()
            sentinel.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 100, "INFO-PERIOD", 500)
        self.wait_healthy()
        for sentinel in self.sentinels:  # quick only to form: a failover takes the time that it takes
            sentinel.ask("SENTINEL", "DEBUG", "PUBLISH-PERIOD", 2000, "INFO-PERIOD", 10_000)

    def _living_sentinels(self) -> list[Server]:
        return [sentinel for sentinel in self.sentinels if sentinel.running]

    def _told_by(self, sentinel: Server) -> Server:
        _, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def _named_instead_of(self, old: Server) -> bool:
        named = {self._told_by(sentinel) for sentinel in self._living_sentinels()}
        new = self.primary()
        return named == {new} and new is not old and new.info("replication")["role"] == "master"

    def _healthy(self) -> bool:
        primary = self.primary()
        return (
            all(self._knows_all(sentinel, primary) for sentinel in self._living_sentinels())
            and primary.info("replication")["role"] == "master"
            and all(server.linked() for server in self.replicas())
        )

    def _knows_all(self, sentinel: Server, primary: Server) -> bool:
        told = texts(sentinel.ask("SENTINEL", "MASTER", self.SERVICE))
        replicas = map(texts, sentinel.ask("SENTINEL", "REPLICAS", self.SERVICE))
        well = {replica["port"] for replica in replicas if replica["flags"] == "slave"}
        return (
            (told["port"], told["flags"]) == (str(primary.port), "master")
            and told["num-other-sentinels"] == str(len(self.sentinels) - 1)
            and {str(server.port) for server in self.replicas()} <= well
            and bool(sentinel.ask("SENTINEL", "CKQUORUM", self.SERVICE))
        )

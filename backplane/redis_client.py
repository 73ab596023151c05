"""Where Redis is: the one reading of ``REDIS_URL``, for our own links and for redis-py."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from backplane.errors import ConfigurationError
from backplane.slots import Address

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PORTS = {"sentinel": 26_379}
_OPTIONS = {
    *("host", "port", "username", "password", "db", "connection_class"),
    *("sentinel_username", "sentinel_password"),
}

Client = Redis | RedisCluster


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """An address of Redis with what is needed to log in there.

    Attributes:
        url: as it was given; has the password, so never log it (see `shown`).
        kind: ``single``, ``sentinel`` or ``cluster``.
        seeds: the sentinels, or some of the cluster's nodes; of a single server, itself.
        service: the name under which the sentinels watch the server.
        sentinel_username: for the sentinels, which have users of their own.
        tls: None for plain text.
    """

    url: str
    kind: str
    seeds: tuple[Address, ...]
    service: str
    unix_path: str | None
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None
    database: int
    tls: ssl.SSLContext | None

    @property
    def host(self) -> str:
        """The first seed's."""
        return self.seeds[0].host

    @property
    def port(self) -> int:
        """The first seed's."""
        return self.seeds[0].port

    @property
    def shown(self) -> str:
        """The address without user and password."""
        if self.kind == "single":
            return self.unix_path or f"{self.host}:{self.port}/{self.database}"
        return f"{self.kind} {','.join(map(str, self.seeds))}/{self.service or self.database}"

    def client(self) -> Client:
        """A redis-py client, for tools and rarely used commands.

        It does not retry: a command that is sent twice after a lost reply may be carried out twice.
        """
        once = Retry(NoBackoff(), 0)
        if self.kind == "single":
            return Redis.from_url(self.url, retry=once)
        login: dict[str, Any] = {"username": self.username, "password": self.password}
        if self.tls is not None:
            login |= {"ssl": True, **_redis_py_tls(self.url)}
        if self.kind == "cluster":
            nodes = [ClusterNode(host, port) for host, port in self.seeds]
            return RedisCluster(startup_nodes=nodes, **login)
        sentinel_login = {**login, "username": self.sentinel_username, "password": self.sentinel_password}
        sentinel = Sentinel(list(self.seeds), sentinel_kwargs=sentinel_login)  # type: ignore[no-untyped-call]
        primary: Redis = sentinel.master_for(self.service, db=self.database, retry=once, **login)
        return primary


def parse_redis_url(url: str) -> RedisTarget:
    """Read an address of Redis.

    ``redis://``, ``rediss://`` (TLS) and ``unix://`` as redis-py reads them, with its query options;
    ``redis+sentinel://user:password@host:port,host:port/service`` with ``?db=``, ``?sentinel_username=`` and
    ``?sentinel_password=``; ``redis+cluster://user:password@host:port,host:port``. The last two over TLS as
    ``rediss+…``, with the same ``ssl_*`` options.

    Raises:
        ConfigurationError: the scheme is not one of `SCHEMES`, or a part cannot be read.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise ConfigurationError(f"REDIS_URL must begin with one of {', '.join(s + '://' for s in SCHEMES)}")
    base, _, kind = scheme.partition("+")
    hosts, plain = _split_hosts(url, base) if kind else ((), url)
    try:
        parts: dict[str, Any] = dict(parse_url(plain))
        seeds = tuple(_address(host, _PORTS.get(kind, 6379)) for host in hosts)
    except ValueError:
        # Not what urllib says: with an unescaped / or # in the password it quotes a part of that.
        raise ConfigurationError(
            "REDIS_URL cannot be read; it must be like redis://user:password@host:6379/0, with special "
            "characters of the password percent-encoded and known options behind ?"
        ) from None
    unknown = {name for name in parts if name not in _OPTIONS and not name.startswith("ssl_")}
    if kind and unknown:
        raise ConfigurationError(f"REDIS_URL has an unknown option: {', '.join(sorted(unknown))}")
    service = urlsplit(url).path.strip("/") if kind == "sentinel" else ""
    if kind == "sentinel" and not re.fullmatch(r"[A-Za-z0-9._-]+", service):
        raise ConfigurationError(
            "REDIS_URL must end with the name under which the sentinels watch the server: "
            "redis+sentinel://host:26379,host:26379/service"
        )
    database = int(parts.get("db", 0))
    if kind == "cluster" and database:
        raise ConfigurationError("REDIS_URL names a database, and a Redis Cluster has only database 0")
    return RedisTarget(
        url=url,
        kind=kind or "single",
        seeds=seeds or (Address(str(parts.get("host", "localhost")), int(parts.get("port", 6379))),),
        service=service,
        unix_path=parts.get("path"),
        username=parts.get("username"),
        password=parts.get("password"),
        sentinel_username=parts.get("sentinel_username"),
        sentinel_password=parts.get("sentinel_password"),
        database=database,
        tls=_tls(parts) if base == "rediss" else None,
    )


def _split_hosts(url: str, base: str) -> tuple[list[str], str]:
    """The hosts of an address that has several, and the address with one, which redis-py can read."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    path = parts.path if parts.scheme.endswith("cluster") else ""
    query = f"?{parts.query}" if parts.query else ""
    return hosts.split(","), f"{base}://{login}{at}localhost{path}{query}"


def _address(text: str, default_port: int) -> Address:
    """One ``host:port`` of a list; IPv6 addresses stand in brackets.

    Raises:
        ValueError: it is no such.
    """
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path or parts.username:
        raise ValueError(text)
    return Address(parts.hostname, parts.port or default_port)


def _tls(parts: dict[str, object]) -> ssl.SSLContext:
    """A client context from redis-py's ``ssl_*`` query options."""
    try:
        authorities = parts.get("ssl_ca_certs")
        context = ssl.create_default_context(cafile=None if authorities is None else str(authorities))
        if parts.get("ssl_certfile") is not None:
            keyfile = parts.get("ssl_keyfile")
            context.load_cert_chain(str(parts["ssl_certfile"]), None if keyfile is None else str(keyfile))
    except OSError as error:
        raise ConfigurationError(f"REDIS_URL names a certificate that cannot be read: {error}") from None
    if str(parts.get("ssl_check_hostname", "true")).lower() in {"0", "no", "false"}:
        context.check_hostname = False
    if parts.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _redis_py_tls(url: str) -> dict[str, Any]:
    """The ``ssl_*`` options of an address, for redis-py's constructors."""
    parts = dict(parse_url(f"rediss://localhost?{urlsplit(url).query}"))
    return {name: value for name, value in parts.items() if name.startswith("ssl_")}

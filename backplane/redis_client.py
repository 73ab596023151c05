"""Where Redis is: the one reading of ``REDIS_URL``, for our own links and for redis-py."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from backplane.errors import ConfigurationError

SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """An address of Redis with what is needed to log in there.

    Attributes:
        url: as it was given; has the password, so never log it (see `shown`).
        tls: None for plain text.
    """

    url: str
    host: str
    port: int
    unix_path: str | None
    username: str | None
    password: str | None
    database: int
    tls: ssl.SSLContext | None

    @property
    def shown(self) -> str:
        """The address without user and password."""
        return self.unix_path or f"{self.host}:{self.port}/{self.database}"

    def client(self) -> Redis:
        """A redis-py client, for tools and rarely used commands.

        It does not retry: a command that is sent twice after a lost reply may be carried out twice.
        """
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0))


def parse_redis_url(url: str) -> RedisTarget:
    """Read ``redis://``, ``rediss://`` and ``unix://`` addresses, with redis-py's query options.

    Raises:
        ConfigurationError: the scheme is not one of `SCHEMES`, or a part cannot be read.
    """
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise ConfigurationError(f"REDIS_URL must begin with one of {', '.join(s + '://' for s in SCHEMES)}")
    try:
        parts = parse_url(url)
    except ValueError:
        # Not what urllib says: with an unescaped / or # in the password it quotes a part of that.
        raise ConfigurationError(
            "REDIS_URL cannot be read; it must be like redis://user:password@host:6379/0, with special "
            "characters of the password percent-encoded and known options behind ?"
        ) from None
    return RedisTarget(
        url=url,
        host=str(parts.get("host", "localhost")),
        port=int(parts.get("port", 6379)),
        unix_path=parts.get("path"),
        username=parts.get("username"),
        password=parts.get("password"),
        database=int(parts.get("db", 0)),
        tls=_tls(dict(parts)) if scheme == "rediss" else None,
    )


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

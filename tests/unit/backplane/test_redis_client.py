"""Redis addresses."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster

from backplane.errors import ConfigurationError
from backplane.redis_client import parse_redis_url
from backplane.slots import Address


def test_a_whole_address() -> None:
    """User, password, database and TLS are read from the URL; what is shown has no password."""
    target = parse_redis_url("rediss://user:pa%2Fss@redis.example:7000/3")
    assert (target.host, target.port, target.database) == ("redis.example", 7000, 3)
    assert (target.username, target.password) == ("user", "pa/ss")
    assert target.tls is not None
    assert target.shown == "redis.example:7000/3"


def test_a_unix_socket() -> None:
    """unix:// names a path."""
    target = parse_redis_url("unix:///run/redis.sock")
    assert (target.kind, target.unix_path, target.shown) == ("single", "/run/redis.sock", "/run/redis.sock")


def test_what_is_left_out_has_its_default() -> None:
    """One server, without user, password and TLS."""
    target = parse_redis_url("redis://redis.example")
    assert (target.kind, target.seeds, target.database) == ("single", (Address("redis.example", 6379),), 0)
    assert (target.username, target.password, target.tls, target.service) == (None, None, None, "")


def test_sentinels() -> None:
    """Several of them, each with its port or theirs by custom, and the name of what they watch."""
    target = parse_redis_url("redis+sentinel://user:pa%2Fss@a.example:5000,b,[::1]:7/my-primary.1?db=3")
    assert target.kind == "sentinel"
    assert target.seeds == (Address("a.example", 5000), Address("b", 26_379), Address("::1", 7))
    assert (target.service, target.database) == ("my-primary.1", 3)
    assert (target.username, target.password, target.tls) == ("user", "pa/ss", None)
    assert (target.sentinel_username, target.sentinel_password) == (None, None)
    assert (target.host, target.port) == ("a.example", 5000)
    assert target.shown == "sentinel a.example:5000,b:26379,::1:7/my-primary.1"


def test_sentinels_have_users_of_their_own() -> None:
    """What opens the server does not open the sentinels, nor the other way round."""
    target = parse_redis_url(
        "redis+sentinel://:secret@a/main?sentinel_username=watcher&sentinel_password=an%26other"
    )
    assert (target.username, target.password) == (None, "secret")
    assert (target.sentinel_username, target.sentinel_password) == ("watcher", "an&other")
    assert "secret" not in target.shown
    assert "other" not in target.shown


@pytest.mark.parametrize("end", ["", "/", "/0"])
def test_a_cluster(end: str) -> None:
    """Some of its nodes; it has only one database."""
    target = parse_redis_url(f"redis+cluster://user:p%40ss@a:7000,b{end}")
    assert (target.kind, target.seeds) == ("cluster", (Address("a", 7000), Address("b", 6379)))
    assert (target.username, target.password, target.tls, target.database) == ("user", "p@ss", None, 0)
    assert target.shown == "cluster a:7000,b:6379/0"


@pytest.mark.parametrize(
    "address", ["rediss://a:1/0", "rediss+sentinel://a:1,b/main", "rediss+cluster://a:1,b"]
)
def test_tls(address: str) -> None:
    """Checked by default; what is not to be checked has to be said."""
    tls = parse_redis_url(address).tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, True)
    tls = parse_redis_url(f"{address}?ssl_check_hostname=false").tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_REQUIRED, False)
    tls = parse_redis_url(f"{address}?ssl_cert_reqs=none").tls
    assert tls is not None
    assert (tls.verify_mode, tls.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize("scheme", ["rediss://a:1/0", "rediss+sentinel://a/main", "rediss+cluster://a"])
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_certificates_that_cannot_be_read(scheme: str, option: str, tmp_path: Path) -> None:
    """Said at the start, not when the first connection fails."""
    broken = tmp_path / "broken.pem"
    for path in (tmp_path / "missing.pem", broken):
        broken.write_text("no certificate")
        with pytest.raises(ConfigurationError, match="certificate that cannot be read"):
            parse_redis_url(f"{scheme}?{option}={path}")


@pytest.mark.parametrize(
    "url",
    ["redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel://a,b?db=1", "redis+sentinel://a/b/c",
     "redis+sentinel://a/b%20c"],
)  # fmt: skip
def test_sentinels_need_a_name(url: str) -> None:
    """They may watch several servers."""
    with pytest.raises(ConfigurationError, match="the name under which the sentinels watch"):
        parse_redis_url(url)


@pytest.mark.parametrize("url", ["redis+cluster://a/1", "redis+cluster://a,b?db=3"])
def test_a_cluster_has_no_databases(url: str) -> None:
    """One that is asked for would silently be another one."""
    with pytest.raises(ConfigurationError, match="only database 0"):
        parse_redis_url(url)


@pytest.mark.parametrize(
    "url",
    ["redis+cluster://", "redis+cluster://a,,b", "redis+cluster://a:x", "redis+cluster://a:99999",
     "redis+cluster://::1:7000", "redis+sentinel:///main", "redis+sentinel://a:hunter2/x@b/main",
     "redis+sentinel://:hunter2#x@b/main", "redis+sentinel://u:hunter2@a:port/main",
     "redis+cluster://u:hunter2@a?db=x"],
)  # fmt: skip
def test_hosts_that_cannot_be_read(url: str) -> None:
    """One clear line, with no password in it, whatever part is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        parse_redis_url(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__  # nor in what caused it


async def test_clients_of_each_kind() -> None:
    """The tools' own connections go to the same place, with the same login."""
    single = parse_redis_url("redis://user:pw@a:1/2").client()
    assert isinstance(single, Redis)
    assert single.connection_pool.connection_kwargs["db"] == 2
    sentinel = parse_redis_url("redis+sentinel://user:pw@a:1,b/main?db=2&sentinel_password=x").client()
    assert isinstance(sentinel, Redis)
    assert sentinel.connection_pool.connection_kwargs["db"] == 2
    assert sentinel.connection_pool.connection_kwargs["password"] == "pw"
    [first, second] = sentinel.connection_pool.sentinel_manager.sentinels  # type: ignore[attr-defined]
    assert first.connection_pool.connection_kwargs["port"] == 1
    assert second.connection_pool.connection_kwargs["password"] == "x"
    cluster = parse_redis_url("redis+cluster://user:pw@a:1,b").client()
    assert isinstance(cluster, RedisCluster)
    assert [(node.host, node.port) for node in cluster.nodes_manager.startup_nodes.values()] == [
        ("a", 1),
        ("b", 6379),
    ]
    for client in (single, sentinel, cluster):
        await client.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@host:1/0",
        "redis://:hunter2#x@host/0",
        "redis://u:hunter2@h:port/0",
        "redis://h/0?db=x",
    ],
)
def test_an_unreadable_address_shows_no_password(url: str) -> None:
    """The error says what an address looks like, and nothing of the one given."""
    try:
        target = parse_redis_url(url)
    except ConfigurationError as error:
        said = str(error)
    else:
        said = target.shown
    assert "hunter2" not in said


@pytest.mark.parametrize("url", ["redis+other://a:1", "http://a", "host:6379", ""])
def test_other_schemes_are_refused(url: str) -> None:
    """What is not supported is said, not tried."""
    with pytest.raises(ConfigurationError, match="must begin with one of"):
        parse_redis_url(url)

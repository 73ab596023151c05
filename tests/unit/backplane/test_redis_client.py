"""Redis addresses."""

from __future__ import annotations

import pytest

from backplane.errors import ConfigurationError
from backplane.redis_client import parse_redis_url


def test_a_whole_address() -> None:
    """User, password, database and TLS are read from the URL; what is shown has no password."""
    target = parse_redis_url("rediss://user:pa%2Fss@redis.example:7000/3")
    assert (target.host, target.port, target.database) == ("redis.example", 7000, 3)
    assert (target.username, target.password) == ("user", "pa/ss")
    assert target.tls is not None
    assert target.shown == "redis.example:7000/3"


def test_a_unix_socket() -> None:
    """unix:// names a path."""
    assert parse_redis_url("unix:///run/redis.sock").unix_path == "/run/redis.sock"


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


@pytest.mark.parametrize(
    "url", ["redis+sentinel://a:1/main", "redis+cluster://a:1", "http://a", "host:6379", ""]
)
def test_other_schemes_are_refused(url: str) -> None:
    """What is not supported is said, not tried."""
    with pytest.raises(ConfigurationError, match="must begin with one of"):
        parse_redis_url(url)

"""Which kind of store an address needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from backplane.cluster import Cluster
from backplane.link import Link
from backplane.redis_client import RedisTarget
from backplane.single import Single
from backplane.store import Store


async def _nothing(_link: Link) -> None:
    """For stores whose connections need no words of their own."""


def _ignore(_push: list[Any]) -> None:
    """For stores that are pushed nothing."""


def open_store(
    target: RedisTarget,
    name: str,
    *,
    timeout_s: float,
    on_push: Callable[[list[Any]], None] = _ignore,
    channels: Callable[[], Iterable[str]] = tuple,
    on_connect: Callable[[Link], Awaitable[None]] = _nothing,
    on_change: Callable[[Link, bool], None] = lambda _link, _up: None,
    on_failure: Callable[[str], None] = lambda _reason: None,
    on_moved: Callable[[], None] = lambda: None,
) -> Store:
    """A store; it connects when its `run` does.

    Args:
        target: where Redis is.
        name: of its connections, shown by ``CLIENT LIST``.
        timeout_s: a connection on which nothing is heard for so long, although asked, counts as lost.
        on_push: gets what Redis pushes on any connection: messages, invalidations; must not raise.
        channels: all that are subscribed now, to subscribe them on a new connection.
        on_connect: runs on every new connection, before the channels are subscribed and it is used.
        on_change: told which connection is up, or was lost.
        on_failure: told why a connection cannot be made, once for each new reason.
        on_moved: told that channels were subscribed elsewhere; what was published meanwhile is missing.
    """
    if target.kind == "cluster":
        return Cluster(
            target, name, timeout_s, on_push, channels, on_connect, on_change, on_failure, on_moved
        )
    return Single(target, name, timeout_s, on_push, channels, on_connect, on_change, on_failure)

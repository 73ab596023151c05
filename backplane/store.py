"""Redis as the rest of the project sees it: one server, the one that Sentinel names, or a cluster.

A store sends a command to the server that has its key, keeps subscriptions alive, and keeps one promise: what
is read for a key after its channel was subscribed contains all that the subscription will not bring.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from backplane.link import Link
from backplane.scripts import Script
from backplane.wire import Argument, Reply


class Store(Protocol):
    """What all kinds of Redis can do; the second word of every command is its key."""

    @property
    def up(self) -> bool:
        """Whether all servers can be reached."""

    @property
    def last_error(self) -> str:
        """Why that is not so."""

    @property
    def links(self) -> list[Link]:
        """The connections: one, or one to each primary."""

    @property
    def connects(self) -> int:
        """How many connections were made so far."""

    @property
    def publish_command(self) -> str:
        """``PUBLISH``, or ``SPUBLISH`` where channels have slots: for scripts."""

    @property
    def clustered(self) -> bool:
        """Whether keys have slots."""

    def slot(self, key: str) -> int:
        """Keys with the same number can be given to one script."""

    def link_for(self, key: str | bytes) -> Link | None:
        """The connection to the server that has the key; None if it is not known."""

    def serves(self, key: str) -> bool:
        """Whether commands for a key can be sent now."""

    async def wait_for(self, key: str) -> None:
        """Return when commands for a key can be sent."""

    def call(self, command: str, key: str | bytes, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command at once and return the future of its reply.

        Raises:
            RedisUnavailable: not connected (here), connection lost before the reply (from the future).
            RedisRefused: Redis answered with an error (from the future).
        """

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        """Run a script; all its keys are in one slot.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """

    async def script_and_watch(
        self, script: Script, keys: list[str], args: list[Argument], watched: str
    ) -> tuple[Reply, int]:
        """Run a script and then watch a list: the next write to it is told by an ``invalidate`` push.

        Returns:
            The script's reply, and how long the list was when the watch began.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """

    def watch(self, key: str | bytes) -> asyncio.Future[Reply]:
        """Watch a list; returns the future of its length now. See `script_and_watch`.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """

    def publish(self, channel: str, payload: str | bytes) -> asyncio.Future[Reply]:
        """Publish a message.

        Raises:
            RedisUnavailable, RedisRefused: as `call`.
        """

    def subscribe(self, channels: Sequence[str]) -> None:
        """Have channels' messages pushed, also over later connections as long as they are wanted."""

    def unsubscribe(self, channel: str) -> None:
        """Have no more of a channel's messages."""

    async def run(self) -> None:
        """Connect and stay connected; returns only by cancellation."""

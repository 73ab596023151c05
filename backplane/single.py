"""One Redis server, or the one that Sentinel names as the primary."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link
from backplane.redis_client import RedisTarget
from backplane.scripts import Script
from backplane.sentinel import Sentinels
from backplane.wire import Argument, OnPush, Reply, forget

CHANNELS_A_COMMAND = 500
_ASK_SENTINELS_S = 2.0
_SENTINEL_S = 1.0


class Single:
    """A `backplane.store.Store`. See `open_store` for the arguments."""

    publish_command = "PUBLISH"
    clustered = False

    def __init__(
        self,
        target: RedisTarget,
        name: str,
        timeout_s: float,
        on_push: OnPush,
        channels: Callable[[], Iterable[str]],
        on_connect: Callable[[Link], Awaitable[None]],
        on_change: Callable[[Link, bool], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._channels = channels
        self._on_connect = on_connect
        # Within the time that a connection has in all, and the connecting itself takes some of it.
        patience_s = min(_SENTINEL_S, timeout_s / 2)
        self._sentinels = Sentinels(target, name, patience_s) if target.kind == "sentinel" else None
        self._link = Link(
            target,
            name,
            timeout_s=timeout_s,
            on_push=on_push,
            on_connect=self._greet,
            on_change=lambda up: on_change(self._link, up),
            on_failure=on_failure,
            locate=None if self._sentinels is None else self._sentinels.primary,
        )

    @property
    def up(self) -> bool:
        return self._link.up

    @property
    def last_error(self) -> str:
        return self._link.last_error

    @property
    def links(self) -> list[Link]:
        return [self._link]

    @property
    def connects(self) -> int:
        return self._link.connects

    def slot(self, key: str) -> int:
        return 0

    def link_for(self, key: str | bytes) -> Link | None:
        return self._link

    def serves(self, key: str) -> bool:
        return self._link.up

    async def wait_for(self, key: str) -> None:
        await self._link.wait_up()

    def call(self, command: str, key: str | bytes, *args: Argument) -> asyncio.Future[Reply]:
        return self._link.call(command, key, *args)

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        return await self._link.script(script, keys, args)

    async def script_and_watch(
        self, script: Script, keys: list[str], args: list[Argument], watched: str
    ) -> tuple[Reply, int]:
        return await script_and_watch(self._link, script, keys, args, watched)

    def watch(self, key: str | bytes) -> asyncio.Future[Reply]:
        return watch(self._link, key)

    def publish(self, channel: str, payload: str | bytes) -> asyncio.Future[Reply]:
        return self._link.call("PUBLISH", channel, payload)

    def subscribe(self, channels: Sequence[str]) -> None:
        for start in range(0, len(channels), CHANNELS_A_COMMAND):
            self._link.tell("SUBSCRIBE", *channels[start : start + CHANNELS_A_COMMAND])

    def unsubscribe(self, channel: str) -> None:
        self._link.tell("UNSUBSCRIBE", channel)

    async def run(self) -> None:
        if self._sentinels is None:
            await self._link.run()
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run())
            group.create_task(self._follow(self._sentinels))

    async def _greet(self) -> None:
        await self._on_connect(self._link)
        self.subscribe(list(self._channels()))

    async def _follow(self, sentinels: Sentinels) -> None:
        """Leave a server that was replaced while its connections stayed open (cut off from its sentinels)."""
        while True:
            await self._link.wait_up()
            await asyncio.sleep(_ASK_SENTINELS_S)
            with suppress(RedisUnavailable):  # then there is nobody else to turn to
                primary = await sentinels.primary()
                if self._link.up and primary != self._link.address:
                    self._link.abort(f"Sentinel names {primary} as the primary")


async def script_and_watch(
    link: Link, script: Script, keys: list[str], args: list[Argument], watched: str
) -> tuple[Reply, int]:
    """`Store.script_and_watch` on one connection.

    Both are sent in one go: a watch that was begun before the script would end with the script's own write.
    """
    ran, length = link.send_script(script, keys, args), watch(link, watched)
    length.add_done_callback(forget)
    try:
        reply = await ran
    except RedisRefused as error:
        if not str(error).startswith("NOSCRIPT"):
            raise
        reply = await link.script(script, keys, args)
        length = watch(link, watched)
    return reply, int(await length)


def watch(link: Link, key: str | bytes) -> asyncio.Future[Reply]:
    """`Store.watch` on one connection, which needs ``CLIENT TRACKING ON OPTIN NOLOOP``."""
    link.call("CLIENT", "CACHING", "YES").add_done_callback(forget)
    return link.call("LLEN", key)

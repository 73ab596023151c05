"""Redis Cluster: one link to each primary, commands by slot, redirections followed, sharded pub/sub.

What a slot's channels bring and what is read of its keys goes over one connection, as on a single server.
When a slot has moved, its channels are subscribed on the new node and ``on_moved`` is told, so that whoever
reads compares positions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link, hello, open_wire
from backplane.redis_client import RedisTarget
from backplane.scripts import Script
from backplane.single import CHANNELS_A_COMMAND, script_and_watch, watch
from backplane.slots import SLOTS, Address, key_slot, parse_redirection, parse_slots
from backplane.wire import Argument, OnPush, Reply, Wire, forget

_REFRESH_S = 2.0
_GREETING_S = 0.5
_WATCH_AGAIN_S = 1.0
_REFRESH_BROKEN_S = 0.25
_AGAIN_FIRST_S = 0.02
_AGAIN_MOST_S = 0.25
_HOPS_AT_ONCE = 3
_LOOKS_A_NODE = 3
_NOT_NOW = ("TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN")
_MID_MOVE = "non local key"  # a script met a key that is just being moved


class _Command:
    """A command on its way: perhaps to one node after the other."""

    __slots__ = ("args", "before", "delay_s", "future", "hops", "lineage_at", "slot")

    def __init__(self, slot: int, args: tuple[Argument, ...], lineage_at: int, before: float) -> None:
        loop = asyncio.get_running_loop()
        self.slot = slot
        self.args = args
        self.lineage_at = lineage_at  # where the serving node's lineage is put in; 0: nowhere
        self.future: asyncio.Future[Reply] = loop.create_future()
        self.before = loop.time() + before
        self.delay_s = _AGAIN_FIRST_S
        self.hops = 0

    def send(self, link: Link, *, asking: bool) -> asyncio.Future[Reply]:
        """Send it to one node."""
        if asking:
            link.call("ASKING").add_done_callback(forget)
        at = self.lineage_at
        args = (*self.args[:at], link.lineage, *self.args[at:]) if at else self.args
        return link.call(*args)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits, if anyone still does."""
        self.future.set_exception(error)
        self.future.exception()  # a caller that went away must not make asyncio complain


class Cluster:
    """All primaries of a cluster; a `backplane.store.Store`. See `open_store` for the arguments."""

    publish_command = "SPUBLISH"
    clustered = True

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
        on_moved: Callable[[], None],
    ) -> None:
        self._target = target
        self._name = name
        self._timeout_s = timeout_s
        self._user_push = on_push
        self._channels = channels
        self._on_connect = on_connect
        self._on_change = on_change
        self._on_failure = on_failure
        self._on_moved = on_moved
        self._nodes: dict[Address, Link] = {}
        self._running: dict[Address, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._slots: list[Link | None] = [None] * SLOTS
        self._epoch = -1
        self._looks = 0
        self._watching_again = False
        self._older_views: set[Address] = set()  # nodes that tell of an epoch before that
        self._refresh = asyncio.Event()
        self._changed = asyncio.Event()
        self._resubscribe: set[int] = set()  # slots whose channels have to be subscribed again
        self._letting_go: set[bytes] = set()  # channels that we ourselves unsubscribe
        self._connects = 0
        self._failure = ""
        self._wire: Wire | None = None  # for asking what the cluster looks like
        self._asked = target.seeds[0]

    # Store

    @property
    def up(self) -> bool:
        return bool(self._nodes) and all(link.up for link in self._nodes.values()) and None not in self._slots

    @property
    def last_error(self) -> str:
        down = [f"{address}: {link.last_error}" for address, link in self._nodes.items() if not link.up]
        if down:
            return "; ".join(down)
        return self._failure or "some slots are served by no node"

    @property
    def links(self) -> list[Link]:
        return list(self._nodes.values())

    @property
    def connects(self) -> int:
        return self._connects

    def slot(self, key: str) -> int:
        return key_slot(key)

    def link_for(self, key: str | bytes) -> Link | None:
        return self._slots[key_slot(key)]

    def serves(self, key: str) -> bool:
        link = self.link_for(key)
        return link is not None and link.up

    async def wait_for(self, key: str) -> None:
        await asyncio.sleep(0)  # or a caller that has just met a loss might spin on it before it is noticed
        while not self.serves(key):
            self._changed.clear()
            await self._changed.wait()

    def call(self, command: str, key: str | bytes, *args: Argument) -> asyncio.Future[Reply]:
        return self._send(_Command(key_slot(key), (command, key, *args), 0, self._timeout_s))

    async def script(self, script: Script, keys: list[str], args: list[Argument]) -> Reply:
        try:
            return await self._script(("EVALSHA", script.sha1), script, keys, args)
        except RedisRefused as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
        return await self._script(("EVAL", script.text), script, keys, args)

    def _script(
        self, verb: tuple[str, str], script: Script, keys: list[str], args: list[Argument]
    ) -> asyncio.Future[Reply]:
        words = (*verb, len(keys), *keys, *args)
        lineage_at = 3 + len(keys) if script.lineage else 0
        return self._send(_Command(key_slot(keys[0]), words, lineage_at, self._timeout_s))

    async def script_and_watch(
        self, script: Script, keys: list[str], args: list[Argument], watched: str
    ) -> tuple[Reply, int]:
        link = self.link_for(watched)
        if link is None:
            raise RedisUnavailable(f"no node serves the slot: {self.last_error}")
        try:
            return await script_and_watch(link, script, keys, args, watched)
        except RedisRefused as error:
            if not self._redirects(str(error)):
                raise
        # The slot is moving. Follow it; the watch comes later, also if it stays where it was after all.
        if not self._watching_again:
            self._watching_again = True
            asyncio.get_running_loop().call_later(_WATCH_AGAIN_S, self._watch_again)
        return await self.script(script, keys, args), int(await self.call("LLEN", watched))

    def _watch_again(self) -> None:
        self._watching_again = False
        self._on_moved()

    def watch(self, key: str | bytes) -> asyncio.Future[Reply]:
        link = self.link_for(key)
        if link is None:
            raise RedisUnavailable(f"no node serves the slot: {self.last_error}")
        return watch(link, key)

    def publish(self, channel: str, payload: str | bytes) -> asyncio.Future[Reply]:
        return self.call("SPUBLISH", channel, payload)

    def subscribe(self, channels: Sequence[str]) -> None:
        by_slot: dict[int, list[str]] = {}
        for channel in channels:
            by_slot.setdefault(key_slot(channel), []).append(channel)
        for slot, some in by_slot.items():
            link = self._slots[slot]
            if link is not None:
                self._subscribe(link, some)

    def _subscribe(self, link: Link, channels: list[str]) -> None:
        """Subscribe channels of one slot; Redis refuses a command with channels of several."""
        for start in range(0, len(channels), CHANNELS_A_COMMAND):
            link.tell("SSUBSCRIBE", *channels[start : start + CHANNELS_A_COMMAND])

    def unsubscribe(self, channel: str) -> None:
        link = self.link_for(channel)
        if link is not None and link.up:
            self._letting_go.add(channel.encode())
            link.tell("SUNSUBSCRIBE", channel)

    async def run(self) -> None:
        try:
            while True:
                await self._look()
                self._reap()
                broken = not self.up or bool(self._resubscribe)
                try:
                    async with asyncio.timeout(_REFRESH_BROKEN_S if broken else _REFRESH_S):
                        await self._refresh.wait()
                        # One look for all that were redirected at the same moment.
                        await asyncio.sleep(_AGAIN_FIRST_S * random.uniform(0.5, 1.0))
                except TimeoutError:
                    pass
                self._refresh.clear()
        finally:
            if self._wire is not None:
                self._wire.abort("the store was stopped")
            tasks = [*self._running.values(), *self._leaving]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # It may run again, and then it looks for itself where everything is.
            self._wire, self._slots = None, [None] * SLOTS
            self._nodes.clear()
            self._running.clear()

    def _reap(self) -> None:
        """A link's task ends only by cancellation or by our own mistake, which must not stay unseen."""
        for task in self._running.values():
            if task.done():
                task.result()

    # Sending.

    def _send(self, command: _Command) -> asyncio.Future[Reply]:
        link = self._slots[command.slot]
        if link is None:
            raise RedisUnavailable(f"no node serves the slot: {self.last_error}")
        self._attend(command, link, command.send(link, asking=False))
        return command.future

    def _attend(self, command: _Command, link: Link, reply: asyncio.Future[Reply]) -> None:
        reply.add_done_callback(lambda done: self._answered(command, link, done))

    def _answered(self, command: _Command, link: Link, reply: asyncio.Future[Reply]) -> None:
        error = None if reply.cancelled() else reply.exception()
        if command.future.done():
            return
        if error is None:
            command.future.set_result(reply.result())
        elif not isinstance(error, RedisRefused) or not self._redirects(str(error)):
            command.fail(error)
        elif asyncio.get_running_loop().time() > command.before:
            command.fail(RedisUnavailable(f"the cluster did not settle: {error}"))
        else:
            self._again(command, link, str(error))

    def _redirects(self, words: str) -> bool:
        return words.startswith(("MOVED ", "ASK ", *_NOT_NOW)) or _MID_MOVE in words

    def _again(self, command: _Command, link: Link, words: str) -> None:
        """Send a command where Redis says it belongs, at once or after a moment."""
        redirection = parse_redirection(words, link.address)
        target, asking = self._slots[command.slot], False
        if redirection is not None:
            target, asking = self._node(redirection.address), redirection.ask
            if not asking:
                self._assign(redirection.slot, target)
            command.hops += 1
            if target.up and target is not link and command.hops <= _HOPS_AT_ONCE:
                self._try(command, target, asking=asking)
                return
        self._refresh.set()
        self._try_later(command)

    def _try_later(self, command: _Command) -> None:
        asyncio.get_running_loop().call_later(command.delay_s, self._try, command, None)
        command.delay_s = min(command.delay_s * 2, _AGAIN_MOST_S)

    def _try(self, command: _Command, link: Link | None, *, asking: bool = False) -> None:
        if command.future.done():
            return
        link = link or self._slots[command.slot]
        if link is not None and not link.up and asyncio.get_running_loop().time() < command.before:
            self._try_later(command)  # it is just being connected, or will be replaced
            return
        try:
            if link is None:
                raise RedisUnavailable(f"no node serves the slot: {self.last_error}")
            reply = command.send(link, asking=asking)
        except RedisUnavailable as error:
            command.fail(error)
        else:
            self._attend(command, link, reply)

    # What the cluster looks like.

    def _node(self, address: Address) -> Link:
        link = self._nodes.get(address)
        if link is None:
            target = replace(self._target, seeds=(address,))
            link = Link(
                target,
                self._name,
                timeout_s=self._timeout_s,
                on_push=self._on_push,
                on_connect=lambda: self._greet(address),
                on_change=lambda up: self._changed_link(address, up),
                on_failure=lambda reason: self._on_failure(f"{address}: {reason}"),
                on_refused=self._on_refused,
            )
            self._nodes[address] = link
            self._running[address] = asyncio.create_task(link.run(), name=f"link {address}")
        return link

    def _drop(self, address: Address) -> None:
        link = self._nodes.pop(address)
        task = self._running.pop(address)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        task.cancel()
        if link.up:
            self._on_change(link, False)

    def _assign(self, slot: int, link: Link) -> None:
        """A slot is served by another node; its channels follow when we have looked at the whole."""
        self._slots[slot] = link
        self._resubscribe.add(slot)
        self._refresh.set()

    def _move_channels(self, slots: set[int]) -> None:
        moved: dict[int, list[str]] = {}
        for channel in self._channels():
            slot = key_slot(channel)
            if slot in slots:
                moved.setdefault(slot, []).append(channel)
        for slot, channels in moved.items():
            link = self._slots[slot]
            if link is not None:
                self._subscribe(link, channels)
        self._changed.set()
        self._on_moved()

    async def _look(self) -> None:
        """Ask the cluster which node serves which slots, and follow."""
        try:
            async with asyncio.timeout(min(self._timeout_s, _REFRESH_S)):
                wire, asked = await self._any_wire()
                info, slots = await asyncio.gather(
                    wire.call(("CLUSTER", "INFO")), wire.call(("CLUSTER", "SLOTS"))
                )
        except (OSError, RedisUnavailable, TimeoutError) as error:
            if self._wire is not None:
                self._wire.abort("it does not answer")
            self._wire = None
            self._tell(str(error) or type(error).__name__)
            return
        facts = dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)
        epoch = int(facts.get("cluster_current_epoch", 0))
        if epoch < self._epoch:
            # A node that was cut off from the others: ask another. If all say so, the cluster was made anew.
            self._older_views.add(asked)
            if not self._nodes.keys() <= self._older_views:
                wire.abort("its view is an older one")
                return
        self._epoch = epoch
        self._older_views.clear()
        self._looks += 1
        if self._looks % _LOOKS_A_NODE == 0:  # lest one that was cut off be the only one that is asked
            wire.abort("another node is asked")
        self._failure = "" if facts.get("cluster_state") == "ok" else "the cluster says that it is down"
        self._apply(parse_slots(slots, asked))

    def _tell(self, reason: str) -> None:
        if reason != self._failure:
            self._failure = reason
            self._on_failure(f"no node tells what the cluster looks like: {reason}")

    async def _any_wire(self) -> tuple[Wire, Address]:
        """A connection to any node; another one after each failure."""
        if self._wire is not None and not self._wire.lost.is_set():
            return self._wire, self._asked
        addresses = [*self._nodes, *self._target.seeds]
        errors = []
        for address in random.sample(addresses, len(addresses)):
            try:
                async with asyncio.timeout(_GREETING_S):
                    wire = await self._greeted(address)
            except (OSError, RedisUnavailable, TimeoutError) as error:
                errors.append(f"{address}: {error or type(error).__name__}")
                continue
            self._wire, self._asked = wire, address
            return wire, address
        raise RedisUnavailable("; ".join(sorted(set(errors))))

    async def _greeted(self, address: Address) -> Wire:
        wire = await open_wire(self._target, address)
        try:
            await wire.call(hello(self._target.username, self._target.password, self._name))
        except BaseException:
            wire.abort("it did not answer the greeting")
            raise
        return wire

    def _apply(self, ranges: list[Any]) -> None:
        wanted = {part.primary for part in ranges}
        moved: set[int] = set()
        served = 0
        for part in ranges:
            link = self._node(part.primary)
            served += part.last + 1 - part.first
            for slot in range(part.first, part.last + 1):
                if self._slots[slot] is not link:
                    moved.add(slot)
                    self._slots[slot] = link
        if served < SLOTS:
            covered = {slot for part in ranges for slot in range(part.first, part.last + 1)}
            for slot in range(SLOTS):
                if slot not in covered:
                    self._slots[slot] = None
            self._failure = f"{SLOTS - served} slots are served by no node"
        for address in [address for address in self._nodes if address not in wanted]:
            self._drop(address)
        again, self._resubscribe = self._resubscribe, set()
        if moved or again:
            self._move_channels(moved | again)

    # Links.

    async def _greet(self, address: Address) -> None:
        link = self._nodes.get(address)
        if link is None:
            raise RedisUnavailable(f"{address} has left the cluster")
        await self._on_connect(link)
        self.subscribe([name for name in self._channels() if self._slots[key_slot(name)] is link])

    def _changed_link(self, address: Address, up: bool) -> None:
        link = self._nodes.get(address)
        if link is None:
            return
        self._connects += up
        self._changed.set()
        if not up:
            self._letting_go.clear()  # their confirmations may be lost; at worst one look too many follows
            self._refresh.set()
        self._on_change(link, up)

    def _on_push(self, push: list[Any]) -> None:
        if push[0] == b"sunsubscribe":
            if push[1] in self._letting_go:
                self._letting_go.discard(push[1])
            else:  # a node that gives a slot away drops its subscribers
                self._resubscribe.add(key_slot(push[1]))
                self._refresh.set()
        self._user_push(push)

    def _on_refused(self, args: tuple[Argument, ...], words: str) -> None:
        slot = key_slot(str(args[1]))
        link = self._slots[slot]
        redirection = parse_redirection(words, link.address if link else self._target.seeds[0])
        if redirection is not None and not redirection.ask:
            self._assign(redirection.slot, self._node(redirection.address))
        self._resubscribe.add(slot)
        self._refresh.set()

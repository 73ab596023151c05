"""What a cluster store makes of what nodes say, told by fakes: views of the whole, refusals, redirections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from backplane import cluster
from backplane.cluster import Cluster
from backplane.errors import RedisRefused, RedisUnavailable
from backplane.redis_client import RedisTarget, parse_redis_url
from backplane.scripts import Script
from backplane.slots import Address

A, B, C = (Address("node", port) for port in (1, 2, 3))
SLOT = 12_539  # of "key"
FIRST, LAST = range(8_192), range(8_192, 16_384)

View = dict[Address, range]
Reply = Any


@dataclass
class Node:
    """A node: what it says of the cluster, what it answers, and what it was asked.

    Attributes:
        connects_after_s: how long a connection to it takes; None: it cannot be reached.
    """

    epoch: int = 1
    view: View = field(default_factory=dict)
    answers: list[Reply] = field(default_factory=list)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    looks: int = 0
    connects_after_s: float | None = 0.0

    def answer(self, args: tuple[Any, ...]) -> Reply:
        if args == ("CLUSTER", "INFO"):
            self.looks += 1
            return b"cluster_state:ok\r\ncluster_current_epoch:%d\r\n" % self.epoch
        if args == ("CLUSTER", "SLOTS"):
            return [[s.start, s.stop - 1, [at.host.encode(), at.port]] for at, s in self.view.items()]
        if args[0] == "HELLO":
            return {}
        self.asked.append(args)
        if args[0] == "ASKING":
            return b"OK"
        return self.answers.pop(0) if self.answers else b"OK"


def answered(node: Node, args: tuple[Any, ...]) -> asyncio.Future[Reply]:
    """The future of a node's answer; it comes with the next turn of the loop."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    reply = node.answer(args)
    set_it = future.set_exception if isinstance(reply, Exception) else future.set_result
    asyncio.get_running_loop().call_soon(lambda: future.done() or set_it(reply))
    return future


class FakeWire:
    """As `backplane.wire.Wire`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.lost = asyncio.Event()

    def call(self, args: tuple[Any, ...]) -> asyncio.Future[Reply]:
        return answered(self._node, args)

    def abort(self, _reason: str) -> None:
        self.lost.set()


class FakeLink:
    """As `backplane.link.Link`."""

    nodes: dict[Address, Node]

    def __init__(
        self,
        target: RedisTarget,
        _name: str,
        *,
        on_connect: Callable[[], Awaitable[None]],
        on_change: Callable[[bool], None],
        on_refused: Callable[[tuple[Any, ...], str], None],
        **_others: Any,
    ) -> None:
        self.address = target.seeds[0]
        self.lineage = f"lineage-{self.address.port}"
        self.last_error = "not connected yet"
        self.up = False
        self.node = self.nodes[self.address]
        self.told: list[tuple[Any, ...]] = []
        self.refuse = on_refused
        self._on_connect, self._on_change = on_connect, on_change

    async def run(self) -> None:
        if self.node.connects_after_s is None:
            await asyncio.Event().wait()
        await asyncio.sleep(self.node.connects_after_s or 0)
        self.up = True
        await self._on_connect()
        self._on_change(True)
        try:
            await asyncio.Event().wait()
        finally:
            self.up = False

    def call(self, *args: Any) -> asyncio.Future[Reply]:
        if not self.up:
            raise RedisUnavailable(f"not connected to Redis: {self.last_error}")
        return answered(self.node, args)

    def tell(self, *args: Any) -> None:
        self.told.append(args)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[Address, Node]:
    """Two nodes that share the slots, and a third that has none."""
    found = {address: Node(view={A: FIRST, B: LAST}) for address in (A, B, C)}

    async def open_wire(_target: RedisTarget, address: Address) -> FakeWire:
        if found[address].connects_after_s is None:
            raise ConnectionRefusedError(f"{address} refuses")
        return FakeWire(found[address])

    FakeLink.nodes = found
    monkeypatch.setattr(cluster, "open_wire", open_wire)
    monkeypatch.setattr(cluster, "Link", FakeLink)
    monkeypatch.setattr(cluster, "_REFRESH_S", 0.02)
    monkeypatch.setattr(cluster, "_REFRESH_BROKEN_S", 0.01)
    monkeypatch.setattr(cluster, "_AGAIN_FIRST_S", 0.005)
    return found


class Running:
    """A store that runs; a context manager.

    Attributes:
        moved: how often it said that channels were subscribed elsewhere.
    """

    def __init__(self, timeout_s: float = 1.0, channels: tuple[str, ...] = ()) -> None:
        self.moved = 0

        async def connected(_link: object) -> None:
            """Nothing to say."""

        self.store = Cluster(
            parse_redis_url("redis+cluster://node:1,node:2,node:3"),
            "test",
            timeout_s,
            lambda _push: None,
            lambda: channels,
            connected,
            lambda _link, _up: None,
            lambda _reason: None,
            self._on_moved,
        )

    def _on_moved(self) -> None:
        self.moved += 1

    async def __aenter__(self) -> Cluster:
        self._task = asyncio.create_task(self.store.run())
        await until(lambda: self.store.up)
        return self.store

    async def __aexit__(self, *_error: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def until(condition: Callable[[], object], within_s: float = 2.0) -> None:
    """Return when it is so."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.001)


def at(store: Cluster) -> Address | None:
    """Where the store believes ``key`` to be."""
    link = store.link_for("key")
    return None if link is None else link.address


# Views.


async def test_the_slots_are_read(nodes: dict[Address, Node]) -> None:
    """Each slot's link is that of the node that has it, and others get none."""
    async with Running() as store:
        assert store.slot("key") == SLOT
        assert at(store) == B
        assert {link.address for link in store.links} == {A, B}


async def test_an_older_view_is_not_believed(nodes: dict[Address, Node]) -> None:
    """A node that was cut off says what was true once; the newer one stands, whoever is asked later."""
    nodes[A].epoch = nodes[B].epoch = 7
    nodes[C].epoch, nodes[C].view = 3, {C: range(16_384)}
    async with Running() as store:
        await until(lambda: nodes[A].looks + nodes[B].looks > 0)
        store._wire = None  # ask somebody at random
        for _ in range(30):
            looks = sum(node.looks for node in nodes.values())
            await until(lambda n=looks: sum(node.looks for node in nodes.values()) > n)  # type: ignore[misc]
            if store._epoch == 7:
                assert at(store) == B
        assert at(store) == B
        nodes[B].view = nodes[A].view = {A: FIRST, C: LAST}
        nodes[A].epoch = nodes[B].epoch = 8
        await until(lambda: at(store) == C)


async def test_a_cluster_that_was_made_anew_is_believed(nodes: dict[Address, Node]) -> None:
    """Built again at the same addresses it begins with low epochs; all its nodes agree, so that is it."""
    for node in nodes.values():
        node.epoch = 70
    async with Running() as store:
        assert at(store) == B
        for node in nodes.values():
            node.epoch, node.view = 3, {B: FIRST, C: LAST}
        await until(lambda: at(store) == C)


async def test_slots_that_nobody_serves(nodes: dict[Address, Node]) -> None:
    """They have no link, the store is not up and says why; commands fail at once."""
    async with Running() as store:
        for node in nodes.values():
            node.view = {A: FIRST, B: range(8_192, SLOT)}
        await until(lambda: at(store) is None)
        assert not store.up
        assert store.last_error == f"{16_384 - SLOT} slots are served by no node"
        with pytest.raises(RedisUnavailable, match="no node serves the slot"):
            store.call("GET", "key")
        with pytest.raises(RedisUnavailable, match="no node serves the slot"):
            store.watch("key")
        assert await store.call("GET", "kez") == b"OK"


async def test_a_node_without_slots_is_left(nodes: dict[Address, Node]) -> None:
    """Its link ends, and the channels of its slots are told to the new one."""
    running = Running(channels=("key", "kez"))
    async with running as store:
        before = running.moved
        for node in nodes.values():
            node.view = {A: FIRST, C: LAST}
        await until(lambda: at(store) == C and store.up)
        assert {link.address for link in store.links} == {A, C}
        assert running.moved > before
        [link] = [link for link in store.links if link.address == C]
        assert ("SSUBSCRIBE", "key") in link.told  # type: ignore[attr-defined]


# Refusals.


@pytest.mark.parametrize(
    "words",
    [
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN Hash slot not served",
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "ERR Script attempted to access a non local key in a cluster node script: f_, on @user_script:1.",
    ],
)
async def test_what_passes_is_waited_for(nodes: dict[Address, Node], words: str) -> None:
    """The command is sent again, until it is taken."""
    async with Running() as store:
        nodes[B].answers += [RedisRefused(words)] * 3 + [b"value"]
        assert await store.call("GET", "key") == b"value"
        assert nodes[B].asked == [("GET", "key")] * 4


async def test_what_does_not_pass_is_told(nodes: dict[Address, Node]) -> None:
    """As it came, after one try."""
    async with Running() as store:
        nodes[B].answers += [RedisRefused("WRONGTYPE Operation against a key")]
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await store.call("GET", "key")
        assert len(nodes[B].asked) == 1


async def test_patience_ends(nodes: dict[Address, Node]) -> None:
    """After the timeout the command has failed, with Redis's last words."""
    async with Running(timeout_s=0.1) as store:
        nodes[B].answers += [RedisRefused("TRYAGAIN later")] * 1_000
        began = time.monotonic()
        with pytest.raises(RedisUnavailable, match="the cluster did not settle: TRYAGAIN later"):
            await store.call("GET", "key")
        assert 0.1 <= time.monotonic() - began < 0.6


async def test_whoever_went_away_is_not_sent_again(nodes: dict[Address, Node]) -> None:
    """A cancelled command ends with the answer that it was waiting for."""
    async with Running() as store:
        nodes[B].answers += [RedisRefused("TRYAGAIN later")] * 1_000
        call = store.call("GET", "key")
        call.cancel()
        await asyncio.sleep(0.05)
        assert len(nodes[B].asked) == 1


# Redirections.


async def test_moved_is_followed_and_remembered(nodes: dict[Address, Node]) -> None:
    """The next command goes there by itself; and a node that was not known is connected to."""
    async with Running() as store:
        nodes[B].answers += [RedisRefused(f"MOVED {SLOT} node:3")]
        for node in nodes.values():
            node.view = {A: FIRST, B: range(8_192, SLOT), C: range(SLOT, 16_384)}
        assert await store.call("GET", "key") == b"OK"
        assert await store.call("GET", "key") == b"OK"
        assert (len(nodes[B].asked), len(nodes[C].asked)) == (1, 2)


async def test_moved_to_a_node_that_is_far_away(nodes: dict[Address, Node]) -> None:
    """A connection that takes its time is waited for, like everything else that passes."""
    nodes[C].connects_after_s = 0.2
    async with Running() as store:
        nodes[B].answers += [RedisRefused(f"MOVED {SLOT} node:3")] * 1_000
        for node in nodes.values():
            node.view = {A: FIRST, B: range(8_192, SLOT), C: range(SLOT, 16_384)}
        assert await store.call("GET", "key") == b"OK"
        assert nodes[C].asked == [("GET", "key")]


async def test_moved_without_a_host_means_the_same_one(nodes: dict[Address, Node]) -> None:
    """As Redis says it while it does not know its own address."""
    async with Running() as store:
        nodes[B].answers += [RedisRefused(f"MOVED {SLOT} :1")]
        assert await store.call("GET", "key") == b"OK"
        assert nodes[A].asked == [("GET", "key")]


async def test_ask_is_followed_once(nodes: dict[Address, Node]) -> None:
    """With ASKING before the command, and the next one goes where the slot still is."""
    async with Running() as store:
        nodes[B].answers += [RedisRefused(f"ASK {SLOT} node:1")]
        assert await store.call("GET", "key") == b"OK"
        assert await store.call("GET", "key") == b"OK"
        assert nodes[A].asked == [("ASKING",), ("GET", "key")]
        assert nodes[B].asked == [("GET", "key")] * 2
        assert at(store) == B


async def test_a_script_is_told_the_lineage_of_the_node_that_runs_it(nodes: dict[Address, Node]) -> None:
    """Not of the one that sent it on."""
    script = Script("return 1", "digest", lineage=True)
    async with Running() as store:
        nodes[B].answers += [RedisRefused(f"MOVED {SLOT} node:1")]
        nodes[A].answers += [RedisRefused("NOSCRIPT No matching script"), b"done"]
        for node in nodes.values():
            node.view = {A: range(16_384)}
        assert await store.script(script, ["key", "{key}:log"], ["x"]) == b"done"
        assert nodes[B].asked == [("EVALSHA", "digest", 2, "key", "{key}:log", "lineage-2", "x")]
        assert nodes[A].asked == [
            ("EVALSHA", "digest", 2, "key", "{key}:log", "lineage-1", "x"),
            ("EVAL", "return 1", 2, "key", "{key}:log", "lineage-1", "x"),
        ]


async def test_a_loop_of_redirections_ends(nodes: dict[Address, Node]) -> None:
    """Two nodes that each name the other cost the timeout, not the processor."""
    async with Running(timeout_s=0.2) as store:
        nodes[A].answers += [RedisRefused(f"MOVED {SLOT} node:2")] * 100_000
        nodes[B].answers += [RedisRefused(f"MOVED {SLOT} node:1")] * 100_000
        with pytest.raises(RedisUnavailable, match="did not settle: MOVED"):
            await store.call("GET", "key")
        assert len(nodes[A].asked) + len(nodes[B].asked) < 1_000


@pytest.mark.parametrize("words", [f"MOVED {SLOT} node:3", "CLUSTERDOWN Hash slot not served"])
async def test_a_refused_subscription_is_made_again(nodes: dict[Address, Node], words: str) -> None:
    """Where the slot is by then."""
    running = Running(channels=("key",))
    async with running as store:
        [link] = [link for link in store.links if link.address == B]
        moved = running.moved
        if words.startswith("MOVED"):
            for node in nodes.values():
                node.view = {A: FIRST, C: LAST}
        told = len(link.told)  # type: ignore[attr-defined]
        link.refuse(("SSUBSCRIBE", "key"), words)  # type: ignore[attr-defined]
        await until(lambda: running.moved > moved)
        wanted = C if words.startswith("MOVED") else B
        [now] = [link for link in store.links if link.address == wanted]
        await until(lambda: ("SSUBSCRIBE", "key") in now.told[told * (now is link) :])  # type: ignore[attr-defined]

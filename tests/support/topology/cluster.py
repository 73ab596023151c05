"""A Valkey cluster, its failovers and slots that move from one primary to another."""

from __future__ import annotations

import binascii
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from redis.exceptions import RedisError

from tests.support.processes import wait_for
from tests.support.topology.server import (
    DURABLE,
    HOST,
    QUICK_REPLICATION,
    Server,
    Servers,
    answered,
    replaced,
    texts,
)

SLOTS = 16_384
UNWELL = {"fail", "fail?", "handshake", "noaddr"}


class ClusterNode(Server):
    """A node of a `ValkeyCluster`.

    Attributes:
        id: its node id, the same in all of its lives.
    """

    id: str = ""

    def view(self) -> dict[str, Seen]:
        """What it knows of the cluster: nodes by id."""
        lines: list[str] = self.ask("CLUSTER", "NODES").decode().splitlines()
        return {seen.id: seen for seen in map(Seen.parse, lines)}

    def says_whole(self) -> bool:
        """Whether it says that the cluster is well and all slots are served."""
        info: list[str] = self.ask("CLUSTER", "INFO").decode().splitlines()
        return {"cluster_state:ok", f"cluster_slots_ok:{SLOTS}"} <= set(info)


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as another (or itself) sees it: a line of CLUSTER NODES."""

    id: str
    port: int
    flags: frozenset[str]
    primary_id: str
    slots: tuple[range, ...]

    @classmethod
    def parse(cls, line: str) -> Seen:
        """Read one; slots that are being moved are left to those who have them."""
        node_id, address, marks, primary_id, _, _, _, _, *slots = line.split()
        flags = frozenset(marks.split(",")) - {"myself"}  # else it would look different to itself
        port = int(address.partition("@")[0].rpartition(":")[2])
        ranges = (entry.partition("-") for entry in slots if not entry.startswith("["))
        owned = tuple(range(int(first), int(last or first) + 1) for first, _, last in ranges)
        return cls(node_id, port, flags, primary_id, owned)


class Primary(NamedTuple):
    """A primary and the slots that it owns."""

    node: ClusterNode
    slots: tuple[range, ...]


class ValkeyCluster(Servers):
    """A cluster, every node with an append-only file.

    Args:
        folder: for data, configuration and logs.
        primaries: how many.
        replicas: of each primary.
        node_timeout_ms: after which a silent node is suspected.
        config: more of valkey.conf, for every node, a line each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = 1500,
        config: Iterable[str] = (),
    ) -> None:
        lines = [
            *DURABLE,
            *QUICK_REPLICATION,
            "cluster-enabled yes",
            f"cluster-node-timeout {node_timeout_ms}",
            "cluster-replica-validity-factor 0",  # a replica stands for election however long it was cut off
            *config,
        ]
        self.nodes = [ClusterNode(folder, lines) for _ in range(primaries * (1 + replicas))]
        self._first_primaries = primaries

    @property
    def url(self) -> str:
        """All nodes, dead ones too."""
        return f"redis+cluster://{','.join(node.address for node in self.nodes)}/"

    def living(self) -> list[ClusterNode]:
        """The nodes that run."""
        return [node for node in self.nodes if node.running]

    def primaries(self) -> list[Primary]:
        """Those that own slots, as a living node sees it, by their first slot."""
        view = self._view()
        owners = [Primary(self._by_id(seen.id), seen.slots) for seen in view.values() if seen.slots]
        return sorted(owners, key=lambda owner: owner.slots[0].start)

    def replica_of(self, node: ClusterNode) -> ClusterNode:
        """A living replica of a node.

        Raises:
            LookupError: it has none.
        """
        for seen in self._view().values():
            if seen.primary_id == node.id and self._by_id(seen.id).running:
                return self._by_id(seen.id)
        raise LookupError(f"{node!r} has no living replica")

    def node_of(self, key: str | bytes) -> ClusterNode:
        """The primary that owns a key's slot.

        Raises:
            LookupError: nobody owns it.
        """
        return self._owner(self.slot_of(key))

    @staticmethod
    def slot_of(key: str | bytes) -> int:
        """A key's slot: of its hash tag if it has one."""
        raw = key.encode() if isinstance(key, str) else key
        tag = raw.partition(b"{")[2].partition(b"}")
        return binascii.crc_hqx(tag[0] if tag[0] and tag[1] else raw, 0) % SLOTS

    def kill_primary(self, which: ClusterNode | str | bytes | int = 0) -> ClusterNode:
        """``kill -9`` a primary: this one, a key's, or that of an index in `primaries`; returns it."""
        if isinstance(which, ClusterNode):
            node = which
        else:
            node = self.primaries()[which].node if isinstance(which, int) else self.node_of(which)
        node.kill()
        return node

    def manual_failover(self, replica: ClusterNode) -> ClusterNode:
        """Have a replica take over from its living primary; returns that, for `wait_failed_over`."""
        old = self._by_id(replica.view()[replica.id].primary_id)
        replica.ask("CLUSTER", "FAILOVER")
        return old

    def wait_failed_over(self, old: ClusterNode, timeout_s: float = 30.0) -> float:
        """Wait until all living nodes say that the cluster is whole without this primary.

        Returns: seconds, counted from when it was killed, stopped or frozen, else from this call.
        """
        return replaced(old, lambda: self._whole_without(old), timeout_s)

    def wait_healthy(self, timeout_s: float = 30.0) -> float:
        """Wait until all living nodes agree about slots, suspect no living node, and replicas are linked."""
        return wait_for(answered(self._healthy), "cluster healthy", timeout_s)

    def move_slots(
        self,
        slots: Iterable[int],
        source: ClusterNode,
        target: ClusterNode,
        *,
        atomic: bool,
        batch: int = 100,
        pause_s: float = 0.0,
        between: Callable[[], object] | None = None,
    ) -> None:
        """Move slots with their keys from one primary to another; returns when all nodes know.

        Args:
            slots: which.
            source: who owns them.
            target: who gets them.
            atomic: let the servers do it, as Valkey 9 can; else key by key, as all tools did before.
            batch: keys moved at once, if not atomic.
            pause_s: wait after each batch, with the slot half moved.
            between: called after each batch, with the slot half moved.
        """
        wanted = sorted(set(slots))
        if atomic:
            self._move_atomically(wanted, source, target)
        else:
            for slot in wanted:
                self._move_by_keys(slot, source, target, batch, pause_s, between)
        wait_for(answered(lambda: self._all_see_owner(wanted, target)), "all nodes know the slots' owner")

    def _move_by_keys(
        self,
        slot: int,
        source: ClusterNode,
        target: ClusterNode,
        batch: int,
        pause_s: float,
        between: Callable[[], object] | None,
    ) -> None:
        # Importing first: a client that the source sends on must find the target willing.
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, batch):
            source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)
            if between is not None:
                between()
            time.sleep(pause_s)
        # The target first, or for a moment the two would send clients to each other.
        others = [owner.node for owner in self.primaries() if owner.node not in (source, target)]
        for node in (target, source, *others):
            if node.running:
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def _move_atomically(self, slots: list[int], source: ClusterNode, target: ClusterNode) -> None:
        before = {job["name"] for job in slot_migrations(source)}
        ranges = [bound for part in _ranges(slots) for bound in (part.start, part.stop - 1)]
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", target.id)

        def done() -> bool:
            jobs = [job for job in slot_migrations(source) if job["name"] not in before]
            for job in jobs:
                if job["state"] in ("failed", "cancelled"):
                    raise RuntimeError(f"slots not moved: {job}")
            return bool(jobs) and all(job["state"] == "success" for job in jobs)

        wait_for(done, "slots moved")

    # forming

    def _everything(self) -> Iterable[Server]:
        return self.nodes

    def _form(self) -> None:
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_answers()
            node.id = node.ask("CLUSTER", "MYID").decode()
        primaries, replicas = self.nodes[: self._first_primaries], self.nodes[self._first_primaries :]
        for index, node in enumerate(primaries):
            share = range(SLOTS * index // len(primaries), SLOTS * (index + 1) // len(primaries))
            node.ask("CLUSTER", "ADDSLOTSRANGE", share.start, share.stop - 1)
        for epoch, node in enumerate(self.nodes, 1):
            # Different ones before they meet, or they would first quarrel about them.
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:  # all with all: gossip alone would take seconds
                    node.ask("CLUSTER", "MEET", HOST, other.port)
        wait_for(self._acquainted, "nodes know each other")
        for index, node in enumerate(replicas):
            node.ask("CLUSTER", "REPLICATE", primaries[index % len(primaries)].id)
        self.wait_healthy()

    def _acquainted(self) -> bool:
        ids = {node.id for node in self.nodes}
        views = [node.view() for node in self.nodes]
        return all(view.keys() == ids for view in views) and not any(
            seen.flags & UNWELL for view in views for seen in view.values()
        )

    # what the nodes say

    def _view(self) -> dict[str, Seen]:
        for node in self.living():
            with suppress(RedisError):
                return node.view()
        raise LookupError("no node answers")

    def _by_id(self, node_id: str) -> ClusterNode:
        return next(node for node in self.nodes if node.id == node_id)

    def _owner(self, slot: int) -> ClusterNode:
        for node, ranges in self.primaries():
            if any(slot in part for part in ranges):
                return node
        raise LookupError(f"nobody owns slot {slot}")

    def _whole_without(self, old: ClusterNode) -> bool:
        return all(node.says_whole() and not node.view()[old.id].slots for node in self.living())

    def _all_see_owner(self, slots: list[int], owner: ClusterNode) -> bool:
        wanted = set(slots)
        return all(
            wanted <= {slot for part in node.view()[owner.id].slots for slot in part}
            for node in self.living()
        )

    def _healthy(self) -> bool:
        living = self.living()
        views = [node.view() for node in living]
        # What each says of itself is what all the others have to know.
        selves = {node.id: view[node.id] for node, view in zip(living, views, strict=True)}
        return (
            sum(len(part) for seen in selves.values() for part in seen.slots) == SLOTS
            and not any(seen.flags & UNWELL for seen in selves.values())
            and all(view[node_id] == seen for view in views for node_id, seen in selves.items())
            and all(node.says_whole() for node in living)
            and all(node.linked() for node in living if "slave" in selves[node.id].flags)
        )


def slot_migrations(node: ClusterNode) -> list[dict[str, str]]:
    """The atomic slot migrations that a node remembers (CLUSTER GETSLOTMIGRATIONS)."""
    return [texts(job) for job in node.ask("CLUSTER", "GETSLOTMIGRATIONS")]


def _ranges(slots: list[int]) -> list[range]:
    """Sorted numbers as ranges."""
    found: list[range] = []
    for slot in slots:
        if found and found[-1].stop == slot:
            found[-1] = range(found[-1].start, slot + 1)
        else:
            found.append(range(slot, slot + 1))
    return found

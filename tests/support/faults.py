"""The faults of chaos: a plan that follows from its seed alone, and whoever carries it out."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from redis.exceptions import RedisError

from tests.support.fleet import Fleet
from tests.support.processes import Process
from tests.support.pusher import connect
from tests.support.stores import Store

FLEET_KINDS = (
    "router_kill",
    "pod_kill",
    "router_stop",
    "pod_stop",
    "connection_kill",
    "rolling_restart",
)
STORE_KINDS = {
    "standalone": ("redis_restart", "packets_dropped"),
    "sentinel": ("primary_kill", "sentinel_failover"),
    "cluster": ("primary_kill", "slots_moved"),
}

_START_S = 4.0  # that a plan grants a process to be back in service
_REPLACE_POD_S = 6.0
_REPAIR_STORE_S = {"redis_restart": 3.0, "primary_kill": 15.0, "sentinel_failover": 10.0, "slots_moved": 8.0}
_RESTART_MOST_S = 1.0
_ATTEMPTS = 200


class Fault(NamedTuple):
    """One fault of a plan.

    Attributes:
        at_s: when, from the beginning of the traffic.
        kind: one of `FLEET_KINDS` or `STORE_KINDS`.
        target: index of the pod or router that it hits, if one; pods are counted first.
        wait_s: after which what was killed is started again.
        pick: 0 to 1: which of what is there by then, where that is not known before.
    """

    at_s: float
    kind: str
    target: int = -1
    wait_s: float = 0.0
    pick: float = 0.0


class Limits(NamedTuple):
    """What a plan goes by; times in seconds."""

    topology: str = "standalone"
    pods: int = 3
    routers: int = 3
    duration_s: float = 60.0
    every_s: float = 5.0
    stop_s: float = 10.0
    drop_s: float = 5.0

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds of fault of this topology."""
        return FLEET_KINDS + STORE_KINDS[self.topology]


def plan(limits: Limits, seed: int) -> list[Fault]:
    """A fault every ``every_s``, of every kind if there is time for that.

    At any time at least one pod and one router are in no fault, and Redis in no two.
    """
    choose = random.Random(f"faults of {seed}")
    faults: list[Fault] = []
    for _ in range(_ATTEMPTS):
        faults = _deal(limits, choose)
        if len({fault.kind for fault in faults}) == len(limits.kinds):
            break
    return faults


def _deal(limits: Limits, choose: random.Random) -> list[Fault]:
    """Each kind comes once before any comes again, but who finds no victim has to let others go first."""
    planner = _Planner(limits, choose)
    faults: list[Fault] = []
    deck: list[str] = []
    at_s = limits.every_s
    while at_s < limits.duration_s - limits.every_s / 2:
        fault = None
        while fault is None:  # a connection can always be killed
            placed = (planner.place(kind, at_s, deck[:n]) for n, kind in enumerate(deck))
            fault = next(filter(None, placed), None)
            if fault is None:
                deck += choose.sample(limits.kinds, len(limits.kinds))
        deck.remove(fault.kind)
        faults.append(fault)
        at_s = round(at_s + limits.every_s, 3)
    return faults


class _Planner:
    """Who is in a fault until when, as far as a plan can know."""

    def __init__(self, limits: Limits, choose: random.Random) -> None:
        self._choose = choose
        self._pods = range(limits.pods)
        self._routers = range(limits.pods, limits.pods + limits.routers)
        self._busy_until = [0.0] * (limits.pods + limits.routers)
        self._store_until = 0.0
        self._lasts_s = {
            "router_stop": limits.stop_s,
            "pod_stop": limits.stop_s,
            "packets_dropped": limits.drop_s,
        }

    def place(self, kind: str, at_s: float, waiting: Sequence[str]) -> Fault | None:
        """The fault, with its victim's time taken; None if there can be no victim now.

        Args:
            kind: of the fault.
            at_s: when.
            waiting: kinds that come first, and that have found no victim now.
        """
        wait_s = round(self._choose.uniform(0.0, _RESTART_MOST_S), 3)
        pick = self._choose.random()
        if kind in _REPAIR_STORE_S:
            if self._store_until > at_s:
                return None
            self._store_until = at_s + _REPAIR_STORE_S[kind]
        if kind in _REPAIR_STORE_S or kind == "connection_kill":
            return Fault(at_s, kind, wait_s=wait_s, pick=pick)
        if kind == "rolling_restart":
            if len(self._free(self._pods, at_s)) < len(self._pods):
                return None
            for pod in self._pods:
                self._busy_until[pod] = at_s + len(self._pods) * _REPLACE_POD_S
            return Fault(at_s, kind)
        target = self._victim(kind, at_s, spare_pods="rolling_restart" in waiting)
        if target is None:
            return None
        self._busy_until[target] = at_s + self._lasts_s.get(kind, wait_s) + _START_S
        return Fault(at_s, kind, target, wait_s)

    def _victim(self, kind: str, at_s: float, *, spare_pods: bool) -> int | None:
        """A process that the fault may hit; pods are spared while a rolling restart waits for all of them."""
        targets: list[int] = []
        if not kind.startswith("router") and not spare_pods:
            targets += self._free(self._pods, at_s)
        if not kind.startswith("pod"):
            targets += self._free(self._routers, at_s)
        return self._choose.choice(targets) if targets else None

    def _free(self, group: range, at_s: float) -> list[int]:
        """Those of a group that are in no fault, if they are more than one: one has to stay in service."""
        free = [index for index in group if self._busy_until[index] <= at_s]
        return free if len(free) > 1 else []


@dataclass
class Occurrence:
    """A fault that has happened.

    Attributes:
        target: whom it hit.
        at: when (`time.monotonic`); it may have had to wait for its turn.
        redis_away_s: for how long Redis itself took no writes (or, in a cluster, some keys' server).
    """

    fault: Fault
    target: str = ""
    at: float = field(default_factory=time.monotonic)
    redis_away_s: float = 0.0

    def mark(self, target: str) -> None:
        """It happens now."""
        self.target, self.at = target, time.monotonic()


class Faults:
    """Carries out a plan.

    Args:
        limits: how long stops and drops last.
        fleet: whose processes are hit.
        store: the Redis side.
        tell: gets a line for each fault when it happens.

    Attributes:
        occurrences: in the order of the plan.
        began: when (`time.monotonic`) the plan did.
    """

    def __init__(self, limits: Limits, fleet: Fleet, store: Store, tell: Callable[[str], None]) -> None:
        self._limits = limits
        self._fleet = fleet
        self._store = store
        self._tell = tell
        self._store_turn = asyncio.Lock()
        self.occurrences: list[Occurrence] = []
        self.began = 0.0

    async def run(self, faults: Iterable[Fault]) -> None:
        """Carry out a plan; returns when the last fault is over and all is well again."""
        self.began = time.monotonic()
        running: list[asyncio.Task[None]] = []
        try:
            for fault in faults:
                await asyncio.sleep(max(0.0, self.began + fault.at_s - time.monotonic()))
                occurrence = Occurrence(fault)
                self.occurrences.append(occurrence)
                running.append(asyncio.create_task(self._perform(occurrence)))
            await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _perform(self, occurrence: Occurrence) -> None:
        kind = occurrence.fault.kind
        try:
            await self._perform_as(kind, occurrence)
        except Exception as error:  # noqa: BLE001  # a fault that cannot be made fails the run, at its end
            self._fleet.complaints.append(f"{kind} {occurrence.target}: {type(error).__name__}: {error}")

    async def _perform_as(self, kind: str, occurrence: Occurrence) -> None:
        hits: dict[str, Callable[[Occurrence], Awaitable[None]]] = {
            "connection_kill": self._connection_kill,
            "rolling_restart": self._rolling_restart,
            "packets_dropped": self._packets_dropped,
        }
        if kind in hits:
            await hits[kind](occurrence)
        elif kind in _REPAIR_STORE_S:
            async with self._store_turn:
                fault = occurrence.fault
                repair = self._store.repairs[kind]
                occurrence.redis_away_s = await repair(self._marker(occurrence), fault.wait_s, fault.pick)
        else:
            process = self._fleet.processes[occurrence.fault.target]
            async with self._fleet.out(process):
                await (self._kill if kind.endswith("_kill") else self._stop)(process, occurrence)

    def _marker(self, occurrence: Occurrence) -> Callable[[str], None]:
        def mark(target: str) -> None:
            occurrence.mark(target)
            self._tell(f"{occurrence.fault.at_s:7.1f} s {occurrence.fault.kind} {target}")

        return mark

    async def _kill(self, process: Process, occurrence: Occurrence) -> None:
        self._marker(occurrence)(self._fleet.names[process])
        process.kill()
        await asyncio.sleep(occurrence.fault.wait_s)
        await self._fleet.start(process)

    async def _stop(self, process: Process, occurrence: Occurrence) -> None:
        self._marker(occurrence)(self._fleet.names[process])
        process.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._limits.stop_s)
        finally:
            process.signal(signal.SIGCONT)

    async def _packets_dropped(self, occurrence: Occurrence) -> None:
        process = self._fleet.processes[occurrence.fault.target]
        name = self._fleet.names[process]
        async with self._fleet.out(process):
            self._marker(occurrence)(name)
            self._store.drop_packets(name, True)
            try:
                await asyncio.sleep(self._limits.drop_s)
            finally:
                self._store.drop_packets(name, False)

    async def _rolling_restart(self, occurrence: Occurrence) -> None:
        for pod in self._fleet.pods:
            async with self._fleet.out(pod):
                if pod is self._fleet.pods[0]:
                    self._marker(occurrence)("all pods")
                await self._fleet.end(pod)
                await self._fleet.start(pod)

    async def _connection_kill(self, occurrence: Occurrence) -> None:
        """Of all servers' connections whose names are the product's, one chosen at random."""
        found: list[tuple[str, int, int]] = []
        for address in self._store.addresses():
            client = connect(address)
            try:
                for line in (await client.execute_command("CLIENT", "LIST")).decode().splitlines():
                    of = dict(part.partition("=")[::2] for part in line.split())
                    if of["name"].startswith("orchestrator-"):
                        found.append((of["name"], address[1], int(of["id"])))
            except (RedisError, OSError):
                pass  # it is in a fault itself
            finally:
                await client.aclose()
        if not found:
            self._marker(occurrence)("nobody: Redis is away")
            return
        name, port, client_id = sorted(found)[int(occurrence.fault.pick * len(found))]
        client = connect(("127.0.0.1", port))
        try:
            self._marker(occurrence)(f"{name}@{port}")
            await client.execute_command("CLIENT", "KILL", "ID", client_id)
        finally:
            await client.aclose()

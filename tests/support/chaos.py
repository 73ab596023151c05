"""Faults of every kind under traffic, and the accounting of what came.

python -m tests.support.chaos [--topology standalone|sentinel|cluster] [--seed N] …     (`make chaos`)
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import uvloop

from tests.support.faults import STORE_KINDS, Faults, Limits, Occurrence, plan
from tests.support.fleet import HEARTBEAT_S, Fleet, error_events, last_errors, mistakes
from tests.support.ledger import Ledger
from tests.support.pusher import Pusher
from tests.support.stores import Cluster, Sentinel, Standalone, Store
from tests.support.traffic import Account, Clients, Session, account, missing

_OPEN_TIMEOUT_S = 30.0
_ARRIVE_TIMEOUT_S = 60.0
_LATE_DOUBLES_S = 1.0
_SHOWN = 10
_SLOW_SHOWN = 3


class Load(NamedTuple):
    """What is sent: ``pace`` callbacks a second, of which ``duplicates`` (a part) are pushed twice.

    Attributes:
        drops_a_s: sockets that clients lose by accident in a second.
    """

    sessions: int = 1_000
    tenants: int = 100
    pace: float = 200.0
    duplicates: float = 0.05
    drops_a_s: float = 50.0


@dataclass
class Effect:
    """What one fault did.

    Attributes:
        on_after_s: until a message came that was pushed after the fault.
        worst_delay_s: the longest way of a message pushed until the next fault, or under way at this one.
    """

    occurrence: Occurrence
    on_after_s: float
    worst_delay_s: float


@dataclass
class Report:
    """All that a run found.

    Attributes:
        errors: by process, how many log events of level error there are of each name.
        resets: clients whose state was replaced by what the server had.
        no_socket_s: the longest time that a client was without a socket; a part of the account's outage.
        complaints: what else should not have been; a run with any has failed.
    """

    account: Account
    resets: int
    no_socket_s: float
    delays_s: list[float]
    slowest: list[str]
    effects: list[Effect] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    errors: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether every message came once, in order, and no process made a mistake."""
        return self.account.clean and not self.complaints

    def lines(self) -> Iterable[str]:
        """All of it for people; the account comes last."""
        for effect in self.effects:
            fault, away_s = effect.occurrence.fault, effect.occurrence.redis_away_s
            yield (
                f"at_s={fault.at_s:g} kind={fault.kind} target={effect.occurrence.target!r}"
                f" on_after_s={effect.on_after_s:.2f} worst_delay_s={effect.worst_delay_s:.2f}"
                + (f" redis_away_s={away_s:.2f}" if away_s else "")
            )
        yield from self._table()
        delays = sorted(self.delays_s) or [0.0]
        p50, p99 = (delays[int(len(delays) * part)] for part in (0.5, 0.99))
        yield f"delay_p50_s={p50:.3f} delay_p99_s={p99:.3f} delay_max_s={delays[-1]:.2f}"
        yield from (f"slow: {one}" for one in self.slowest)
        yield f"no_socket_s={self.no_socket_s:.2f} resets={self.resets}"
        for process, events in sorted(self.errors.items()):
            yield f"errors logged by {process}: {' '.join(f'{n}={count}' for n, count in events.items())}"
        yield from (f"NOT RIGHT: {complaint}" for complaint in self.complaints)
        yield str(self.account)

    def _table(self) -> Iterable[str]:
        yield f"{'kind':18} {'count':>5} {'on_after_s':>17} {'worst_delay_s':>17}"
        yield f"{'':18} {'':>5} {'median':>8} {'max':>8} {'median':>8} {'max':>8}"
        by_kind: dict[str, list[Effect]] = {}
        for effect in self.effects:
            by_kind.setdefault(effect.occurrence.fault.kind, []).append(effect)
        for kind, effects in sorted(by_kind.items()):
            columns = ([e.on_after_s for e in effects], [e.worst_delay_s for e in effects])
            numbers = " ".join(f"{statistics.median(c):8.2f} {max(c):8.2f}" for c in columns)
            yield f"{kind:18} {len(effects):5} {numbers}"


async def run(folder: Path, limits: Limits, load: Load, seed: int) -> Report:
    """One run: set up, traffic and faults, then quiet until all has come, then the accounting."""
    tenants = [f"tenant-{n}" for n in range(load.tenants)]
    ledger = Ledger()
    async with _store(limits.topology, folder, tenants) as store:
        fleet = Fleet(folder, store.url_of, pods=limits.pods, routers=limits.routers)
        async with fleet:
            ports = [pod.port for pod in fleet.pods]
            choose = random.Random(f"clients of {seed}")
            sessions = [
                Session(tenants[n % load.tenants], f"session-{n}", ports, ledger, choose)
                for n in range(load.sessions)
            ]
            faults = Faults(limits, fleet, store, _tell)
            async with (
                Clients(sessions, HEARTBEAT_S, load.drops_a_s, random.Random(f"drops of {seed}")) as clients,
                Pusher(
                    sessions,
                    store,
                    ledger,
                    random.Random(f"traffic of {seed}"),
                    duplicates=load.duplicates,
                ) as pusher,
            ):
                await clients.opened(_OPEN_TIMEOUT_S)
                await _traffic(pusher, faults, limits, load, seed)
                await _arrive(pusher, clients, fleet)
        found = account(sessions, ledger)
        return Report(
            found,
            sum(session.resets for session in sessions),
            max((outage for session in sessions for outage in session.outages_s), default=0.0),
            ledger.delays(),
            [ledger.history(task_id, faults.began) for task_id in ledger.slowest(_SLOW_SHOWN)],
            list(_effects(faults.occurrences, ledger)),
            [
                *fleet.complaints,
                *(f"{name} logged {dict(counts)}" for name, counts in mistakes(fleet.logs).items()),
                *_some("gap", [gap for session in sessions for gap in session.gaps]),
                *_some("lost", [ledger.history(task_id, faults.began) for task_id in missing(sessions)]),
            ],
            error_events(fleet.logs),
        )


def _store(topology: str, folder: Path, tenants: list[str]) -> Store:
    if topology == "cluster":
        return Cluster(folder, [f"orchestrator:{tenant}:callbacks" for tenant in tenants])
    return Sentinel(folder) if topology == "sentinel" else Standalone(folder)


async def _traffic(pusher: Pusher, faults: Faults, limits: Limits, load: Load, seed: int) -> None:
    """Push until the time is over and so is the last fault."""
    stop = asyncio.Event()
    pushing = asyncio.create_task(pusher.run(load.pace, stop))
    try:
        await asyncio.gather(faults.run(plan(limits, seed)), asyncio.sleep(limits.duration_s))
    finally:
        stop.set()
        await pushing


async def _arrive(pusher: Pusher, clients: Clients, fleet: Fleet) -> None:
    """Wait until all has come; then one more for each session, behind which nothing may come."""
    for what in ("callbacks", "last callbacks"):
        if what == "last callbacks":
            pusher.push_last()
        if not await pusher.taken(_ARRIVE_TIMEOUT_S):
            fleet.complaints.append(f"not all {what} taken by Redis within {_ARRIVE_TIMEOUT_S:.0f} s")
        if not await clients.complete(_ARRIVE_TIMEOUT_S):
            fleet.complaints.append(f"not all {what} come within {_ARRIVE_TIMEOUT_S:.0f} s")
            break
    await asyncio.sleep(_LATE_DOUBLES_S)


def _effects(occurrences: list[Occurrence], ledger: Ledger) -> Iterable[Effect]:
    in_order = sorted(occurrences, key=lambda occurrence: occurrence.at)
    for occurrence, later in pairwise([*in_order, None]):
        assert occurrence is not None
        end = time.monotonic() if later is None else later.at
        delays = ledger.delays(occurrence.at, end)
        yield Effect(occurrence, ledger.on_after(occurrence.at), max(delays, default=0.0))


def _some(what: str, found: list[str]) -> list[str]:
    """The number of mistakes of a kind, and the first few."""
    return [f"{what} ({len(found)} in all): {one}" for one in found[:_SHOWN]]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """The command; exit status 1 unless every message came exactly once and in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--topology", choices=tuple(STORE_KINDS), default="standalone")
    parser.add_argument("--duration-s", type=float, default=60.0, help="of traffic")
    parser.add_argument("--seed", type=int, default=None, help="the same faults again (default: any)")
    parser.add_argument("--every-s", type=float, default=5.0, help="time between two faults")
    parser.add_argument("--stop-s", type=float, default=10.0, help="how long a SIGSTOP lasts")
    parser.add_argument("--drop-s", type=float, default=5.0, help="how long packets are dropped")
    parser.add_argument("--pods", type=int, default=3)
    parser.add_argument("--routers", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=Load().sessions)
    parser.add_argument("--tenants", type=int, default=Load().tenants)
    parser.add_argument("--pace", type=float, default=Load().pace, help="callbacks a second")
    parser.add_argument("--duplicates", type=float, default=Load().duplicates, help="part pushed twice")
    parser.add_argument("--drops-a-s", type=float, default=Load().drops_a_s, help="sockets lost by accident")
    parser.add_argument("--keep", action="store_true", help="keep the logs also if all is well")
    given = parser.parse_args()
    seed = random.randrange(1_000_000) if given.seed is None else given.seed
    limits = Limits(
        given.topology, given.pods, given.routers, given.duration_s, given.every_s, given.stop_s, given.drop_s
    )
    load = Load(given.sessions, given.tenants, given.pace, given.duplicates, given.drops_a_s)
    print(f"seed={seed} {limits} {load}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    clean = False
    try:
        report = uvloop.run(run(folder, limits, load, seed))
        clean = report.clean
        *lines, last = report.lines()
        for line in (*lines, *([] if clean else _where(folder)), last):
            print(line)
    finally:
        if clean and not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
        elif sys.exc_info()[0] is not None:
            print("\n".join(_where(folder)), file=sys.stderr)
    return 0 if clean else 1


def _where(folder: Path) -> Iterable[str]:
    """Where the logs are, and how each process's ends."""
    yield f"logs are in {folder}"
    for log in sorted(folder.glob("*.log")):
        yield from (f"{log.name}: {line[:800]}" for line in last_errors(log))


if __name__ == "__main__":
    sys.exit(main())

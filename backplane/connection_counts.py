"""How many connections tenants, sessions and users have on all pods together, and that they are not too many.

Every pod adds up its own connections in Redis, in a hash of each tenant, session and user that has one field
for each pod. A pod that was killed leaves its fields behind; so every pod renews a lease and is told who else
has one, and fields of pods without a lease are deleted when somebody meets them (``lua/join.lua``).

The counts are exact as long as pods and Redis live. Beyond that:

- A pod that was killed counts until its lease has ended and the others have renewed theirs.
- A pod that was stopped or cut off for longer than its lease counts as dead, and its places may be taken.
  When it comes back it enters its connections again, and then there may be more than are allowed.
- When Redis loses data, the counts are too low until every pod has called `rewrite`.
- A command whose answer was lost with the connection may have been carried out or not; `rewrite` sets that
  right. A server that was frozen may carry it out even behind that; then the next `rewrite` does.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, TypeVar

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.scripts import JOIN, LEASE, LEAVE, LIVING
from backplane.store import Store
from backplane.wire import Argument, forget

_RENEWALS_A_LEASE = 3
_AGAIN_S = 0.1
_STALE_S = 0.5  # a view of the pods that is older is renewed before anybody is refused
_RECONNECTING_S = 1.0
_KEPT_MS = 26 * 3600 * 1000
_REVIEW_S = 3600.0  # well before the counts of sockets expire that are older than that
_KEYS_A_SCRIPT = 20
_SCRIPTS_AT_ONCE = 50

T = TypeVar("T")


class Place(NamedTuple):
    """Where a connection counts.

    Attributes:
        user_id: None: it has no user, and counts with its tenant and session only.
    """

    tenant_id: str
    session_id: str
    user_id: str | None


class Most(NamedTuple):
    """How many connections are allowed; 0: unlimited."""

    tenant: int
    session: int
    user: int


class Full(NamedTuple):
    """Why a connection is one too many.

    Attributes:
        most: the limit that is in force.
    """

    what: Literal["tenant", "session", "user"]
    most: int


class ConnectionCounts:
    """One pod's connections among all.

    Of these it keeps only what is on its way to Redis, and what was lost on the way. So `rewrite` has to be
    told of all connections: those for which `join` has returned None and `leave` has not been called. To know
    exactly which these are, the caller takes its own notes without an ``await`` between them and the call.

    Args:
        pod_id: one word that no other pod has had.
        lease_s: a pod that does not renew for so long counts as dead, and its connections as gone.
        on_forgotten: to call `rewrite`. Called by `renew` when Redis has forgotten the pod's lease, when it
            was not told of something, and once an hour.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        pod_id: str,
        lease_s: float,
        log: Logger,
        on_forgotten: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._store = store
        self._keys = keys
        self._pod_id = pod_id
        self._lease_s = lease_s
        self._log = log
        self._on_forgotten = on_forgotten
        self._pods = frozenset({pod_id})
        self._leased_until = -math.inf  # at least; by this process's clock
        self._seen_at = -math.inf  # when it was asked which pods live
        self._gone = False
        self._joining = Counter[Place]()  # what Redis may count already
        self._besides = Counter[Place]()  # what Redis counts and the caller does not know of (any more)
        self._lost = set[Place]()  # where Redis may count too many
        self._wanted: list[dict[str, int]] = []  # what each rewrite that is under way makes of the keys
        self._rewriting = asyncio.Lock()
        self._rewrites_due = 0
        self._review_at = math.inf
        self._mending: asyncio.Task[None] | None = None
        self._tasks = set[asyncio.Task[Any]]()

    # Joining and leaving.

    async def join(self, place: Place, most: Most) -> Full | None:
        """Count a connection; if the caller is cancelled meanwhile, it will not be counted.

        Args:
            most: the limits. For its tenant the field ``connections`` of `Keys.tenant_limits` overrides it.

        Returns:
            None: it is counted. Else why it is not.

        Raises:
            RedisUnavailable: Redis did not answer. It is not counted, at least after the next `rewrite`.
        """
        joining = self._spawn(self._join(place, most))
        try:
            full = await asyncio.shield(joining)
        except asyncio.CancelledError:
            joining.add_done_callback(lambda done: self._unwanted(place, done))
            raise
        if full is None:
            _add(self._besides, place, -1)
        return full

    def leave(self, place: Place) -> None:
        """Count a connection no more; if Redis is away, the next `rewrite` sees to it."""
        _add(self._besides, place, 1)
        self._spawn(self._leave(place))

    async def _join(self, place: Place, most: Most) -> Full | None:
        """As `join`, but what is counted is still among that of which the caller does not know."""
        _add(self._joining, place, 1)
        try:
            full = await self._try_to_join(place, most)
        finally:
            _add(self._joining, place, -1)
        if full is None:
            _add(self._besides, place, 1)
            self._tally(place, 1)
        return full

    async def _try_to_join(self, place: Place, most: Most) -> Full | None:
        if self._gone or asyncio.get_running_loop().time() >= self._leased_until:
            await self._renewed()  # without a lease it might be deleted at once
        suspects: set[str] = set()
        dead: list[str] = []
        while True:
            what, *told = await self._ask_to_join(place, most, dead)
            if what == b"counted":
                return None
            if what != b"unknown":
                if await self._nobody_has_died():
                    return Full(what.decode(), told[0])
                continue
            suspects.update(name.decode() for name in told)
            dead = await self._dead_of(suspects)

    async def _nobody_has_died(self) -> bool:
        """Whether the pods are those of a view that is new enough to refuse somebody by it."""
        if asyncio.get_running_loop().time() < self._seen_at + _STALE_S:
            return True
        seen = self._pods
        return seen <= await self._renewed()

    async def _ask_to_join(self, place: Place, most: Most, dead: list[str]) -> list[Any]:
        keys = self._keys_of(place)
        if not self._store.serves(keys[0]):  # then nothing is sent that might be carried out unseen
            await self._reconnected(keys[0])
        limits = self._keys.tenant_limits(place.tenant_id)
        args: list[Argument] = [self._pod_id, _KEPT_MS, *most, _words(self._pods), _words(dead)]
        try:
            reply: list[Any] = await self._store.script(JOIN, [limits, *keys], args)
        except RedisRefused:
            raise
        except RedisUnavailable:
            self._lost.add(place)
            raise
        return reply

    async def _reconnected(self, key: str) -> None:
        """Wait a moment for a connection: when Redis has been away, everybody comes back at the same instant.

        Raises:
            RedisUnavailable: there is none still.
        """
        try:
            async with asyncio.timeout(_RECONNECTING_S):
                await self._store.wait_for(key)
        except TimeoutError:
            raise RedisUnavailable(f"not connected to Redis: {self._store.last_error}") from None

    async def _dead_of(self, suspects: set[str]) -> list[str]:
        """Those whose lease has ended, of pods that have counted something.

        A pod has its lease before it counts anything, so one that is in no view from after that is dead.

        Raises:
            RedisUnavailable: also if the view came so late that a pod may have come back meanwhile.
        """
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        pods = await self._renewed()
        if loop.time() - asked_at >= self._lease_s / _RENEWALS_A_LEASE:
            raise RedisUnavailable("Redis takes too long to tell which pods live")
        return [pod for pod in suspects if pod not in pods]

    async def _leave(self, place: Place) -> None:
        keys = self._keys_of(place)
        try:
            await self._store.script(LEAVE, keys, [self._pod_id, _KEPT_MS, *[1] * len(keys)])
        except RedisUnavailable as error:
            self._lost.add(place)
            self._log.debug("leave_not_counted", reason=str(error))
        finally:
            _add(self._besides, place, -1)
            self._tally(place, -1)

    def _unwanted(self, place: Place, joining: asyncio.Task[Full | None]) -> None:
        """Whoever wanted to join has gone."""
        if not joining.cancelled() and joining.exception() is None and joining.result() is None:
            _add(self._besides, place, -1)
            self.leave(place)

    def _keys_of(self, place: Place) -> list[str]:
        tenant, session, user = place
        keys = [self._keys.tenant_connections(tenant), self._keys.session_connections(tenant, session)]
        return keys if user is None else [*keys, self._keys.user_connections(tenant, user)]

    # Rewriting.
    #
    # Joins and leaves go on meanwhile, so each key is compared with what it should hold at one point in the
    # stream of commands. On one connection Redis answers in the order of sending, and the tasks that wait go
    # on in the order of the answers. So when an answer comes, exactly those joins and leaves were carried
    # out before its command whose answers came before it. `wanted` follows these answers: it is what the key
    # should have held just then. If it held something else, the difference is added, which is right whatever
    # is on its way; and the answer to that is compared again, because a leave may have come in between that
    # took nothing off (Redis had lost the count, and counts are never negative).
    #
    # Guaranteed, unless it raises: each key was right at some point after `rewrite` was called, and this
    # pod's joins and leaves have kept it so. Not guaranteed: anything while a cluster moves the slot, as
    # commands that are sent on are answered out of order; and that other pods, which have just seen this one
    # dead, do not delete its fields behind the rewrite. `renew` sees that it had no lease, and asks for two
    # rewrites.

    async def rewrite(self, places: Iterable[Place]) -> None:
        """Set this pod's counts right after Redis was away, lost its data, or took this pod for dead.

        Args:
            places: one for each connection; read before anything else is done.

        Raises:
            RedisUnavailable: Redis did not answer; some counts may have been set right.
        """
        lost, self._lost = self._lost, set()
        wanted = self._wanted_of(places, lost)
        self._wanted.append(wanted)
        due = 0
        try:
            async with self._rewriting:
                await self._renewed()  # without a lease it might be deleted at once
                due, self._rewrites_due = self._rewrites_due, 0
                await self._settle_all(wanted)
        except BaseException:
            self._lost |= lost
            self._rewrites_due = max(self._rewrites_due, due)
            raise
        finally:
            self._wanted = [other for other in self._wanted if other is not wanted]
        self._rewrites_due = max(self._rewrites_due, due - 1)
        self._review_at = asyncio.get_running_loop().time() + _REVIEW_S

    def _wanted_of(self, places: Iterable[Place], lost: Iterable[Place]) -> dict[str, int]:
        wanted: dict[str, int] = {}
        for place in places:
            for key in self._keys_of(place):
                wanted[key] = wanted.get(key, 0) + 1
        for place, count in self._besides.items():
            for key in self._keys_of(place):
                wanted[key] = wanted.get(key, 0) + count
        for place in chain(lost, self._joining):
            for key in self._keys_of(place):
                wanted.setdefault(key, 0)
        return wanted

    def _tally(self, place: Place, by: int) -> None:
        """Redis has answered that a connection is counted, or that it is not any more."""
        for wanted in self._wanted:
            for key in self._keys_of(place):
                if key in wanted:
                    wanted[key] += by

    async def _settle_all(self, wanted: dict[str, int]) -> None:
        """Goes on when a part fails: of a cluster's servers the others may be there."""
        failures: list[BaseException] = []
        handfuls = _handfuls(wanted)
        while some := list(islice(handfuls, _SCRIPTS_AT_ONCE)):
            settling = [self._settle(keys, wanted) for keys in some]
            ends = await asyncio.gather(*settling, return_exceptions=True)
            failures += [end for end in ends if end is not None]
        if failures:
            raise failures[0]

    async def _settle(self, keys: list[str], wanted: dict[str, int]) -> None:
        surplus = [0] * len(keys)
        while keys:
            counts = await self._store.script(LEAVE, keys, [self._pod_id, _KEPT_MS, *surplus])
            # No await between the answer and this.
            differences = {key: has - max(wanted[key], 0) for key, has in zip(keys, counts, strict=True)}
            keys = [key for key in keys if differences[key]]
            surplus = [differences[key] for key in keys]

    # The lease.

    @property
    def pods(self) -> frozenset[str]:
        """Those that have a lease, this one included."""
        return self._pods

    async def run(self) -> None:
        """Renew until cancelled."""
        interval_s = self._lease_s / _RENEWALS_A_LEASE
        while True:
            try:
                await self.renew()
            except RedisRefused as error:
                self._log.warning("pod_lease_refused", reason=str(error))
            except RedisUnavailable:
                await asyncio.sleep(min(interval_s, _AGAIN_S))
                continue
            await asyncio.sleep(interval_s)

    async def renew(self) -> None:
        """Renew the lease, and learn which pods live; nothing after `left`.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        if self._gone:
            return
        await self._renewed()
        due = self._rewrites_due or self._lost or asyncio.get_running_loop().time() >= self._review_at
        if due and self._on_forgotten is not None and (self._mending is None or self._mending.done()):
            self._mending = self._spawn(self._on_forgotten())  # not waited for: a lease may be shorter

    async def left(self) -> None:
        """Give the lease back: what this pod still counts is deleted by the others. Nothing joins after that.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        self._gone = True
        await self._store.call("ZREM", self._keys.pod_leases, self._pod_id)

    async def _renewed(self) -> frozenset[str]:
        """Renew the lease; returns the pods that have one.

        Raises:
            RedisUnavailable: Redis did not answer, or the pod has left.
        """
        if self._gone:
            raise RedisUnavailable("this pod has left")
        key, asked_at = self._keys.pod_leases, asyncio.get_running_loop().time()
        entered = self._leased_until != -math.inf
        # In one packet. As long as it stands there, nobody is told of pods without this one.
        ends_at = self._store.call("ZSCORE", key, self._pod_id)
        ends_at.add_done_callback(forget)
        told = await self._store.script(LEASE, [key], [self._pod_id, int(self._lease_s * 1000)])
        if not entered:
            self._review_at = asked_at + _REVIEW_S
        elif await ends_at is None:
            # Two: who has been told of pods without this one may still delete what the first one writes.
            self._rewrites_due = 2
            self._log.warning("pod_lease_lost", lease_s=self._lease_s)
        self._pods = frozenset(name.decode() for name in told) | {self._pod_id}
        self._leased_until = asked_at + self._lease_s
        self._seen_at = asked_at
        return self._pods

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, RedisUnavailable):  # then it is told, or still due
            self._log.error("task_died", exc_info=error)


def _add(counts: Counter[Place], place: Place, by: int) -> None:
    counts[place] += by
    if not counts[place]:
        del counts[place]


def _words(pods: Iterable[str]) -> str:
    """As the script takes them: each with a space before and behind it."""
    return f" {' '.join(pods)} "


def _handfuls(keys: Iterable[str]) -> Iterator[list[str]]:
    """Keys that one script reaches, some at a time."""
    slots: dict[str, list[str]] = {}
    for key in keys:
        slots.setdefault(key.partition("}")[0], []).append(key)
    for some in slots.values():
        for start in range(0, len(some), _KEYS_A_SCRIPT):
            yield some[start : start + _KEYS_A_SCRIPT]


async def session_connections(store: Store, keys: Keys, tenant_id: str, session_id: str) -> int:
    """How many connections a session has, on pods that live.

    Raises:
        RedisUnavailable: Redis did not answer.
    """
    counts, pods = await asyncio.gather(
        store.call("HGETALL", keys.session_connections(tenant_id, session_id)),
        store.script(LIVING, [keys.pod_leases], []),
    )
    living = set(pods)
    return sum(int(count) for pod, count in counts.items() if pod in living)


async def tenant_connections(store: Store, keys: Keys, tenant_id: str) -> dict[str, int]:
    """How many connections of a tenant each pod has; of dead ones too, until somebody joins.

    Raises:
        RedisUnavailable: Redis did not answer.
    """
    counts = await store.call("HGETALL", keys.tenant_connections(tenant_id))
    return {pod.decode(): int(count) for pod, count in counts.items()}

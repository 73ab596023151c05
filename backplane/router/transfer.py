"""Callbacks from one list into their sessions' logs, a batch at a time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from traceback import format_exc
from typing import Any

from backplane.appending import ARGUMENTS_AN_ENTRY, Appending
from backplane.errors import BadCallback, RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.messages import timestamp
from backplane.router.backlog import Backlog
from backplane.router.dispatch import dispatch
from backplane.router.metrics import RouterMetrics
from backplane.router.watch import TransferWatch
from backplane.scripts import PEEK, TRANSFER
from backplane.settings import Settings
from backplane.store import Store
from backplane.trace_context import NONE_SAMPLED, sample_bound
from backplane.tracing import NO_TRACER, Tracer
from backplane.wire import Argument

Waiting = list[
    Any
]  # what take() in _take.lua returns: callbacks as bytes, oversized ones as [size, beginning]


@dataclass(slots=True)
class Counts:
    """What a router has done since it started."""

    appended: int = 0
    duplicates: int = 0
    dead_letters: int = 0
    dead_letters_dropped: int = 0
    publishes_refused: int = 0
    late: int = 0
    streamed: int = 0
    pieces_ignored: int = 0
    collapsed: int = 0
    conflicts: int = 0
    sent_on: int = 0
    batches: int = 0


@dataclass(slots=True)
class _Moves:
    """A batch, judged: what each session gets, and what becomes a dead letter."""

    sessions: dict[str, list[Argument]] = field(default_factory=dict)
    topics: dict[str, list[Argument]] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    dead: list[Argument] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)


def judge(waiting: Waiting, tenant_id: str, at: str, largest: int, sampled: str = NONE_SAMPLED) -> _Moves:
    """Dispatch a batch; each session's entries keep the order of the list."""
    moves = _Moves()
    for position, raw in enumerate(waiting):
        try:
            if isinstance(raw, list):
                raise BadCallback("too_large", f"{raw[0]} bytes, CALLBACK_MAX_BYTES is {largest}")
            entry = dispatch(raw, tenant_id, at, sampled)
        except BadCallback as error:
            moves.dead += (position, error.reason, error.detail[:500])
        except Exception as error:  # noqa: BLE001  # our own mistake must not stop the tenant's other callbacks
            moves.dead += (position, "router_error", f"{type(error).__name__}: {error}"[:500])
            moves.mistakes.append(format_exc())
        else:
            if entry.session_id:
                moves.sessions.setdefault(entry.session_id, []).extend(entry.arguments(position))
            else:
                moves.topics.setdefault(str(entry.detail), []).extend(entry.arguments(position))
            if entry.task_id:
                moves.tasks.append(entry.task_id)
    return moves


class Transfer:
    """Moves callbacks of any list.

    Args:
        store: its pushes tell of lists that are written to after `drain` found them empty, but not of what is
            written over the same connection.
        commands: over other connections.
        on_due: told a list whose tasks have to be looked at soon.
    """

    def __init__(
        self,
        store: Store,
        commands: Store,
        keys: Keys,
        settings: Settings,
        log: Logger,
        on_due: Callable[[str], None] = lambda _list: None,
        tracer: Tracer = NO_TRACER,
        metrics: RouterMetrics | None = None,
    ) -> None:
        self._metrics = metrics or RouterMetrics(settings, tracer)
        self._on_due = on_due
        self._watch = TransferWatch(tracer, log)
        self._store = store
        self._commands = commands
        self._log = log
        self._keys = keys
        self._take: list[Argument] = [
            settings.transfer_batch,
            settings.transfer_batch_bytes,
            settings.callback_max_bytes,
        ]
        self._kept: list[Argument] = [settings.dead_letters_max, settings.dead_letters_max_bytes]
        self._appending = Appending(settings, keys, store.publish_command)
        self._sampled = sample_bound(settings.trace_sample_ratio)
        self._nonce = os.urandom(6).hex()
        self._serial = count(1)
        self.counts = Counts()

    async def drain(
        self, callback_list: str, tenant_id: str, batches: int, backlog: Backlog | None = None
    ) -> bool:
        """Move what waits on a list, up to ``batches`` batches, so that others get their turn.

        Args:
            backlog: of the list.

        Returns:
            True if more may wait. If not, the next write to the list is told by a push.

        Raises:
            RedisUnavailable: and then everything that was not moved is still on the list.
        """
        backlog = backlog or Backlog()
        keys = [callback_list, self._keys.fence(callback_list)]
        fence, *waiting = await self._store.script(PEEK, keys, self._take)
        if not waiting:
            return int(await self._store.watch(callback_list)) > 0
        length = 0
        for left in range(batches - 1, -1, -1):
            new_fence = f"{self._nonce}:{next(self._serial)}"
            began = time.monotonic()
            try:
                reply, length = await self._move(
                    callback_list, tenant_id, waiting, fence, new_fence, more=left > 0
                )
            except RedisRefused:
                raise
            except RedisUnavailable:
                self._on_due(callback_list)  # it may have been carried out, and then nobody else knows
                raise
            if reply[0] == 0:
                # Another router moved them, or the data set is an older one: look again.
                self.counts.conflicts += 1
                return True
            now = time.monotonic()
            self._metrics.transfer.observe(now - began)
            waited = backlog.took(len(waiting), length, now)
            if waited is not None:
                self._metrics.wait.observe(waited)
            self._count(tenant_id, len(waiting), reply)
            if reply[9]:
                self._on_due(callback_list)
            fence, waiting = new_fence, reply[13:]
            if not waiting:
                break
        return length > 0

    async def _send_on(self, moves: _Moves, callback_list: str, tenant_id: str, waiting: Waiting) -> None:
        """Push the callbacks of sessions that have another list onto that one.

        They are pushed before this list is trimmed: a router that dies in between has pushed some twice, and
        their sessions know a callback that they have had. Their order stays.

        Raises:
            RedisUnavailable: this list was not trimmed.
        """
        keys = self._keys
        homes = {session_id: keys.callbacks_of(tenant_id, session_id) for session_id in moves.sessions}
        away = [session_id for session_id, home in homes.items() if home != callback_list]
        if keys.number_of(callback_list.encode()) == 0:  # those that began while there was one list stay
            here = [self._store.call("EXISTS", keys.session(callback_list, name)) for name in away]
            away = [name for name, stays in zip(away, await asyncio.gather(*here), strict=True) if not stays]
        positions: dict[str, list[Any]] = {}
        for session_id in away:
            positions.setdefault(homes[session_id], []).extend(
                moves.sessions.pop(session_id)[::ARGUMENTS_AN_ENTRY]
            )
        for home, some in positions.items():
            await self._commands.call("LPUSH", home, *[waiting[position] for position in sorted(some)])
            self.counts.sent_on += len(some)

    async def _move(
        self,
        callback_list: str,
        tenant_id: str,
        waiting: Waiting,
        fence: Argument,
        new_fence: str,
        *,
        more: bool,
    ) -> tuple[list[Any], int]:
        now = time.time()
        moves = judge(waiting, tenant_id, timestamp(now), int(self._take[2]), self._sampled)
        keys, names = self._keys, [callback_list, self._keys.fence(callback_list)]
        if keys.is_spread(tenant_id) or keys.number_of(callback_list.encode()):
            await self._send_on(moves, callback_list, tenant_id, waiting)
        # Behind that: what was sent on is told by the router that moves it into a log.
        watched = self._watch.begin(tenant_id, moves.sessions, waiting) if self._watch.on else None
        names.append(keys.dead_letters(callback_list))
        args: list[Argument] = [fence, new_fence, len(waiting), *(self._take if more else (0, 0, 0))]
        args += (*self._kept, *self._appending.arguments(callback_list, now))
        groups = {keys.session(callback_list, name): entries for name, entries in moves.sessions.items()}
        groups |= {keys.topic(callback_list, topic): entries for topic, entries in moves.topics.items()}
        args.append(len(groups))
        for base, entries in groups.items():
            names.append(base)
            args.append(len(entries) // ARGUMENTS_AN_ENTRY)
            args += entries
        if self._store.clustered:
            parts = ("log", "seen", "tasks", "streams")
            names += [f"{base}:{part}" for base in names[3:] for part in parts]
            records = [keys.task(callback_list, task) for task in set(moves.tasks)]
            names += [f"{key}{part}" for key in records for part in ("", ":stream", ":text", ":reasoning")]
            names += (f"{names[2]}:bytes", keys.due(callback_list))
        args += moves.dead
        if moves.dead:
            reasons = sorted({str(reason) for reason in moves.dead[1::3]})
            self._log.warning("callbacks_unusable", tenant_id=tenant_id, reasons=reasons)
        for mistake in moves.mistakes:
            self._log.error("router_error", tenant_id=tenant_id, traceback=mistake)
        if moves.dead:
            # The index first: a dead letter in a list that nobody looks at would be lost.
            await self._store.call("SADD", keys.dead_letter_lists, callback_list)
        reply, length = await self._store.script_and_watch(TRANSFER, names, args, callback_list)
        if reply[0]:
            unusable = ["session_unusable"] * (reply[3] - len(moves.dead) // 3)
            self._metrics.count_dead([*map(str, moves.dead[1::3]), *unusable])
        if watched is not None and reply[0]:
            watched.moved(callback_list, reply[12])
        if reply[0] and reply[3]:
            # And behind: an operator who emptied the list meanwhile may have taken it out of the index, and
            # the script itself buries the callbacks of an unusable session.
            await self._store.call("SADD", keys.dead_letter_lists, callback_list)
        return reply, length

    def _count(self, tenant_id: str, taken: int, reply: list[Any]) -> None:
        self._metrics.count_callbacks(tenant_id, taken)
        if reply[11]:
            self._metrics.note(tenant_id, reply[11])
        counts = self.counts
        counts.batches += 1
        counts.appended += reply[1]
        counts.duplicates += reply[2]
        counts.dead_letters += reply[3]
        counts.dead_letters_dropped += reply[4]
        counts.publishes_refused += reply[5]
        counts.late += reply[6]
        counts.pieces_ignored += reply[7]
        counts.collapsed += reply[8]
        counts.streamed += reply[10]

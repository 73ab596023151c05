"""What surrounds the gateway's parts, so that a test decides when it answers and what it says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from backplane.appending import Entry
from backplane.connection_counts import ConnectionCounts, Full, Most, Place
from backplane.errors import Busy, NameUsed, NotYours, QueueFull, RedisRefused, RedisUnavailable, UnknownTask
from backplane.keys import ANY_USER
from backplane.link import Link
from backplane.log import Logger
from backplane.position import Batch, Position
from backplane.rate_limiter import Charged, Quota, RateLimiter
from backplane.scripts import Script
from backplane.session_log import History, Mark, Page, Resumed, ResumeStatus, SessionLog, Spoken
from backplane.slots import Address
from backplane.store import Store
from backplane.task import ENDED, Due, Duplicate, Found, NewTask, Reserved
from backplane.task_queue import TaskQueue, What
from backplane.tasks import Tasks
from backplane.trace_context import traceparent_of_task
from gateway.feed import Feed
from gateway.framing import SOCKET_FRAMING, Framing
from gateway.hub import Hub
from gateway.identity import Identity
from gateway.listener import Listener, State

SESSION = "ao:{orchestrator:acme:callbacks}:s:s-1"
PAGE_ENTRIES = 3


async def settle() -> None:
    """Let everything happen that can; nothing here waits for the outside, so a few turns are enough."""
    for _ in range(30):
        await asyncio.sleep(0)


# Time.


class Clock:
    """Stands still until a test moves it: in place of the modules `time` and (as `sleeping`) `asyncio`."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.sleeping = SimpleNamespace(**{**vars(asyncio), "sleep": self.sleep})

    def time(self) -> float:
        return self.now

    monotonic = time

    async def sleep(self, delay_s: float) -> None:
        """Until a test has moved the clock as far."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + delay_s, woken))
        await woken

    @property
    def waits(self) -> list[float]:
        """How long those who sleep have yet to wait."""
        return sorted(at - self.now for at, woken in self._sleepers if not woken.done())

    async def forward(self, by_s: float) -> None:
        """Move, and wake everybody in turn, each at its own time."""
        end = self.now + by_s
        await settle()
        while due := [entry for entry in self._sleepers if entry[0] <= end and not entry[1].done()]:
            at, woken = min(due, key=lambda entry: entry[0])
            self._sleepers.remove((at, woken))
            self.now = max(self.now, at)
            woken.set_result(None)
            await settle()
        self.now = end


class Timer:
    """Something to be called later."""

    def __init__(self, delay_s: float, call: Callable[[], object]) -> None:
        self.delay_s = delay_s
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        """As a loop's."""
        self.cancelled = True


class Timers:
    """In place of a module's `asyncio`: what it has called later is called when a test says so."""

    def __init__(self) -> None:
        self._timers: list[Timer] = []
        self.asyncio = SimpleNamespace(**{**vars(asyncio), "get_running_loop": lambda: self})

    def call_later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> Timer:
        """As a loop's; its time does not pass."""
        self._timers.append(Timer(delay_s, lambda: callback(*args)))
        return self._timers[-1]

    @property
    def waiting(self) -> list[Timer]:
        """Those whose time has not come."""
        return [timer for timer in self._timers if not timer.cancelled]

    def fire(self) -> None:
        """The time of all that wait now has come."""
        due, self._timers = self.waiting, []
        for timer in due:
            if not timer.cancelled:
                timer.call()


# Frames, as a client reads them.


class Frame(NamedTuple):
    """One frame of the server."""

    opcode: int
    payload: bytes


def split_frames(data: bytes) -> list[Frame]:
    """The whole unmasked frames in ``data``."""
    found = []
    while data:
        length, start = data[1], 2
        if length >= 126:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        assert len(data) >= start + length, "half a frame was written"
        found.append(Frame(data[0] & 0x0F, data[start : start + length]))
        data = data[start + length :]
    return found


def messages(data: bytes) -> list[dict[str, Any]]:
    """The messages in the text frames of ``data``."""
    return [json.loads(frame.payload) for frame in split_frames(data) if frame.opcode == 1]


def close_codes(data: bytes) -> list[int]:
    """The codes of the Close frames in ``data``."""
    return [int.from_bytes(frame.payload[:2], "big") for frame in split_frames(data) if frame.opcode == 8]


# Log events.


class FakeLogger:
    """Remembers the events that it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        def note(event: str, **values: Any) -> None:
            self.events.append((level, event, values))

        return note

    @property
    def names(self) -> list[str]:
        """The events' names, in order."""
        return [event for _level, event, _values in self.events]

    def as_logger(self) -> Logger:
        """Itself, under the type that the parts ask for."""
        return cast("Logger", self)


# A store.


class FakeLink:
    """One connection that is up until a test says otherwise.

    Attributes:
        aborted: the reasons for which it had to be made anew.
    """

    def __init__(self, port: int = 6379) -> None:
        self._up = asyncio.Event()
        self._up.set()
        self.address = Address("redis.test", port)
        self.last_error = "not connected yet"
        self.aborted: list[str] = []

    @property
    def up(self) -> bool:
        """As a test has set it."""
        return self._up.is_set()

    @up.setter
    def up(self, up: bool) -> None:
        if up:
            self._up.set()
        else:
            self._up.clear()

    async def wait_up(self) -> None:
        """As the real one: never without giving way."""
        await asyncio.sleep(0)
        await self._up.wait()

    def abort(self, reason: str) -> None:
        """Remember it."""
        self.aborted.append(reason)

    def as_link(self) -> Link:
        """Itself, under the type that the parts ask for."""
        return cast("Link", self)


class FakeStore:
    """A store of one server, or of ``servers``: the last character of a key says which one has it.

    Attributes:
        whole: whether each key has a server.
    """

    clustered = False
    publish_command = "PUBLISH"

    def __init__(self, servers: int = 1) -> None:
        self.nodes = [FakeLink(7000 + number) for number in range(servers)]
        self.whole = True
        self.last_error = "not connected yet"
        self.connects = servers
        self.called: list[tuple[Any, ...]] = []
        self.subscribed: list[str] = []
        self.replies: dict[Any, Any] = {}
        self.refusal: Exception | None = None

    @property
    def up(self) -> bool:
        """Whether all servers can be reached."""
        return self.whole and all(link.up for link in self.nodes)

    @up.setter
    def up(self, up: bool) -> None:
        for link in self.nodes:
            link.up = up

    @property
    def links(self) -> list[Link]:
        """As the real one."""
        return [link.as_link() for link in self.nodes]

    def link_for(self, key: str | bytes) -> Link | None:
        """As the real one."""
        return self._node(key).as_link()

    def _node(self, key: str | bytes) -> FakeLink:
        name = key.decode() if isinstance(key, bytes) else key
        return self.nodes[ord(name[-1]) % len(self.nodes)]

    def serves(self, key: str) -> bool:
        """As the real one."""
        return self._node(key).up

    async def wait_for(self, key: str) -> None:
        """As the real one: never without giving way."""
        await self._node(key).wait_up()

    def subscribe(self, channels: Sequence[str]) -> None:
        """Remember it."""
        self.subscribed += channels

    def unsubscribe(self, channel: str) -> None:
        """Remember it."""
        self.subscribed.remove(channel)

    def call(self, command: str | Script, key: str | bytes, *args: Any) -> asyncio.Future[Any]:
        """Remember a command; its reply is what ``replies`` has for it, or for its first word."""
        words = (command, key, *args)
        self.called.append(words)
        if not self._node(key).up:
            raise RedisUnavailable("not connected to Redis")
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.refusal is None:
            reply.set_result(self.replies.get(words, self.replies.get(command)))
        else:
            reply.set_exception(self.refusal)
        return reply

    async def script(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """As a command whose name is the script; its reply may be made by a function of the arguments."""
        reply = await self.call(script, keys[0], *args)
        return reply(*args) if callable(reply) else reply

    def publish(self, channel: str, payload: str | bytes) -> asyncio.Future[Any]:
        """As any other command."""
        return self.call("PUBLISH", channel, payload)

    def as_store(self) -> Store:
        """Itself, under the type that the parts ask for."""
        return cast("Store", self)


# A session log.


class Record:
    """What Redis holds of one session."""

    def __init__(self, epoch: str, lineage: int = 0) -> None:
        self.epoch = epoch
        self.lineage = lineage
        self.ended: list[Position] = []  # newest first
        self.head = 0
        self.entries: list[bytes] = []  # the last ones, up to the head
        self.generation = 0
        self.sent = 0
        self.owner: str | None = None  # nobody has used it yet

    def copy(self) -> Record:
        """As it is now."""
        twin = copy(self)
        twin.entries, twin.ended = self.entries[:], self.ended[:]
        return twin

    def open(self, user: str) -> bool:
        """As ``lua/_session.lua``: whether the user may use it; who does so first has it."""
        if self.owner and user not in (self.owner, ANY_USER):
            return False
        if self.owner is None:
            self.owner = "" if user == ANY_USER else user
        return True

    def standing(self, epoch: str) -> int:
        """As ``lua/_epoch.lua``."""
        least = self.head
        if epoch == self.epoch:
            return least
        for ended in self.ended:
            least = min(least, ended.seq)
            if ended.epoch == epoch:
                return least
        return -1

    @property
    def oldest(self) -> int:
        """As the scripts count it."""
        return self.head + 1 - len(self.entries)

    def page(self, after: int) -> list[bytes]:
        """The entries that follow, as many as a page holds."""
        start = max(after + 1, self.oldest) - self.oldest
        return self.entries[start : start + PAGE_ENTRIES]


class Call:
    """A command on its way: carried out when a test says so, answered when it says so."""

    def __init__(self, name: str, work: Callable[[], Any]) -> None:
        self.name = name
        self.reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._work = work
        self._value: Any = None
        self._executed = False

    def execute(self) -> None:
        """Redis carries it out now; the answer is still under way."""
        if not self._executed:
            self._executed = True
            self._value = self._work()

    def finish(self) -> None:
        """The answer arrives; carried out now if it was not before."""
        self.execute()
        if not self.reply.done():
            self.reply.set_result(self._value)

    def fail(self, error: Exception | None = None) -> None:
        """The connection is lost, or Redis refuses."""
        if not self.reply.done():
            self.reply.set_exception(error or RedisUnavailable("connection to Redis lost"))


class FakeSessionLog:
    """Session logs in memory; while ``gated``, calls stand in ``pending`` until a test lets them go."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.gated = False
        self.pending: list[Call] = []
        self.calls: list[str] = []
        self.subscriptions: list[list[str]] = []
        self.subscribed: set[str] = set()
        self.renewed: list[str] = []
        self.marks: list[Mark] = []
        self.replaced: list[tuple[str, int]] = []
        self.streams: dict[str, dict[str, Spoken]] = {}
        self.unreadable: set[str] = set()
        self.away: set[str] = set()
        self.refusal: Exception | None = None
        self._epochs = 0
        self._lineage = 0
        self._texts = 0

    def as_log(self) -> SessionLog:
        """Itself, under the type that the hub asks for."""
        return cast("SessionLog", self)

    def record(self, session: str = SESSION) -> Record:
        """A session's record; begins the session if there is none."""
        if session not in self.records:
            self.records[session] = Record(self._new_epoch(), self._lineage)
        return self.records[session]

    def _new_epoch(self) -> str:
        self._epochs += 1
        return f"e{self._epochs}"

    def snapshot(self) -> dict[str, Record]:
        """What Redis holds now."""
        return {name: record.copy() for name, record in self.records.items()}

    def restart(self, held: dict[str, Record] | None = None) -> None:
        """Another server goes on, or this one after a restart: with all there is, or what was held once."""
        self._lineage += 1
        if held is not None:
            self.records = {name: record.copy() for name, record in held.items()}

    def append(self, count: int = 1, session: str = SESSION, size: int = 0) -> Batch:
        """Append entries to a log, as ``lua/transfer.lua``; returns what would be published."""
        record = self.record(session)
        if record.lineage != self._lineage:
            record.ended = [Position(record.epoch, record.head), *record.ended][:8]
            record.epoch, record.lineage = self._new_epoch(), self._lineage
        first = record.head + 1
        self._texts += count
        texts = range(self._texts - count + 1, self._texts + 1)
        entries = [b'{"type":"t","text":%d,"fill":"%b","metadata":{' % (text, b"x" * size) for text in texts]
        record.entries += entries
        record.head += count
        return Batch(record.epoch, first, entries)

    def trim(self, oldest: int, session: str = SESSION) -> None:
        """Forget what is older than ``oldest``."""
        record = self.record(session)
        del record.entries[: oldest - record.oldest]

    async def ask(self, name: str, work: Callable[[], Any]) -> Any:
        """Something of a session that is not of its log: answered as all else here is."""
        return await self._call(name, work)

    async def _call(self, name: str, work: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if self.refusal is not None:
            raise self.refusal
        call = Call(name, work)
        if self.gated:
            self.pending.append(call)
        else:
            call.finish()
        return await call.reply

    def take(self, name: str) -> Call:
        """The oldest pending call of a name, which is pending no more."""
        call = next(call for call in self.pending if call.name == name)
        self.pending.remove(call)
        return call

    def release(self) -> None:
        """Let everything go, from now on too."""
        self.gated = False
        for call in self.pending:
            call.finish()
        self.pending.clear()

    # backplane.session_log.SessionLog

    async def callback_list(self, tenant_id: str, _session_id: str) -> str:
        """As with the settings' defaults."""
        return f"orchestrator:{tenant_id}:callbacks"

    async def locate(self, tenant_id: str, session_id: str) -> str:
        """As with the settings' defaults."""
        return f"ao:{{{await self.callback_list(tenant_id, session_id)}}}:s:{session_id}"

    async def replace_older(self, session: str, generation: int) -> None:
        """Remember it."""
        await self._call("replace_older", lambda: self.replaced.append((session, generation)))

    def subscribe(self, channels: Sequence[str]) -> None:
        """Remember it."""
        self.subscriptions.append(list(channels))
        self.subscribed.update(channels)

    def unsubscribe(self, channel: str) -> None:
        """Remember it."""
        self.subscribed.discard(channel)

    async def resume(
        self, session: str, cursor: Position | None, user: str = "", reread: int | None = None
    ) -> Resumed:
        """As ``lua/resume.lua``."""

        def work() -> Resumed | None:
            return self._resume(session, cursor, user, reread)

        resumed: Resumed | None = await self._call("resume", work)
        if resumed is None:
            raise NotYours
        return resumed

    def _resume(self, session: str, cursor: Position | None, user: str, reread: int | None) -> Resumed | None:
        record = self.record(session)
        if not record.open(user):
            return None
        status: ResumeStatus = "replayed"
        start = min(record.sent, record.head) if cursor is None else cursor.seq
        if cursor is None:
            status = "fresh" if start == record.head else "replayed"
        elif start > record.standing(cursor.epoch):
            status, start = "reset", -1
        if start + 1 < record.oldest:
            status, start = "reset", record.oldest - 1
        if reread is not None and status != "reset":
            start = max(min(start, reread), record.oldest - 1)
        record.generation += 1
        page = Batch(record.epoch, start + 1, record.page(start))
        streams = bool(self.streams.get(session))
        return Resumed(status, start, record.head, record.oldest, record.generation, page, (), streams)

    async def read(self, session: str, position: Position) -> Page:
        """As ``lua/read.lua``."""
        return cast("Page", await self._call("read", lambda: self._read(session, position)))

    def _read(self, session: str, position: Position) -> Page:
        record = self.records.get(session) or Record("")
        standing = record.standing(position.epoch) if record.epoch else -1
        entries = record.page(position.seq) if position.seq <= standing else []
        first = max(position.seq + 1, record.oldest)
        return Page(record.epoch, record.head, record.oldest, standing, Batch(record.epoch, first, entries))

    async def spoken(self, session: str) -> list[Spoken]:
        """As ``lua/streams.lua``."""
        return cast(
            "list[Spoken]",
            await self._call("spoken", lambda: list(self.streams.get(session, {}).values())),
        )

    async def reached(self, session: str, tasks: Sequence[str]) -> list[tuple[int, int, int] | None]:
        """As the real one."""

        def work() -> list[tuple[int, int, int] | None]:
            found = [self.streams.get(session, {}).get(task) for task in tasks]
            return [one and (one.attempt, one.text_chars, one.reasoning_chars) for one in found]

        return cast("list[tuple[int, int, int] | None]", await self._call("reached", work))

    async def history(self, session: str, cursor: Position | None, user: str) -> History:
        """As the real one, of one page; it begins nothing."""
        record = self.records.get(session) or Record("")
        if record.owner and user not in (record.owner, ANY_USER):
            raise NotYours
        page = await self.read(session, cursor or Position(record.epoch, 0))
        if cursor is not None and cursor.seq > page.standing:
            page = await self.read(session, Position(page.epoch, 0))
            return History("reset", page.oldest - 1, page.head, page.oldest, page.batch)
        start = max(0 if cursor is None else cursor.seq, page.oldest - 1)
        return History(
            "replayed" if page.batch.entries else "fresh", start, page.head, page.oldest, page.batch
        )

    async def belongs(self, callback_list: str, session_id: str, user: str) -> bool:
        """As the real one."""
        record = self.records.get(f"ao:{{{callback_list}}}:s:{session_id}")
        owned = record is not None and record.owner
        return bool(await self._call("belongs", lambda: not owned or user in (owned, ANY_USER)))

    async def heads(
        self, sessions: Sequence[str], *, renew: bool = False
    ) -> list[Position | RedisUnavailable | None]:
        """The newest positions, and which expiries were put off; who cannot be asked raises nothing."""
        if renew:
            self.renewed += sessions

        def work() -> list[Position | RedisUnavailable | None]:
            return [self._head(session) for session in sessions]

        try:
            heads: list[Position | RedisUnavailable | None] = await self._call("heads", work)
        except RedisUnavailable as error:
            return [error for _ in sessions]
        return heads

    def _head(self, session: str) -> Position | RedisUnavailable | None:
        if session in self.unreadable:
            return RedisRefused("WRONGTYPE")
        if session in self.away:
            return RedisUnavailable("its server is away")
        record = self.records.get(session)
        return None if record is None else Position(record.epoch, record.head)

    async def mark_sent(self, marks: Iterable[Mark]) -> None:
        """As ``lua/mark_sent.lua``."""
        todo = list(marks)

        def work() -> None:
            self.marks += todo
            for session, position in todo:
                record = self.records.get(session)
                if record is not None:
                    record.sent = max(record.sent, min(position.seq, record.standing(position.epoch)))

        if todo:
            await self._call("mark_sent", work)


# Tasks.


class FakeTasks:
    """`Tasks` in memory, beside the sessions of a `FakeSessionLog`: gated and refused as that is.

    Attributes:
        records: by callback list and task.
        names: task and fingerprint, by callback list and name.
        ended: the last messages that tasks were given, in order.
        refusals: what a method raises instead of doing anything, by its name.
    """

    most = 50
    ahead_s = 0.0  # of this process's clock is the server's

    def __init__(self, log: FakeSessionLog) -> None:
        self._log = log
        self.records: dict[tuple[str, str], dict[str, str]] = {}
        self.names: dict[tuple[str, str], tuple[str, str]] = {}
        self.ended: list[Entry] = []
        self.refusals: dict[str, Exception] = {}

    def as_tasks(self) -> Tasks:
        """Itself, under the type that the parts ask for."""
        return cast("Tasks", self)

    def status(self, task_id: str) -> str:
        """Of a task, wherever it is; empty if there is no record."""
        return next((fields["status"] for (_, one), fields in self.records.items() if one == task_id), "")

    async def _do(self, name: str, work: Callable[[], Any]) -> Any:
        if name in self.refusals:
            raise self.refusals[name]
        return await self._log.ask(name, work)

    def _session(self, callback_list: str, session_id: str) -> Record:
        return self._log.record(f"ao:{{{callback_list}}}:s:{session_id}")

    async def newest(self, callback_list: str, session_id: str) -> tuple[str, str] | None:
        """As the real one."""
        running = [
            (int(fields.get("accepted", 0)), task_id, fields.get("cursor", ""))
            for (listed, task_id), fields in self.records.items()
            if listed == callback_list
            and fields.get("session_id") == session_id
            and fields["status"] not in ENDED
        ]
        return max(running)[1:] if running else None

    async def accept(self, task: NewTask) -> Reserved | Duplicate:
        """As ``lua/accept.lua``."""
        told = await self._do("accept", lambda: self._accept(task, self.ahead_s + time.time()))
        if isinstance(told, Exception):
            raise told
        return cast("Reserved | Duplicate", told)

    def _accept(self, task: NewTask, now: float) -> Reserved | Duplicate | Exception:
        listed, session = task.callback_list, self._session(task.callback_list, task.session_id)
        if not session.open(task.user):
            return NotYours()
        for name in task.names:
            if (listed, name) in self.names:
                return self._repeated(listed, *self.names[listed, name], task.fingerprint, now)
        running = self._running(listed, task.session_id)
        if (len(running) >= self.most and task.policy != "interrupt") or (
            task.policy == "reject" and running
        ):
            return Busy(list(running))
        interrupted = []
        if task.policy == "interrupt":
            interrupted = [one for one, fields in running.items() if fields["status"] != "cancelling"]
            for one in interrupted:
                self._cancel(running[one], "interrupted")
        position = Position(session.epoch, session.head)
        held = task.policy == "enqueue" and bool(running)
        self.names |= {(listed, name): (task.task_id, task.fingerprint) for name in task.names}
        self.records[listed, task.task_id] = {
            "status": "held" if held else "reserved",
            "cursor": str(position),
            "session_id": task.session_id,
            "accepted": str(int(now * 1000)),
            "deadline": str(int((now + task.timeout_s) * 1000)),
            "latest": str(int((now + task.extended_s) * 1000)),
            "names": " ".join(task.names),
            **task.fields,
        }
        if held:
            self.records[listed, task.task_id]["action"] = task.action.decode()
        if task.left_s:
            self.records[listed, task.task_id]["left"] = str(task.left_s * 1000)
        return Reserved(int(now * 1000) / 1000, position, interrupted, held)

    def _cancel(self, fields: dict[str, str], reason: str) -> None:
        """As ``lua/_cancel.lua``."""
        if fields["status"] in ("reserved", "held"):
            fields["unpushed"] = "held" if "action" in fields else "reserved"
        fields |= {"status": "cancelling", "reason": reason}

    def _repeated(
        self, listed: str, task_id: str, known: str, fingerprint: str, now: float
    ) -> Duplicate | NameUsed:
        if known != fingerprint:
            return NameUsed(task_id)
        fields = self.records.get((listed, task_id))
        if fields is None:
            return Duplicate(now, task_id, "", None, "", "")
        ends = None if fields["status"] == "held" else int(fields["deadline"]) / 1000
        given = fields.get("traceparent", "")
        return Duplicate(now, task_id, fields["status"], ends, fields["cursor"], fields["queue"], given)

    def _running(self, listed: str, session_id: str) -> dict[str, dict[str, str]]:
        return {
            task_id: fields
            for (where, task_id), fields in self.records.items()
            if where == listed and fields["session_id"] == session_id and fields["status"] not in ENDED
        }

    def traceparent(self, task_id: str, given: str) -> str | None:
        """As with the settings' defaults, where nothing is sampled."""
        return given or traceparent_of_task(task_id)

    async def settle(self, callback_list: str, due: Due, *, pushed: bool) -> None:
        """As ``lua/settle.lua``."""
        await self._do("settle", lambda: self._settle(callback_list, due, pushed))

    def _settle(self, listed: str, due: Due, pushed: bool) -> None:
        fields = self.records.get((listed, due.task_id), {})
        if pushed and fields.get("status") == "reserved":
            fields["status"] = "queued"
            fields.pop("action", None)
        never_was = (fields.get("status"), fields.get("unpushed")) == ("cancelling", "reserved")
        if pushed or not (fields.get("status") == "reserved" or never_was):
            return
        if never_was:
            fields["status"] = "cancelled"
        else:
            del self.records[listed, due.task_id]
        for name in due.names.split():
            if self.names.get((listed, name), ("",))[0] == due.task_id:
                del self.names[listed, name]

    async def catch_up(self, callback_list: str, session_id: str, task_id: str) -> None:
        """As ``lua/catch_up.lua``, of a question."""
        del session_id
        await self._do("catch_up", lambda: self.records[callback_list, task_id].pop("question", None))

    async def settle_pushed(self, task: NewTask) -> None:
        """As the real one."""
        due = Due(task.task_id, "", task.session_id, "", "", " ".join(task.names), "", "", "")
        await self.settle(task.callback_list, due, pushed=True)

    async def forget(self, task: NewTask) -> None:
        """As the real one."""
        due = Due(task.task_id, "", task.session_id, "", "", " ".join(task.names), "", "", "")
        await self.settle(task.callback_list, due, pushed=False)

    async def find(self, tenant_id: str, task_id: str) -> Found | None:
        """As with the settings' defaults: a tenant has one list."""
        listed = await self._log.callback_list(tenant_id, "")
        fields = await self._do("find", lambda: self.records.get((listed, task_id)))
        return None if fields is None else Found(listed, dict(fields))

    async def named(self, tenant_id: str, name: str) -> str | None:
        """As the real one."""
        listed = await self._log.callback_list(tenant_id, "")
        return cast("str | None", await self._do("named", lambda: self.names.get((listed, name), (None,))[0]))

    async def begin_cancel(self, found: Found, task_id: str, user: str, reason: str) -> Due:
        """As ``lua/cancel.lua``."""
        told = await self._do("begin_cancel", lambda: self._begin_cancel(found, task_id, user, reason))
        if isinstance(told, Exception):
            raise told
        return cast("Due", told)

    def _begin_cancel(self, found: Found, task_id: str, user: str, reason: str) -> Due | Exception:
        fields = self.records.get((found.callback_list, task_id))
        if fields is None:
            return UnknownTask()
        owner = self._session(found.callback_list, fields["session_id"]).owner
        if owner and user not in (owner, ANY_USER):
            return NotYours()
        due = Due(task_id, **{name: fields.get(name, "") for name in Due._fields[1:]})
        if due.status not in ENDED and due.status != "cancelling":
            self._cancel(fields, reason)
        return due._replace(reason=reason, unpushed=fields.get("unpushed", ""))

    async def end(self, callback_list: str, entry: Entry, wanted: str, now: float) -> str:
        """As ``lua/end_task.lua``."""
        return str(await self._do("end", lambda: self._end(callback_list, entry, wanted, now)))

    def _end(self, listed: str, entry: Entry, wanted: str, now: float) -> str:
        fields = self.records.get((listed, entry.task_id))
        status = "unknown" if fields is None else fields["status"]
        if fields is None or status in ENDED or (wanted or status) != status:
            return status
        if not wanted and (status == "cancelling" or now * 1000 < int(fields["deadline"])):
            return status
        fields |= {"status": str(entry.detail), "ended": str(int(now * 1000))}
        self.ended.append(entry)
        return ""


class FakeQueue:
    """The actions queues, in memory; ``gate`` holds pushes back.

    Attributes:
        pushed: queue and action, in order.
        marks: ``pushed`` or ``void``, by queue, task and what the action does.
    """

    def __init__(self) -> None:
        self.pushed: list[tuple[str, bytes]] = []
        self.marks: dict[tuple[str, str, What], str] = {}
        self.refusal: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    def as_queue(self) -> TaskQueue:
        """Itself, under the type that the parts ask for."""
        return cast("TaskQueue", self)

    @property
    def actions(self) -> list[dict[str, Any]]:
        """What was pushed, as the AES reads it."""
        return [json.loads(action) for _queue_name, action in self.pushed]

    async def is_full(self, queue_name: str) -> bool:
        """As the real one."""
        del queue_name
        return isinstance(self.refusal, QueueFull)

    async def push(self, queue_name: str, task_id: str, what: What, action: bytes) -> bool:
        """As ``lua/enqueue.lua``."""
        await self.gate.wait()
        mark = self.marks.get((queue_name, task_id, what))
        if self.refusal is not None and not (mark and isinstance(self.refusal, QueueFull)):
            raise self.refusal
        if mark is None:
            self.marks[queue_name, task_id, what] = "pushed"
            self.pushed.append((queue_name, action))
        return mark != "void"

    async def void(self, queue_name: str, task_id: str, what: What) -> bool:
        """As ``lua/enqueue.lua``."""
        return self.marks.setdefault((queue_name, task_id, what), "void") == "void"

    async def length(self, queue_name: str) -> int:
        """As the real one."""
        return len([name for name, _action in self.pushed if name == queue_name])


# Sockets.


class FakeSocket:
    """A `gateway.feed.Subscriber` that takes everything, until a test says otherwise.

    Attributes:
        unsent: something of what it was given has not left the process.
    """

    framing: Framing = SOCKET_FRAMING
    envelope = b'"session_id":"s-1","tenant_id":"acme","tenant_tier":"free"'

    def __init__(self, hub: Hub, *, wants_chunks: bool = False) -> None:
        self.hub = hub
        self.feed: Feed | None = None
        self.seq = 0
        self.generation = 0
        self.wants_chunks = wants_chunks
        self.behind = False
        self.writable = True
        self.unsent = False
        self.resumed: Resumed | None = None
        self.gone = False
        self.written: list[bytes] = []
        self._read = 0
        self.restarts: list[str] = []
        self.replacements = 0

    @property
    def sent(self) -> int | None:
        """As a socket that cannot tell while its buffer is not empty."""
        return None if self.unsent else self.seq

    @property
    def _logged(self) -> list[dict[str, Any]]:
        return [message for message in messages(b"".join(self.written)) if "seq" in message["metadata"]]

    @property
    def seqs(self) -> list[int]:
        """Of the log messages that it got, in order."""
        return [message["metadata"]["seq"] for message in self._logged]

    @property
    def texts(self) -> list[int]:
        """What the log messages that it got say, in order: no two that were ever appended say the same."""
        return [message["text"] for message in self._logged]

    @property
    def epochs(self) -> list[str]:
        """Of the log messages that it got, in order."""
        return [cursor.epoch for cursor in self.cursors]

    @property
    def cursors(self) -> list[Position]:
        """With which its client may come back, as it was told them."""
        known = [message["metadata"] for message in self._logged]
        return [Position(metadata["epoch"], metadata["seq"]) for metadata in known]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The pieces of answers that it got, in order."""
        told = messages(b"".join(self.written))
        return [message["data"] for message in told if message.get("type") == "agent_chunk"]

    def news(self) -> list[dict[str, Any]]:
        """The messages that have come since this was asked for the last time."""
        told = messages(b"".join(self.written[self._read :]))
        self._read = len(self.written)
        return told

    def write(self, frames: bytes) -> None:
        """Remember it."""
        assert self.writable, "a socket that takes no more was written to"
        self.written.append(frames)

    def replaced(self) -> None:
        """Closed, and so detached, as the real one."""
        self.replacements += 1
        self.leave()

    def restart(self, reason: str) -> None:
        """Closed, and so detached, as the real one."""
        self.restarts.append(reason)
        self.leave()

    def leave(self) -> None:
        """Close it."""
        feed, self.feed = self.feed, None
        if feed is not None:
            self.hub.detach(feed, self)

    def pause(self) -> None:
        """It takes no more."""
        self.writable = False

    def unpause(self) -> None:
        """It takes more again."""
        self.writable = True
        if self.feed is not None:
            self.hub.resumed(self.feed, self)

    def greet(self, resumed: Resumed) -> bool:
        """The first thing that it is told."""
        assert not self.written, "it was written to before it was greeted"
        self.resumed = resumed
        return not self.gone

    async def attach(self, cursor: Position | None = None, session: str = SESSION) -> bool:
        """Attach it; whether that came to pass."""
        self.feed = await self.hub.attach(session, self, cursor, self.greet)
        return self.feed is not None


class StubConnection:
    """What of a `Connection` is looked at by those who count it or wait for its token's end."""

    def __init__(self, peer: str | None = None) -> None:
        self.peer = peer
        self.address: str | None = None
        self.admitted = False
        self.counted = False
        self.identity: Identity | None = None
        self.state = State.OPENING
        self.token_ends = 0

    def as_connection(self) -> Listener:
        """Itself, under the type that they ask for."""
        return cast("Listener", self)


# Transports.


class FakeTransport(asyncio.Transport):
    """A transport that takes everything; what of it has left is for a test to say.

    Attributes:
        buffered: bytes that have not left the process.
        closing: `close` or `abort` was called; ``connection_lost`` is left to the test.
    """

    def __init__(self, peer: str = "127.0.0.1") -> None:
        super().__init__({"peername": (peer, 50_000)})
        self.written: list[bytes] = []
        self.buffered = 0
        self.high: int | None = None
        self.closing = False
        self.reading = True
        self.wrote = asyncio.Event()
        self.aborted = asyncio.Event()

    @property
    def data(self) -> bytes:
        """All that was written."""
        return b"".join(self.written)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Remember it."""
        self.written.append(bytes(data))
        self.wrote.set()

    def close(self) -> None:
        """Remember it."""
        self.closing = True

    def abort(self) -> None:
        """Remember it."""
        self.closing = True
        self.buffered = 0  # as the loops do it
        self.aborted.set()

    def is_closing(self) -> bool:
        """Whether it was closed here."""
        return self.closing

    def pause_reading(self) -> None:
        """Remember it."""
        self.reading = False

    def resume_reading(self) -> None:
        """Remember it."""
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Remember it."""
        self.high = high

    def get_write_buffer_size(self) -> int:
        """As a test has set it."""
        return self.buffered


def masked(opcode: int, payload: bytes = b"", *, final: bool = True) -> bytes:
    """One frame of a client."""
    mask, size = b"\x0f\xf0\x55\xaa", len(payload)
    head = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes((opcode | (0x80 if final else 0),)) + head + mask + body


# Limits.


class FakeLimiter:
    """A `RateLimiter` that allows all, until a test says otherwise."""

    def __init__(self) -> None:
        self.answer: Charged | Exception = Charged(True, 0.0, (), ())
        self.address_wait_s: float | Exception = 0.0
        self.charged: list[tuple[str, str]] = []
        self.refunded: list[tuple[str, str]] = []
        self.addresses: list[tuple[str, int, int]] = []
        self.quotas: Sequence[Quota] = ()

    async def charge(self, tenant_id: str, session_id: str, quotas: Sequence[Quota]) -> Charged:
        self.quotas = quotas
        self.charged.append((tenant_id, session_id))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def refund(self, tenant_id: str, session_id: str, quotas: Sequence[Quota]) -> None:
        assert quotas == self.quotas
        self.refunded.append((tenant_id, session_id))

    async def charge_address(self, address: str, most: int, window_s: int) -> float:
        self.addresses.append((address, most, window_s))
        if isinstance(self.address_wait_s, Exception):
            raise self.address_wait_s
        return self.address_wait_s

    def as_limiter(self) -> RateLimiter:
        return cast("RateLimiter", self)


class FakeCounts:
    """`ConnectionCounts` of one pod, in memory; ``full`` is what it says to who wants to join."""

    def __init__(self) -> None:
        self.full: Full | Exception | None = None
        self.places: list[Place] = []
        self.most: Most | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def join(self, place: Place, most: Most) -> Full | None:
        self.most = most
        await self.gate.wait()
        if isinstance(self.full, Exception):
            raise self.full
        if self.full is None:
            self.places.append(place)
        return self.full

    def leave(self, place: Place) -> None:
        self.places.remove(place)

    async def rewrite(self, places: Iterable[Place]) -> None:
        self.places = list(places)

    def as_counts(self) -> ConnectionCounts:
        return cast("ConnectionCounts", self)

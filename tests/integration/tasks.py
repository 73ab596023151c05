"""Tasks as all those see them who race for their ends: a pod, a router, the AES."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from backplane.appending import Entry
from backplane.due_tasks import DueTasks
from backplane.keys import Keys
from backplane.messages import Message, timestamp, to_entry, with_position
from backplane.router.metrics import RouterMetrics
from backplane.router.transfer import Transfer
from backplane.settings import Settings
from backplane.store import Store
from backplane.task import ENDED, Due, Duplicate, Found, NewTask, Reserved
from backplane.task_cancel import finish_cancel
from backplane.task_end import end_entry
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks

SETTINGS = Settings(deadline_grace_s=0.0)
KEYS = SETTINGS.keys()
LIST = KEYS.callbacks("acme")
QUEUE = KEYS.actions("free")
OVER_S = -60.0  # a deadline that is over
_NO_ENDS = ("task_update", "user_message", "input_required")


class World:
    """One tenant's tasks.

    Args:
        store: through which.
        tenant_id: whose.
        on_due: told a list whose tasks a router has to look at soon.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings = SETTINGS,
        tenant_id: str = "acme",
        on_due: Callable[[str], None] = lambda _list: None,
    ) -> None:
        self.store, self.settings, self.tenant_id = store, settings, tenant_id
        self.keys: Keys = settings.keys()
        self.list = self.keys.callbacks(tenant_id)
        self.tasks = Tasks(store, self.keys, settings)
        self.due_tasks = DueTasks(store, self.keys, settings)
        self.queue = TaskQueue(store, self.keys, settings.actions_queue_max)
        self.metrics = RouterMetrics(settings)
        self.transfer = Transfer(
            store, store, self.keys, settings, structlog.get_logger(), on_due, metrics=self.metrics
        )
        self._said = 0

    # What a pod does.

    def new(
        self,
        task_id: str = "t-1",
        session: str = "s-1",
        user: str = "",
        names: Sequence[str] = (),
        fingerprint: str = "f",
        policy: str = "concurrent",
        timeout_s: float = 30.0,
        latest_s: float = 60.0,
        left_s: int | None = None,
        **more: str,
    ) -> NewTask:
        """A send, as it is now; ``more`` of its record."""
        fields = {"tier": "free", "queue": QUEUE, "agent_id": "sales", "context": "agent-sales", **more}
        action = {"task_id": task_id, "timeout": round(timeout_s), "deadline_at": "", "queue_metadata": {}}
        return NewTask(
            task_id,
            self.list,
            session,
            user,
            names,
            fingerprint,
            timeout_s,
            latest_s,
            policy,
            fields,
            json.dumps(action).encode() if policy == "enqueue" else b"",
            left_s,
        )

    async def accept(self, task_id: str = "t-1", **more: Any) -> Reserved | Duplicate:
        """Reserve a task; nothing is pushed."""
        return await self.tasks.accept(self.new(task_id, **more))

    async def begin(self, task_id: str = "t-1", **more: Any) -> None:
        """A task whose action the AES has."""
        assert isinstance(await self.accept(task_id, **more), Reserved)
        assert await self.push(task_id)
        await self.settle(task_id, pushed=True)

    async def enqueue(self, task_id: str = "t-2", **more: Any) -> Reserved:
        """A send to a busy session that waits for its other tasks to end."""
        accepted = await self.accept(task_id, policy="enqueue", **more)
        assert isinstance(accepted, Reserved)
        assert accepted.held
        return accepted

    async def push(self, task_id: str) -> bool:
        """Push a task's action."""
        return await self.queue.push(QUEUE, task_id, "run", task_id.encode())

    async def settle(self, task_id: str, *, pushed: bool) -> None:
        """Say what became of a reserved task."""
        await self.tasks.settle(self.list, await self.due(task_id), pushed=pushed)

    async def begin_cancel(self, task_id: str, user: str = "", reason: str = "") -> Due:
        """The first half of a cancel."""
        found = Found(self.list, await self.record(task_id))
        return await self.tasks.begin_cancel(found, task_id, user, reason)

    async def finish_cancel(self, task_id: str) -> str:
        """The second half."""
        due = await self.due(task_id)
        return await finish_cancel(self.tasks, self.queue, self.list, self.tenant_id, due)

    # What a router does.

    async def time_out(self, task_id: str, session: str = "s-1") -> str:
        """End a task whose deadline is over."""
        entry = end_entry("timeout", task_id, session, self.tenant_id, "free", "", time.time())
        return await self.tasks.end(self.list, entry, "", time.time())

    async def end(self, entry: Entry, wanted: str) -> str:
        """End a task in any way."""
        return await self.tasks.end(self.list, entry, wanted, time.time())

    async def move(self) -> None:
        """Move what the AES has said."""
        while await self.transfer.drain(self.list, self.tenant_id, 100):
            pass

    # What the AES does.

    async def say(self, task_id: str, session: str = "s-1", **said: Any) -> None:
        """Push a callback of a task; it is not moved yet."""
        self._said += 1
        base = {"action_id": f"a-{self._said}", "task_id": task_id, "session_id": session}
        await self.store.call("LPUSH", self.list, json.dumps({**base, **said}))

    async def answer(
        self, task_id: str, session: str = "s-1", status: str = "completed", **more: Any
    ) -> None:
        """The end of a task, moved at once."""
        await self.say(task_id, session, **{"status": status, "result": {"response": task_id}, **more})
        await self.move()

    async def report(self, task_id: str, session: str = "s-1", **data: Any) -> None:
        """How a task goes, moved at once."""
        await self.say(task_id, session, action_type="execution.progress", data=data)
        await self.move()

    # What there is.

    async def record(self, task_id: str = "t-1") -> dict[str, str]:
        """A task's record; empty if there is none."""
        found = await self.tasks.find(self.tenant_id, task_id)
        return {} if found is None else found.fields

    async def was_accepted(self, task_id: str) -> bool:
        """Whether anybody was told so: one that is taken back before its action is pushed never was."""
        record = await self.record(task_id)
        return bool(record) and ("ended" in record or record.get("unpushed") != "reserved")

    async def status(self, task_id: str = "t-1") -> str:
        """A task's; empty if there is no record."""
        return (await self.record(task_id)).get("status", "")

    async def due(self, task_id: str) -> Due:
        """A task as `DueTasks.due` tells it."""
        record = await self.record(task_id)
        return Due(task_id, **{name: record.get(name, "") for name in Due._fields[1:]})

    async def log(self, session: str = "s-1") -> list[dict[str, Any]]:
        """The messages that a session was told."""
        base = self.session(session)
        first = 1 + int(await self.store.call("HGET", base, "h") or 0)
        entries: list[bytes] = await self.store.call("LRANGE", f"{base}:log", 0, -1)
        first -= len(entries)
        return [json.loads(with_position(entry, "e", first + at)) for at, entry in enumerate(entries)]

    async def pushed(self) -> list[str]:
        """The actions that the AES has not taken: of which task, a cancel with a minus before it."""
        return [_named(action) for action in reversed(await self.store.call("LRANGE", QUEUE, 0, -1))]

    async def ends(self, session: str = "s-1") -> list[tuple[str, str]]:
        """The tasks that ended and how, in order."""
        log = await self.log(session)
        return [(one["task_id"], one["data"]["status"]) for one in log if one["type"] not in _NO_ENDS]

    def session(self, session: str = "s-1") -> str:
        """The base of a session's keys."""
        return self.keys.session(self.list, session)

    async def running(self, session: str = "s-1") -> set[str]:
        """The tasks that count as running in a session."""
        found = await self.store.call("ZRANGE", f"{self.session(session)}:tasks", 0, -1)
        return {task.decode() for task in found}

    async def due_at(self, task_id: str = "t-1") -> float | None:
        """When a router looks at a task (seconds since 1970)."""
        score = await self.store.call("ZSCORE", self.keys.due(self.list), task_id)
        return None if score is None else float(score) / 1000

    async def list_due_at(self) -> float | None:
        """When a router looks at the list."""
        score = await self.store.call("ZSCORE", self.keys.due_lists, self.list)
        return None if score is None else float(score) / 1000

    async def look_at_all(self) -> None:
        """Have every task be due now."""
        for task in await self.store.call("ZRANGE", self.keys.due(self.list), 0, -1):
            await self.store.call("ZADD", self.keys.due(self.list), 1, task)
        await self.store.call("ZADD", self.keys.due_lists, 1, self.list)

    async def check_ended_once(self, task_id: str = "t-1", session: str = "s-1") -> str:
        """The log has one end of the task, the record has the same, and nobody waits for it any more."""
        record = await self.record(task_id)
        log = [message for message in await self.log(session) if message["task_id"] == task_id]
        ends = [message for message in log if message["type"] not in _NO_ENDS]
        assert [message["data"]["status"] for message in ends] == [record["status"]], (record, ends)
        assert record["status"] in ENDED
        assert log[-1] is ends[-1], "something came after the end"
        seqs = [message["metadata"]["seq"] for message in log]
        assert (int(record["first"]), int(record["last"])) == (seqs[0], seqs[-1])
        assert int(record["accepted"]) <= int(record["started"]) <= int(record["ended"])
        assert (await self.due_at(task_id), task_id in await self.running(session)) == (None, False)
        kept_ms = await self.store.call("PTTL", self.keys.task(self.list, task_id))
        assert 0 < kept_ms <= self.settings.task_kept_s * 1000
        return record["status"]


def question(task_id: str) -> str:
    """What a user has said, as his task's record has it."""
    message = Message(timestamp(time.time()), "user_message", task_id, "s-1", "acme", "free", {}, {})
    return to_entry(message).decode()


def _named(action: bytes) -> str:
    if not action.startswith(b"{"):
        return action.decode()
    said = json.loads(action)
    return f"-{said['task_id']}" if said.get("action_type") == "chat.cancel" else str(said["task_id"])

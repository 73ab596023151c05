"""What clients may ask of a task: whose it is, how it goes, and that it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from backplane.errors import NotYours, QueueFull, RedisRefused, RedisUnavailable, UnknownTask
from backplane.task import ENDED, NewTask, send_name
from gateway.errors import ClientError
from gateway.identity import ANYONE, OPERATOR, Grant, Stated
from gateway.tasks import TaskDesk, moment
from tests.unit.gateway.fakes import FakeLogger, FakeQueue, FakeSessionLog, FakeTasks, settle

NAMES = ("tenant_id", "tenant_tier", "session_id", "user_id", "agent_id")
LIST = "orchestrator:acme:callbacks"
QUEUE = "actions:free"
NOW = 1_769_860_800.25
AWAY = RedisUnavailable("away")
FREE = Stated("acme", None, None, None, None, NAMES)


def grant(user: str | None = None, tier: str = "free", **more: Any) -> Grant:
    said: dict[str, Any] = {"sessions": None, "scopes": frozenset({"chat", "listen"}), **more}
    tenant = said.get("tenant", "acme")
    return Grant(tenant, tier, user, said["sessions"], None, said["scopes"], None, 0.0, None)


def stated(**said: str | None) -> Stated:
    return FREE._replace(**{"tenant_id": None, **said})  # type: ignore[arg-type]


@dataclass
class World:
    """A desk, and one task that waits for an agent."""

    log: FakeSessionLog
    tasks: FakeTasks
    queue: FakeQueue
    logger: FakeLogger
    desk: TaskDesk

    async def begin(self, task_id: str = "t-1", user: str = "", session: str = "s-1", name: str = "") -> None:
        fields = {"tier": "free", "queue": QUEUE, "agent_id": "sales", "context": "agent-sales"}
        names = [send_name("message", session, name)] if name else []
        task = NewTask(task_id, LIST, session, user, names, "f", 30, 60, "concurrent", fields)
        self.tasks.ahead_s = NOW - time.time()
        await self.tasks.accept(task)
        self.record(task_id)["status"] = "queued"

    def record(self, task_id: str = "t-1") -> dict[str, str]:
        return self.tasks.records[LIST, task_id]

    async def show(
        self, who: Grant | None = None, task_id: str = "t-1", **said: str | None
    ) -> dict[str, Any]:
        return await self.desk.show(who or grant(), stated(**said), task_id)

    async def cancel(
        self,
        who: Grant | None = None,
        task_id: str | None = "t-1",
        message_id: str | None = None,
        reason: str = "",
        **said: str | None,
    ) -> dict[str, Any]:
        return await self.desk.cancel(who or grant(), stated(**said), task_id, message_id, reason)

    @property
    def cancels(self) -> list[str]:
        """The tasks of which the AES was told that they are cancelled."""
        return [action["task_id"] for action in self.queue.actions if action["action_type"] == "chat.cancel"]


@pytest.fixture
async def world() -> World:
    log, queue, logger = FakeSessionLog(), FakeQueue(), FakeLogger()
    tasks = FakeTasks(log)
    desk = TaskDesk(tasks.as_tasks(), queue.as_queue(), log.as_log(), logger.as_logger())
    world = World(log, tasks, queue, logger, desk)
    await world.begin()
    return world


async def refusal(asked: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        await asked
    return caught.value.status, caught.value.error_code


# The record.


async def test_a_task_that_waits(world: World) -> None:
    """Everything that is known of it; what is not known yet is null."""
    assert await world.show() == {
        "task_id": "t-1",
        "tenant_id": "acme",
        "session_id": "s-1",
        "agent_id": "sales",
        "status": "queued",
        "input_required": False,
        "attempt": 1,
        "cursor": "e1:0",
        "messages": None,
        "usage": None,
        "reason": None,
        "late": 0,
        "late_answer": None,
        "created_at": "2026-01-31T12:00:00.250000+00:00",
        "started_at": None,
        "ended_at": None,
        "deadline_at": "2026-01-31T12:00:30.250000+00:00",
    }


async def test_a_task_that_has_ended(world: World) -> None:
    """When, where its messages are, what it has used, and what came after its end."""
    world.record().update(
        status="timeout",
        started="1769860801000",
        ended="1769860832000",
        epoch="e1",
        first="3",
        last="7",
        usage='{"tokens_used":{"total":7}}',
        late="2",
        late_answer='{"type":"agent_response","metadata":{',
        reason="enough",
    )
    told = await world.show()

    assert (told["status"], told["reason"]) == ("timeout", "enough")
    assert told["messages"] == {"epoch": "e1", "first": 3, "last": 7}
    assert told["usage"] == {"tokens_used": {"total": 7}}
    assert (told["late"], told["late_answer"]) == (2, {"type": "agent_response", "metadata": {}})
    assert told["started_at"] == "2026-01-31T12:00:01+00:00"
    assert told["ended_at"] == "2026-01-31T12:00:32+00:00"


@pytest.mark.parametrize(
    ("status", "shown", "input_required"),
    [
        ("held", "queued", False),
        ("reserved", "queued", False),
        ("queued", "queued", False),
        ("working", "working", False),
        ("input_required", "working", True),
        ("cancelling", "cancelling", False),
        *((status, status, False) for status in sorted(ENDED)),
    ],
)
async def test_statuses(world: World, status: str, shown: str, input_required: bool) -> None:
    """What is only of our inside is not told."""
    world.record()["status"] = status
    told = await world.show()

    assert (told["status"], told["input_required"]) == (shown, input_required)
    assert (told["deadline_at"] is None) == (status == "held")


async def test_a_task_with_one_message(world: World) -> None:
    """Its first message is its last."""
    world.record().update(first="3", epoch="e1")

    assert (await world.show())["messages"] == {"epoch": "e1", "first": 3, "last": 3}


@pytest.mark.parametrize("name", ["usage", "late_answer"])
async def test_what_cannot_be_read(world: World, name: str) -> None:
    """Is shown as nothing, and hides nothing else."""
    world.record()[name] = "{broken"

    assert (await world.show())[name] is None


@pytest.mark.parametrize(
    ("milliseconds", "told"),
    [(None, None), ("", None), ("1769860800250", "2026-01-31T12:00:00.250000+00:00")],
)
def test_moments(milliseconds: str | None, told: str | None) -> None:
    """Milliseconds since 1970, as clients are told them."""
    assert moment(milliseconds) == told


# Whose it is.


async def test_a_task_that_is_not_there(world: World) -> None:
    """One that ended too long ago, and another tenant's, look the same."""
    for asked in (world.show, world.cancel):
        assert await refusal(asked(task_id="t-2")) == (404, "unknown_task")
        assert await refusal(asked(grant(tenant="other"))) == (404, "unknown_task")
    assert world.record()["status"] == "queued"


@pytest.mark.parametrize("task_id", ["", "a b", "x" * 129, "t\n1", "t{1}", "é"])
async def test_what_is_no_id(world: World, task_id: str) -> None:
    """Is refused before anybody is asked."""
    world.log.calls.clear()
    for asked in (world.show, world.cancel):
        assert await refusal(asked(task_id=task_id)) == (400, "invalid_id")
    assert world.log.calls == []


@pytest.mark.parametrize(("scope", "may_show"), [("listen", True), ("chat", False), ("admin", False)])
async def test_scopes(world: World, scope: str, may_show: bool) -> None:
    """Who may listen may see how it goes, who may chat may end it."""
    who = grant(scopes=frozenset({scope}))
    if may_show:
        assert (await world.show(who))["task_id"] == "t-1"
    else:
        assert await refusal(world.show(who)) == (403, "scope_missing")
    if scope == "chat":
        assert (await world.cancel(who))["cancelled"]
    else:
        assert await refusal(world.cancel(who)) == (403, "scope_missing")
        assert world.record()["status"] == "queued"


async def test_another_users_task(world: World) -> None:
    """Is neither shown nor ended; its own user's and the administrator's is."""
    await world.begin("t-2", "ann", "s-2")
    for asked in (world.show, world.cancel):
        for who in (grant("bob"), grant()):
            assert await refusal(asked(who, "t-2")) == (403, "session_taken")
    assert world.record("t-2")["status"] == "queued"
    admin = grant(scopes=frozenset({"chat", "listen", "admin"}))
    for who in (grant("ann"), admin):
        assert (await world.show(who, "t-2"))["session_id"] == "s-2"
        assert (await world.cancel(who, "t-2"))["cancelled"]


async def test_a_token_for_other_sessions(world: World) -> None:
    """It says which sessions it is for; a task of another one is not."""
    for asked in (world.show, world.cancel):
        assert await refusal(asked(grant(sessions=("s-2", "web-*")))) == (403, "forbidden")
        assert await refusal(asked(session_id="s-2")) == (403, "forbidden")
    assert world.record()["status"] == "queued"
    assert await world.show(grant(sessions=("s-*",)), session_id="s-1")


async def test_without_tokens(world: World) -> None:
    """The tenant has to be named; the rest the task knows itself."""
    assert await refusal(world.show(ANYONE)) == (400, "missing_id")
    assert (await world.show(ANYONE, tenant_id="acme"))["session_id"] == "s-1"
    assert (await world.cancel(ANYONE, tenant_id="acme"))["cancelled"]


async def test_an_operators_token(world: World) -> None:
    """Speaks for no tenant, and ends no tenant's tasks."""
    operator = grant(tenant=OPERATOR)
    assert await refusal(world.cancel(operator)) == (400, "missing_id")
    assert await refusal(world.cancel(operator, tenant_id="acme")) == (403, "forbidden")
    assert world.record()["status"] == "queued"


async def test_a_tenant_that_has_changed_its_tier(world: World) -> None:
    """Its earlier tasks stay its own: the token says what it has now."""
    upgraded = grant(tier="enterprise")
    assert (await world.show(upgraded))["status"] == "queued"
    assert (await world.cancel(upgraded))["cancelled"]
    assert world.queue.actions[0]["tenant_tier"] == "free"
    assert world.queue.pushed[0][0] == QUEUE


# Cancelling.


async def test_a_task_is_cancelled_that_nobody_has(world: World) -> None:
    """Its action is not pushed any more, nothing is shown of it, and it stays cancelled."""
    world.record()["status"] = "reserved"
    for _ in range(2):
        told = await world.cancel(reason="enough")
        assert told == {"success": True, "task_id": "t-1", "status": "cancelled", "cancelled": True}
    assert (world.tasks.ended, world.queue.actions) == ([], [])
    assert not await world.queue.push(QUEUE, "t-1", "run", b"{}")


@pytest.mark.parametrize("status", ["queued", "working", "input_required", "cancelling"])
async def test_a_task_is_cancelled(world: World, status: str) -> None:
    """Wherever it was: one last message, one word to the AES, also if it is asked for twice."""
    world.record()["status"] = status
    for _ in range(2):
        told = await world.cancel(reason="enough")
        assert told == {"success": True, "task_id": "t-1", "status": "cancelled", "cancelled": True}

    [entry] = world.tasks.ended
    assert (entry.task_id, entry.session_id, entry.detail) == ("t-1", "s-1", "cancelled")
    [action] = world.queue.actions
    assert (action["action_type"], action["task_id"]) == ("chat.cancel", "t-1")
    assert (action["callback_queue"], action["execution_context"]["context_id"]) == (LIST, "agent-sales")
    assert world.desk.cancelled == 1


async def test_the_reason_is_passed_on(world: World) -> None:
    """To the AES, to who listens, and to who asks later."""
    await world.cancel(reason="enough")

    assert world.queue.actions[0]["reason"] == "enough"
    assert b'"reason":"enough"' in world.tasks.ended[0].body
    assert (await world.show())["reason"] == "enough"


async def test_a_reason_that_is_too_long(world: World) -> None:
    """Is refused, however it comes."""
    assert await refusal(world.cancel(reason="x" * 257)) == (422, "invalid_field")
    assert (await world.cancel(reason="x" * 256))["cancelled"]


@pytest.mark.parametrize("status", sorted(ENDED - {"cancelled"}))
async def test_a_task_that_has_ended_is_not_cancelled(world: World, status: str) -> None:
    """It is said how it ended; the AES hears nothing."""
    world.record()["status"] = status

    assert await world.cancel() == {"success": True, "task_id": "t-1", "status": status, "cancelled": False}
    assert (world.queue.pushed, world.tasks.ended, world.desk.cancelled) == ([], [], 0)


async def test_a_full_queue_does_not_hold_up_the_end(world: World) -> None:
    """The agent works in vain then."""
    world.queue.refusal = QueueFull("full")

    assert (await world.cancel())["cancelled"]
    assert world.tasks.status("t-1") == "cancelled"


async def test_a_task_that_goes_away_meanwhile(world: World) -> None:
    """Found, and gone when it is to be cancelled: as if it had not been there."""
    for error, told in ((UnknownTask(), (404, "unknown_task")), (NotYours(), (403, "session_taken"))):
        world.tasks.refusals["begin_cancel"] = error
        assert await refusal(world.cancel()) == told
    assert world.queue.pushed == []


@pytest.mark.parametrize("trouble", [AWAY, RedisRefused("OOM")])
@pytest.mark.parametrize("step", ["find", "begin_cancel", "end"])
async def test_redis_is_away(world: World, step: str, trouble: RedisUnavailable) -> None:
    """The caller learns it; once Redis is back, the same again ends the task."""
    world.tasks.refusals[step] = trouble
    with pytest.raises(RedisUnavailable):
        await world.cancel()
    assert world.tasks.ended == []
    world.tasks.refusals.clear()

    assert (await world.cancel())["cancelled"]
    assert len(world.tasks.ended) == len(world.cancels) == 1


# By the name with which it was sent.


async def test_a_task_by_its_messages_id(world: World) -> None:
    """A client need not have waited for the answer to its send."""
    await world.begin("t-2", name="m-1")
    told = await world.cancel(task_id=None, message_id="m-1", session_id="s-1")

    assert (told["task_id"], told["cancelled"]) == ("t-2", True)
    assert world.record("t-1")["status"] == "queued"


async def test_a_messages_id_needs_its_session(world: World) -> None:
    """It is the client's own, and says nothing without; and one of the two ids is needed."""
    await world.begin("t-2", name="m-1")
    assert await refusal(world.cancel(task_id=None, message_id="m-1")) == (400, "missing_id")
    assert await refusal(world.cancel(task_id=None, session_id="s-1")) == (400, "missing_id")
    assert await refusal(world.cancel(task_id=None, message_id="m-2", session_id="s-1")) == (
        404,
        "unknown_task",
    )
    assert await refusal(world.cancel(task_id=None, message_id="m-1", session_id="s-2")) == (
        404,
        "unknown_task",
    )
    listener = grant(scopes=frozenset({"listen"}))
    asked = world.cancel(listener, None, "m-1", session_id="s-1")
    assert await refusal(asked) == (403, "scope_missing")
    assert world.record("t-2")["status"] == "queued"


# Ends that somebody else has begun.


async def test_tasks_are_finished_beside(world: World) -> None:
    """Those that were interrupted; one that is gone is passed over."""
    for task_id in ("t-2", "t-3"):
        await world.begin(task_id)
        world.record(task_id).update(status="cancelling", reason="interrupted")
    told = list[tuple[str, ...]]()
    world.desk._on_ended = lambda *task: told.append(task)
    world.desk.finish(LIST, "acme", ["t-2", "gone", "t-3"])
    assert world.tasks.ended == []
    await settle()

    assert sorted(entry.task_id for entry in world.tasks.ended) == ["t-2", "t-3"]
    assert sorted(world.cancels) == ["t-2", "t-3"]
    assert all(action["reason"] == "interrupted" for action in world.queue.actions)
    assert world.desk.cancelled == 2
    assert told == [("acme", "free", "sales", "cancelled")] * 2


async def test_what_cannot_be_finished(world: World) -> None:
    """Is told to the operator, and left to a router."""
    world.record().update(status="cancelling")
    world.tasks.refusals["end"] = AWAY
    world.desk.finish(LIST, "acme", ["t-1"])
    await settle()

    assert world.logger.names == ["task_not_ended"]
    assert world.record()["status"] == "cancelling"


async def test_a_mistake_of_ours_while_finishing(world: World) -> None:
    """Dies visibly."""
    world.tasks.refusals["find"] = ZeroDivisionError("a mistake")
    world.desk.finish(LIST, "acme", ["t-1"])
    await settle()

    assert world.logger.names == ["task_died"]

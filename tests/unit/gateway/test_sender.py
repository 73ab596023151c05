"""Sends: whether they are allowed, what they are charged, and what they are given back."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest
from msgspec.structs import replace

from backplane.errors import QueueFull, RedisRefused, RedisUnavailable
from backplane.keys import ANY_USER, TIERS
from backplane.rate_limiter import Charged, Quota, Standing
from backplane.task_queue import What
from gateway.chat import ChatBody, Context, fingerprint
from gateway.errors import ClientError
from gateway.identity import Grant, Identity
from gateway.sender import Accepted
from tests.unit.gateway.fakes import settle
from tests.unit.gateway.web import StubPod

STANDINGS = (Standing("minute", 10, 60, 9, 6.0), Standing("day", 100, 86_400, 99, 864.0))
ALLOWED = Charged(True, 0.0, (), STANDINGS)
OVER = Charged(False, 6.0, ("minute",), (Standing("minute", 10, 60, 0, 60.0), STANDINGS[1]))
AWAY = RedisUnavailable("away")
LIST = "orchestrator:acme:callbacks"
SESSION = "ao:{orchestrator:acme:callbacks}:s:s-1"


def identity(user: str | None = None, tier: str = "free", **more: Any) -> Identity:
    usual: dict[str, Any] = {"agents": None, "scopes": frozenset({"chat"})}
    said = {**usual, **more}
    grant = Grant("acme", tier, user, None, said["agents"], said["scopes"], None, 0.0, None)
    return Identity("acme", tier, "s-1", user, None, grant)


class World:
    """A pod that sends."""

    def __init__(self, **settings: Any) -> None:
        self.pod = StubPod(**settings)
        self.pod.limiter.answer = ALLOWED

    async def send(
        self, who: Identity | None = None, agent: str = "sales", key: str | None = None, **body: Any
    ) -> Accepted:
        context = Context(agent, idempotency_key=key)
        return await self.pod.sender.send(
            who or identity(), context, ChatBody(**{"message": "hello", **body})
        )

    async def refusal(self, who: Identity | None = None, agent: str = "sales", **more: Any) -> ClientError:
        """Of a send; nothing was queued, and nothing counted as accepted."""
        queued, accepted = len(self.pod.queue.pushed), self.pod.sender.accepted
        with pytest.raises(ClientError) as caught:
            await self.send(who, agent, **more)
        assert (len(self.pod.queue.pushed), self.pod.sender.accepted) == (queued, accepted)
        return caught.value

    @property
    def paid(self) -> int:
        """How many sends the tenant's quotas are charged with."""
        return len(self.pod.limiter.charged) - len(self.pod.limiter.refunded)

    @property
    def ran(self) -> list[str]:
        """The tasks of the actions that were pushed, but for cancels."""
        actions = self.pod.queue.actions
        return [action["task_id"] for action in actions if action["action_type"] == "execution.agent_run"]


@pytest.fixture
def world() -> World:
    return World()


# What is charged.


async def test_a_send(world: World) -> None:
    """It is charged once, to its tenant and session, and told what is left."""
    accepted = await world.send()

    assert world.pod.limiter.charged == [("acme", "s-1")]
    assert world.pod.limiter.refunded == []
    assert dict(accepted.headers) == {
        "RateLimit-Policy": '"minute";q=10;w=60, "day";q=100;w=86400',
        "RateLimit": '"minute";r=9;t=6, "day";r=99;t=864',
    }
    assert world.pod.sender.accepted == len(world.pod.queue.pushed) == 1


@pytest.mark.parametrize("tier", TIERS)
async def test_quotas(tier: str) -> None:
    """They are the tier's, as they are set."""
    world = World(
        sends_per_minute=(1, 2, 3, 4), sends_per_day=(5, 6, 7, 0), sends_per_session_hour=(9, 10, 11, 12)
    )
    await world.send(identity(tier=tier))
    number = TIERS.index(tier)

    assert world.pod.limiter.quotas == (
        Quota("minute", number + 1, 60),
        Quota("day", (5, 6, 7, 0)[number], 86_400),
        Quota("session", number + 9, 3_600),
    )
    assert world.pod.queue.pushed[0][0].endswith(f":{tier}")


async def test_over_the_limit(world: World) -> None:
    """It is told which limit and how long to wait, and nothing is given back of what was not taken."""
    world.pod.limiter.answer = OVER
    error = await world.refusal()

    assert (error.status, error.error_code, error.limit, error.retry_after_s) == (
        429,
        "rate_limited",
        "minute",
        6.0,
    )
    assert "RateLimit" in dict(error.headers)
    assert world.pod.limiter.refunded == []


# What is not allowed costs nothing.


@pytest.mark.parametrize(
    ("who", "code"),
    [
        (identity(scopes=frozenset({"listen", "admin"})), "scope_missing"),
        (identity(agents=("support", "sales-*")), "forbidden"),
        (identity(agents=()), "forbidden"),
    ],
)
async def test_what_the_token_does_not_allow(world: World, who: Identity, code: str) -> None:
    """It is refused before anybody is asked."""
    error = await world.refusal(who)

    assert (error.status, error.error_code) == (403, code)
    assert (world.pod.limiter.charged, world.pod.log.calls) == ([], [])


async def test_what_another_service_does_not_allow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused, and paid for: or asking that service would be free."""

    async def check(_self: Any, who: Identity, agent: str) -> None:
        raise ClientError(403, "agent_forbidden", f"{who.tenant_id} {agent}")

    monkeypatch.setattr("gateway.access.AgentAccess.check", check)
    error = await world.refusal()

    assert (error.error_code, error.detail) == ("agent_forbidden", "acme sales")
    assert (world.pod.limiter.charged, world.pod.limiter.refunded) == ([("acme", "s-1")], [])


async def test_a_session_of_another_user(world: World) -> None:
    """It is said whose it is not, and the tenant does not pay for that."""
    await world.send(identity("ann"))
    error = await world.refusal(identity("bob"))
    assert (error.status, error.error_code) == (403, "session_taken")
    assert "ann" not in error.detail
    assert world.paid == 1
    error = await world.refusal(identity())
    assert error.error_code == "session_taken"
    await world.send(identity("ann"))
    await world.send(identity(scopes=frozenset({"chat", "admin"})))

    assert world.paid == 3


async def test_a_session_of_another_user_over_the_limit(world: World) -> None:
    """Who is over the limit learns nothing, begins nothing and is given back nothing."""
    await world.send(identity("ann"))
    world.pod.limiter.answer = OVER
    error = await world.refusal(identity("bob"))

    assert error.error_code == "rate_limited"
    assert world.pod.limiter.refunded == []


@pytest.mark.parametrize(
    ("who", "owner"),
    [
        (identity("ann"), "ann"),
        (identity(), ""),
        (identity(scopes=frozenset({"chat", "admin"})), ""),
    ],
)
async def test_who_sends_first_has_the_session(world: World, who: Identity, owner: str) -> None:
    """As the one whom its token names."""
    await world.send(who)

    assert world.pod.log.record(SESSION).owner == owner
    assert owner != ANY_USER


async def test_a_full_queue(world: World) -> None:
    """What was not queued is given back, once."""
    world.pod.queue.refusal = QueueFull("full")
    error = await world.refusal()

    assert (error.status, error.error_code, error.retry_after_s) == (503, "queue_full", 5)
    assert world.pod.limiter.charged == world.pod.limiter.refunded == [("acme", "s-1")]


async def test_a_full_queue_and_no_way_to_give_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is told of the queue all the same."""

    async def refund(*_arguments: Any) -> None:
        raise AWAY

    monkeypatch.setattr(world.pod.limiter, "refund", refund)
    world.pod.queue.refusal = QueueFull("full")

    assert (await world.refusal()).error_code == "queue_full"


# While Redis is away.


async def test_an_action_that_may_have_been_queued(world: World) -> None:
    """Nobody knows, so it is paid for: else a client could send for nothing while answers are lost."""
    world.pod.queue.refusal = AWAY
    error = await world.refusal()

    assert (error.status, error.error_code) == (503, "redis_unavailable")
    assert world.paid == 1


async def test_the_session_cannot_be_asked(world: World) -> None:
    """The charge went through, and is given back."""
    world.pod.log.refusal = AWAY
    error = await world.refusal()

    assert (error.status, error.error_code) == (503, "redis_unavailable")
    assert world.pod.limiter.charged == world.pod.limiter.refunded == [("acme", "s-1")]


@pytest.mark.parametrize("trouble", [AWAY, RedisRefused("OOM")])
async def test_limits_that_cannot_be_told(trouble: RedisUnavailable) -> None:
    """By default nobody gets through; nothing is given back, as nobody knows what was taken."""
    world = World(rate_limit_failure="closed")
    world.pod.limiter.answer = trouble
    error = await world.refusal()

    assert (error.status, error.error_code) == (503, "redis_unavailable")
    assert world.pod.limiter.refunded == []


@pytest.mark.parametrize("trouble", [AWAY, RedisRefused("OOM")])
async def test_limits_that_cannot_be_told_and_need_not(trouble: RedisUnavailable) -> None:
    """With RATE_LIMIT_FAILURE=open they are let through, and told nothing of what is left."""
    world = World(rate_limit_failure="open")
    world.pod.limiter.answer = trouble
    accepted = await world.send()

    assert accepted.headers == ()
    assert json.loads(world.pod.queue.pushed[0][1])["message"] == "hello"


async def test_open_is_for_limits_only() -> None:
    """A session of another user stays his, and one that cannot be asked is not used."""
    world = World(rate_limit_failure="open")
    await world.send(identity("ann"))
    world.pod.limiter.answer = AWAY
    assert (await world.refusal(identity("bob"))).error_code == "session_taken"
    world.pod.log.refusal = AWAY
    assert (await world.refusal(identity("ann"))).error_code == "redis_unavailable"

    assert world.pod.limiter.refunded == []


async def test_a_limit_that_is_reached_is_no_failure() -> None:
    """Open lets through what is not known, not what is known to be too much."""
    world = World(rate_limit_failure="open")
    world.pod.limiter.answer = OVER

    assert (await world.refusal()).error_code == "rate_limited"


async def test_a_mistake_of_ours(world: World) -> None:
    """Is not told as an outage, and lets nobody through."""
    world.pod.limiter.answer = ZeroDivisionError("a mistake")
    with pytest.raises(ZeroDivisionError):
        await world.send()

    assert world.pod.queue.pushed == []


# The task.


async def test_a_task_is_begun(world: World) -> None:
    """Reserved before its action is pushed; the answer, the record and the action say the same."""
    world.pod.log.append(3, SESSION)
    accepted = await world.send(agent="support", timeout=7)
    [action] = world.pod.queue.actions
    fields = world.pod.tasks.records[LIST, accepted.answer["task_id"]]

    assert accepted.answer["task_id"] == action["task_id"]
    assert accepted.answer["deadline_at"] == action["deadline_at"]
    assert datetime.fromisoformat(action["deadline_at"]).timestamp() * 1000 == int(fields["deadline"])
    assert int(fields["deadline"]) - int(fields["accepted"]) == 7_000
    assert accepted.answer["cursor"] == fields["cursor"] == f"{world.pod.log.record(SESSION).epoch}:3"
    assert accepted.answer["duplicate"] is False
    told = {name: fields[name] for name in ("status", "tier", "queue", "agent_id", "context", "session_id")}
    assert told == {
        "status": "reserved",
        "tier": "free",
        "queue": "nooble4:dev:agent_execution_service:actions:free",
        "agent_id": "support",
        "context": "agent-support",
        "session_id": "s-1",
    }


@pytest.mark.parametrize(("tier", "latest_s"), list(zip(TIERS, (7, 8, 9, 60), strict=True)))
async def test_how_far_a_deadline_may_be_put_off(tier: str, latest_s: int) -> None:
    """As far as its tier allows, and never to before the deadline."""
    world = World(task_timeout_s=(5, 6, 7, 60), task_extended_max_s=(7, 8, 9, 10))
    accepted = await world.send(identity(tier=tier))
    fields = world.pod.tasks.records[LIST, accepted.answer["task_id"]]

    assert int(fields["latest"]) - int(fields["accepted"]) == latest_s * 1000


async def test_an_action_that_may_have_been_queued_keeps_its_task(world: World) -> None:
    """A router finds out what became of it; who sends it again is told of that task."""
    world.pod.queue.refusal = AWAY
    await world.refusal(key="k")
    [(_, task_id)] = world.pod.tasks.records
    world.pod.queue.refusal = None
    again = await world.send(key="k")

    assert (again.answer["task_id"], again.answer["duplicate"]) == (task_id, True)
    assert world.ran == [task_id]


# Sent again.


@pytest.mark.parametrize(
    "name", [{"key": "n"}, {"client_message_id": "n"}, {"key": "n", "client_message_id": "m"}]
)
async def test_a_repeated_send(world: World, name: dict[str, Any]) -> None:
    """Is answered as the first was, costs nothing and is not queued again."""
    first = await world.send(**name)
    world.pod.log.append(2, SESSION)
    again = await world.send(**name)

    assert again.answer == {**first.answer, "duplicate": True}
    assert world.ran == [first.answer["task_id"]]
    assert (world.paid, world.pod.sender.accepted, world.pod.sender.duplicates) == (1, 1, 1)
    assert again.headers


async def test_a_repeated_send_over_the_limit(world: World) -> None:
    """Is refused like any other: whether it is one cannot be asked for nothing."""
    await world.send(key="n")
    world.pod.limiter.answer = OVER

    assert (await world.refusal(key="n")).error_code == "rate_limited"
    assert world.pod.sender.duplicates == 0


async def test_either_name_is_enough(world: World) -> None:
    """A client that gave two may repeat its send with one of them."""
    first = await world.send(key="k", client_message_id="m")
    repeated: tuple[dict[str, Any], ...] = (
        {"key": "k"},
        {"client_message_id": "m"},
        {"key": "new", "client_message_id": "m"},
    )
    for names in repeated:
        assert (await world.send(**names)).answer["task_id"] == first.answer["task_id"]


async def test_names_of_different_kinds(world: World) -> None:
    """A key and a message's id that read alike are two names; so is a name in another session."""
    await world.send(key="n")
    await world.send(client_message_id="n")
    await world.send(replace(identity(), session_id="s-2"), key="n")

    assert len(set(world.ran)) == 3


async def test_without_a_name(world: World) -> None:
    """Each send is one of its own."""
    for _ in range(2):
        await world.send()

    assert len(set(world.ran)) == 2


async def test_a_name_that_was_used_for_something_else(world: World) -> None:
    """Is refused, told which task has it, and given back."""
    first = await world.send(key="n")
    error = await world.refusal(key="n", message="other")

    assert (error.status, error.error_code) == (409, "idempotency_conflict")
    assert first.answer["task_id"] in error.detail
    assert world.paid == 1


async def test_a_name_whose_task_is_not_known_any_more(world: World) -> None:
    """It is not run again: nobody knows whether it was."""
    first = await world.send(key="n")
    world.pod.tasks.records.clear()
    again = await world.send(key="n")

    assert (again.answer["task_id"], again.answer["duplicate"]) == (first.answer["task_id"], True)
    assert world.ran == [first.answer["task_id"]]
    assert (again.answer["cursor"], world.paid) == ("", 1)


async def test_a_repeated_send_whose_action_was_never_pushed(world: World) -> None:
    """The pod that accepted it died: the next one pushes it, as the first one's task with its deadline."""
    await world.send(key="n", timeout=9)
    [(queue_name, first)] = world.pod.queue.pushed
    world.pod.queue.pushed.clear()
    world.pod.queue.marks.clear()
    again = await world.send(key="n", timeout=20)
    [(queue, second)] = world.pod.queue.pushed

    assert queue == queue_name
    for name in ("task_id", "deadline_at", "session_id", "message"):
        assert json.loads(second)[name] == json.loads(first)[name]
    assert json.loads(second)["timeout"] <= 9
    assert (again.answer["duplicate"], world.paid) == (True, 1)


@pytest.mark.parametrize(
    "status", ["queued", "working", "input_required", "cancelling", "completed", "cancelled"]
)
async def test_a_repeated_send_whose_task_is_further(world: World, status: str) -> None:
    """Pushes nothing, whatever became of the mark."""
    first = await world.send(key="n")
    world.pod.tasks.records[LIST, first.answer["task_id"]]["status"] = status
    world.pod.queue.marks.clear()

    assert (await world.send(key="n")).answer["duplicate"] is True
    assert len(world.ran) == 1


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"message": "hello "}, False),
        ({"message_type": "markdown"}, False),
        ({"user_info": {"a": 1, "b": {"d": 1, "c": 2}}}, True),
        ({"user_info": {"a": 1, "b": {"d": 1, "c": 3}}}, False),
        ({"max_iterations": 3}, False),
        ({"timeout": 9}, True),
        ({"busy_policy": "reject"}, True),
        ({"client_message_id": "m"}, True),
    ],
    ids=str,
)
def test_what_counts_as_the_same(changed: dict[str, Any], same: bool) -> None:
    """What the agent is told; not how long a client waits, nor the order in which it writes fields."""
    said: dict[str, Any] = {"message": "hello", "user_info": {"b": {"c": 2, "d": 1}, "a": 1}}
    first = fingerprint(Context("sales"), ChatBody(**said))

    assert (fingerprint(Context("sales"), ChatBody(**{**said, **changed})) == first) is same


@pytest.mark.parametrize(
    ("context", "same"),
    [
        (Context("sales"), True),
        (Context("support"), False),
        (Context("sales", "workflow"), False),
        (Context("sales", collection_id="docs"), False),
        (Context("sales", traceparent="00-a-b-01", idempotency_key="k", headers={"X": "y"}), True),
    ],
)
def test_whom_it_is_for_counts(context: Context, same: bool) -> None:
    """Another agent or another collection: another message. How it came does not count."""
    assert (
        fingerprint(context, ChatBody("hello")) == fingerprint(Context("sales"), ChatBody("hello"))
    ) is same


def test_whom_a_question_to_a_collection_is_for() -> None:
    """Its agent counts too, though the collection gives the context its name."""
    of = [
        fingerprint(Context(agent, "collection", collection_id="docs"), ChatBody("hello")) for agent in "ab"
    ]

    assert len(set(of)) == 2


# A queue that takes nothing.


async def test_a_full_queue_forgets_the_task(world: World) -> None:
    """Its name is free: the client may send it again, and then it is not a repeated one."""
    world.pod.queue.refusal = QueueFull("full")
    await world.refusal(key="k", client_message_id="m")
    assert (world.pod.tasks.records, world.pod.tasks.names) == ({}, {})
    world.pod.queue.refusal = None
    accepted = await world.send(key="k", client_message_id="m")

    assert accepted.answer["duplicate"] is False
    assert world.ran == [accepted.answer["task_id"]]
    assert world.paid == 1


async def test_a_full_queue_and_a_repeated_send(world: World) -> None:
    """It is given back what it was charged once, and the first one's task stays that one's affair."""
    world.pod.queue.refusal = AWAY
    await world.refusal(key="k", client_message_id="m")
    world.pod.queue.refusal = QueueFull("full")
    error = await world.refusal(key="k")

    assert (error.status, error.error_code) == (503, "queue_full")
    assert (len(world.pod.limiter.charged), len(world.pod.limiter.refunded)) == (2, 1)
    assert (len(world.pod.tasks.records), len(world.pod.tasks.names)) == (1, 2)
    world.pod.queue.refusal = None
    again = await world.send(client_message_id="m")
    assert world.ran == [again.answer["task_id"]]


async def test_a_repeated_send_gets_in_before_a_full_queue_is_told(world: World) -> None:
    """What was pushed by then is not forgotten: the first is accepted as well."""
    pushing = world.pod.queue.push

    async def push(queue_name: str, task_id: str, what: What, action: bytes) -> bool:
        if world.pod.sender.duplicates == 0 and not world.pod.queue.marks:
            await pushing(queue_name, task_id, what, action)  # as the repeated one does, in between
            raise QueueFull("full")
        return await pushing(queue_name, task_id, what, action)

    world.pod.queue.push = push  # type: ignore[method-assign]
    accepted = await world.send(key="k")

    assert world.ran == [accepted.answer["task_id"]]
    assert world.pod.tasks.status(accepted.answer["task_id"]) == "reserved"
    assert world.paid == 1


async def test_a_full_queue_is_final_for_its_task(world: World) -> None:
    """A repeated send that has seen the task before it was forgotten pushes nothing any more."""
    pushing, seen = world.pod.queue.push, list[str]()

    async def push(queue_name: str, task_id: str, what: What, action: bytes) -> bool:
        del queue_name, what, action
        seen.append(task_id)
        raise QueueFull("full")

    world.pod.queue.push = push  # type: ignore[method-assign]
    await world.refusal(key="k")

    assert not await pushing("nooble4:dev:agent_execution_service:actions:free", seen[0], "run", b"{}")
    assert world.pod.queue.pushed == []


async def test_a_task_that_a_router_has_given_up(world: World) -> None:
    """The push comes too late and is void: nothing was sent, the client may try again."""
    queue = "nooble4:dev:agent_execution_service:actions:free"
    world.pod.queue.gate.clear()
    sending = asyncio.ensure_future(world.send(key="k"))
    await settle()
    [(_, task_id)] = world.pod.tasks.records
    assert await world.pod.queue.void(queue, task_id, "run")
    world.pod.queue.gate.set()
    with pytest.raises(ClientError) as caught:
        await sending

    assert (caught.value.status, caught.value.error_code) == (503, "redis_unavailable")
    assert (world.pod.queue.pushed, world.pod.tasks.records, world.pod.tasks.names) == ([], {}, {})
    assert (world.paid, world.pod.sender.accepted) == (0, 0)
    assert (await world.send(key="k")).answer["duplicate"] is False


@pytest.mark.parametrize("trouble", [AWAY, RedisRefused("OOM")])
async def test_a_task_that_cannot_be_forgotten(world: World, trouble: RedisUnavailable) -> None:
    """The client is told of the queue all the same; a router forgets it."""
    world.pod.queue.refusal = QueueFull("full")
    world.pod.tasks.refusals["settle"] = trouble

    assert (await world.refusal(key="k")).error_code == "queue_full"
    assert world.paid == 0


# A busy session.


async def test_a_busy_session_that_refuses(world: World) -> None:
    """It is told which task runs, and charged nothing."""
    first = await world.send()
    error = await world.refusal(busy_policy="reject")

    assert (error.status, error.error_code) == (409, "session_busy")
    assert first.answer["task_id"] in error.detail
    assert world.paid == 1


@pytest.mark.parametrize("policy", ["concurrent", "enqueue"])
async def test_too_many_tasks(world: World, policy: str) -> None:
    """Is a limit, to be waited for."""
    world.pod.tasks.most = 1
    await world.send()
    error = await world.refusal(busy_policy=policy)

    assert (error.status, error.error_code, error.limit) == (429, "too_many_tasks", "session_tasks")
    assert error.retry_after_s == 5
    assert world.paid == 1


async def test_the_operators_policy() -> None:
    """Holds where the client wishes nothing else."""
    world = World(busy_policy="reject")
    await world.send()

    assert (await world.refusal()).error_code == "session_busy"
    assert (await world.send(busy_policy="concurrent")).answer["success"] is True


async def test_a_session_that_is_interrupted(world: World) -> None:
    """The tasks that run end as cancelled, each once, and the AES is told; the new one runs."""
    first, second = [(await world.send()).answer["task_id"] for _ in range(2)]
    third = (await world.send(busy_policy="interrupt")).answer["task_id"]
    await settle()

    assert [world.pod.tasks.status(task) for task in (first, second, third)] == ["cancelled"] * 2 + ["queued"]
    assert sorted(entry.task_id for entry in world.pod.tasks.ended) == sorted((first, second))
    assert all(b'"reason":"interrupted"' in entry.body for entry in world.pod.tasks.ended)
    cancels = [action for action in world.pod.queue.actions if action["action_type"] == "chat.cancel"]
    assert sorted(action["task_id"] for action in cancels) == sorted((first, second))
    assert world.pod.desk.cancelled == 2
    assert world.ran == [first, second, third]


async def test_an_interruption_whose_own_action_is_not_queued(world: World) -> None:
    """The tasks that it has begun to cancel end all the same, and now."""
    first = (await world.send()).answer["task_id"]
    pushing = world.pod.queue.push

    async def push(queue_name: str, task_id: str, what: What, action: bytes) -> bool:
        if what == "run":
            raise QueueFull("full")
        return await pushing(queue_name, task_id, what, action)

    world.pod.queue.push = push  # type: ignore[method-assign]
    with pytest.raises(ClientError):
        await world.send(busy_policy="interrupt")
    await settle()

    assert world.pod.tasks.status(first) == "cancelled"


async def test_an_interruption_for_which_there_is_no_room(world: World) -> None:
    """Ends nothing: or both messages would be lost."""
    first = (await world.send()).answer["task_id"]
    paid = world.paid
    world.pod.queue.refusal = QueueFull("full")
    error = await world.refusal(busy_policy="interrupt")
    await settle()

    assert (error.status, error.error_code, world.paid) == (503, "queue_full", paid)
    assert world.pod.tasks.status(first) == "queued"


async def test_a_repeated_interruption(world: World) -> None:
    """Interrupts nothing again: least of all itself."""
    first = await world.send(key="n", busy_policy="interrupt")
    again = await world.send(key="n", busy_policy="interrupt")
    await settle()

    assert again.answer["task_id"] == first.answer["task_id"]
    assert world.pod.tasks.ended == []


async def test_a_send_that_waits(world: World) -> None:
    """Nothing is pushed and no deadline told; its question is shown, and its action kept for later."""
    await world.send()
    accepted = await world.send(busy_policy="enqueue", message="then this", timeout=7, client_message_id="m")
    await settle()
    task_id = accepted.answer["task_id"]
    fields = world.pod.tasks.records[LIST, task_id]
    action = json.loads(fields["action"])

    assert (fields["status"], "question" in fields) == ("held", False)
    assert (accepted.answer["deadline_at"], accepted.answer["duplicate"]) == (None, False)
    assert (action["task_id"], action["message"], action["timeout"]) == (task_id, "then this", 7)
    assert (action["action_type"], action["callback_queue"]) == ("execution.agent_run", LIST)
    assert (len(world.ran), world.paid, world.pod.sender.accepted) == (1, 2, 2)


async def test_a_send_that_need_not_wait(world: World) -> None:
    """Goes as any other."""
    accepted = await world.send(busy_policy="enqueue")
    await settle()

    assert world.ran == [accepted.answer["task_id"]]
    assert accepted.answer["deadline_at"] == world.pod.queue.actions[0]["deadline_at"]
    assert world.pod.tasks.status(world.ran[0]) == "queued"


async def test_a_repeated_send_that_waits(world: World) -> None:
    """Is told of the same task, again without a deadline; nothing is pushed, and it costs nothing."""
    await world.send()
    first = await world.send(busy_policy="enqueue", key="n")
    again = await world.send(busy_policy="enqueue", key="n")
    await settle()

    assert again.answer == {**first.answer, "duplicate": True}
    assert (len(world.ran), world.paid) == (1, 2)


async def test_a_question_that_cannot_be_shown(world: World) -> None:
    """Is shown when the task goes on; the send is accepted."""
    await world.send()
    world.pod.tasks.refusals["catch_up"] = AWAY
    accepted = await world.send(busy_policy="enqueue")
    await settle()

    assert world.pod.tasks.status(accepted.answer["task_id"]) == "held"
    assert world.pod.logger.names == ["question_not_shown"]


async def test_an_interruption_of_what_waits(world: World) -> None:
    """It ends, and the AES hears only of what it has."""
    first = (await world.send()).answer["task_id"]
    second = (await world.send(busy_policy="enqueue")).answer["task_id"]
    await world.send(busy_policy="interrupt")
    await settle()

    assert [world.pod.tasks.status(task) for task in (first, second)] == ["cancelled"] * 2
    cancels = [one["task_id"] for one in world.pod.queue.actions if one["action_type"] == "chat.cancel"]
    assert cancels == [first]


@pytest.mark.parametrize(
    ("everybodys", "tenants", "requests", "refused"),
    [
        ("concurrent", "", None, False),
        ("reject", "", None, True),
        ("concurrent", "reject", None, True),
        ("reject", "concurrent", None, False),
        ("reject", "no policy", None, True),
        ("concurrent", "reject", "concurrent", False),
        ("concurrent", "concurrent", "reject", True),
    ],
)
async def test_whose_policy_counts(
    everybodys: str, tenants: str, requests: str | None, refused: bool
) -> None:
    """The request's own, else its tenant's, else everybody's."""
    world = World(busy_policy=everybodys)
    world.pod.limiter.answer = ALLOWED._replace(busy_policy=tenants)
    await world.send()
    more: dict[str, Any] = {} if requests is None else {"busy_policy": requests}
    if refused:
        assert (await world.refusal(**more)).error_code == "session_busy"
    else:
        await world.send(**more)
        assert len(world.ran) == 2


async def test_a_tenants_policy_that_has_others_wait(world: World) -> None:
    """Although the request has said nothing of it."""
    world.pod.limiter.answer = ALLOWED._replace(busy_policy="enqueue")
    await world.send()
    accepted = await world.send()

    assert world.pod.tasks.status(accepted.answer["task_id"]) == "held"


async def test_a_policy_that_cannot_be_told() -> None:
    """With RATE_LIMIT_FAILURE=open everybody's counts then."""
    world = World(rate_limit_failure="open", busy_policy="reject")
    world.pod.limiter.answer = AWAY
    await world.send()

    assert (await world.refusal()).error_code == "session_busy"


# Nobody is left.


@pytest.mark.parametrize("left_s", [None, 1, 86_400])
async def test_a_send_that_is_for_who_listens(world: World, left_s: int | None) -> None:
    """Its record says for how long nobody may be there; without that there is no such thing."""
    accepted = await world.send(cancel_if_left_s=left_s)
    fields = world.pod.tasks.records[LIST, accepted.answer["task_id"]]

    assert fields.get("left") == (None if left_s is None else str(left_s * 1000))

"""Sends: whether they are allowed, what they are charged, and what they are given back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import QueueFull, RedisRefused, RedisUnavailable
from backplane.keys import ANY_USER, TIERS
from backplane.rate_limiter import Charged, Quota, Standing
from gateway.chat import ChatBody, Context
from gateway.errors import ClientError
from gateway.identity import Grant, Identity
from gateway.sender import Accepted
from tests.unit.gateway.web import StubPod

STANDINGS = (Standing("minute", 10, 60, 9, 6.0), Standing("day", 100, 86_400, 99, 864.0))
ALLOWED = Charged(True, 0.0, (), STANDINGS)
OVER = Charged(False, 6.0, ("minute",), (Standing("minute", 10, 60, 0, 60.0), STANDINGS[1]))
AWAY = RedisUnavailable("away")
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

    async def send(self, who: Identity | None = None, agent: str = "sales") -> Accepted:
        return await self.pod.sender.send(who or identity(), Context(agent), ChatBody("hello"))

    async def refusal(self, who: Identity | None = None, agent: str = "sales") -> ClientError:
        """Of a send; nothing was queued, and nothing counted as accepted."""
        queued, accepted = len(self.pod.queue.pushed), self.pod.sender.accepted
        with pytest.raises(ClientError) as caught:
            await self.send(who, agent)
        assert (len(self.pod.queue.pushed), self.pod.sender.accepted) == (queued, accepted)
        return caught.value

    @property
    def paid(self) -> int:
        """How many sends the tenant's quotas are charged with."""
        return len(self.pod.limiter.charged) - len(self.pod.limiter.refunded)


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

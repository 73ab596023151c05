"""Whether somebody may speak to an agent, where another service knows: its answers, or none at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx
import pytest

from backplane.errors import ConfigurationError
from backplane.settings import Settings
from gateway import access
from gateway.access import AgentAccess
from gateway.errors import ClientError
from gateway.fetch import Answer, Fetcher, FetchError
from gateway.identity import ANYONE, Grant, Identity
from tests.unit.gateway.fakes import Clock, FakeLogger, settle

URL = "https://rights.test/check"
ALLOWED, DENIED = Answer(200, {"allowed": True}), Answer(200, {"allowed": False})


def identity(user_id: str | None = "ann", **more: Any) -> Identity:
    """Of a token for a user of acme, who says to be somebody else."""
    grant = Grant("acme", "free", user_id, None, None, frozenset({"chat"}), None, 0.0, None)
    return Identity(
        **{
            "tenant_id": "acme",
            "tenant_tier": "free",
            "session_id": "s-1",
            "user_id": "said-to-be",
            "agent_id": None,
            "grant": grant,
            **more,
        }
    )


class World:
    """A service that answers what a test says, and those who ask it."""

    def __init__(self, clock: Clock, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.clock = clock
        self.logger = FakeLogger()
        self.answer: Answer | Exception | Callable[[Any], Answer] = ALLOWED
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[dict[str, Any]] = []
        self.access = AgentAccess(
            Settings(**{"access_check_url": URL, "access_check_ttl_s": 60.0, **settings}),
            self.logger.as_logger(),
        )
        monkeypatch.setattr(Fetcher, "ask", self._ask)
        monkeypatch.setattr(access, "time", clock)

    async def _ask(self, body: Any = None) -> Answer:
        self.asked.append(body)
        await self.gate.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if isinstance(self.answer, Answer) else self.answer(body)

    async def check(self, agent_id: str = "sales", who: Identity | None = None) -> str:
        """``ok``, or the code of the refusal."""
        try:
            await self.access.check(who or identity(), agent_id)
        except ClientError as error:
            return error.error_code
        return "ok"

    def begin(self, agent_id: str = "sales", who: Identity | None = None) -> asyncio.Task[str]:
        return asyncio.create_task(self.check(agent_id, who))


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(Clock(), monkeypatch)


async def test_without_an_address_all_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody knows, nobody is asked."""
    world = World(Clock(), monkeypatch, access_check_url="")

    assert await world.check() == "ok"
    assert world.asked == []


def test_a_bad_address() -> None:
    """It stops the start."""
    with pytest.raises(ConfigurationError, match="ACCESS_CHECK_URL"):
        AgentAccess(Settings(access_check_url="rights.test"), FakeLogger().as_logger())


async def test_what_is_asked(world: World) -> None:
    """Tenant, tier, agent, and the user whom the token names: not who a header says it is."""
    await world.check("sales", identity("ann"))
    await world.check("sales", identity(None))
    await world.check("sales", identity(grant=ANYONE))

    assert world.asked == [
        {"tenant_id": "acme", "tenant_tier": "free", "user_id": user, "agent_id": "sales"}
        for user in ("ann", None)
    ]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (ALLOWED, "ok"),
        (Answer(200, {"allowed": True, "more": 1}), "ok"),
        (DENIED, "agent_forbidden"),
        (Answer(403, None), "agent_forbidden"),
        (Answer(404, None), "agent_forbidden"),
        (Answer(403, {"allowed": True}), "agent_forbidden"),
        (Answer(200, None), "access_unknown"),
        (Answer(200, {}), "access_unknown"),
        (Answer(200, []), "access_unknown"),
        (Answer(200, True), "access_unknown"),
        (Answer(200, {"allowed": "true"}), "access_unknown"),
        (Answer(200, {"allowed": 1}), "access_unknown"),
        (Answer(200, {"allowed": None}), "access_unknown"),
        (Answer(200, {"Allowed": True}), "access_unknown"),
        (Answer(201, {"allowed": True}), "access_unknown"),
        (Answer(204, None), "access_unknown"),
        (Answer(401, None), "access_unknown"),
        (Answer(429, None), "access_unknown"),
        (Answer(500, {"allowed": True}), "access_unknown"),
        (FetchError("no answer within 2 s"), "access_unknown"),
    ],
    ids=lambda value: f"{value.status} {value.document}" if isinstance(value, Answer) else str(value),
)
async def test_answers(world: World, answer: Answer | Exception, code: str) -> None:
    """Only a clear yes lets anybody through; what is no answer is not taken for a no either."""
    world.answer = answer

    assert await world.check() == code


async def test_what_a_client_is_told(world: World) -> None:
    """A no is final; what is not known may be tried again. Neither shows anything of the service."""
    world.answer = DENIED
    with pytest.raises(ClientError, match="the agent sales") as caught:
        await world.access.check(identity(), "sales")
    assert (caught.value.status, caught.value.retry_after_s) == (403, None)
    world.answer = FetchError("ConnectError: rights.test refused")
    with pytest.raises(ClientError) as caught:
        await world.access.check(identity(), "support")
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2)
    assert "rights.test" not in caught.value.detail


# What was answered before.


@pytest.mark.parametrize(("answer", "code"), [(ALLOWED, "ok"), (DENIED, "agent_forbidden")])
async def test_answers_are_believed_for_a_while(world: World, answer: Answer, code: str) -> None:
    """As long as was set, a yes and a no alike."""
    world.answer = answer
    await world.check()
    world.answer = FetchError("away")
    world.clock.now += 59.9
    assert await world.check() == code
    assert len(world.asked) == 1
    world.clock.now += 0.1

    assert await world.check() == "access_unknown"
    assert len(world.asked) == 2


async def test_answers_that_are_not_believed_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a time of 0 each send asks."""
    world = World(Clock(), monkeypatch, access_check_ttl_s=0.0)
    for _ in range(3):
        await world.check()

    assert len(world.asked) == 3


async def test_an_answer_is_for_who_was_asked_about(world: World) -> None:
    """Another agent, user, tenant or tier is another question; another session is not."""
    for agent, who in (
        ("sales", identity()),
        ("support", identity()),
        ("sales", identity("bob")),
        ("sales", identity(None)),
        ("sales", identity(tenant_id="other")),
        ("sales", identity(tenant_tier="advance")),
    ):
        await world.check(agent, who)
    assert len(world.asked) == 6
    await world.check("sales", identity(session_id="s-2"))
    await world.check("sales", identity(user_id="bob"))

    assert len(world.asked) == 6


async def test_failures_are_not_kept(world: World) -> None:
    """The next one asks again."""
    world.answer = FetchError("away")
    assert await world.check() == "access_unknown"
    world.answer = ALLOWED

    assert await world.check() == "ok"


async def test_answers_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first; one that was given anew is new."""
    monkeypatch.setattr(access, "_MOST_ANSWERS", 3)
    for agent in "abc":
        await world.check(agent)
    world.clock.now += 60
    await world.check("a")
    await world.check("d")
    asked = len(world.asked)
    await world.check("a")
    assert len(world.asked) == asked
    await world.check("b")

    assert len(world.asked) == asked + 1


# Many at once.


async def test_one_question_for_all_who_ask_it(world: World) -> None:
    """A crowd that wants the same costs one question, and all get its answer."""
    world.gate.clear()
    checks = [world.begin() for _ in range(20)] + [world.begin("support")]
    await settle()
    assert len(world.asked) == 2
    world.gate.set()

    assert await asyncio.gather(*checks) == ["ok"] * 21


async def test_who_leaves_takes_the_answer_from_nobody(world: World) -> None:
    """A client that is gone while the question is under way is missed by nobody."""
    world.gate.clear()
    leaves, stays = world.begin(), world.begin()
    await settle()
    leaves.cancel()
    await settle()
    world.gate.set()

    assert await stays == "ok"
    assert await world.check() == "ok"
    assert len(world.asked) == 1


async def test_a_failure_is_shared_too(world: World) -> None:
    """And told to the operator once, not once for each."""
    world.gate.clear()
    checks = [world.begin() for _ in range(5)]
    await settle()
    world.answer = FetchError("away")
    world.gate.set()

    assert await asyncio.gather(*checks) == ["access_unknown"] * 5
    assert world.logger.names == ["access_check_failed"]


async def test_too_many_questions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is bounded; who asks what is being asked already waits all the same."""
    monkeypatch.setattr(access, "_MOST_WAITING", 2)
    world.gate.clear()
    waiting = [world.begin("a"), world.begin("b")]
    await settle()
    assert await world.check("c") == "access_unknown"
    waiting.append(world.begin("a"))
    await settle()
    world.gate.set()
    assert await asyncio.gather(*waiting) == ["ok"] * 3

    assert await world.check("c") == "ok"


async def test_one_tenant_does_not_keep_others_from_asking(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has its share of what may wait, and gets it back with the answers."""
    monkeypatch.setattr(access, "_MOST_OF_A_TENANT", 2)
    world.gate.clear()
    waiting = [world.begin("a"), world.begin("b")]
    await settle()
    assert await world.check("c") == "access_unknown"
    waiting.append(world.begin("c", identity(tenant_id="other")))
    await settle()
    world.gate.set()
    assert await asyncio.gather(*waiting) == ["ok"] * 3
    for agent in "defgh":
        assert await world.check(agent) == "ok"


async def test_being_busy_lets_nobody_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where failures do: whoever wants to get through would only have to keep it busy."""
    world = World(Clock(), monkeypatch, access_check_failure="open")
    monkeypatch.setattr(access, "_MOST_OF_A_TENANT", 1)
    world.gate.clear()
    waiting = world.begin("a")
    await settle()
    assert await world.check("b") == "access_unknown"
    world.gate.set()

    assert await waiting == "ok"


# When there is no answer.


async def test_failure_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is set so, a service that is down lets everybody through; one that says no does not."""
    world = World(Clock(), monkeypatch, access_check_failure="open")
    world.answer = FetchError("away")
    assert await world.check() == "ok"
    world.answer = Answer(500, None)
    assert await world.check() == "ok"
    assert [values["let_through"] for _level, _event, values in world.logger.events] == [True, True]
    world.answer = DENIED

    assert await world.check() == "agent_forbidden"


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"allowed":"\xff"}', b"<html>"])
@pytest.mark.parametrize(("failure", "code"), [("closed", "access_unknown"), ("open", "ok")])
async def test_an_answer_that_cannot_be_read(
    content: bytes, failure: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no answer, whatever is wrong with it."""
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=content))
    monkeypatch.setattr(httpx, "AsyncClient", partial(httpx.AsyncClient, transport=transport))
    settings = Settings(access_check_url=URL, access_check_failure=failure)
    access_check = AgentAccess(settings, FakeLogger().as_logger())
    if code == "ok":
        await access_check.check(identity(), "sales")
    else:
        with pytest.raises(ClientError) as caught:
            await access_check.check(identity(), "sales")
        assert caught.value.error_code == code


async def test_a_known_no_stays_while_it_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where failures let everybody through."""
    world = World(Clock(), monkeypatch, access_check_failure="open")
    world.answer = DENIED
    await world.check()
    world.answer = FetchError("away")

    assert await world.check() == "agent_forbidden"


async def test_the_operator_is_told_once(world: World) -> None:
    """For each reason, and again after it had gone."""
    for answer in (FetchError("a"), FetchError("a"), FetchError("b"), ALLOWED, FetchError("b")):
        world.answer = answer
        world.clock.now += 100
        await world.check()

    reasons = [(level, values["reason"]) for level, _event, values in world.logger.events]
    assert reasons == [("error", "a"), ("error", "b"), ("error", "b")]

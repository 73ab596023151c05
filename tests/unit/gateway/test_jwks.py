"""A provider's keys: fetched, kept, looked for, and how little it is asked for that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from gateway import jwks
from gateway.fetch import Answer, Fetcher, FetchError
from gateway.jwks import COOLDOWN_S, Jwks
from tests.unit.gateway.fakes import Clock, FakeLogger, settle
from tests.unit.gateway.signing import jwk, jwk_set

REFRESH_S = 300.0


def keys(*kids: str) -> Answer:
    """A set of keys; another one for each name."""
    return Answer(200, jwk_set(*(jwk("EdDSA", kid, sum(kid.encode())) for kid in kids)))


class Question:
    """One fetch that is under way."""

    def __init__(self) -> None:
        self._answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    async def answered(self) -> Answer:
        return await self._answered

    def answer(self, answer: Answer | Exception) -> None:
        if isinstance(answer, Exception):
            self._answered.set_exception(answer)
        else:
            self._answered.set_result(answer)


class Provider:
    """A `Fetcher` that answers at once, or while ``gated`` when a test says so.

    Attributes:
        asked: when, by the clock of the test.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.now: Answer | Exception = keys("a")
        self.gated = False
        self.questions: list[Question] = []
        self.asked: list[float] = []
        self.closed = False

    async def ask(self) -> Answer:
        self.asked.append(self._clock.now)
        question = Question()
        self.questions.append(question)
        if not self.gated:
            question.answer(self.now)
        return await question.answered()

    async def close(self) -> None:
        self.closed = True


class World:
    """A key set, its provider and who is told of its keys."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.provider = Provider(clock)
        self.logger = FakeLogger()
        self.told: list[list[str | None]] = []
        self.jwks = Jwks(
            cast("Fetcher", self.provider),
            REFRESH_S,
            lambda: self.told.append(self.kids),
            self.logger.as_logger(),
        )
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def kids(self) -> list[str | None]:
        return [key.kid for key in self.jwks.keys or ()]

    @property
    def asked(self) -> list[float]:
        """When the provider was asked, from the first time on."""
        return [at - self.provider.asked[0] for at in self.provider.asked]

    def run(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.jwks.run())
        self._tasks.append(task)
        return task

    def look(self, kid: str) -> asyncio.Task[bool]:
        task = asyncio.create_task(self.jwks.look_for(kid))
        self._tasks.append(task)
        return task

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    clock = Clock()
    monkeypatch.setattr(jwks, "time", clock)
    monkeypatch.setattr(jwks, "asyncio", clock.sleeping)
    monkeypatch.setattr(random, "uniform", lambda _least, most: most)
    world = World(clock)
    yield world
    await world.stop()


# Again and again.


async def test_fetched_at_once_and_again(world: World) -> None:
    """The first set is there when the pod starts, the next ones when it is time; only others are told of."""
    world.run()
    await settle()
    assert (world.kids, world.jwks.problem) == (["a"], "")
    assert world.told == [["a"]]
    await world.clock.forward(2 * REFRESH_S)
    assert world.told == [["a"]]
    world.provider.now = keys("a", "b")
    await world.clock.forward(REFRESH_S)

    assert world.told == [["a"], ["a", "b"]]
    assert world.asked == [0, REFRESH_S, 2 * REFRESH_S, 3 * REFRESH_S]
    assert world.logger.names == ["jwks_fetched"]


async def test_pods_do_not_ask_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fleet that was started at once is spread, and no pod asks later than was set."""
    drawn: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        drawn.append((least, most))
        return least

    monkeypatch.setattr(random, "uniform", uniform)
    world.run()
    await world.clock.forward(REFRESH_S)

    assert len(drawn) == 2
    assert {0 < least < most <= 1 for least, most in drawn} == {True}
    assert world.asked[1] == pytest.approx(drawn[0][0] * REFRESH_S)


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (FetchError("no answer within 5 s"), "no answer"),
        (Answer(500, None), "HTTP status 500"),
        (Answer(404, {"keys": []}), "HTTP status 404"),
        (Answer(201, jwk_set(jwk("EdDSA", "evil"))), "HTTP status 201"),
        (Answer(200, None), "no JSON Web Key Set"),
        (Answer(200, {"error": "later"}), "no JSON Web Key Set"),
        (Answer(200, {"keys": []}), "no key that can be used"),
        (Answer(200, jwk_set(jwk("EdDSA", "evil", use="enc"))), "no key that can be used"),
    ],
)
async def test_a_provider_that_is_down(world: World, trouble: Any, says: str) -> None:
    """What is known stays; it is asked again soon, and the operator is told when that begins and ends."""
    world.run()
    await settle()
    world.provider.now = trouble
    await world.clock.forward(REFRESH_S + 20)
    assert world.kids == ["a"]
    assert says in world.jwks.problem
    assert world.asked[1:4] == [REFRESH_S, REFRESH_S + 2, REFRESH_S + 4]
    assert world.logger.names == ["jwks_fetched", "jwks_not_fetched"]
    assert world.logger.events[1][2]["keys_kept"] == 1
    world.provider.now = keys("a")
    await world.clock.forward(2)

    assert world.jwks.problem == ""
    assert world.told == [["a"]]
    assert world.logger.names == ["jwks_fetched", "jwks_not_fetched", "jwks_fetched"]


async def test_what_nobody_expected(world: World) -> None:
    """A document that makes a library stumble ends no pod, nor is its reason shown to anybody else."""
    running = world.run()
    await settle()
    world.provider.now = RecursionError("a mistake")
    await world.clock.forward(REFRESH_S)
    looking = world.look("b")
    await world.clock.forward(2)
    assert looking.done()
    assert not looking.result()
    assert (world.kids, running.done()) == (["a"], False)
    world.provider.now = keys("b")
    await world.clock.forward(2)

    assert (world.kids, world.jwks.problem) == (["b"], "")


async def test_a_provider_that_is_not_there_at_first(world: World) -> None:
    """Until the first set there are no keys, which is not the same as none."""
    world.provider.now = FetchError("away")
    world.run()
    await world.clock.forward(10)
    assert (world.jwks.keys, world.told) == (None, [])
    world.provider.now = keys("a")
    await world.clock.forward(2)

    assert world.told == [["a"]]


async def test_it_stops(world: World) -> None:
    """And leaves no connection behind."""
    running = world.run()
    await settle()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert world.provider.closed


# For the sake of one key.


async def test_a_new_key(world: World) -> None:
    """Who brings it waits for the next fetch, which comes at once if there was none lately."""
    world.run()
    await world.clock.forward(100)
    world.provider.now = keys("a", "b")
    looking = world.look("b")
    await settle()

    assert looking.done()
    assert looking.result()
    assert world.kids == ["a", "b"]
    assert world.asked == [0, 100]


async def test_many_bring_the_same_key(world: World) -> None:
    """One fetch is enough for all."""
    looking = [world.look(kid) for kid in ("a", "b", "c") * 30]
    await settle()

    assert [one.result() for one in looking] == [True] * 90
    assert world.asked == [0]


async def test_how_often_it_is_asked_at_most(world: World) -> None:
    """Whatever names are made up: a minute of them costs the provider thirty questions."""
    world.run()
    await settle()
    for number in range(600):
        world.look(f"made-up-{number}")
        await world.clock.forward(0.1)

    assert 28 <= len(world.asked) <= 31
    assert (
        min(later - at for at, later in zip(world.asked, world.asked[1:], strict=False)) >= COOLDOWN_S - 1e-6
    )


async def test_who_comes_soon_after_a_fetch(world: World) -> None:
    """Waits until it may be fetched again, no longer; others who come meanwhile share that fetch."""
    assert await world.jwks.look_for("a")
    world.provider.now = keys("a", "b")
    first = world.look("b")
    await world.clock.forward(1.5)
    second = world.look("b")
    await world.clock.forward(0.4)
    assert (world.asked, first.done(), second.done()) == ([0], False, False)
    await world.clock.forward(0.1)

    assert [first.result(), second.result()] == [True, True]
    assert world.asked == [0, pytest.approx(2.0)]
    assert world.kids == ["a", "b"]


async def test_who_comes_during_a_fetch(world: World) -> None:
    """Its answer may have been made before the key was; so the next one is awaited, and not that one."""
    world.provider.gated = True
    first = world.look("b")
    await settle()
    second = world.look("b")
    await settle()
    world.provider.questions[0].answer(keys("a"))
    await settle()
    assert first.done()
    assert not second.done()
    await world.clock.forward(2)
    world.provider.questions[1].answer(keys("a", "b"))
    await settle()

    assert second.result()
    assert world.kids == ["a", "b"]


async def test_a_key_that_does_not_exist(world: World) -> None:
    """Its name is remembered for a while, and asks nobody any more; then it is looked for again."""
    assert await world.jwks.look_for("x")
    for _ in range(4):
        await world.clock.forward(1)
        assert await world.jwks.look_for("x")
    assert world.asked == [0]
    await world.clock.forward(1)
    assert await world.jwks.look_for("x")

    assert world.asked == [0, 5]


async def test_names_that_do_not_exist_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes up names fills no memory with them; the newest are remembered."""
    monkeypatch.setattr(jwks, "_UNKNOWN_MOST", 3)
    monkeypatch.setattr(jwks, "_UNKNOWN_FOR_S", 30.0)
    for kid in "wxyz":
        looking = world.look(kid)
        await world.clock.forward(2)
        assert looking.result()
    begun = len(world.asked)
    for kid in "xyz":
        assert await world.jwks.look_for(kid)
    assert len(world.asked) == begun
    world.look("w")
    await settle()

    assert len(world.asked) == begun + 1


async def test_other_keys_bring_new_hope(world: World) -> None:
    """A name that did not exist may be one of theirs by now: with a change all of them are forgotten."""
    for kid in ("b", "c"):
        looking = world.look(kid)
        await world.clock.forward(2)
        assert looking.result()
    world.provider.now = keys("a", "b")
    looking = world.look("d")
    await world.clock.forward(2)
    assert looking.result()
    asked = len(world.asked)
    world.look("c")
    await world.clock.forward(2)

    assert len(world.asked) == asked + 1


async def test_a_key_that_was_found_is_not_remembered_as_missing(world: World) -> None:
    """It may go, and come back with the next change."""
    assert await world.jwks.look_for("a")
    world.provider.now = keys("b")
    await world.clock.forward(5)
    world.look("c")
    await settle()
    world.provider.now = keys("a")
    await world.clock.forward(5)
    world.look("a")
    await settle()

    assert world.kids == ["a"]


async def test_a_failure_is_no_answer(world: World) -> None:
    """It is not known then whether the key exists: that is told, and not remembered."""
    world.provider.now = FetchError("away")
    assert not await world.jwks.look_for("b")
    world.provider.now = keys("b")
    await world.clock.forward(2)
    assert await world.jwks.look_for("b")

    assert world.kids == ["b"]


async def test_an_answer_that_comes_late(world: World) -> None:
    """It does not take away the keys of a fetch that began after it."""
    world.provider.gated = True
    slow = world.look("a")
    await settle()
    await world.clock.forward(COOLDOWN_S)
    fast = world.look("b")
    await settle()
    first, second = world.provider.questions
    second.answer(keys("b"))
    await settle()
    first.answer(keys("a"))
    await settle()

    assert fast.result()
    assert slow.result()
    assert world.kids == ["b"]
    assert world.told == [["b"]]


async def test_who_does_not_wait_any_longer(world: World) -> None:
    """A client that leaves does not take the answer from the others."""
    world.provider.gated = True
    leaves, stays = world.look("a"), world.look("a")
    await settle()
    leaves.cancel()
    await settle()
    world.provider.questions[0].answer(keys("a"))
    await settle()

    assert stays.result()
    assert world.kids == ["a"]


async def test_a_token_brings_the_first_set(world: World) -> None:
    """Also before the first fetch of the loop, and the two are one."""
    world.provider.gated = True
    world.run()
    looking = world.look("a")
    await settle()
    world.provider.questions[0].answer(keys("a"))
    await settle()

    assert looking.result()
    assert world.asked == [0]

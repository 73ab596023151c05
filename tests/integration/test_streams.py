"""Streamed answers in Redis: what the scripts keep and publish, and what is left at the end: nothing."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RedisRefused
from backplane.open_store import open_store
from backplane.position import Batch
from backplane.redis_client import parse_redis_url
from backplane.session_log import Piece, SessionLog, Spoken, parse_push
from backplane.settings import Settings
from backplane.store import Store
from backplane.task_end import end_entry
from gateway.hub import Hub
from tests.integration.conftest import can_watch
from tests.integration.tasks import OVER_S, SETTINGS, World
from tests.support.answers import ODD, Reader, Said, text_of
from tests.support.topology import ValkeyCluster
from tests.support.valkey import Client, Valkey, eventually, running
from tests.unit.gateway.fakes import FakeLogger, FakeSocket

KEPT_MS = SETTINGS.task_kept_s * 1000
MOVES = pytest.mark.parametrize("atomic", [False, True], ids=["key by key", "atomic"])


class Stage(World):
    """Agents that speak, and what Redis has of it."""

    def __init__(self, store: Store, settings: Settings = SETTINGS, tenant_id: str = "acme") -> None:
        super().__init__(store, settings, tenant_id)
        self.session_log = SessionLog(store, store, self.keys, settings)

    async def chunk(
        self, delta: str, offset: int, part: str = "text", task_id: str = "t-1", attempt: int = 1
    ) -> None:
        """Push a piece; it is not moved yet."""
        data = {"delta": delta, "offset": offset, "part": part}
        await self.say(task_id, action_type="execution.chunk", data=data, attempt=attempt)

    async def chunks(self, *deltas: str, task_id: str = "t-1", part: str = "text", offset: int = 0) -> None:
        """Consecutive pieces, moved at once."""
        for delta in deltas:
            await self.chunk(delta, offset, part, task_id)
            offset += len(delta)
        await self.move()

    async def end_later(self, task_id: str = "t-1", status: str = "completed") -> None:
        """Push an end; it is not moved yet."""
        await self.say(task_id, status=status, result={"response": "whole"}, action_id=f"end-{task_id}")

    async def spoken(self) -> dict[str, Spoken]:
        """By task."""
        return {one.task_id: one for one in await self.session_log.spoken(self.session())}

    async def text(self, task_id: str = "t-1") -> str | None:
        """The text that is kept; None if there is no stream."""
        one = (await self.spoken()).get(task_id)
        if one is None:
            return None
        text = text_of(one.text)
        assert len(text) == one.text_chars
        assert len(text_of(one.reasoning)) == one.reasoning_chars
        return text

    def key(self, part: str = "", task_id: str = "t-1") -> str:
        return self.keys.task(self.list, task_id) + (part and f":{part}")

    @property
    def streams(self) -> str:
        return f"{self.session()}:streams"

    async def _says_that_it_is_over(self, name: bytes) -> bool:
        """As is remembered of tasks without a record."""
        if not name.endswith(b":stream"):
            return False
        task = name.removesuffix(b":stream")
        over = await self.store.call("HGET", name, "attempt") == b"9007199254740992"
        return over and not await self.store.call("EXISTS", task)

    async def check_nothing_is_kept(self) -> None:
        """Of any answer of the tenant, and all callbacks were moved."""
        names: list[bytes] = await self.store.call("KEYS", "*")
        kept = [name for name in names if name.endswith((b":stream", b":text", b":reasoning", b":streams"))]
        assert [name for name in kept if not await self._says_that_it_is_over(name)] == []
        assert await self.store.call("LLEN", self.list) == 0


@pytest.fixture
def stage(store: Store) -> Stage:
    return Stage(store)


@pytest.fixture
def heard(redis_client: Client, stage: Stage) -> Iterator[Heard]:
    with redis_client.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(stage.session())
        pubsub.get_message(timeout=5)
        yield Heard(pubsub, redis_client, stage.session())


class Heard:
    """What a subscriber of the session is sent."""

    def __init__(self, pubsub: Any, redis: Client, channel: str) -> None:
        self._pubsub, self._redis, self._channel = pubsub, redis, channel

    def all(self) -> list[Any]:
        """Everything published since the last time, in order."""
        self._redis.publish(self._channel, b"end")
        found: list[Any] = []
        while True:
            message = self._pubsub.get_message(timeout=5)
            assert message is not None
            if message["data"] == b"end":
                return found
            found.append(parse_push(message["data"]))

    def pieces(self) -> list[tuple[int, str]]:
        """Offset and text of the pieces among that."""
        pieces = [one for one in self.all() if isinstance(one, Piece)]
        assert all(one.chars == len(text_of(one.inner)) for one in pieces)
        return [(one.offset, text_of(one.inner)) for one in pieces]

    def shape(self) -> list[tuple[str, str]]:
        """Kind, and task or first type in the log, of each of them."""
        found = []
        for one in self.all():
            if isinstance(one, Batch):
                kinds = [json.loads(entry + b'"":0}}')["type"] for entry in one.entries]
                found.append(("log", " ".join(kinds)))
            else:
                found.append((type(one).__name__, one.task_id))
        return found


# What is kept and published.


async def test_pieces_are_kept_and_published(stage: Stage, heard: Heard) -> None:
    """Character by character as they came, whatever they consist of; text and reasoning apart."""
    await stage.chunks(*ODD)
    await stage.chunks("h", "m", part="reasoning")
    await stage.chunks("!", offset=len(ODD))
    one = (await stage.spoken())["t-1"]
    assert (text_of(one.text), text_of(one.reasoning)) == (ODD + "!", "hm")
    assert (one.attempt, one.text_chars, one.reasoning_chars) == (1, len(ODD) + 1, 2)
    told = [(one.part, one.offset, text_of(one.inner)) for one in heard.all()]
    assert told == [
        *(("text", at, char) for at, char in enumerate(ODD)),
        ("reasoning", 0, "h"), ("reasoning", 1, "m"), ("text", len(ODD), "!"),
    ]  # fmt: skip


@pytest.mark.parametrize("one_batch", [False, True], ids=["batch each", "one batch"])
async def test_overlaps_are_cut_between_characters(stage: Stage, heard: Heard, one_batch: bool) -> None:
    """At every place of a text with every escape and every length in UTF-8."""
    text = ODD + ODD[::-1]
    await stage.chunks(text[:1])
    for end in range(2, len(text) + 1):
        for start in (0, end // 2, end - 2, end - 1):
            await stage.chunk(text[start:end], start)  # only the first of them has something new
        if not one_batch:
            await stage.move()
    await stage.move()
    assert await stage.text() == text
    assert heard.pieces() == [(at, char) for at, char in enumerate(text)]
    assert stage.transfer.counts.pieces_ignored == (len(text) - 1) * 3


async def test_how_far_they_are(stage: Stage) -> None:
    """Told without the texts; nothing of those that have ended or not begun."""
    await stage.chunks("abc")
    await stage.chunks("hm", part="reasoning")
    await stage.chunk("\U0001f680", 0, task_id="t-2", attempt=3)
    await stage.chunks("over", task_id="t-3")
    await stage.answer("t-3")
    tasks = ["t-3", "t-1", "t-9", "t-2"]
    assert await stage.session_log.reached(stage.session(), tasks) == [None, (1, 3, 2), None, (3, 1, 0)]


async def test_gaps_copies_and_empty_pieces(stage: Stage, heard: Heard) -> None:
    """What does not follow is left out, until what follows comes; what says nothing new is, too."""
    await stage.chunks("b", offset=1)
    assert await stage.text() is None or await stage.text() == ""
    await stage.chunks("abc")
    for delta, offset in (("e", 4), ("abc", 0), ("bc", 1), ("b", 1), ("", 3), ("", 0), ("", 99)):
        await stage.chunks(delta, offset=offset)
    await stage.chunks("cd", offset=2)
    await stage.chunks("e", offset=4)
    assert await stage.text() == "abcde"
    assert heard.pieces() == [(0, "abc"), (3, "d"), (4, "e")]
    assert stage.transfer.counts.pieces_ignored == 8


async def test_attempts(stage: Stage, heard: Heard) -> None:
    """A higher one begins anew, in text and reasoning; a lower one is not heard any more."""
    await stage.chunks("first")
    await stage.chunks("hm", part="reasoning")
    await stage.chunk("sec", 0, attempt=2)
    await stage.chunk(" try", 5, attempt=1)
    await stage.chunk("ond", 3, attempt=2)
    await stage.move()
    one = (await stage.spoken())["t-1"]
    assert (one.attempt, one.text, one.text_chars, one.reasoning_chars) == (2, b"second", 6, 0)
    assert await stage.store.call("EXISTS", stage.key("reasoning")) == 0
    await stage.chunk("x", 2, attempt=1)
    await stage.chunk("third", 0, attempt=3)
    await stage.chunk("fourth", 0, attempt=4)  # both in one batch
    await stage.chunk("hm", 0, "reasoning", attempt=4)
    await stage.move()
    one = (await stage.spoken())["t-1"]
    assert (one.attempt, one.text, one.reasoning) == (4, b"fourth", b"hm")
    told = [(one.attempt, one.offset, one.inner) for one in heard.all()]
    assert told == [
        (1, 0, b"first"), (1, 0, b"hm"), (2, 0, b"sec"), (2, 3, b"ond"),
        (3, 0, b"third"), (4, 0, b"fourth"), (4, 0, b"hm"),
    ]  # fmt: skip


async def test_attempts_of_any_size(stage: Stage, heard: Heard) -> None:
    """An agent may count them by the time in microseconds."""
    for attempt in (1_769_860_800, 1_769_860_800_000_001, 1_769_860_800_000_002, 2**53 - 1):
        await stage.chunk("a", 0, attempt=attempt)
        await stage.chunk("b", 1, attempt=attempt)
        await stage.move()
        one = (await stage.spoken())["t-1"]
        assert (one.attempt, one.text) == (attempt, b"ab")
        assert [one.attempt for one in heard.all()] == [attempt, attempt]


async def test_the_record_has_the_attempt(stage: Stage) -> None:
    """Of the last one that has said something; it is not written for every piece."""
    await stage.begin()
    for attempt in (1, 1, 2, 2, 3):
        await stage.chunk("a", 0, attempt=attempt)
        await stage.move()
        record = await stage.record()
        assert (record["attempt"], record["status"]) == (str(attempt), "working")


async def test_the_bound(store: Store) -> None:
    """What is beyond it is left out, of each part for itself; another attempt has room again."""
    stage = Stage(store, replace(SETTINGS, stream_max_bytes=1_024))
    await stage.chunks("x" * 1_000)
    await stage.chunks("\u20ac" * 8, offset=1_000)  # 24 bytes
    await stage.chunks("y", offset=1_008)
    await stage.chunks("z", offset=1_009)
    await stage.chunks("r" * 1_024, part="reasoning")
    await stage.chunks("r" * 1_025, part="reasoning", task_id="t-2")
    one = await stage.spoken()
    assert (one["t-1"].text_chars, len(one["t-1"].text), one["t-1"].reasoning_chars) == (1_008, 1_024, 1_024)
    assert stage.transfer.counts.pieces_ignored == 3
    await stage.chunk("x" * 600, 0, attempt=2)
    await stage.chunk("x" * 600, 600, attempt=2)
    await stage.chunk("x" * 400, 600, attempt=2)
    await stage.move()
    assert (await stage.spoken())["t-1"].text_chars == 1_000
    for task in ("t-1", "t-2"):
        await stage.answer(task)
    assert len(await stage.log()) == 2
    await stage.check_nothing_is_kept()


# Whose pieces are heard.


async def test_typing_is_told_once(stage: Stage, heard: Heard) -> None:
    """When work begins on a task that a pod has accepted, whatever tells of it first; before its piece."""
    await stage.begin("t-1")
    await stage.begin("t-2", session="s-1")
    await stage.chunks("a", "b")
    await stage.chunk("c", 0, attempt=2)
    await stage.move()
    await stage.report("t-2")
    await stage.chunks("a", task_id="t-2")
    await stage.chunks("a", task_id="t-3")  # nobody knows it
    assert heard.shape() == [
        ("Begun", "t-1"), ("Piece", "t-1"), ("Piece", "t-1"), ("Piece", "t-1"),
        ("Begun", "t-2"), ("log", "task_update"), ("Piece", "t-2"), ("Piece", "t-3"),
    ]  # fmt: skip


async def test_pieces_of_a_task_that_is_over(stage: Stage, heard: Heard) -> None:
    """Or is being cancelled: nobody hears them, and nothing is kept."""
    for task in ("t-1", "t-2"):
        await stage.begin(task)
    await stage.chunks("a")
    await stage.chunks("a", task_id="t-2")
    await stage.answer("t-1")
    await stage.begin_cancel("t-2")
    heard.all()
    await stage.chunks("b", offset=1)
    await stage.chunks("again")
    await stage.chunks("b", offset=1, task_id="t-2")
    assert heard.all() == []
    assert stage.transfer.counts.pieces_ignored == 3
    assert set(await stage.spoken()) == {"t-2"}
    await stage.finish_cancel("t-2")
    await stage.check_nothing_is_kept()


async def test_pieces_of_a_task_that_nobody_knows(stage: Stage, heard: Heard) -> None:
    """It was started elsewhere: heard all the same, and there is no record afterwards."""
    await stage.chunks("a", "b")
    assert await stage.text() == "ab"
    await stage.answer("t-1")
    assert heard.shape() == [
        ("Piece", "t-1"), ("Piece", "t-1"), ("StreamEnd", "t-1"), ("log", "agent_response")
    ]  # fmt: skip
    assert await stage.record() == {}
    await stage.check_nothing_is_kept()


# The end.


@pytest.mark.parametrize("known", [True, False], ids=["accepted", "started elsewhere"])
@pytest.mark.parametrize("status", ["completed", "failed", "timeout", "cancelled"])
async def test_nothing_is_kept_behind_an_end(stage: Stage, heard: Heard, status: str, known: bool) -> None:
    """Of any kind, by the agent; the end of the stream is told right before it, other answers go on."""
    if known:
        await stage.begin()
    await stage.chunks("a")
    await stage.chunks("hm", part="reasoning")
    await stage.chunks("other", task_id="t-2")
    heard.all()
    await stage.answer("t-1", status=status)
    kind = "agent_response" if status == "completed" else "error"
    assert heard.shape() == [("StreamEnd", "t-1"), ("log", kind)]
    assert set(await stage.spoken()) == {"t-2"}
    await stage.answer("t-2")
    await stage.check_nothing_is_kept()


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
async def test_nothing_is_kept_behind_an_end_by_others(stage: Stage, heard: Heard, how: str) -> None:
    """By a router at the deadline, or by who cancels."""
    await stage.begin(timeout_s=OVER_S)
    await stage.chunks("a")
    heard.all()
    if how == "timeout":
        await stage.time_out("t-1")
    else:
        await stage.begin_cancel("t-1")
        await stage.finish_cancel("t-1")
    assert heard.shape() == [("StreamEnd", "t-1"), ("log", "error")]
    assert await stage.check_ended_once() == how
    await stage.check_nothing_is_kept()


async def test_a_known_end_frees_what_was_left(stage: Stage, redis_client: Client, heard: Heard) -> None:
    """An error may have kept the script from it: the same callback again makes up for it."""
    await stage.chunks("a")
    left = {name: redis_client.dump(name) for name in (stage.key("stream"), stage.key("text"), stage.streams)}
    await stage.end_later()
    await stage.move()
    for name, value in left.items():
        redis_client.restore(name, 0, value, replace=True)
    heard.all()
    await stage.end_later()
    await stage.move()
    assert heard.shape() == [("StreamEnd", "t-1")]
    assert len(await stage.log()) == 1
    await stage.check_nothing_is_kept()
    await stage.end_later()
    await stage.move()
    assert heard.all() == []


async def test_pieces_and_the_end_in_one_batch(stage: Stage, heard: Heard) -> None:
    """All is told in the order of the list, and nothing is kept."""
    await stage.chunk("a", 0)
    await stage.say("t-1", action_type="execution.progress", data={"step": "s"})
    await stage.chunk("b", 1)
    await stage.end_later()
    await stage.move()
    assert heard.shape() == [
        ("Piece", "t-1"), ("log", "task_update"), ("Piece", "t-1"), ("StreamEnd", "t-1"),
        ("log", "agent_response"),
    ]  # fmt: skip
    await stage.check_nothing_is_kept()


async def test_pieces_behind_the_end_in_one_batch(stage: Stage, heard: Heard) -> None:
    """They are not heard, whether the task is known or not."""
    await stage.begin("t-2")
    for task in ("t-1", "t-2"):
        await stage.chunk("a", 0, task_id=task)
        await stage.end_later(task)
        await stage.chunk("b", 1, task_id=task)
        await stage.chunk("again", 0, task_id=task, attempt=2)
    await stage.move()
    told = heard.shape()
    for task in ("t-1", "t-2"):
        kinds = [kind for kind, of in told if of == task]
        assert kinds == (["Begun"] if task == "t-2" else []) + ["Piece", "StreamEnd"]
    assert stage.transfer.counts.pieces_ignored == 4
    await stage.check_nothing_is_kept()


# What may be wrong with the keys.


@pytest.mark.parametrize("what", ["stream", "text", "reasoning", "streams", "record"])
async def test_keys_of_a_wrong_type(stage: Stage, redis_client: Client, what: str) -> None:
    """Nothing is kept of such a task, and all else goes on: the list, its end, other answers, reads."""
    named = {"streams": stage.streams, "record": stage.key()}
    redis_client.rpush(named.get(what) or stage.key(what), "a list")
    await stage.chunks("a", "b")
    await stage.chunks("hm", part="reasoning")
    await stage.chunks("other", task_id="t-2")
    assert await stage.store.call("LLEN", stage.list) == 0
    if what != "streams":
        assert await stage.text("t-2") == "other"
        assert await stage.text() in ("ab", "", None)
    else:
        assert await stage.spoken() == {}
    for task in ("t-1", "t-2"):
        await stage.answer(task)
    assert [end for _, end in await stage.ends()] == ["completed"] * 2
    assert await stage.store.call("LLEN", stage.list) == 0
    assert await stage.spoken() == {}
    assert stage.transfer.counts.dead_letters == 0


@pytest.mark.parametrize("what", ["text", "reasoning"])
async def test_a_key_that_becomes_one_of_a_wrong_type(stage: Stage, redis_client: Client, what: str) -> None:
    """In the middle of an answer, of which some is known: another attempt mends it."""
    await stage.chunks("abc")
    await stage.chunks("hm", part="reasoning")
    redis_client.delete(stage.key(what))
    redis_client.rpush(stage.key(what), "a list")
    await stage.chunks("def", offset=3)
    await stage.chunks("m", part="reasoning", offset=2)
    one = (await stage.spoken())["t-1"]
    assert len(one.text) == one.text_chars == (0 if what == "text" else 6)
    assert len(one.reasoning) == one.reasoning_chars == (0 if what == "reasoning" else 3)
    await stage.chunk("again", 0, attempt=2)
    await stage.chunk("hm", 0, "reasoning", attempt=2)
    await stage.move()
    one = (await stage.spoken())["t-1"]
    assert (one.attempt, one.text, one.reasoning) == (2, b"again", b"hm")


@pytest.mark.parametrize("gone", ["stream", "text"])
async def test_a_key_that_is_gone(stage: Stage, redis_client: Client, gone: str) -> None:
    """What is left does not pass for an answer, nor as the beginning of another attempt."""
    await stage.chunks("abc")
    redis_client.delete(stage.key(gone))
    await stage.chunks("def", offset=3)
    assert await stage.text() in (None, "")
    await stage.chunk("again", 0, attempt=2)
    await stage.move()
    assert await stage.text() == "again"


async def test_no_memory_left(own_valkey: Valkey) -> None:
    """Nothing is half written: callbacks wait until there is room, and what stands stays as it was."""
    target = parse_redis_url(own_valkey.url)
    with own_valkey.client() as redis_client:
        async with running(open_store(target, "test", timeout_s=10, on_connect=can_watch)) as store:
            stage = Stage(store)
            await stage.chunks("first")
            before = {name: redis_client.dump(name) for name in redis_client.keys("*t-1:*")}
            await stage.chunk("second", 0, attempt=2)
            redis_client.config_set("maxmemory", 1)
            with pytest.raises(RedisRefused):
                await stage.move()
            assert {name: redis_client.dump(name) for name in redis_client.keys("*t-1:*")} == before
            redis_client.config_set("maxmemory", 0)
            await stage.move()
            assert await stage.text() == "second"


# How long it is kept.


async def test_everything_expires(stage: Stage, redis_client: Client) -> None:
    """With its task at the latest, however its end comes to be missed; another attempt too."""
    for attempt in (1, 2):
        await stage.chunk("a", 0, attempt=attempt)
        await stage.chunk("hm", 0, "reasoning", attempt=attempt)
        await stage.move()
        names = [stage.key("stream"), stage.key("text"), stage.key("reasoning"), stage.streams]
        assert all(0 < redis_client.pttl(name) <= KEPT_MS for name in names)


async def test_who_speaks_for_long_is_kept(stage: Stage, redis_client: Client) -> None:
    """Nothing expires in the middle of an answer; nor is its time put off with every piece."""
    await stage.chunks("a")
    await stage.chunks("hm", part="reasoning")
    names = [stage.key("stream"), stage.key("text"), stage.key("reasoning"), stage.streams]
    for name in names:
        redis_client.pexpire(name, KEPT_MS * 2 // 3)
    await stage.chunks("b", offset=1)
    assert all(redis_client.pttl(name) <= KEPT_MS * 2 // 3 for name in names)
    for name in names:
        redis_client.pexpire(name, KEPT_MS // 3)
    await stage.chunks("c", offset=2)
    assert all(redis_client.pttl(name) > KEPT_MS * 2 // 3 for name in names)
    assert redis_client.zscore(stage.streams, "t-1") > redis_client.time()[0] * 1000 + KEPT_MS * 2 // 3
    assert await stage.text() == "abc"


async def test_streams_that_are_gone_are_forgotten(stage: Stage, redis_client: Client) -> None:
    """A session whose agents never end does not remember them for ever."""
    for number in range(20):
        await stage.chunks("a", task_id=f"t-{number}")
    for number in range(15):
        redis_client.delete(stage.key("stream", f"t-{number}"))
        redis_client.zadd(stage.streams, {f"t-{number}": 1})  # they have expired
    assert set(await stage.spoken()) == {f"t-{number}" for number in range(15, 20)}
    await stage.chunks("a", task_id="new")
    assert redis_client.zcard(stage.streams) == 6


# What was read has its place among what is published.


async def test_who_comes_again_and_again(redis_url: str) -> None:
    """While agents speak: what each client puts together is right at every moment, and whole in the end."""
    target, choose = parse_redis_url(redis_url), random.Random(7)
    hubs: list[Hub] = []

    def on_push(push: list[Any]) -> None:
        hubs[0].on_push(push)

    async with (
        running(open_store(target, "router", timeout_s=10, on_connect=can_watch)) as store,
        running(open_store(target, "commands", timeout_s=10)) as commands,
        running(
            open_store(
                target,
                "feed",
                timeout_s=10,
                on_push=on_push,
                channels=lambda: hubs[0].channels() if hubs else [],
            )
        ) as feed,
    ):
        stage, logger = Stage(store), FakeLogger()
        log = SessionLog(feed, commands, stage.keys, SETTINGS)
        hubs.append(Hub(feed, log, logger.as_logger(), lambda _channel, _payload: None, merge_s=0.001))
        said: dict[str, Said] = {}
        readers: dict[FakeSocket, Reader] = {}

        async def speak() -> None:
            for number in range(900):
                task = f"t-{number // 300}"
                agent = said.setdefault(task, Said())
                if number % 97 == 96:
                    agent.attempts.append({"text": "", "reasoning": ""})
                part = "reasoning" if choose.random() < 0.2 else "text"
                delta = "".join(choose.choices(ODD, k=choose.randrange(1, 6)))
                await stage.chunk(delta, len(agent.now[part]), part, task, agent.attempt)
                agent.now[part] += delta
                if number % 300 == 299:
                    await stage.end_later(task)
                if number % 3 == 0:
                    await stage.move()
            await stage.chunk("the last", 0, task_id="t-9")
            said["t-9"] = Said()
            said["t-9"].now["text"] = "the last"
            await stage.move()

        async def come(socket: FakeSocket) -> None:
            socket.feed = await hubs[0].attach(stage.session(), socket, None, socket.greet)

        speaking = asyncio.create_task(speak())
        while not speaking.done():
            socket = FakeSocket(hubs[0], wants_chunks=True)
            readers[socket] = Reader(said, lambda message: str(message["task_id"]))
            await come(socket)
            here = [one for one in readers if one.feed is not None]
            for one in here:
                readers[one].take(one.news())
            if len(here) > 3:
                choose.choice(here).leave()
            await asyncio.sleep(choose.choice([0, 0, 0.001, 0.004]))
        await speaking
        here = [one for one in readers if one.feed is not None]
        assert len(readers) > 50

        def all_have_all() -> bool:
            for one in here:
                readers[one].take(one.news())
                assert readers[one].has("t-9")["text"] == "the last"
            return True

        await eventually(all_have_all)
        for one in here:
            one.leave()
        assert hubs[0].sessions == 0
        assert "hub_task_died" not in logger.names


# On a cluster.


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    with ValkeyCluster(Path(tmp_path_factory.mktemp("cluster")), node_timeout_ms=2_000) as cluster:
        yield cluster


@pytest.fixture
async def clustered(cluster: ValkeyCluster) -> AsyncIterator[Stage]:
    for node, _ in cluster.primaries():
        node.ask("FLUSHALL")
    async with running(
        open_store(parse_redis_url(cluster.url), "test", timeout_s=10, on_connect=can_watch)
    ) as store:
        yield Stage(store)


async def test_on_a_cluster(clustered: Stage) -> None:
    """All keys are in one slot, whichever end it comes to."""
    stage = clustered
    await stage.begin("t-1")
    await stage.begin("t-2", timeout_s=OVER_S)
    for task in ("t-1", "t-2", "t-3"):
        await stage.chunks("a", task_id=task)
        await stage.chunks("hm", part="reasoning", task_id=task)
        await stage.chunk("again", 0, task_id=task, attempt=2)
    await stage.move()
    assert {task: one.text for task, one in (await stage.spoken()).items()} == dict.fromkeys(
        ("t-1", "t-2", "t-3"), b"again"
    )
    await stage.answer("t-1")
    await stage.time_out("t-2")
    entry = end_entry("cancelled", "t-3", "s-1", "acme", "free", "", 0.0)
    assert await stage.end(entry, "") == "unknown"
    await stage.answer("t-3", status="failed")
    assert await stage.spoken() == {}


@MOVES
async def test_while_its_slot_is_on_its_way(cluster: ValkeyCluster, clustered: Stage, atomic: bool) -> None:
    """Nothing is half written or forgotten: what is read in between is a prefix, and it is whole at last."""
    stage = clustered
    slot, source = cluster.slot_of(stage.list), cluster.node_of(stage.list)
    target = next(node for node, _ in cluster.primaries() if node is not source)
    said, prefixes = {f"t-{number}": "" for number in range(12)}, 0

    async def persistently(work: Any) -> Any:
        async with asyncio.timeout(20):
            while True:
                try:
                    return await work()
                except RedisRefused:
                    await asyncio.sleep(0.01)

    async def move() -> None:
        for here, there in ((source, target), (target, source)):
            await asyncio.to_thread(
                cluster.move_slots, [slot], here, there, atomic=atomic, batch=3, pause_s=0.03
            )

    async def speak() -> None:
        for task, before in list(said.items()):
            delta = random.choice(ODD) * 3
            await persistently(partial(stage.chunk, delta, len(before), task_id=task))
            said[task] += delta
        await persistently(stage.move)

    await speak()
    moving = asyncio.create_task(move())
    while not moving.done():
        await speak()
        for task, one in (await persistently(stage.spoken)).items():
            text = text_of(one.text)
            assert len(text) == one.text_chars
            assert said[task].startswith(text)
            prefixes += 1
    await moving
    await speak()
    assert prefixes
    assert {task: text_of(one.text) for task, one in (await stage.spoken()).items()} == said
    for task in said:
        await stage.answer(task)
    assert await stage.spoken() == {}

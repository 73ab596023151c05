"""Dead letters against a real Valkey: as the router writes them, and what an operator does with them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import structlog
from redis import Redis as SyncRedis

from backplane.dead_letters import DeadLetters, InvalidDeadLetterId, RedriveResult, Source, parse_id
from backplane.errors import InvalidId, RedisRefused, RedisUnavailable
from backplane.open_store import open_store
from backplane.redis_client import parse_redis_url
from backplane.router.transfer import Transfer
from backplane.settings import Settings
from tests.integration.conftest import can_watch
from tests.support.valkey import running

KEYS = Settings().keys()
ACME, ZETA = KEYS.callbacks("acme"), KEYS.callbacks("zeta")
GOOD = b'{"action_type":"execution.callback","session_id":"s-1","task_id":"t-1","status":"completed"}'


def bury(
    redis: SyncRedis,
    callback_list: str,
    raw: bytes = b"{",
    *,
    size: int | None = None,
    stream_id: str = "*",
    detail: str | bytes = "broken",
) -> str:
    """Write a dead letter as `lua/transfer.lua` does; returns its id."""
    stream = KEYS.dead_letters(callback_list)
    fields = {
        "reason": "not_json",
        "detail": detail,
        "size": len(raw) if size is None else size,
        "raw": raw,
    }
    redis.sadd(KEYS.dead_letter_lists, callback_list)
    written = redis.xadd(stream, fields, id=stream_id)  # type: ignore[arg-type]  # the stub's dict is invariant
    redis.incrby(f"{stream}:bytes", len(raw))
    tenant = KEYS.tenant_of(callback_list.encode())
    assert isinstance(written, bytes)
    return f"{tenant}/{written.decode()}"


@pytest.fixture
async def letters(redis_url: str) -> AsyncIterator[DeadLetters]:
    client = parse_redis_url(redis_url).client()
    yield DeadLetters(client, KEYS)
    await client.aclose()


async def route(redis_url: str, callback_list: str, tenant_id: str, settings: Settings) -> None:
    """What a router does with one list."""
    store = open_store(parse_redis_url(redis_url), "test-router", timeout_s=5, on_connect=can_watch)
    async with running(store):
        await Transfer(store, store, KEYS, settings, structlog.get_logger()).drain(
            callback_list, tenant_id, 10
        )


async def test_lists_what_the_router_buried(
    letters: DeadLetters, redis_url: str, redis_client: SyncRedis
) -> None:
    """Reason, detail, size and the raw bytes come through the router's own script."""
    redis_client.lpush(ACME, b"\xff not json", b'{"status":"completed"}', GOOD)
    await route(redis_url, ACME, "acme", Settings())
    newest, oldest = await letters.list(None, 10)
    assert (oldest.reason, oldest.raw, oldest.size, oldest.cut) == ("not_json", b"\xff not json", 10, False)
    assert (newest.reason, newest.detail) == ("no_session", "session_id is missing")
    assert newest.tenant_id == "acme"
    assert newest.id.startswith("acme/")
    assert abs(newest.at - redis_client.time()[0]) < 60
    assert await letters.count() == 2


async def test_a_redriven_letter_is_judged_anew(
    letters: DeadLetters, redis_url: str, redis_client: SyncRedis
) -> None:
    """A callback that an older router could not read reaches its session after all."""
    letter_id = bury(redis_client, ACME, GOOD)
    assert await letters.redrive(letter_id) == RedriveResult.REDRIVEN
    assert redis_client.lrange(ACME, 0, -1) == [GOOD]
    await route(redis_url, ACME, "acme", Settings())
    assert redis_client.llen(f"{KEYS.session(ACME, 's-1')}:log") == 1
    assert await letters.count() == 0


async def test_redriving_puts_it_where_the_aes_pushes(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """It stands behind what waits already: the router takes from the right."""
    redis_client.lpush(ACME, b"waiting")
    await letters.redrive(bury(redis_client, ACME, b"again"))
    assert redis_client.lrange(ACME, 0, -1) == [b"again", b"waiting"]


async def test_a_cut_letter_stays(letters: DeadLetters, redis_url: str, redis_client: SyncRedis) -> None:
    """What was too large to keep whole is never pushed as half a callback; it can be dropped."""
    settings = Settings(callback_max_bytes=8_192, dead_letters_max_bytes=8_192)
    redis_client.lpush(ACME, b"x" * 20_000)
    await route(redis_url, ACME, "acme", settings)
    [letter] = await letters.list("acme", 1)
    assert (letter.cut, letter.size, len(letter.raw)) == (True, 20_000, 4_096)
    assert await letters.redrive(letter.id) == RedriveResult.CUT
    assert redis_client.llen(ACME) == 0
    assert await letters.count() == 1
    assert await letters.drop(letter.id)
    assert redis_client.get(f"{KEYS.dead_letters(ACME)}:bytes") == b"0"


async def test_newest_first_within_each_tenant(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """Tenants stand in the order of their names; the limit counts all of them together."""
    zeta = [bury(redis_client, ZETA, stream_id=f"{n}-0") for n in (5, 6)]
    acme = [bury(redis_client, ACME, stream_id=f"{n}-1") for n in (1, 2, 3)]
    expected = [*reversed(acme), *reversed(zeta)]
    assert [letter.id for letter in await letters.list(None, 100)] == expected
    assert [letter.id for letter in await letters.list(None, 4)] == expected[:4]
    assert [letter.id for letter in await letters.list("zeta", 1)] == expected[3:4]
    assert await letters.list("nobody", 10) == []
    assert await letters.list(None, 0) == []


async def test_lists_more_than_a_page(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """Page by page, each letter once."""
    ids = [bury(redis_client, ACME, stream_id=f"{n // 2 + 1}-{n % 2}") for n in range(230)]
    assert [letter.id for letter in await letters.list("acme", 1000)] == ids[::-1]
    assert [letter.id for letter in await letters.list("acme", 201)] == ids[::-1][:201]


async def test_shows_one_letter(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """With a detail that is not text, too; and None once it has gone."""
    letter_id = bury(redis_client, ACME, b"\x00raw", stream_id="7-0", detail=b"byte \xff")
    letter = await letters.show(letter_id)
    assert letter is not None
    assert (letter.id, letter.at, letter.raw) == ("acme/7-0", 0.007, b"\x00raw")
    assert letter.detail == "byte \\xff"
    assert await letters.drop(letter_id)
    assert await letters.show(letter_id) is None
    assert not await letters.drop(letter_id)
    assert await letters.redrive(letter_id) == RedriveResult.NOT_FOUND


async def test_an_emptied_list_leaves_the_index(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """And only then."""
    first, second = bury(redis_client, ACME), bury(redis_client, ACME)
    bury(redis_client, ZETA)
    await letters.drop(first)
    assert redis_client.sismember(KEYS.dead_letter_lists, ACME)
    await letters.redrive(second)
    assert redis_client.smembers(KEYS.dead_letter_lists) == {ZETA.encode()}


async def test_lists_of_another_template_are_left_alone(
    letters: DeadLetters, redis_client: SyncRedis
) -> None:
    """Their tenant cannot be told, so their letters have no id here."""
    redis_client.sadd(KEYS.dead_letter_lists, "elsewhere:acme:callbacks")
    assert await letters.list(None, 10) == []
    assert await letters.count() == 0
    assert redis_client.scard(KEYS.dead_letter_lists) == 1


@pytest.mark.parametrize(
    "letter_id",
    [
        "",
        "acme",
        "acme/",
        "acme/5",
        "/5-0",
        "acme/-",
        "acme/5-0/6-0",
        "acme/05-0",
        "acme/5-0\n",
        "acme/٥-0",
        "acme/18446744073709551616-0",
        "acme/+",
        "a b/5-0",
        "a:b/5-0",
        "acme/5-*",
        "acme:/5-0",
        "acme:0/5-0",
        "acme:01/5-0",
        "acme:x/5-0",
        "acme:1:2/5-0",
        ":1/5-0",
    ],
)
async def test_malformed_ids_are_refused(letters: DeadLetters, letter_id: str) -> None:
    """In the user's words, before Redis hears of them."""
    for action in (letters.show, letters.redrive, letters.drop):
        with pytest.raises((InvalidDeadLetterId, InvalidId), match=r"is not|is missing"):
            await action(letter_id)


def test_the_largest_id_is_valid() -> None:
    """Stream ids are two 64-bit numbers."""
    assert parse_id("acme/18446744073709551615-0") == (Source("acme"), "18446744073709551615-0")


async def test_a_spread_tenant_has_them_by_list(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """Each of its lists has its own; an operator sees all of the tenant, and puts each back where it was."""
    third = bury(redis_client, KEYS.callbacks("acme", 3), GOOD).replace("acme/", "acme:3/")
    first, other = bury(redis_client, ACME), bury(redis_client, ZETA)
    assert [letter.id for letter in await letters.list("acme", 10)] == [first, third]
    assert [letter.id for letter in await letters.list(None, 10)] == [first, third, other]
    assert {letter.tenant_id for letter in await letters.list("acme", 10)} == {"acme"}
    assert await letters.count() == 3
    shown = await letters.show(third)
    assert shown is not None
    assert (shown.id, shown.raw) == (third, GOOD)
    assert await letters.redrive(third) == RedriveResult.REDRIVEN
    assert redis_client.lrange(KEYS.callbacks("acme", 3), 0, -1) == [GOOD]
    assert not redis_client.exists(ACME)
    assert await letters.count() == 2


async def test_a_malformed_tenant_is_refused(letters: DeadLetters) -> None:
    """`list` takes it from the user, too."""
    with pytest.raises(InvalidId, match="tenant"):
        await letters.list("no:such", 10)


async def test_errors_of_redis_are_the_projects_own(letters: DeadLetters, redis_client: SyncRedis) -> None:
    """Callers outside of backplane know no redis-py."""
    redis_client.set(KEYS.dead_letters(ACME), "not a stream")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await letters.list("acme", 10)
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await letters.redrive("acme/5-0")
    client = parse_redis_url("redis://127.0.0.1:1/0").client()
    with pytest.raises(RedisUnavailable):
        await DeadLetters(client, KEYS).count()
    await client.aclose()

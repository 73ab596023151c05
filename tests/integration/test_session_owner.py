"""Whose a session is, in a real Redis: who uses it first has it, and nobody else gets at it or changes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog

from backplane.errors import NotYours
from backplane.keys import ANY_USER
from backplane.open_store import open_store
from backplane.position import Position
from backplane.redis_client import parse_redis_url
from backplane.router.transfer import Transfer
from backplane.session_log import SessionLog
from backplane.settings import Settings
from backplane.store import Store
from tests.support.sessions import begun
from tests.support.valkey import Client, Valkey, running

SETTINGS = Settings()
KEYS = SETTINGS.keys()
LIST = KEYS.callbacks("acme")
SESSION = KEYS.session(LIST, "s-1")
TTL_MS = SETTINGS.session_log_max_age_s * 1125


class Desk:
    """A pod's session logs, and a router that writes them."""

    def __init__(self, store: Store, redis: Client) -> None:
        self.log = SessionLog(store, store, KEYS, SETTINGS)
        self.redis = redis
        self._mover = Transfer(store, store, KEYS, SETTINGS, structlog.get_logger())
        self._said = 0

    async def say(self, *texts: str) -> None:
        """Have the router append answers."""
        for text in texts:
            self._said += 1
            callback = {"action_id": f"a-{self._said}", "session_id": "s-1", "result": {"response": text}}
            self.redis.lpush(LIST, json.dumps(callback))
        assert not await self._mover.drain(LIST, "acme", 100)

    @property
    def owner(self) -> bytes | None:
        """As it is written down."""
        owner: bytes | None = self.redis.hget(SESSION, "u")
        return owner

    def everything(self) -> dict[bytes, Any]:
        """All that Redis holds, but how long it is kept."""
        return {key: self.redis.dump(key) for key in self.redis.scan_iter()}

    async def may(self, user: str, use: Use) -> bool:
        try:
            await use(self.log, user)
        except NotYours:
            return False
        return True


Use = Callable[[SessionLog, str], Awaitable[object]]


async def resume(log: SessionLog, user: str) -> object:
    """As a socket without a cursor does."""
    return await log.resume(SESSION, None, user)


async def resume_from(log: SessionLog, user: str) -> object:
    """As a socket that comes back does."""
    return await log.resume(SESSION, Position("e", 1), user)


async def ensure(log: SessionLog, user: str) -> object:
    """As a send does."""
    return await begun(log, SESSION, user)


async def history(log: SessionLog, user: str) -> object:
    """As who reads the log over HTTP does."""
    return await log.history(SESSION, None, user)


USES = [resume, resume_from, ensure]
EVERYBODY = ["ann", "bob", "an", "ann2", "ANN", "", ANY_USER]
uses = pytest.mark.parametrize("use", USES)
then = pytest.mark.parametrize("again", [*USES, history])


@pytest.fixture
def desk(store: Store, redis_client: Client) -> Desk:
    return Desk(store, redis_client)


# Who uses it first.


@uses
@then
async def test_a_user_has_it(desk: Desk, use: Use, again: Use) -> None:
    """However it was first used, and however others try; administrators may, and take it from nobody."""
    assert await desk.may("ann", use)
    assert desk.owner == b"ann"
    allowed = {user: await desk.may(user, again) for user in EVERYBODY}

    assert allowed == {user: user in ("ann", ANY_USER) for user in EVERYBODY}
    assert desk.owner == b"ann"


@uses
@then
async def test_the_whole_tenant_has_it(desk: Desk, use: Use, again: Use) -> None:
    """What nobody in particular began is everybody's, and no user makes it his own later."""
    assert await desk.may("", use)
    assert desk.owner == b""
    for user in EVERYBODY:
        assert await desk.may(user, again)
        assert desk.owner == b""


@uses
async def test_one_of_many_has_it(desk: Desk, use: Use) -> None:
    """Users who come at the same moment do not share it."""
    users = [f"u-{number}" for number in range(20)]
    allowed = await asyncio.gather(*[desk.may(user, use) for user in users])

    assert allowed.count(True) == 1
    assert desk.owner == users[allowed.index(True)].encode()


@uses
async def test_users_with_other_signs(desk: Desk, use: Use) -> None:
    """A user's id may look like an address, and is compared as it stands."""
    assert await desk.may("ann+a@example.org", use)
    for other in ("ann@example.org", "ann+a@example.orG", "ann+a@example.org.evil", "%"):
        assert not await desk.may(other, use)


async def test_every_session_has_its_own(desk: Desk) -> None:
    """Also those of the same name of another tenant."""
    for tenant, session, user in (("acme", "s-1", "ann"), ("acme", "s-2", "bob"), ("other", "s-1", "bob")):
        await begun(desk.log, KEYS.session(KEYS.callbacks(tenant), session), user)
    for tenant, session, user in (("acme", "s-1", "bob"), ("acme", "s-2", "ann"), ("other", "s-1", "ann")):
        with pytest.raises(NotYours):
            await begun(desk.log, KEYS.session(KEYS.callbacks(tenant), session), user)


# Begun by the router.


async def test_nobody_has_what_the_router_began(desk: Desk) -> None:
    """An agent that speaks first takes the session from nobody; nor does who only reads."""
    await desk.say("a", "b")
    await desk.log.heads([SESSION], renew=True)
    for user in EVERYBODY:
        assert len((await desk.log.history(SESSION, None, user)).batch.entries) == 2

    assert not desk.redis.hexists(SESSION, "u")


@pytest.mark.parametrize(("first", "owner"), [("ann", b"ann"), ("", b""), (ANY_USER, None)])
@uses
async def test_who_comes_first_has_what_the_router_began(
    desk: Desk, first: str, owner: bytes | None, use: Use
) -> None:
    """With all that is in it; an administrator's visit leaves it to who comes next."""
    await desk.say("a", "b")
    assert await desk.may(first, use)
    assert desk.owner == owner
    assert await desk.may("bob", use) is (owner != b"ann")

    assert len((await desk.log.history(SESSION, None, ANY_USER)).batch.entries) == 2


async def test_the_router_does_not_care(desk: Desk) -> None:
    """Answers get into the log of a user's session, and change nothing about whose it is."""
    await begun(desk.log, SESSION, "ann")
    await desk.say("a")
    resumed = await desk.log.resume(SESSION, None, "ann")

    assert (resumed.head, len(resumed.page.entries), desk.owner) == (1, 1, b"ann")


# Whoever is refused changes nothing.


@pytest.mark.parametrize("intruder", ["bob", ""])
@then
async def test_nothing_is_changed(desk: Desk, intruder: str, again: Use) -> None:
    """Neither the generation, by which sockets are replaced, nor marks, log, owner or expiry."""
    await desk.log.resume(SESSION, None, "ann")
    await desk.say("a", "b", "c")
    await desk.log.resume(SESSION, None, "ann")
    desk.redis.pexpire(SESSION, 60_000)
    before = desk.everything()
    assert len(before) > 1
    for _ in range(3):
        assert not await desk.may(intruder, again)
    after = desk.everything()

    assert after == before
    assert 0 < desk.redis.pttl(SESSION) <= 60_000
    resumed = await desk.log.resume(SESSION, None, "ann")
    assert (resumed.generation, resumed.head, len(resumed.page.entries)) == (3, 3, 3)


@uses
async def test_nothing_is_published(desk: Desk, use: Use) -> None:
    """Nor do those who listen notice."""
    await begun(desk.log, SESSION, "ann")
    pubsub = desk.redis.pubsub()
    pubsub.psubscribe("*")
    assert pubsub.get_message(timeout=5)["type"] == "psubscribe"
    assert not await desk.may("bob", use)
    desk.redis.publish("end", "1")
    assert pubsub.get_message(timeout=5)["channel"] == b"end"
    pubsub.close()


async def test_nothing_is_begun(desk: Desk) -> None:
    """Who reads a session that is not there begins none."""
    await desk.log.history(SESSION, None, "ann")
    await desk.log.history(SESSION, Position("e", 5), "ann")

    assert desk.redis.keys() == []


@uses
async def test_who_may_keeps_it_alive(desk: Desk, use: Use) -> None:
    """Each use puts off the end of the session; that of an administrator too."""
    await begun(desk.log, SESSION, "ann")
    for user in ("ann", ANY_USER):
        desk.redis.pexpire(SESSION, 60_000)
        assert await desk.may(user, use)
        assert desk.redis.pttl(SESSION) > TTL_MS - 60_000


# How long.


@uses
async def test_an_expired_session_is_free(desk: Desk, use: Use) -> None:
    """Who comes next has it, without anything that was in it."""
    await begun(desk.log, SESSION, "ann")
    await desk.say("a")
    desk.redis.delete(SESSION)
    assert await desk.may("bob", use)
    assert desk.owner == b"bob"

    assert not await desk.may("ann", use)
    assert (await desk.log.history(SESSION, None, "bob")).batch.entries == []


async def test_owners_outlive_a_restart(own_valkey: Valkey) -> None:
    """Another life of the server begins another epoch, and not another owner."""
    for life in range(3):
        target = parse_redis_url(own_valkey.url)
        async with running(open_store(target, "test", timeout_s=30)) as store:
            with own_valkey.client() as client:
                desk = Desk(store, client)
                if life == 0:
                    await begun(desk.log, SESSION, "ann")
                client.lpush(LIST, json.dumps({"action_id": f"l-{life}", "session_id": "s-1", "result": {}}))
                assert not await desk._mover.drain(LIST, "acme", 100)
                for use in USES:
                    assert not await desk.may("bob", use)
                    assert await desk.may("ann", use)
                assert desk.owner == b"ann"
        own_valkey.kill()
        own_valkey.start()

"""The link to Redis: replies in their places, and back by itself after every kind of loss."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link
from backplane.redis_client import parse_redis_url
from backplane.scripts import READ, Script
from backplane.slots import Address
from tests.support.valkey import Client, Valkey, eventually, running


def link_to(url: str, timeout_s: float = 5, **hooks: Any) -> Link:
    return Link(parse_redis_url(url), "under-test", timeout_s=timeout_s, **hooks)


def kill_connection(redis: Client, name: str = "under-test") -> None:
    """``CLIENT KILL``, as an operator or a proxy would."""
    [victim] = [client["id"] for client in redis.client_list() if client["name"] == name]
    redis.client_kill_filter(_id=victim)


# Commands.


async def test_replies_come_in_the_order_of_calls(link: Link) -> None:
    """Hundreds of calls in flight, each with its own reply; errors take their place in line."""
    calls = [link.call("ECHO", str(n)) if n % 7 else link.call("NOSUCH", n) for n in range(500)]
    replies = await asyncio.gather(*calls, return_exceptions=True)
    for n, reply in enumerate(replies):
        if n % 7:
            assert reply == str(n).encode()
        else:
            assert isinstance(reply, RedisRefused)


async def test_an_error_reply_is_refused_with_its_words(link: Link) -> None:
    """The operator sees what Redis said."""
    with pytest.raises(RedisRefused, match="ERR unknown command"):
        await link.call("NOSUCH")


async def test_a_cancelled_call_keeps_its_place(link: Link) -> None:
    """A caller that went away does not get its neighbour's reply shifted."""
    calls = [link.call("ECHO", str(n)) for n in range(9)]
    calls[3].cancel()
    calls[8].cancel()
    assert await link.call("ECHO", "last") == b"last"
    assert [await call for n, call in enumerate(calls) if n not in (3, 8)] == [
        b"0",
        b"1",
        b"2",
        b"4",
        b"5",
        b"6",
        b"7",
    ]


async def test_bytes_and_large_values_pass_unchanged(link: Link) -> None:
    """Every byte, and more than a socket takes at once."""
    value = bytes(range(256)) * 20_000
    await link.call("SET", b"key \xff\r\n", value)
    assert await link.call("GET", b"key \xff\r\n") == value


async def test_the_connection_has_its_name(link: Link, redis_client: Client) -> None:
    """CLIENT LIST tells an operator whose it is."""
    assert "test" in [client["name"] for client in redis_client.client_list()]
    assert link.up
    assert link.connects == 1


async def test_calls_beyond_the_limit_are_refused_at_once(link: Link, redis_client: Client) -> None:
    """A Redis that falls behind does not make a process's memory grow without end."""
    blocked = link.call("BLPOP", "nothing", 0)
    calls: list[asyncio.Future[Any]] = []
    while len(calls) < 15_000:
        calls.append(link.call("PING"))
    with pytest.raises(RedisUnavailable, match="wait for Redis already"):
        calls += [link.call("PING") for _ in range(15_000)]
    redis_client.lpush("nothing", "something")
    assert await blocked == [b"nothing", b"something"]
    assert set(await asyncio.gather(*calls)) == {b"PONG"}


# Scripts.


async def test_a_script_that_the_server_does_not_know_is_sent_to_it(link: Link, redis_client: Client) -> None:
    """After SCRIPT FLUSH, a restart or a failover, the next call brings the text along."""
    for _ in range(2):
        redis_client.script_flush()
        for _ in range(2):
            assert await link.script(READ, ["s", "s:log"], ["e1", 0, 10, 100]) == [b"", 0, 1, -1]
    assert redis_client.script_exists(READ.sha1) == [True]


async def test_another_error_of_a_script_is_no_reason_to_send_it_again(
    link: Link, redis_client: Client
) -> None:
    """A script that fails half-way is not run twice."""
    redis_client.set("s", "something else")
    await link.script(READ, ["x", "x:log"], ["e1", 0, 10, 100])
    redis_client.config_resetstat()
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        await link.script(READ, ["s", "s:log"], ["e1", 0, 10, 100])
    assert "cmdstat_eval" not in redis_client.info("commandstats")


def script_of(text: str, *, lineage: bool) -> Script:
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), lineage)


async def test_a_script_is_told_the_servers_lineage(link: Link, redis_client: Client) -> None:
    """By its digest and with its text alike: it must know which server's writes it goes on with."""
    told = redis_client.info("replication")["master_replid"][:16]
    assert link.lineage == told
    for text, lineage in (("return ARGV", True), ("return  ARGV", False)):
        script = script_of(text, lineage=lineage)
        for _ in range(2):
            before = [told.encode()] if lineage else []
            assert await link.script(script, ["key"], ["a", 7]) == [*before, b"a", b"7"]


# Pushes.


async def test_messages_are_handed_on_in_order(redis_url: str, redis_client: Client) -> None:
    """Pub/sub messages between replies disturb neither."""
    pushes: list[list[Any]] = []
    async with running(link_to(redis_url, on_push=pushes.append)) as link:
        link.tell("SUBSCRIBE", "c1", "c2")
        await link.call("PING")
        for n in range(100):
            redis_client.publish(f"c{n % 2 + 1}", n)
            assert await link.call("ECHO", n) == b"%d" % n
        await eventually(lambda: len(pushes) == 102)
        assert [push[2] for push in pushes if push[0] == b"message"] == [b"%d" % n for n in range(100)]
        link.tell("UNSUBSCRIBE", "c1", "c2", "never")
        assert await link.call("ECHO", "still in order") == b"still in order"


async def test_a_refused_subscription_does_not_shift_replies(
    valkey: Valkey, redis_url: str, redis_client: Client
) -> None:
    """A user without channels (Redis's default for new users): nobody is ever given another one's reply."""
    redis_client.execute_command(
        "ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "+@all", "resetchannels", "&allowed"
    )
    redis_client.mset({"mine": "mine", "yours": "yours"})
    try:
        async with running(link_to(valkey.url.replace("://", "://limited:secret@"))) as link:
            before = link.call("GET", "mine")
            link.tell("SUBSCRIBE", "allowed", "allowed")
            link.tell("SUBSCRIBE", "forbidden")
            after = [link.call("GET", name) for name in ("yours", "mine", "yours")]
            replies = await asyncio.gather(before, *after, return_exceptions=True)
            assert replies[0] == b"mine"
            for reply, expected in zip(replies[1:], (b"yours", b"mine", b"yours"), strict=True):
                assert reply == expected or isinstance(reply, RedisUnavailable)
            await eventually(lambda: "NOPERM" in link.last_error)  # the operator is told why
    finally:
        redis_client.execute_command("ACL", "DELUSER", "limited")


async def test_who_asked_is_told_of_a_refused_subscription(
    valkey: Valkey, redis_url: str, redis_client: Client
) -> None:
    """With somebody to tell, it costs no connection, and replies keep their places."""
    redis_client.execute_command(
        "ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", "+@all", "resetchannels", "&allowed"
    )
    refused: list[tuple[tuple[Any, ...], str]] = []
    try:
        url = valkey.url.replace("://", "://limited:secret@")
        on_refused = lambda args, words: refused.append((args, words))  # noqa: E731
        async with running(link_to(url, on_refused=on_refused)) as link:
            link.tell("SUBSCRIBE", "forbidden")
            link.tell("SUBSCRIBE", "allowed")
            assert await link.call("ECHO", "in order") == b"in order"
            assert link.connects == 1
        [(args, words)] = refused
        assert args == ("SUBSCRIBE", "forbidden")
        assert words.startswith("NOPERM")
    finally:
        redis_client.execute_command("ACL", "DELUSER", "limited")


async def test_what_the_server_unsubscribes_by_itself_is_nobodys_confirmation(
    redis_url: str, redis_client: Client
) -> None:
    """Words that nobody asked for (a slot that goes, a user that loses a right) shift no reply."""
    pushes: list[list[Any]] = []
    async with running(link_to(redis_url, on_push=pushes.append)) as link:
        assert link._wire is not None
        link.tell("SUBSCRIBE", "one", "two")
        await link.call("PING")
        link.tell("UNSUBSCRIBE", "two")
        link._wire.data_received(b">3\r\n$11\r\nunsubscribe\r\n$3\r\none\r\n:1\r\n")
        assert await asyncio.gather(*[link.call("ECHO", n) for n in range(3)]) == [b"0", b"1", b"2"]
        assert [push[:2] for push in pushes] == [
            [b"subscribe", b"one"],
            [b"subscribe", b"two"],
            [b"unsubscribe", b"one"],
            [b"unsubscribe", b"two"],
        ]


# Loss and return.


async def test_the_server_is_killed_and_comes_back(own_valkey: Valkey) -> None:
    """Calls fail at once while it is away; a second after it is back, so is the link, set up as before."""
    changes: list[bool] = []
    set_up: list[int] = []

    async def on_connect() -> None:
        set_up.append(await link.call("DBSIZE"))

    link = link_to(own_valkey.url, on_connect=on_connect, on_change=changes.append)
    async with running(link):
        await link.call("SET", "kept", "1")
        own_valkey.kill()
        await eventually(lambda: not link.up)
        with pytest.raises(RedisUnavailable, match="not connected to Redis"):
            link.call("PING")
        with pytest.raises(RedisUnavailable):
            await link.script(READ, ["s", "s:log"], ["e1", 0, 10, 100])
        link.tell("SUBSCRIBE", "nobody minds")
        assert changes == [True, False]
        await asyncio.to_thread(own_valkey.restart)
        began = time.monotonic()
        await asyncio.wait_for(link.wait_up(), 5)
        assert time.monotonic() - began < 1
        assert await link.call("GET", "kept") == b"1"
        assert changes == [True, False, True]
        assert set_up == [0, 1]
        assert link.connects == 2


async def test_it_waits_for_a_server_that_is_not_there_yet(own_valkey: Valkey) -> None:
    """A process that starts before its Redis connects as soon as it can."""
    own_valkey.kill()
    link = link_to(own_valkey.url)
    task = asyncio.create_task(link.run())
    await eventually(lambda: "onnect" in link.last_error and link.last_error != "not connected yet")
    assert not link.up
    await asyncio.to_thread(own_valkey.restart)
    await asyncio.wait_for(link.wait_up(), 5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_calls_in_flight_fail_when_the_connection_is_cut(redis_url: str, redis_client: Client) -> None:
    """Whether Redis did them is unknown, and nobody waits for ever."""
    async with running(link_to(redis_url)) as link:
        calls = [link.call("BLPOP", "nothing", 0), link.call("PING"), link.call("PING")]
        await eventually(lambda: redis_client.info("clients")["blocked_clients"] == 1)
        kill_connection(redis_client)
        for call in calls:
            with pytest.raises(RedisUnavailable, match="lost"):
                await call
        await link.wait_up()
        assert await link.call("PING") == b"PONG"
        assert link.connects == 2


async def test_wait_up_sees_a_loss_of_this_very_instant(redis_url: str) -> None:
    """A caller that tries again in a circle waits for the next connection and never spins on the lost one."""
    async with running(link_to(redis_url)) as link:
        assert link._wire is not None
        link._wire.abort("the network")
        await asyncio.sleep(0)  # the connection is lost by now, and the link's own task has not run yet
        with pytest.raises(RedisUnavailable):
            link.call("PING")
        await link.wait_up()
        assert await link.call("PING") == b"PONG"


async def test_a_server_that_stops_answering_is_dropped(own_valkey: Valkey) -> None:
    """Sockets stay open and nobody answers (SIGSTOP, a cut network): lost after the timeout."""
    reasons: list[str] = []

    def on_change(up: bool) -> None:
        if not up:
            reasons.append(link.last_error)

    link = link_to(own_valkey.url, timeout_s=0.3, on_change=on_change)
    async with running(link):
        own_valkey.freeze()
        began = time.monotonic()
        with pytest.raises(RedisUnavailable):
            await asyncio.wait_for(link.call("PING"), 5)
        assert 0.2 < time.monotonic() - began < 1.5
        await eventually(lambda: not link.up)
        assert reasons == ["connection to Redis lost: Redis said nothing for 0.3 s"]
        await eventually(lambda: link.last_error == "TimeoutError")  # it tries again, and that hangs too
        own_valkey.thaw()
        await asyncio.wait_for(link.wait_up(), 5)
        assert await link.call("PING") == b"PONG"


async def test_an_idle_server_is_not_dropped(redis_url: str) -> None:
    """Nobody calls for longer than the timeout: the link keeps itself alive."""
    async with running(link_to(redis_url, timeout_s=0.1)) as link:
        assert link._wire is not None
        heard_at = link._wire.heard_at
        await eventually(lambda: link._wire is not None and link._wire.heard_at > heard_at + 0.3)
        assert link.connects == 1


async def test_a_connection_lost_during_set_up_is_made_anew(redis_url: str, redis_client: Client) -> None:
    """A link is up only after its on_connect has been carried through."""
    tries: list[bool] = []
    changes: list[bool] = []

    async def on_connect() -> None:
        tries.append(link.up)
        if len(tries) == 1:
            kill_connection(redis_client)
            await link.call("PING")
        elif len(tries) == 2:
            await link.call("NOSUCH")
        elif len(tries) == 3:
            assert link._wire is not None
            kill_connection(redis_client)
            await link._wire.lost.wait()  # and then it has nothing more to say

    link = link_to(redis_url, on_connect=on_connect, on_change=changes.append)
    async with running(link):
        assert tries == [False, False, False, False]
        assert changes == [True]
        assert link.connects == 1


async def test_a_server_that_speaks_something_else(caplog: pytest.LogCaptureFixture) -> None:
    """An address of some other service is an error like others, and the link goes on trying."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    link = link_to(f"redis://127.0.0.1:{port}/0")
    task = asyncio.create_task(link.run())
    await eventually(lambda: "Protocol error" in link.last_error)
    assert not task.done()
    assert not link.up
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    server.close()
    await server.wait_closed()


async def test_stopping_tells_nobody_that_redis_was_lost(redis_url: str) -> None:
    """A process that ends is no outage."""
    changes: list[bool] = []
    async with running(link_to(redis_url, on_change=changes.append)) as link:
        pass
    assert changes == [True]
    assert not link.up


# Primaries and replicas.


@pytest.fixture
def replica(own_valkey: Valkey, tmp_path: Path) -> Iterator[Valkey]:
    """A replica of `own_valkey`, in step with it."""
    with own_valkey.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)
    server = Valkey(tmp_path / "replica", replicaof=f"127.0.0.1 {own_valkey.port}")
    server.start()
    with server.client() as client:
        deadline = time.monotonic() + 20
        while client.info("replication")["master_link_status"] != "up":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    yield server
    server.stop()


async def test_a_replica_is_refused_until_it_is_promoted(replica: Valkey) -> None:
    """What is written goes to a primary or nowhere; who is promoted begins a history of its own."""
    failures: list[str] = []
    link = link_to(replica.url, on_failure=failures.append)
    task = asyncio.create_task(link.run())
    await eventually(lambda: "is a replica" in link.last_error)
    assert not link.up
    with replica.client() as client:
        before = client.info("replication")["master_replid"]
        await asyncio.sleep(0.3)
        client.replicaof("NO", "ONE")
    await asyncio.wait_for(link.wait_up(), 5)
    await link.call("SET", "key", "value")
    assert failures == [f"127.0.0.1:{replica.port} is a replica, and only primaries take writes"]
    assert link.lineage != before[:16]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_primary_that_became_a_replica_is_left(own_valkey: Valkey, replica: Valkey) -> None:
    """Demoted under an open connection: the first write that it refuses shows it."""
    async with running(link_to(own_valkey.url)) as link:
        assert await link.call("SET", "key", "1") == b"OK"
        lineage = link.lineage
        with own_valkey.client() as client, replica.client() as new:
            new.replicaof("NO", "ONE")
            client.replicaof("127.0.0.1", replica.port)
            with pytest.raises(RedisRefused, match="READONLY"):
                await link.call("SET", "key", "2")
            await eventually(lambda: "is a replica" in link.last_error)
            assert not link.up
            client.replicaof("NO", "ONE")
        await asyncio.wait_for(link.wait_up(), 5)
        assert await link.call("GET", "key") == b"1"
        assert link.lineage != lineage


async def test_a_restarted_server_has_another_lineage(own_valkey: Valkey) -> None:
    """It may have lost its last writes, whatever its files say."""
    async with running(link_to(own_valkey.url)) as link:
        lineages = [link.lineage]
        for stop in (own_valkey.kill, own_valkey.stop):
            await asyncio.to_thread(stop)
            await eventually(lambda: not link.up)
            await asyncio.to_thread(own_valkey.start)
            await asyncio.wait_for(link.wait_up(), 5)
            lineages.append(link.lineage)
        assert len(set(lineages)) == 3
        assert {len(lineage) for lineage in lineages} == {16}


async def test_a_lost_connection_alone_is_no_other_lineage(redis_url: str, redis_client: Client) -> None:
    """The server has all that it ever had."""
    async with running(link_to(redis_url)) as link:
        before = link.lineage
        kill_connection(redis_client)
        await eventually(lambda: link.connects == 2)
        assert link.lineage == before


async def test_the_address_is_asked_for_before_every_connect(valkey: Valkey, own_valkey: Valkey) -> None:
    """Where a Sentinel names another server, the next connection goes there; without a name, none is made."""
    addresses = [Address("127.0.0.1", own_valkey.port), None, Address("127.0.0.1", valkey.port)]
    failures: list[str] = []

    async def locate() -> Address:
        address = addresses.pop(0)
        if address is None:
            raise RedisUnavailable("nobody knows")
        return address

    link = link_to(own_valkey.url, locate=locate, on_failure=failures.append)
    async with running(link):
        assert link.address.port == own_valkey.port
        link.abort("a test")
        await eventually(lambda: link.connects == 2)
        assert link.address.port == valkey.port
        assert failures == ["nobody knows"]
        assert addresses == []


# Where and who.


@pytest.fixture
async def user(valkey: Valkey, redis_client: Client) -> AsyncIterator[str]:
    """The address with a user and a password that has to be written with %."""
    redis_client.execute_command("ACL", "SETUSER", "ana", "reset", "on", ">p@ss:w/rd", "~*", "&*", "+@all")
    yield valkey.url.replace("://", "://ana:p%40ss%3Aw%2Frd@")
    redis_client.execute_command("ACL", "DELUSER", "ana")


async def test_user_and_password(user: str) -> None:
    """From the URL, decoded."""
    async with running(link_to(user)) as link:
        assert await link.call("ACL", "WHOAMI") == b"ana"


async def test_password_alone(own_valkey: Valkey) -> None:
    """requirepass without a user."""
    with own_valkey.client() as client:
        client.config_set("requirepass", "secret")
    async with running(link_to(own_valkey.url.replace("://", "://:secret@"))) as link:
        assert await link.call("ACL", "WHOAMI") == b"default"


async def test_a_wrong_password_is_told(user: str) -> None:
    """The link never comes up, and says what Redis said; the password is not in it."""
    link = link_to(user.replace("p%40ss", "other"))
    task = asyncio.create_task(link.run())
    await eventually(lambda: "WRONGPASS" in link.last_error)
    assert not link.up
    assert "other" not in link.last_error
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_another_database(valkey: Valkey, redis_client: Client) -> None:
    """The number in the URL is the one that is used."""
    async with running(link_to(valkey.url.replace("/0", "/3"))) as link:
        await link.call("SET", "key", "in 3")
    assert redis_client.get("key") is None
    assert redis_client.info("keyspace").keys() == {"db3"}


async def test_calls_during_set_up_reach_the_right_database(valkey: Valkey, redis_client: Client) -> None:
    """A caller that does not wait for the link to be up is refused, or served where it should be."""
    link = link_to(valkey.url.replace("/0", "/3"))
    task = asyncio.create_task(link.run())
    written = 0
    while not link.up:
        with contextlib.suppress(RedisUnavailable):
            link.call("SET", f"key {written}", "value").add_done_callback(lambda done: done.exception())
            written += 1
        await asyncio.sleep(0)
    await link.call("PING")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert written
    assert "db0" not in redis_client.info("keyspace")


async def test_a_unix_socket(own_valkey: Valkey, tmp_path: Any) -> None:
    """unix:// is served like TCP."""
    async with running(link_to(f"unix://{tmp_path}/valkey.sock")) as link:
        await link.call("SET", "key", "value")
    with own_valkey.client() as client:
        assert client.get("key") == b"value"


async def test_a_full_line_is_no_reason_to_drop_the_connection(redis_url: str, redis_client: Client) -> None:
    """The link's own question whether Redis lives needs no place where others wait for an answer already."""
    async with running(link_to(redis_url, timeout_s=30)) as link:
        calls = [link.call("BLPOP", "nothing", 0)]
        with contextlib.suppress(RedisUnavailable):
            while True:
                calls.append(link.call("PING"))
        assert link._wire is not None
        link._wire.ask()  # what the link does every so often; it would count a refusal as a loss
        redis_client.lpush("nothing", "something")
        assert (await asyncio.gather(*calls))[-1] == b"PONG"
        assert link.connects == 1

"""A socket from its request to its end: who may open it, what it is told, and what its client may say."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from backplane.connection_counts import Full, Place
from backplane.errors import QueueFull, RedisUnavailable
from gateway import open_connections
from gateway.listener import State
from gateway.tokens import issue_token
from tests.unit.gateway.fakes import (
    SESSION,
    masked,
    settle,
)
from tests.unit.gateway.sockets import BINARY, SECRET, TEXT, WHO, Client, Pod


@pytest.fixture
async def pod() -> Pod:
    return Pod()


# Opening.


async def test_greeting_then_history_then_live(pod: Pod) -> None:
    """The first message says where the client stands; what it lacks follows, and then what comes."""
    pod.log.append(4, SESSION)
    client = await pod.open(f"{WHO}&user_id=ann@x&cursor=e1:1")
    pod.say()
    ack, *rest = client.messages
    data = ack["data"]

    assert ack["type"] == "connection_ack"
    assert {name: data[name] for name in ("session_id", "tenant_id", "tenant_tier")} == {
        "session_id": "s-1",
        "tenant_id": "acme",
        "tenant_tier": "free",
    }
    assert data["connection_id"] == client.connection.connection_id != ""
    assert abs(data["server_time"] - time.time()) < 60
    assert data["heartbeat_s"] == 25.0
    assert data["cursor"] == "e1:1"
    assert data["resume"] == {"status": "replayed", "from": 1, "to": 4, "oldest": 1, "epoch": "e1"}
    assert data["limits"] == {
        "message_max_bytes": 65536,
        "sends_in_flight_max": 16,
        "messages_per_s": 20,
        "messages_burst": 100,
        "token_expires_at": None,
        "auth_grace_s": 10.0,
    }
    assert [message["metadata"]["seq"] for message in rest] == [2, 3, 4, 5]
    assert pod.sockets.opened == 1
    [owned] = pod.ownership.owned.values()
    assert (owned.tenant_id, owned.session_id, owned.user_id) == ("acme", "s-1", "ann@x")


async def test_reset_is_told(pod: Pod) -> None:
    """A log that no longer reaches back to the cursor says so: never a silent gap."""
    pod.log.append(5, SESSION)
    pod.log.trim(4, SESSION)
    client = await pod.open(f"{WHO}&cursor=e1:1")
    ack, *rest = client.messages

    assert ack["data"]["resume"] == {"status": "reset", "from": 3, "to": 5, "oldest": 4, "epoch": "e1"}
    assert [message["metadata"]["seq"] for message in rest] == [4, 5]


def in_header(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def in_subprotocol(token: str) -> dict[str, str]:
    return {"Sec_WebSocket_Protocol": f"orchestrator.v1, bearer.{token}"}


@pytest.mark.parametrize("place", [in_header, in_subprotocol])
async def test_token_in_a_header(place: Callable[[str], dict[str, str]]) -> None:
    """A token may come where a URL in a log does not show it, and says everything."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    token = issue_token(pod.settings, time.time(), tenant_id="acme", tier="advance")
    client = await pod.open("", **place(token))

    assert client.messages[0]["data"]["tenant_tier"] == "advance"
    assert client.answer[1].get("sec-websocket-protocol") == (
        "orchestrator.v1" if place is in_subprotocol else None
    )


async def test_token_in_the_query() -> None:
    """A browser's page that can set no header puts it there."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    token = issue_token(pod.settings, time.time(), tenant_id="acme", tier="free", sessions=["s-1"])
    client = await pod.open(f"token={token}")

    assert client.messages[0]["data"]["tenant_id"] == "acme"


@pytest.mark.parametrize(
    ("target", "code", "close_code"),
    [
        (f"/ws/s-1?{WHO}", "token_missing", 4501),
        ("/ws/s-1?token=a.b.c", "token_invalid", 4501),
        ("/ws/s-2?token={token}", "forbidden", 4503),
        ("/ws/s-1?token={token}&tenant_id=evil", "forbidden", 4503),
        ("/ws/s-1?token={token}&agent_id=secret", "forbidden", 4503),
        ("/ws/s-1?token={token}&agent_id=a*", "invalid_id", 4504),
        ("/ws/s-1?token={token}&cursor=hello", "invalid_cursor", 4504),
        ("/ws/s-1?token={token}&cursor=e1:-1", "invalid_cursor", 4504),
        ("/ws/?token={token}", "invalid_id", 4504),
        ("/ws/s-1?token={operator}", "forbidden", 4503),
        ("/ws/s-1?token={mute}", "scope_missing", 4503),
        ("/ws/s-1?token={token}&a=%zz", "bad_request", 4504),
    ],
)
async def test_refusals_that_a_client_must_understand(target: str, code: str, close_code: int) -> None:
    """Browsers hide the answer to a refused upgrade, so the reason is told over the accepted socket."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    token = issue_token(
        pod.settings, time.time(), tenant_id="acme", tier="free", sessions=["s-1"], agents=["sales"]
    )
    operator = issue_token(pod.settings, time.time(), tenant_id="*", tier="free")
    mute = issue_token(pod.settings, time.time(), tenant_id="acme", tier="free", scopes=["chat"])
    client = pod.asks(target.format(token=token, operator=operator, mute=mute))
    await settle()

    assert client.told == (code, [close_code])
    assert pod.log.calls == []
    assert pod.sockets.opened == 0
    assert pod.sockets.closed_by_code == {close_code: 1}
    client.lose()
    assert len(pod.sockets.wheel) == 0


@pytest.mark.parametrize(
    ("session", "query", "code"),
    [
        ("", WHO, "invalid_id"),
        ("a%2Fb", WHO, "invalid_id"),
        ("a:b", WHO, "invalid_id"),
        ("s-1", "tenant_tier=free", "missing_id"),
        ("s-1", "tenant_id=acme", "unknown_tier"),
        ("s-1", "tenant_id=acme&tenant_tier=gold", "unknown_tier"),
        ("s-1", f"{WHO}&user_id=a%20b", "invalid_id"),
    ],
)
async def test_bad_parameters(pod: Pod, session: str, query: str, code: str) -> None:
    """Without tokens too, what is no id, tier or session opens nothing."""
    client = pod.asks(f"/ws/{session}?{query}")
    await settle()

    assert client.told == (code, [4504])
    assert pod.log.calls == []


@pytest.mark.parametrize(
    "target", ["/", "/ws", "/wsx/s-1", "/api/ws/s-1", "/ws/a/b", "/ws/s-1/", "/%77s/s-1"]
)
async def test_other_addresses(pod: Pod, target: str) -> None:
    """A socket that is asked for elsewhere is a 404."""
    client = pod.asks(f"{target}?{WHO}")
    await settle()

    assert client.problem == (404, "not_found")


async def test_what_is_no_upgrade(pod: Pod) -> None:
    """A request that cannot become a socket is answered in HTTP, with what it would take."""
    client = pod.asks(f"/ws/s-1?{WHO}", Sec_WebSocket_Version="8")
    await settle()

    assert client.problem == (426, "unsupported_version")
    assert client.answer[1]["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    ("origin", "host", "ok"),
    [
        (None, "pod.test", True),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True),
        ("http://localhost", "localhost", True),
        ("https://evil.test", "127.0.0.1:8080", False),
        ("https://evil.test", "evil.test", False),
        ("null", "127.0.0.1", False),
    ],
)
async def test_pages_of_others_without_tokens(pod: Pod, origin: str | None, host: str, ok: bool) -> None:
    """With AUTH=none, a page of anyone's in a developer's browser must not talk to their pod."""
    client = pod.asks(f"/ws/s-1?{WHO}", Host=host, **({} if origin is None else {"Origin": origin}))
    await settle()

    if ok:
        assert client.messages[0]["type"] == "connection_ack"
    else:
        assert client.told == ("origin_not_allowed", [4503])


@pytest.mark.parametrize(
    ("origin", "ok"),
    [
        ("https://app.example.com", True),
        ("http://pod.test", True),
        ("https://app.example.com.evil.test", False),
    ],
)
async def test_pages_that_are_listed(origin: str, ok: bool) -> None:
    """A page of another host opens sockets if it is listed, with a token like everybody."""
    pod = Pod(auth="jwt", jwt_secret=SECRET, allowed_origins="https://app.example.com")
    client = pod.asks(f"/ws/s-1?token={pod.token()}", Origin=origin)
    await settle()

    assert client.messages[0]["type"] == ("connection_ack" if ok else "error")
    stranger = pod.asks("/ws/s-1", Origin=origin)
    await settle()
    assert stranger.told[0] == ("token_missing" if ok else "origin_not_allowed")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_draining(pod: Pod, when: str) -> None:
    """A pod that stops sends newcomers elsewhere, also those whose log it was asking when that began."""
    pod.log.gated = True
    pod.health.draining = when == "before"
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()
    assert pod.log.calls == ([] if when == "before" else ["resume"])
    pod.health.draining = True
    pod.log.release()
    await settle()

    assert client.problem == (503, "draining")
    assert client.answer[1]["retry-after"] == "1"
    assert pod.hub.sessions == 0


async def test_redis_is_away(pod: Pod) -> None:
    """Before the upgrade, an outage is a 503 that says when to come back."""
    pod.log.refusal = RedisUnavailable("away")
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()

    assert client.problem == (503, "redis_unavailable")
    assert client.answer[1]["retry-after"] == "1"
    assert pod.hub.sessions == 0


async def test_redis_does_not_answer() -> None:
    """A handshake takes no longer than its setting, and leaves nothing behind."""
    pod = Pod(handshake_timeout_s=0.001)
    pod.log.gated = True
    client = pod.asks(f"/ws/s-1?{WHO}")
    async with asyncio.timeout(5):
        await client.transport.wrote.wait()

    assert client.problem == (503, "redis_unavailable")
    assert pod.hub.sessions == 0


async def test_a_mistake_of_ours_while_opening(pod: Pod) -> None:
    """A client is never left hanging on an upgrade that nobody will answer."""
    pod.log.refusal = ZeroDivisionError("a mistake")
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()

    assert client.problem == (500, "internal_error")
    assert pod.logger.names == ["handshake_failed", "socket_refused"]


async def test_client_that_leaves_while_it_opens(pod: Pod) -> None:
    """A client that has gone before it was greeted was never here."""
    pod.log.gated = True
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()
    client.lose()
    pod.log.release()
    await settle()

    assert client.transport.data == b""
    assert (pod.sockets.opened, len(pod.sockets.wheel), pod.hub.sessions) == (0, 0, 0)
    assert pod.ownership.owned == {}


# Room, owners and tokens.


async def test_a_full_pod() -> None:
    """Before the upgrade, where a load balancer sees it and tries another pod."""
    pod = Pod(connections_max=1)
    first = await pod.open()
    second = pod.asks(f"/ws/s-2?{WHO}")
    await settle()
    assert second.problem == (503, "pod_full")
    assert (second.answer[1]["retry-after"], json.loads(second.answer[2])["limit"]) == ("1", "pod")
    assert (pod.log.calls, pod.counts.places) == (["resume"], [Place("acme", "s-1", None)])
    second.lose()
    first.lose()
    await settle()

    await pod.open()


async def test_a_crowded_session(pod: Pod) -> None:
    """Likewise, with the limit's name and when to come back."""
    pod.counts.full = Full("session", 50)
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()

    assert client.problem == (429, "too_many_connections")
    assert client.answer[1]["retry-after"] == "5"
    assert json.loads(client.answer[2])["limit"] == "session"
    assert pod.log.calls == []
    assert pod.refused == {"too_many_connections": 1}


async def test_an_address_that_opens_too_many() -> None:
    """It is refused before anybody looks at its token, and the address is the one behind the proxy."""
    pod = Pod(auth="jwt", jwt_secret=SECRET, handshakes_per_address=1, trusted_proxies="10.0.0.1")
    forwarded = {"X_Forwarded_For": "93.184.216.34"}
    first = pod.asks("/ws/s-1", "10.0.0.1", **forwarded)
    second = pod.asks("/ws/s-1", "10.0.0.1", **forwarded)
    other = pod.asks("/ws/s-1", "10.0.0.1", X_Forwarded_For="93.184.216.34, 93.184.216.35")
    direct = pod.asks("/ws/s-1", "93.184.216.36", **forwarded)
    await settle()

    assert [client.told[0] for client in (first, other, direct)] == ["token_missing"] * 3
    assert second.problem == (429, "rate_limited")
    assert second.answer[1]["retry-after"] == "60"
    assert json.loads(second.answer[2])["limit"] == "handshakes"


async def test_refused_sockets_are_counted_out() -> None:
    """Whatever they were refused for."""
    pod = Pod(auth="jwt", jwt_secret=SECRET, connections_max=1, connections_per_address=1)
    for target in ("/ws/s-1", "/ws/s-1?token=a.b.c", f"/ws/s-1?token={pod.token()}&cursor=x", "/ws/a/b"):
        client = pod.asks(target, "93.184.216.34")
        await settle()
        assert client.transport.data
        client.lose()
        await settle()
    pod.log.refusal = RedisUnavailable("away")
    client = pod.asks(f"/ws/s-1?token={pod.token()}", "93.184.216.34")
    await settle()
    assert client.problem == (503, "redis_unavailable")
    client.lose()
    await settle()
    pod.log.refusal = None

    assert pod.counts.places == []
    await pod.open(f"token={pod.token()}")


async def test_a_session_of_another_user() -> None:
    """Its owner is told of nothing, and the other one why it is not his."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    ann = await pod.open(f"token={pod.token(user_id='ann')}")
    for token in (
        pod.token(user_id="bob"),
        pod.token(),
        pod.token(user_id="bob", scopes=["listen", "admin"]),
    ):
        client = pod.asks(f"/ws/s-1?token={token}")
        await settle()
        assert client.told == ("session_taken", [4503])
        client.lose()
    await settle()
    assert pod.hub.sessions == 1
    assert ann.connection.generation == pod.log.record().generation == 1
    for token in (pod.token(user_id="ann"), pod.token(scopes=["listen", "admin"])):
        await pod.open(f"token={token}")

    assert [place.user_id for place in pod.counts.places] == ["ann", "ann", None]


async def test_a_user_who_is_only_said() -> None:
    """A header or parameter makes nobody the owner of anything."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    await pod.open(f"token={pod.token(user_id='ann')}")
    client = pod.asks(f"/ws/s-1?token={pod.token()}&user_id=ann")
    await settle()

    assert client.told == ("session_taken", [4503])


@pytest.mark.parametrize(
    ("header", "subprotocol", "query", "ok"),
    [
        ("a", None, None, True),
        ("a", "a", "a", True),
        ("a", "b", None, False),
        ("a", None, "b", False),
        (None, "a", "b", False),
        ("a", None, "", False),
        (None, None, "", None),
        ("a", "", None, False),
    ],
)
async def test_several_tokens(
    header: str | None, subprotocol: str | None, query: str | None, ok: bool | None
) -> None:
    """The same one may be said twice; of two nobody can know which one a proxy has checked."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    tokens = {"a": pod.token(), "b": pod.token(user_id="eve"), "": ""}
    headers = {} if header is None else {"Authorization": f"Bearer {tokens[header]}"}
    if subprotocol is not None:
        headers["Sec_WebSocket_Protocol"] = f"orchestrator.v1, bearer.{tokens[subprotocol]}"
    client = pod.asks("/ws/s-1" + ("" if query is None else f"?token={tokens[query]}"), **headers)
    await settle()

    if ok:
        assert client.messages[0]["type"] == "connection_ack"
    else:
        assert client.told[0] == ("token_missing" if ok is None else "bad_request")


# Several connections of a session.


async def test_shared_sessions(pod: Pod) -> None:
    """By default all sockets of a session get everything, and nobody is told to go."""
    one, two = await pod.open(), await pod.open()
    pod.say()

    assert [client.messages[-1]["metadata"]["seq"] for client in (one, two)] == [1, 1]
    assert pod.log.replaced == []


async def test_newer_connections_replace() -> None:
    """With SESSION_POLICY=replace every pod is told which connections are too old now."""
    pod = Pod(session_policy="replace")
    old = await pod.open()
    await pod.open()
    assert pod.log.replaced == [(SESSION, 1), (SESSION, 2)]
    pod.hub.on_push([b"message", SESSION.encode(), b"!2"])

    assert old.close_codes == [4003]


async def test_redis_goes_away_right_after_opening() -> None:
    """An accepted socket that could not replace the others is closed, to try again."""
    pod = Pod(session_policy="replace")
    pod.log.gated = True
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()
    pod.log.take("resume").finish()
    await settle()
    pod.log.take("replace_older").fail()
    await settle()

    assert client.close_codes == [1013]


async def test_replaced_before_it_could_replace() -> None:
    """A socket that is being closed already gets no HTTP answer between its frames."""
    pod = Pod(session_policy="replace")
    pod.log.gated = True
    client = pod.asks(f"/ws/s-1?{WHO}")
    await settle()
    pod.log.take("resume").finish()
    await settle()
    client.connection.replaced()
    pod.log.take("replace_older").fail()
    await settle()

    assert client.close_codes == [4003]
    assert client.transport.data.count(b"HTTP/1.1") == 1


# Ending.


async def test_goodbye_of_the_client(pod: Pod) -> None:
    """What a client was sent is noted before its Close is answered, so that it is sent nothing twice."""
    client = await pod.open()
    pod.say(2)
    pod.log.gated = True
    client.close(3001)
    await settle()
    assert client.close_codes == []
    assert [call.name for call in pod.log.pending] == ["mark_sent"]
    pod.log.release()
    await settle()

    assert client.close_codes == [3001]
    assert client.transport.closing
    again = await pod.open()
    assert [message["type"] for message in again.messages] == ["connection_ack"]
    assert again.messages[0]["data"]["resume"]["status"] == "fresh"


async def test_what_comes_behind_a_goodbye_is_kept(pod: Pod) -> None:
    """A client reads nothing after its Close, so what comes before the answer counts as sent to nobody."""
    client = await pod.open()
    pod.say()
    pod.log.gated = True
    client.close()
    await settle()
    pod.say(2)
    pod.log.release()
    await settle()
    assert client.close_codes == [1000]

    again = await pod.open()
    seqs = [message["metadata"].get("seq") for message in again.messages]
    assert seqs == [None, 2, 3]


async def test_goodbye_while_redis_is_away(pod: Pod) -> None:
    """A client may leave whenever it wants."""
    client = await pod.open()
    pod.say()
    pod.log.refusal = RedisUnavailable("away")
    client.close()
    await settle()

    assert client.close_codes == [1000]


async def test_gone_is_gone(pod: Pod) -> None:
    """A lost connection is off the wheel, off its session and nobody's."""
    client = await pod.open()
    client.lose()
    await settle()

    assert (len(pod.sockets.wheel), pod.hub.sessions, pod.ownership.owned) == (0, 0, {})
    assert pod.sockets.closed_by_code == {1006: 1}
    assert pod.sockets.open_by_kind == {"socket": 0, "event_stream": 0}


async def test_asked_to_reconnect(pod: Pod) -> None:
    """A client that has to move is told why and when, and then closed with a code that says come back."""
    client = await pod.open()
    pod.sockets.ask_to_reconnect(client.connection, "the pod restarts")
    reconnect = client.messages[-1]

    assert reconnect["type"] == "reconnect"
    assert reconnect["data"]["reason"] == "the pod restarts"
    assert client.close_codes == [1012]


@pytest.mark.parametrize("jitter_s", [0.0, 0.5])
async def test_waits_are_spread(jitter_s: float) -> None:
    """Clients that are sent away together are told different times to come back, within the setting."""
    pod = Pod(reconnect_jitter_s=jitter_s)
    clients = [await pod.open(session=f"s-{n}") for n in range(50)]
    for client in clients:
        client.connection.restart("the session's log began anew")
    waits = [client.messages[-1]["data"]["after_ms"] for client in clients]

    assert all(isinstance(after_ms, int) and 0 <= after_ms <= jitter_s * 1000 for after_ms in waits)
    assert len(set(waits)) > 25 or not jitter_s
    assert max(waits) - min(waits) > 150 or not jitter_s


async def test_retired_when_what_it_was_sent_is_noted(pod: Pod) -> None:
    """Or a client without a cursor that is on another pod at once would be sent all of it again."""
    client = await pod.open()
    pod.say(2)
    pod.log.gated = True
    for _ in range(2):  # the second time it is on its way already
        client.connection.retire("the pod restarts")
    await settle()
    assert [message["type"] for message in client.messages][-1] != "reconnect"
    assert [call.name for call in pod.log.pending] == ["mark_sent"]
    pod.say()  # too late for this socket: it is not noted for it, and so must not be sent
    pod.log.release()
    await settle()

    assert [message["type"] for message in client.messages][-2:] == ["t", "reconnect"]
    assert client.close_codes == [1012]
    again = await pod.open()
    assert [message["metadata"].get("seq") for message in again.messages] == [None, 3]


async def test_retired_while_redis_does_not_answer(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that is silent keeps nobody, but its answer is awaited before the process ends."""
    monkeypatch.setattr(open_connections, "_NOTING_S", 0.001)
    client = await pod.open()
    pod.say(2)
    pod.log.gated = True
    client.connection.retire("the pod restarts")
    async with asyncio.timeout(5):
        while client.transport.data.count(b"reconnect") == 0:
            client.transport.wrote.clear()
            await client.transport.wrote.wait()
    noted = asyncio.create_task(pod.sockets.noted())
    await settle()
    assert not noted.done()
    pod.log.release()
    await settle()

    assert noted.done()
    assert pod.log.record().sent == 2


async def test_notes_of_lost_sockets_are_awaited(pod: Pod) -> None:
    """Also of those that were cut off while the pod stopped."""
    client = await pod.open()
    pod.say(2)
    pod.log.gated = True
    client.lose()
    noted = asyncio.create_task(pod.sockets.noted())
    await settle()
    assert not noted.done()
    pod.log.release()
    await settle()

    assert noted.done()
    assert pod.log.record().sent == 2


async def test_a_socket_with_a_send_in_flight_is_busy(pod: Pod) -> None:
    """Until its ack is written; so is one of which something has not left the process."""
    client = await pod.open(f"{WHO}&agent_id=sales")
    assert (client.connection.attached, client.connection.busy) == (True, False)
    pod.queue.gate.clear()
    client.say(type="chat", message="hello", ref=1)
    await settle()
    assert client.connection.busy
    pod.queue.gate.set()
    await settle()
    assert client.messages[-1]["type"] == "ack"
    assert not client.connection.busy
    client.transport.buffered = 10
    assert client.connection.busy
    client.transport.buffered = 0
    client.connection.retire("the pod restarts")

    assert not client.connection.attached


async def test_closing_all_gives_acks_their_time(pod: Pod) -> None:
    """The pace lets a socket that waits for its ack be the last, though it was the first to come."""
    busy = await pod.open(f"{WHO}&agent_id=sales")
    idle = await pod.open()
    pod.queue.gate.clear()
    busy.say(type="chat", message="hello", ref=1)
    await settle()
    closing = asyncio.create_task(pod.sockets.close_all(0.4, "the pod restarts", asyncio.Event()))
    await settle()
    assert (busy.close_codes, idle.close_codes) == ([], [1012])
    pod.queue.gate.set()
    idle.lose()
    while not busy.close_codes:
        busy.transport.wrote.clear()
        await busy.transport.wrote.wait()
    busy.lose()
    await closing

    assert [message["type"] for message in busy.messages][-2:] == ["ack", "reconnect"]


async def test_closing_all_waits_for_all(pod: Pod) -> None:
    """A pod that stops waits until its clients have taken their leave, and not a moment longer."""
    clients = [await pod.open() for _ in range(3)]
    closing = asyncio.create_task(pod.sockets.close_all(0.5, "the pod restarts", asyncio.Event()))
    while clients[2].close_codes == []:
        clients[2].transport.wrote.clear()
        await clients[2].transport.wrote.wait()
    assert [client.close_codes for client in clients] == [[1012]] * 3
    for client in clients[:2]:
        client.lose()
    await settle()
    assert not closing.done()
    clients[2].lose()
    await settle()

    assert closing.done()
    assert pod.logger.names == []
    assert pod.sockets.closed_by_code == {1012: 3}


async def test_closing_all_does_not_wait_for_ever(pod: Pod) -> None:
    """A client that does not go is left behind, and counted in the log."""
    await pod.open()
    await pod.sockets.close_all(0.001, "the pod restarts", asyncio.Event())

    assert pod.logger.events == [("warning", "sockets_left", {"sockets": 1})]


async def test_closing_all_while_redis_does_not_answer(pod: Pod) -> None:
    """Whose note is not answered by the end is asked to come back all the same."""
    client = await pod.open()
    pod.say()
    pod.log.gated = True
    await pod.sockets.close_all(0.001, "the pod restarts", asyncio.Event())

    assert client.messages[-1]["type"] == "reconnect"
    assert client.close_codes == [1012]


async def test_closing_all_in_a_hurry(pod: Pod) -> None:
    """All are closed at once; those who do not answer have a moment, not the whole time."""
    clients = [await pod.open() for _ in range(5)]
    hurry = asyncio.Event()
    closing = asyncio.create_task(pod.sockets.close_all(3_600, "the pod restarts", hurry))
    await settle()
    assert [len(client.close_codes) for client in clients].count(1) == 1
    hurry.set()
    await settle()
    assert [client.close_codes for client in clients] == [[1012]] * 5
    assert not closing.done()
    for client in clients:
        client.lose()
    await settle()

    assert closing.done()
    assert pod.logger.names == []


async def test_closing_none(pod: Pod) -> None:
    """A pod without sockets stops at once."""
    await pod.sockets.close_all(60, "the pod restarts", asyncio.Event())


async def test_ownership_is_written_anew(pod: Pod) -> None:
    """After an outage of Redis the pod's own sockets are what is entered, whatever stood there."""
    stays, goes = await pod.open(), await pod.open(session="s-2")
    goes.lose()
    pod.ownership.owned.clear()
    await pod.sockets.rewrite_ownership()

    assert list(pod.ownership.owned) == [stays.connection.connection_id]


async def test_closed_while_ownership_is_written_anew(pod: Pod) -> None:
    """A socket that goes meanwhile is not entered after it was struck out."""
    await pod.open()
    goes = await pod.open()

    def leave() -> None:
        pod.ownership.on_rewritten = list
        goes.lose()

    pod.ownership.on_rewritten = leave
    await pod.sockets.rewrite_ownership()

    assert goes.connection.connection_id not in pod.ownership.owned
    assert len(pod.ownership.owned) == 1


# Talking.


def last(client: Client) -> dict[str, Any]:
    return client.messages[-1]


async def test_ping(pod: Pod) -> None:
    """A client's own ping is answered, under its own ref."""
    client = await pod.open()
    client.say(type="ping", ref="p-1")

    assert (last(client)["type"], last(client)["data"]) == ("pong", {"ref": "p-1"})


@pytest.mark.parametrize("ref", [None, "c-1"])
async def test_chat(pod: Pod, ref: str | None) -> None:
    """A message goes to its agent's queue; who gave a ref is told its task."""
    client = await pod.open(f"{WHO}&agent_id=sales")
    client.say(type="chat", message="hello", ref=ref)
    await settle()
    [action] = pod.queue.actions

    assert (action["message"], action["execution_context"]["primary_agent_id"]) == ("hello", "sales")
    assert action["metadata"]["headers"] == {"X-Request-Source": "websocket"}
    if ref is None:
        assert last(client)["type"] == "connection_ack"
    else:
        assert last(client)["type"] == "ack"
        assert last(client)["data"]["ref"] == ref
        assert last(client)["task_id"] == last(client)["data"]["task_id"] == action["task_id"]
    assert client.connection.in_flight == 0
    assert pod.conversation.sends_in_flight == set()


async def test_chat_names_its_agent(pod: Pod) -> None:
    """The message's agent comes before the connection's."""
    client = await pod.open(f"{WHO}&agent_id=sales")
    client.say(type="chat", message="hello", agent_id="support")
    await settle()

    assert pod.queue.actions[0]["execution_context"]["primary_agent_id"] == "support"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "chat", "message": "hello"}, "missing_id"),
        ({"type": "chat", "message": "hello", "agent_id": "a b"}, "invalid_id"),
        ({"type": "chat", "message": ""}, "invalid_field"),
        ({"type": "dance"}, "unknown_type"),
        ({"type": "ack", "seq": 1}, "invalid_field"),
        ({"type": "ack", "seq": 10**4000}, "invalid_field"),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_what_is_wrong_is_answered(pod: Pod, message: dict[str, Any], code: str) -> None:
    """Nothing that a client says ends its connection: it is told what was wrong with which message."""
    client = await pod.open()
    client.say(**message, ref="m-1")
    await settle()

    assert last(client)["type"] == "error"
    assert (last(client)["data"]["error_code"], last(client)["data"]["ref"]) == (code, "m-1")
    assert client.connection.state == State.OPEN
    assert pod.queue.pushed == []


@pytest.mark.parametrize(
    ("refusal", "code", "retryable"),
    [
        (RedisUnavailable("away"), "redis_unavailable", True),
        (QueueFull("full"), "queue_full", True),
        (ZeroDivisionError("a mistake"), "internal_error", False),
    ],
)
async def test_chat_that_cannot_be_queued(pod: Pod, refusal: Exception, code: str, retryable: bool) -> None:
    """A send that fails is told to its sender, with whether trying again helps."""
    client = await pod.open(f"{WHO}&agent_id=sales")
    pod.queue.refusal = refusal
    client.say(type="chat", message="hello", ref="m-1")
    await settle()
    data = last(client)["data"]

    assert (data["error_code"], data["ref"], data["retryable"]) == (code, "m-1", retryable)
    assert client.connection.in_flight == 0
    assert pod.logger.names == (["message_failed"] if code == "internal_error" else [])


async def test_agent_that_the_token_does_not_allow() -> None:
    """A socket may speak only to its token's agents."""
    pod = Pod(auth="jwt", jwt_secret=SECRET)
    token = issue_token(pod.settings, time.time(), tenant_id="acme", tier="free", agents=["sales"])
    client = await pod.open(f"token={token}")
    client.say(type="chat", message="hello", agent_id="secret", ref=1)
    await settle()

    assert last(client)["data"]["error_code"] == "forbidden"
    assert pod.queue.pushed == []


async def test_too_many_in_flight() -> None:
    """Sends that wait for Redis are bounded per socket; the next is told when to come back."""
    pod = Pod(sends_in_flight_max=2)
    client = await pod.open(f"{WHO}&agent_id=sales")
    pod.queue.gate.clear()
    for number in range(3):
        client.say(type="chat", message="hello", ref=number)
    await settle()
    data = last(client)["data"]
    assert (data["error_code"], data["ref"], data["retryable"]) == ("too_many_in_flight", 2, True)
    assert data["retry_after_ms"] == 1_000
    assert len(pod.conversation.sends_in_flight) == 2

    pod.queue.gate.set()
    await settle()
    client.say(type="chat", message="hello", ref=3)
    await settle()
    assert [message["data"]["ref"] for message in client.messages if message["type"] == "ack"] == [0, 1, 3]


async def test_client_that_leaves_before_its_ack(pod: Pod) -> None:
    """A message that was said is sent, though nobody is there to be told."""
    client = await pod.open(f"{WHO}&agent_id=sales")
    pod.queue.gate.clear()
    client.say(type="chat", message="hello", ref=1)
    await settle()
    client.lose()
    pod.queue.gate.set()
    await settle()

    assert len(pod.queue.pushed) == 1
    assert pod.logger.names == []


async def test_ack_of_messages(pod: Pod) -> None:
    """What a client acknowledges is what counts as sent from then on."""
    client = await pod.open()
    pod.say(3)
    client.say(type="ack", seq=2, ref="a")
    assert (last(client)["type"], last(client)["data"]) == ("ack", {"ref": "a", "seq": 2})
    await pod.hub.marks.flush()
    client.say(type="ack", seq=1)
    client.say(type="ack", seq=3)
    await pod.hub.marks.flush()

    assert [mark.position.seq for mark in pod.log.marks] == [2, 3]


async def test_frames_that_are_no_messages() -> None:
    """Binary and too large messages are told as such; a client that goes on is closed."""
    pod = Pod(message_max_bytes=1_024, bad_frames_max=3)
    client = await pod.open()
    client.connection.data_received(masked(BINARY, b"123"))
    client.connection.data_received(masked(TEXT, b"x" * 2_000))
    codes = [message["data"]["error_code"] for message in client.messages[1:]]
    assert codes == ["not_text", "message_too_large"]
    assert client.close_codes == []
    client.connection.data_received(masked(BINARY, b"123"))

    assert client.close_codes == [4505]

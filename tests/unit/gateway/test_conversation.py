"""What an open socket's client may say, how fast, and under which token."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from backplane.errors import RedisUnavailable
from backplane.rate_limiter import Charged, Standing
from gateway import auth, conversation
from gateway.errors import redis_unavailable
from gateway.identity import ANYONE, Grant
from gateway.listener import State
from gateway.topics import keeps_topic
from tests.unit.gateway.fakes import Clock, masked, settle
from tests.unit.gateway.sockets import BINARY, SECRET, WHO, Client, Pod

OVER = Charged(False, 6.0, ("minute",), (Standing("minute", 10, 60, 0, 60.0),))


def last(client: Client) -> dict[str, Any]:
    return client.messages[-1]


def codes(client: Client) -> list[str]:
    """Of the errors that a client was told, in order."""
    return [message["data"]["error_code"] for message in client.messages if message["type"] == "error"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The loop's, as conversations read it."""
    clock = Clock()
    loop = SimpleNamespace(time=clock.time)
    monkeypatch.setattr(
        conversation, "asyncio", SimpleNamespace(**{**vars(asyncio), "get_running_loop": lambda: loop})
    )
    return clock


# How fast.


async def test_messages_one_after_the_other(clock: Clock) -> None:
    """After a pause so many at once, and then as many in each second as are set."""
    client = await Pod(messages_per_s=10, messages_burst=5).open()
    for number in range(7):
        client.say(type="ping", ref=number)
    pongs = [message["data"]["ref"] for message in client.messages if message["type"] == "pong"]
    assert pongs == [0, 1, 2, 3, 4]
    data = last(client)["data"]
    assert (data["error_code"], data["limit"], data["ref"]) == ("rate_limited", "messages", 6)
    assert (data["retryable"], data["retry_after_ms"]) == (True, 100)
    clock.now += 0.1
    client.say(type="ping", ref="later")
    assert (last(client)["type"], last(client)["data"]["ref"]) == ("pong", "later")
    client.say(type="ping", ref="too soon")

    assert codes(client) == ["rate_limited"] * 3
    assert client.close_codes == []


async def test_what_is_ignored_is_not_done(clock: Clock) -> None:
    """A chat over the limit is not sent, and the client knows which one it was."""
    pod = Pod(messages_per_s=1, messages_burst=1)
    client = await pod.open(f"{WHO}&agent_id=sales")
    for number in range(3):
        client.say(type="chat", message="hello", ref=number)
    await settle()

    assert len(pod.queue.pushed) == 1
    errors = [message["data"]["ref"] for message in client.messages if message["type"] == "error"]
    assert errors == [1, 2]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "ping"},
        {"type": "pong"},
        {"type": "chat", "message": "hello", "agent_id": "sales"},
        {"type": "auth", "token": "a.b.c"},
        {"type": "cancel", "task_id": "t-1"},
        {"type": "dance"},
        {"type": "ack", "seq": 99},
        {"type": "ack", "seq": 0},
        {},
    ],
    ids=str,
)
async def test_every_message_counts(clock: Clock, message: dict[str, Any]) -> None:
    """Whatever it is, and whatever is wrong with it."""
    client = await Pod(messages_per_s=1, messages_burst=2).open()
    client.say(type="ack", seq=0)
    for _ in range(2):
        client.say(**message)
    client.say(type="ping", ref="one more")
    await settle()

    [told] = [message for message in client.messages if message["data"].get("ref") == "one more"]
    assert (told["type"], told["data"]["error_code"]) == ("error", "rate_limited")


async def test_acks_of_what_was_sent_are_free(clock: Clock) -> None:
    """There are no more of them than messages that came; the same again is not free."""
    pod = Pod(messages_per_s=1, messages_burst=2)
    client = await pod.open()
    pod.say(10)
    for seq in range(1, 11):
        client.say(type="ack", seq=seq)
    assert codes(client) == []
    for _ in range(3):
        client.say(type="ack", seq=10)

    assert codes(client) == ["rate_limited"]


async def test_each_socket_has_its_own_pace(clock: Clock) -> None:
    """One that is too fast slows nobody else."""
    pod = Pod(messages_per_s=1, messages_burst=1)
    fast, slow = await pod.open(), await pod.open()
    for _ in range(5):
        fast.say(type="ping", ref=1)
    slow.say(type="ping", ref=1)

    assert (len(codes(fast)), codes(slow)) == (4, [])


async def test_without_a_pace() -> None:
    """0 is no limit."""
    client = await Pod(messages_per_s=0).open()
    for number in range(1_000):
        client.say(type="ping", ref=number)

    assert codes(client) == []


# Who does not slow down.


async def test_strikes(clock: Clock) -> None:
    """Who goes on although told to wait is closed, with a code that says why."""
    pod = Pod(messages_per_s=1, messages_burst=1, rate_limit_patience=3)
    client = await pod.open()
    for _ in range(3):
        client.say(type="ping")
    assert client.close_codes == []
    client.say(type="ping")

    assert client.close_codes == [4029]
    assert codes(client) == ["rate_limited"] * 3
    assert pod.refused == {"rate_limited": 3}
    assert client.connection.state == State.CLOSING


async def test_strikes_are_forgiven(clock: Clock) -> None:
    """Half a minute without one, and it is as if there had been none; before, they add up."""
    client = await Pod(messages_per_s=100, messages_burst=1, rate_limit_patience=3).open()

    def strike() -> None:
        for _ in range(2):
            client.say(type="ping")

    for _ in range(5):
        strike()
        clock.now += 29.9
        strike()
        clock.now += 30.0
    assert client.close_codes == []
    for _ in range(3):
        strike()
        clock.now += 29.0

    assert client.close_codes == [4029]


async def test_sends_over_their_limit_are_strikes_too(clock: Clock) -> None:
    """A client that floods the tenant's quota is slowed like one that floods its socket."""
    pod = Pod(rate_limit_patience=3)
    pod.limiter.answer = OVER
    client = await pod.open(f"{WHO}&agent_id=sales")
    for number in range(3):
        assert client.close_codes == []
        client.say(type="chat", message="hello", ref=number)
        await settle()

    assert codes(client) == ["rate_limited"] * 3
    assert [last_one["data"]["limit"] for last_one in client.messages[1:]] == ["minute"] * 3
    assert client.close_codes == [4029]
    assert pod.queue.pushed == []


async def test_who_gets_some_through_is_no_flood(clock: Clock) -> None:
    """A client that is a little over its limit is slowed; each message that is taken makes up for one."""
    pod = Pod(rate_limit_patience=3)
    client = await pod.open(f"{WHO}&agent_id=sales")
    taken = pod.limiter.answer

    async def chat(answer: Charged | Exception) -> None:
        pod.limiter.answer = answer
        client.say(type="chat", message="hello")
        await settle()

    for _ in range(10):
        await chat(taken)
        await chat(OVER)
    await chat(OVER)
    assert client.close_codes == []
    await chat(taken)
    await chat(OVER)
    assert client.close_codes == []
    await chat(OVER)

    assert client.close_codes == [4029]
    assert codes(client) == ["rate_limited"] * 13


async def test_other_errors_are_no_strikes(clock: Clock) -> None:
    """A client that is wrong is not one that is too fast."""
    pod = Pod(rate_limit_patience=2, sends_in_flight_max=1, bad_frames_max=100)
    client = await pod.open(f"{WHO}&agent_id=sales")
    pod.queue.gate.clear()
    for _ in range(4):
        client.say(type="dance")
        client.say(type="chat", message="hello")
        client.connection.data_received(masked(BINARY, b"1"))
    await settle()
    pod.queue.gate.set()
    await settle()

    assert {"unknown_type", "too_many_in_flight", "not_text"} == set(codes(client))
    assert client.close_codes == []


# A token that ends.


class Time:
    """The time of day, as tokens' ends are compared with it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
def pod() -> Pod:
    return Pod(auth="jwt", jwt_secret=SECRET)


async def opened(pod: Pod, session: str = "s-1", **token: Any) -> Client:
    return await pod.open(f"token={pod.token(**token)}&agent_id=sales", session)


async def renew(client: Client, token: str, ref: Any = "new") -> dict[str, Any]:
    """What comes of a new token."""
    client.say(type="auth", token=token, ref=ref)
    await settle()
    answer: dict[str, Any] = next(
        message for message in reversed(client.messages) if message["data"].get("ref") == ref
    )
    return answer


async def chat(pod: Pod, client: Client) -> str:
    """The queue that a chat gets to, or why it does not."""
    before = len(pod.queue.pushed)
    client.say(type="chat", message="hello", ref="chat")
    await settle()
    if len(pod.queue.pushed) > before:
        name: str = pod.queue.actions[-1]["queue_metadata"]["queue_name"]
        return name.rpartition(":")[2]
    assert last(client)["data"]["ref"] == "chat"
    return codes(client)[-1]


async def test_a_token_that_has_expired(pod: Pod, later: Time) -> None:
    """Its socket may send nothing more; it goes on listening until it is closed."""
    client = await opened(pod, ttl_s=60)
    assert await chat(pod, client) == "free"
    later.ahead = 70
    assert await chat(pod, client) == "token_expired"
    assert client.close_codes == []
    assert last(client)["data"]["retryable"] is False
    pod.say()

    assert last(client)["type"] == "t"


async def test_expiry_is_told_and_carried_out(pod: Pod, later: Time) -> None:
    """The client has the grace to bring a new token, and is closed after it."""
    client = await opened(pod, ttl_s=60)
    ends = client.messages[0]["data"]["limits"]["token_expires_at"]
    assert ends == pytest.approx(time.time() + 60, abs=5)
    pod.sockets.expiries.turn(ends - 1)
    assert codes(client) == []
    pod.sockets.expiries.turn(ends)
    data = last(client)["data"]
    assert (data["error_code"], data["retryable"], data["retry_after_ms"]) == ("token_expired", True, 0)
    assert "10 s" in data["error"]
    pod.sockets.expiries.turn(ends + 9)
    assert client.close_codes == []
    pod.sockets.expiries.turn(ends + 10)

    assert codes(client) == ["token_expired", "token_expired"]
    assert client.close_codes == [4501]


@pytest.mark.parametrize("when", ["before", "in its grace"])
async def test_renewed(pod: Pod, later: Time, when: str) -> None:
    """A new token is acknowledged with its end, and the socket goes on as if nothing had been."""
    client = await opened(pod, ttl_s=60)
    ends = client.messages[0]["data"]["limits"]["token_expires_at"]
    if when != "before":
        later.ahead = 65
        pod.sockets.expiries.turn(ends)
    answer = await renew(client, pod.token(ttl_s=1_000))
    assert answer["type"] == "ack"
    new_end = answer["data"]["token_expires_at"]
    assert new_end == pytest.approx(time.time() + 1_000, abs=5)
    told = codes(client)
    pod.sockets.expiries.turn(ends + 100)
    assert client.close_codes == []
    assert codes(client) == told == ([] if when == "before" else ["token_expired"])
    later.ahead = 500
    assert await chat(pod, client) == "free"
    pod.sockets.expiries.turn(new_end + 10)

    assert client.close_codes == [4501]


async def test_gone_before_it_expires(pod: Pod) -> None:
    """Nobody is told."""
    client = await opened(pod, ttl_s=60)
    client.lose()
    await settle()
    pod.sockets.expiries.turn(time.time() + 1_000)

    assert codes(client) == []
    assert pod.refused == {}


# A new token.


async def test_what_a_new_token_changes(pod: Pod) -> None:
    """Tier, agents and scopes are in force from the next message on."""
    client = await opened(pod)
    await renew(client, pod.token(tier="enterprise", agents=["sales"]))
    assert await chat(pod, client) == "enterprise"
    assert client.messages[-1]["tenant_tier"] == "enterprise"
    await renew(client, pod.token(tier="advance", agents=["support"]))
    assert await chat(pod, client) == "forbidden"
    await renew(client, pod.token(scopes=["listen"]))
    assert await chat(pod, client) == "scope_missing"
    await renew(client, pod.token())

    assert await chat(pod, client) == "free"
    assert client.close_codes == []


async def subscribe(client: Client, *topics: str) -> dict[str, Any]:
    """What comes of it."""
    client.say(type="subscribe", topics=topics, ref="topics")
    await settle()
    return last(client)


async def test_a_token_that_has_expired_subscribes_to_nothing(pod: Pod, later: Time) -> None:
    """Nor does it say more in another way; what it has subscribed to it keeps until it is closed."""
    client = await opened(pod, ttl_s=60)
    assert (await subscribe(client, "orders/7"))["data"]["topics"] == ["orders/7"]
    later.ahead = 70
    answer = await subscribe(client, "orders/8")

    assert (answer["type"], answer["data"]["error_code"]) == ("error", "token_expired")
    assert client.connection.topics == {"orders/7"}


async def test_a_new_token_ends_subscriptions_that_it_does_not_allow(pod: Pod) -> None:
    """The others go on."""
    client = await opened(pod, agents=["sales", "support"])
    await subscribe(client, "agent:sales", "agent:support", "type:invoice")
    await renew(client, pod.token(agents=["sales", "support"]))
    assert client.connection.topics == {"agent:sales", "agent:support", "type:invoice"}
    await renew(client, pod.token(agents=["sales"]))

    assert client.connection.topics == {"agent:sales", "type:invoice"}


@pytest.mark.parametrize(
    ("sessions", "kept"),
    [(None, True), (("s-1", "s-2"), True), (("s-1",), False)],
    ids=["any", "the same", "fewer"],
)
def test_whether_a_tasks_topic_outlives_its_token(sessions: tuple[str, ...] | None, kept: bool) -> None:
    """Not if the new token is for other sessions: the task may be of one that it does not allow."""
    before = msgspec.structs.replace(ANYONE, sessions=("s-1", "s-2"))
    after = msgspec.structs.replace(ANYONE, sessions=sessions)

    assert keeps_topic("task:t-1", before, after) == kept


@pytest.mark.parametrize(
    ("token", "code"),
    [
        ({"tenant_id": "evil"}, "forbidden"),
        ({"tenant_id": "*"}, "forbidden"),
        ({"user_id": "bob"}, "forbidden"),
        ({"user_id": None}, "forbidden"),
        ({"sessions": ["s-2"]}, "forbidden"),
        ({"sessions": ["web-*"]}, "forbidden"),
        ({"scopes": ["chat"]}, "scope_missing"),
        ({"ttl_s": -60}, "token_expired"),
    ],
    ids=str,
)
async def test_tokens_that_are_not_taken(pod: Pod, token: dict[str, Any], code: str) -> None:
    """One of somebody else, or for another session, changes nothing: the socket goes on under its own."""
    client = await opened(pod, user_id="ann", tier="advance", sessions=["s-1"])
    answer = await renew(client, pod.token(**{"user_id": "ann", "tier": "enterprise", **token}))
    assert (answer["type"], answer["data"]["error_code"]) == ("error", code)
    assert await chat(pod, client) == "advance"
    identity = client.connection.identity
    assert identity is not None
    assert (identity.tenant_id, identity.user_id, identity.tenant_tier) == ("acme", "ann", "advance")
    assert client.close_codes == []
    ends = client.messages[0]["data"]["limits"]["token_expires_at"]
    pod.sockets.expiries.turn(ends + 10)

    assert client.close_codes == [4501]


@pytest.mark.parametrize("token", ["hello", "a.b.c", "\u00e9.b.c"])
async def test_tokens_that_are_none(pod: Pod, token: str) -> None:
    """They are answered like any bad message."""
    client = await opened(pod)

    assert (await renew(client, token))["data"]["error_code"] == "token_invalid"
    assert await chat(pod, client) == "free"
    assert pod.refused == {"token_invalid": 1}


async def test_a_token_without_a_ref(pod: Pod) -> None:
    """It is taken, and nothing is said about it, as of every message."""
    client = await opened(pod)
    client.say(type="auth", token=pod.token(tier="enterprise"))
    await settle()

    assert last(client)["type"] == "connection_ack"
    assert await chat(pod, client) == "enterprise"


async def test_a_token_that_is_still_being_verified(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts among the messages that wait; whoever leaves meanwhile leaves nothing behind."""
    gate = asyncio.Event()
    real = auth.Authenticator.grant

    async def slow(self: auth.Authenticator, token: str | None) -> Grant:
        await gate.wait()
        return await real(self, token)

    client = await opened(pod)
    monkeypatch.setattr(auth.Authenticator, "grant", slow)
    for number in range(pod.settings.sends_in_flight_max + 1):
        client.say(type="auth", token=pod.token(), ref=number)
    await settle()
    assert codes(client) == ["too_many_in_flight"]
    assert client.connection.busy
    client.lose()
    gate.set()
    await settle()

    assert client.connection.in_flight == 0
    assert pod.logger.names == []
    assert pod.conversation.sends_in_flight == set()
    pod.sockets.expiries.turn(time.time() + 10**6)
    assert pod.refused == {"too_many_in_flight": 1}


async def test_without_tokens_a_new_one_is_answered() -> None:
    """A client need not know whether the service has tokens."""
    pod = Pod()
    client = await pod.open(f"{WHO}&agent_id=sales")
    answer = await renew(client, "whatever")

    assert (answer["type"], answer["data"]["token_expires_at"]) == ("ack", None)
    assert await chat(pod, client) == "free"


# A token that is revoked.


async def test_a_revoked_token_sends_nothing(pod: Pod) -> None:
    """Also before its socket has been closed."""
    client = await opened(pod)
    pod.revoked = lambda _grant: True
    assert await chat(pod, client) == "token_revoked"
    assert (await renew(client, pod.token()))["data"]["error_code"] == "token_revoked"


async def test_revocations_that_are_not_known(pod: Pod) -> None:
    """The client is told to try again, and not that its token is bad."""
    client = await opened(pod)

    def unknown(_grant: Grant) -> bool:
        raise redis_unavailable()

    pod.revoked = unknown
    assert await chat(pod, client) == "redis_unavailable"

    assert last(client)["data"]["retryable"] is True


# Cancelling.


async def sent_task(client: Client, **more: Any) -> str:
    """The task of a chat."""
    client.say(type="chat", message="hello", ref="sent", **more)
    await settle()
    assert (last(client)["type"], last(client)["data"]["ref"]) == ("ack", "sent")
    task_id: str = last(client)["data"]["task_id"]
    return task_id


async def cancelled(client: Client, **said: Any) -> dict[str, Any]:
    """What comes of a cancel: its ack or error."""
    client.say(type="cancel", ref="stop", **said)
    await settle()
    message = last(client)
    assert message["data"]["ref"] == "stop"
    return message


@pytest.mark.parametrize("by", ["task_id", "client_message_id"])
async def test_a_task_is_cancelled(by: str) -> None:
    """Over a socket, under either of its names; the ack says how it ended, again if it is asked again."""
    pod = Pod()
    client = await pod.open(f"{WHO}&agent_id=sales")
    task_id = await sent_task(client, client_message_id="m-1")
    for _ in range(2):
        told = await cancelled(client, **{by: task_id if by == "task_id" else "m-1"}, reason="enough")
        assert told["type"] == "ack"
        assert told["data"] | {"ref": 0} == {
            "ref": 0, "success": True, "task_id": task_id, "status": "cancelled", "cancelled": True,
        }  # fmt: skip

    assert [entry.task_id for entry in pod.tasks.ended] == [task_id]
    assert [action.get("reason") for action in pod.queue.actions] == [None, "enough"]


async def test_a_cancel_without_a_ref() -> None:
    """Is carried out, and not answered; what comes of it stands in the log."""
    pod = Pod()
    client = await pod.open(f"{WHO}&agent_id=sales")
    task_id = await sent_task(client)
    before = len(client.messages)
    client.say(type="cancel", task_id=task_id)
    await settle()

    assert (pod.tasks.status(task_id), len(client.messages)) == ("cancelled", before)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"task_id": "nothing"}, "unknown_task"),
        ({"client_message_id": "nothing"}, "unknown_task"),
        ({"task_id": "a b"}, "invalid_id"),
        ({}, "missing_id"),
    ],
)
async def test_cancels_that_are_wrong(said: dict[str, str], code: str) -> None:
    """Are answered by an error with the ref."""
    client = await Pod().open()
    told = await cancelled(client, **said)

    assert (told["type"], told["data"]["error_code"]) == ("error", code)
    assert client.close_codes == []


async def test_a_task_of_another_session() -> None:
    """A socket is of one session, and ends that one's tasks only."""
    pod = Pod()
    client, other = await pod.open(f"{WHO}&agent_id=sales"), await pod.open(WHO, "s-2")
    task_id = await sent_task(client, client_message_id="m-1")

    assert (await cancelled(other, task_id=task_id))["data"]["error_code"] == "forbidden"
    assert (await cancelled(other, client_message_id="m-1"))["data"]["error_code"] == "unknown_task"
    assert pod.tasks.ended == []


async def test_a_cancel_while_redis_is_away() -> None:
    """Is for later, and no mistake of ours."""
    pod = Pod()
    client = await pod.open(f"{WHO}&agent_id=sales")
    task_id = await sent_task(client)
    pod.log.refusal = RedisUnavailable("away")
    told = await cancelled(client, task_id=task_id)

    assert (told["data"]["error_code"], told["data"]["retryable"]) == ("redis_unavailable", True)
    assert "message_failed" not in pod.logger.names


async def test_a_cancel_under_a_token_that_has_ended(pod: Pod, later: Time) -> None:
    """Needs a new one."""
    client = await opened(pod, ttl_s=60)
    task_id = await sent_task(client)
    later.ahead = 70
    told = await cancelled(client, task_id=task_id)

    assert (told["type"], told["data"]["error_code"]) == ("error", "token_expired")
    assert pod.tasks.ended == []


async def test_cancels_count_as_in_flight() -> None:
    """A client cannot have any number of them under way."""
    pod = Pod(sends_in_flight_max=2)
    client = await pod.open(f"{WHO}&agent_id=sales")
    task_id = await sent_task(client)
    pod.queue.gate.clear()
    for number in range(3):
        client.say(type="cancel", task_id=task_id, ref=number)
    await settle()
    assert (last(client)["data"]["error_code"], last(client)["data"]["ref"]) == ("too_many_in_flight", 2)
    pod.queue.gate.set()
    await settle()

    assert len(pod.tasks.ended) == 1

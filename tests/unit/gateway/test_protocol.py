"""What clients say on a socket: read, or refused with the reason and the message's own ref."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway import outgoing
from gateway.errors import ClientError
from gateway.protocol import TYPES, Ack, Auth, BadMessage, Cancel, Chat, Ping, Pong, parse


def refusal(data: bytes) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        parse(data)
    return caught.value


def said(**message: Any) -> bytes:
    return json.dumps(message).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (said(type="ping"), Ping()),
        (said(type="ping", ref="a"), Ping("a")),
        (said(type="pong", ref=7), Pong(7)),
        (said(type="ack", seq=0), Ack(0)),
        (said(ref="r", seq=12, type="ack"), Ack(12, "r")),
        (said(type="auth", token="a.b.c"), Auth("a.b.c")),
        (said(type="auth", token="t" * 8_192, ref=1), Auth("t" * 8_192, 1)),
        (said(type="cancel", task_id="t-1", ref=1), Cancel("t-1", ref=1)),
        (said(type="cancel", client_message_id="c-1", reason="w" * 256), Cancel(None, "c-1", "w" * 256)),
        (said(type="cancel"), Cancel()),
        (said(type="chat", message="hi"), Chat("hi")),
        (said(type="chat", message="hi", ref=1, agent_id="a", later="x"), Chat("hi", agent_id="a", ref=1)),
    ],
)
def test_messages_are_read(data: bytes, message: object) -> None:
    """Each kind is read whatever the order of its fields, and fields of later versions are passed over."""
    assert parse(data) == message


def test_chat_is_the_same_as_over_http() -> None:
    """A chat message takes every field of the HTTP body."""
    fields: dict[str, Any] = {
        "message": "hi",
        "message_type": "markdown",
        "user_info": {"name": "Ann"},
        "max_iterations": 3,
        "client_message_id": "c-1",
        "busy_policy": "reject",
        "timeout": 20,
        "agent_id": "sales",
        "ref": "r",
    }
    assert parse(said(type="chat", **fields)) == Chat(**fields)


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", "not_json", "not JSON"),
        (b"hello", "not_json", "not JSON"),
        (b'{"type":"ping"', "not_json", "not JSON"),
        (b'{"type":"ping"} x', "not_json", "not JSON"),
        (b'{"type":"ping","ref":"\xff"}', "not_json", "not JSON"),
        (b'{"type":"ping","ref":"\\ud800"}', "not_json", "not JSON"),
        (b'{"type":"chat","message":"x","user_info":' + b'{"a":' * 50_000, "invalid_field", "32 levels"),
        (b'{"type":"chat","message":"x","user_info":' + b'{"a":' * 20, "not_json", "not JSON"),
        (b"[]", "not_an_object", "object"),
        (b'"ping"', "not_an_object", "object"),
        (b"null", "not_an_object", "object"),
        (b"[" * 50_000, "invalid_field", "32 levels"),
        (b"[" * 20, "not_an_object", "object"),
        (said(), "unknown_type", "type is missing"),
        (said(type=None), "unknown_type", "type is missing"),
        (said(type="dance"), "unknown_type", "'dance'; clients may send ping, pong, ack, auth, chat"),
        (said(type=5), "unknown_type", "type is 5"),
        (said(type="d\u202e" * 100), "unknown_type", "clients may send"),
        (said(type={"a": ["b"]}), "unknown_type", "clients may send"),
        (said(type="chat"), "invalid_field", "`message`"),
        (said(type="chat", message=5), "invalid_field", "$.message"),
        (said(type="ack"), "invalid_field", "`seq`"),
        (said(type="ack", seq=-1), "invalid_field", "$.seq"),
        (said(type="ack", seq=1.5), "invalid_field", "$.seq"),
        (said(type="ack", seq=True), "invalid_field", "$.seq"),
        (said(type="auth"), "invalid_field", "`token`"),
        (said(type="auth", token=""), "invalid_field", "$.token"),
        (said(type="auth", token=5), "invalid_field", "$.token"),
        (said(type="auth", token=None), "invalid_field", "$.token"),
        (said(type="auth", token="t" * 8_193), "invalid_field", "$.token"),
        (said(type="ping", ref=True), "invalid_field", "$.ref"),
        (said(type="ping", ref={}), "invalid_field", "$.ref"),
    ],
)
def test_what_cannot_be_taken(data: bytes, code: str, says: str) -> None:
    """Whatever is wrong is said in one short line, under a code of the closed list."""
    error = refusal(data)

    assert error.error_code == code
    assert says in error.detail
    assert error.status == (422 if code == "invalid_field" else 400)
    assert len(error.detail) < 250
    assert error.detail.isprintable()


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("r-1", "r-1"),
        (7, 7),
        ("", ""),
        (None, None),
        (True, None),
        ([1], None),
        ({"a": 1}, None),
        (1.5, None),
    ],
)
def test_refusal_carries_the_ref(ref: Any, told: Any) -> None:
    """A client that sent several messages learns which one was refused; a ref that is none is left out."""
    assert refusal(said(type="dance", ref=ref)).ref == told
    assert refusal(said(type="chat", ref=ref)).ref == told


def test_refusal_keeps_when_to_try_again() -> None:
    """The way through a refusal with a ref loses nothing of what the client has to be told."""
    error = BadMessage(ClientError(429, "rate_limited", "wait", retry_after_s=3, limit="messages"), "r")

    assert (error.status, error.error_code, error.detail) == (429, "rate_limited", "wait")
    assert (error.retry_after_s, error.limit, error.ref) == (3, "messages", "r")


def test_depth_is_the_settings() -> None:
    """A message may be nested as deeply as was agreed, and no deeper; brackets in its text do not count."""
    nested = said(type="chat", message="[{" * 50, user_info={"a": {"b": [1]}})
    parse(nested, 4)
    with pytest.raises(BadMessage, match="3 levels"):
        parse(nested, 3)


def test_the_types_that_are_named_are_those_that_are_read() -> None:
    """What a refusal tells a client to send is taken."""
    minimal: dict[str, dict[str, Any]] = {
        "ack": {"seq": 0},
        "auth": {"token": "a.b.c"},
        "chat": {"message": "x"},
        "input": {"task_id": "t", "input_id": "i", "value": None},
        "subscribe": {"topics": ["a"]},
        "unsubscribe": {"topics": ["a"]},
    }
    for kind in TYPES:
        parse(said(type=kind, **minimal.get(kind, {})))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
MESSAGES = st.dictionaries(
    st.sampled_from(["type", "ref", "seq", "message", "user_info", "timeout", "max_iterations", "agent_id"]),
    st.sampled_from([*TYPES, "x"]) | JSON,
)


@given(
    st.one_of(
        st.binary(max_size=100),
        JSON.map(lambda value: json.dumps(value).encode()),
        MESSAGES.map(lambda value: json.dumps(value).encode()),
        st.binary(max_size=12).map(lambda part: b'{"type":"ping","ref":"' + part + b'"}'),
        st.binary(max_size=12).map(lambda part: b'{"type":"' + part + b'","ref":1}'),
    )
)
@example(b'{"type":"\xff"}')
@example(b'{"\xff":1}')
@example(b'{"type":"ack","seq":-1,"ref":"\xff"}')
@example(b'{"type":"ping","ref":' + b"9" * 5_000 + b"}")
@example(b'{"type":"ack","seq":' + b"9" * 5_000 + b"}")
@example(b'{"type":"x","ref":1e999}')
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Nothing that a client can send raises anything but a refusal, which can be told to it."""
    try:
        message = parse(data)
    except BadMessage as error:
        outgoing.error(None, 0.0, error)
    else:
        assert isinstance(message, Ping | Pong | Ack | Auth | Chat | Cancel)

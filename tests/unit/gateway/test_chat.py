"""A chat message on its way up: what a client may send, and the action that the AES takes."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.keys import TIERS
from backplane.settings import Settings
from gateway.chat import ChatBody, Context, build_action, check_depth, decode_body, timeout_s
from gateway.errors import ClientError
from gateway.identity import ANYONE, Identity

NOW = 1_769_860_800.25  # 2026-01-31T12:00:00.250Z
IDENTITY = Identity("acme", "advance", "s-1", "ann@example.org", "sales", ANYONE)
QUEUE = "nooble4:dev:agent_execution_service:actions:advance"


def body(**fields: Any) -> bytes:
    return json.dumps({"message": "hello", **fields}).encode()


def refusal(raw: bytes) -> ClientError:
    with pytest.raises(ClientError) as caught:
        decode_body(raw)
    return caught.value


def action(
    identity: Identity = IDENTITY,
    context: Context | None = None,
    chat: ChatBody | None = None,
    settings: Settings | None = None,
    timeout: float = 20,
    traceparent: str | None = None,
) -> dict[str, Any]:
    made = build_action(
        settings or Settings(),
        identity,
        context or Context("sales", headers={"X-Request-Source": "web"}),
        chat or ChatBody("hello"),
        task_id="t-1",
        action_id=UUID(int=2),
        queue_name=QUEUE,
        callback_queue="orchestrator:acme:callbacks",
        now=NOW,
        deadline=NOW + timeout,
        traceparent=traceparent,
    )
    decoded: dict[str, Any] = json.loads(made)
    return decoded


# What a client sends.


def test_a_message_is_enough() -> None:
    """Everything else has a default."""
    assert decode_body(body()) == ChatBody("hello", "text", {}, None, None, None, None, None)


def test_everything_is_read() -> None:
    """Each field arrives as it was sent; fields of other versions are passed over."""
    fields = {
        "message_type": "markdown",
        "user_info": {"name": "Ann", "deep": [{"a": None}]},
        "max_iterations": 5,
        "client_message_id": "c-1",
        "busy_policy": "interrupt",
        "timeout": 20,
    }
    assert decode_body(body(**fields, later=1)) == ChatBody("hello", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["x", " ", "ü" * 4000, "🎉" * 4000, "\0", "\\", '"'])
def test_length_is_counted_in_characters(text: str) -> None:
    """1 to 4,000 characters, however many bytes they are."""
    assert decode_body(body(message=text)).message == text


@pytest.mark.parametrize(
    "wrong",
    [
        {"message": ""},
        {"message": "x" * 4001},
        {"message": "🎉" * 4001},
        {"message": None},
        {"message": 5},
        {"message": ["hello"]},
        {"message_type": ""},
        {"message_type": "x" * 65},
        {"message_type": None},
        {"user_info": None},
        {"user_info": []},
        {"user_info": "Ann"},
        {"max_iterations": 0},
        {"max_iterations": 1001},
        {"max_iterations": 1.5},
        {"max_iterations": "5"},
        {"max_iterations": True},
        {"client_message_id": ""},
        {"client_message_id": "x" * 129},
        {"client_message_id": 5},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": 0.5},
        {"timeout": "20"},
        {"busy_policy": "queue"},
        {"busy_policy": ""},
        {"busy_policy": 1},
        {"agent_id": 5},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_wrong_fields(wrong: dict[str, Any]) -> None:
    """A field that is wrong is named, so that a developer finds it."""
    error = refusal(body(**wrong))

    assert (error.status, error.error_code) == (422, "invalid_field")
    assert f"$.{next(iter(wrong))}" in error.detail


def test_missing_message() -> None:
    """The one field that is needed is asked for."""
    error = refusal(b"{}")

    assert (error.status, error.error_code) == (422, "invalid_field")
    assert "message" in error.detail


@pytest.mark.parametrize("raw", [b"[]", b'"hello"', b"5", b"null", b"[{}]"])
def test_no_object(raw: bytes) -> None:
    """JSON that is no object is told apart from what is no JSON."""
    error = refusal(raw)

    assert (error.status, error.error_code) == (422, "not_an_object")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello",
        b"{",
        body() + b"{}",
        b'{"message":"\xff"}',
        b'{"message":"\\ud800"}',
        b'{"message":"x","user_info":{"a":"\\ud800"}}',
        b'{"message":"x","user_info":{"a":NaN}}',
        body().decode().encode("utf-16"),
        b"\xef\xbb\xbf" + body(),
    ],
    ids=lambda raw: ascii(raw[:40]),
)
def test_no_json(raw: bytes) -> None:
    """What is no JSON is told so, whatever else it is."""
    error = refusal(raw)

    assert (error.status, error.error_code) == (400, "not_json")
    assert len(error.detail) < 250


# How deeply it is nested.


def depth_of(raw: bytes) -> int:
    """The deepest level, found byte by byte, by one who knows strings and their escapes."""
    deepest = depth = 0
    text = escaped = False
    for byte in raw:
        sign = chr(byte)
        if escaped:
            escaped = False
        elif text:
            escaped = sign == "\\"
            text = sign != '"'
        elif sign == '"':
            text = True
        elif sign in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "]}":
            depth -= 1
    return deepest


def is_shallow(raw: bytes, most: int) -> bool:
    try:
        check_depth(raw, most)
    except ClientError as error:
        return (error.status, error.error_code) != (422, "invalid_field")
    return True


@pytest.mark.parametrize(
    ("raw", "depth"),
    [
        (b"", 0),
        (b"5", 0),
        (b"[]", 1),
        (b'{"a":[]}', 2),
        (b"[],[],[]", 1),
        (b"[[[", 3),
        (b"]]][[", 0),
        (b'"[[["', 0),
        (b'{"[":"[[[{{{"}', 1),
        (b'["\\"[[["]', 1),
        (b'["\\\\",[[]]]', 3),
        (b'["\\\\\\"[["]', 1),
        (b'["unclosed [[[', 1),
        (b'["a\\', 1),
        (b'"a\n[[["', 0),
        (b"'[[['", 3),
        (b'["\xff[",[]]', 2),
    ],
    ids=ascii,
)
def test_depths(raw: bytes, depth: int) -> None:
    """Brackets of either kind count, and in strings they do not, whatever is escaped there."""
    assert depth_of(raw) == depth
    assert is_shallow(raw, depth)
    assert depth == 0 or not is_shallow(raw, depth - 1)


@given(st.binary(max_size=80) | st.text('[]{}"\\ab:,', max_size=80).map(str.encode), st.integers(0, 6))
def test_any_bytes_are_as_deep_as_they_are(raw: bytes, most: int) -> None:
    """The quick way and the plain one agree on everything that can be sent."""
    assert is_shallow(raw, most) == (depth_of(raw) <= most)


NESTED = st.recursive(
    st.none() | st.integers() | st.text('[]{}"\\a', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


def levels(value: Any) -> int:
    """How deeply a value is nested."""
    if isinstance(value, dict | list):
        return 1 + max(map(levels, value.values() if isinstance(value, dict) else value), default=0)
    return 0


@given(NESTED)
def test_shallow_json_is_never_refused(value: Any) -> None:
    """What is read is refused if it has too many levels, and for nothing else."""
    for raw in (json.dumps(value).encode(), json.dumps(value, indent=1, ensure_ascii=False).encode()):
        assert is_shallow(raw, levels(value))
        assert levels(value) == 0 or not is_shallow(raw, levels(value) - 1)


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"a":' * 100_000, b'{"message":"x","user_info":' + b'{"a":' * 50_000]
)
def test_what_is_nested_too_deeply(raw: bytes) -> None:
    """Is told so before anybody tries to read it, in one short line."""
    error = refusal(raw)

    assert (error.status, error.error_code) == (422, "invalid_field")
    assert "32 levels" in error.detail


def test_the_depth_that_was_agreed() -> None:
    """A body may be nested so deeply, and no deeper."""
    raw = body(user_info={"a": {"b": 1}})
    assert decode_body(raw, 3).user_info == {"a": {"b": 1}}
    with pytest.raises(ClientError, match="2 levels"):
        decode_body(raw, 2)


@pytest.mark.parametrize("unit", [b'"', b'\\"', b'"a', b"\\", b'"\\', b"[]", b'""[', b'"]'])
def test_long_bodies_cost_little(unit: bytes) -> None:
    """No text makes the search go over it again and again."""
    raw = b"[" * 40 + unit * (200_000 // len(unit))
    began = time.perf_counter()
    is_shallow(raw, 50)

    assert time.perf_counter() - began < 2


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=12).map(lambda b: b'{"message":"' + b + b'"}')))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Nothing but a refusal comes out of a bad body."""
    with contextlib.suppress(ClientError):
        assert decode_body(raw).message


# Timeouts.


@pytest.mark.parametrize(("tier", "most"), list(zip(TIERS, (30, 60, 120, 300), strict=True)))
def test_timeouts_are_bounded_by_the_tier(tier: str, most: int) -> None:
    """A request may ask for less than its tier has, never for more; without a wish it has the tier's."""
    settings = Settings()

    assert timeout_s(settings, tier, None) == most
    assert timeout_s(settings, tier, 1) == 1
    assert timeout_s(settings, tier, most) == most
    assert timeout_s(settings, tier, most + 1) == most
    assert timeout_s(settings, tier, 10**30) == most


def test_timeouts_are_settings() -> None:
    """The bound is the operator's to set."""
    assert timeout_s(Settings(task_timeout_s=(1, 2, 3, 4)), "professional", 100) == 3


# The action.


def test_action_has_the_contracts_fields() -> None:
    """Every field of the contract's section 1 is there, with its type: the AES cannot be changed."""
    made = action(chat=ChatBody("hello", user_info={"name": "Ann"}, max_iterations=4))
    base = {"tenant_id": "acme", "tenant_tier": "advance", "session_id": "s-1"}
    at = "2026-01-31T12:00:00.250000+00:00"

    assert made == {
        "action_id": str(UUID(int=2)),
        "action_type": "execution.agent_run",
        "task_id": "t-1",
        **base,
        "execution_context": {
            "context_id": "agent-sales",
            "context_type": "agent",
            **base,
            "primary_agent_id": "sales",
            "agents": ["sales"],
            "collections": [],
            "metadata": {},
            "created_at": at,
        },
        "data": {},
        "metadata": {
            "headers": {"X-Request-Source": "web"},
            "created_at": at,
            "user_id": "ann@example.org",
        },
        "callback_queue": "orchestrator:acme:callbacks",
        "timeout": 20,
        "deadline_at": "2026-01-31T12:00:20.250000+00:00",
        "queue_metadata": {
            "enqueued_at": at,
            "target_domain": "execution",
            "queue_name": QUEUE,
            "tier_priority": 3,
        },
        "timestamp": at,
        "message": "hello",
        "message_type": "text",
        "user_info": {"name": "Ann"},
        "max_iterations": 4,
    }


def test_action_of_the_least_that_can_be_sent() -> None:
    """What was not given is null or empty, never absent, where the contract names it."""
    made = action(identity=Identity("acme", "free", "s-1", None, None, ANYONE), context=Context("sales"))

    assert made["max_iterations"] is None
    assert made["message_type"] == "text"
    assert made["user_info"] == {}
    assert made["metadata"] == {"headers": {}, "created_at": made["timestamp"]}


@pytest.mark.parametrize(("tier", "priority"), list(zip(TIERS, (4, 3, 2, 1), strict=True)))
def test_action_of_each_tier(tier: str, priority: int) -> None:
    """A tier's priority is its own."""
    made = action(identity=Identity("acme", tier, "s-1", None, None, ANYONE))

    assert made["queue_metadata"]["tier_priority"] == priority
    assert made["tenant_tier"] == made["execution_context"]["tenant_tier"] == tier


@pytest.mark.parametrize(
    ("kind", "collection", "context_id", "collections"),
    [
        ("agent", None, "agent-sales", []),
        ("agent", "docs", "agent-sales", ["docs"]),
        ("workflow", None, "workflow-sales", []),
        ("collection", "docs", "collection-docs", ["docs"]),
    ],
)
def test_action_of_each_context(
    kind: str, collection: str | None, context_id: str, collections: list[str]
) -> None:
    """A context is named by what it is about."""
    made = action(context=Context("sales", kind, collection_id=collection))["execution_context"]

    assert (made["context_id"], made["context_type"]) == (context_id, kind)
    assert made["collections"] == collections
    assert (made["primary_agent_id"], made["agents"]) == ("sales", ["sales"])


def test_action_passes_on_what_belongs_to_it() -> None:
    """Conversation, the client's own id and the trace go with the action, under the contract's names."""
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    context = Context("sales", conversation_id="c-9", tracestate="a=1")
    chat = ChatBody("hello", client_message_id="m-1")
    metadata = action(context=context, chat=chat, traceparent=trace)["metadata"]

    assert metadata["conversation_id"] == "c-9"
    assert metadata["client_message_id"] == "m-1"
    assert (metadata["traceparent"], metadata["tracestate"]) == (trace, "a=1")


def test_action_tells_its_deadline() -> None:
    """In one clock with a zone; what is left until then in whole seconds, of which there is always one."""
    made = action(timeout=7)
    sent, deadline = (datetime.fromisoformat(made[name]) for name in ("timestamp", "deadline_at"))

    assert sent == datetime.fromtimestamp(NOW, UTC)
    assert deadline - sent == timedelta(seconds=7)


@pytest.mark.parametrize(("left_s", "timeout"), [(7, 7), (6.996, 7), (6.4, 6), (0.4, 1), (0, 1), (-3, 1)])
def test_the_time_that_is_left(left_s: float, timeout: int) -> None:
    """An action that is pushed again later has less time: whole seconds, and always at least one."""
    assert action(timeout=left_s)["timeout"] == timeout


@pytest.mark.parametrize("number", [2**64, -(2**64), 10**400, 1.5e300])
def test_any_number_gets_through(number: float) -> None:
    """What a client may say of its user comes out as it went in, however large its numbers are."""
    chat = decode_body(body(user_info={"n": number}))

    assert action(chat=chat)["user_info"] == {"n": number}


@given(st.text(min_size=1, max_size=50).filter(str.isprintable), st.dictionaries(st.text(), st.integers()))
def test_texts_get_through(text: str, user_info: dict[str, int]) -> None:
    """What a client says is what the agent hears."""
    made = action(chat=decode_body(json.dumps({"message": text, "user_info": user_info}).encode()))

    assert made["message"] == text
    assert made["user_info"] == user_info


def test_ids_are_those_that_were_given() -> None:
    """The ids are made once, where the answer is: not here."""
    task_id, action_id = str(uuid4()), uuid4()
    made = json.loads(
        build_action(
            Settings(), IDENTITY, Context("sales"), ChatBody("hello"),
            task_id=task_id, action_id=action_id, queue_name=QUEUE, callback_queue="c", now=NOW, deadline=NOW,
        )
    )  # fmt: skip

    assert (made["task_id"], made["action_id"]) == (task_id, str(action_id))

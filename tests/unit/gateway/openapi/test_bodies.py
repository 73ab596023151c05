"""A body that its schema calls valid is taken, and one that it calls invalid is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from gateway.encoders.inbound import read_ag_ui, read_ai_sdk
from gateway.identity import OPERATOR, SCOPES
from tests.unit.gateway.openapi.judge import find, operations, validator, with_jwt
from tests.unit.gateway.openapi.test_responses import World, waits
from tests.unit.gateway.web import HEADERS, client_of

LONG = "x" * 4_001
WRONG: tuple[Any, ...] = (
    None,
    True,
    5,
    -1,
    1.5,
    "",
    "a b",
    "x" * 129,
    "x" * 257,
    LONG,
    [],
    {},
    "\n",
    "s-1\n",
)


class Place(NamedTuple):
    """Where a body is sent.

    Attributes:
        good: a body that is taken.
        fields: what else they may hold, or may not.
        tenants: whose tokens are shown; it is enough that one may say it.
    """

    method: str
    path: str
    good: dict[str, Any]
    fields: dict[str, tuple[Any, ...]]
    tenants: tuple[str, ...] = ("acme",)


IDS = ("s-1", "a.b_c~d-e", "x" * 128)
USERS = (*IDS, "ann@example.org", "a+b")
LIMIT = (0, 5, 10**9, 10**9 + 1)
TO = (
    {"tenant": True}, {"tenant": False}, {"tier": "free"}, {"tier": "gold"}, {"agent_id": "sales"},
    {"agent_id": "x" * 122}, {"agent_id": "x" * 123}, {"agent_id": "a/b"}, {"topic": "orders/7"},
    {"topic": "agent:sales"}, {"topic": "agent:a/b"}, {"topic": "task:t-1"}, {"topic": "task:"},
    {"topic": "type:new"}, {"topic": "tenant:announcements"}, {"topic": "tenant:others"},
    {"topic": "a b"}, {"topic": "agent"}, {"topic": "x" * 128}, {"session_id": "s-1"},
    {"session_id": "a/b"}, {"session_id": "s-1", "topic": None, "tenant": False},
    {"session_id": "s-1", "topic": "a"}, {"tenant": True, "tier": "free"}, {"everybody": True},
)  # fmt: skip

PLACES = [
    Place(
        "POST",
        "/api/chat/send",
        {"message": "hello"},
        {
            "message": ("é" * 4_000,),
            "message_type": ("markdown", "x" * 64, "x" * 65),
            "user_info": ({"a": [1]},),
            "max_iterations": (1, 1_000, 1_001),
            "client_message_id": ("m-1", "é" * 128),
            "busy_policy": ("concurrent", "reject", "enqueue", "interrupt"),
            "cancel_if_left_s": (1, 86_400, 86_401),
            "timeout": (1, 10**6),
            "agent_id": ("any thing",),
            "unknown": (1,),
        },
    ),
    Place("POST", "/api/chat/tasks/{sent}/cancel", {}, {"reason": ("enough", "x" * 256), "unknown": (1,)}),
    Place(
        "POST",
        "/api/chat/cancel",
        {"task_id": "none"},
        {"task_id": IDS, "client_message_id": ("m-1", "é" * 128), "reason": ("x" * 256,)},
    ),
    Place("POST", "/api/chat/tasks/{sent}/input", {"input_id": "i-1", "value": 1}, {"input_id": IDS}),
    Place(
        "POST",
        "/api/broadcast",
        {"to": {"topic": "a"}, "payload": 1},
        {"to": TO, "tenant_id": ("acme",), "unknown": (1,)},
    ),
    Place(
        "POST",
        "/api/admin/connections/close",
        {"session_id": "s-1"},
        {
            "tenant_id": ("acme",),
            "session_id": IDS,
            "user_id": USERS,
            "connection_id": IDS,
            "reason": ("x" * 100, "x" * 101),
            "unknown": (1,),
        },
    ),
    Place(
        "POST",
        "/api/admin/revocations",
        {"tenant_id": "acme", "user_id": "ann"},
        {
            "token_id": ("!~", "x" * 256),
            "user_id": USERS,
            "tenant_id": (OPERATOR,),
            "issued_before": (0, 1e9),
            "unknown": (1,),
        },
        ("acme", OPERATOR),
    ),
    Place(
        "PUT",
        "/api/admin/log-level",
        {"level": "info"},
        {"level": ("debug", "loud"), "for_s": (0, 0.5, 60, 86_400, 86_401), "unknown": (1,)},
        (OPERATOR,),
    ),
    Place(
        "PUT",
        "/api/admin/tenants/acme/limits",
        {},
        {
            "sends_per_minute": LIMIT,
            "sends_per_day": LIMIT,
            "sends_per_session_hour": LIMIT,
            "connections": LIMIT,
            "busy_policy": ("reject", "interrupt"),
            "unknown": (1,),
        },
        (OPERATOR,),
    ),
]


def bodies(place: Place) -> list[Any]:
    """Of each field each value, left out, and values that hardly any field may hold."""
    found: list[Any] = [place.good, {}, [], None, 5, "text"]
    for name in {**place.good, **place.fields}:
        found.append({field: value for field, value in place.good.items() if field != name})
        found += [{**place.good, name: value} for value in (*place.fields.get(name, ()), *WRONG)]
    if "token_id" in place.fields:
        found += [{"token_id": "t-1"}, {"tenant_id": "acme", "token_id": "t-1"}, {"tenant_id": "acme"}]
        found.append({"tenant_id": "acme", "token_id": "t-1", "user_id": None})
    return found


def examples(place: Place) -> list[Any]:
    """As the document gives them."""
    media = find(with_jwt(), place.method, place.path)[1]["requestBody"]["content"]["application/json"]
    return [example["value"] for example in media["examples"].values()]


def is_valid(place: Place, body: Any) -> bool:
    _, operation = find(with_jwt(), place.method, place.path)
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    return bool(validator(with_jwt(), schema).is_valid(body))


async def is_taken(place: Place, tenant: str, some: list[Any]) -> list[bool]:
    """Whether the endpoint understands them; that it cannot do what they say is another matter."""
    world = World(message_max_bytes=65_536)
    waits(world)
    world.tasks.most = 10_000
    found = []
    async with client_of(world) as client:
        who = HEADERS | world.bearer(*SCOPES)
        sent = (await client.post("/api/chat/send", json={"message": "hello"}, headers=who)).json()
        headers = world.bearer(*SCOPES, tenant=tenant) | {"X-Session-ID": "s-1", "X-Agent-ID": "sales"}
        path = place.path.replace("{sent}", sent["task_id"])
        for body in some:
            answer = await client.request(place.method, path, content=json.dumps(body), headers=headers)
            assert answer.status_code in (200, 201, 202, 400, 404, 409, 422), answer.text
            found.append(answer.status_code not in (400, 422))
    return found


def test_every_body_is_here() -> None:
    """But those of the other protocols' clients (see `test_others_bodies`)."""
    with_body = {
        (method, path) for method, path, operation in operations(with_jwt()) if "requestBody" in operation
    }
    here = {(place.method, find(with_jwt(), place.method, place.path)[0]) for place in PLACES}

    assert with_body - here == {("POST", "/api/chat/sessions/{session_id}/events")}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.path)
async def test_schema_and_endpoint_agree(place: Place) -> None:
    """Value by value."""
    some = [*examples(place), *bodies(place)]
    judged = [is_valid(place, body) for body in some]
    taken = [any(by) for by in zip(*[await is_taken(place, one, some) for one in place.tenants], strict=True)]

    wrong = [(body, ok) for body, ok, says in zip(some, judged, taken, strict=True) if ok != says]
    assert wrong == []
    assert all(judged[: len(examples(place))])
    assert len(set(judged)) == 2


def test_a_schema_that_says_too_much_or_too_little() -> None:
    """Is told apart: each of these changes what is valid among the bodies above."""
    place = PLACES[0]
    schema = with_jwt()["components"]["schemas"]["ChatBody"]
    properties = schema["properties"]
    changes: list[dict[str, Any]] = [
        {"required": []},
        {"required": ["message", "timeout"]},
        {"additionalProperties": False},
        {"properties": {**properties, "message": {"type": "string", "minLength": 1}}},
        {"properties": {**properties, "busy_policy": {"enum": ["reject", None]}}},
        {"properties": {name: about for name, about in properties.items() if name != "user_info"}},
    ]
    judged = [is_valid(place, body) for body in bodies(place)]
    for change in changes:
        other = validator(with_jwt(), {**schema, **change})
        assert [other.is_valid(body) for body in bodies(place)] != judged, change


MESSAGE = {"id": "m-1", "role": "user", "content": "hello"}
RUN = {"threadId": "s-1", "runId": "r-1", "messages": [MESSAGE]}
OTHERS: list[tuple[str, Callable[[bytes], object], dict[str, Any]]] = [
    ("RunAgentInput", read_ag_ui, RUN),
    ("ChatRequest", read_ai_sdk, {"messages": [{**MESSAGE, "parts": [{"type": "text", "text": "hello"}]}]}),
]


@pytest.mark.parametrize(("name", "read", "good"), OTHERS, ids=["ag-ui", "ai-sdk"])
def test_others_bodies(name: str, read: Callable[[bytes], object], good: dict[str, Any]) -> None:
    """What their schemas call invalid is refused; the rest has conditions that no schema can say."""
    schema = validator(with_jwt(), {"$ref": f"#/components/schemas/{name}"})
    fields = with_jwt()["components"]["schemas"][name]["properties"]
    some: list[Any] = [[], None, {**RUN, "resume": [{}]}]
    some += [{**good, field: value} for field in fields for value in WRONG]
    some += [{key: value for key, value in good.items() if key != field} for field in good]
    invalid = [body for body in some if not schema.is_valid(body)]

    assert schema.is_valid(good)
    read(json.dumps(good).encode())
    assert len(invalid) > len(fields)
    for body in invalid:
        with pytest.raises((ValueError, msgspec.ValidationError)):
            read(json.dumps(body).encode())

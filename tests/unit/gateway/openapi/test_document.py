"""``GET /openapi.json``: it is an OpenAPI document, it tells of every route, and nothing that is not so."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backplane.settings import Settings
from gateway.app import build_admin_app, build_app
from gateway.errors import ERROR_CODES
from gateway.identity import SCOPES
from gateway.openapi.document import document
from gateway.pod import Pod
from tests.unit.gateway.openapi.judge import (
    Document,
    closed,
    document_of,
    find,
    operations,
    resolved,
    validator,
    with_jwt,
    without_tokens,
)
from tests.unit.gateway.web import StubPod, check_problem, client_of, with_tokens

PATH = "/openapi.json"
GATEWAY = Path(__file__).parents[4] / "gateway"
KINDS: dict[str, tuple[Callable[[], StubPod], bool]] = {
    "with tokens": (with_tokens, False),
    "without": (StubPod, False),
    "clients' port": (lambda: with_tokens(admin_port=9_000), False),
    "operators' port": (lambda: with_tokens(admin_port=9_000), True),
}  # fmt: skip


@cache
def of_kind(kind: str) -> Document:
    make, admin = KINDS[kind]
    return document_of(make(), admin=admin)


@pytest.fixture(params=KINDS)
def told(request: pytest.FixtureRequest) -> Document:
    """Nothing that a test may change."""
    return of_kind(request.param)


# The document as such.


def test_it_is_valid(told: Document) -> None:
    """By the specification's own schema."""
    assert [error.message for error in OpenAPIV31SpecValidator(told).iter_errors()] == []


async def nothing(_request: Request) -> Response:
    """Stands for an endpoint."""
    return Response()


SOME = document(
    Settings(auth="none"),
    [
        Route("/livez", nothing),
        Route("/api/chat/tasks/{task_id}", nothing),
        Route("/api/chat/send", nothing, methods=["POST"]),
    ],
)


def test_some_of_it_is_valid() -> None:
    """What is broken below."""
    assert list(OpenAPIV31SpecValidator(json.loads(json.dumps(SOME))).iter_errors()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("info", "version"), None),
        (("paths", "/livez", "get", "summary"), 5),
        (("paths", "/livez", "get", "operationId"), "send"),
        (("paths", "/api/chat/send", "post", "requestBody", "content"), 5),
        (("paths", "/api/chat/tasks/{task_id}", "get", "parameters"), []),
        (("components", "schemas", "Problem", "type"), "thing"),
        (("components", "schemas", "ChatBody", "properties", "message_type", "default"), 5),
    ],
)
def test_the_validator_looks(path: tuple[str, ...], value: Any) -> None:
    """What is wrong is found: something left out (None), or of a wrong kind."""
    told = json.loads(json.dumps(SOME))
    inner = told
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value

    assert list(OpenAPIV31SpecValidator(told).iter_errors())


@pytest.mark.parametrize("kind", KINDS)
def test_every_route_is_told(kind: str) -> None:
    """And no other, at either port; HEAD goes with GET."""
    make, admin = KINDS[kind]
    pod = make()
    app = (build_admin_app if admin else build_app)(pod.as_pod())
    there = {
        (method, route.path)
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }

    assert {(method, path) for method, path, _ in operations(document_of(pod, admin=admin))} == there
    assert ("GET", PATH) in there


def test_a_route_that_nobody_described() -> None:
    """Ends the start, and with it every test."""
    with pytest.raises(KeyError):
        document(Settings(auth="none"), [Route("/api/new", nothing)])


def test_names_are_told_apart(told: Document) -> None:
    """Client libraries name their functions after them."""
    names = [operation["operationId"] for _, _, operation in operations(told)]

    assert len(set(names)) == len(names)


def test_everything_has_words(told: Document) -> None:
    """Each field, parameter, answer and header says what it is."""
    schemas = told["components"]["schemas"]
    for name, schema in schemas.items():
        assert schema["description"], name
        for field, about in schema.get("properties", {}).items():
            assert about.get("description"), f"{name}.{field}"
    for _, path, operation in operations(told):
        assert operation["summary"], path
        parts = (*operation.get("parameters", ()), *operation["responses"].values())
        assert all(part["description"] for part in parts), path


def test_no_schema_is_left_over(told: Document) -> None:
    """Each port tells of what it serves."""
    text = json.dumps(told)
    assert [name for name in told["components"]["schemas"] if f'schemas/{name}"' not in text] == []


# Examples.


def test_examples_are_examples(told: Document) -> None:
    """Each fits its schema, and has no field that the schema does not name."""
    seen = 0
    for _, path, operation in operations(told):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for part in (*bodies, *operation["responses"].values()):
            for media in part.get("content", {}).values():
                for name, example in media.get("examples", {}).items():
                    errors = list(validator(told, media["schema"], strict=True).iter_errors(example["value"]))
                    assert errors == [], f"{path} {name}: {errors}"
                    seen += 1
    problem = closed(told["components"]["schemas"])["Problem"]
    for example in problem["examples"]:
        validator(told, problem).validate(example)
    assert seen > 5


def test_every_answer_in_json_has_an_example(told: Document) -> None:
    """But the document itself."""
    for _, path, operation in operations(told):
        for status, response in operation["responses"].items():
            if status.startswith("2") and path != PATH:
                for media_type, media in response.get("content", {}).items():
                    assert media.get("examples") or "text/plain" in response["content"], (path, media_type)


def test_the_example_of_a_stream() -> None:
    """It is what an ``EventSource`` reads: the messages of the log, each with its cursor."""
    told = with_jwt()
    response = find(told, "GET", "/api/chat/sessions/s-1/events")[1]["responses"]["200"]
    stream = response["content"]["text/event-stream"]["examples"]["native"]["value"]
    events = [
        dict(line.split(": ", 1) for line in event.split("\n")) for event in stream.strip().split("\n\n")
    ]
    messages = [json.loads(event["data"]) for event in events]

    for message in messages:
        validator(told, {"$ref": "#/components/schemas/Message"}, strict=True).validate(message)
    assert [message["type"] for message in messages] == ["connection_ack", "user_message", "agent_response"]
    for event, message in zip(events[1:], messages[1:], strict=True):
        assert event["id"] == f"{message['metadata']['epoch']}:{message['metadata']['seq']}"


def test_a_pod_says_of_itself_what_is_told() -> None:
    """The fields of the statistics are those of a real pod."""
    schema = {"$ref": "#/components/schemas/PodStats"}
    summary = {"pod_id": "pod-1", **Pod(Settings(auth="none")).summary()}

    validator(with_jwt(), schema, strict=True).validate(summary)


# What the code knows.


def test_error_codes_are_the_closed_list(told: Document) -> None:
    """Each with its meaning; and an answer names only such."""
    about = told["components"]["schemas"]["Problem"]["properties"]["error_code"]
    assert about["enum"] == list(ERROR_CODES)
    assert all(f"`{code}`: {meaning}" in about["description"] for code, meaning in ERROR_CODES.items())
    for status, codes in refused(told):
        assert set(codes) <= set(ERROR_CODES), status
        assert len(set(codes)) == len(codes)


def refused(told: Document) -> list[tuple[int, list[str]]]:
    """The problems that the document tells of, by status."""
    return [
        (int(status), media["schema"]["properties"]["error_code"]["enum"])
        for _, _, operation in operations(told)
        for status, response in operation["responses"].items()
        for media_type, media in response.get("content", {}).items()
        if media_type == "application/problem+json"
    ]


OF_SOCKETS = {
    (400, "not_an_object"),
    (400, "unknown_type"),
    (400, "not_text"),
    (403, "closed_by_admin"),
    (409, "replaced"),
    (429, "too_many_in_flight"),
}
BY_THE_FRAMEWORK = {(405, "method_not_allowed")}


def raised() -> dict[tuple[int, str], list[bool]]:
    """Statuses and codes of all errors in the source, and of each whether it says when to come back."""
    found: dict[tuple[int, str], list[bool]] = {}
    for path in GATEWAY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "ClientError"
            ):
                values = [one.value for one in node.args[:2] if isinstance(one, ast.Constant)]
                if len(values) == 2:
                    says_when = any(one.arg == "retry_after_s" for one in node.keywords)
                    found.setdefault((int(str(values[0])), str(values[1])), []).append(says_when)
    return found


def test_every_refusal_in_the_source_is_told() -> None:
    """By status and code, somewhere; and none is told that the source does not know."""
    told = {
        (status, code)
        for one in (with_jwt(), without_tokens())
        for status, codes in refused(one)
        for code in codes
    }

    assert set(raised()) - OF_SOCKETS - told == set()
    assert told - set(raised()) - BY_THE_FRAMEWORK == set()


def test_who_is_to_come_back_is_told_when() -> None:
    """429 and 503 have ``Retry-After``, in the source as in the document."""
    for (status, code), says_when in raised().items():
        assert status not in (429, 503) or all(says_when), code
    for _, path, operation in operations(with_jwt()):
        for number in {"429", "503"} & set(operation["responses"]):
            response = operation["responses"][number]
            if "application/problem+json" in response["content"]:
                assert "Retry-After" in response["headers"], path
    assert resolved(with_jwt(), {"$ref": "#/components/headers/Retry-After"})["required"]


def test_scopes() -> None:
    """Each operation names those that it needs, and each scope opens something."""
    asked = {
        scope
        for _, _, operation in operations(with_jwt())
        for one in operation["security"]
        for scopes in one.values()
        for scope in scopes
    }
    assert asked == set(SCOPES)
    assert "securitySchemes" not in without_tokens()["components"]
    for _, path, operation in operations(without_tokens()):
        assert operation["security"] == []
        assert "401" not in operation["responses"], path


def test_metrics_at_a_port_of_their_own() -> None:
    """There nobody is asked for a token."""
    admin = document_of(with_tokens(admin_port=9_000), admin=True)

    assert admin["paths"]["/metrics"]["get"]["security"] == []
    assert with_jwt()["paths"]["/metrics"]["get"]["security"] == [{"bearer": ["stats"]}]


def test_settings_are_told() -> None:
    """Limits and names are those in force."""
    pod = StubPod(
        message_max_bytes=12_345, json_depth_max=17, sends_per_minute=(7, 8, 9, 0), environment="staging"
    )
    told = document_of(pod)
    send = told["paths"]["/api/chat/send"]["post"]
    example = send["responses"]["200"]["content"]["application/json"]["examples"]["accepted"]["value"]

    assert "12345 bytes and 17 levels" in told["info"]["description"]
    assert "| advance | 8 | 1000 | 100 | 60 s |" in send["description"]
    assert ":staging:" in example["queue_name"]
    needed = {one["name"] for one in send["parameters"] if one["required"]}
    assert needed == {"X-Tenant-ID", "X-Tenant-Tier", "X-Session-ID", "X-Agent-ID"}
    with_token = with_jwt()["paths"]["/api/chat/send"]["post"]["parameters"]
    assert {one["name"] for one in with_token if one["required"]} == {"X-Agent-ID"}
    codes = send["responses"]["403"]["content"]["application/problem+json"]["schema"]["properties"][
        "error_code"
    ]
    assert "agent_forbidden" not in codes["enum"]  # without ACCESS_CHECK_URL


def test_sockets_are_pointed_at(told: Document) -> None:
    """OpenAPI cannot describe them; the page that does exists, with that heading."""
    if "/api/chat/send" not in told["paths"]:
        assert "x-websocket" not in told
        return
    page, _, heading = told["x-websocket"]["documentation"].partition("#")
    assert f"## {heading.replace('-', ' ').capitalize()}\n" in (GATEWAY.parent / page).read_text()


# Over HTTP.


async def test_anybody_may_read_it() -> None:
    """Without a token; it is what was made, and may be kept for a while."""
    for pod in (with_tokens(), StubPod()):
        async with client_of(pod) as client:
            answer = await client.get(PATH)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == document_of(pod)
        assert answer.headers["cache-control"] == "public, max-age=300"
        assert pod.commands.called == []


async def test_who_has_it_is_not_sent_it_again() -> None:
    """A conditional request (RFC 9110, 13.1.2); another pod of the same settings has the same."""
    async with client_of(with_tokens()) as client, client_of(with_tokens()) as another:
        tag = (await client.get(PATH)).headers["etag"]
        for known in (tag, f'"x", W/{tag}'):
            again = await another.get(PATH, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await another.get(PATH, headers={"If-None-Match": '"x"'})).status_code == 200
    async with client_of(with_tokens(message_max_bytes=5_000)) as client:
        assert (await client.get(PATH)).headers["etag"] != tag


async def test_each_port_has_its_own() -> None:
    """The operators' addresses are told where they are, and nowhere else."""
    pod = with_tokens(admin_port=9_000)
    async with client_of(pod) as client, client_of(pod, admin=True) as operator:
        told, operators = (await client.get(PATH)).json(), (await operator.get(PATH)).json()

    assert "/api/chat/send" in told["paths"]
    assert not [path for path in told["paths"] if "admin" in path]
    assert "/api/admin/connections" in operators["paths"]
    assert "/api/chat/send" not in operators["paths"]


@pytest.mark.parametrize("origin", ["https://evil.test", "null"])
async def test_pages_of_strangers(origin: str) -> None:
    """Read it as little as anything else: without tokens they are refused, with tokens they may not read."""
    async with client_of(StubPod()) as client:
        check_problem(await client.get(PATH, headers={"Origin": origin}), 403, "origin_not_allowed")
        check_problem(await client.get(PATH, headers={"Host": "evil.test"}), 403, "origin_not_allowed")
    async with client_of(with_tokens(allowed_origins="https://app.example.com")) as client:
        stranger = await client.get(PATH, headers={"Origin": origin})
        friend = await client.get(PATH, headers={"Origin": "https://app.example.com"})
    assert "access-control-allow-origin" not in stranger.headers
    assert friend.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "origin" in friend.headers["vary"].lower()

"""Errors as clients meet them: a closed list of codes, close codes, and problem documents."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import gateway
from gateway.close_codes import CloseCode
from gateway.errors import ERROR_CODES, ClientError, redis_unavailable
from gateway.http import problem_response
from gateway.problem import MEDIA_TYPE, problem_body, problem_headers

CONTRACT = {
    "DONE": 1000,
    "GOING_AWAY": 1001,
    "RESTART": 1012,
    "TRY_LATER": 1013,
    "SLOW_CONSUMER": 4001,
    "HEARTBEAT_MISSED": 4002,
    "REPLACED": 4003,
    "RATE_LIMITED": 4029,
    "BAD_TOKEN": 4501,
    "FORBIDDEN": 4503,
    "BAD_REQUEST": 4504,
    "BAD_FRAME": 4505,
}


def test_close_codes_are_the_contracts() -> None:
    """Clients decide by these numbers whether to come back: they never change."""
    assert {code.name: code.value for code in CloseCode} == CONTRACT


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, CloseCode.BAD_TOKEN),
        (403, CloseCode.FORBIDDEN),
        (429, CloseCode.RATE_LIMITED),
        (400, CloseCode.BAD_REQUEST),
        (404, CloseCode.BAD_REQUEST),
        (422, CloseCode.BAD_REQUEST),
    ],
)
def test_close_code_of_an_error(status: int, code: CloseCode) -> None:
    """A socket that is refused ends with the code that tells its client what to change."""
    assert ClientError(status, "bad_request", "x").close_code is code


def test_codes_are_a_closed_list() -> None:
    """A code that nobody documented cannot be told to a client."""
    with pytest.raises(AssertionError):
        ClientError(400, "made_up", "x")


def test_codes_are_words_with_a_meaning() -> None:
    """Each code can be shown in the documentation as it stands."""
    for code, meaning in ERROR_CODES.items():
        assert code.replace("_", "").isalpha()
        assert code.islower()
        assert meaning


def test_codes_in_the_source_are_documented() -> None:
    """Every code that the gateway's source gives to an error is in the list."""
    used = set()
    for path in Path(next(iter(gateway.__path__))).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2:
                code = node.args[1]
                if node.func.id in {"ClientError", "problem_body"} and isinstance(code, ast.Constant):
                    used.add(code.value)
    assert len(used) > 15
    assert used <= set(ERROR_CODES)


def test_error_is_its_detail() -> None:
    """In a traceback an error reads as what the client was told."""
    assert str(ClientError(404, "not_found", "there is nothing")) == "there is nothing"


def test_redis_away_says_when_to_come_back() -> None:
    """An outage is told as one, not as the client's fault."""
    error = redis_unavailable()

    assert (error.status, error.error_code, error.retry_after_s) == (503, "redis_unavailable", 1)


def test_problem_document() -> None:
    """RFC 9457: type, title, status and detail, and our code."""
    document = json.loads(problem_body(403, "forbidden", "the token does not allow it"))

    assert document == {
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "detail": "the token does not allow it",
        "error_code": "forbidden",
    }


@pytest.mark.parametrize(
    ("status", "retry_after_s", "headers"),
    [
        (400, None, {}),
        (401, None, {"WWW-Authenticate": "Bearer"}),
        (429, 7, {"Retry-After": "7"}),
        (429, 7.0, {"Retry-After": "7"}),
        (429, 7.001, {"Retry-After": "8"}),
        (429, 0.2, {"Retry-After": "1"}),
        (503, 0, {"Retry-After": "1"}),
        (429, 86_399.5, {"Retry-After": "86400"}),
    ],
)
def test_problem_headers(status: int, retry_after_s: float | None, headers: dict[str, str]) -> None:
    """401 names the scheme (RFC 9110, 11.6.1); what passes says when, in whole seconds, never too early."""
    error = ClientError(status, "bad_request", "x", retry_after_s=retry_after_s)

    assert dict(problem_headers(error)) == headers


def test_headers_of_the_error_itself_come_along() -> None:
    """What an error carries besides is sent too, before the usual ones."""
    limits = (("RateLimit", '"minute";r=0;t=60'), ("RateLimit-Policy", '"minute";q=10;w=60'))
    error = ClientError(429, "rate_limited", "x", retry_after_s=1.5, limit="minute", headers=limits)

    assert problem_headers(error) == [*limits, ("Retry-After", "2")]


def test_problem_document_names_the_limit() -> None:
    """Which limit was reached stands in a member of its own; other problems have none."""
    assert json.loads(problem_body(429, "rate_limited", "x", "minute"))["limit"] == "minute"
    assert "limit" not in json.loads(problem_body(429, "rate_limited", "x"))


@pytest.mark.parametrize(
    ("status", "later"), [(400, False), (401, False), (403, False), (429, True), (503, True)]
)
def test_what_may_go_well_later(status: int, later: bool) -> None:
    """A socket that is refused for a while is answered in HTTP, where a client looks for Retry-After."""
    assert ClientError(status, "bad_request", "x").is_for_later is later


def test_problem_response() -> None:
    """Status, media type, headers and body belong together."""
    response = problem_response(ClientError(503, "queue_full", "full", retry_after_s=5, limit="pod"))

    assert response.status_code == 503
    assert response.headers["content-type"] == MEDIA_TYPE == "application/problem+json"
    assert response.headers["retry-after"] == "5"
    assert json.loads(bytes(response.body))["status"] == 503
    assert json.loads(bytes(response.body))["limit"] == "pod"

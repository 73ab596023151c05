"""What all HTTP endpoints do alike: read a body within limits, and take no token that is not clear."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from starlette.requests import Request

from backplane.settings import Settings
from gateway.errors import ClientError
from gateway.http import bearer_token, exception_handlers, header, query, read_body

Headers = list[tuple[str, str]]


def request(
    *pieces: bytes, headers: Headers | None = None, query_string: bytes = b"", hangs: bool = False
) -> Request:
    """A request whose body comes in pieces; with ``hangs`` there is no end of it."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers or []]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": query_string}
    waiting = list(pieces)

    async def receive() -> dict[str, Any]:
        if waiting:
            piece = waiting.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(waiting) or hangs}
        if hangs:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    return Request(scope, receive)


async def refusal(asked: Request, settings: Settings) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        await read_body(asked, settings)
    return caught.value.status, caught.value.error_code


LIMITS = Settings(message_max_bytes=1_024, request_timeout_s=30.0)


# Bodies.


@pytest.mark.parametrize(
    "pieces", [(), (b"",), (b"hello",), (b"he", b"", b"llo"), (b"x" * 1_024,), (b"x" * 512,) * 2]
)
async def test_a_body(pieces: tuple[bytes, ...]) -> None:
    """In however many pieces, up to the limit."""
    assert await read_body(request(*pieces), LIMITS) == b"".join(pieces)


@pytest.mark.parametrize("pieces", [(b"x" * 1_025,), (b"x" * 1_024, b"x"), (b"x",) * 1_025])
async def test_a_large_body(pieces: tuple[bytes, ...]) -> None:
    """One byte more is too large."""
    assert await refusal(request(*pieces), LIMITS) == (413, "message_too_large")


async def test_a_large_body_is_not_awaited() -> None:
    """What is too large already is not read to its end."""
    assert await refusal(request(b"x" * 1_025, hangs=True), LIMITS) == (413, "message_too_large")


@pytest.mark.parametrize("pieces", [(), (b"he",), (b"he", b"ll")])
async def test_a_slow_body(pieces: tuple[bytes, ...]) -> None:
    """A body has its time, and no client holds a request open by sending a byte now and then."""
    slow = Settings(request_timeout_s=0.1)

    assert await refusal(request(*pieces, hangs=True), slow) == (408, "request_timeout")


async def test_a_client_that_leaves() -> None:
    """A body that ends before it is whole is its client's matter, and no mistake of ours."""
    asked = request(b"he", hangs=True)
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b"he", "more_body": True}]
    messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    assert await refusal(Request(asked.scope, receive), LIMITS) == (400, "bad_request")


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate, gzip", "identity, gzip", "x", " gzip"])
async def test_a_compressed_body(encoding: str) -> None:
    """What it grows to is not known before, so it is not taken at all."""
    asked = request(b"hello", headers=[("Content-Encoding", encoding)])

    assert await refusal(asked, LIMITS) == (415, "unsupported_encoding")


@pytest.mark.parametrize("encoding", ["identity", "Identity"])
async def test_a_body_that_says_it_is_not_compressed(encoding: str) -> None:
    """Is as good as one that says nothing."""
    assert await read_body(request(b"hello", headers=[("Content-Encoding", encoding)]), LIMITS) == b"hello"


# Tokens.


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (None, None),
        ("", None),
        ("Bearer a.b.c", "a.b.c"),
        ("bearer a.b.c", "a.b.c"),
        ("BEARER a.b.c", "a.b.c"),
        ("Bearer   a.b.c  ", "a.b.c"),
        ("Bearer", None),
        ("Bearera.b.c", None),
        ("Basic YTpi", None),
        ("a.b.c", None),
        ("Token a.b.c", None),
        ("Bearer a b", "a b"),
    ],
)
def test_bearer_tokens(value: str | None, token: str | None) -> None:
    """As RFC 6750 has it; another scheme is no token."""
    headers = [] if value is None else [("Authorization", value)]

    assert bearer_token(request(headers=headers)) == token


def test_a_bearer_of_nothing() -> None:
    """Is refused as one without a token."""
    assert not bearer_token(request(headers=[("Authorization", "Bearer ")]))


@pytest.mark.parametrize("second", ["Bearer a.b.c", "Bearer d.e.f", "", "Basic YTpi"])
@pytest.mark.parametrize("name", ["Authorization", "authorization"])
def test_two_tokens(second: str, name: str) -> None:
    """A proxy may have checked one of them, and we would take the other."""
    asked = request(headers=[("Authorization", "Bearer a.b.c"), (name, second)])
    with pytest.raises(ClientError) as caught:
        bearer_token(asked)

    assert (caught.value.status, caught.value.error_code) == (400, "bad_request")
    assert "a.b.c" not in caught.value.detail


# Headers and parameters.


def test_headers() -> None:
    """One that is given once, whatever its case."""
    asked = request(headers=[("X-Tenant-ID", "acme"), ("X-Empty", "")])

    assert (header(asked, "x-tenant-id"), header(asked, "X-Empty"), header(asked, "X-Other")) == (
        "acme",
        "",
        None,
    )
    twice = request(headers=[("X-Tenant-ID", "acme"), ("x-tenant-id", "acme")])
    with pytest.raises(ClientError, match="X-Tenant-ID is given twice"):
        header(twice, "X-Tenant-ID")


def test_parameters() -> None:
    """Each once, also where they agree."""
    assert query(request(query_string=b"a=1&b=&c")) == {"a": "1", "b": "", "c": ""}
    for twice in (b"a=1&a=1", b"a=1&b=2&a=", b"a&a"):
        with pytest.raises(ClientError, match="given twice"):
            query(request(query_string=twice))


# Errors.


async def test_refusals_are_counted() -> None:
    """By their codes, for operators."""
    refused = Counter[str]()
    handle = exception_handlers(refused)[ClientError]
    for code in ("forbidden", "rate_limited", "forbidden"):
        await handle(request(), ClientError(403, code, "no"))

    assert refused == {"forbidden": 2, "rate_limited": 1}

"""Documents of other services: how much of them is read, for how long, and what is no answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import httpx
import pytest

from backplane.errors import ConfigurationError
from gateway.fetch import Fetcher, FetchError

URL = "https://user:secret@keys.test/set?key=secret"
Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


class Service:
    """What stands at the address, as far as the client's own transport; ``answer`` is its answer."""

    def __init__(self) -> None:
        self.asked: list[httpx.Request] = []
        self.answer: Handler = lambda _request: httpx.Response(200, json={"a": 1})

    async def handle(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.asked.append(request)
        answer = self.answer(request)
        return answer if isinstance(answer, httpx.Response) else await answer

    def says(self, status: int = 200, **more: Any) -> None:
        self.answer = lambda _request: httpx.Response(status, **more)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    client = partial(httpx.AsyncClient, transport=httpx.MockTransport(service.handle))
    monkeypatch.setattr(httpx, "AsyncClient", client)
    return service


@pytest.fixture
async def fetcher(service: Service) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(URL, "SOME_URL", 5.0)
    yield fetcher
    await fetcher.close()


async def failure(fetcher: Fetcher) -> str:
    """Why there is no answer; never with what the address holds."""
    with pytest.raises(FetchError) as caught:
        await fetcher.ask()
    assert "secret" not in str(caught.value)
    return str(caught.value)


def ascii_start(content: bytes) -> str:
    return ascii(content[:20])


UNREADABLE = [b'["\xff"]', b'{"keys":"\xff"}', b"[" * 100_000, b'{"a":' * 100_000]


# Addresses.


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example.org/keys",
        "http://127.0.0.1:8080/",
        "https://[2001:db8::1]:8443/keys?tenant=a",
        "https://user:secret@example.org/",
    ],
)
def test_addresses(url: str) -> None:
    """http and https, with all that may stand in such an address."""
    fetcher = Fetcher(url, "SOME_URL", 5.0)

    assert (fetcher.scheme, fetcher.host) == (httpx.URL(url).scheme, httpx.URL(url).host)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "keys",
        "/keys",
        "//login.example.org/keys",
        "login.example.org/keys",
        "https://",
        "https:///keys",
        "https://:443/",
        "https://user@/",
        "https:login.example.org",
        "https://example.org:0/",
        "https://example.org:http/",
        "https://example.org:70000/",
        "https://[::1/",
        "https://[1.2.3.4.5]/",
        "file:///etc/passwd",
        "ftp://example.org/",
        "unix:///run/keys.sock",
        "javascript:alert(1)",
    ],
)
def test_what_is_no_address(url: str) -> None:
    """The pod does not start, and names the setting, not the value: it may hold a password."""
    with pytest.raises(ConfigurationError) as caught:
        Fetcher(url, "SOME_URL", 5.0)
    assert str(caught.value) == "SOME_URL must be an address that begins with https:// or http://"


# Answers.


async def test_a_document(service: Service, fetcher: Fetcher) -> None:
    """A question without a body is a GET of exactly the address."""
    answer = await fetcher.ask()

    assert (answer.status, answer.document) == (200, {"a": 1})
    [request] = service.asked
    assert (request.method, request.content) == ("GET", b"")
    assert str(request.url) == URL
    assert request.headers["accept"] == "application/json"
    assert "content-type" not in request.headers


async def test_a_question_with_a_body(service: Service, fetcher: Fetcher) -> None:
    """It is a POST of JSON."""
    await fetcher.ask({"tenant_id": "acme", "user_id": None})

    [request] = service.asked
    assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
    assert json.loads(request.content) == {"tenant_id": "acme", "user_id": None}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_other_statuses(service: Service, fetcher: Fetcher, status: int) -> None:
    """They are answers without a document: what stands in an error page is of no interest."""
    service.says(status, content=b"<html>not JSON</html>")
    answer = await fetcher.ask()

    assert (answer.status, answer.document) == (status, None)


@pytest.mark.parametrize("content", [b"", b"  \n"])
async def test_nothing(service: Service, fetcher: Fetcher, content: bytes) -> None:
    """An empty answer is an answer without a document."""
    service.says(200, content=content)

    assert (await fetcher.ask()).document is None


@pytest.mark.parametrize(
    "content",
    [b"<html>", b"{", b'{"a":1} x', b"NaN", b"\xff\xfe", b"{'a': 1}", b"\0", *UNREADABLE],
    ids=ascii_start,
)
async def test_what_is_not_json(service: Service, fetcher: Fetcher, content: bytes) -> None:
    """It is said so, and nothing of it is shown."""
    service.says(200, content=content)

    assert await failure(fetcher) == "the answer is not JSON"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "to", ["https://evil.test/keys", "/other", "http://169.254.169.254/latest/meta-data"]
)
async def test_redirects(service: Service, fetcher: Fetcher, status: int, to: str) -> None:
    """Nobody is followed anywhere: what was configured is what is asked."""
    service.says(status, headers={"Location": to}, json={"keys": []})

    assert f"redirected ({status})" in await failure(fetcher)
    assert len(service.asked) == 1


async def test_the_largest_answer(service: Service, fetcher: Fetcher) -> None:
    """One MiB may come."""
    for size, ok in ((1024 * 1024, True), (1024 * 1024 + 1, False)):
        service.says(200, content=b'"' + b"x" * (size - 2) + b'"')
        if ok:
            assert len((await fetcher.ask()).document) == size - 2
        else:
            assert "over 1048576 bytes" in await failure(fetcher)


@pytest.mark.parametrize("status", [200, 302, 500])
async def test_an_endless_answer(service: Service, fetcher: Fetcher, status: int) -> None:
    """It is not read to its end, whatever its status."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 65_536

    service.answer = lambda _request: httpx.Response(status, content=endless())

    assert "over 1048576 bytes" in await failure(fetcher)
    assert sent <= 18


async def test_an_answer_that_does_not_come(service: Service) -> None:
    """There is one time for the whole of it."""

    async def never(_request: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    service.answer = never
    fetcher = Fetcher(URL, "SOME_URL", 0.01)

    assert await failure(fetcher) == "no answer within 0.01 s"
    await fetcher.close()


async def test_an_answer_that_comes_in_drops(service: Service) -> None:
    """Each of which would be in time."""

    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0)

    service.answer = lambda _request: httpx.Response(200, content=drops())
    fetcher = Fetcher(URL, "SOME_URL", 0.02)

    assert await failure(fetcher) == "no answer within 0.02 s"
    await fetcher.close()


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("gone"),
        httpx.DecodingError("no gzip"),
        httpx.InvalidURL("no address"),
        OSError(24, "too many open files"),
    ],
    ids=repr,
)
async def test_no_answer(service: Service, fetcher: Fetcher, error: Exception) -> None:
    """Whatever the client raises is a failure of one kind, which says what it was."""

    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    service.answer = fail

    assert type(error).__name__ in await failure(fetcher)


async def test_after_a_failure(service: Service, fetcher: Fetcher) -> None:
    """The next question is a new one."""
    service.says(200, content=b"{")
    await failure(fetcher)
    service.says(200, json=[1])

    assert (await fetcher.ask()).document == [1]


async def test_one_client_for_all_questions(
    service: Service, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are kept; there is none before the first question, and none after the end."""
    made: list[dict[str, Any]] = []
    real = httpx.AsyncClient

    def client(**more: Any) -> httpx.AsyncClient:
        made.append(more)
        return real(**more)

    monkeypatch.setattr(httpx, "AsyncClient", client)
    await Fetcher(URL, "SOME_URL", 5.0).close()
    assert made == []
    for _ in range(3):
        await fetcher.ask()

    assert len(made) == 1
    assert made[0]["follow_redirects"] is False


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whoever runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

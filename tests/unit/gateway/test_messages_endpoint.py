"""A session's log without a socket: who may read it, and from where."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from backplane.errors import RedisUnavailable
from tests.unit.gateway.fakes import PAGE_ENTRIES, SESSION
from tests.unit.gateway.web import StubPod, check_problem, client_of, with_tokens

PATH = "/api/chat/sessions/s-1/messages"


@pytest.fixture
def pod() -> StubPod:
    return with_tokens()


@pytest.fixture
async def client(pod: StubPod) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(pod) as client:
        yield client


async def page(client: httpx.AsyncClient, headers: dict[str, str], cursor: str = "") -> dict[str, Any]:
    response = await client.get(PATH, params={"cursor": cursor} if cursor else {}, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


async def test_page_by_page(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Each answer's cursor is where the next one begins; all of the log comes, in order and once."""
    pod.log.append(2 * PAGE_ENTRIES + 1, SESSION)
    cursor, texts, pages = "", [], 0
    more = True
    while more:
        answer = await page(client, pod.bearer("listen"), cursor)
        texts += [message["text"] for message in answer["messages"]]
        cursor, more, pages = answer["cursor"], answer["more"], pages + 1
        assert (answer["status"], answer["oldest"], answer["head"]) == ("replayed", 1, 2 * PAGE_ENTRIES + 1)
    assert texts == list(range(1, 2 * PAGE_ENTRIES + 2))
    assert pages == 3
    answer = await page(client, pod.bearer("listen"), cursor)

    assert (answer["messages"], answer["status"], answer["cursor"], answer["more"]) == (
        [],
        "fresh",
        cursor,
        False,
    )


async def test_a_session_that_is_not_there(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Nothing is in it, and it is not begun by looking."""
    answer = await page(client, pod.bearer("listen"))

    assert (answer["messages"], answer["cursor"], answer["more"]) == ([], "", False)
    assert pod.log.records == {}


async def test_a_cursor_of_what_is_gone(pod: StubPod, client: httpx.AsyncClient) -> None:
    """It is told, and the log is read from its beginning."""
    pod.log.append(2, SESSION)
    answer = await page(client, pod.bearer("listen"), "another:9")

    assert (answer["status"], [message["text"] for message in answer["messages"]]) == ("reset", [1, 2])


async def test_whose_it_is(pod: StubPod, client: httpx.AsyncClient) -> None:
    """Its owner's and its administrators', and of no other user of the tenant."""
    pod.log.append(1, SESSION)
    pod.log.record().owner = "ann"
    for who, ok in (
        (pod.bearer("listen", user_id="ann"), True),
        (pod.bearer("listen", "admin"), True),
        (pod.bearer("listen", user_id="bob"), False),
        (pod.bearer("listen", "admin", user_id="bob"), False),
        (pod.bearer("listen"), False),
        ({**pod.bearer("listen"), "X-User-ID": "ann"}, False),
    ):
        response = await client.get(PATH, headers=who)
        if ok:
            assert len(response.json()["messages"]) == 1
        else:
            check_problem(response, 403, "session_taken")


@pytest.mark.parametrize(
    ("scopes", "token", "more", "status", "code"),
    [
        (["chat", "admin"], {}, {}, 403, "scope_missing"),
        (["listen"], {"sessions": ["s-2"]}, {}, 403, "forbidden"),
        (["listen"], {"sessions": ["web-*"]}, {}, 403, "forbidden"),
        (["listen"], {"tenant": "*"}, {}, 403, "forbidden"),
        (["listen"], {}, {"X-Tenant-ID": "evil"}, 403, "forbidden"),
        (["listen"], {}, {"X-Agent-ID": "a b"}, 400, "invalid_id"),
    ],
)
async def test_who_may_not(
    pod: StubPod, client: httpx.AsyncClient, scopes: Any, token: Any, more: Any, status: int, code: str
) -> None:
    """What a token does not allow on a socket, it does not allow here."""
    check_problem(await client.get(PATH, headers={**pod.bearer(*scopes, **token), **more}), status, code)
    assert pod.log.calls == []


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        (f"{PATH}?cursor=hello", 400, "invalid_cursor"),
        (f"{PATH}?cursor=e1:-1", 400, "invalid_cursor"),
        (f"{PATH}?cursor=e1:1&cursor=e1:2", 400, "bad_request"),
        ("/api/chat/sessions/a%20b/messages", 400, "invalid_id"),
        ("/api/chat/sessions/*/messages", 400, "invalid_id"),
        ("/api/chat/sessions/a%2Fb/messages", 404, "not_found"),
        ("/api/chat/sessions//messages", 404, "not_found"),
    ],
)
async def test_what_is_no_session_or_place(
    pod: StubPod, client: httpx.AsyncClient, path: str, status: int, code: str
) -> None:
    """It is told, and nothing is read."""
    check_problem(await client.get(path, headers=pod.bearer("listen")), status, code)
    assert pod.log.calls == []


async def test_without_a_token(client: httpx.AsyncClient) -> None:
    """Nobody reads anything."""
    check_problem(await client.get(PATH), 401, "token_missing")


async def test_while_redis_is_away(pod: StubPod, client: httpx.AsyncClient) -> None:
    """An outage is no empty log."""
    pod.log.append(1, SESSION)
    pod.log.refusal = RedisUnavailable("away")

    check_problem(await client.get(PATH, headers=pod.bearer("listen")), 503, "redis_unavailable")

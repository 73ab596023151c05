"""``GET /api/chat/sessions/{session_id}/messages``: a session's log for who has no socket open."""

from __future__ import annotations

import time
from typing import Any

import redis

from tests.support.accounting import callback
from tests.support.processes import Cluster, get, wait_for
from tests.support.talk import open_socket, receive

LIST = "orchestrator:acme:callbacks"
WHO = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free"}


def page(cluster: Cluster, session_id: str, query: str = "", pod: int = 0) -> tuple[int, Any]:
    return get(f"{cluster.pods[pod].url}/api/chat/sessions/{session_id}/messages{query}", headers=WHO)


def test_a_log_is_read_page_by_page_on_any_pod(cluster: Cluster, aes: redis.Redis) -> None:
    """Every message once and in order, by the cursor of the page before, whichever pod is asked."""
    count = 700
    for number in range(count):
        aes.lpush(LIST, callback("acme", "paged", f"t-{number}"))
    wait_for(lambda: page(cluster, "paged")[1]["head"] == count, "all are in the log")
    found, cursor, pages = [], "", 0
    while True:
        status, answer = page(cluster, "paged", f"?cursor={cursor}" if cursor else "", pod=pages % 2)
        assert status == 200
        found += [message["task_id"] for message in answer["messages"]]
        cursor, pages = answer["cursor"], pages + 1
        if not answer["more"]:
            break
    assert found == [f"t-{number}" for number in range(count)]
    assert pages > 1
    status, nothing = page(cluster, "paged", f"?cursor={cursor}")
    assert (nothing["messages"], nothing["status"], nothing["cursor"]) == ([], "fresh", cursor)
    print(f"\n{count} messages in {pages} pages")


def test_reading_is_not_receiving(cluster: Cluster, aes: redis.Redis) -> None:
    """What was only read is still sent to the next socket that comes without a cursor."""
    aes.lpush(LIST, callback("acme", "unsent", "only-read"))
    wait_for(lambda: page(cluster, "unsent")[1]["head"] == 1, "it is in the log")
    with open_socket(cluster.pods[1], "unsent") as socket:
        assert receive(socket)["data"]["resume"]["status"] == "replayed"
        assert receive(socket)["task_id"] == "only-read"


def test_a_session_that_is_not_there_is_not_begun(cluster: Cluster, aes: redis.Redis) -> None:
    """Reading leaves no keys behind."""
    status, answer = page(cluster, f"nobody-{time.time_ns()}")
    assert (status, answer["messages"], answer["head"], answer["cursor"]) == (200, [], 0, "")
    assert not aes.keys("*nobody-*")


def test_a_cursor_of_another_log_is_told(cluster: Cluster, aes: redis.Redis) -> None:
    """`reset`, and what is left from the oldest on; a malformed one is an error."""
    aes.lpush(LIST, callback("acme", "reset", "left"))
    wait_for(lambda: page(cluster, "reset")[1]["head"] == 1, "it is in the log")
    status, answer = page(cluster, "reset", "?cursor=another:5")
    assert (status, answer["status"]) == (200, "reset")
    assert [message["task_id"] for message in answer["messages"]] == ["left"]
    assert page(cluster, "reset", "?cursor=nonsense")[0] == 400
    assert page(cluster, "reset", "?cursor=a:1&cursor=a:2")[0] == 400

"""The terminal client: what it makes of messages and lost connections, and the little that carries it out."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidMessage, InvalidStatus
from websockets.http11 import Response

from gateway import chat_client, chat_state
from gateway.chat_client import run_chat, socket_url
from gateway.chat_state import ChatState, Do, EndLine, Reconnect, Send, Show, Stop

NOW = 1_000.0


def state(*, leaving: bool = True) -> ChatState:
    return ChatState("sales", leaving=leaving, jitter=lambda: 1.0)


def message(
    kind: str, seq: int = 0, *, epoch: str = "e1", task_id: str | None = None, **data: Any
) -> dict[str, Any]:
    """As the server sends it; with a ``seq``, one of the log."""
    metadata = {"seq": seq, "epoch": epoch} if seq else {}
    if task_id is not None:
        data["task_id"] = task_id
    return {"type": kind, "data": data, "task_id": task_id, "session_id": "s-1", "metadata": metadata}


def greeting(cursor: str = "e1:0", status: str = "fresh") -> dict[str, Any]:
    return message("connection_ack", cursor=cursor, resume={"status": status})


def connected(*, leaving: bool = True, say: str | None = "hi") -> ChatState:
    """A client that has said something under the ref ``r-1``, which is not acked yet."""
    client = state(leaving=leaving)
    if say is not None:
        client.say(say, "r-1")
    client.received(greeting(), NOW)
    return client


def acked() -> ChatState:
    """As `connected`, and the task is ``t-1``."""
    client = connected()
    assert client.received(message("ack", ref="r-1", task_id="t-1"), NOW) == []
    return client


def shown(todo: list[Do]) -> list[str]:
    return [do.text for do in todo if isinstance(do, Show)]


def rest(todo: list[Do]) -> list[Do]:
    return [do for do in todo if not isinstance(do, Show | EndLine)]


def chunk(delta: str, offset: int, **more: Any) -> dict[str, Any]:
    return message("agent_chunk", task_id="t-1", delta=delta, offset=offset, **more)


# Saying something.


def test_what_is_said_waits_for_the_connection() -> None:
    """It is sent when the server has greeted, under one id for the server and the ack."""
    client = state()
    assert client.say("hi", "r-1") == []
    [send] = client.received(greeting(), NOW)
    assert send == Send(
        {"type": "chat", "ref": "r-1", "client_message_id": "r-1", "message": "hi", "agent_id": "sales"}
    )


def test_what_is_said_later_is_sent_at_once() -> None:
    """While connected."""
    client = connected(leaving=False, say=None)
    [send] = client.say("hi", "r-2")
    assert isinstance(send, Send)
    assert send.message["ref"] == "r-2"


def test_an_unacked_message_is_sent_again_under_the_same_id() -> None:
    """So that a server that has it knows it."""
    client = connected()
    client.closed(1006, "", NOW)
    [again] = client.received(greeting(), NOW)
    assert isinstance(again, Send)
    assert (again.message["ref"], again.message["client_message_id"]) == ("r-1", "r-1")


def test_an_acked_message_is_never_sent_again() -> None:
    """The server has it: sending again would ask twice."""
    client = acked()
    client.closed(1006, "", NOW)
    assert client.received(greeting(status="replayed"), NOW) == []


# Ends.


def test_the_answer_ends_it_with_0() -> None:
    """The one of the own task."""
    client = acked()
    other = client.received(message("agent_response", 1, task_id="t-0", response="older"), NOW)
    assert other == [Show("older")]
    todo = client.received(message("agent_response", 2, task_id="t-1", response="42"), NOW)
    assert todo == [Show("42"), Stop(0)]


def test_an_error_of_the_task_ends_it_with_1() -> None:
    """In the words of the server."""
    todo = acked().received(
        message("error", 1, task_id="t-1", error="out of luck", error_code="agent_failed"), NOW
    )
    assert todo == [Show("Error: out of luck", "error"), Stop(1)]


@pytest.mark.parametrize("place", ["message", "data"])
def test_a_task_id_in_one_place_will_do(place: str) -> None:
    """It stands in both, but the client does not insist."""
    answer = message("agent_response", 1, task_id="t-1", response="42")
    del (answer if place == "data" else answer["data"])["task_id"]
    assert acked().received(answer, NOW)[-1] == Stop(0)


@pytest.mark.parametrize(("kind", "status"), [("agent_response", 0), ("error", 1)])
def test_an_answer_quicker_than_the_ack_counts(kind: str, status: int) -> None:
    """The ack may come after the end of the task."""
    client = connected()
    assert rest(client.received(message(kind, 1, task_id="t-1", response="42"), NOW)) == []
    assert client.received(message("ack", ref="r-1", task_id="t-1"), NOW) == [Stop(status)]


def test_a_replayed_answer_counts_when_the_second_ack_comes() -> None:
    """The first ack was lost, the answer came with the log, the message was sent again and was known."""
    client = connected()
    client.closed(1006, "", NOW)
    client.received(greeting(status="replayed"), NOW)
    client.received(message("agent_response", 1, task_id="t-1", response="42"), NOW)
    assert client.received(message("ack", ref="r-1", task_id="t-1", duplicate=True), NOW) == [Stop(0)]


def test_a_refused_message_ends_it_with_2() -> None:
    """There is no task, so nothing will follow."""
    todo = connected().received(message("error", ref="r-1", error="agent_id is needed"), NOW)
    assert todo == [Show("Error: agent_id is needed", "error"), Stop(2)]


def test_other_errors_do_not_end_it() -> None:
    """They are shown; a code stands for a missing text."""
    todo = acked().received(message("error", ref="r-9", error_code="internal_error"), NOW)
    assert todo == [Show("Error: internal_error", "error")]


def test_a_conversation_goes_on_after_answers() -> None:
    """Until the user leaves; then what is due is awaited, and the worst outcome is the status."""
    client = connected(leaving=False)
    client.say("and", "r-2")
    for ref, task_id in (("r-1", "t-1"), ("r-2", "t-2")):
        client.received(message("ack", ref=ref, task_id=task_id), NOW)
    assert rest(client.received(message("error", 1, task_id="t-1", error="no"), NOW)) == []
    assert client.leave() == []
    assert client.received(message("agent_response", 2, task_id="t-2", response="yes"), NOW)[-1] == Stop(1)


def test_leaving_with_nothing_due_is_immediate() -> None:
    """Exit status 0."""
    assert connected(leaving=False, say=None).leave() == [Stop(0)]


# Positions.


def test_the_cursor_is_the_last_message() -> None:
    """Before any, where the first connection began; later greetings do not move it."""
    client = state()
    assert client.cursor is None
    client.received(greeting("e1:7"), NOW)
    assert client.cursor == "e1:7"
    client.received(message("task_update", 8, step="x"), NOW)
    client.received(message("agent_chunk", delta="x", offset=0), NOW)
    client.received(greeting("e1:5"), NOW)
    assert client.cursor == "e1:8"


def test_known_messages_are_passed_over() -> None:
    """Also those that would end the task; the next new one is not."""
    client = acked()
    for seq in (1, 2):
        client.received(message("task_update", seq, step="x"), NOW)
    for seq in (1, 2):
        assert client.received(message("agent_response", seq, task_id="t-1", response="old"), NOW) == []
    assert client.received(message("agent_response", 3, task_id="t-1", response="new"), NOW)[-1] == Stop(0)


def test_a_new_epoch_begins_anew() -> None:
    """Its seqs say nothing of the old one's; that something is gone is said."""
    client = acked()
    client.received(message("task_update", 9, step="x"), NOW)
    assert shown(client.received(greeting("e2:0", "reset"), NOW)) == [
        "Some older messages are no longer kept; what is left follows."
    ]
    assert client.cursor == "e1:9"
    assert client.received(message("agent_response", 1, epoch="e2", task_id="t-1", response="x"), NOW)
    assert client.cursor == "e2:1"


# What is shown.


def test_an_answer_grows_and_is_not_shown_twice() -> None:
    """The whole answer adds only what did not come as a chunk."""
    client = acked()
    assert client.received(chunk("Hello ", 0), NOW) == [Show("Hello ", open="t-1")]
    assert client.received(chunk("world", 6), NOW) == [Show("world", open="t-1")]
    todo = client.received(message("agent_response", 1, task_id="t-1", response="Hello world!"), NOW)
    assert todo == [Show("!", open="t-1"), EndLine(), Stop(0)]


def test_a_complete_stream_is_just_ended() -> None:
    """There is nothing to add."""
    client = acked()
    client.received(chunk("Hello", 0), NOW)
    todo = client.received(message("agent_response", 1, task_id="t-1", response="Hello"), NOW)
    assert todo == [EndLine(), Stop(0)]


def test_a_stream_that_was_something_else_is_followed_by_the_answer() -> None:
    """The answer is what counts."""
    client = acked()
    client.received(chunk("Hell", 0), NOW)
    todo = client.received(message("agent_response", 1, task_id="t-1", response="Hi"), NOW)
    assert todo == [Show("Hi"), Stop(0)]


def test_a_snapshot_shows_what_is_new() -> None:
    """After a reconnect the whole text so far comes at offset 0."""
    client = acked()
    client.received(chunk("Hello ", 0), NOW)
    assert client.received(chunk("Hello wor", 0, snapshot=True), NOW) == [Show("wor", open="t-1")]
    assert client.received(chunk("ld", 9), NOW) == [Show("ld", open="t-1")]


def test_a_hole_in_the_stream_is_filled_by_the_answer() -> None:
    """Chunks are in no log."""
    client = acked()
    client.received(chunk("Hello ", 0), NOW)
    assert client.received(chunk("ld", 9), NOW) == []
    todo = client.received(message("agent_response", 1, task_id="t-1", response="Hello world"), NOW)
    assert todo[0] == Show("world", open="t-1")


def test_a_higher_attempt_replaces_the_text() -> None:
    """And what still comes of the lower one is passed over."""
    client = acked()
    client.received(chunk("Hell", 0, attempt=1), NOW)
    assert client.received(chunk("Good ", 0, attempt=2), NOW) == [
        Show("The agent begins again.", "dim"),
        Show("Good ", open="t-1"),
    ]
    assert client.received(chunk("o", 4, attempt=1), NOW) == []
    assert client.received(chunk("day", 5, attempt=2), NOW) == [Show("day", open="t-1")]


def test_one_answer_grows_at_a_time() -> None:
    """Others come whole, also when the first has ended in between."""
    client = acked()
    other = message("agent_chunk", task_id="t-0", delta="other ", offset=0)
    client.received(chunk("Hello ", 0), NOW)
    assert client.received(other, NOW) == []
    assert client.received(message("error", 1, task_id="t-1", error="no"), NOW)[-1] == Stop(1)
    assert client.received(message("agent_chunk", task_id="t-0", delta="one", offset=6), NOW) == []
    todo = client.received(message("agent_response", 2, task_id="t-0", response="other one"), NOW)
    assert todo[0] == Show("other one")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"step": "search", "message": "looking", "progress": 0.4}, "… search: looking (40%)"),
        ({"message": "looking"}, "… looking"),
        ({"status": "input_required", "progress": None}, "… input_required"),
        ({"tool": {"name": "sql"}}, "… sql"),
        ({}, "… working"),
    ],
)
def test_progress_is_one_dim_line(data: dict[str, Any], line: str) -> None:
    """Of whatever it says."""
    assert connected().received(message("task_update", 1, **data), NOW) == [Show(line, "dim")]


def test_events_are_shown() -> None:
    """With their payload as JSON."""
    todo = connected().received(message("event", topic="news", payload={"a": 1}), NOW)
    assert todo == [Show('event news: {"a":1}', "dim")]


def test_pings_are_answered() -> None:
    """The message; the library answers the frame."""
    assert connected().received(message("ping"), NOW) == [Send({"type": "pong"})]


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"type": None, "data": None, "metadata": None},
        {"type": "typing_indicator", "data": {}},
        {"type": "ack", "data": {"ref": ["r-1"]}},
        {"type": "ack", "data": {"ref": "r-1", "task_id": 5}},
        {"type": "agent_chunk", "data": {"delta": 1, "offset": "0"}},
        {"type": "agent_chunk", "data": {"delta": "x", "offset": 0, "part": "reasoning"}},
        {"type": "task_update", "metadata": {"seq": "1", "epoch": 1}},
        {"type": "reconnect", "data": {"after_ms": "soon"}},
        {"type": "connection_ack", "data": {"cursor": 1, "resume": "x"}},
    ],
)
def test_odd_messages_do_no_harm(odd: dict[str, Any]) -> None:
    """A newer server may say what this client does not know."""
    client = acked()
    assert rest(client.received(odd, NOW)) == []
    assert client.received(message("agent_response", 1, task_id="t-1", response="x"), NOW)[-1] == Stop(0)


# Lost connections.


@pytest.mark.parametrize("code", [1001, 1005, 1006, 1011, 1012, 1013, 4001, 4002, 4029])
def test_comes_back_after(code: int) -> None:
    """Soon, and later where the server is too busy."""
    [show, do] = acked().closed(code, "", NOW)
    assert isinstance(do, Reconnect)
    least = {1011: 1, 1013: 1, 4029: 5}.get(code, 0)
    assert do.after_s == least + 0.25
    assert isinstance(show, Show)
    assert f"({code}); trying again in" in show.text


@pytest.mark.parametrize("code", [4003, 4501, 4503, 4504, 4505])
def test_stays_away_after(code: int) -> None:
    """With a line that says why; also when the server had asked to move before."""
    client = acked()
    client.received(message("reconnect", after_ms=0), NOW)
    [show, stop] = client.closed(code, "", NOW)
    assert stop == Stop(2)
    assert isinstance(show, Show)
    assert f"({code})" in show.text
    assert show.style == "error"


def test_unknown_codes_end_it() -> None:
    """1000 too, while an answer is due."""
    assert acked().closed(4999, "odd", NOW) == [
        Show("The server ended the connection with code 4999: odd.", "error"),
        Stop(2),
    ]
    assert acked().closed(1000, "", NOW)[-1] == Stop(2)
    assert connected(leaving=False, say=None).closed(1000, "", NOW)[-1] == Stop(0)


def test_waits_longer_each_time_until_a_connection_was_steady() -> None:
    """Up to ten seconds."""
    client = acked()
    waits = [client.closed(1006, "", NOW)[-1] for _ in range(8)]
    assert waits == [Reconnect(s) for s in (0.25, 0.5, 1, 2, 4, 8, 10, 10)]
    client.received(greeting(), NOW)
    assert client.closed(1006, "", NOW + 5)[-1] == Reconnect(10)
    client.received(greeting(), NOW)
    assert client.closed(1006, "", NOW + 10)[-1] == Reconnect(0.25)


def test_the_wait_is_spread() -> None:
    """Half of it is chance, so that clients do not come back all at once."""
    client = ChatState("sales", leaving=True, jitter=lambda: 0.0)
    assert client.closed(1006, "", NOW)[-1] == Reconnect(0.125)


def test_moves_when_the_server_asks() -> None:
    """The connection is used until then; if it is closed before, the rest of the time is waited."""
    client = acked()
    assert client.move_in(NOW) is None
    assert client.received(message("reconnect", reason="drain", after_ms=3000), NOW) == []
    assert client.move_in(NOW + 1) == 2.0
    assert client.move_in(NOW + 9) == 0.0
    assert client.closed(1012, "", NOW + 1)[-1] == Reconnect(2.25)
    assert client.move_in(NOW + 1) is None


def test_moving_by_oneself_is_not_the_end() -> None:
    """The client's own Close has code 1000."""
    client = acked()
    client.received(message("reconnect", after_ms=1), NOW)
    assert client.closed(1000, "", NOW + 1)[-1] == Reconnect(0.25)


@pytest.mark.parametrize(
    ("status", "retry_after", "wait_s"),
    [
        (503, "3", 3.25),
        (429, "60", 60.25),
        (503, None, 0.25),
        (503, "Wed, 21 Oct", 0.25),
        (503, "999999999", 300.25),
        (502, None, 0.25),
    ],
)
def test_a_busy_server_is_tried_again(status: int, retry_after: str | None, wait_s: float) -> None:
    """Not before it says, and within reason."""
    [show, do] = state().refused(status, retry_after, "the pod stops")
    assert do == Reconnect(wait_s)
    assert f"HTTP {status}, the pod stops" in shown([show])[0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 426, 500])
def test_a_refusal_is_final(status: int) -> None:
    """Exit status 2."""
    assert state().refused(status, None, "")[-1] == Stop(2)


def test_an_unreachable_server_is_tried_again() -> None:
    """With growing waits."""
    client = state()
    assert [client.unreachable("no route")[-1] for _ in range(2)] == [Reconnect(0.25), Reconnect(0.5)]


# Addresses.


def test_addresses() -> None:
    """HTTP and WebSocket addresses, with a path in front, and nothing that was not given."""
    assert socket_url("http://h:1", "s-1") == "ws://h:1/ws/s-1?stream=1"
    assert socket_url("https://h/base/", "a@b/c").startswith("wss://h/base/ws/a%40b%2Fc?")
    url = socket_url("ws://h", "s", tenant_id="a", tenant_tier="free", agent_id="x", cursor="e:1")
    query = {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}
    assert query == {"stream": "1", "tenant_id": "a", "tenant_tier": "free", "agent_id": "x", "cursor": "e:1"}


@pytest.mark.parametrize("url", ["", "h:1", "localhost:8080", "ftp://h", "ws://", "//h"])
async def test_bad_addresses_are_said_to_be(url: str) -> None:
    """At once, with exit status 2."""
    out = io.StringIO()
    assert await chat(url, out) == 2
    assert "must be like ws://host:port" in out.getvalue()


# The shell, with sockets made of Python.


class PythonSocket:
    """A server's side of a connection: what it sends, then how it ends; answers chats by itself."""

    def __init__(self, *script: dict[str, Any] | int | str) -> None:
        self.script = list(script)
        self.sent: list[dict[str, Any]] = []
        self.told = asyncio.Event()
        self.close_code: int | None = None
        self.close_reason = ""

    async def recv(self) -> str:
        if not self.script:
            await asyncio.Event().wait()
        step = self.script.pop(0)
        if isinstance(step, int):
            self.close_code = step
            raise ConnectionClosedError(None, None)
        if isinstance(step, str):
            return step
        if step["type"] == "ack":
            await self.told.wait()
            step["data"]["ref"] = self.sent[-1]["ref"]
        return json.dumps(step)

    async def send(self, frame: str) -> None:
        assert isinstance(frame, str)
        self.sent.append(json.loads(frame))
        self.told.set()

    async def close(self) -> None:
        self.close_code = self.close_code or 1000


Attempt = PythonSocket | Exception


class PythonNet:
    """Gives one attempt after the other to `connect`, and notes how it was called."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.urls: list[str] = []
        self.headers: list[dict[str, str]] = []

    async def connect(self, url: str, *, additional_headers: dict[str, str], **_options: Any) -> PythonSocket:
        self.urls.append(url)
        self.headers.append(additional_headers)
        attempt = self.attempts.pop(0) if self.attempts else PythonSocket()
        if isinstance(attempt, Exception):
            raise attempt
        return attempt


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[PythonNet]:
    net = PythonNet()
    monkeypatch.setattr(chat_client, "connect", net.connect)
    monkeypatch.setattr(chat_state, "_BACKOFF_FIRST_S", 0.0)
    yield net
    assert not net.attempts


async def chat(
    url: str, out: io.StringIO, *, say: str | None = "hi", timeout_s: float = 10, token: str | None = None
) -> int:
    return await run_chat(
        url, token=token, tenant_id="acme", tenant_tier="free", session_id="s-1", agent_id="sales",
        message=say, timeout_s=timeout_s, out=out,
    )  # fmt: skip


ANSWER = message("agent_response", 2, task_id="t-1", response="Hello world")


def ack() -> dict[str, Any]:
    return message("ack", task_id="t-1", cursor="e1:0")


async def test_one_message_and_its_answer(net: PythonNet) -> None:
    """Progress, pieces, the rest, and nothing in colours that is not a terminal."""
    update = message("task_update", 1, step="think", message="hm")
    socket = PythonSocket(greeting(), ack(), update, chunk("Hello ", 0), message("ping"), "{", ANSWER)
    net.attempts = [socket]
    out = io.StringIO()
    assert await chat("ws://h", out, token="abc\n") == 0
    assert out.getvalue().splitlines() == [
        "… think: hm",
        "Hello ",
        "The server sent something that cannot be read.",
        "world",
    ]
    assert [frame["type"] for frame in socket.sent] == ["chat", "pong"]
    assert net.headers == [{"Authorization": "Bearer abc"}]
    assert socket.close_code == 1000


async def test_comes_back_with_the_cursor(net: PythonNet) -> None:
    """Over refusals, too; the message was acked, so it is sent once."""
    first = PythonSocket(greeting("e1:0"), ack(), message("task_update", 1), 1012)
    busy = InvalidStatus(Response(503, "", Headers({"Retry-After": "0"}), b'{"detail":"draining"}'))
    second = PythonSocket(greeting("e1:1", "replayed"), ANSWER)
    net.attempts = [OSError("refused"), first, busy, InvalidMessage("gone"), TimeoutError(), second]
    out = io.StringIO()
    assert await chat("ws://h", out) == 0
    cursors = [parse_qs(urlsplit(url).query).get("cursor") for url in net.urls]
    assert cursors == [None, None, ["e1:1"], ["e1:1"], ["e1:1"], ["e1:1"]]
    assert [len(socket.sent) for socket in (first, second)] == [1, 0]
    assert "HTTP 503, draining" in out.getvalue()
    assert out.getvalue().endswith("\nHello world\n")


async def test_moves_without_waiting_for_the_server(net: PythonNet) -> None:
    """When the time has come the client closes by itself."""
    first = PythonSocket(greeting(), ack(), message("reconnect", after_ms=1))
    net.attempts = [first, PythonSocket(greeting(), ANSWER)]
    assert await chat("ws://h", io.StringIO()) == 0
    assert first.close_code == 1000


async def test_a_refused_token_ends_it(net: PythonNet) -> None:
    """The server says why on the socket, then closes with 4501."""
    net.attempts = [PythonSocket(message("error", error="a token is needed"), 4501)]
    out = io.StringIO()
    assert await chat("ws://h", out) == 2
    assert out.getvalue().splitlines()[0] == "Error: a token is needed"
    assert "(4501)" in out.getvalue()


async def test_waiting_has_an_end(net: PythonNet) -> None:
    """Exit status 2."""
    net.attempts = [PythonSocket(greeting(), ack())]
    out = io.StringIO()
    assert await chat("ws://h", out, timeout_s=0.01) == 2
    assert out.getvalue() == "There is no answer after 0.01 s.\n"


async def test_a_conversation_ends_with_its_input(net: PythonNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is still due is awaited; empty lines are nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n\n  \n"))
    socket = PythonSocket(greeting(), ack(), ANSWER)
    net.attempts = [socket]
    out = io.StringIO()
    assert await chat("ws://h", out, say=None) == 0
    assert out.getvalue() == "Hello world\n"
    assert [frame["message"] for frame in socket.sent] == ["hi"]


async def test_a_mistake_is_not_swallowed(net: PythonNet) -> None:
    """What nobody expects ends the client with a traceback."""
    net.attempts = [RuntimeError("mistake")]
    with pytest.raises(RuntimeError, match="mistake"):
        await chat("ws://h", io.StringIO())


async def test_an_answer_does_not_steer_the_terminal(net: PythonNet) -> None:
    """Control characters are left out, styles are the client's own, what cannot be written is replaced."""

    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    raw = io.BytesIO()
    evil = message("agent_response", 2, task_id="t-1", response="a\x1b[2Jb\x07\r\x9b\tc\n\u20ac")
    net.attempts = [PythonSocket(greeting(), ack(), message("task_update", 1), evil)]
    assert await chat("ws://h", Terminal(raw, encoding="ascii", newline="\n")) == 0  # type: ignore[arg-type]
    assert raw.getvalue() == b"\x1b[2m? working\x1b[0m\na[2Jb\tc\n?\n"

"""The encoders against the clients of the other protocols themselves, over connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.encoders import inbound
from gateway.encoders.ag_ui import AgUiEncoder
from gateway.encoders.ai_sdk import AiSdkEncoder
from gateway.encoders.encoder import Encoder
from gateway.encoders.event_id import EventId, parse_event_id
from tests.support.stories import (
    Story,
    chunks,
    failure,
    message,
    question,
    response,
    tool,
    update,
)

JSON = dict[str, Any]
Run = Callable[..., Awaitable[JSON]]


class Replay:
    """A server that plays a story: by a plan it cuts connections, and lets things happen meanwhile.

    Args:
        cuts: for each connection but the last, after how many events it is cut, and how many messages are
            said until the client is back.
    """

    def __init__(self, story: Story, cuts: Sequence[tuple[int, int]], task_id: str) -> None:
        self._story = story
        self._cuts = list(cuts)
        self._task_id = task_id
        self._at = 0
        self.posted: list[inbound.Inbound] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, for one request."""
        try:
            method, target, headers, body = await _request(reader)
        except asyncio.IncompleteReadError:  # a client keeps a connection for a request that does not come
            writer.close()
            return
        try:
            encoder, cursor = self._encoder(method, target, headers.get("last-event-id"), body)
            await self._answer(writer, encoder, cursor)
        finally:
            writer.close()

    def _encoder(self, method: str, target: str, last: str | None, body: bytes) -> tuple[Encoder, str | None]:
        resume = None if last is None else parse_event_id(last)
        query = parse_qs(urlsplit(target).query)
        encoder: Encoder
        if query["format"] == ["ag-ui"]:
            encoder = self._ag_ui(method, query, resume, body)
        else:
            if method == "POST":
                self.posted.append(inbound.read_ai_sdk(body))
            encoder = AiSdkEncoder(task_id=self._task_id, resume=resume, reset_step=query.get("v") == ["7"])
        return encoder, None if resume is None else resume.replay_from

    def _ag_ui(self, method: str, query: Any, resume: EventId | None, body: bytes) -> Encoder:
        if method == "GET":
            return AgUiEncoder("s-1", task_id=query.get("task_id", [None])[0], resume=resume)
        posted = inbound.read_ag_ui(body)
        self.posted.append(posted)
        return AgUiEncoder(
            posted.thread_id,
            task_id=self._task_id,
            run_id=posted.run_id,
            messages=posted.messages,
            protocol_version=posted.protocol_version,
        )

    async def _answer(self, writer: asyncio.StreamWriter, encoder: Encoder, cursor: str | None) -> None:
        cut, away = self._cuts.pop(0) if self._cuts else (None, 0)
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Transfer-Encoding: chunked"]
        # Without "Connection: close": with it, node takes a connection that breaks for an end.
        lines += [f"{name}: {value}" for name, value in encoder.headers]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        left, now = cut, self._at
        for now, said in self._story.connection(self._at, cursor):  # noqa: B007  # where it was cut
            told = encoder.caught_up() if said is None else encoder.encode(said.message, said.position)
            for event in _whole(told):
                if left == 0:
                    break
                await _chunk(writer, event)
                left = None if left is None else left - 1
            if left == 0 or encoder.done:
                break
        self._at = min(now + away, len(self._story))
        if left == 0:
            await asyncio.sleep(0.05)  # a reset may overtake what was written before it
            writer.transport.abort()
            return
        await _chunk(writer, encoder.finish())
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, target, _ = head[0].split(" ")
    pairs = [line.partition(": ") for line in head[1:] if line]
    headers = {name.lower(): value for name, _, value in pairs}
    return method, target, headers, await reader.readexactly(int(headers.get("content-length", 0)))


def _whole(stream: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in stream.split(b"\n\n")[:-1]]


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    if data:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        await asyncio.sleep(0.001)  # so that the client reads event by event


@asynccontextmanager
async def replay(
    story: Story, cuts: Sequence[tuple[int, int]] = (), task_id: str = "t-1"
) -> AsyncIterator[tuple[str, Replay]]:
    """The server, and the address of its events without a format."""
    played = Replay(story, cuts, task_id)
    server = await asyncio.start_server(played.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"http://127.0.0.1:{port}/api/chat/sessions/s-1/events", played


ANSWER = "Grüße 🙂, the answer is 42."
PIECES = ["Grüße ", "🙂, the ", "answer", " is ", "42."]
THOUGHTS = ["Let me", " think."]


def talk(task_id: str = "t-1", answer: str = ANSWER) -> list[JSON]:
    """A task with everything: reasoning, a tool call between two pieces of text, progress, sources."""
    first, *others = chunks(task_id, *PIECES)
    return [
        question(task_id),
        message("typing_indicator", task_id),
        *chunks(task_id, *THOUGHTS, part="reasoning"),
        first,
        tool(task_id, "1", "started"),
        tool(task_id, "1", "running", args={"q": "life"}),
        update(task_id, step="write", message="writing", progress=0.5),
        tool(task_id, "1", "completed", args={"q": "life"}, result={"found": [42]}),
        *others,
        response(task_id, answer, sources=[{"url": "https://example.org/", "title": "Example"}, "a book"]),
    ]


def retried(task_id: str = "t-1") -> list[JSON]:
    """A task whose second attempt says something else."""
    return [
        message("typing_indicator", task_id),
        *chunks(task_id, "No", " idea", part="reasoning"),
        *chunks(task_id, "Wrong", " text"),
        *chunks(task_id, *THOUGHTS, attempt=2, part="reasoning"),
        *chunks(task_id, *PIECES, attempt=2),
        response(task_id, ANSWER),
    ]


CUTS = [[], [(9, 0)], [(3, 2), (5, 0), (4, 3)], [(1, 0)] * 4, [(14, 20)], [(20, 0), (6, 0)]]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("way", [("--get",), ("--post", "why?")], ids=lambda way: way[0])
async def test_ag_ui(run: Run, cuts: list[tuple[int, int]], way: tuple[str, ...]) -> None:
    """The whole answer once, whichever way the client comes back."""
    async with replay(Story(talk()), cuts) as (url, played):
        told = await run("ag_ui.mjs", f"{url}?format=ag-ui", *way)

    assert "".join(told["texts"]) == ANSWER
    assert "".join(THOUGHTS).startswith("".join(told["reasoning"]))
    assert told["calls"] == [{"id": "t-1/call/1", "name": "search", "args": '{"q":"life"}'}]
    assert told["results"] == [["t-1/call/1", '{"found":[42]}']]
    assert told["users"] == ["why?"]
    assert len(told["ids"]) == len(set(told["ids"]))
    assert [end["outcome"] for end in told["ends"]] == ["success"]
    assert told["ends"][0]["result"]["sources"][1] == "a book"
    assert told["errors"] == told["warnings"] == []
    assert min(len(cuts), 1) <= len(told["breaks"]) <= len(cuts)
    methods = [request["method"] for request in told["requests"]]
    assert methods == [way[0][2:].upper()] * (len(told["breaks"]) + 1)
    assert {asked.message for asked in played.posted} <= {"why?"}
    assert {asked.client_message_id for asked in played.posted} <= {"m-1"}


@pytest.mark.parametrize("cuts", [[], [(8, 0)], [(6, 4)], [(14, 0), (3, 9)]], ids=str)
@pytest.mark.parametrize("way", [("--get",), ("--post", "why?")], ids=lambda way: way[0])
async def test_ag_ui_attempt_that_is_replaced(
    run: Run, cuts: list[tuple[int, int]], way: tuple[str, ...]
) -> None:
    """What an attempt said that is replaced is no message of the assistant any more."""
    async with replay(Story(retried()), cuts) as (url, _):
        told = await run("ag_ui.mjs", f"{url}?format=ag-ui", *way)

    assert told["texts"] == [ANSWER]
    assert "No idea" not in told["reasoning"]
    assert set(told["activities"]) <= {"superseded"}
    assert told["warnings"] == []


@pytest.mark.parametrize("cut", [8, 9, 10, 11])
@pytest.mark.parametrize("way", [("--get",), ("--post", "why?")], ids=lambda way: way[0])
async def test_ag_ui_withdrawal_that_is_cut_off(run: Run, way: tuple[str, ...], cut: int) -> None:
    """Two messages were streamed that are not the answer; the connection breaks while they are taken back."""
    first, second = chunks("t-1", "The answer", " is 43")
    story = Story([first, tool("t-1", "1", "started"), second, response("t-1", "The answer is")])
    async with replay(story, [(cut, 0)]) as (url, _):
        told = await run("ag_ui.mjs", f"{url}?format=ag-ui&task_id=t-1", *way)

    assert "".join(told["texts"]) == "The answer is"
    assert set(told["activities"]) == {"superseded"}
    assert told["warnings"] == []


async def test_ag_ui_tasks_that_overlap(run: Run) -> None:
    """Two at once share a run; a third has its own; a failure does not end the stream."""
    one, two = talk("t-1"), talk("t-2")
    mixed = [said for pair in zip(one, two, strict=True) for said in pair]
    story = Story([*mixed, *chunks("t-3", "Hm"), failure("t-3", "timeout"), *talk("t-4")])
    async with replay(story, [(12, 3), (9, 0)]) as (url, _):
        told = await run("ag_ui.mjs", f"{url}?format=ag-ui", "--get")

    texts = {
        task: "".join([t for message_id, t in told["own"] if message_id.startswith(f"{task}/")])
        for task in ("t-1", "t-2", "t-3", "t-4")
    }
    assert texts == {"t-1": ANSWER, "t-2": ANSWER, "t-3": "Hm", "t-4": ANSWER}
    assert [end["outcome"] for end in told["ends"]] == ["success", "success"]
    assert told["errors"] == [{"message": "it broke", "code": "agent_failed"}]
    assert told["custom"].count("task_finished") == 1
    assert len(told["calls"]) == len(told["results"]) == 3
    assert told["warnings"] == []


@pytest.mark.parametrize(
    ("status", "outcome"), [("failed", None), ("timeout", None), ("cancelled", "cancelled")]
)
async def test_ag_ui_failure(run: Run, status: str, outcome: str | None) -> None:
    """A client is told how a run failed, and that a cancelled one did not."""
    story = Story([*chunks("t-1", "Hm"), tool("t-1", "c", "started"), failure("t-1", status)])
    async with replay(story) as (url, _):
        told = await run("ag_ui.mjs", f"{url}?format=ag-ui", "--post", "why?")

    assert told["texts"] == ["Hm"]
    assert told["results"] == [["t-1/call/c", status]]
    if outcome is None:
        assert told["errors"] == [{"message": "it broke", "code": "agent_failed"}]
    else:
        assert [end["outcome"] for end in told["ends"]] == [outcome]


async def test_ag_ui_interrupt(run: Run) -> None:
    """The agent's question ends the run; when the task goes on, so does its message."""
    asked = message("input_required", "t-1", input_id="i-1", prompt="Sure?", schema={"type": "boolean"})
    first, *others = chunks("t-1", *PIECES)
    story = Story([question("t-1"), first, asked, *others, response("t-1", ANSWER)])
    async with replay(story) as (url, _):
        told = await run("ag_ui.mjs", f"{url}?format=ag-ui", "--get")

    assert [end["outcome"] for end in told["ends"]] == ["interrupt", "success"]
    assert told["interrupts"] == [
        {
            "id": "t-1/input/i-1",
            "reason": "input_required",
            "message": "Sure?",
            "responseSchema": {"type": "boolean"},
        }
    ]
    assert told["texts"] == [ANSWER]


AI_WAYS = [("--get", "--continue"), ("--post", "why?", "--continue"), ("--get",), ("--post", "why?")]
VERSIONS = ["6", "7"]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("way", AI_WAYS, ids=" ".join)
@pytest.mark.parametrize("version", VERSIONS)
async def test_ai_sdk(run: Run, cuts: list[tuple[int, int]], way: tuple[str, ...], version: str) -> None:
    """The whole answer once, whether the client goes on or begins anew."""
    async with replay(Story(talk()), cuts) as (url, played):
        told = await run("ai_sdk.mjs", f"{url}?format=ai-sdk&v={version}", *way, "--version", version)

    assert "".join(told["texts"]) == ANSWER
    assert told["open"] == 0
    assert "".join(THOUGHTS).startswith("".join(told["reasoning"]))
    [call] = told["calls"]
    assert call["state"] == "output-available"
    assert (call["input"], call["output"]) == ({"q": "life"}, {"found": [42]})
    assert told["sources"] == ["https://example.org/", "a book"]
    [answer] = told["messages"]
    assert answer["id"] == answer["metadata"]["task_id"] == "t-1"
    assert answer["metadata"]["status"] == "completed"
    assert told["statuses"] == ["error"] * len(told["breaks"]) + ["ready"]
    assert told["finished"][-1] == {"isDisconnect": False, "isError": False, "finishReason": "stop"}
    assert min(len(cuts), 1) <= len(told["breaks"]) <= len(cuts)
    assert len(told["requests"]) == len(told["breaks"]) + 1
    assert {asked[:2] for asked in played.posted} <= {("why?", "m-1")}


async def test_ai_sdk_keeps_the_order_of_text_and_tools(run: Run) -> None:
    """What the agent said before a call stands before it, and what it said after it, after."""
    async with replay(Story(talk())) as (url, _):
        told = await run("ai_sdk.mjs", f"{url}?format=ai-sdk", "--get")

    kept = [kind for kind in told["order"] if not kind.startswith(("data-", "source-"))]
    assert kept == ["reasoning", "text", "dynamic-tool", "text"]
    assert told["texts"] == [PIECES[0], "".join(PIECES[1:])]


@pytest.mark.parametrize("cuts", [[], [(7, 0)], [(6, 4)], [(12, 0), (3, 9)]], ids=str)
@pytest.mark.parametrize("way", AI_WAYS[:3], ids=" ".join)
async def test_ai_sdk_attempt_that_is_replaced(
    run: Run, cuts: list[tuple[int, int]], way: tuple[str, ...]
) -> None:
    """Version 7 removes what a replaced attempt said; for version 6 a part says that it does not count."""
    for version in VERSIONS:
        async with replay(Story(retried()), cuts) as (url, _):
            told = await run("ai_sdk.mjs", f"{url}?format=ai-sdk&v={version}", *way, "--version", version)
        superseded = [data for kind, data in told["data"] if kind == "data-superseded"]
        if version == "7":
            assert told["texts"] == [ANSWER]
            assert superseded == []
        elif superseded:
            place = told["order"].index("data-superseded")
            before = told["order"][:place].count("text")
            assert "".join(told["texts"][before:]) == ANSWER
        else:
            assert told["texts"] == [ANSWER]


@pytest.mark.parametrize("version", VERSIONS)
async def test_ai_sdk_failure(run: Run, version: str) -> None:
    """A failed task is an error of the chat, behind what was said; a cancelled one is not."""
    for status in ("failed", "cancelled"):
        story = Story([*chunks("t-1", "Hm"), tool("t-1", "c", "started"), failure("t-1", status)])
        async with replay(story) as (url, _):
            told = await run("ai_sdk.mjs", f"{url}?format=ai-sdk", "--post", "why?", "--version", version)
        assert told["texts"] == ["Hm"]
        assert told["calls"][0]["state"] == "output-error"
        assert told["messages"][0]["metadata"]["error_code"] == "agent_failed"
        assert told["statuses"] == (["error"] if status == "failed" else ["ready"])
        assert told["errors"] == (["Error: it broke"] if status == "failed" else [])


@pytest.mark.parametrize("version", VERSIONS)
async def test_ai_sdk_without_a_chat(run: Run, version: str) -> None:
    """`readUIMessageStream` reads the same."""
    async with replay(Story(talk())) as (url, _):
        told = await run("ai_sdk.mjs", f"{url}?format=ai-sdk", "--read", "--version", version)

    assert "".join(told["texts"]) == ANSWER
    assert told["messages"][0]["id"] == "t-1"


async def test_orderly_end_in_mid_answer(run: Run) -> None:
    """A stream that merely ends would be a complete answer to both clients; they are told that it is not."""
    story = Story(talk()[:6])
    async with replay(story) as (url, _):
        ag_ui = await run("ag_ui.mjs", f"{url}?format=ag-ui", "--post", "why?")
    async with replay(story) as (url, _):
        ai_sdk = await run("ai_sdk.mjs", f"{url}?format=ai-sdk", "--post", "why?")

    assert [error["code"] for error in ag_ui["errors"]] == ["disconnected"]
    assert (ag_ui["ends"], ag_ui["breaks"]) == ([], [])
    assert ai_sdk["statuses"] == ["error"]
    assert ai_sdk["finished"] == [{"isDisconnect": False, "isError": True, "finishReason": None}]
    assert "".join(ag_ui["texts"]) == "".join(ai_sdk["texts"]) == PIECES[0]

"""What is told of messages that were written to sockets; and that nothing is, while nobody asks."""

from __future__ import annotations

from typing import Any

import pytest

from backplane.log import LEVEL
from backplane.messages import Message, to_entry
from backplane.position import Batch, Position
from backplane.trace_context import TraceContext, metadata
from gateway.hub import Hub
from tests.support.spans import Spans
from tests.unit.gateway.fakes import SESSION, FakeLogger, FakeSessionLog, FakeSocket, FakeStore, settle

TRACE = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
AT = "2026-01-31T12:00:00.000Z"


def entry(trace: TraceContext | None, said: str = "hello") -> bytes:
    told = metadata(None if trace is None else trace.traceparent)
    data = {"response": said, "metadata": {"traceparent": TRACE.traceparent}}
    return to_entry(Message(AT, "agent_response", "t-1", "s-1", "acme", "free", data, told))


class World:
    """A hub with sockets, whose spans and log events are kept."""

    def __init__(self) -> None:
        self.log, self.logger, self.spans = FakeSessionLog(), FakeLogger(), Spans()
        self.hub = Hub(
            FakeStore().as_store(), self.log.as_log(), self.logger.as_logger(), lambda *_words: None,
            tracer=self.spans,
        )  # fmt: skip

    async def open(self, cursor: Position | None = None) -> FakeSocket:
        socket = FakeSocket(self.hub)
        assert await socket.attach(cursor)
        await settle()
        return socket

    def say(self, *entries: bytes) -> None:
        """Messages of the log, published as they should."""
        batch = self.keep(*entries)
        head = f"{batch.epoch}:{batch.first}".encode()
        self.hub.on_push([b"message", SESSION.encode(), b"\n".join([head, *batch.entries])])

    def keep(self, *entries: bytes) -> Batch:
        """The same, missed by everybody."""
        batch = self.log.append(len(entries))
        self.log.record().entries[-len(entries) :] = entries
        return Batch(batch.epoch, batch.first, list(entries))


@pytest.fixture
def world() -> World:
    return World()


async def test_a_delivery_has_a_span(world: World) -> None:
    """One for all sockets, the child of what its message names; none of a message that is not sampled."""
    await world.open()
    await world.open()
    world.say(entry(None), entry(TRACE), entry(TRACE._replace(sampled=False)))
    [span] = world.spans.spans
    assert (span.name, span.parent, span.own.trace_id) == ("deliver", TRACE, TRACE.trace_id)
    assert span.own.span_id != TRACE.span_id
    told = {name.rpartition(".")[2]: value for name, value in span.attributes.items()}
    assert (told["sockets"], told["replayed"], told["task_id"]) == (2, False, "t-1")
    assert (told["message_type"], told["session_id"], told["tenant_id"]) == ("agent_response", "s-1", "acme")
    assert span.attributes["messaging.message.id"] == "e1:2"


async def test_a_delivery_from_the_log(world: World) -> None:
    """What was missed is told when it is sent, and only as far as somebody lacked it."""
    await world.open()
    world.say(entry(TRACE))
    world.spans.spans.clear()
    world.keep(entry(TRACE))
    await world.open(Position("e1", 1))
    [span] = world.spans.spans
    assert (span.attributes["orchestrator.replayed"], span.attributes["messaging.message.id"]) == (
        True,
        "e1:2",
    )


async def test_what_nobody_was_sent(world: World) -> None:
    """A socket that is full is sent nothing, so nothing is told; when it can take it, it is."""
    socket = await world.open()
    socket.pause()
    world.say(entry(TRACE))
    assert not world.spans.spans
    socket.unpause()
    await settle()
    assert [span.attributes["orchestrator.sockets"] for span in world.spans.spans] == [1]


async def test_a_message_that_cannot_be_read(world: World) -> None:
    """What agents send is passed on as it came; its span says less."""
    await world.open()
    world.say(entry(TRACE, "x").replace(b'"t-1"', b'"\xff"'))
    assert [span.attributes["orchestrator.message_type"] for span in world.spans.spans] == [""]


@pytest.mark.parametrize("debug", [True, False])
async def test_deliveries_in_the_log(world: World, monkeypatch: pytest.MonkeyPatch, debug: bool) -> None:
    """At debug each message is told, sampled or not; else none."""
    world.spans.on = False
    monkeypatch.setattr(LEVEL, "debug", debug)
    await world.open()
    world.say(entry(None), entry(TRACE))
    told: list[dict[str, Any]] = [fields for _level, _event, fields in world.logger.events]
    assert [one["trace_id"] for one in told] == ([None, TRACE.trace_id] if debug else [])
    assert not world.spans.spans
    assert world.hub.delivered == 2

"""A send's trace: whose it is, what its span says, and what is logged."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backplane.errors import QueueFull
from backplane.log import LEVEL
from backplane.settings import Settings
from backplane.trace_context import TraceContext, of_task, parse_traceparent, sample_bound
from gateway.chat import ChatBody, Context
from gateway.errors import ClientError
from gateway.identity import ANYONE, Identity
from gateway.metrics import PodMetrics
from gateway.send_trace import SendTraces
from tests.support.spans import Spans
from tests.unit.gateway.fakes import settle
from tests.unit.gateway.sockets import WHO, Pod
from tests.unit.gateway.web import StubPod, client_of, send

CLIENTS = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
UPGRADE = TraceContext("a" * 32, "b" * 16, sampled=False)
SAMPLED_TASK = "3f2504e0-4f89-41d3-9a00-000000000000"
WHOSE = Identity("acme", "free", "s-1", "ann", None, ANYONE)


class World:
    """A pod that sends, and keeps its spans and log events; it samples no trace of its own unless told to."""

    def __init__(self, **settings: Any) -> None:
        self.pod = StubPod(**{"trace_sample_ratio": 0.0, "trace_clients": "trust", **settings})
        self.spans = Spans()
        logger = self.pod.logger.as_logger()
        self.traces = self.pod.sender._traces = SendTraces(self.pod.settings, self.spans, logger)

    async def send(self, trace: TraceContext | None = None, **more: Any) -> dict[str, Any]:
        traceparent = None if trace is None else trace.traceparent
        context = Context("sales", traceparent=traceparent, **more)
        return (await self.pod.sender.send(WHOSE, context, ChatBody("hello"))).answer

    def told(self) -> TraceContext | None:
        """What the last action says."""
        return parse_traceparent(json.loads(self.pod.queue.pushed[-1][1])["metadata"]["traceparent"])

    def record(self, task_id: str) -> dict[str, str]:
        return self.pod.tasks.records["orchestrator:acme:callbacks", task_id]


@pytest.fixture
def world() -> World:
    return World()


async def test_a_send_without_a_trace(world: World) -> None:
    """Its task is its trace, which needs no place in the record; not sampled, it has no span."""
    answer = await world.send()
    own = of_task(answer["task_id"])
    assert (world.told(), answer["trace_id"]) == (own, own and own.trace_id)
    assert "traceparent" not in world.record(answer["task_id"])
    assert not world.spans.spans


async def test_a_send_that_is_sampled() -> None:
    """The span's id is in the task's, so that whoever knows the task knows what to hang his own from."""
    world = World(trace_sample_ratio=1.0)
    answer = await world.send()
    [span] = world.spans.spans
    assert span.own == of_task(answer["task_id"], sample_bound(1)) == world.told()
    assert (span.name, span.kind, span.parent, span.error) == ("send", "producer", None, "")
    assert [name for name, _at in span.events] == ["charged", "accepted", "pushed"]
    times = [span.began_ns, *(at for _name, at in span.events), span.ended_ns]
    assert times == sorted(times)
    assert span.attributes["orchestrator.task_id"] == answer["task_id"]
    assert span.attributes["messaging.destination.name"] == answer["queue_name"]


async def test_a_clients_trace(world: World) -> None:
    """Goes on under a span of our own, and stays with the task."""
    answer = await world.send(CLIENTS, tracestate="a=1")
    [span] = world.spans.spans
    assert (span.parent, span.tracestate) == (CLIENTS, "a=1")
    assert span.own == world.told()
    assert span.own.trace_id == answer["trace_id"] == CLIENTS.trace_id
    assert world.record(answer["task_id"])["traceparent"] == span.own.traceparent
    assert json.loads(world.pod.queue.pushed[0][1])["metadata"]["tracestate"] == "a=1"


@pytest.mark.parametrize("said", [CLIENTS, UPGRADE])
@pytest.mark.parametrize(("ratio", "spans"), [(0.0, 0), (1.0, 1)])
async def test_a_client_that_is_not_trusted(said: TraceContext, ratio: float, spans: int) -> None:
    """Is in its own trace all the same, but whether that is sampled is not for it to say."""
    world = World(trace_clients="resample", trace_sample_ratio=ratio)
    answer = await world.send(said)
    assert answer["trace_id"] == said.trace_id
    assert len(world.spans.spans) == spans
    told = world.told()
    assert told is not None
    assert (told.trace_id, told.sampled) == (said.trace_id, bool(spans))
    assert world.record(answer["task_id"])["traceparent"] == told.traceparent


async def test_a_trace_that_is_used_again_and_again() -> None:
    """Whoever has found one that is sampled does not have all his sends sampled by it."""
    world = World(trace_clients="resample", trace_sample_ratio=0.5)
    for _ in range(40):
        await world.send(CLIENTS)
    assert 0 < len(world.spans.spans) < 40


def test_clients_are_not_trusted_by_default() -> None:
    """Spans cost, and anybody can send a header."""
    assert Settings().trace_clients == "resample"


@pytest.mark.parametrize("on", [True, False])
async def test_a_clients_trace_without_a_span(world: World, on: bool) -> None:
    """If it is not sampled, or nobody collects spans, it goes on as it came."""
    world.spans.on = on
    trace = UPGRADE if on else CLIENTS
    answer = await world.send(trace)
    assert world.told() == trace
    assert world.record(answer["task_id"])["traceparent"] == trace.traceparent
    assert not world.spans.spans


async def test_a_send_again(world: World) -> None:
    """Is told the trace of the first, and says so in what it pushes in its place."""
    first = await world.send(CLIENTS, idempotency_key="k")
    told = world.told()
    world.record(first["task_id"])["status"] = "reserved"
    world.pod.queue.marks.clear()
    again = await world.send(UPGRADE, idempotency_key="k")
    assert (again["duplicate"], again["trace_id"]) == (True, CLIENTS.trace_id)
    assert world.told() == told
    without = await world.send(idempotency_key="k")
    assert without["trace_id"] == CLIENTS.trace_id


@pytest.mark.parametrize("given", [True, False])
async def test_the_span_of_a_send_again(given: bool) -> None:
    """It hangs from the first one's, in whose trace operators look; it has an id of its own."""
    world = World(trace_sample_ratio=1.0)
    first = await world.send(CLIENTS if given else None, idempotency_key="k")
    again = await world.send(idempotency_key="k")
    before, after = world.spans.spans
    assert after.parent == before.own
    assert after.own.trace_id == first["trace_id"] == again["trace_id"]
    assert after.own.span_id != before.own.span_id
    assert after.attributes.items() >= {
        "orchestrator.task_id": first["task_id"], "orchestrator.duplicate": True,
    }.items()  # fmt: skip


async def test_the_span_of_a_send_again_in_another_trace(world: World) -> None:
    """Its client has brought that one, and finds it there."""
    first = await world.send(idempotency_key="k")
    await world.send(CLIENTS, idempotency_key="k")
    [span] = world.spans.spans
    assert (span.parent, span.attributes["orchestrator.task_id"]) == (CLIENTS, first["task_id"])


async def test_a_send_again_of_one_that_is_not_sampled(world: World) -> None:
    """Is in a trace without spans, even if what would have been its own trace is sampled."""
    await world.send(UPGRADE, idempotency_key="k")
    world.traces.bound = sample_bound(1)
    await world.send(idempotency_key="k")
    assert not world.spans.spans


async def test_a_send_that_is_refused(world: World) -> None:
    """Has a span that says why, and a log event."""
    world.pod.queue.refusal = QueueFull("full")
    with pytest.raises(ClientError):
        await world.send(CLIENTS)
    [span] = world.spans.spans
    assert (span.error, span.parent) == ("queue_full", CLIENTS)


async def test_log_events_of_a_send(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """None at the default level; at debug those that a message is followed by, each with all ids."""
    await world.send(CLIENTS)
    assert not world.pod.logger.names
    monkeypatch.setattr(LEVEL, "debug", True)
    answer = await world.send(CLIENTS)
    assert world.pod.logger.names == ["action_pushed", "message_accepted"]
    for _level, _event, fields in world.pod.logger.events:
        assert fields.items() >= {
            "tenant_id": "acme", "session_id": "s-1", "task_id": answer["task_id"],
            "trace_id": CLIENTS.trace_id,
        }.items()  # fmt: skip


@pytest.mark.parametrize(
    ("trace", "on", "found"), [(CLIENTS, True, True), (CLIENTS, False, False), (UPGRADE, True, False)]
)
async def test_an_exemplar_names_a_trace_that_is_there(
    world: World, trace: TraceContext, on: bool, found: bool
) -> None:
    """The time of a send is counted; its trace is named only if somebody has its spans."""
    world.spans.on = on
    metrics = world.pod.sender._metrics = PodMetrics(world.pod.settings)
    await world.send(trace)
    [time_s] = metrics._accept.members.values()
    assert sum(time_s.counts) == 1
    assert [one.trace_id for one in time_s.exemplars.values()] == [trace.trace_id] * found


# Where clients say it.


async def test_headers_of_a_send() -> None:
    """Two traceparents are none; a state without a parent is none; several states are one."""
    pod = StubPod(trace_clients="trust")
    async with client_of(pod) as client:
        await send(client, traceparent=CLIENTS.traceparent, tracestate="a=1, b=2")
        await send(client, tracestate="a=1")
        await send(client, traceparent=f"{CLIENTS.traceparent},{CLIENTS.traceparent}", tracestate="a=1")
        await send(client, traceparent=CLIENTS.traceparent, tracestate="A=1")
    told = [json.loads(raw)["metadata"] for _name, raw in pod.queue.pushed]
    assert [one.get("tracestate") for one in told] == ["a=1,b=2", None, None, None]
    traces = [one["traceparent"] == CLIENTS.traceparent for one in told]
    assert traces == [True, False, False, True]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, None),
        ({"traceparent": CLIENTS.traceparent, "tracestate": "a=1"}, CLIENTS),
        ({"traceparent": "nonsense"}, None),
        ({"traceparent": {"deep": [1]}, "tracestate": 7}, None),
    ],
)
async def test_a_message_on_a_socket(said: dict[str, Any], expected: TraceContext | None) -> None:
    """Only its own trace counts, not that of the request that opened the socket, which is all messages'."""
    pod = Pod(trace_clients="trust")
    client = pod.asks(f"/ws/s-1?{WHO}&agent_id=sales", traceparent=UPGRADE.traceparent, tracestate="u=1")
    await settle()
    client.say(type="chat", message="hello", ref=1, **said)
    await settle()
    [action] = pod.queue.actions
    trace = expected or of_task(action["task_id"])
    assert trace is not None
    assert parse_traceparent(action["metadata"]["traceparent"]) == trace
    assert action["metadata"].get("tracestate") == ("a=1" if expected == CLIENTS else None)
    ack = client.messages[-1]
    assert (ack["type"], ack["data"]["trace_id"]) == ("ack", trace.trace_id)


async def test_what_a_user_says_is_in_the_log_with_its_trace(world: World) -> None:
    """For the others of his devices."""
    answer = await world.send(CLIENTS)
    question = world.record(answer["task_id"])["question"]
    assert question.endswith(
        f'"metadata":{{"traceparent":"{world.record(answer["task_id"])["traceparent"]}",'
    )

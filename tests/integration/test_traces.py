"""A task's trace through Redis: with its record where a client brought it, else told by its id."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from backplane.log import LEVEL, get_logger
from backplane.router.metrics import RouterMetrics
from backplane.router.transfer import Transfer
from backplane.store import Store
from backplane.task import Duplicate, send_name
from backplane.trace_context import TraceContext, of_task, parse_traceparent
from tests.integration.tasks import OVER_S, SETTINGS, World
from tests.support.spans import Spans

NAME = send_name("key", "s-1", "n")
CLIENTS = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
AGENTS = CLIENTS.child("a" * 16)


@pytest.fixture
def world(store: Store) -> World:
    return World(store)


@pytest.fixture
def task_id() -> str:
    return str(uuid4())


async def told(world: World) -> list[TraceContext | None]:
    """The traces of the session's messages, in order."""
    return [parse_traceparent(message["metadata"].get("traceparent")) for message in await world.log()]


async def test_a_task_is_its_own_trace(world: World, task_id: str) -> None:
    """An agent that passes nothing on loses nothing, and nothing is stored for it."""
    await world.begin(task_id)
    await world.report(task_id, step="thinking")
    await world.answer(task_id)
    assert await told(world) == [of_task(task_id)] * 2
    assert "traceparent" not in await world.record(task_id)


async def test_a_clients_trace_is_kept(world: World, task_id: str) -> None:
    """What comes for the task is in the trace that its client brought, whether or not its agent knows it."""
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.report(task_id, step="thinking")
    await world.report(task_id, step="searching")
    await world.answer(task_id)
    assert await told(world) == [CLIENTS] * 3


async def test_what_an_agent_passes_on_counts(world: World, task_id: str) -> None:
    """It knows better than the record where its work stands."""
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.say(task_id, action_type="execution.progress", data={}, traceparent=AGENTS.traceparent)
    await world.answer(task_id, metadata={"traceparent": AGENTS.traceparent})
    assert await told(world) == [AGENTS] * 2


async def test_the_record_of_another_session_lends_no_trace(world: World, task_id: str) -> None:
    """Whoever names somebody else's task does not get into its trace."""
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.answer(task_id, session="s-2")
    [message] = await world.log("s-2")
    assert parse_traceparent(message["metadata"]["traceparent"]) == of_task(task_id)


async def test_a_step_that_is_held_back_keeps_its_trace(world: World, task_id: str) -> None:
    """It waits in the record, as it is to stand in the log."""
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.report(task_id, step="thinking", progress=0.1)
    await world.report(task_id, step="thinking", progress=0.2)
    await world.report(task_id, step="searching")
    assert len(await world.log()) >= 2
    assert set(await told(world)) == {CLIENTS}


async def test_a_task_that_nobody_answers(world: World, task_id: str) -> None:
    """Its end by its deadline is in its client's trace, too."""
    await world.begin(task_id, traceparent=CLIENTS.traceparent, timeout_s=OVER_S, latest_s=OVER_S)
    due = await world.due(task_id)
    assert world.tasks.traceparent(task_id, due.traceparent) == CLIENTS.traceparent
    await world.time_out(task_id)
    assert [message["data"]["status"] for message in await world.log()] == ["timeout"]


async def test_a_cancelled_task(world: World, task_id: str) -> None:
    """The word to the agent and the end are in its trace, its client's or its own."""
    other = str(uuid4())
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.begin(other)
    for task in (task_id, other):
        await world.begin_cancel(task)
        await world.finish_cancel(task)
    assert await told(world) == [CLIENTS, of_task(other)]
    queue = world.keys.actions("free")
    actions = [json.loads(raw) for raw in await world.store.call("LRANGE", queue, 0, -1) if raw[:1] == b"{"]
    said = {action["task_id"]: action["metadata"]["traceparent"] for action in actions}
    own = of_task(other)
    assert own is not None
    assert said == {task_id: CLIENTS.traceparent, other: own.traceparent}


async def test_a_send_again_is_told_the_trace_of_the_first(world: World, task_id: str) -> None:
    """It may have to push the action in the first one's place."""
    await world.accept(task_id, names=[NAME], traceparent=CLIENTS.traceparent)
    known = await world.accept(str(uuid4()), names=[NAME])
    assert isinstance(known, Duplicate)
    assert (known.task_id, known.traceparent) == (task_id, CLIENTS.traceparent)


# Spans.


def watched(world: World) -> Spans:
    """Have the router's spans kept."""
    spans = Spans()
    world.transfer = Transfer(
        world.store, world.store, world.keys, world.settings, get_logger(), tracer=spans
    )
    return spans


@pytest.mark.parametrize("passed_on", [True, False])
async def test_a_callbacks_span(world: World, task_id: str, passed_on: bool) -> None:
    """It follows the agent's, or the pod's; and the message names it, so that the delivery follows it."""
    spans = watched(world)
    given = CLIENTS.child("b" * 16)
    await world.begin(task_id, traceparent=given.traceparent)
    await world.answer(task_id, metadata={"traceparent": AGENTS.traceparent} if passed_on else {})
    [span] = spans.spans
    assert (span.name, span.kind, span.error) == ("callback", "consumer", "")
    assert span.parent == (AGENTS if passed_on else given)
    assert await told(world) == [span.own]
    assert span.own.trace_id == CLIENTS.trace_id
    assert span.own not in (AGENTS, given)
    assert span.began_ns <= span.ended_ns


async def test_a_failure_is_told_in_its_span(world: World, task_id: str) -> None:
    """By its status."""
    spans = watched(world)
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.answer(task_id, status="failed", result={"error": {"message": "no"}})
    assert [span.error for span in spans.spans] == ["failed"]


async def test_what_is_not_sampled_has_no_span(world: World, task_id: str) -> None:
    """Neither a task's own trace, of which the settings sample none here, nor a client's."""
    spans = watched(world)
    unsampled = CLIENTS._replace(sampled=False)
    await world.begin(task_id, traceparent=unsampled.traceparent)
    await world.answer(task_id)
    await world.begin("3f2504e0-4f89-41d3-9aff-ffffffffffff")
    await world.answer("3f2504e0-4f89-41d3-9aff-ffffffffffff")
    assert not spans.spans
    assert [trace.trace_id for trace in await told(world) if trace] == [
        CLIENTS.trace_id,
        "3f2504e04f8941d39affffffffffffff",
    ]


async def test_callbacks_in_the_log_of_events(
    world: World, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the level debug each is told, with the trace in which its message is; at others none."""
    world.transfer = Transfer(world.store, world.store, world.keys, world.settings, get_logger())
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    with capture_logs() as logs:
        await world.report(task_id, step="thinking")
        assert not logs
        monkeypatch.setattr(LEVEL, "number", 10)
        monkeypatch.setattr(LEVEL, "debug", True)
        await world.answer(task_id)
    assert [(event["event"], event["kind"], event["outcome"], event["trace_id"]) for event in logs] == [
        ("callback_moved", "end", "appended", CLIENTS.trace_id)
    ]


async def test_what_does_not_get_into_the_log(
    world: World, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies, late callbacks and useless pieces are told as that, and have no span: it could be a second one
    of the same id."""
    spans = watched(world)
    monkeypatch.setattr(LEVEL, "number", 10)
    monkeypatch.setattr(LEVEL, "debug", True)
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    with capture_logs() as logs:
        for _ in range(2):
            await world.say(task_id, action_type="execution.chunk", data={"delta": "a", "offset": 0})
            await world.move()
        await world.report(task_id, step="thinking", progress=0.1)
        await world.report(task_id, step="thinking", progress=0.2)
        for _ in range(2):
            await world.answer(task_id, action_id="one")
        await world.answer(task_id, action_id="another")
    assert [(event["kind"], event["outcome"]) for event in logs if event["event"] == "callback_moved"] == [
        ("piece", "streamed"),
        ("piece", "ignored"),
        ("progress", "appended"),
        ("progress", "held"),
        ("end", "appended"),
        ("end", "duplicate"),
        ("end", "late"),
    ]
    kinds = [span.attributes["orchestrator.callback_kind"] for span in spans.spans]
    assert kinds == ["progress", "progress", "end"]
    assert len({span.own.span_id for span in spans.spans}) == 3


async def test_a_session_that_cannot_be_used(
    world: World, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is for it is told as the dead letter that it is."""
    spans = watched(world)
    monkeypatch.setattr(LEVEL, "debug", True)
    monkeypatch.setattr(LEVEL, "number", 10)
    await world.begin(task_id, traceparent=CLIENTS.traceparent)
    await world.store.call("SET", world.keys.session(world.list, "s-1") + ":log", "no list")
    with capture_logs() as logs:
        await world.answer(task_id)
    assert [event["outcome"] for event in logs if event["event"] == "callback_moved"] == ["dead"]
    assert not spans.spans


async def test_what_is_sent_on_to_another_list(store: Store, task_id: str) -> None:
    """Is told where it gets into a log, and only there."""
    world = World(store, replace(SETTINGS, callback_lists="acme=4", trace_sample_ratio=1.0))
    spans = watched(world)
    sessions = (f"s-{n}" for n in range(100))
    session, home = next(
        (name, home) for name in sessions if (home := world.keys.callbacks_of("acme", name)) != world.list
    )
    await world.answer(task_id, session=session)
    assert world.transfer.counts.sent_on == 1
    assert not spans.spans
    await world.transfer.drain(home, "acme", 1)
    assert [span.attributes["messaging.destination.name"] for span in spans.spans] == [home]


@pytest.mark.parametrize(
    ("ratio", "given", "on", "found"),
    [
        (0.0, CLIENTS, True, "clients"),
        (1.0, CLIENTS._replace(sampled=False), True, ""),
        (1.0, None, True, "tasks"),
        (0.0, None, True, ""),
        (1.0, CLIENTS, False, ""),
    ],
)
async def test_an_exemplar_names_a_trace_that_is_there(
    store: Store, task_id: str, ratio: float, given: TraceContext | None, on: bool, found: str
) -> None:
    """The times of tasks are counted; a trace is named only if it is sampled and somebody has its spans."""
    world = World(store, replace(SETTINGS, trace_sample_ratio=ratio))
    tracer = Spans()
    tracer.on = on
    metrics = RouterMetrics(world.settings, tracer)
    world.transfer = Transfer(
        store, store, world.keys, world.settings, get_logger(), tracer=tracer, metrics=metrics
    )
    await world.begin(task_id, **({} if given is None else {"traceparent": given.traceparent}))
    await world.answer(task_id)
    wanted = {"clients": [CLIENTS.trace_id], "tasks": [task_id.replace("-", "")], "": []}[found]
    for family in (metrics._first_word, metrics._duration):
        [times] = family.members.values()
        assert sum(times.counts) == 1
        assert [one.trace_id for one in times.exemplars.values()] == wanted

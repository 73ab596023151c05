"""One message's trace through all processes, in logs and in spans; and a collector that is away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from backplane.trace_context import parse_traceparent
from tests.support.follow_trace import CLIENTS, WAYS, Traced, follow
from tests.support.otlp import Collector
from tests.support.processes import free_port, post, wait_for
from tests.support.talk import open_socket, receive_ends

WHO = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Agent-ID": "agent-1"}
PATIENCE_S = 8.0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Traced]:
    with Traced(tmp_path_factory.mktemp("traced"), collector.endpoint) as running:
        yield running


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_message_is_followed(traced: Traced, collector: Collector, way: str, given: bool) -> None:
    """Every station names its trace, each span is the child of the one before; see `python -m
    tests.support.follow_trace`."""
    follow(traced, collector, way, given=given).check()


@pytest.mark.parametrize("given", [True, False])
def test_an_agent_that_passes_nothing_on(traced: Traced, collector: Collector, given: bool) -> None:
    """The AES need not know of traces: the callback's span is the child of the send's then, in its trace."""
    session_id = f"not-passed-on-{given}"
    trace = CLIENTS._replace(trace_id="e" * 32)
    headers = {**WHO, "X-Session-ID": session_id, **({"traceparent": trace.traceparent} if given else {})}
    with open_socket(traced.pods[1], session_id) as socket:
        status, answer = post(f"{traced.pods[0].url}/api/chat/send", {"message": "silence"}, headers=headers)
        assert status == 200
        callback = {"action_id": "a", "task_id": answer["task_id"], "session_id": session_id}
        with redis.Redis(port=traced.redis_port) as aes:
            said = {**callback, "status": "completed", "result": {"response": "done"}}
            aes.lpush("orchestrator:acme:callbacks", json.dumps(said))
        [message] = receive_ends(socket, 1)
    trace_id = trace.trace_id if given else answer["task_id"].replace("-", "")
    assert answer["trace_id"] == trace_id
    wanted = {"send", "callback", "run", "deliver"}
    wait_for(lambda: wanted <= {one.name for one in collector.of(trace_id)}, "spans")
    spans = {span.name: span for span in collector.of(trace_id) if span.name != "deliver"}
    assert spans["callback"].parent_id == spans["send"].span_id
    assert spans["send"].parent_id == (trace.span_id if given else "")
    told = parse_traceparent(message["metadata"]["traceparent"])
    assert told is not None
    assert (told.trace_id, told.span_id) == (trace_id, spans["callback"].span_id)


def test_a_refusal_has_a_span(traced: Traced, collector: Collector) -> None:
    """Of which the status says that it failed, and an attribute why."""
    trace = CLIENTS._replace(trace_id="f" * 32)
    headers = {**WHO, "X-Session-ID": "refused", "traceparent": trace.traceparent, "Idempotency-Key": "once"}
    url = f"{traced.pods[0].url}/api/chat/send"
    assert post(url, {"message": "silence"}, headers=headers)[0] == 200
    assert post(url, {"message": "another"}, headers=headers)[0] == 409
    wait_for(
        lambda: len([one for one in collector.of(trace.trace_id) if one.name == "send"]) == 2, "two spans"
    )
    [_accepted, refused] = [one for one in collector.of(trace.trace_id) if one.name == "send"]
    assert (refused.failed, refused.attributes["error.type"]) == (True, "idempotency_conflict")


def test_what_is_left_is_sent_at_the_end(tmp_path: Path) -> None:
    """A process that stops sends the spans that it has."""
    with Collector() as collector, Traced(tmp_path, collector.endpoint, delay_s=600) as cluster:
        headers = {**WHO, "X-Session-ID": "s-1", "traceparent": CLIENTS.traceparent}
        with open_socket(cluster.pods[0], "s-1") as socket:
            assert post(f"{cluster.pods[0].url}/api/chat/send", {"message": "hi"}, headers=headers)[0] == 200
            receive_ends(socket, 2)
        assert not collector.spans
        for process in cluster.named.values():
            assert process.stop() == 0
        assert {span.name for span in collector.of(CLIENTS.trace_id)} == {
            "send",
            "run",
            "callback",
            "deliver",
        }


def test_a_collector_that_is_away(tmp_path: Path) -> None:
    """Nothing fails, nothing waits for it, and a process still ends in time."""
    with Traced(tmp_path, f"http://127.0.0.1:{free_port()}") as cluster:
        headers = {**WHO, "X-Session-ID": "s-1", "traceparent": CLIENTS.traceparent}
        with open_socket(cluster.pods[0], "s-1") as socket:
            for _ in range(20):
                status, _answer = post(
                    f"{cluster.pods[0].url}/api/chat/send", {"message": "hello"}, headers=headers, timeout_s=5
                )
                assert status == 200
            receive_ends(socket, 40)
        for process in cluster.named.values():
            began = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - began < PATIENCE_S

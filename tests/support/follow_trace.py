"""One chat message, followed by its trace through every station, in log events and in spans.

    python -m tests.support.follow_trace

Real processes (two pods, the router, the demo agent) log at the level debug and send their spans to a
collector in this process. A message goes in by each way, with a trace of its client and without; each station
is printed, and the links between the spans are checked.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from backplane.trace_context import TraceContext, parse_traceparent
from tests.support.event_source import Stream, events_path
from tests.support.otlp import Collector, Received
from tests.support.processes import Cluster, Process, post, wait_for
from tests.support.talk import open_socket, receive

WAYS = ("http", "events", "socket", "upgrade")
"""``http``: sent by HTTP, heard on a socket; ``events``: heard on an event stream; ``socket``: both on a
socket, the trace in the message; ``upgrade``: the same, with a trace in the request that opened the socket,
which is not the message's."""

CLIENTS = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
_STATE = "vendor=of-the-client"
_WORDS = "hello there, how are you?"
_CHAIN = ("send", "run", "callback", "deliver")


class Traced(Cluster):
    """Two pods, a router and the demo agent, which say all they do.

    Args:
        collector: base address of the one that gets their spans; empty: none does.
        delay_s: after which they are sent.
    """

    def __init__(self, folder: Path, collector: str = "", delay_s: float = 0.1, **settings: str) -> None:
        defaults: dict[str, Any] = {
            "LOG_LEVEL": "debug",
            "OTLP_ENDPOINT": collector,
            "TRACE_SAMPLE_RATIO": "1",
        }
        super().__init__(folder, pods=2, unlimited=True, appendfsync="no", **(defaults | settings))
        environ = {name: value for name, value in self.pods[0].environ.items() if name != "PATH"}
        agent = [sys.executable, "-m", "gateway", "demo-agent", "--think-s", "0.05"]
        self.agent = Process(agent, environ, folder / "demo-agent.log")
        self.named = {"pod-1": self.pods[0], "pod-2": self.pods[1], "router": self.routers[0]}
        self.named["demo-agent"] = self.agent
        for process in self.named.values():
            process.environ |= {"OTEL_BSP_SCHEDULE_DELAY": f"{delay_s * 1000:.0f}"}

    def __enter__(self) -> Traced:
        super().__enter__()
        return self

    def _start(self) -> None:
        super()._start()
        self.agent.start()

    def _kill(self) -> None:
        self.agent.kill()
        super()._kill()

    def events(self, trace_id: str) -> list[tuple[str, dict[str, Any]]]:
        """The log events of a trace and their processes, in the order of their times."""
        found = []
        for name, process in self.named.items():
            for line in process.output.splitlines():
                if trace_id in line:
                    event = json.loads(line)
                    found.append((event["timestamp"], name, event))
        return [(name, event) for _at, name, event in sorted(found, key=lambda one: one[:2])]


@dataclass
class Followed:
    """A message on its way, as all stations tell it.

    Attributes:
        told: the `trace_id` that the client was answered.
        messages: of the log and of the stream, as they came.
    """

    way: str
    given: TraceContext | None
    told: str
    task_id: str
    messages: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    spans: list[Received]

    def one(self, name: str, **attributes: Any) -> Received:
        """The span of that name and those attributes, of which there is one."""
        [found] = [
            span
            for span in self.spans
            if span.name == name
            and all(span.attributes.get(f"orchestrator.{key}") == value for key, value in attributes.items())
        ]
        return found

    @property
    def chain(self) -> list[Received]:
        """From the client's message to its answer: each the parent of the next."""
        return [
            self.one("send"),
            self.one("run"),
            self.one("callback", callback_kind="end"),
            self.one("deliver", message_type="agent_response"),
        ]

    def check(self) -> None:
        """Every station is there and names the same trace, and the spans hang together.

        Raises:
            AssertionError: it is not so.
        """
        trace_id = self.task_id.replace("-", "") if self.given is None else self.given.trace_id
        assert self.told == trace_id
        chain = self.chain
        assert {span.trace_id for span in self.spans} == {trace_id}
        assert [span.parent_id for span in chain] == [
            "" if self.given is None else self.given.span_id,
            *(span.span_id for span in chain[:-1]),
        ]
        assert [span.began_ns for span in chain] == sorted(span.began_ns for span in chain)
        assert all(span.began_ns <= span.ended_ns for span in chain)
        assert chain[0].events == ["charged", "accepted", "pushed"]
        assert chain[0].tracestate == ("" if self.given is None else _STATE)
        services = [span.service.removeprefix("orchestrator-") for span in chain]
        assert services == ["pod", "demo-agent", "router", "pod"]
        known = {span.span_id for span in self.spans} | ({self.given.span_id} if self.given else {""})
        assert {span.parent_id for span in self.spans} <= known
        self._check_messages(trace_id)
        self._check_events()

    def _check_messages(self, trace_id: str) -> None:
        logged = [message for message in self.messages if "seq" in message["metadata"]]
        traces = [parse_traceparent(message["metadata"].get("traceparent")) for message in logged]
        assert {trace and trace.trace_id for trace in traces} == {trace_id}
        answer = traces[-1]
        assert answer is not None
        assert answer.span_id == self.one("callback", callback_kind="end").span_id
        kinds = [message["type"] for message in self.messages]
        assert kinds[-1] == "agent_response"
        assert {"user_message", "task_update", "agent_chunk"} <= set(kinds)

    def _check_events(self) -> None:
        told = [(name.partition("-")[0], event["event"], event.get("kind")) for name, event in self.events]
        wanted = [
            ("pod", "action_pushed", None),
            ("pod", "message_accepted", None),
            ("demo", "action_taken", None),
            ("demo", "callback_pushed", None),
            ("router", "callback_moved", "progress"),
            ("router", "callback_moved", "piece"),
            ("router", "callback_moved", "end"),
            ("pod", "message_delivered", None),
        ]
        assert not [one for one in wanted if one not in told], told
        tasks = {event["task_id"] for _name, event in self.events if "task_id" in event}
        assert tasks == {self.task_id}

    def rows(self) -> Iterator[Row]:
        """The stations, as a table."""
        spans = {
            ("action_pushed", None): "send",
            ("action_taken", None): "run",
            ("callback_moved", "end"): "callback",
            ("message_delivered", "agent_response"): "deliver",
        }
        chain = {span.name: span for span in self.chain}
        seen = set()
        for name, event in self.events:
            what = event.get("kind") or event.get("type")
            if (name, event["event"], what) in seen:
                continue
            seen.add((name, event["event"], what))
            span = chain.get(spans.get((event["event"], what), ""))
            row = Row(name, f"{event['event']} {what or ''}".strip())
            if span is not None:
                row = row._replace(span=span.name, span_id=span.span_id, parent_id=span.parent_id or "none")
            yield row


class Row(NamedTuple):
    """A line of the table."""

    process: str
    event: str
    span: str = ""
    span_id: str = ""
    parent_id: str = ""

    def __str__(self) -> str:
        return f"  {self.process:<11} {self.event:<34} {self.span:<9} {self.span_id:<17} {self.parent_id}"


def follow(cluster: Traced, collector: Collector, way: str, *, given: bool) -> Followed:
    """Send a message, and wait until every station has told of it.

    Args:
        way: of `WAYS`.
        given: the client brings a trace.
    """
    brought = CLIENTS._replace(trace_id=f"{WAYS.index(way) + 1:032x}") if given else None
    trace = None if way == "upgrade" else brought
    session_id = f"{way}-{'given' if given else 'own'}"
    headers = {} if brought is None else {"traceparent": brought.traceparent, "tracestate": _STATE}
    if way == "events":
        path = events_path(session_id, stream="1")
        with Stream(cluster.pods[1].port, path) as stream:
            assert stream.messages(1)[0]["type"] == "connection_ack"
            answer = _send(cluster, session_id, headers)
            messages = _until_answered(lambda: stream.messages(1)[0])
    else:
        upgrade = headers if way == "upgrade" else {}
        with open_socket(cluster.pods[1], session_id, headers=upgrade, stream="1") as socket:
            assert receive(socket)["type"] == "connection_ack"
            if way == "http":
                answer = _send(cluster, session_id, headers)
                messages = _until_answered(lambda: receive(socket))
            else:
                said = headers if way == "socket" else {}
                socket.send(json.dumps({"type": "chat", "ref": 1, "message": _WORDS, **said}))
                messages = _until_answered(lambda: receive(socket))
                [answer] = [message["data"] for message in messages if message["type"] == "ack"]
    told = answer["trace_id"]
    wait_for(lambda: {span.name for span in collector.of(told)} >= set(_CHAIN), f"all spans of {session_id}")
    wait_for(lambda: _is_over(collector, told), f"the answer's spans of {session_id}")
    spans = collector.of(told)
    return Followed(way, trace, told, answer["task_id"], messages, cluster.events(told), spans)


def _is_over(collector: Collector, trace_id: str) -> bool:
    kinds = [span.attributes.get("orchestrator.message_type") for span in collector.of(trace_id)]
    ends = [span.attributes.get("orchestrator.callback_kind") for span in collector.of(trace_id)]
    return "agent_response" in kinds and "end" in ends


def _send(cluster: Traced, session_id: str, headers: dict[str, str]) -> dict[str, Any]:
    whose = {"X-Tenant-ID": "acme", "X-Tenant-Tier": "free", "X-Session-ID": session_id}
    url = f"{cluster.pods[0].url}/api/chat/send"
    status, answer = post(url, {"message": _WORDS}, headers={**whose, "X-Agent-ID": "agent-1", **headers})
    assert status == 200, answer
    found: dict[str, Any] = answer
    return found


def _until_answered(receive_one: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != "agent_response":
        found.append(receive_one())
    return [message for message in found if message["type"] not in ("typing_indicator", "ping")]


def main() -> int:
    """The command."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Collector() as collector,
        Traced(Path(folder), collector.endpoint) as cluster,
    ):
        for way in WAYS:
            for given in (True, False):
                if way == "upgrade" and not given:
                    continue
                followed = follow(cluster, collector, way, given=given)
                followed.check()
                begun = followed.given.traceparent if followed.given else "none, so its task's id is it"
                print(f"{way}; the client's traceparent: {begun}; trace_id {followed.told}")
                print(Row("process", "log event", "span", "span id", "parent"))
                for row in followed.rows():
                    print(row)
                print(f"  client      agent_response {followed.messages[-1]['metadata']['traceparent']}\n")
    print("all stations named their trace, all spans hung together")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Traces as clients and agents say them, and where they stand in a log entry."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from backplane.messages import Message, to_entry, with_position
from backplane.trace_context import (
    NO_TRACE,
    TraceContext,
    has_trace,
    is_sampled,
    metadata,
    of_entry,
    of_task,
    parse_traceparent,
    parse_tracestate,
    passed_on,
    read_trace,
    sample_bound,
    sampled_trace_id,
    span_of_task,
    trace_of,
    traceparent_of_task,
    with_span,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
OTHER = f"00-{TRACE}-{'c' * 16}-01"
TASK = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


def entry(trace: str | None, data: dict[str, Any] | None = None) -> bytes:
    at = "2026-01-31T12:00:00.000Z"
    return to_entry(Message(at, "error", "t-1", "s-1", "acme", None, data or {}, metadata(trace)))


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (PARENT, True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
    ],
)
def test_a_traceparent_is_read(text: str, sampled: bool) -> None:
    """Also that of a version to come; what goes on is of ours."""
    found = parse_traceparent(text)
    assert found == TraceContext(TRACE, SPAN, sampled)
    assert found.traceparent == f"00-{TRACE}-{SPAN}-0{sampled:d}"


@pytest.mark.parametrize(
    "text",
    [
        None, 7, {"a": 1}, "", "00", PARENT.upper(), f"{PARENT}-more", PARENT[:-1], f" {PARENT}",
        f"{PARENT}\n",
        f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"{PARENT},{PARENT}", PARENT.replace("4", "٤"),
    ],
)  # fmt: skip
def test_what_is_no_traceparent(text: object) -> None:
    """It is ignored, whatever it is, and never half taken."""
    assert parse_traceparent(text) is None
    assert read_trace(text, "a=1") == NO_TRACE


@given(st.one_of(st.text(), st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.{0,3}")))
def test_any_text_as_a_traceparent(text: str) -> None:
    """What is taken is said again in a form that is taken."""
    found = parse_traceparent(text)
    if found is not None:
        assert parse_traceparent(found.traceparent) == found


@pytest.mark.parametrize(
    ("text", "passed_on"),
    [
        ("a=1", "a=1"),
        ("rojo=00f067aa0ba902b7, congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("tenant@vendor=x y", "tenant@vendor=x y"),
        ("a=1,,b=2", "a=1,b=2"),
        ("", None),
        (",", None),
        ("a", None),
        ("A=1", None),
        ("a=1,a=2", None),
        ("a=é", None),
        ("a=b=c", None),
        ("a=1\r\nX: y", None),
        ("a=" + "1" * 510, None),
        (",".join(f"k{n}=1" for n in range(33)), None),
        (None, None),
        (7, None),
    ],
)
def test_a_tracestate_is_passed_on_only_if_it_is_one(text: object, passed_on: str | None) -> None:
    """What others would choke on stays here."""
    assert parse_tracestate(text) == passed_on
    assert read_trace(PARENT, text) == (PARENT, passed_on)


def test_a_task_is_a_trace() -> None:
    """Whoever knows the task's id knows its trace, and the span in which it was accepted."""
    own = of_task(TASK)
    assert own == TraceContext(TASK.replace("-", ""), "9a0c0305e82c3301", sampled=False)
    assert own.span_id == span_of_task(TASK)
    assert traceparent_of_task(TASK) == own.traceparent


@pytest.mark.parametrize("task_id", ["", "t-1", TASK.upper(), TASK.replace("-", ""), f"{TASK}\n", f"x{TASK}"])
def test_a_task_without_a_uuid_has_no_trace(task_id: str) -> None:
    assert of_task(task_id, sample_bound(1)) is None


def test_which_tasks_are_sampled() -> None:
    """As many as the ratio says, and every process has the same opinion of each."""
    tasks = [str(uuid4()) for _ in range(4_000)]

    def share(ratio: float) -> float:
        return sum(own.sampled for task in tasks if (own := of_task(task, sample_bound(ratio)))) / len(tasks)

    assert (share(0), share(1)) == (0, 1)
    assert share(0.25) == pytest.approx(0.25, abs=0.05)
    assert share(0.01) < 0.03
    with_less = {task for task in tasks if str(traceparent_of_task(task, sample_bound(0.1)))[-1] == "1"}
    with_more = {task for task in tasks if str(traceparent_of_task(task, sample_bound(0.5)))[-1] == "1"}
    assert with_less < with_more


@pytest.mark.parametrize(
    ("said", "ratio", "found"),
    [
        (PARENT, 0, TRACE),
        (f"00-{TRACE}-{SPAN}-00", 1, ""),
        (TASK, 1, TASK.replace("-", "")),
        (TASK, 0, ""),
        ("t-1", 1, ""),
        ("", 1, ""),
    ],
)
def test_a_trace_that_can_be_looked_up(said: str, ratio: float, found: str) -> None:
    """A client's says itself whether it is sampled, of a task's own the ratio decides."""
    assert sampled_trace_id(said, sample_bound(ratio)) == found


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (f'{{"metadata":{{"traceparent":"{PARENT}"}}}}', True),
        (f'{{"traceparent":"{PARENT}"}}', True),
        (f'{{"queue_metadata":{{"traceparent":"{PARENT}"}}}}', True),
        (f'{{"metadata":[1],"traceparent":null,"queue_metadata":{{"traceparent":"{PARENT}"}}}}', True),
        (f'{{"metadata":{{"traceparent":7}},"traceparent":"{PARENT}"}}', True),
        (f'{{"metadata":{{"traceparent":"{PARENT}"}},"traceparent":"{OTHER}"}}', True),
        (f'{{"traceparent":"{PARENT}","queue_metadata":{{"traceparent":"{OTHER}"}}}}', True),
        (f'{{"data":{{"traceparent":"{PARENT}"}}}}', False),
        (f'{{"metadata":{{"deep":{{"traceparent":"{PARENT}"}}}}}}', False),
        ('{"traceparent":{"a":1},"metadata":"traceparent"}', False),
        (f'["{PARENT}"]', False),
        ('{"traceparent":', False),
        ('{"metadata":' + "[" * 5000, False),
        ("", False),
    ],
)
def test_where_an_agent_says_its_trace(said: str, found: bool) -> None:
    """The first valid one of the three places counts; nothing that stands there can do harm."""
    assert passed_on(said.encode()) == (parse_traceparent(PARENT) if found else None)


def test_bytes_that_are_no_text() -> None:
    assert passed_on(b'{"traceparent":"\xff"}') is None
    assert trace_of(b'{"traceparent":"\xff"}') is None


@pytest.mark.parametrize("sampled", [True, False])
def test_an_entry_says_its_trace_at_its_end(sampled: bool) -> None:
    """Found without decoding; and there another span can be named as the one that follows."""
    trace = TraceContext(TRACE, SPAN, sampled)
    one = entry(trace.traceparent)
    assert of_entry(one) == trace
    assert is_sampled(one) is sampled
    other = with_span(one, "a" * 16)
    assert of_entry(other) == trace.child("a" * 16)
    message = json.loads(with_position(other, "e1", 7))
    assert message["metadata"] == {"traceparent": trace.child("a" * 16).traceparent, "epoch": "e1", "seq": 7}


@pytest.mark.parametrize("trace", [None, f"00-{TRACE}-{SPAN}-00"])
@pytest.mark.parametrize(
    "said",
    [
        f'"metadata":{{"traceparent":"{PARENT}",',
        f'","metadata":{{"traceparent":"{PARENT}",',
        f'}},"metadata":{{"traceparent":"{PARENT}"',
        {"metadata": {"traceparent": PARENT}},
        Raw(f'{{"metadata":{{"traceparent":"{PARENT}", "a": "b"}}}}'.encode()),
        Raw(f'{{"metadata":{{"traceparent":"{PARENT}","":""}}}}'.encode()),
    ],
)
def test_nobody_else_can_say_an_entrys_trace(trace: str | None, said: Any) -> None:
    """What users and agents say stands before it, whatever it looks like."""
    one = entry(trace, {"response": said})
    assert of_entry(one) == parse_traceparent(trace)
    assert has_trace(one) is (trace is not None)
    assert not is_sampled(one)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_as_an_entry(data: bytes, ends: bool) -> None:
    """Reading a trace from what is none never fails."""
    one = data + b'"metadata":{"traceparent":"' * ends + b'01",'
    assert of_entry(one) is None

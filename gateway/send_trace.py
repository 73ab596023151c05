"""What is told of a send: its trace, its span, its log events."""

from __future__ import annotations

import time
from uuid import uuid4

from backplane.log import LEVEL, Logger
from backplane.settings import Settings
from backplane.trace_context import (
    TraceContext,
    parse_traceparent,
    resampled,
    sample_bound,
    span_of_task,
    traceparent_of_hex,
    traceparent_of_task,
)
from backplane.tracing import Span, Tracer
from gateway.chat import Context
from gateway.identity import Identity


class SendTrace:
    """One send, from when it came to its answer.

    Attributes:
        task_id: of the task that is made of it.
        traceparent: that its action says.
        given: the same if a client brought the trace, else empty: then it follows from the task's id.
    """

    __slots__ = (
        "_began_ns", "_context", "_events", "_identity", "_own", "_parent", "_traces", "given", "task_id",
        "traceparent",
    )  # fmt: skip

    def __init__(self, traces: SendTraces, identity: Identity, context: Context) -> None:
        digits = uuid4().hex
        self._traces = traces
        self._identity = identity
        self._context = context
        self._own: TraceContext | None = None  # where there will be a span
        self.task_id = f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        brought = context.traceparent
        if brought is None:
            self.traceparent = traceparent_of_hex(digits, traces.bound)
        else:
            self.traceparent = brought if traces.trusting else resampled(brought, digits, traces.bound)
        if traces.tracer.on:
            self._began_ns = time.time_ns()
            self._events: list[tuple[str, int]] = []
            self._place_span(span_of_task(self.task_id))
            if self._own is not None:
                self.traceparent = self._own.traceparent
        self.given = "" if brought is None else self.traceparent

    def _place_span(self, span_id: str) -> None:
        """Say where the span belongs, if there will be one."""
        self._own = self._parent = None
        if not self.traceparent.endswith("1"):  # most are not sampled
            return
        before = parse_traceparent(self.traceparent)
        self._own = before.child(span_id) if before is not None and before.sampled else None
        self._parent = None if before is None or before.span_id == span_id else before

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return self.traceparent[3:35]

    @property
    def sampled_trace_id(self) -> str:
        """The trace in which its span is found; empty if it has none."""
        return "" if self._own is None else self._own.trace_id

    def became(self, task_id: str, given: str) -> None:
        """It is a task that was there already.

        Its span hangs from that of the first send, unless its client has brought a trace where to find it.

        Args:
            given: the trace that the first send's client brought, or empty.
        """
        unused = span_of_task(self.task_id)
        self.task_id = task_id
        self.traceparent = given or traceparent_of_task(task_id, self._traces.bound) or ""
        if self._traces.tracer.on and self._context.traceparent is None:
            self._place_span(unused)

    def mark(self, event: str) -> None:
        """A step is done."""
        if self._own is not None:
            self._events.append((event, time.time_ns()))

    def pushed(self, queue: str) -> None:
        """The action is in the AES's queue."""
        self.mark("pushed")
        if LEVEL.debug:
            self._traces.log.debug("action_pushed", queue=queue, **self._ids())

    def accepted(self, queue: str, *, duplicate: bool, held: bool = False) -> None:
        """The client is told that its message was accepted."""
        if LEVEL.debug:
            self._traces.log.debug("message_accepted", duplicate=duplicate, held=held, **self._ids())
        if self._own is not None:
            self._end({"messaging.destination.name": queue, "orchestrator.duplicate": duplicate}, "")

    def refused(self, error_code: str) -> None:
        """The client is told why it was not."""
        if LEVEL.debug:
            self._traces.log.debug("message_refused", error_code=error_code, **self._ids())
        if self._own is not None:
            self._end({}, error_code)

    def _ids(self) -> dict[str, str]:
        identity = self._identity
        return {
            "tenant_id": identity.tenant_id,
            "session_id": identity.session_id,
            "task_id": self.task_id,
            "trace_id": self.trace_id,
        }

    def _end(self, more: dict[str, str | bool], error: str) -> None:
        assert self._own is not None
        identity, context = self._identity, self._context
        attributes: dict[str, str | int | bool] = {
            "messaging.system": "redis",
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "messaging.message.conversation_id": identity.session_id,
            "orchestrator.tenant_id": identity.tenant_id,
            "orchestrator.tenant_tier": identity.tenant_tier,
            "orchestrator.session_id": identity.session_id,
            "orchestrator.task_id": self.task_id,
            "orchestrator.agent_id": context.agent_id,
            **more,
        }
        self._traces.tracer.record(
            Span(
                "send", "producer", self._own, self._parent, self._began_ns, time.time_ns(), attributes,
                self._events, error, context.tracestate or "",
            )
        )  # fmt: skip


class SendTraces:
    """Begins them.

    Args:
        log: for operators.
    """

    def __init__(self, settings: Settings, tracer: Tracer, log: Logger) -> None:
        self.tracer = tracer
        self.log = log
        self.bound = sample_bound(settings.trace_sample_ratio)
        self.trusting = settings.trace_clients == "trust"

    def begin(self, identity: Identity, context: Context) -> SendTrace:
        """A message has come; a task will be made of it, or not."""
        return SendTrace(self, identity, context)

"""What is told of callbacks on their way into the logs: their spans, and log events at the level debug.

A callback's span is named by its digest, so its message can name it as what the delivery follows before the
span is over. Which trace it is in the script knows better, where a client brought one that the agent did not
pass on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from backplane.appending import ARGUMENTS_AN_ENTRY
from backplane.log import LEVEL, Logger
from backplane.trace_context import (
    TraceContext,
    has_trace,
    is_sampled,
    of_entry,
    of_task,
    parse_traceparent,
    passed_on,
    span_of_task,
    with_span,
)
from backplane.tracing import Span, Tracer
from backplane.wire import Argument

_NOT_MOVED = frozenset({"duplicate", "late", "ignored", "dead"})
_KINDS = {"t": "end", "p": "progress", "c": "piece", "": "event"}
_BODY = 2


class _Seen(NamedTuple):
    """One callback that is being moved.

    Attributes:
        position: in the batch.
        body: its entry, as it was made of it.
        before: where it comes from, if that is known without the entry.
        span_id: of its own span; empty if its message does not name it.
    """

    position: int
    session_id: str
    kind: str
    task_id: str
    detail: str
    body: bytes
    before: TraceContext | None
    span_id: str


class TransferWatch:
    """Watches transfers while somebody wants to know.

    Args:
        log: gets events at the level debug.
    """

    def __init__(self, tracer: Tracer, log: Logger) -> None:
        self.tracer = tracer
        self.log = log

    @property
    def on(self) -> bool:
        """Whether somebody does."""
        return LEVEL.debug or self.tracer.on

    def begin(
        self, tenant_id: str, sessions: Mapping[str, list[Argument]], waiting: Sequence[Any]
    ) -> Watched:
        """A batch is about to be moved.

        Args:
            waiting: the callbacks, as they came.
            sessions: the entries of each, as their arguments (see `backplane.appending.Entry`); where there
                will be spans, they are made to name them.
        """
        return Watched(self, tenant_id, sessions, waiting)


class Watched:
    """A batch that is being moved."""

    def __init__(
        self,
        watch: TransferWatch,
        tenant_id: str,
        sessions: Mapping[str, list[Argument]],
        waiting: Sequence[Any],
    ) -> None:
        self._watch = watch
        self._tenant_id = tenant_id
        self._began_ns = time.time_ns()
        self._seen = [
            _see(session_id, arguments, at, waiting, spans=watch.tracer.on)
            for session_id, arguments in sessions.items()
            for at in range(0, len(arguments), ARGUMENTS_AN_ENTRY)
        ]

    def moved(self, callback_list: str, traces: list[bytes]) -> None:
        """It was.

        Args:
            traces: by turns tasks and their clients' traceparents, or ``#`` with the position of what did not
                get into a log and why (see `_append.lua`).
        """
        told = [part.decode() for part in traces]
        given = dict(zip(told[::2], told[1::2], strict=True))
        ended_ns = time.time_ns()
        for seen in self._seen:
            brought = given.get(seen.task_id)
            if not (LEVEL.debug or brought or is_sampled(seen.body)):
                continue
            before = _from(seen, brought)
            outcome = given.get(f"#{seen.position}", "streamed" if seen.kind == "c" else "appended")
            if LEVEL.debug:
                self._tell(seen, before, outcome)
            # A copy's span would have the id of the first one's.
            if seen.span_id and before is not None and before.sampled and outcome not in _NOT_MOVED:
                self._record(callback_list, seen, before, ended_ns)

    def _tell(self, seen: _Seen, before: TraceContext | None, outcome: str) -> None:
        self._watch.log.debug(
            "callback_moved",
            kind=_KINDS[seen.kind],
            outcome=outcome,
            tenant_id=self._tenant_id,
            session_id=seen.session_id,
            task_id=seen.task_id or None,
            trace_id=None if before is None else before.trace_id,
        )

    def _record(self, callback_list: str, seen: _Seen, before: TraceContext, ended_ns: int) -> None:
        attributes: dict[str, Any] = {
            "messaging.system": "redis",
            "messaging.operation.name": "callback",
            "messaging.operation.type": "process",
            "messaging.destination.name": callback_list,
            "messaging.message.conversation_id": seen.session_id,
            "orchestrator.tenant_id": self._tenant_id,
            "orchestrator.session_id": seen.session_id,
            "orchestrator.callback_kind": _KINDS[seen.kind],
        }
        if seen.task_id:
            attributes["orchestrator.task_id"] = seen.task_id
        failed = seen.kind == "t" and not seen.detail.startswith("completed")
        error = seen.detail.partition(" ")[0].partition("#")[0] if failed else ""
        own = before.child(seen.span_id)
        self._watch.tracer.record(
            Span("callback", "consumer", own, before, self._began_ns, ended_ns, attributes, error=error)
        )


def _see(
    session_id: str, arguments: list[Argument], at: int, waiting: Sequence[Any], *, spans: bool
) -> _Seen:
    position, digest, body, kind, task_id, detail = arguments[at : at + ARGUMENTS_AN_ENTRY]
    assert isinstance(digest, bytes)
    assert isinstance(body, bytes)
    before, span_id = None, ""
    if spans and digest and has_trace(body):
        span_id = digest[:8].hex()
        arguments[at + _BODY] = with_span(body, span_id)
    if kind == "c" and LEVEL.debug:  # its message has no place for a trace
        before = passed_on(waiting[int(position)]) or of_task(str(task_id))
    shown = detail.decode() if isinstance(detail, bytes) else str(detail)
    return _Seen(int(position), session_id, str(kind), str(task_id), shown, body, before, span_id)


def _from(seen: _Seen, given: str | None) -> TraceContext | None:
    """What a callback follows: its client's trace counts where its agent has passed on none."""
    before = seen.before or of_entry(seen.body)
    if given is not None and before is not None and before.span_id == span_of_task(seen.task_id):
        return parse_traceparent(given)
    return before

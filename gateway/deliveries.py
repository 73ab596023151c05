"""What is told of messages of the log that were written to sockets: spans, and log events at the level debug.

Pods do not decode messages. Only while somebody watches is a message's end looked at, for its trace, and only
one that is sampled, or logged, is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from backplane.log import LEVEL, Logger
from backplane.messages import with_position
from backplane.position import Batch
from backplane.trace_context import is_sampled, of_entry
from backplane.tracing import Span, Tracer
from gateway.feed import CatchUp


class _Head(msgspec.Struct):
    """What is told of a message."""

    type: str = ""
    task_id: str | None = None
    session_id: str | None = None
    tenant_id: str | None = None


_decode = msgspec.json.Decoder(_Head).decode


class Deliveries:
    """Watches a pod's deliveries.

    Args:
        log: gets events at the level debug.
    """

    def __init__(self, tracer: Tracer, log: Logger) -> None:
        self._tracer = tracer
        self._log = log

    @property
    def on(self) -> bool:
        """Whether somebody wants to know."""
        return LEVEL.debug or self._tracer.on

    def watch(self, group: CatchUp, batch: Batch) -> int:
        """Send a group what it lacks of a batch, and tell of it; returns what `CatchUp.send` does."""
        had, began_ns = {socket: socket.seq for socket in group.sockets}, time.time_ns()
        written = group.send(batch)
        sent = [seq for socket, seq in had.items() if seq < batch.last == socket.seq]
        if sent:
            lacked = batch.entries[max(0, min(sent) + 1 - batch.first) :]
            rest = Batch(batch.epoch, batch.last + 1 - len(lacked), lacked)
            self.told(rest, len(sent), began_ns, replayed=True)
        return written

    def told(self, batch: Batch, sockets: int, began_ns: int, *, replayed: bool = False) -> None:
        """A batch was written to sockets.

        Args:
            sockets: how many.
            began_ns: when that began, in ns since 1970.
            replayed: it was read from the log.
        """
        if not sockets:
            return
        ended_ns = time.time_ns()
        for seq, entry, head in self._told_of(batch):
            trace, place = of_entry(entry), f"{batch.epoch}:{seq}"
            self._log.debug(
                "message_delivered", type=head.type, tenant_id=head.tenant_id, session_id=head.session_id,
                task_id=head.task_id, trace_id=None if trace is None else trace.trace_id, cursor=place,
                sockets=sockets, replayed=replayed,
            )  # fmt: skip
            if trace is None or not trace.sampled or not self._tracer.on:
                continue
            attributes: dict[str, Any] = {
                "messaging.system": "orchestrator",
                "messaging.operation.name": "deliver",
                "messaging.operation.type": "send",
                "messaging.message.id": place,
                "messaging.message.conversation_id": head.session_id or "",
                "orchestrator.tenant_id": head.tenant_id or "",
                "orchestrator.session_id": head.session_id or "",
                "orchestrator.task_id": head.task_id or "",
                "orchestrator.message_type": head.type,
                "orchestrator.sockets": sockets,
                "orchestrator.replayed": replayed,
            }
            own = trace.child(os.urandom(8).hex())
            self._tracer.record(Span("deliver", "producer", own, trace, began_ns, ended_ns, attributes))

    def _told_of(self, batch: Batch) -> Iterator[tuple[int, bytes, _Head]]:
        for seq, entry in enumerate(batch.entries, batch.first):
            if LEVEL.debug or is_sampled(entry):
                yield seq, entry, _head(with_position(entry, batch.epoch, seq))


def _head(message: bytes) -> _Head:
    try:
        return _decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Head()  # what an agent sent was passed on as it came

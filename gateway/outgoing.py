"""What a pod itself says to a connection, as JSON, and log entries as frames: [P] pure."""

from __future__ import annotations

from math import ceil
from typing import Any

from backplane.messages import Message, timestamp, to_json, with_position
from gateway.errors import ClientError
from gateway.frames import encode_text
from gateway.identity import Identity
from gateway.protocol import BadMessage, Kind, Ref


def message(identity: Identity | None, now: float, kind: Kind, data: dict[str, Any]) -> bytes:
    """A message that is in no log.

    Args:
        identity: whose connection it is; None if that is not known (yet).
        now: seconds since 1970.
    """
    return to_json(
        Message(
            timestamp=timestamp(now),
            type=kind,
            task_id=data.get("task_id"),
            session_id=None if identity is None else identity.session_id,
            tenant_id=None if identity is None else identity.tenant_id,
            tenant_tier=None if identity is None else identity.tenant_tier,
            data=data,
            metadata={},
        )
    )


def answer(identity: Identity | None, now: float, kind: Kind, ref: Ref | None, data: dict[str, Any]) -> bytes:
    """Answers a client's message; it carries the message's ``ref`` if it had one."""
    return message(identity, now, kind, data if ref is None else {"ref": ref, **data})


def error(identity: Identity | None, now: float, problem: ClientError, ref: Ref | None = None) -> bytes:
    """Tells a client what is wrong."""
    if isinstance(problem, BadMessage):
        ref = problem.ref
    data: dict[str, Any] = {
        "error": problem.detail,
        "error_code": problem.error_code,
        "error_type": "client" if problem.status < 500 else "server",
        "task_id": None,
        "status": "failed",
        "retryable": problem.retry_after_s is not None,
        "metadata": {},
    }
    if problem.retry_after_s is not None:
        data["retry_after_ms"] = ceil(problem.retry_after_s * 1000)
    if problem.limit is not None:
        data["limit"] = problem.limit
    return answer(identity, now, "error", ref, data)


def log_frames(epoch: str, first: int, entries: list[bytes]) -> bytes:
    """The frames of consecutive log entries, encoded once for all sockets of the session."""
    if len(entries) == 1:
        return encode_text(with_position(entries[0], epoch, first))
    return b"".join([encode_text(with_position(e, epoch, seq)) for seq, e in enumerate(entries, first)])

"""One callback to one log entry: [P] pure, the router's whole judgement.

What each shape of callback becomes is the table of the contract, section 2. The time comes in as an argument
(made once per batch), Redis is not known here.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw

from backplane.appending import Entry
from backplane.errors import BadCallback
from backplane.events import event
from backplane.keys import TIERS, is_id
from backplane.messages import Message, MessageData, seconds, timestamp, to_entry, to_live
from backplane.router.callback import (
    EVENT,
    Callback,
    Fields,
    decode,
    first_byte,
    is_null,
    model_used,
    payload,
    plain,
    text,
)
from backplane.trace_context import NONE_SAMPLED, NULL, first_trace, metadata, traceparent_of_task

REASONS = {
    "not_json": "the callback is not a JSON object, or not UTF-8",
    "no_session": "session_id is missing: nobody to deliver to",
    "wrong_type": "a field that is needed has a wrong type, or an id is not a valid one",
    "wrong_tenant": "tenant_id contradicts the list that the callback was pushed to",
    "unknown_action": "action_type is none that the router knows",
    "unknown_status": "status is none of completed, failed, timeout, cancelled",
    "too_large": "the callback is over CALLBACK_MAX_BYTES",
    "router_error": "the router itself failed on it; its log has the traceback",
    "session_unusable": "the session's keys in Redis hold something else than a session",
}
"""Why a callback becomes a dead letter: the closed list."""

_STATUSES = {
    "completed": "completed", "success": "completed", "succeeded": "completed", "ok": "completed",
    "failed": "failed", "failure": "failed", "error": "failed",
    "timeout": "timeout", "timed_out": "timeout",
    "cancelled": "cancelled", "canceled": "cancelled",
}  # fmt: skip
_ERROR_CODES = {"failed": "agent_failed", "timeout": "agent_timeout", "cancelled": "cancelled"}
_TERMINAL_ACTIONS = frozenset({None, "", "execution.callback", "execution.error"})
_NUMBERS = (int, float)
_USAGE_MAX_BYTES = 4_096  # as far as it is noted with the task; its message has it whole
_TOPIC = re.compile(r"[A-Za-z0-9._~:/@+-]{1,128}", re.ASCII)
PARTS = ("text", "reasoning")
_OFFSETS = 2**53
_EXTENSION_MAX_S = 7 * 86_400.0
_fields_decoder = msgspec.json.Decoder(Fields)


def dispatch(raw: bytes, tenant_id: str, at: str, sampled: str = NONE_SAMPLED) -> Entry:
    """Turn a callback of ``tenant_id``'s list into the entry for its session.

    Args:
        raw: as the AES pushed it.
        tenant_id: whose list it was on.
        at: the message's timestamp, from `backplane.messages.timestamp`.
        sampled: which tasks' own traces are, from `backplane.trace_context.sample_bound`.

    Raises:
        BadCallback: it cannot be understood.
    """
    callback = decode(raw, tenant_id)
    action = callback.action_type
    try:
        if action == "execution.chunk":
            return _piece(callback)
        if action == EVENT:
            return _event(callback, raw, tenant_id, at)
        callback.traceparent = _traceparent(callback, sampled)
        if action == "execution.progress":
            return _reported(callback, tenant_id, at)
        if action in _TERMINAL_ACTIONS or (
            action is not None and action.endswith(("_callback", ".callback"))
        ):
            return _terminal(callback, raw, tenant_id, at)
    except UnicodeDecodeError as error:
        raise BadCallback("not_json", f"not UTF-8: {error.reason}") from None
    except RecursionError:  # a message is some levels deeper than what it was made of
        raise BadCallback("not_json", "nested too deeply") from None
    raise BadCallback("unknown_action", f"action_type {ascii(action)[:60]}")


def _traceparent(callback: Callback, sampled: str) -> str | None:
    """The trace that the producer passed on, else its task's own."""
    trace = first_trace(callback.metadata, callback.traceparent, callback.queue_metadata)
    if trace is not None:
        return trace.traceparent
    return traceparent_of_task(callback.task_id, sampled) if callback.task_id else None


def _message(callback: Callback, tenant_id: str, at: str, kind: str, data: MessageData) -> Message:
    tier = callback.tenant_tier if callback.tenant_tier in TIERS else None
    return Message(
        at, kind, callback.task_id, callback.session_id, tenant_id, tier, data, metadata(callback.traceparent)
    )


def _digest(*parts: bytes) -> bytes:
    """12 bytes that two different callbacks of one session share once in 10^14 sessions."""
    return blake2b(b"\0".join(parts), digest_size=12).digest()


# Terminal callbacks.


def _terminal(callback: Callback, raw: bytes, tenant_id: str, at: str) -> Entry:
    fields = payload(callback)
    status = _status(callback, fields)
    if status == "completed":
        message = _message(callback, tenant_id, at, "agent_response", _response(callback, fields))
    else:
        message = _message(callback, tenant_id, at, "error", _error(callback, fields, status))
    if callback.action_id:
        digest = _digest(callback.action_id.encode(), (callback.task_id or "").encode(), status.encode())
    else:
        digest = _digest(raw)
    if callback.task_id is None:
        return Entry(callback.session_id, digest, to_entry(message))
    usage = msgspec.json.encode(_run_metadata(callback, fields))
    shown = _with_attempt(callback, status)
    detail = f"{shown} {usage.decode()}" if len(usage) <= _USAGE_MAX_BYTES else shown
    return Entry(callback.session_id, digest, to_entry(message), "t", callback.task_id, detail)


def _status(callback: Callback, fields: Fields) -> str:
    if callback.status:
        status = _STATUSES.get(callback.status.lower())
        if status is None:
            raise BadCallback("unknown_status", f"status {ascii(callback.status)[:60]}")
        return status
    unhappy = (
        callback.action_type == "execution.error"
        or callback.error is not None
        or not is_null(fields.get("error"))
        or first_byte(fields.get("success", NULL)) == b"f"
    )
    return "failed" if unhappy else "completed"


def _response(callback: Callback, fields: Fields) -> MessageData:
    own: MessageData = {
        "response": _response_text(fields),
        "sources": fields.get("sources", []),
        "agent_info": fields.get("agent_info", {}),
        "task_id": callback.task_id,
        "status": "completed",
        "metadata": _run_metadata(callback, fields),
    }
    if "metadata" in fields:
        own["metadata"] = {**_object(fields["metadata"]), **own["metadata"]}
    return {**fields, **own}


def _response_text(fields: Fields) -> Raw | str:
    """The answer's JSON text as it came; only its type is looked at."""
    raw = fields.get("response")
    begins = b"n" if raw is None else first_byte(raw)
    if begins == b"n" or raw is None:
        return ""
    if begins != b'"':
        raise BadCallback("wrong_type", "result.response must be text")
    return raw


def _run_metadata(callback: Callback, fields: Fields) -> MessageData:
    return {
        "processing_time": callback.execution_time if type(callback.execution_time) in _NUMBERS else None,
        "tokens_used": callback.tokens_used if type(callback.tokens_used) is dict else None,
        "model_used": model_used(fields.get("agent_info")),
    }


def _object(raw: Raw | None) -> dict[str, Any]:
    """A field's members if it is an object, else none: it only adorns the message."""
    if raw is None or first_byte(raw) != b"{":
        return {}
    members = plain(raw, "result")
    return members if isinstance(members, dict) else {}


def _error(callback: Callback, fields: Fields, status: str) -> MessageData:
    given = plain(fields.get("error", NULL), "result.error")
    if given is None:
        given = callback.error
    if isinstance(given, str):
        given = {"message": given}
    if given is not None and not isinstance(given, dict):
        raise BadCallback("wrong_type", "result.error must be an object or text")
    details: dict[str, Any] = given or {}
    said = details.pop("message", None)
    kind = details.pop("type", None)
    retryable = details.pop("retryable", None)
    return {
        "error": said if isinstance(said, str) and said else _default_error(status),
        "error_code": _ERROR_CODES[status],
        "error_type": kind if isinstance(kind, str) else None,
        "task_id": callback.task_id,
        "status": status,
        "retryable": retryable if isinstance(retryable, bool) else status == "timeout",
        "metadata": {**details, **_run_metadata(callback, fields)},
    }


def _default_error(status: str) -> str:
    if status == "timeout":
        return "The agent did not finish in time."
    return "The task was cancelled." if status == "cancelled" else "The agent failed without saying why."


# While a task runs.


def _with_attempt(callback: Callback, status: str) -> str:
    attempt = _whole(callback.attempt)
    return status if attempt is None or not 1 <= attempt < _OFFSETS else f"{status}#{attempt}"


def _whole(value: Any) -> int | None:
    """A whole number, however the producer writes it; None if it is none."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 17:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _reported(callback: Callback, tenant_id: str, at: str) -> Entry:
    digest, fields = _progress_digest(callback), callback.data or {}
    waits = text(fields.get("status"), "data.status") == "input_required"
    status = _with_attempt(callback, "input_required" if waits else "working")
    longer_s = _seconds(fields.get("timeout"), "data.timeout")
    asked = _members(fields.get("input"), "data.input") if waits else {}
    if callback.task_id is None:
        return Entry(callback.session_id, digest, to_entry(_progress(callback, tenant_id, at)))
    if not asked:
        body = to_entry(_progress(callback, tenant_id, at))
        step = "" if waits else _step(fields)
        detail = f"{status} {int(longer_s * 1000) or ''}   {step}".rstrip()
        return Entry(callback.session_id, digest, body, "p", callback.task_id, detail)
    input_id = text(asked.get("input_id"), "data.input.input_id") or digest.hex()
    if not is_id(input_id):
        raise BadCallback("wrong_type", f"data.input.input_id is not a valid id: {ascii(input_id)[:60]}")
    expires_s = _seconds(asked.get("expires_in"), "data.input.expires_in")
    expires_ms = int((seconds(at) + expires_s) * 1000) if expires_s else 0
    body = to_entry(_asked(callback, tenant_id, at, input_id, asked, expires_ms))
    detail = f"{status} {int(max(longer_s, expires_s) * 1000)} {input_id} {expires_ms}"
    return Entry(callback.session_id, digest, body, "p", callback.task_id, detail)


def _step(fields: Fields) -> str:
    """What a report is about: a later one of the same may take its place.

    Where the agent names no step, its message does. A tool's calls, and what becomes of each, are told apart.
    """
    tool = _members(fields.get("tool"), "data.tool")
    name = "message" if is_null(fields.get("step")) else "step"
    about = (fields.get(name), tool.get("call_id"), tool.get("status"))
    return _digest(name.encode(), *[b"" if raw is None else bytes(raw) for raw in about]).hex()


def _asked(
    callback: Callback, tenant_id: str, at: str, input_id: str, asked: Fields, expires_ms: int
) -> Message:
    schema = asked.get("schema", NULL)
    plain(schema, "data.input.schema")
    data: MessageData = {
        "task_id": callback.task_id,
        "input_id": input_id,
        "prompt": text(asked.get("prompt"), "data.input.prompt"),
        "schema": schema,
        "expires_at": timestamp(expires_ms / 1000) if expires_ms else None,
        "status": "input_required",
    }
    return _message(callback, tenant_id, at, "input_required", data)


def _members(raw: Raw | None, what: str) -> Fields:
    if raw is None or is_null(raw):
        return {}
    if first_byte(raw) != b"{":
        raise BadCallback("wrong_type", f"{what} must be an object")
    try:
        return _fields_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadCallback("not_json", f"{what}: {error}") from None


def _seconds(raw: Raw | None, what: str) -> float:
    """A time span, at most a week; 0 if there is none."""
    value = None if raw is None else plain(raw, what)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0.0
    return min(float(value), _EXTENSION_MAX_S)


def _progress(callback: Callback, tenant_id: str, at: str) -> Message:
    fields = callback.data or {}
    data: MessageData = {
        "task_id": callback.task_id,
        "status": text(fields.get("status"), "data.status") or "working",
        "step": fields.get("step"),
        "message": text(fields.get("message"), "data.message"),
        "progress": _fraction(fields.get("progress")),
        "tool": _tool(fields.get("tool")),
    }
    return _message(callback, tenant_id, at, "task_update", data)


def _fraction(raw: Raw | None) -> float | None:
    if raw is None or is_null(raw):
        return None
    value = plain(raw, "data.progress")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise BadCallback("wrong_type", "data.progress must be a number from 0 to 1")
    return value


def _tool(raw: Raw | None) -> Raw | None:
    if raw is None or is_null(raw):
        return None
    if first_byte(raw) != b"{":
        raise BadCallback("wrong_type", "data.tool must be an object")
    return raw


def _progress_digest(callback: Callback) -> bytes:
    """A task's progress reports may share one ``action_id``; what they say tells them apart."""
    parts = [(callback.action_id or "").encode(), (callback.task_id or "").encode(), b"progress"]
    for name, value in (callback.data or {}).items():
        parts += [name.encode("utf-8", "surrogatepass"), bytes(value)]
    return _digest(*parts)


def _event(callback: Callback, raw: bytes, tenant_id: str, at: str) -> Entry:
    fields = callback.data or {}
    topic, payload = text(fields.get("topic"), "data.topic"), fields.get("payload", NULL)
    plain(payload, "data.payload")
    if topic is not None:
        if not _TOPIC.fullmatch(topic):
            raise BadCallback("wrong_type", f"data.topic is not a valid one: {ascii(topic)[:60]}")
        return Entry("", b"", to_live(event(topic, payload, tenant_id, None, at)), detail=topic)
    if not callback.session_id:
        raise BadCallback("no_session", "neither session_id nor data.topic is given")
    body = to_entry(event("session", payload, tenant_id, callback.session_id, at))
    parts = [callback.action_id.encode(), b"event", bytes(payload)] if callback.action_id else [raw]
    return Entry(callback.session_id, _digest(*parts), body)


def _piece(callback: Callback) -> Entry:
    fields = callback.data or {}
    delta = text(fields.get("delta"), "data.delta")
    if delta is None:
        raise BadCallback("wrong_type", "data.delta must be text")
    if callback.task_id is None:
        raise BadCallback("wrong_type", "task_id is needed with a piece of an answer")
    given = plain(fields.get("offset", NULL), "data.offset")
    offset = _whole(given)
    if given is not None and (offset is None or not 0 <= offset < _OFFSETS):
        raise BadCallback("wrong_type", "data.offset must be a whole number from 0")
    attempt = 1 if callback.attempt is None else _whole(callback.attempt)
    if attempt is None or not 1 <= attempt < _OFFSETS:
        raise BadCallback("wrong_type", "attempt must be a whole number from 1")
    part = text(fields.get("part"), "data.part") or "text"
    if part not in PARTS:
        raise BadCallback("wrong_type", f"data.part must be one of {', '.join(PARTS)}")
    inner = msgspec.json.encode(delta)[1:-1]
    # Without an offset it goes where the last piece ended; a copy of it cannot be told then.
    detail = f"{attempt} {part} {'-' if given is None else offset} {len(delta)}"
    return Entry(callback.session_id, b"", inner, "c", callback.task_id, detail)

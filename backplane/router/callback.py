"""What the AES pushes, taken liberally: [P] pure decoding.

Producers differ: naive or offset timestamps, unknown fields, optional fields missing, ``action_type`` of
several spellings, the answer under ``result``, ``execution_result`` or ``data``. Only the fields that a
message is made of are looked at, and what they hold is carried on as the JSON text it came as (`Raw`), so
that a number keeps its digits and a large answer is not decoded and encoded again.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from backplane.errors import BadCallback
from backplane.keys import is_id
from backplane.trace_context import NULL

Fields = dict[str, Raw]
EVENT = "execution.event"


class Callback(msgspec.Struct):
    """The parts of a callback that matter here, not yet interpreted."""

    session_id: Any = None
    task_id: str | None = None
    tenant_id: str | None = None
    tenant_tier: Any = None
    action_id: str | None = None
    action_type: str | None = None
    status: str | None = None
    attempt: Any = None
    result: Fields | None = None
    execution_result: Fields | None = None
    data: Fields | None = None
    error: Any = None
    execution_time: Any = None
    tokens_used: Any = None
    traceparent: Any = None
    metadata: Raw = NULL
    queue_metadata: Raw = NULL


class _AgentInfo(msgspec.Struct):
    model_used: Raw = Raw(b"null")


_agent_info_decoder = msgspec.json.Decoder(_AgentInfo)
_decoder = msgspec.json.Decoder(Callback)
_any_decoder = msgspec.json.Decoder(Any)


def decode(raw: bytes, tenant_id: str) -> Callback:
    """Read one callback of ``tenant_id``'s list.

    Raises:
        BadCallback: it is not a JSON object, has no usable session, a wrong type where one is needed, or
            another tenant's id.
    """
    try:
        callback = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise BadCallback("wrong_type", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadCallback("not_json", str(error)) from None
    except RecursionError:
        raise BadCallback("not_json", "nested too deeply") from None
    _check_ids(callback, tenant_id)
    return callback


def _check_ids(callback: Callback, tenant_id: str) -> None:
    if callback.action_type == EVENT and callback.session_id is None:
        callback.session_id = ""  # of a topic, perhaps
    elif callback.session_id is None or callback.session_id == "":
        raise BadCallback("no_session", "session_id is missing")
    elif not is_id(callback.session_id):
        raise BadCallback("wrong_type", f"session_id is not a valid id: {ascii(callback.session_id)[:60]}")
    if callback.task_id is not None and not is_id(callback.task_id):
        raise BadCallback("wrong_type", f"task_id is not a valid id: {ascii(callback.task_id)[:60]}")
    if callback.tenant_id is not None and callback.tenant_id != tenant_id:
        raise BadCallback(
            "wrong_tenant", f"tenant_id {ascii(callback.tenant_id)[:60]} on the list of {tenant_id}"
        )


def payload(callback: Callback) -> Fields:
    """The answer, under whichever name the producer put it."""
    for fields in (callback.result, callback.execution_result, callback.data):
        if fields is not None:
            return fields
    return {}


def is_null(raw: Raw | None) -> bool:
    """Whether a field is absent or JSON null."""
    return raw is None or first_byte(raw) == b"n"


def first_byte(raw: Raw) -> bytes:
    """What a JSON value begins with tells its kind; a copy of the value would cost its length."""
    return bytes(memoryview(raw)[:1])


def text(raw: Raw | None, what: str) -> str | None:
    """A field that has to be text, if it is there.

    Raises:
        BadCallback: it is something else.
    """
    if raw is None or is_null(raw):
        return None
    value = plain(raw, what)
    if not isinstance(value, str):
        raise BadCallback("wrong_type", f"{what} must be text")
    return value


def model_used(agent_info: Raw | None) -> Raw | None:
    """``agent_info.model_used``, without decoding the rest."""
    if agent_info is None:
        return None
    try:
        return _agent_info_decoder.decode(agent_info).model_used
    except (msgspec.DecodeError, RecursionError):
        return None


def plain(raw: Raw, what: str) -> Any:
    """A field as Python values.

    Raises:
        BadCallback: it is not valid JSON after all (a passed-over field is checked only here).
    """
    try:
        return _any_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadCallback("not_json", f"{what}: {error}") from None

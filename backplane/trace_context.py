"""W3C Trace Context, and where it stands in a session's log: [P] pure.

Where a client brings no trace, a task's id is its trace: the 32 hex digits of the uuid are the trace's id,
the last 16 of them the span of the pod that accepted it, and whether it is sampled follows from the id, too.
So every station can name a task's trace, and the span from which all else hangs: nothing is stored for it.

A log entry that has a trace ends in ``"metadata":{"traceparent":"…",``: behind all that anybody else could
have written, and always as long. So a pod finds it without decoding, and a script can change it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

TRACESTATE_MAX = 512
NONE_SAMPLED = ""
"""A `sample_bound`."""

_HEX = "[0-9a-f]"
_TRACEPARENT = re.compile(
    rf"({_HEX}{{2}})-({_HEX}{{32}})-({_HEX}{{16}})-({_HEX}{{2}})(-[\x21-\x7e]*)?", re.ASCII
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = re.compile(rf"{_KEY}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{{0,255}}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", re.ASCII)
_MEMBERS_MAX = 32
_RANDOM_DIGITS = 14  # at an id's end: in a uuid4 not all that stands before them is random
_ABOVE_ALL = "g"
_UUID_LENGTH = 36

_BEGINS = b'"metadata":{"traceparent":"'
_ENDS = b'",'
_PARENT_LENGTH = 55
_TAIL_LENGTH = len(_BEGINS) + _PARENT_LENGTH + len(_ENDS)
_PARENT = slice(-_PARENT_LENGTH - len(_ENDS), -len(_ENDS))


class TraceContext(NamedTuple):
    """A place in a trace.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
    """

    trace_id: str
    span_id: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """As a header says it."""
        return f"00-{self.trace_id}-{self.span_id}-0{self.sampled:d}"

    def child(self, span_id: str) -> TraceContext:
        """Another span of the same trace."""
        return TraceContext(self.trace_id, span_id, self.sampled)


def parse_traceparent(text: object) -> TraceContext | None:
    """Read a ``traceparent``; None if it is none, as one that is not valid is ignored (W3C, 3.2.2).

    That of a later version counts as far as it is like ours (3.2.4).
    """
    found = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & 1))


def parse_tracestate(text: object) -> str | None:
    """A ``tracestate`` as it is passed on; None if it is not valid, or over `TRACESTATE_MAX` characters."""
    if not isinstance(text, str) or not text or len(text) > TRACESTATE_MAX:
        return None
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if not 0 < len(members) <= _MEMBERS_MAX or len(keys) < len(members):
        return None
    return ",".join(members) if all(map(_MEMBER.fullmatch, members)) else None


Trace = tuple[str | None, str | None]
"""A valid ``traceparent``, and a ``tracestate`` that goes with it."""

NO_TRACE: Trace = (None, None)


def read_trace(traceparent: object, tracestate: object) -> Trace:
    """What a client says of its trace, as far as it is valid; a state counts only with a parent."""
    parent = parse_traceparent(traceparent)
    return NO_TRACE if parent is None else (parent.traceparent, parse_tracestate(tracestate))


def sample_bound(ratio: float) -> str:
    """Which tasks are sampled for a share of all of them: those whose ids end in less than this."""
    return _ABOVE_ALL if ratio >= 1 else f"{int(ratio * 16**_RANDOM_DIGITS):0{_RANDOM_DIGITS}x}"


def traceparent_of_hex(trace_id: str, bound: str) -> str:
    """The same as `traceparent_of_task`, of a uuid's 32 hex digits."""
    return f"00-{trace_id}-{trace_id[16:]}-{_flags(trace_id, bound)}"


def _flags(digits: str, bound: str) -> str:
    # Digits of one length compare as the numbers do.
    return "01" if digits[-_RANDOM_DIGITS:] < bound else "00"


def traceparent_of_task(task_id: str, bound: str = NONE_SAMPLED) -> str | None:
    """The trace that a task has of itself, as a header says it; None if its id is no uuid.

    Args:
        bound: from `sample_bound`; the same tasks are sampled by all processes that have the same.
    """
    if len(task_id) != _UUID_LENGTH or _UUID.fullmatch(task_id) is None:
        return None
    return traceparent_of_hex(task_id.replace("-", ""), bound)


def of_task(task_id: str, bound: str = NONE_SAMPLED) -> TraceContext | None:
    """The same, taken apart."""
    return parse_traceparent(traceparent_of_task(task_id, bound))


def span_of_task(task_id: str) -> str:
    """The id of the span in which a pod accepts a task (of a uuid)."""
    return task_id[-17:].replace("-", "")


def resampled(traceparent: str, digits: str, bound: str) -> str:
    """A client's ``traceparent``, sampled if its task would be.

    Not by the trace's id: the client chooses it, is told whether it is sampled, and may use it again.

    Args:
        digits: the task's id, its 32 hex digits.
    """
    return traceparent[:-2] + _flags(digits, bound)


def sampled_trace_id(said: str, bound: str) -> str:
    """The id of a task's trace if that is sampled, else empty.

    Args:
        said: its client's ``traceparent``, valid, or else its own id.
    """
    if len(said) == _PARENT_LENGTH:
        return said[3:35] if said[-1] == "1" else ""
    digits = said.replace("-", "")
    return digits if len(said) == _UUID_LENGTH and digits[-_RANDOM_DIGITS:] < bound else ""


NULL = msgspec.Raw(b"null")
"""What a callback's field is that is not there."""


class _Said(msgspec.Struct):
    traceparent: Any = None
    metadata: msgspec.Raw = NULL
    queue_metadata: msgspec.Raw = NULL


_decode_said = msgspec.json.Decoder(_Said).decode


def trace_of(said: bytes | msgspec.Raw) -> TraceContext | None:
    """The ``traceparent`` of an object in JSON; None if it has none that is valid, or is no object."""
    found = _read(said)
    return None if found is None else parse_traceparent(found.traceparent)


def first_trace(metadata: msgspec.Raw, own: Any, queue_metadata: msgspec.Raw) -> TraceContext | None:
    """The first valid ``traceparent`` of the three that a callback may have; most have none."""
    found = None
    if metadata is not NULL and b"traceparent" in bytes(metadata):  # else there is nothing to decode
        found = trace_of(metadata)
    if found is None and own is not None:
        found = parse_traceparent(own)
    if found is None and queue_metadata is not NULL and b"traceparent" in bytes(queue_metadata):
        found = trace_of(queue_metadata)
    return found


def passed_on(callback: bytes) -> TraceContext | None:
    """The same, of a callback as it came."""
    found = _read(callback)
    return None if found is None else first_trace(found.metadata, found.traceparent, found.queue_metadata)


def _read(said: bytes | msgspec.Raw) -> _Said | None:
    try:
        return _decode_said(said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # it only adorns the callback


def metadata(traceparent: str | None) -> dict[str, Any]:
    """Of a message of a session's log: this alone, so that the entry's end is known.

    Args:
        traceparent: valid.
    """
    return {} if traceparent is None else {"traceparent": traceparent}


def of_entry(entry: bytes) -> TraceContext | None:
    """The trace of a log entry, as it stands in the log."""
    if not has_trace(entry):
        return None
    return parse_traceparent(entry[_PARENT].decode("latin-1"))


def has_trace(entry: bytes) -> bool:
    """Whether a log entry has one."""
    return entry.endswith(_ENDS) and entry[-_TAIL_LENGTH : _PARENT.start] == _BEGINS


def is_sampled(entry: bytes) -> bool:
    """Whether a log entry has a trace that is sampled; the first look tells it of nearly all others."""
    return entry.endswith(b'01",') and has_trace(entry)


def with_span(entry: bytes, span_id: str) -> bytes:
    """A log entry that has a trace, with another span as that which follows."""
    return entry[:-21] + span_id.encode() + entry[-5:]

"""JSON that was valid once: bytes choose an example and what is done to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fuzz.examples import CALLBACKS, MESSAGES, TENANT
from tests.fuzz.reading import Reader

_MOST_CHANGES = 12


@dataclass(frozen=True, slots=True)
class Json:
    """JSON text that stands for itself; it need not be valid."""

    text: bytes


Members = list[tuple[bytes, Any]]
"""An object: names and values in their order, so that a name can come twice."""

_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 10**30, "", "s-1", "a b", "x" * 128, "x" * 129, TENANT, "another",
    "free", "ping", "ack", "chat", "completed", "failed", "timeout", "execution.chunk", "execution.progress",
    "execution.error",
    "é\u202e\U0001f389", "\0\n\r\x7f", [], {}, [None], {"": ""}, {"error": 0}, {"response": "r"},
    Json(b"1e999"), Json(b"-0.0"), Json(b"1e-999"), Json(b"NaN"), Json(b"-Infinity"), Json(b"01"),
    Json(b"9" * 4301), Json(b"0." + b"3" * 500), Json(rb'"\ud800"'), Json(rb'"\udc00\ud800"'),
    Json(rb'"\ud83c\udf89"'), Json(rb'"\u0000"'), Json(b'"\xff"'), Json(b'"\xed\xa0\x80"'),
    Json(b'"\xc0\xaf"'), Json(b'"a\nb"'), Json(rb'"\q"'), Json(b"'s'"), Json(b""), Json(b"//"), Json(b"[1,]"),
)  # fmt: skip
_NAMES = (
    *(name.encode() for name in dict.fromkeys(name for one in (*CALLBACKS, *MESSAGES) for name in one)),
    b"response", b"error", b"progress", b"delta", b"offset", b"success", b"metadata", b"agent_info",
    b"", "é".encode(), b"x" * 300, b"\0", b"\xff", b'"', rb"\ud800",
)  # fmt: skip
_GAPS = ((b",", b":"), (b", ", b": "), (b",\r\n\t", b" :\n"))


def mutated(data: bytes, examples: Sequence[dict[str, Any]]) -> bytes:
    """The text that ``data`` stands for."""
    reader = Reader(data)
    tree = _tree(reader.pick(examples))
    gaps = reader.pick(_GAPS)
    for _ in range(reader.below(_MOST_CHANGES)):
        if reader.done:
            break
        tree = _changed(reader, tree)
    text = _written(tree, *gaps)
    return text if reader.done else _damaged(reader, text)


def _tree(value: Any) -> Any:
    if isinstance(value, dict):
        return [(name.encode(), _tree(member)) for name, member in value.items()]
    if isinstance(value, list):
        return tuple(_tree(item) for item in value)
    return value


def _changed(reader: Reader, tree: Any) -> Any:
    """The tree with a change at one place, found by walking down."""
    if isinstance(tree, list) and tree and reader.below(4):
        number = reader.below(len(tree))
        name, value = tree[number]
        if reader.below(3) == 0:
            return _members(reader, tree, number)
        return [*tree[:number], (name, _changed(reader, value)), *tree[number + 1 :]]
    if isinstance(tree, tuple) and tree and reader.below(4):
        number = reader.below(len(tree))
        return (*tree[:number], _changed(reader, tree[number]), *tree[number + 1 :])
    return reader.pick(_CHANGES)(reader, tree)


def _members(reader: Reader, members: Members, number: int) -> Members:
    """One member left out, renamed, or there a second time with another value."""
    name, value = members[number]
    before, behind = members[:number], members[number + 1 :]
    kind = reader.below(4)
    if kind == 0:
        return before + behind
    if kind == 1:
        return [*before, (reader.pick(_NAMES), value), *behind]
    again = (name if kind == 2 else reader.pick(_NAMES), _odd(reader, value))
    return [*members, again] if reader.below(2) else [again, *members]


def _odd(reader: Reader, _value: Any) -> Any:
    odd = reader.pick(_ODD)
    return odd if isinstance(odd, Json) else _tree(odd)


def _string(reader: Reader, _value: Any) -> Json:
    return Json(b'"%b"' % (reader.take(reader.below(40)) * (1 + reader.below(64))))


def _number(reader: Reader, _value: Any) -> Json:
    return Json(reader.take(1 + reader.below(12)))


def _nested(reader: Reader, value: Any) -> Json:
    depth = 8 * reader.byte()
    begin, end = reader.pick(((b"[", b"]"), (b'{"error":', b"}")))
    return Json(begin * depth + _written(value, b",", b":") + end * depth)


def _wrapped(reader: Reader, value: Any) -> Any:
    return (value,) if reader.below(2) else [(reader.pick(_NAMES), value)]


_CHANGES: tuple[Callable[[Reader, Any], Any], ...] = (_odd, _odd, _odd, _string, _number, _nested, _wrapped)


def _written(tree: Any, comma: bytes, colon: bytes) -> bytes:
    if isinstance(tree, Json):
        return tree.text
    if isinstance(tree, list):
        members = [b'"%b"%b%b' % (name, colon, _written(value, comma, colon)) for name, value in tree]
        return b"{%b}" % comma.join(members)
    if isinstance(tree, tuple):
        return b"[%b]" % comma.join(_written(item, comma, colon) for item in tree)
    return json.dumps(tree).encode()


def _damaged(reader: Reader, text: bytes) -> bytes:
    """A few bytes of the text replaced, or its end cut off."""
    kind, place = reader.below(4), reader.below(max(1, len(text)))
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + reader.rest() + text[place:]
    new = reader.rest()[:8]
    return text[:place] + new + text[place + len(new) :] if kind == 2 else text

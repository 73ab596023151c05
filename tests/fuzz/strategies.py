"""Fresh inputs for each target, most of them nearly right (hypothesis)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from backplane.settings import Settings
from tests.fuzz.examples import CALLBACKS, MESSAGES, RUNS
from tests.fuzz.seeds import SEEDS, WORDS, frame

Bytes = st.SearchStrategy[bytes]


def _joined(*parts: Bytes) -> Bytes:
    return st.tuples(*parts).map(b"".join)


def _several(part: Bytes, most: int) -> Bytes:
    return st.lists(part, max_size=most).map(b"".join)


def _damaged(whole: Bytes, words: Sequence[bytes] = (b"",)) -> Bytes:
    """With a stretch replaced by something else, or only cut."""
    new = st.one_of(st.binary(max_size=8), st.sampled_from([*words, b""]))
    places = st.tuples(st.integers(0, 1 << 16), st.integers(0, 20))

    def damage(data: bytes, word: bytes, place: tuple[int, int]) -> bytes:
        start = place[0] % (len(data) + 1)
        return data[:start] + word + data[start + place[1] :]

    return st.one_of(whole, st.builds(damage, whole, new, places))


def _seeded(name: str) -> Bytes:
    return _damaged(st.sampled_from(list(SEEDS[name]())), WORDS[name])


# Frames.

_CHUNKS = st.lists(st.integers(0, 255), max_size=7).map(lambda sizes: bytes((len(sizes), *sizes)))
_FRAME = st.builds(
    frame,
    st.sampled_from((0x81, 0x81, 0x82, 0x01, 0x00, 0x80, 0x89, 0x8A, 0x88, 0xC1)),
    st.one_of(st.text(max_size=70).map(str.encode), st.binary(max_size=130), st.integers(0, 700).map(bytes)),
)

# JSON.

_CHARACTERS = st.characters(exclude_categories=())  # with lone surrogates
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(_CHARACTERS, max_size=20),
    st.sampled_from((10**20, 10**400, -(2**63), 2**64, "x" * 128, "x" * 129, "x" * 4001)),
)  # fmt: skip


def _objects(examples: Sequence[dict[str, Any]]) -> Bytes:
    """Objects with members of the examples and others, their values exchanged."""
    names = sorted({name for one in examples for name in one} | {"error", "response", "delta", "offset"})
    known = [value for one in examples for value in one.values()]
    values = st.recursive(
        st.one_of(_SCALARS, st.sampled_from(known)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.one_of(st.sampled_from(names), st.text(max_size=5)), inner, max_size=3),
        ),
        max_leaves=6,
    )
    changes = st.dictionaries(st.sampled_from(names), values, max_size=3)

    def encode(example: dict[str, Any], changed: dict[str, Any], left_out: str, ascii_only: bool) -> bytes:
        said = {name: value for name, value in {**example, **changed}.items() if name != left_out}
        return json.dumps(said, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    whole = st.builds(encode, st.sampled_from(examples), changes, st.sampled_from(names), st.booleans())
    return st.one_of(_damaged(whole, WORDS["callback"]), values.map(lambda said: json.dumps(said).encode()))


# Settings.

_ROWS = len(dataclasses.fields(Settings))
_VALUES = st.one_of(
    st.text(max_size=20).map(str.encode),
    st.integers().map(lambda number: b"%d" % number),
    st.floats().map(lambda number: repr(number).encode()),
    st.lists(st.integers(-1, 100), min_size=3, max_size=5).map(
        lambda numbers: ",".join(map(str, numbers)).encode()
    ),
    st.sampled_from(WORDS["settings"]),
)
_SETTING = _joined(st.integers(0, 2 * _ROWS).map(lambda number: bytes((number,))), _VALUES)

# HTTP.

_SIZES = st.lists(st.integers(0, 255), max_size=3).map(lambda sizes: bytes((len(sizes), *sizes)))
_TEMPER = st.integers(0, 3).map(lambda temper: bytes((temper,)))
_LINES = _joined(
    st.sampled_from((b"GET /", b"POST /p", b"HEAD /%00", b"OPTIONS *", b"CONNECT a:1", b"GET http://b/c?d")),
    st.sampled_from((b" HTTP/1.1\r\n", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n")),
)
_FIELDS = _several(
    st.one_of(
        st.sampled_from([word for word in WORDS["http"] if word.endswith(b"\r\n")]), st.just(b"X: y\r\n")
    ),
    5,
)
_BODIES = st.sampled_from(
    (b"\r\n", b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
)
_REQUESTS = _several(_damaged(_joined(_LINES, _FIELDS, _BODIES), WORDS["http"]), 4)

# Requests for event streams.

_POSITIONS = st.from_regex(
    r"\A[0-9a-z]{1,5}:[0-9]{1,17}(\*[1-9][0-9]{0,3})?(!t-[01]\*[0-9]{1,3}(\*[0-9]\.[0-9]o?\.[0-9a-f]{8}){2}\*[0-9]){0,5}\Z"
)
_QUERIES = st.lists(
    st.tuples(
        st.sampled_from(
            ("format", "cursor", "last_event_id", "have", "stream", "task_id", "v", "token", "tenant_id")
        ),
        st.one_of(
            _POSITIONS, st.sampled_from(("ag-ui", "ai-sdk", "native", "1", "7", "t-1", "t-1:1:3:0", ""))
        ),
    ),
    max_size=4,
).map(lambda pairs: "&".join(f"{name}={value}" for name, value in pairs))
_ASKED = _damaged(
    st.tuples(
        _QUERIES,
        st.lists(
            st.tuples(
                st.sampled_from(("Last-Event-ID", "Accept", "X-Tenant-ID", "X-Agent-ID")), _POSITIONS
            ).map(": ".join),
            max_size=2,
        ),
    ).map(lambda asked: "\n".join((asked[0], *asked[1])).encode()),
    WORDS["event_request"],
)

STRATEGIES: dict[str, Bytes] = {
    "frames": _joined(_CHUNKS, _damaged(_several(_FRAME, 6))),
    "handshake": st.one_of(_seeded("handshake"), _joined(_LINES, _FIELDS, st.just(b"\r\n"))),
    "client_message": st.one_of(_objects(MESSAGES), _seeded("client_message")),
    "chat_body": st.one_of(_objects(MESSAGES), _seeded("chat_body")),
    "client_json": st.binary(max_size=40),
    "callback": st.one_of(_objects(CALLBACKS), _seeded("callback")),
    "callback_json": st.binary(max_size=60),
    "cursor": st.one_of(st.from_regex(rb"[0-9a-z]{1,33}:[0-9]{1,17}\n?"), st.binary(max_size=40)),
    "push": st.one_of(st.from_regex(rb"\A(~|!|[0-9a-z]{1,5}:)[0-9]{0,5}\n"), _seeded("push")),
    "settings": st.lists(_SETTING, min_size=1, max_size=3).map(b"\0".join),
    "http": _joined(_TEMPER, _SIZES, _REQUESTS),
    "event_request": _joined(st.binary(min_size=3, max_size=3), _ASKED),
    "event_body": st.one_of(_objects(RUNS), _seeded("event_body")),
    "event_json": st.binary(max_size=60),
}

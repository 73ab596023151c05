"""One streamed answer as a pod has it: pieces in any order, cut anywhere, and never more than a bound."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.text_stream import (
    Have,
    Part,
    PartName,
    Place,
    TextStream,
    chunk_message,
    envelope,
    parse_have,
    typing_message,
    without,
)
from tests.support.answers import ODD, inside, text_of

CHARACTERS = st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"]))
TEXTS = st.text(CHARACTERS, max_size=40)
PLACES = st.integers(0, 45)
KINDS: dict[str, set[str]] = {
    "agent_chunk": {"task_id", "delta", "offset", "attempt", "part"},
    "typing_indicator": {"task_id"},
}


# Cutting.


@given(TEXTS, PLACES)
@example(ODD, 5)
def test_without_cuts_between_characters(text: str, chars: int) -> None:
    """Whatever escapes and lengths in UTF-8 the characters have."""
    assert text_of(without(inside(text), chars)) == text[chars:]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_without_each_character(number: int) -> None:
    """Each of them is one, before the cut and behind it."""
    one = ODD[number]
    assert text_of(without(inside(one + "b"), 1)) == "b"
    assert text_of(without(inside("b" + one), 1)) == one
    assert without(inside(one), 1) == b""


# A part beside a model that keeps everything.


@dataclass(frozen=True)
class Add:
    """A piece of the text."""

    offset: int
    chars: int


@dataclass(frozen=True)
class Replace:
    """The text as Redis has it."""

    chars: int


@dataclass(frozen=True)
class Forget:
    """What all have who have ``before`` characters; the rest may take ``most`` bytes."""

    before: int
    most: int


DEEDS = st.one_of(
    st.builds(Add, PLACES, st.integers(0, 12)),
    st.builds(Add, PLACES, st.integers(0, 12)),
    st.builds(Replace, PLACES),
    st.builds(Forget, PLACES, st.sampled_from([0, 150, 300, 500, 10_000])),
)


def check(part: Part, text: str) -> None:
    """What is held is the end of the text so far, of any length that is asked for."""
    assert 0 <= part.start <= part.end <= len(text)
    for sent in range(part.end + 1):
        inner = part.since(sent)
        if sent < part.start:
            assert inner is None
        else:
            assert inner is not None
            assert text_of(inner) == text[sent : part.end]
    assert part.since(part.end + 3) == b""  # of who has more than there is


@given(st.text(CHARACTERS, min_size=40, max_size=60), st.lists(DEEDS, max_size=30))
@settings(max_examples=300, deadline=None)
def test_a_part_beside_a_model(text: str, deeds: list[Any]) -> None:
    """Copies, overlaps, gaps, wholes that are longer or shorter, in any order: never a wrong character."""
    part = Part()
    for deed in deeds:
        start, end = part.start, part.end
        if isinstance(deed, Add):
            piece = text[deed.offset : deed.offset + deed.chars]
            follows = deed.offset <= end
            assert part.add(deed.offset, len(piece), inside(piece)) is follows
            assert part.end == (max(end, deed.offset + len(piece)) if follows else end)
            assert part.start == start
        elif isinstance(deed, Replace):
            chars = min(deed.chars, len(text))
            part.replace(chars, inside(text[:chars]))
            assert (part.start, part.end) == (0, chars)
        else:
            small = part.size <= deed.most
            part.forget(deed.before, deed.most)
            assert part.size <= deed.most
            assert part.end == end
            if small:
                assert part.start <= max(deed.before, start)  # no more than everybody has
        check(part, text)
    part.forget(part.end, 10_000)
    assert (part.start, part.size) == (part.end, 0)  # nothing is left behind


def test_small_pieces_count_for_what_they_take() -> None:
    """A bound in bytes holds whatever their size: one of a character takes far more than its character."""
    part = Part()
    for at in range(5_000):
        part.add(at, 1, b"x")
        part.forget(0, 64 * 1024)
    assert part.size <= 64 * 1024
    held = part.end - part.start
    assert 300 < held < 700
    assert len(part.since(part.start) or b"") == held


def test_an_attempt_begins_anew() -> None:
    """And what an earlier one says afterwards is taken for nothing."""
    stream = TextStream("t-1", 1)
    assert stream.take(1, "text", 0, 5, b"first")
    assert stream.take(2, "text", 0, 3, b"sec")
    assert stream.take(1, "text", 5, 5, b" try!")
    assert not stream.take(2, "text", 4, 1, b"d")
    assert (stream.parts["text"].since(0), stream.reached("text")) == (b"sec", (2, 3))
    assert not stream.take(3, "reasoning", 1, 1, b"x")
    assert (stream.reached("text"), stream.reached("reasoning")) == ((3, 0), (3, 0))


@pytest.mark.parametrize("part", ["text", "reasoning"])
def test_a_place_moves_in_its_part(part: PartName) -> None:
    """Of the other it tells nothing."""
    place = Place(Have(2, 3, 4), late=True)
    before = {"text": 3, "reasoning": 4}
    place.move(part, 9)
    assert {"text": place.sent("text"), "reasoning": place.sent("reasoning")} == {**before, part: 9}


# What clients say that they have.


def test_have() -> None:
    """Several answers, each with its attempt and both parts; an attempt may be a time in microseconds."""
    assert parse_have("t-1:1:0:0") == {"t-1": Have(1, 0, 0)}
    assert parse_have("a.b~c_d:1769860800000000:12:3,t:2:0:9999999999") == {
        "a.b~c_d": Have(1_769_860_800_000_000, 12, 3),
        "t": Have(2, 0, 9_999_999_999),
    }
    assert len(parse_have(",".join(f"t-{n}:1:2:3" for n in range(8)))) == 8


@pytest.mark.parametrize(
    "text",
    [
        "", ",", "t", "t:1:2", "t:1:2:3:4", "t:0:2:3", "t:-1:2:3", "t:1:-2:3", "t:01:2:3", "t:1:02:3",
        "t:1:2:x", "t:1:2:3,", ",t:1:2:3", "t:1:2:3 ", " t:1:2:3", "t:1:2:3\n", "t t:1:2:3", ":1:2:3",
        "t:1:2:٣", "é:1:2:3", f"{'t' * 129}:1:2:3", "t:1:12345678901:3", "t:12345678901234567:2:3",
        ",".join(f"t-{n}:1:2:3" for n in range(9)),
    ],
)  # fmt: skip
def test_have_that_is_none(text: str) -> None:
    """Is refused, not guessed at."""
    with pytest.raises(ValueError, match="have must be"):
        parse_have(text)


@given(st.text(max_size=30))
def test_have_of_any_text(text: str) -> None:
    """It is read or refused; what is read could have been said by a client."""
    try:
        has = parse_have(text)
    except ValueError:
        return
    assert text.count(",") <= 7
    assert all(one.attempt >= 1 and one.text >= 0 and one.reasoning >= 0 for one in has.values())


# Frames.


def message_of(text: bytes) -> dict[str, Any]:
    """A message, with the contract's keys."""
    message: dict[str, Any] = json.loads(text)
    assert set(message) == {
        "type", "data", "timestamp", "tenant_tier", "task_id", "session_id", "tenant_id", "metadata"
    }  # fmt: skip
    assert set(message["data"]) - {"snapshot"} == KINDS[message["type"]]
    assert message["task_id"] == message["data"]["task_id"]
    assert (message["session_id"], message["tenant_id"], message["tenant_tier"]) == ("s-1", "acme", "free")
    assert message["metadata"] == {}
    return message


@given(
    TEXTS, st.integers(1, 2**53), st.integers(0, 2**53), st.sampled_from(["text", "reasoning"]), st.booleans()
)
@example(ODD * 3_000, 1, 0, "text", True)
def test_a_chunks_frame(text: str, attempt: int, offset: int, part: PartName, snapshot: bool) -> None:
    """Valid JSON with the contract's keys, of any text and length."""
    frame = chunk_message(
        envelope("s-1", "acme", "free"), "t-1", attempt, part, offset, inside(text), 1e9, snapshot=snapshot
    )
    data = {"task_id": "t-1", "delta": text, "offset": offset, "attempt": attempt, "part": part}
    message = message_of(frame)
    assert message["data"] == (data | {"snapshot": True} if snapshot else data)
    assert (message["type"], message["timestamp"]) == ("agent_chunk", "2001-09-09T01:46:40.000Z")


def test_a_typing_message() -> None:
    """As that."""
    message = message_of(typing_message(envelope("s-1", "acme", "free"), "t-1", 1e9 + 0.25))
    assert (message["type"], message["timestamp"]) == ("typing_indicator", "2001-09-09T01:46:40.250Z")

"""Event ids: read what was written, fit into a header and a query, and nothing else is one."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backplane.position import Position
from gateway.encoders.event_id import (
    MAX_BLOCKS,
    MAX_CHARS,
    MAX_GROUPS,
    MAX_NUMBER,
    MAX_TOLD,
    EventId,
    Have,
    Part,
    format_event_id,
    parse_event_id,
)

_ID_SIGNS = "abcXYZ019._~-"
_EPOCHS = st.text("0123456789abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=32)
_SEQS = st.integers(0, 10**16 - 1)
TASK_IDS = st.text(_ID_SIGNS, min_size=1, max_size=128)


@st.composite
def parts(draw: st.DrawFn) -> Part:
    """Any that a client can have."""
    blocks = draw(st.integers(0, MAX_BLOCKS))
    if not blocks:
        return Part()
    chars = draw(st.integers(0, MAX_NUMBER))
    check = draw(st.integers(0, 2**32 - 1)) if chars else 0
    return Part(chars, blocks, draw(st.booleans()), check)


HAVES = st.builds(Have, st.integers(0, MAX_NUMBER), parts(), parts(), _SEQS)
EVENT_IDS = st.builds(
    lambda epoch, seq, have, told: EventId(f"{epoch}:{seq}", have, told),
    _EPOCHS,
    _SEQS,
    st.dictionaries(TASK_IDS, HAVES, max_size=MAX_GROUPS),
    st.integers(0, MAX_TOLD),
)
_MOST = Part(MAX_NUMBER, MAX_BLOCKS, True, 2**32 - 1)
LONGEST = EventId(
    f"{'z' * 32}:{10**16 - 1}",
    {f"{n}{'~' * 127}": Have(MAX_NUMBER, _MOST, _MOST, 10**16 - 1) for n in range(MAX_GROUPS)},
    MAX_TOLD,
)


@given(EVENT_IDS)
@example(LONGEST)
@example(EventId("e:1", {"~": Have(), ".": Have(), "1.2o.00000000": Have()}))
def test_what_is_written_is_read(event_id: EventId) -> None:
    """Every state of a client has one id, of bounded length, also with the strangest task ids."""
    text = format_event_id(event_id)

    assert parse_event_id(text) == event_id
    assert list(parse_event_id(text).have) == list(event_id.have)
    assert len(text) <= MAX_CHARS


@given(EVENT_IDS)
def test_it_may_stand_in_a_header_and_a_query(event_id: EventId) -> None:
    """Printable ASCII without space, comma, plus or percent: nothing on the way changes it."""
    text = format_event_id(event_id)

    assert all("!" <= sign <= "~" and sign not in ',+%&#"' for sign in text)
    assert parse_qs(f"last_event_id={text}") == {"last_event_id": [text]}


def test_example() -> None:
    """The form that the module's docstring explains."""
    have = Have(1, Part(120, 2, True, 0x9AD3F01B), Part(40, 1, False, 0x1F00C0DE), 17)
    text = "1m2k3j:42!t-7*1*120.2o.9ad3f01b*40.1.1f00c0de*17"

    assert parse_event_id(text) == EventId("1m2k3j:42", {"t-7": have})
    assert format_event_id(EventId("1m2k3j:42", {"t-7": have})) == text
    assert parse_event_id("1m2k3j:42") == ("1m2k3j:42", {}, 0)
    assert parse_event_id("1m2k3j:42*3").told == 3


_GROUP = "!t*1*3.1.352441c2*0.0.00000000*1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "e",
        "e:",
        ":1",
        "e:01",
        "e:1 ",
        "e:1\n",
        "e:-1",
        "E:1",
        "e:1~t.1.2.3",
        "e:1*0",
        "e:1*",
        "e:1*10000",
        "é:1",
        "e:١",
        f"e:1{_GROUP}x",
        f"e:1x{_GROUP}",
        f"e:1!{_GROUP}",
        f"e:1{_GROUP}!",
        f"e:1{_GROUP}{_GROUP}",
        f"e:1{_GROUP.replace('!t', '!')}",
        f"e:1{_GROUP.replace('!t', '!t/')}",
        f"e:1{_GROUP.replace('!t', '!' + 129 * 't')}",
        f"e:1{_GROUP.replace('3.1', '03.1')}",
        f"e:1{_GROUP.replace('3.1', '-3.1')}",
        f"e:1{_GROUP.replace('3.1', '3.0')}",
        f"e:1{_GROUP.replace('3.1', '0.1')}",
        f"e:1{_GROUP.replace('0.0', '0.0o')}",
        f"e:1{_GROUP.replace('352441c2', '352441C2')}",
        f"e:1{_GROUP.replace('352441c2', '352441c')}",
        "e:1" + "".join(_GROUP.replace("!t", f"!t{n}") for n in range(MAX_GROUPS + 1)),
        "e:1" + 300 * "!t*1",
        "1" * (MAX_CHARS + 1),
    ],
)
def test_garbage_is_refused(text: str) -> None:
    """An id is one that the server can have sent, to the letter, or an error."""
    with pytest.raises(ValueError, match="event id"):
        parse_event_id(text)


@given(st.text(max_size=MAX_CHARS + 10) | st.from_regex(r"[0-9a-z:!*.o~-]{0,60}", fullmatch=True))
def test_only_what_would_be_written_is_read(text: str) -> None:
    """Whatever comes in the header is refused by ValueError, or is the one way to write what it means."""
    try:
        found = parse_event_id(text)
    except ValueError:
        return
    assert format_event_id(found) == text


@given(st.integers(1, 10**6), st.lists(st.integers(0, 10**6), max_size=MAX_GROUPS))
def test_the_log_is_read_again_from_where_the_tasks_began(seq: int, firsts: list[int]) -> None:
    """So that every message about a running task comes; never from behind the cursor."""
    have = {f"t{n}": Have(since=first) for n, first in enumerate(firsts)}
    begin = min([seq, *[first - 1 for first in firsts if first]])

    assert EventId(f"e:{seq}", have).replay_from == str(Position("e", begin))

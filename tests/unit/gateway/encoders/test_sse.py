"""Server-Sent Events: bytes that a client of the standard reads as what was meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.encoders import sse
from tests.support.front_ends import server_events


def test_fields_and_their_order() -> None:
    """Name and id stand before the data, so that a client that reads line by line has them."""
    assert sse.event(b"{}") == b"data: {}\n\n"
    assert sse.event(b"{}", event_id="e:1") == b"id: e:1\ndata: {}\n\n"
    assert sse.event(b"{}", event_id="e:1", name="end") == b"event: end\nid: e:1\ndata: {}\n\n"
    assert sse.comment() == b": \n\n"
    assert sse.comment("alive") == b": alive\n\n"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_lines_of_data(end: str) -> None:
    """Each line of the data is a line of its own; a client puts them together with LF."""
    assert sse.event(f"a{end}{end}b{end}".encode()) == b"data: a\ndata: \ndata: b\ndata: \n\n"


@given(st.text(), st.text("az:!* ", max_size=5) | st.none())
def test_what_is_written_is_read(data: str, event_id: str | None) -> None:
    """Any text, with line ends as LF; nothing in the data can end the event or make another one."""
    [event] = server_events(sse.event(data.encode(), event_id=event_id))

    assert event.data == data.replace("\r\n", "\n").replace("\r", "\n")
    assert event.event_id == event_id


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\n"])
def test_a_field_is_one_line(value: str) -> None:
    """A line end in an id would begin another field; a NUL would make the client drop it."""
    with pytest.raises(ValueError, match="one line"):
        sse.event(b"", event_id=value)
    with pytest.raises(ValueError, match="one line"):
        sse.event(b"", name=value)
    with pytest.raises(ValueError, match="one line"):
        sse.comment(value)

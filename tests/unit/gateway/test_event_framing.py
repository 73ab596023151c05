"""Messages as Server-Sent Events: framing, ids, and what is said at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from gateway.encoders import sse
from gateway.event_framing import NATIVE, NATIVE_PLAIN, Encoded

ENTRIES = [b'{"type":"t","text":"%d","metadata":{' % number for number in range(3)]


class StubEncoder:
    """Says what it was told, and is done at a message that says so."""

    name: ClassVar[str] = "stub"
    media_type: ClassVar[str] = "text/event-stream;format=stub"
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self) -> None:
        self.done = False
        self.told: list[tuple[Mapping[str, Any], str | None]] = []

    def encode(self, message: Mapping[str, Any], position: str | None) -> bytes:
        self.told.append((message, position))
        self.done |= message.get("text") == "end"
        return sse.event(b"said", event_id=position) if message.get("type") == "t" else b""

    def caught_up(self) -> bytes:
        return sse.event(b"caught up")

    def finish(self) -> bytes:
        return sse.event(b"the end")


def unchunked(data: bytes) -> tuple[bytes, bool]:
    """What is in the chunks, and whether the last one is among them."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, ending, data = body + data[:length], data[length : length + 2], data[length + 2 :]
        assert ending == b"\r\n"
        if not length:
            assert not data
            return body, True
    return body, False


def test_messages_of_the_log_have_ids() -> None:
    """Each is one event, whole, with its cursor; all of a batch go in one chunk."""
    body, ended = unchunked(NATIVE.log("e1", 41, ENTRIES))
    events = body.decode().split("\n\n")
    assert events.pop() == ""
    assert not ended
    for number, event in enumerate(events):
        head, data = event.split("\n")
        assert head == f"id: e1:{41 + number}"
        message = json.loads(data.removeprefix("data: "))
        assert (message["text"], message["metadata"]) == (str(number), {"epoch": "e1", "seq": 41 + number})
    assert NATIVE_PLAIN.log("e1", 41, ENTRIES) == body


def test_other_messages_have_none() -> None:
    """So a client's last id stays its place in the log; but for the first message, which tells it."""
    assert NATIVE_PLAIN.message(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert NATIVE_PLAIN.beat() == b": \n\n"
    assert NATIVE_PLAIN.welcome(b"{}", "e1:7", 900) == b"retry: 900\nid: e1:7\ndata: {}\n\n"
    assert NATIVE_PLAIN.send_away(b"{}", 70) == b"retry: 70\ndata: {}\n\n"


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_end_of_our_own(comes_back: bool) -> None:
    """An EventSource comes back whatever it is told: one that shall not is told to wait for a day."""
    told = b"" if comes_back else b"retry: 86400000\n\n"
    assert NATIVE_PLAIN.end(comes_back=comes_back) == told
    assert unchunked(NATIVE.end(comes_back=comes_back)) == (told, True)


def test_an_encoder_is_told_of_everything() -> None:
    """In order and with positions; what it has no word for leaves no empty chunk, which would be the end."""
    encoder = StubEncoder()
    framing = Encoded(encoder, chunked=True)
    assert framing.message(b'{"type":"unknown"}') == b""
    assert unchunked(framing.log("e1", 1, ENTRIES)) == (
        b"".join([sse.event(b"said", event_id=f"e1:{seq}") for seq in (1, 2, 3)]),
        False,
    )
    assert [position for _, position in encoder.told] == [None, "e1:1", "e1:2", "e1:3"]
    assert not framing.done
    framing.log("e1", 4, [b'{"type":"t","text":"end","metadata":{'])
    assert framing.done
    assert unchunked(framing.end(comes_back=False)) == (b"data: the end\n\n", True)


@pytest.mark.parametrize(
    "raw", [b"\xff", b"[", b"[]", b"1", b'{"a":"\\ud800"}', b'{"a":' * 5000, b'{"a":1e999999}']
)
def test_what_cannot_be_read(raw: bytes) -> None:
    """Nothing that an agent sends through stops whoever delivers it."""
    encoder = StubEncoder()
    Encoded(encoder, chunked=True).message(raw)
    assert len(encoder.told) == 1


def test_where_nothing_will_come_any_more() -> None:
    """A task that has ended: when the log is told up to there, the stream is done, whatever was found."""
    framing = Encoded(StubEncoder(), chunked=True, told=3, last=5)
    framing.log("e1", 4, ENTRIES[:1])
    assert not framing.done
    framing.log("e1", 5, ENTRIES[:1])
    assert framing.done
    assert Encoded(StubEncoder(), chunked=True, told=5, last=5).done

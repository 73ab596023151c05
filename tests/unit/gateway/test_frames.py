"""The frame decoder against the websockets library's client, against the RFC, and against hostile bytes."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.frames import Opcode as Op
from websockets.protocol import State
from websockets.uri import parse_uri

from gateway import frames
from gateway.frames import (
    Binary,
    Close,
    Event,
    FrameDecoder,
    Ping,
    Pong,
    Text,
    TooLarge,
    encode_close,
    encode_ping,
    encode_pong,
    encode_text,
    text_header,
)

MAX_MESSAGE, MAX_SKIP = 1000, 5000
MASK = b"\x81\x00\xfe\x42"


def raw(first: int, payload: bytes = b"", head: bytes | None = None) -> bytes:
    """One masked frame; ``head`` stands for the second byte and the extended length, right or wrong."""
    if head is None:
        size = len(payload)
        assert size < 65536
        head = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    masked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))
    return bytes((first,)) + head + MASK + masked


def decoder() -> FrameDecoder:
    return FrameDecoder(MAX_MESSAGE, MAX_SKIP)


def decode(chunks: Iterable[bytes], into: FrameDecoder) -> list[Event]:
    return [event for chunk in chunks for event in into.feed(chunk)]


def one_by_one(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 1] for i in range(len(data)))


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """``data`` in pieces of ``sizes``, over and over."""
    start, turn = 0, 0
    while start < len(data):
        yield data[start : start + sizes[turn % len(sizes)]]
        start += sizes[turn % len(sizes)]
        turn += 1


def open_client() -> ClientProtocol:
    return ClientProtocol(parse_uri("ws://gateway/"), state=State.OPEN)


def heard_by_client(data: bytes) -> list[Frame]:
    client = open_client()
    client.receive_data(data)
    assert client.parser_exc is None
    return [event for event in client.events_received() if isinstance(event, Frame)]


class Message(NamedTuple):
    """What a client sends: a message in pieces, each piece followed by some pings."""

    opcode: Op
    pieces: list[bytes]
    pings: list[bytes]


def send(client: ClientProtocol, message: Message) -> None:
    start = client.send_text if message.opcode is Op.TEXT else client.send_binary
    last = len(message.pieces) - 1
    for i, piece in enumerate(message.pieces):
        (client.send_continuation if i else start)(piece, fin=i == last)
        if i < last:
            for ping in message.pings:
                client.send_ping(ping)


def expected(message: Message) -> list[Event]:
    pings = [Ping(ping) for ping in message.pings] * (len(message.pieces) - 1)
    data = b"".join(message.pieces)
    if message.opcode is Op.BINARY:
        return [*pings, Binary(len(data))]
    return [*pings, Text(data) if len(data) <= MAX_MESSAGE else TooLarge(len(data))]


@st.composite
def messages(draw: st.DrawFn) -> Message:
    text = draw(st.text(max_size=20)) * draw(st.sampled_from((1, 1, 3, 15, 60)))
    data = text.encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    bounds = [0, *cuts, len(data)]
    pieces = [data[a:b] for a, b in pairwise(bounds)]
    pings = draw(st.lists(st.binary(max_size=125), max_size=2))
    return Message(draw(st.sampled_from((Op.TEXT, Op.TEXT, Op.BINARY))), pieces, pings)


CHUNKS = st.lists(st.one_of(st.integers(1, 7), st.integers(1, 2000)), min_size=1, max_size=8)

# Frames that mostly follow each other legally, so that the illegal one meets a decoder in any state.
PAYLOADS = st.one_of(st.text(max_size=30).map(str.encode), st.integers(0, 2000).map(lambda size: b"x" * size))
CONTROLS = st.one_of(st.just(b""), st.binary(max_size=125).map(lambda payload: raw(0x89, payload)))
HOSTILE = st.lists(
    st.one_of(
        st.builds(raw, st.sampled_from((0x81, 0x82)), PAYLOADS),
        st.builds(
            lambda first, between, last: raw(0x01, first) + between + raw(0x00) + raw(0x80, last),
            PAYLOADS,
            CONTROLS,
            PAYLOADS,
        ),
        CONTROLS,
        st.builds(
            raw,
            st.sampled_from((*range(12), *range(0x80, 0x8C), 0xC1)),
            st.one_of(PAYLOADS, st.binary(max_size=130)),
        ),
        st.binary(max_size=40),
    ),
    max_size=8,
).map(b"".join)


@settings(deadline=None)
@given(st.lists(messages(), max_size=3), CHUNKS)
def test_what_a_client_sends_is_what_arrives(sent: list[Message], sizes: list[int]) -> None:
    """Interoperability: whatever the fragmentation and the chunking, each message arrives once and whole."""
    client = open_client()
    for message in sent:
        send(client, message)
    client.send_pong(b"unasked")
    client.send_close(1001, "näher")
    reader = decoder()

    events = decode(cut(b"".join(client.data_to_send()), sizes), reader)

    assert events == [
        *(event for message in sent for event in expected(message)),
        Pong(b"unasked"),
        Close(1001, "näher"),
    ]
    assert reader.failure is None


@settings(deadline=None, max_examples=200)
@given(HOSTILE, CHUNKS)
def test_chunking_changes_nothing(data: bytes, sizes: list[int]) -> None:
    """The fast path and the slow one agree about every byte, also about what is wrong with it."""
    at_once, in_pieces = decoder(), decoder()

    assert at_once.feed(data) == decode(cut(data, sizes), in_pieces)
    assert str(at_once.failure) == str(in_pieces.failure)
    assert at_once.closed == in_pieces.closed


@settings(deadline=None, max_examples=200)
@given(HOSTILE, CHUNKS)
def test_hostile_bytes_neither_raise_nor_fill_memory(data: bytes, sizes: list[int]) -> None:
    """A client cannot make the server hold more than a message, a head and a control frame."""
    reader = decoder()

    for chunk in cut(data, sizes):
        reader.feed(chunk)
        assert reader.buffered_bytes <= MAX_MESSAGE + 14 + 125
        if reader.failure is not None:
            assert reader.failure.code in (1002, 1007, 1009)
            assert reader.feed(b"\x81\x80aaaa") == []


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        pytest.param(b"\x81\x02hi", 1002, "masked", id="unmasked"),
        pytest.param(raw(0xC1, b"hi"), 1002, "reserved", id="rsv1"),
        pytest.param(raw(0xA1, b"hi"), 1002, "reserved", id="rsv2"),
        pytest.param(raw(0x91, b"hi"), 1002, "reserved", id="rsv3"),
        pytest.param(raw(0x83), 1002, "opcode 3", id="unknown data opcode"),
        pytest.param(raw(0x8B), 1002, "opcode 11", id="unknown control opcode"),
        pytest.param(raw(0x09), 1002, "fragmented", id="fragmented ping"),
        pytest.param(raw(0x08), 1002, "fragmented", id="fragmented close"),
        pytest.param(raw(0x89, bytes(126)), 1002, "125", id="long ping"),
        pytest.param(raw(0x88, b"\x03\xe8" + bytes(124)), 1002, "125", id="long close"),
        pytest.param(raw(0x80, b"hi"), 1002, "continuation", id="last piece of nothing"),
        pytest.param(raw(0x00, b"hi"), 1002, "continuation", id="piece of nothing"),
        pytest.param(raw(0x81, b"hi") + raw(0x80), 1002, "continuation", id="piece after the end"),
        pytest.param(raw(0x01, b"hi") + raw(0x81, b"ho"), 1002, "new message", id="text inside text"),
        pytest.param(raw(0x01) + raw(0x02, b"ho"), 1002, "new message", id="binary inside text"),
        pytest.param(raw(0x81, b"a" * 125, b"\xfe\x00\x7d"), 1002, "shortest", id="16-bit length of 125"),
        pytest.param(
            raw(0x82, b"", b"\xff" + (65535).to_bytes(8, "big")),
            1002,
            "shortest",
            id="64-bit length of 65535",
        ),
        pytest.param(raw(0x81, b"", b"\xff\x80" + bytes(7)), 1002, "top bit", id="negative length"),
        pytest.param(raw(0x81, b"\xff"), 1007, "UTF-8", id="invalid text"),
        pytest.param(raw(0x81, "é".encode()[:1]), 1007, "UTF-8", id="truncated text"),
        pytest.param(raw(0x81, b"\xed\xa0\x80"), 1007, "UTF-8", id="surrogate"),
        pytest.param(raw(0x01, b"a\xc3") + raw(0x80, b"a"), 1007, "UTF-8", id="invalid fragmented text"),
        pytest.param(raw(0x81, b"\xff" * 200), 1007, "UTF-8", id="invalid longer text"),
        pytest.param(raw(0x88, b"\x03"), 1002, "close code", id="half a close code"),
        pytest.param(raw(0x88, b"\x03\xe8\xff"), 1007, "reason", id="invalid close reason"),
        pytest.param(
            raw(0x82, b"", b"\xfe" + (MAX_SKIP + 1).to_bytes(2, "big")), 1009, "5000", id="announced too big"
        ),
        pytest.param(
            raw(0x01, bytes(3000)) + raw(0x00, b"", b"\xfe" + (2001).to_bytes(2, "big")),
            1009,
            "5000",
            id="too big by its pieces",
        ),
        pytest.param(raw(0x81, b"", b"\xff" + (2**62).to_bytes(8, "big")), 1009, "5000", id="absurdly big"),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_violation(data: bytes, code: int, says: str, chunked: bool) -> None:
    """Each rule of RFC 6455 is enforced with its close code, and ends the decoding for good."""
    reader = decoder()

    decode(one_by_one(data) if chunked else [data], reader)

    assert reader.failure is not None
    assert reader.failure.code == code
    assert says in str(reader.failure)
    assert reader.closed
    assert reader.feed(raw(0x81, b"hi")) == []
    assert reader.buffered_bytes == 0


@pytest.mark.parametrize(
    "code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65535], ids=str
)
def test_close_code_that_must_not_be_sent(code: int) -> None:
    """Reserved and unassigned close codes are refused in both directions."""
    reader = decoder()

    assert reader.feed(raw(0x88, code.to_bytes(2, "big") + b"why")) == []
    assert reader.failure is not None
    assert reader.failure.code == 1002
    with pytest.raises(ValueError, match=str(code)):
        encode_close(code, "why")


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 3999, 4000, 4505, 4999], ids=str)
def test_close_code_that_may_be_sent(code: int) -> None:
    """The registered codes and the private ones pass in both directions."""
    assert decoder().feed(raw(0x88, code.to_bytes(2, "big") + b"why")) == [Close(code, "why")]
    assert encode_close(code, "why") == b"\x88\x05" + code.to_bytes(2, "big") + b"why"


def test_close_without_a_code() -> None:
    """An empty close frame is legal, and is not mistaken for a code."""
    assert decoder().feed(raw(0x88)) == [Close(None, "")]


def test_nothing_is_read_after_a_close() -> None:
    """What follows a close frame is ignored: in the same read, in a later one, and inside a message."""
    reader = decoder()

    events = reader.feed(raw(0x01, b"un") + raw(0x88, b"\x03\xe8") + raw(0x80, b"finished") + b"\xff")

    assert events == [Close(1000, "")]
    assert reader.feed(raw(0x81, b"late")) == []
    assert reader.failure is None
    assert reader.buffered_bytes == 0


def test_events_before_a_violation_are_not_lost() -> None:
    """A message that came whole is delivered although what follows it in the same read is broken."""
    reader = decoder()

    events = reader.feed(raw(0x81, b"good") + raw(0x89, b"p") + raw(0x83) + raw(0x81, b"unread"))

    assert events == [Text(b"good"), Ping(b"p")]
    assert reader.failure is not None


def test_failure_holds_none_of_the_data() -> None:
    """A connection that lingers after a violation does not keep alive the bytes that caused it."""
    reader = decoder()
    reader.feed(raw(0x81, b"\xff" * 200))

    assert reader.failure is not None
    assert reader.failure.__traceback__ is None
    assert reader.failure.__context__ is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 999, 1000])
def test_text_up_to_the_limit_is_kept(size: int) -> None:
    """The limit is inclusive, and holds on the short path, the long one and byte by byte."""
    frame = raw(0x81, b"x" * size)

    assert decoder().feed(frame) == [Text(b"x" * size)]
    assert decode(one_by_one(frame), decoder()) == [Text(b"x" * size)]
    assert FrameDecoder(size, size).feed(frame) == [Text(b"x" * size)]


@pytest.mark.parametrize("size", [1, 125, 126, 1000])
def test_text_over_the_limit_is_counted_and_skipped(size: int) -> None:
    """A message that is too large costs its sender an answer, not the connection, whatever its size."""
    reader = FrameDecoder(size - 1, MAX_SKIP)

    assert reader.feed(raw(0x81, b"x" * size)) == [TooLarge(size)]
    assert decode(one_by_one(raw(0x81, b"x" * size)), reader) == [TooLarge(size)]
    assert reader.feed(raw(0x81)) == [Text(b"")]


def test_payload_that_looks_like_a_frame() -> None:
    """A read that by chance has the bytes of a whole frame is payload while a frame is under way."""
    looks = raw(0x81, b"hi")
    unmasked = bytes(byte ^ MASK[i % 4] for i, byte in enumerate(looks))
    ping, binary = raw(0x89, unmasked), raw(0x82, unmasked)

    assert decode([ping[:-8], ping[-8:]], decoder()) == [Ping(unmasked)]
    assert decode([binary[:-8], binary[-8:]], decoder()) == [Binary(8)]


@pytest.mark.parametrize(
    ("head", "size", "first_read"),
    [(b"\x81\xfe\x03\x00", 0x300, 132), (b"\x81\xff" + (70000).to_bytes(8, "big"), 70000, 133)],
)
def test_first_read_that_is_as_long_as_its_length_byte(head: bytes, size: int, first_read: int) -> None:
    """The marks of an extended length (126, 127) are not taken for a length on the short path."""
    payload = b"x" * size
    frame = head + bytes(4) + payload  # a mask of zeros, so that a wrong reading would be text too

    assert decode([frame[:first_read], frame[first_read:]], FrameDecoder(size, size)) == [Text(payload)]


def test_fragments_that_cross_the_limit_are_let_go() -> None:
    """What was kept of a message is given up the moment that a further head makes it too large."""
    reader = decoder()

    reader.feed(raw(0x01, b"x" * 800))
    assert reader.buffered_bytes == 800
    reader.feed(raw(0x00, b"x" * 300)[:8])
    assert reader.buffered_bytes == 0
    assert reader.feed(raw(0x00, b"x" * 300)[8:]) == []
    assert reader.feed(raw(0x89, b"still here") + raw(0x80)) == [Ping(b"still here"), TooLarge(1100)]


@pytest.mark.parametrize("opcode", [Op.TEXT, Op.BINARY])
def test_skipping_takes_no_memory(opcode: Op) -> None:
    """A stream of megabytes that nobody will read is not held, whatever its opcode says."""
    reader = FrameDecoder(MAX_MESSAGE, 16 << 20)
    chunk, count = bytes(8192), 256
    reader.feed(bytes((0x80 | opcode, 0xFF)) + (len(chunk) * count).to_bytes(8, "big") + MASK)
    tracemalloc.start()
    try:
        events = decode((chunk for _ in range(count)), reader)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert events == [Binary(2 << 20) if opcode is Op.BINARY else TooLarge(2 << 20)]
    assert peak < 4 * len(chunk)


def test_idle_decoder_holds_nothing() -> None:
    """Tens of thousands of idle connections cost a few pointers each, also after traffic."""
    reader = decoder()
    traffic = raw(0x01, b"x" * 300) + raw(0x89, b"p") + raw(0x80, b"y") + raw(0x81, b"z")
    decode(cut(traffic, [3, 5, 50]), reader)

    assert not hasattr(reader, "__dict__")
    assert sys.getsizeof(reader) <= 96
    assert reader.buffered_bytes == 0
    assert [getattr(reader, name) for name in ("_pending", "_message", "failure")] == [b"", None, None]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70000])
def test_client_reads_server_text(size: int) -> None:
    """Each of the three length forms is used where the RFC wants it, and never masked."""
    payload = b"x" * size

    assert heard_by_client(encode_text(payload)) == [Frame(Op.TEXT, payload)]
    assert encode_text(payload) == Frame(Op.TEXT, payload).serialize(mask=False)
    assert text_header(size) + payload == encode_text(payload)


def test_client_reads_server_control_frames() -> None:
    """Pings, pongs and closes are what a client takes them for; too long ones are never sent."""
    data = encode_ping() + encode_ping(b"a" * 125) + encode_pong(b"b") + encode_close(4505, "zu groß")

    assert heard_by_client(data) == [
        Frame(Op.PING, b""),
        Frame(Op.PING, b"a" * 125),
        Frame(Op.PONG, b"b"),
        Frame(Op.CLOSE, (4505).to_bytes(2, "big") + "zu groß".encode()),
    ]
    with pytest.raises(ValueError, match="126"):
        encode_ping(bytes(126))


@settings(deadline=None)
@given(st.text(max_size=200))
@example("half of a pair: \ud83d")
def test_close_reason_always_fits(reason: str) -> None:
    """Any reason, lone surrogates too, is cut between characters and fits a control frame."""
    [frame] = heard_by_client(encode_close(4504, reason))
    kept = bytes(frame.data[2:]).decode()
    whole = reason.encode("utf-8", "replace").decode()

    assert whole.startswith(kept)
    assert kept == whole or len(kept.encode()) > 123 - 4


def test_unmasking_without_the_c_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where websockets has no wheel, frames are read all the same."""
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    spec = importlib.util.spec_from_file_location("frames_without_speedups", frames.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    assert module.apply_mask.__module__ == "websockets.utils"
    [event] = module.FrameDecoder(MAX_MESSAGE, MAX_SKIP).feed(raw(0x81, "grüß".encode()))
    assert event.data == "grüß".encode()

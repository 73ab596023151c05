"""What RFC 6455 wants of a server, as a table: bytes that a client sends, frames that must come back.

The cases are numbered like the sections of the Autobahn test suite (1 framing, 2 pings, 3 reserved bits,
4 opcodes, 5 fragments, 6 UTF-8, 7 closing, 9 limits, 10 fragments by size); ours stand among its own, and
where it repeats one in other chops, each of ours is sent in all of them. Where the RFC leaves a choice, the
table wants what we chose: binary messages are not kept (so 1.2 is told, not echoed), bad UTF-8 is found when
its message ends (6.4), and a Close is answered with its own code.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
import uvloop

from tests.support.echo_server import BINARY_REFUSED, TOO_LARGE_REFUSED, EchoServer
from tests.support.processes import wait_for
from tests.support.rfc6455 import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    PING,
    PONG,
    TEXT,
    Case,
    Frame,
    close,
    fragments,
    frame,
    play,
)

AT_ONCE = 32
ENOUGH_FAULTS = 100  # then the rest is not even tried: each may cost its full patience
MAX_KEPT, MAX_SKIPPED = 128 * 1024, 1024 * 1024
BEYOND_LIMITS = 4505
CODES = (*range(1000, 1004), *range(1007, 1015), 3000, 3001, 3999, 4000, 4001, 4505, 4998, 4999)
NOT_CODES = (
    *(0, 1, 2, 255, 256, 998, 999, 1004, 1005, 1006, 1015, 1016, 1017, 1099, 1100, 1999, 2000, 2001, 2998),
    *(2999, 5000, 5001, 9999, 10000, 32767, 32768, 49999, 65534, 65535),
)


def echo(payload: bytes) -> Frame:
    """The server's text frame."""
    return FIN | TEXT, payload


def refused(payload: bytes) -> Frame:
    """What the server says of a binary message."""
    return echo(BINARY_REFUSED % len(payload))


def too_large(payload: bytes) -> Frame:
    """What the server says of a text message over the limit."""
    return echo(TOO_LARGE_REFUSED % len(payload))


def pong(payload: bytes) -> Frame:
    """The server's answer to a ping."""
    return FIN | PONG, payload


HELLO, HELLO_BACK = frame(TEXT, b"Hello"), echo(b"Hello")


def right(name: str, sent: Iterable[bytes], *answers: Frame) -> Case:
    """A case without a mistake; then the client says goodbye."""
    return Case(name, (*sent, close(1000)), answers, 1000, answered=True, unread=False)


def wrong(name: str, sent: Iterable[bytes], *answers: Frame, code: int = 1002) -> Case:
    """A case whose last frame is a mistake; what follows it must not be answered."""
    ignored = (frame(PING, b"too late"), close(1000))
    return Case(name, (*sent, *ignored), answers, code, answered=False, unread=True)


def closing(
    name: str, sent: Iterable[bytes], *answers: Frame, code: int = 1000, ignored: tuple[bytes, ...] = ()
) -> Case:
    """A case that ends with the client's Close, behind which comes what must not be answered."""
    return Case(name, (*sent, *ignored), answers, code, answered=True, unread=bool(ignored))


def framing() -> Iterator[Case]:
    """Section 1: lengths and masks (RFC, 5.1 to 5.3)."""
    for number, size in enumerate((0, 1, 124, 125, 126, 127, 128, 65535, 65536, 65537), 1):
        text, binary = b"*" * size, b"\xfe" * size
        yield right(f"1.1.{number} text of {size}", [frame(TEXT, text)], echo(text))
        yield right(f"1.2.{number} binary of {size}", [frame(BINARY, binary)], refused(binary))
    for opcode in (TEXT, BINARY):
        for form, size in ((2, 0), (2, 1), (2, 125), (8, 0), (8, 125), (8, 126), (8, 65535)):
            long = frame(opcode, b"*" * size, form=form)
            yield wrong(f"1.3.{opcode}.{form}.{size} not the shortest form", [HELLO, long], HELLO_BACK)
        for length in (1 << 63, (1 << 63) + 5, (1 << 64) - 1):
            top = frame(opcode, b"*****", announced=length)
            yield wrong(f"1.4.{opcode}.{length:x} top bit of the length", [top])
    text = "masked with µ".encode()
    for mask in (bytes(4), b"\xff" * 4, b"\x00\x00\x00\x01", b"\x80\x00\x00\x00", text[:4]):
        yield right(f"1.5.{mask.hex()} mask", [frame(TEXT, text, mask=mask)], echo(text))
    for opcode in (TEXT, BINARY, CLOSE, PING, PONG):
        for payload in (b"", b"\x03\xe8"):
            bare = frame(opcode, payload, mask=None)
            yield wrong(f"1.6.{opcode}.{len(payload)} not masked", [bare])
            yield wrong(f"1.7.{opcode}.{len(payload)} not masked, the second", [HELLO, bare], HELLO_BACK)
    bare = frame(CONTINUATION, b"b", mask=None)
    yield wrong("1.8 continuation not masked", [frame(TEXT, b"a", fin=False), bare])


def pings() -> Iterator[Case]:
    """Section 2: control frames (RFC, 5.5)."""
    odd = bytes(range(0x80, 0xFD))
    payloads = (b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", odd)
    for number, payload in enumerate(payloads, 1):
        yield right(f"2.{number} ping of {len(payload)}", [frame(PING, payload)], pong(payload))
    for opcode in (PING, PONG, CLOSE):
        for size in (126, 127, 65535, 65536):
            big = frame(opcode, b"\x03\xe8" + b"*" * (size - 2))
            yield wrong(f"2.5.{opcode}.{size} control frame too long", [HELLO, big], HELLO_BACK)
        for form in (2, 8):
            long = frame(opcode, b"\x03\xe8", form=form)
            yield wrong(f"2.6.{opcode}.{form} control frame with a long length", [long])
    for number, payload in enumerate(payloads, 1):
        unasked, ping = frame(PONG, payload), frame(PING, b"me")
        yield right(f"2.7.{number} unsolicited pong", [unasked])
        yield right(f"2.9.{number} unsolicited pong, then a ping", [unasked, ping], pong(b"me"))
    many = [f"payload-{number}".encode() for number in range(10)]
    yield right("2.10 ten pings", [frame(PING, one) for one in many], *map(pong, many))
    parts = fragments(TEXT, [b"a", b"b", b"c"])
    between = [each for part in parts for each in (part, frame(PING, odd), frame(PONG, odd))]
    yield right("2.12 amid fragments", between, *[pong(odd)] * 2, echo(b"abc"), pong(odd))


def reserved_bits() -> Iterator[Case]:
    """Section 3: RSV1 to RSV3 without an extension (RFC, 5.2)."""
    start = frame(TEXT, b"a", fin=False)
    for rsv in range(1, 8):
        flawed = frame(TEXT, b"flawed", rsv=rsv)
        yield wrong(f"3.{rsv} reserved bits after a text", [HELLO, flawed], HELLO_BACK)
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG):
            for payload in (b"", b"\x03\xe8"):
                flawed = frame(opcode, payload, rsv=rsv)
                yield wrong(f"3.8.{rsv}.{opcode}.{len(payload)} reserved bits", [flawed])
        yield wrong(f"3.9.{rsv} in a continuation", [start, frame(CONTINUATION, b"b", rsv=rsv)])
        yield wrong(f"3.10.{rsv} in a first fragment", [frame(TEXT, b"a", fin=False, rsv=rsv)])


def opcodes() -> Iterator[Case]:
    """Section 4: opcodes that mean nothing yet (RFC, 5.2)."""
    for kind, numbers in ((1, range(3, 8)), (2, range(11, 16))):
        for opcode in numbers:
            name, flawed = f"4.{kind}.{opcode}", frame(opcode, b"reserved")
            yield wrong(f"{name} alone", [frame(opcode)])
            yield wrong(f"{name} with payload", [flawed])
            yield wrong(f"{name} not final", [frame(opcode, b"reserved", fin=False)])
            yield wrong(f"{name} after a text", [HELLO, flawed], HELLO_BACK)
            yield wrong(f"{name} amid a message", [frame(TEXT, b"a", fin=False), flawed])


def right_fragments() -> Iterator[Case]:
    """Section 5: messages in fragments (RFC, 5.4)."""
    one, two = fragments(TEXT, [b"fragment1", b"fragment2"])
    whole = echo(b"fragment1fragment2")
    yield right("5.3 two fragments", [one, two], whole)
    yield right("5.6 a ping between", [one, frame(PING, b"ping"), two], pong(b"ping"), whole)
    parts = fragments(TEXT, [b"1", b"2", b"3", b"4", b"5"])
    sent = [*parts[:2], frame(PING, b"one"), *parts[2:4], frame(PING, b"two"), parts[4]]
    yield right("5.19 five fragments, two pings", sent, pong(b"one"), pong(b"two"), echo(b"12345"))
    yield right("5.22 binary", fragments(BINARY, [b"\xff", b"\xfe\xff"]), refused(b"\xff\xfe\xff"))
    letters = [bytes((byte,)) for byte in b"0123456789" * 30]
    yield right("5.23 300 fragments", fragments(TEXT, letters), echo(b"".join(letters)))
    yield right("5.24 two messages", [one, two] * 2, whole, whole)
    turned = frame(CONTINUATION, b"bc", mask=b"\xff\x00\xff\x00")
    yield right("5.25 each its mask", [frame(TEXT, b"a", fin=False), turned], echo(b"abc"))


def wrong_fragments() -> Iterator[Case]:
    """Section 5: what must not be fragmented, continued or interleaved."""
    one, two = fragments(TEXT, [b"fragment1", b"fragment2"])
    lone, lone_start = frame(CONTINUATION, b"lone"), frame(CONTINUATION, b"lone", fin=False)
    binary = frame(BINARY, b"\xff", fin=False)
    for opcode, number in ((PING, 1), (PONG, 2), (CLOSE, 2.1)):
        control = frame(opcode, b"\x03\xe8", fin=False)
        yield wrong(f"5.{number} control frame in two fragments", [control, lone])
        yield wrong(f"5.{number} control frame not final, amid a message", [one, control])
    yield wrong("5.9 lone continuation, final", [lone, HELLO])
    yield wrong("5.12 lone continuation, not final", [lone_start, HELLO])
    yield wrong("5.14 lone continuation, empty", [frame(CONTINUATION)])
    whole = echo(b"fragment1fragment2")
    yield wrong("5.15 message, then a continuation", [one, two, lone_start, HELLO], whole)
    yield wrong("5.15.1 text, then a continuation", [HELLO, lone], HELLO_BACK)
    yield wrong("5.15.2 ping, then a continuation", [frame(PING), lone], pong(b""))
    yield wrong("5.16 lone continuations, not final", [lone_start, one, two] * 2)
    yield wrong("5.17 lone continuations, final", [lone, one, two] * 2)
    yield wrong("5.18 two text frames", [one, HELLO])
    yield wrong("5.18.1 a text begun in a text", [one, one])
    yield wrong("5.18.2 binary amid a text", [one, frame(BINARY, b"\xff"), two])
    yield wrong("5.18.3 text amid a binary", [binary, HELLO])
    yield wrong("5.18.4 binary amid a binary", [binary, binary])
    yield wrong("5.18.5 text after an empty fragment", [frame(TEXT, fin=False), HELLO])


KOSME = "κ\u1f79σμε".encode()  # its characters end at bytes 2, 5, 7, 9 and 11
LARGEST = {2: 0x7FF, 3: 0xFFFF, 4: 0x1FFFFF, 5: 0x3FFFFFF, 6: 0x7FFFFFFF}
HIGH, LOW = (0xD800, 0xDB7F, 0xDB80, 0xDBFF), (0xDC00, 0xDF80, 0xDFFF)


def scheme(number: int, size: int) -> bytes:
    """A number in UTF-8's way of writing one, in as many bytes (2 to 6) as wanted, allowed or not."""
    tail = [0x80 | number >> 6 * at & 0x3F for at in range(size - 2, -1, -1)]
    return bytes(((0xFF << 8 - size) & 0xFF | number >> 6 * (size - 1), *tail))


def _points(*points: int) -> list[bytes]:
    return [chr(point).encode() for point in points]


def _schemes(*numbers: tuple[int, int]) -> list[bytes]:
    return [scheme(number, size) for number, size in numbers]


def _starts(first: int, last: int) -> bytes:
    return b"".join(bytes((byte, 0x20)) for byte in range(first, last + 1))


VALID_UTF8 = {
    5: [b"hello$world", *(f"hello{sign}world".encode() for sign in "¢€𤭢"), KOSME],
    6: [KOSME[:end] for end in (2, 5, 7, 9, 11)],
    7: _points(0, 0x80, 0x800, 0x10000),
    9: _points(0x7F, 0x7FF, 0xFFFF, 0x10FFFF),
    11: _points(0xD7FF, 0xE000, 0xFFFD, 0x10FFFF),
    22: _points(
        *range(0xFDD0, 0xFDF0), *(plane << 16 | 0xFFFE | odd for plane in range(17) for odd in (0, 1))
    ),
    23: _points(*range(0xFFF9, 0x10000), 0xFEFF),
}
_CUT_SHORT = [scheme(number, size)[:-1] for size, most in LARGEST.items() for number in (0, most)]
INVALID_UTF8 = {
    6: [KOSME[:end] for end in (1, 3, 4, 6, 8, 10)],
    8: _schemes((0x200000, 5), (0x4000000, 6)),
    10: _schemes((0x1FFFFF, 4), (0x3FFFFFF, 5), (0x7FFFFFFF, 6)),
    11: _schemes((0x110000, 4)),
    12: [*(b"\x80\xbf\x80\xbf\x80\xbf"[:end] for end in range(1, 7)), b"\xbf", bytes(range(0x80, 0xC0))],
    13: [_starts(*ends) for ends in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))],
    14: _CUT_SHORT,
    15: [b"".join(_CUT_SHORT)],
    16: [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"],
    17: [scheme(ord("/"), size) for size in range(2, 7)],
    18: _schemes((0x7F, 2), (0x7FF, 3), (0xFFFF, 4), (0x1FFFFF, 5), (0x3FFFFFF, 6)),
    19: [scheme(0, size) for size in range(2, 7)],
    20: [scheme(half, 3) for half in (*HIGH, *LOW)],
    21: [scheme(high, 3) + scheme(low, 3) for high in HIGH for low in (LOW[0], LOW[-1])],
}


def _each(of: dict[int, list[bytes]]) -> Iterator[tuple[str, bytes]]:
    for section, texts in of.items():
        for number, text in enumerate(texts, 1):
            yield f"{section}.{number}", text


def valid_utf8() -> Iterator[Case]:
    """Section 6: text of every kind, its characters cut by frames anywhere (RFC, 5.6 and 8.1)."""
    for nth, parts in enumerate(([b"", b""], [b"", b"", b""], [b"", b"middle", b""], [b"a", b"", b"b"]), 1):
        yield right(f"6.1.{nth} empty fragments", fragments(TEXT, parts), echo(b"".join(parts)))
    long = "Hello-µ@ßöäüàá-UTF-8!!".encode()
    for nth, at in enumerate((12, 13, 14), 1):
        yield right(f"6.2.{nth} two fragments", fragments(TEXT, [long[:at], long[at:]]), echo(long))
    parts = fragments(TEXT, [KOSME[:1], KOSME[1:]])
    amid = [parts[0], frame(PING, b"\xff"), parts[1]]
    yield right("6.2.4 a ping amid a character", amid, pong(b"\xff"), echo(KOSME))
    for number, text in _each(VALID_UTF8):
        yield right(f"6.{number} valid", [frame(TEXT, text)], echo(text))
        each = fragments(TEXT, [bytes((byte,)) for byte in text])
        yield right(f"6.{number} valid, bytewise", each, echo(text))
        if len(text) < 124:
            yield closing(f"7.5.{number} valid reason", [close(1000, text)])


def invalid_utf8() -> Iterator[Case]:
    """Section 6: what is no UTF-8, found at the latest when the message ends."""
    for number, text in _each(INVALID_UTF8):
        yield wrong(f"6.{number} invalid", [frame(TEXT, text)], code=1007)
        each = fragments(TEXT, [bytes((byte,)) for byte in text])
        yield wrong(f"6.{number} invalid, bytewise", [HELLO, *each], HELLO_BACK, code=1007)
        amid = [frame(TEXT, b"Hello " + text + b" world")]
        yield wrong(f"6.{number} invalid, amid a text", amid, code=1007)
        if len(text) < 124:
            yield wrong(f"7.5.{number} invalid reason", [close(1000, text)], code=1007)
    for nth, bad in enumerate((scheme(0x110000, 4), scheme(0xD800, 3)), 1):
        parts = [KOSME, bad, b"edited"]
        yield wrong(f"6.3.{nth} three fragments", fragments(TEXT, parts), code=1007)
        parts = [KOSME, bad[:1], bad[1:] + b"edited"]
        yield wrong(f"6.4.{nth} cut amid the bad character", fragments(TEXT, parts), code=1007)
    halves = [KOSME[:1], b"", b"\xff"]
    yield wrong("6.4.3 an empty fragment amid a character", fragments(TEXT, halves), code=1007)


def closes() -> Iterator[Case]:
    """Section 7: the closing handshake (RFC, 5.5.1 and 7)."""
    bye, ping, two = close(1000), frame(PING, b"ping"), fragments(TEXT, [b"a", b"b"])
    yield closing("7.1.1 after a text", [HELLO, bye], HELLO_BACK)
    yield closing("7.1.2 two Closes", [bye], ignored=(close(1001),))
    yield closing("7.1.3 ping after it", [bye], ignored=(ping,))
    yield closing("7.1.4 text after it", [bye], ignored=(HELLO,))
    yield closing("7.1.5 amid a message", [two[0], bye], ignored=(two[1],))
    big = b"*" * MAX_KEPT
    yield closing("7.1.6 after a large text", [frame(TEXT, big), bye], echo(big), ignored=(ping,))
    yield closing("7.1.7 mistakes after it", [bye], ignored=(frame(3, rsv=7, mask=None), b"\xff" * 99))
    yield closing("7.3.1 no code", [frame(CLOSE)])
    yield wrong("7.3.2 one byte", [frame(CLOSE, b"\x03")])
    yield closing("7.3.4 code and reason", [close(1000, b"Hello World!")])
    yield closing("7.3.5 the longest reason", [close(1000, b"*" * 123)])
    yield wrong("7.3.6 a reason too long", [close(1000, b"*" * 124)])
    for number, code in enumerate(CODES, 1):
        yield closing(f"7.7.{number} code {code}", [close(code)], code=code)
        yield closing(f"7.7.{number} code {code}, reason", [HELLO, close(code, KOSME)], HELLO_BACK, code=code)
    for number, code in enumerate(NOT_CODES, 1):
        yield wrong(f"7.9.{number} code {code}", [close(code)])
        yield wrong(f"7.9.{number} code {code}, reason", [HELLO, close(code, KOSME)], HELLO_BACK)


def limits() -> Iterator[Case]:
    """Section 9: large messages, many messages, and what is over our limits (RFC, 10.4)."""
    for opcode, told in ((TEXT, too_large), (BINARY, refused)):
        for number, size in enumerate((MAX_KEPT, MAX_KEPT + 1, MAX_SKIPPED), 1):
            data = b"*" * size
            answer = echo(data) if opcode == TEXT and size == MAX_KEPT else told(data)
            whole, pieces = [frame(opcode, data)], fragments(opcode, [data[: size // 3], data[size // 3 :]])
            yield right(f"9.{opcode}.{number} {size} bytes", [*whole, HELLO], answer, HELLO_BACK)
            yield right(f"9.{opcode}.{number} {size} bytes in two", [*pieces, HELLO], answer, HELLO_BACK)
        for number, size in enumerate((MAX_SKIPPED + 1, (1 << 63) - 1), 4):
            head = frame(opcode, b"*", announced=size)
            yield wrong(f"9.{opcode}.{number} {size:x} bytes", [HELLO, head], HELLO_BACK, code=BEYOND_LIMITS)
        over = fragments(opcode, [b"*" * MAX_SKIPPED, b"*"])
        yield wrong(f"9.{opcode}.6 over the limit by its last byte", over, code=BEYOND_LIMITS)
    data = bytes(range(0x20, 0x60)) * (MAX_KEPT // 64)
    for number, size in enumerate((64, 256, 1024, 4096, 16384, 65536), 1):
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        yield right(f"9.3.{number} fragments of {size}", fragments(TEXT, parts), echo(data))
    for number, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
        small = data[:size]
        yield right(f"9.7.{number} 1000 texts of {size}", [frame(TEXT, small)] * 1000, *[echo(small)] * 1000)
    parts = [data[at : at + 1300] for at in range(0, 65536, 1300)]
    yield right("10.1.1 fragments of 1300", fragments(TEXT, parts), echo(b"".join(parts)))


SECTIONS = (
    *(framing, pings, reserved_bits, opcodes, right_fragments, wrong_fragments),
    *(valid_utf8, invalid_utf8, closes, limits),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    """An echo server made of our parts, as a process."""
    folder = tmp_path_factory.mktemp("echo")
    running = EchoServer(folder, message_max_bytes=MAX_KEPT, skip_max_bytes=MAX_SKIPPED)
    running.start()
    try:
        wait_for(running.ready, "the echo server listens")
        yield running
    finally:
        running.kill()


async def play_all(port: int, cases: Iterable[Case]) -> tuple[Counter[str], list[str]]:
    """Play each case in each cut; returns how many passed, by section, and the faults."""
    turns = asyncio.Semaphore(AT_ONCE)
    passed: Counter[str] = Counter()
    faults: list[str] = []

    async def one(case: Case, cut: str, pieces: list[bytes]) -> None:
        async with turns:
            if len(faults) < ENOUGH_FAULTS:
                fault = case.fault(await play(port, "/", pieces))
                if fault is None:
                    passed[case.section] += 1
                else:
                    faults.append(f"{case.name} ({cut}): {fault}")

    await asyncio.gather(*(one(case, *cut) for case in cases for cut in case.cuts()))
    return passed, faults


def test_every_case_in_every_cut(server: EchoServer) -> None:
    """Each case, sent whole, a frame at a time and cut small, brings just the frames that it should."""
    cases = [case for section in SECTIONS for case in section()]
    of = Counter(case.section for case in cases for _ in case.cuts())
    passed, faults = uvloop.run(play_all(server.port, cases))
    print(f"\n{len(cases)} cases; passed, by section:", end=" ")
    print(", ".join(f"{section}: {passed[section]}/{of[section]}" for section in sorted(of, key=int)))
    print(f"passed={passed.total()} of={of.total()}")
    assert not faults, "\n".join(sorted(faults))
    assert passed == of
    assert len({case.name for case in cases}) == len(cases)
    assert of.total() > 2_000
    assert server.output == ""

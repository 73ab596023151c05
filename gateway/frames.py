"""WebSocket frames, server side (RFC 6455, section 5): [P] bytes in, events out.

Tens of thousands of sockets sit idle, so what a decoder holds between messages is a few pointers; and
nearly every read is one small text frame, so that case is decided before anything else is looked at.

What a client may make the server hold is bounded: the text of one message up to ``max_message_bytes``,
one frame's head, one control frame. A text message over the limit and every binary message pass through
without being kept, so that the client can be told what was wrong over a connection that still works.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

import msgspec

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the wheel's C extension
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FINAL, _RESERVED, _OPCODE, _CONTROL, _MASKED, _LENGTH = 0x80, 0x70, 0x0F, 0x08, 0x80, 0x7F
_OPCODES: Final = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
_FIRST_BYTES: Final = frozenset((*(_FINAL | opcode for opcode in _OPCODES), CONTINUATION, TEXT, BINARY))

MAX_CONTROL_BYTES: Final = 125
MAX_REASON_BYTES: Final = MAX_CONTROL_BYTES - 2

PROTOCOL_ERROR, INVALID_DATA, TOO_BIG = 1002, 1007, 1009

_SHORT_TEXT: Final = tuple(bytes((_FINAL | TEXT, length)) for length in range(126))
_TEXT_16: Final = Struct("!BBH")
_TEXT_64: Final = Struct("!BBQ")

# The head of a masked frame without an extended length: two bytes and the mask.
_SHORT_HEAD: Final = 6
_LONGEST_SHORT_FRAME: Final = _SHORT_HEAD + 125


class Text(msgspec.Struct, frozen=True, gc=False):
    """A whole text message; ``data`` is valid UTF-8."""

    data: bytes


class Binary(msgspec.Struct, frozen=True, gc=False):
    """A whole binary message of ``size`` bytes, not kept."""

    size: int


class TooLarge(msgspec.Struct, frozen=True, gc=False):
    """A whole text message of ``size`` bytes, over the limit and not kept (nor checked for UTF-8)."""

    size: int


class Ping(msgspec.Struct, frozen=True, gc=False):
    """A ping of 0 to 125 bytes; the answer is a pong with the same ``data``."""

    data: bytes


class Pong(msgspec.Struct, frozen=True, gc=False):
    """A pong of 0 to 125 bytes, asked for or not."""

    data: bytes


class Close(msgspec.Struct, frozen=True, gc=False):
    """The client's last frame; ``code`` is None when it gave none."""

    code: int | None
    reason: str


Event: TypeAlias = Text | Binary | TooLarge | Ping | Pong | Close


class ProtocolViolation(Exception):
    """The client broke RFC 6455 or a hard limit; nothing that it sends from here on can be read.

    Attributes:
        code: the close code to answer with: 1002, 1007 or 1009.
    """

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(message)


def text_header(length: int) -> bytes:
    """The head of an unmasked, unfragmented text frame with ``length`` bytes of payload (section 5.2)."""
    if length < 126:
        return _SHORT_TEXT[length]
    if length < 65536:
        return _TEXT_16.pack(_FINAL | TEXT, 126, length)
    return _TEXT_64.pack(_FINAL | TEXT, 127, length)


def encode_text(payload: bytes) -> bytes:
    """A text frame; ``payload`` must be UTF-8."""
    return text_header(len(payload)) + payload


def encode_ping(payload: bytes = b"") -> bytes:
    """A ping frame.

    Raises:
        ValueError: ``payload`` is over 125 bytes.
    """
    return _encode_control(PING, payload)


def encode_pong(payload: bytes) -> bytes:
    """A pong frame; see `encode_ping`."""
    return _encode_control(PONG, payload)


def encode_close(code: int, reason: str) -> bytes:
    """A close frame (section 5.5.1); ``reason`` is cut to 123 bytes between two characters.

    Raises:
        ValueError: ``code`` is one that must not be sent (section 7.4).
    """
    if not is_close_code(code):
        raise ValueError(f"close code {code} must not be sent")
    # Every character is at least a byte. A lone surrogate must not cost the client its close code.
    text = reason[:MAX_REASON_BYTES].encode("utf-8", "replace")[:MAX_REASON_BYTES]
    return _encode_control(CLOSE, code.to_bytes(2, "big") + text.decode("utf-8", "ignore").encode())


def _encode_control(opcode: int, payload: bytes) -> bytes:
    if len(payload) > MAX_CONTROL_BYTES:
        raise ValueError(f"control frames carry at most {MAX_CONTROL_BYTES} bytes, not {len(payload)}")
    return bytes((_FINAL | opcode, len(payload))) + payload


def is_close_code(code: int) -> bool:
    """Whether ``code`` may stand in a close frame (section 7.4, and the IANA registry up to 1014)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


class _Message:
    """A data message of which not all has come.

    Attributes:
        content: what has come of a text message; None when it is not kept.
        size: bytes of payload that its frames have announced so far.
        left: bytes that the current frame still lacks; 0 between two frames.
        mask: the current frame's mask, turned to the next byte.
        final: the current frame is the last.
    """

    __slots__ = ("content", "final", "left", "mask", "size", "text")

    def __init__(self, text: bool) -> None:
        self.text = text
        self.content = bytearray() if text else None
        self.size = self.left = 0
        self.mask = b""
        self.final = False


class FrameDecoder:
    """Reads what one client sends.

    Args:
        max_message_bytes: payload of the largest text message that is kept.
        max_skip_bytes: payload of the largest message that is tolerated, kept or not; one that announces
            more ends the connection (1009).

    Attributes:
        closed: a close frame has come or the client has failed; what follows is ignored (section 5.5.1).
        failure: how the client failed; set rather than raised, so that the events before it are not lost.
    """

    __slots__ = ("_max_message_bytes", "_max_skip_bytes", "_message", "_pending", "closed", "failure")

    def __init__(self, max_message_bytes: int, max_skip_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._max_skip_bytes = max_skip_bytes
        self._pending = b""  # the beginning of a head or of a control frame
        self._message: _Message | None = None
        self.closed = False
        self.failure: ProtocolViolation | None = None

    @property
    def buffered_bytes(self) -> int:
        """How much of what the client sent is held: at most ``max_message_bytes`` and a control frame."""
        message = self._message
        kept = 0 if message is None or message.content is None else len(message.content)
        return len(self._pending) + kept

    def feed(self, data: bytes) -> list[Event]:
        """Take what came from the socket, cut anywhere, and say what it completes; never raises."""
        size = len(data)
        if (
            _SHORT_HEAD <= size <= _LONGEST_SHORT_FRAME
            and data[0] == _FINAL | TEXT
            and data[1] == _MASKED | size - _SHORT_HEAD
            and self._message is None
            and not self._pending
            and not self.closed
            and size - _SHORT_HEAD <= self._max_message_bytes
        ):
            text = apply_mask(data[_SHORT_HEAD:], data[2:_SHORT_HEAD])
            if text.isascii() or _decode_utf8(text) is not None:
                return [Text(text)]
        return self._feed_any(data)

    def _feed_any(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if self.closed:
            return events
        try:
            self._decode(self._pending + data, events)
        except ProtocolViolation as violation:
            # The traceback's frames would hold the data, and this decoder in a cycle.
            self.failure = violation.with_traceback(None)
            self._stop()
        return events

    def _decode(self, data: bytes, events: list[Event]) -> None:
        position = 0
        while not self.closed:
            message = self._message
            if message is not None and message.left:
                taken = self._take_payload(message, data, position, events)
            else:
                taken = self._take_head(data, position, events)
            if not taken:
                self._pending = data[position:]
                return
            position += taken

    def _stop(self) -> None:
        self.closed = True
        self._pending = b""
        self._message = None

    def _take_head(self, data: bytes, start: int, events: list[Event]) -> int:
        """Take a frame's head, and the payload too of a control frame and of a whole text message.

        Returns:
            How many bytes were taken; 0 when more are needed.
        """
        if len(data) < start + 2:
            return 0
        first, length = data[start], data[start + 1] & _LENGTH
        self._check_head(first, data[start + 1])
        body = start + _SHORT_HEAD + (0 if length < 126 else 2 if length == 126 else 8)
        if len(data) < body:
            return 0
        if length >= 126:
            length = _extended_length(data[start + 2 : body - 4])
        mask, end = data[body - 4 : body], body + length
        if first & _CONTROL:
            if len(data) < end:
                return 0
            self._control(first & _OPCODE, apply_mask(data[body:end], mask), events)
            return end - start
        if first == _FINAL | TEXT and length <= self._max_message_bytes and len(data) >= end:
            events.append(_text(apply_mask(data[body:end], mask)))
            return end - start
        self._begin_frame(first, length, mask, events)
        return body - start

    def _check_head(self, first: int, second: int) -> None:
        """Refuse what two bytes are enough to refuse (sections 5.1 to 5.5)."""
        if first not in _FIRST_BYTES:
            raise ProtocolViolation(PROTOCOL_ERROR, _explain(first))
        if not second & _MASKED:
            raise ProtocolViolation(PROTOCOL_ERROR, "frame is not masked")
        if first & _CONTROL:
            if second & _LENGTH > MAX_CONTROL_BYTES:
                raise ProtocolViolation(PROTOCOL_ERROR, "control frame is over 125 bytes")
        elif first & _OPCODE != CONTINUATION:
            if self._message is not None:
                raise ProtocolViolation(PROTOCOL_ERROR, "new message before the end of the last one")
        elif self._message is None:
            raise ProtocolViolation(PROTOCOL_ERROR, "continuation frame without a message to continue")

    def _begin_frame(self, first: int, length: int, mask: bytes, events: list[Event]) -> None:
        message = self._message
        if message is None:
            message = self._message = _Message(text=first & _OPCODE == TEXT)
        message.size += length
        if message.size > self._max_skip_bytes:
            raise ProtocolViolation(TOO_BIG, f"message is over {self._max_skip_bytes} bytes")
        if message.size > self._max_message_bytes:
            message.content = None
        message.left, message.mask, message.final = length, mask, bool(first & _FINAL)
        if not length:
            self._end_frame(message, events)

    def _take_payload(self, message: _Message, data: bytes, start: int, events: list[Event]) -> int:
        taken = min(message.left, len(data) - start)
        if message.content is not None:
            message.content += apply_mask(data[start : start + taken], message.mask)
            turn = taken % 4
            message.mask = message.mask[turn:] + message.mask[:turn]
        message.left -= taken
        if not message.left:
            self._end_frame(message, events)
        return taken

    def _end_frame(self, message: _Message, events: list[Event]) -> None:
        if message.final:
            self._message = None
            events.append(_finished(message))

    def _control(self, opcode: int, payload: bytes, events: list[Event]) -> None:
        if opcode == PING:
            events.append(Ping(payload))
        elif opcode == PONG:
            events.append(Pong(payload))
        else:
            events.append(_parse_close(payload))
            self._stop()


def _explain(first: int) -> str:
    """What is wrong with a first byte that is none of `_FIRST_BYTES`."""
    if first & _RESERVED:
        return "reserved bits are set and no extension was agreed"
    if first & _OPCODE not in _OPCODES:
        return f"unknown opcode {first & _OPCODE}"
    return "control frame is fragmented"


def _extended_length(field: bytes) -> int:
    """The payload length in 2 or 8 bytes, which must be the shortest form (section 5.2)."""
    length = int.from_bytes(field, "big")
    if length >> 63:
        raise ProtocolViolation(PROTOCOL_ERROR, "the top bit of a 64-bit length is set")
    if length < (126 if len(field) == 2 else 65536):
        raise ProtocolViolation(PROTOCOL_ERROR, "length is not in its shortest form")
    return length


def _finished(message: _Message) -> Event:
    if not message.text:
        return Binary(message.size)
    if message.content is None:
        return TooLarge(message.size)
    return _text(bytes(message.content))


def _text(data: bytes) -> Text:
    if not data.isascii() and _decode_utf8(data) is None:
        raise ProtocolViolation(INVALID_DATA, "text message is not UTF-8")
    return Text(data)


def _parse_close(payload: bytes) -> Close:
    """Read a close frame's payload: nothing, or a code and a reason (section 5.5.1)."""
    if not payload:
        return Close(None, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not is_close_code(code):
        raise ProtocolViolation(PROTOCOL_ERROR, "close frame without a valid close code")
    reason = _decode_utf8(payload[2:])
    if reason is None:
        raise ProtocolViolation(INVALID_DATA, "close reason is not UTF-8")
    return Close(code, reason)


def _decode_utf8(data: bytes) -> str | None:
    """None for invalid bytes: raising inside ``except`` would tie the payload to the violation."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None

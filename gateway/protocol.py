"""What clients say on a socket: [P] pure decoding."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from gateway.chat import ChatBody, check_depth, invalid_field
from gateway.errors import ClientError

Ref = Annotated[str, msgspec.Meta(max_length=128)] | int


class Ping(msgspec.Struct, tag="ping"):
    """Asks for a ``pong``."""

    ref: Ref | None = None


class Pong(msgspec.Struct, tag="pong"):
    """Answers the server's ``ping``."""

    ref: Ref | None = None


class Ack(msgspec.Struct, tag="ack"):
    """The client has dealt with the session's messages up to ``seq``."""

    seq: Annotated[int, msgspec.Meta(ge=0)]
    ref: Ref | None = None


class Auth(msgspec.Struct, tag="auth"):
    """A new token in place of the one that the socket was opened with."""

    token: Annotated[str, msgspec.Meta(min_length=1, max_length=8192)]
    ref: Ref | None = None


class Chat(ChatBody, tag="chat"):
    """The same as ``POST /api/chat/send``; a trace that is not valid is ignored."""

    ref: Ref | None = None
    traceparent: Any = None
    tracestate: Any = None


class Cancel(msgspec.Struct, tag="cancel"):
    """The same as ``POST /api/chat/tasks/{task_id}/cancel``; one of the two ids is needed."""

    task_id: Annotated[str, msgspec.Meta(max_length=128)] | None = None
    client_message_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""
    ref: Ref | None = None


class Input(msgspec.Struct, tag="input"):
    """The same as ``POST /api/chat/tasks/{task_id}/input``."""

    task_id: Annotated[str, msgspec.Meta(max_length=128)]
    input_id: Annotated[str, msgspec.Meta(max_length=128)]
    value: msgspec.Raw
    ref: Ref | None = None


_Topics = Annotated[
    list[Annotated[str, msgspec.Meta(max_length=128)]], msgspec.Meta(min_length=1, max_length=100)
]


class Subscribe(msgspec.Struct, tag="subscribe"):
    """Asks to be told of events."""

    topics: _Topics
    ref: Ref | None = None


class Unsubscribe(msgspec.Struct, tag="unsubscribe"):
    """Asks to be told no more of them."""

    topics: _Topics
    ref: Ref | None = None


ClientMessage = Ping | Pong | Ack | Auth | Chat | Cancel | Input | Subscribe | Unsubscribe


class _Head(msgspec.Struct):
    """Enough of a message that could not be read to say what is wrong with it, and to which it was."""

    type: Any = None
    ref: Any = None


class BadMessage(ClientError):
    """A client's message that cannot be taken.

    Attributes:
        ref: the message's own ``ref``, so that the client knows which it was.
    """

    def __init__(self, error: ClientError, ref: Ref | None) -> None:
        super().__init__(
            error.status,
            error.error_code,
            error.detail,
            retry_after_s=error.retry_after_s,
            limit=error.limit,
        )
        self.ref = ref


TYPES = ("ping", "pong", "ack", "auth", "chat", "cancel", "input", "subscribe", "unsubscribe")

_decode = msgspec.json.Decoder(ClientMessage).decode
_decode_head = msgspec.json.Decoder(_Head).decode


def parse(data: bytes, depth: int = 32) -> ClientMessage:
    """Read one message.

    Args:
        depth: levels of nesting that it may have.

    Raises:
        BadMessage: it is none that the server understands; the text says why.
    """
    try:
        check_depth(data, depth)
        message: ClientMessage = _decode(data)
    except ClientError as error:
        raise BadMessage(error, None) from None
    except msgspec.ValidationError as error:
        raise _explain(data, error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(ClientError(400, "not_json", f"the message is not JSON: {error}"), None) from None
    return message


def _explain(data: bytes, error: msgspec.ValidationError) -> BadMessage:
    try:
        head = _decode_head(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BadMessage(ClientError(400, "not_an_object", "the message must be a JSON object"), None)
    ref = head.ref if isinstance(head.ref, str | int) and not isinstance(head.ref, bool) else None
    if head.type not in TYPES:
        said = "is missing" if head.type is None else f"is {ascii(head.type)[:60]}"
        detail = f"type {said}; clients may send {', '.join(TYPES)}"
        return BadMessage(ClientError(400, "unknown_type", detail), ref)
    return BadMessage(invalid_field(error), ref)


Kind = Literal[
    "connection_ack", "ack", "error", "ping", "pong", "reconnect", "subscribed", "unsubscribed"
]  # what a pod itself says; the rest comes from the log

"""What the clients of other protocols post to have a message answered: [P] pure.

Sources: `RunAgentInput` of `@ag-ui/core` 1.0.0 (https://docs.ag-ui.com/spec/1.0/basic/run-input), and the
body that `DefaultChatTransport` of `ai` 7.0.173 and 6.0.326 sends: whole or, as in the documentation of
resumable streams (https://ai-sdk.dev/docs/ai-sdk-ui/chatbot-resume-streams), with the last message alone.

A client posts the whole conversation, but the agent keeps its own: only the user's last message is taken. It
is text; what a client attaches is refused, because to leave it out in silence would change the question.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.encoders import fields
from gateway.encoders.ai_sdk_parts import posted_answer
from gateway.encoders.questions import Answer, read_answer

INSTEAD = "or send it with POST /api/chat/tasks/{task_id}/input"

_MAX_ID = 128
_MEDIA = frozenset({"image", "audio", "video", "document", "binary", "file"})

_Id = Annotated[str, msgspec.Meta(min_length=1)]


class Inbound(NamedTuple):
    """What a client posted.

    Attributes:
        message: the text of the user's last message; empty only if there are ``answers``.
        client_message_id: by which the same message is known when it is posted again; None if it is to be
            answered anew.
        thread_id, run_id, protocol_version: for `AgUiEncoder`.
        messages: what the client has.
        answers: to what the agent of one task asked; what was said beside them is not to be sent.
    """

    message: str
    client_message_id: str | None
    thread_id: str = ""
    run_id: str | None = None
    protocol_version: str | None = None
    messages: list[dict[str, Any]] = []  # noqa: RUF012  # a NamedTuple's default; never written to
    answers: tuple[Answer, ...] = ()


class Resume(msgspec.Struct, rename="camel"):
    """The answer to an interrupt."""

    interrupt_id: _Id
    status: Literal["resolved", "cancelled"]
    payload: Any = None


class RunAgentInput(msgspec.Struct, rename="camel"):
    """What AG-UI's clients post, as far as it is read."""

    thread_id: _Id
    run_id: _Id
    messages: list[dict[str, Any]]
    protocol_version: str | None = None
    resume: list[Resume] = []


class ChatRequest(msgspec.Struct, rename="camel"):
    """What the AI SDK's clients post, as far as it is read."""

    messages: list[dict[str, Any]] = []
    message: dict[str, Any] | None = None
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"


_decode_ag_ui = msgspec.json.Decoder(RunAgentInput).decode
_decode_ai_sdk = msgspec.json.Decoder(ChatRequest).decode


def read_ag_ui(body: bytes) -> Inbound:
    """Read a `RunAgentInput`.

    Raises:
        ValueError: it is none, or has no message of the user that can be sent; the text says why.
    """
    try:
        posted = _decode_ag_ui(body)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    about = (posted.thread_id, posted.run_id, posted.protocol_version, posted.messages)
    if posted.resume:
        # The question that the agent asks back about is still the last message if nothing was said since.
        last = posted.messages[-1] if posted.messages else {}
        known_by = _message_id(last) if last.get("role") == "user" else None
        return Inbound("", known_by, *about, _answers(posted.resume))
    asked = [message for message in posted.messages if message.get("role") == "user"]
    if not asked:
        raise ValueError("messages has none whose role is user")
    return Inbound(_text(asked[-1].get("content")), _message_id(asked[-1]), *about)


def _answers(resume: list[Resume]) -> tuple[Answer, ...]:
    found = []
    for one in resume:
        answer = read_answer(one.interrupt_id, one.payload, given_up=one.status == "cancelled")
        if answer is None:
            raise ValueError("an interruptId of resume is none that was asked here")
        found.append(answer)
    if len({answer.task_id for answer in found}) > 1:
        raise ValueError(f"resume has answers to several tasks; {INSTEAD} for each of them")
    return tuple(found)


def read_ai_sdk(body: bytes) -> Inbound:
    """Read what `DefaultChatTransport` posts.

    A message that is to be answered again comes without an id, because its first answer is known by it.

    Raises:
        ValueError: it is something else, or its last message is none of the user that can be sent, and has no
            answer of his.
    """
    try:
        posted = _decode_ai_sdk(body)
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
    last = posted.message or (posted.messages[-1] if posted.messages else {})
    if last.get("role") == "assistant":
        answer = posted_answer(last)
        if answer is None:
            raise ValueError(f"the last of messages has no answer to what the agent asked; {INSTEAD}")
        return Inbound("", None, messages=[last], answers=(answer,))
    if last.get("role") != "user":
        raise ValueError("the last of messages must be one whose role is user, or that has the user's answer")
    again = posted.trigger == "regenerate-message"
    return Inbound(_text(last.get("parts")), None if again else _message_id(last))


def _message_id(message: Mapping[str, Any]) -> str | None:
    message_id = message.get("id")
    if message_id is None or message_id == "":
        return None
    if not isinstance(message_id, str) or len(message_id) > _MAX_ID:
        raise ValueError(f"the message's id must be text of at most {_MAX_ID} characters")
    return message_id


def _text(content: object) -> str:
    """The text of a message: as it is, or in parts."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise ValueError("the user's message has no text")
    pieces = []
    for part in parts:
        kind = fields.text(fields.mapping(part).get("type"))
        if kind in _MEDIA:
            raise ValueError(f"the user's message has a part of type {kind}; only text can be sent")
        if kind == "text":
            pieces.append(fields.text(part.get("text")))
    text = "".join(pieces)
    if not text:
        raise ValueError("the user's message has no text")
    return text

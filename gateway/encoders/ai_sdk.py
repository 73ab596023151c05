"""A task in the words of the Vercel AI SDK's UI message stream: [P] pure.

Sources: https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol and …/chatbot-resume-streams, and `ai` 7.0.173 and
6.0.326 (`uiMessageChunkSchema`, `processUIMessageStream`, `AbstractChat` in their source), against which the
tests in tests/clients run.

**One response is one message.** The client builds one message out of a response, and thinks that the answer
goes on until the response ends. So an encoder is for one task: the one that it is told, or else the first
that something comes of. What comes of others is left out, and when the task has ended the encoder is done.

**Coming back.** The client asks by GET, gives no position, and reads no ``id:``. With the first ``start`` it
throws away what it has and builds the message anew from what comes. So an encoder without ``resume`` must be
given all messages of the task, from its first in the log on, and then the text so far. An application that
keeps the ids itself (it sees them in a ``fetch`` of its own) can send ``Last-Event-ID`` instead. Then neither
``start`` nor the beginning of an open block is repeated, and only what is lacking follows: without ``start``
the client goes on where it was. It can do so only in the page that was interrupted, and only if it takes the
break for one of the network; the connection must be cut, not ended.

**Taking back.** No chunk that all versions know takes back text. What was told of an attempt that is replaced
stays, and a part ``data-superseded`` follows: the parts of the kinds that it names and that stand before it
do not count. `ai` 7 knows ``reset-step``, which removes them; with ``reset_step`` it is used, unless there
were tool calls, which it would remove too. `ai` 6 takes a chunk that it does not know for a broken stream.

**Tool calls** are ``dynamic``, because the client has no types for them, and ``providerExecuted``, because it
is not to make them. An output comes again if it is told again; arguments that are told only after the output
are left out, because they would take the output away.

**Asking the user.** A question is a call of a tool that the client has to make (not ``providerExecuted``),
and the response ends with it, as the client wants it: it posts the message, with the user's answer as the
call's output, when it is complete. What follows goes on in that message, in a step of its own, without which
the client would take the answered call for one that it has to post again. A question that was answered
meanwhile is only shown, by a part ``data-input-required``: the log does not have its answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from gateway.encoders import fields, sse
from gateway.encoders.ai_sdk_parts import posted_task
from gateway.encoders.base import BaseEncoder, Data
from gateway.encoders.event_id import EventId
from gateway.encoders.ledger import PARTS, Call, News, PartName, Task, attempt_name
from gateway.encoders.questions import question_id

MAX_SOURCES = 100
QUESTION = "input_required"
"""The tool whose output is the user's answer."""

_FORMAT_HEADER = ("x-vercel-ai-ui-message-stream", "v1")
_WEB = ("http://", "https://")


class AiSdkEncoder(BaseEncoder):
    """Encodes for `useChat` and `readUIMessageStream`.

    Args:
        task_id: the task; None for the first that something comes of.
        resume: what the client has, by its ``Last-Event-ID``; None if it begins anew.
        reset_step: the client is `ai` 7 or newer.
        message: the answer so far, as the client posted it; it goes on in the same message.
        replays, given_up: see `BaseEncoder`.
    """

    name = "ai-sdk"
    media_type = "text/event-stream;format=ai-sdk"
    headers: tuple[tuple[str, str], ...] = (_FORMAT_HEADER,)

    def __init__(
        self,
        *,
        task_id: str | None = None,
        resume: EventId | None = None,
        reset_step: bool = False,
        message: Mapping[str, Any] | None = None,
        replays: bool = False,
        given_up: Collection[str] = (),
    ) -> None:
        begun = list(resume.have) if resume is not None else []
        only = task_id or next(iter(begun), None)
        super().__init__(only, resume, here=True, replays=replays, given_up=given_up)
        self._ledger.forget_all_but({only} if only is not None else set())
        self._started = only in self._ledger.tasks
        self._goes_on = message is not None
        if only is not None and message is not None:
            self._ledger.tasks[only] = posted_task(message, only)
        self._reset_step = reset_step and message is None
        self._steps = reset_step or message is not None
        self._ended = False

    def finish(self) -> bytes:
        """End the stream; a client in the middle of an answer is told of an error, so that it asks again."""
        self._ledger.begin(None)
        if self._ledger.tasks and not self._ended:
            text = "the connection was closed before the answer was complete; resume the stream"
            self._write("error", errorText=text)
        self.done = True
        return self._ledger.end() + sse.event(b"[DONE]")

    def _begin(self, task_id: str, *, ends: bool = False) -> Task | None:
        if self._only is None:
            self._only = task_id
        task = self._ledger.task(task_id, ends=ends)
        if task is None:
            return None
        if not self._started:
            self._started = True
            self._write("start", messageId=task_id, messageMetadata={"task_id": task_id})
            if self._steps:
                self._write("start-step")
        if task.waiting is not None:  # it was answered, or the agent goes on without
            self._told_question(task)
            task.waiting = None
        return task

    def _end(self, task: Task) -> None:
        self._ledger.end_task(task)
        self.done = self._ended = True

    # Messages about the task.

    def _user_message(self, task_id: str, data: Data) -> None:
        if self._begin(task_id):
            self._aside("user-message", data)

    def _response(self, task_id: str, data: Data) -> None:
        task = self._begin(task_id, ends=True)
        if task is None:
            return
        self._complete(task, data.get("response"))
        self._end_calls(task, None)
        sources = data.get("sources")
        for number, source in enumerate(sources[:MAX_SOURCES] if isinstance(sources, list) else []):
            self._source(f"{task_id}/source/{number}", source)
        if self._steps:
            self._write("finish-step")
        metadata = {name: value for name, value in data.items() if name != "response"}
        self._end(task)
        self._write("finish", finishReason="stop", messageMetadata=metadata)

    def _failure(self, task_id: str, data: Data) -> None:
        task = self._begin(task_id, ends=True)
        if task is None:
            return
        text = fields.text(data.get("error")) or fields.text(data.get("status"))
        self._end_blocks(task)
        self._end_calls(task, text)
        self._write("message-metadata", messageMetadata=data)
        self._end(task)
        if data.get("status") == "cancelled":
            self._write("abort", reason=text)
        else:  # the client reads nothing after an error
            self._write("error", errorText=text)

    def _ask(self, tasks: list[Task]) -> None:
        [task] = tasks
        asked = task.waiting or {}
        call_id = question_id(task.id, fields.text(asked.get("input_id")))
        told = {name: asked.get(name) for name in ("prompt", "schema", "expires_at")}
        self._end_blocks(task)
        about = {"toolCallId": call_id, "toolName": QUESTION, "dynamic": True}
        self._write("tool-input-available", **about, input=told)
        if self._steps:
            self._write("finish-step")
        self.done = self._ended = True
        metadata = {"task_id": task.id, "attempt": task.attempt}
        self._write("finish", finishReason="tool-calls", messageMetadata=metadata)

    def _told_question(self, task: Task) -> None:
        asked = task.waiting or {}
        part_id = fields.text(asked.get("input_id")) or task.id
        self._write("data-input-required", id=part_id, data=asked)

    def _progress(self, task: Task, update: Data) -> None:
        if any(value is not None for name, value in update.items() if name != "task_id"):
            self._write("data-task-update", id=task.id, data=update)  # replaces the one of this id

    def _source(self, source_id: str, source: object) -> None:
        about = fields.mapping(source)
        url = fields.text(about.get("url")) or fields.text(source)
        title = fields.text(about.get("title"))
        extra = {"title": title} if title else {}
        if url.startswith(_WEB):
            self._write_once("source-url", sourceId=source_id, url=url, **extra)
        else:
            media_type = fields.text(about.get("media_type")) or "text/plain"
            shown = title or fields.as_text(source)
            self._write_once("source-document", sourceId=source_id, mediaType=media_type, title=shown)

    # Blocks.

    def _block_begins(self, task: Task, name: PartName) -> None:
        self._write(f"{name}-start", id=_part_id(task, name))

    def _block_grows(self, task: Task, name: PartName, piece: str) -> None:
        self._write(f"{name}-delta", id=_part_id(task, name), delta=piece)

    def _block_ends(self, task: Task, name: PartName) -> None:
        self._write(f"{name}-end", id=_part_id(task, name))

    def _withdraw(self, task: Task, names: tuple[PartName, ...], attempt: int | None = None) -> None:
        for name in names:
            self._end_block(task, name)
        about = {"parts": list(names), "attempt": task.attempt}
        keeps = any(task.part(name).chars for name in PARTS if name not in names)
        for name in names:
            task.part(name).withdraw()
        if attempt is not None:
            task.begin_attempt(attempt)
        if self._reset_step and not task.calls and not keeps:
            self._write("reset-step")
        else:
            self._write("data-superseded", data=about)

    # Tool calls.

    def _tool(self, task: Task, report: fields.ToolReport, news: News) -> None:
        call, ended_before = news.call, news.call.ended and not news.ended
        output_again = False
        if news.args and not (ended_before and report.result is None):
            self._input(task, report.call_id, call, report.args)
            output_again = ended_before
        elif news.ended and not call.args:
            self._input(task, report.call_id, call, None)
        elif news.new:
            about = self._about(task, report.call_id)
            self._write("tool-input-start", **about, toolName=call.name, dynamic=True)
        if report.outcome == "failed" and (news.ended or output_again):
            self._failed(task, report.call_id, fields.as_text(report.result or "the tool call failed"))
        elif report.outcome == "done" and (news.ended or news.result or output_again):
            self._output(task, report.call_id, report.result)

    def _end_calls(self, task: Task, failure: str | None) -> None:
        """A call of which no end was told would look as if it went on for ever."""
        for call_id, call in task.calls.items():
            if call.ended:
                continue
            if not call.args:
                self._input(task, call_id, call, None)
            if failure is None:
                self._output(task, call_id, None)
            else:
                self._failed(task, call_id, failure)

    def _input(self, task: Task, call_id: str, call: Call, args: object) -> None:
        about = self._about(task, call_id)
        self._write("tool-input-available", **about, toolName=call.name, input=args, dynamic=True)

    def _output(self, task: Task, call_id: str, output: object) -> None:
        self._write("tool-output-available", **self._about(task, call_id), output=output, dynamic=True)

    def _failed(self, task: Task, call_id: str, text: str) -> None:
        self._write("tool-output-error", **self._about(task, call_id), errorText=text, dynamic=True)

    def _about(self, task: Task, call_id: str) -> Mapping[str, Any]:
        return {"toolCallId": f"{task.id}/call/{call_id}", "providerExecuted": True}

    # Messages about the session: the client hands them to `onData` and keeps them nowhere.

    def _trouble(self, data: Data) -> None:
        self._aside("error", data)

    def _event(self, data: Data) -> None:
        if self._only is None:
            self._aside("event", data)

    def _reconnect(self, data: Data) -> None:
        self._aside("reconnect", data)

    def _reset(self, resume: Data) -> None:
        self._aside("reset", resume)

    def _aside(self, name: str, data: Data) -> None:
        self._write(f"data-{name}", data=data, transient=True)

    def _write(self, kind: str, **about: Any) -> None:
        self._ledger.write({"type": kind, **about})

    def _write_once(self, kind: str, **about: Any) -> None:
        self._ledger.write({"type": kind, **about}, once=True)


def _part_id(task: Task, name: PartName) -> str:
    return f"{name}-{attempt_name(task.attempt)}-{task.part(name).blocks - 1}"

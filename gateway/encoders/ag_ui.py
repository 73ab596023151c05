"""A session in the words of AG-UI, as its clients take them: [P] pure.

Sources: https://docs.ag-ui.com/spec/1.0, and `@ag-ui/client` 1.0.0 (`verifyEvents`, `defaultApplyEvents`
in its source), against which the tests in tests/clients run.

**A run is a stretch in which the session works.** The clients refuse a run that begins before the last one
has ended, but our tasks overlap. To hold one task back until another has ended would delay what is live, and
tell the log in another order; to end a run and go on with it later would tell of an end that is none. But
messages, tool calls, reasoning and steps of one run may interleave freely (spec, basic/patterns/streaming).
So tasks that overlap share a run: it begins with the first, and ends when none works any more. A task that
ends before that is told by the custom event ``task_finished``. With ``task_id`` there is one task, and so one
run at a time.

**Coming back.** A stream begins with RUN_STARTED, on every response. A message that is opened again goes on,
and what comes is appended (spec, events/text-messages). So the run and what is open are begun again under the
same ids, and then only what the client lacks follows. The clients read no ``id:`` and have no way of their
own to come back: an application sends the id of the last event as ``Last-Event-ID``, or calls ``runAgent``
again, and then the messages that it posts say what it has.

**Taking back.** An ACTIVITY_SNAPSHOT replaces the message of its id, whatever that was. Text of an attempt
that is replaced becomes an activity ``superseded``: it is no part of the conversation any more, and is not
posted back. A MESSAGES_SNAPSHOT would do it too, but would remove the messages that the server does not know.

**Asking the user.** A run must not wait for its client (spec, basic/patterns): ``input_required`` ends it by
an interrupt. When the task goes on, a run begins, and its messages go on. The client answers by ``resume`` in
its next run, which names the interrupt: its id has the task's, so that it is known whose question it was.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from gateway.encoders import fields
from gateway.encoders.ag_ui_names import call_id as _call_id
from gateway.encoders.ag_ui_names import message_id as _message_id
from gateway.encoders.ag_ui_names import posted_task
from gateway.encoders.base import BaseEncoder, Data
from gateway.encoders.event_id import EventId
from gateway.encoders.ledger import PARTS, Call, News, PartName, Task
from gateway.encoders.questions import question_id

_BEGINS: Final[Mapping[PartName, tuple[str, ...]]] = {
    "text": ("TEXT_MESSAGE_START",),
    "reasoning": ("REASONING_START", "REASONING_MESSAGE_START"),
}
_GROWS: Final[Mapping[PartName, str]] = {
    "text": "TEXT_MESSAGE_CONTENT",
    "reasoning": "REASONING_MESSAGE_CONTENT",
}
_ENDS: Final[Mapping[PartName, tuple[str, ...]]] = {
    "text": ("TEXT_MESSAGE_END",),
    "reasoning": ("REASONING_MESSAGE_END", "REASONING_END"),
}
_ROLES: Final[Mapping[str, Mapping[str, str]]] = {
    "TEXT_MESSAGE_START": {"role": "assistant"},
    "REASONING_MESSAGE_START": {"role": "reasoning"},
    "REASONING_START": {},
}
_VERSION_1 = re.compile(r"[1-9][0-9]*\.[0-9]+")


class AgUiEncoder(BaseEncoder):
    """Encodes for the clients of AG-UI.

    Args:
        thread_id: what the client calls the session.
        task_id: the one task that the stream is about; None for all of the session.
        run_id: what the client calls its run; None for the task's id.
        resume: what the client has, by its ``Last-Event-ID``.
        messages: what the client has, by the messages that it posted; for ``task_id``, without ``resume``.
            None for a client that posts none.
        protocol_version: as the client posted it. Clients before 1.0 know no cancelled run, and take one for
            a broken stream; they are told of an error.
        replays, given_up: see `BaseEncoder`.
    """

    name = "ag-ui"
    media_type = "text/event-stream;format=ag-ui"

    def __init__(
        self,
        thread_id: str,
        *,
        task_id: str | None = None,
        run_id: str | None = None,
        resume: EventId | None = None,
        messages: Iterable[Mapping[str, Any]] | None = None,
        protocol_version: str | None = None,
        replays: bool = False,
        given_up: Collection[str] = (),
    ) -> None:
        super().__init__(task_id, resume, here=False, replays=replays, given_up=given_up)
        self._posts = messages is not None
        if task_id is not None and messages is not None and (task := posted_task(messages, task_id)):
            self._ledger.tasks[task_id] = task
        self._thread_id = thread_id
        self._run_id = run_id
        self._knows_cancelled = _VERSION_1.fullmatch(protocol_version or "") is not None
        self._run: str | None = None
        self._steps: set[str] = set()
        self._lost: Data | None = None

    def finish(self) -> bytes:
        """Tell a client in the middle of a run that it goes on: it would take a mere end for the run's."""
        self._ledger.begin(None)
        if self._run is not None:
            text = "the connection was closed before the run ended; connect again"
            self._write("RUN_ERROR", message=text, code="disconnected")
            self._run = None
        self.done = True
        return self._ledger.end()

    # Runs.

    def _begin(self, task_id: str, *, ends: bool = False, question: Data | None = None) -> Task | None:
        task = self._ledger.task(task_id, ends=ends)
        if task is None:
            return None
        task.waiting = None
        if self._run is None:
            self._begin_run(task, question)
        if task.torn:
            self._withdraw(task, task.torn)
            task.torn = ()
        return task

    def _begin_run(self, task: Task, question: Data | None) -> None:
        ids = {"threadId": self._thread_id, "runId": self._run_id or task.id}
        self._run = ids["runId"]
        if question is None:
            self._write("RUN_STARTED", **ids)
        else:  # the client adds the question unless it has a message of this id
            asked = {
                **ids,
                "messages": [question],
                "tools": [],
                "context": [],
                "state": {},
                "forwardedProps": {},
            }
            self._write("RUN_STARTED", **ids, input=asked)
        if self._lost is not None:
            self._write("CUSTOM", name="reset", value=self._lost)
            self._lost = None

    def _end_run(self, kind: str, **about: Any) -> None:
        """End the run that is open, which closes all that is open in it."""
        waiting = [task for task in self._ledger.tasks.values() if task.waiting is not None]
        for task in waiting:
            self._pause(task)
        if kind == "RUN_FINISHED":
            about = {"threadId": self._thread_id, "runId": self._run, **about}
            if waiting:
                about["outcome"] = {"type": "interrupt", "interrupts": [_interrupt(task) for task in waiting]}
        self._write(kind, **about)
        self._run = None
        self.done = self._only is not None

    def _works(self) -> bool:
        return any(task.waiting is None for task in self._ledger.tasks.values())

    def _pause(self, task: Task) -> None:
        """End what is open of a task, as the protocol wants it before a run finishes; it is opened again."""
        for name in PARTS:
            if task.part(name).here:
                task.part(name).here = False
                self._block_ends(task, name)
        self._end_step(task)
        for call_id, call in task.calls.items():
            if call.here:
                self._end_call(task, call_id, call)

    def _end(self, task: Task, word: str) -> None:
        """End a task; a call without a result would be taken for one that the client has to make."""
        for call_id, call in task.calls.items():
            if not (call.args or call.ended):
                self._end_call(task, call_id, call)
            if not call.result:
                self._result(task, call_id, word)
        self._end_blocks(task)
        self._end_step(task)
        self._ledger.end_task(task)

    # Messages about tasks.

    def _user_message(self, task_id: str, data: Data) -> None:
        asked_in_a_run = self._run is not None
        question = {
            "id": fields.text(data.get("client_message_id")) or f"{task_id}/question",
            "role": "user",
            "content": fields.text(data.get("message")),
        }
        if self._begin(task_id, question=question) and asked_in_a_run:
            self._custom("user_message", data)

    def _response(self, task_id: str, data: Data) -> None:
        task = self._begin(task_id, ends=True)
        if task is None:
            return
        self._complete(task, data.get("response"))
        self._end(task, "")
        result = {name: value for name, value in data.items() if name != "response"}
        if self._works():
            self._custom("task_finished", result)
        else:
            self._end_run("RUN_FINISHED", result=result)

    def _failure(self, task_id: str, data: Data) -> None:
        task = self._begin(task_id, ends=True)
        if task is None:
            return
        status = fields.text(data.get("status")) or "failed"
        self._end(task, status)
        if self._works():
            self._custom("task_finished", data)
        elif status == "cancelled" and self._knows_cancelled:
            self._end_run("RUN_FINISHED", outcome={"type": "cancelled"})
        else:
            message = fields.text(data.get("error")) or status
            code = fields.text(data.get("error_code")) or status
            self._end_run("RUN_ERROR", message=message, code=code, rawEvent=data)

    def _ask(self, tasks: list[Task]) -> None:
        if self._run is None:
            self._begin_run(tasks[0], None)
        if not self._works():
            self._end_run("RUN_FINISHED")
            return
        for task in tasks:
            self._custom("input_required", task.waiting)

    def _progress(self, task: Task, update: Data) -> None:
        if any(value is not None for name, value in update.items() if name != "task_id"):
            self._custom("task_update", update)
        if step := fields.text(update.get("step")):
            self._begin_step(task, (step, f"{step} ({task.id})"))

    def _begin_step(self, task: Task, names: tuple[str, ...]) -> None:
        """Begin a step by the first name that is free: another task may have one of the same name open."""
        if task.step in names:
            return
        self._end_step(task)
        task.step = next((name for name in names if name not in self._steps), "")
        if task.step:
            self._steps.add(task.step)
            self._write("STEP_STARTED", stepName=task.step)

    def _end_step(self, task: Task) -> None:
        if task.step:
            self._steps.discard(task.step)
            self._write("STEP_FINISHED", stepName=task.step)
            task.step = ""

    # Blocks.

    def _block_begins(self, task: Task, name: PartName) -> None:
        for kind in _BEGINS[name]:
            self._write(kind, messageId=_message_id(task, name), **_ROLES[kind])

    def _block_grows(self, task: Task, name: PartName, piece: str) -> None:
        self._write(_GROWS[name], messageId=_message_id(task, name), delta=piece)

    def _block_ends(self, task: Task, name: PartName) -> None:
        for kind in _ENDS[name]:
            self._write(kind, messageId=_message_id(task, name))

    def _withdraw(self, task: Task, names: tuple[PartName, ...], attempt: int | None = None) -> None:
        ids = []
        for name in names:
            self._end_block(task, name)
            blocks = range(task.part(name).blocks)
            # Should the connection break: a client that gives the last id keeps a beginning. Of one that
            # posts what it has, what is left shows by its number that it does not count, and that none of
            # these ids may be used again; activities are not posted.
            order = blocks if self._posts else reversed(blocks)
            ids += [_message_id(task, name, block) for block in order]
        content = {"task_id": task.id, "attempt": task.attempt}
        for message_id in ids:
            if message_id == ids[-1]:
                self._forget(task, names, attempt)
            self._write(
                "ACTIVITY_SNAPSHOT",
                messageId=message_id,
                activityType="superseded",
                content=content,
                replace=True,
            )

    def _forget(self, task: Task, names: tuple[PartName, ...], attempt: int | None) -> None:
        for name in names:
            task.part(name).withdraw()
        if attempt is not None:
            task.begin_attempt(attempt)

    # Tool calls.

    def _tool(self, task: Task, report: fields.ToolReport, news: News) -> None:
        call, call_id = news.call, report.call_id
        if news.new:
            self._begin_call(task, call_id, call)
        if news.args:
            if not call.here:  # told before, or known to have ended: opened again, it goes on
                self._begin_call(task, call_id, call)
            delta = fields.as_text(report.args)
            self._write_once("TOOL_CALL_ARGS", toolCallId=_call_id(task, call_id), delta=delta)
        if (call.here and call.args) or (news.ended and not call.args):
            self._end_call(task, call_id, call)
        if news.result:
            word = "failed" if report.result is None else fields.as_text(report.result)
            self._result(task, call_id, word)

    def _begin_call(self, task: Task, call_id: str, call: Call) -> None:
        call.here = True
        self._write("TOOL_CALL_START", toolCallId=_call_id(task, call_id), toolCallName=call.name)

    def _end_call(self, task: Task, call_id: str, call: Call) -> None:
        if not call.here:
            self._begin_call(task, call_id, call)
        call.here = False
        self._write("TOOL_CALL_END", toolCallId=_call_id(task, call_id))

    def _result(self, task: Task, call_id: str, content: str) -> None:
        message_id = f"{task.id}/result/{call_id}"
        self._write_once(
            "TOOL_CALL_RESULT",
            messageId=message_id,
            toolCallId=_call_id(task, call_id),
            content=content,
            role="tool",
        )

    # Messages about the session. Outside of a run the protocol has no place for them.

    def _trouble(self, data: Data) -> None:
        self._aside("error", data)

    def _event(self, data: Data) -> None:
        self._aside("event", data)

    def _reconnect(self, data: Data) -> None:
        self._aside("reconnect", data)

    def _aside(self, name: str, data: Data) -> None:
        if self._run is not None and self._only is None:
            self._custom(name, data)

    def _reset(self, resume: Data) -> None:
        self._lost = resume

    def _custom(self, name: str, value: object) -> None:
        self._write_once("CUSTOM", name=name, value=value)

    def _write(self, kind: str, **about: Any) -> None:
        self._ledger.write({"type": kind, **about})

    def _write_once(self, kind: str, **about: Any) -> None:
        self._ledger.write({"type": kind, **about}, once=True)


def _interrupt(task: Task) -> dict[str, object]:
    """What a task waits for. Source: https://docs.ag-ui.com/spec/1.0, InterruptSchema."""
    asked = task.waiting or {}
    asked_id = question_id(task.id, fields.text(asked.get("input_id")))
    found: dict[str, object] = {"id": asked_id, "reason": "input_required"}
    if prompt := fields.text(asked.get("prompt")):
        found["message"] = prompt
    if isinstance(schema := asked.get("schema"), Mapping):
        found["responseSchema"] = schema
    if expires := fields.text(asked.get("expires_at")):
        found["expiresAt"] = expires
    return found

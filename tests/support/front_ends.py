"""Model clients of the other protocols: strict in what they accept, and plain in what they make of it.

They follow `verifyEvents` and `defaultApplyEvents` of `@ag-ui/client` 1.0.0, and `processUIMessageStream` of
`ai` 7.0.173, as far as the encoders use them; tests/clients has the encoders and the clients themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

JSON = dict[str, Any]


class ServerEvent(NamedTuple):
    """One event as a client of Server-Sent Events gets it."""

    data: str
    event_id: str | None


def server_events(stream: bytes) -> Iterator[ServerEvent]:
    """The events of a stream; what is not of the form that `gateway.encoders.sse` writes fails."""
    for block in stream.decode().split("\n\n")[:-1]:
        fields: dict[str, list[str]] = {}
        for line in block.split("\n"):
            name, separator, value = line.partition(": ")
            assert separator, line
            fields.setdefault(name, []).append(value)
        if "data" in fields:
            yield ServerEvent("\n".join(fields["data"]), fields.get("id", [None])[0])


class Refused(AssertionError):
    """A client would break off here."""


def need(right: object, why: str) -> None:
    if not right:
        raise Refused(why)


class AgUiClient:
    """Holds the messages of a thread; `connect` begins a new response."""

    def __init__(self) -> None:
        self.messages: list[JSON] = []
        self.custom: list[JSON] = []
        self.runs: list[JSON] = []
        self.interrupts: list[JSON] = []
        self.ids: list[str] = []
        self.connect()

    def connect(self) -> None:
        """A new response: what was open is not."""
        self._run: str | None = None
        self._open: set[tuple[str, str]] = set()
        self._steps: set[str] = set()

    def take(self, event: ServerEvent) -> None:
        """One event of the response."""
        said = json.loads(event.data)
        if event.event_id is not None:
            self.ids.append(event.event_id)
        kind = said["type"]
        need(self._run is not None or kind in ("RUN_STARTED", "RUN_ERROR"), f"{kind} outside of a run")
        getattr(self, f"_{kind.lower()}")(said)

    def message(self, message_id: str) -> JSON | None:
        """The message of an id."""
        return next((m for m in self.messages if m["id"] == message_id), None)

    def text(self, task_id: str, role: str = "assistant") -> str:
        """What the thread shows as a task's answer or reasoning."""
        own = [m for m in self.messages if m["id"].startswith(f"{task_id}/") and m["role"] == role]
        return "".join([m.get("content", "") for m in own])

    def calls(self, task_id: str) -> JSON:
        """Arguments and results by call id, of the calls of a task; one that stands twice fails."""
        found: JSON = {}
        for message in self.messages:
            for call in message.get("toolCalls", []):
                if call["id"].startswith(f"{task_id}/call/"):
                    assert call["id"] not in found
                    found[call["id"].removeprefix(f"{task_id}/call/")] = [call["function"]["arguments"], []]
        for message in self.messages:
            if message["role"] == "tool" and message["toolCallId"].startswith(f"{task_id}/call/"):
                found[message["toolCallId"].removeprefix(f"{task_id}/call/")][1].append(message["content"])
        return found

    def _run_started(self, said: JSON) -> None:
        need(self._run is None, "a run is open")
        self._run = said["runId"]
        assert isinstance(said["threadId"], str)
        for message in said.get("input", {}).get("messages", []):
            if self.message(message["id"]) is None:
                self.messages.append(message)

    def _run_finished(self, said: JSON) -> None:
        need(not self._open, f"still open: {self._open}")
        need(not self._steps, f"steps still open: {self._steps}")
        assert said["runId"] == self._run
        assert said.get("result", 0) is not None
        self.interrupts = said.get("outcome", {}).get("interrupts", [])
        self._end_run(said)

    def _run_error(self, said: JSON) -> None:
        assert isinstance(said["message"], str)
        self._end_run(said)

    def _end_run(self, said: JSON) -> None:
        self.runs.append(said)
        self.connect()

    def _opens(self, kind: str, entity: str) -> None:
        need((kind, entity) not in self._open, f"{kind} {entity} is open")
        self._open.add((kind, entity))

    def _goes_on(self, kind: str, entity: str) -> None:
        need((kind, entity) in self._open, f"{kind} {entity} is not open")

    def _ends(self, kind: str, entity: str) -> None:
        self._goes_on(kind, entity)
        self._open.remove((kind, entity))

    def _start(self, message_id: str, role: str) -> None:
        found = self.message(message_id)
        if found is None:
            self.messages.append({"id": message_id, "role": role, "content": ""})
        else:
            assert found["role"] == role

    def _content(self, said: JSON) -> None:
        assert said["delta"] != ""
        found = self.message(said["messageId"])
        assert found is not None
        found["content"] += said["delta"]

    def _text_message_start(self, said: JSON) -> None:
        self._opens("text", said["messageId"])
        self._start(said["messageId"], said["role"])

    def _text_message_content(self, said: JSON) -> None:
        self._goes_on("text", said["messageId"])
        self._content(said)

    def _text_message_end(self, said: JSON) -> None:
        self._ends("text", said["messageId"])

    def _reasoning_start(self, said: JSON) -> None:
        self._opens("span", said["messageId"])

    def _reasoning_message_start(self, said: JSON) -> None:
        self._opens("reasoning", said["messageId"])
        self._start(said["messageId"], said["role"])

    def _reasoning_message_content(self, said: JSON) -> None:
        self._goes_on("reasoning", said["messageId"])
        self._content(said)

    def _reasoning_message_end(self, said: JSON) -> None:
        self._ends("reasoning", said["messageId"])

    def _reasoning_end(self, said: JSON) -> None:
        self._ends("span", said["messageId"])

    def _tool_call_start(self, said: JSON) -> None:
        self._opens("call", said["toolCallId"])
        if self._call(said["toolCallId"]) is None:
            function = {"name": said["toolCallName"], "arguments": ""}
            calls = [{"id": said["toolCallId"], "type": "function", "function": function}]
            self.messages.append({"id": said["toolCallId"], "role": "assistant", "toolCalls": calls})

    def _call(self, call_id: str) -> JSON | None:
        calls = [call for message in self.messages for call in message.get("toolCalls", [])]
        return next((call for call in calls if call["id"] == call_id), None)

    def _tool_call_args(self, said: JSON) -> None:
        self._goes_on("call", said["toolCallId"])
        call = self._call(said["toolCallId"])
        assert call is not None
        call["function"]["arguments"] += said["delta"]

    def _tool_call_end(self, said: JSON) -> None:
        self._ends("call", said["toolCallId"])

    def _tool_call_result(self, said: JSON) -> None:
        assert self._call(said["toolCallId"]) is not None
        assert isinstance(said["content"], str)
        about = {"toolCallId": said["toolCallId"], "content": said["content"]}
        self.messages.append({"id": said["messageId"], "role": "tool", **about})

    def _activity_snapshot(self, said: JSON) -> None:
        found = self.message(said["messageId"])
        assert found is not None
        need(("text", said["messageId"]) not in self._open, "the text is open")
        found.clear()
        found.update(id=said["messageId"], role="activity", content=said["content"])

    def _step_started(self, said: JSON) -> None:
        need(said["stepName"] not in self._steps, "the step is open")
        self._steps.add(said["stepName"])

    def _step_finished(self, said: JSON) -> None:
        need(said["stepName"] in self._steps, "the step is not open")
        self._steps.remove(said["stepName"])

    def _custom(self, said: JSON) -> None:
        self.custom.append(said)


class AiSdkClient:
    """Holds one message; `connect` begins a new response.

    Args:
        replays: it throws away what it has at the first ``start`` of a response that it resumes.
    """

    def __init__(self, *, replays: bool = False) -> None:
        self.parts: list[JSON] = []
        self.message_id: str | None = None
        self.metadata: JSON = {}
        self.aside: list[JSON] = []
        self.ids: list[str] = []
        self.ended: list[str] = []
        self.complete = False
        self._active: dict[str, JSON] = {}
        self._replays = replays
        self._responses = self._starts = 0

    def connect(self, *, posted: bool = False) -> None:
        """A new response of the same answer.

        Args:
            posted: to the message itself, which goes on.
        """
        self._responses += 1
        self._starts = int(posted)
        self._active = {} if posted else self._active
        if posted:
            self.ended.clear()
            self.complete = False

    def asked(self) -> JSON | None:
        """The tool call that waits for the user, if there is one in the last step."""
        steps = [place for place, part in enumerate(self.parts) if part["type"] == "step-start"]
        last = self.parts[steps[-1] if steps else 0 :]
        own = [part for part in last if part["type"] == "dynamic-tool" and not part["providerExecuted"]]
        return own[-1] if own else None

    def posted(self) -> JSON:
        """The message as it is posted back."""
        return {"id": self.message_id, "role": "assistant", "metadata": self.metadata, "parts": self.parts}

    def take(self, event: ServerEvent) -> None:
        """One event of the response."""
        need(not self.complete, "the stream has ended")
        if event.event_id is not None:
            self.ids.append(event.event_id)
        if event.data == "[DONE]":
            self.complete = True
            return
        said = json.loads(event.data)
        need("error" not in self.ended, "the client reads nothing after an error")
        kind = said["type"]
        if kind.startswith("data-"):
            self._data(said)
        else:
            getattr(self, f"_{kind.replace('-', '_')}")(said)

    def text(self, kind: str = "text") -> str:
        """What the message says, without what was taken back."""
        text = ""
        for part in self.parts:
            if part["type"] == "data-superseded" and kind in part["data"]["parts"]:
                text = ""
            elif part["type"] == kind:
                text += part["text"]
        return text

    def of_kind(self, kind: str) -> list[JSON]:
        """The parts of a type."""
        return [part for part in self.parts if part["type"] == kind]

    def _start(self, said: JSON) -> None:
        self._starts += 1
        if self._replays and self._responses > 1 and self._starts == 1:
            self.parts, self._active, self.metadata = [], {}, {}
        need(self.message_id in (None, said["messageId"]), "another message")
        self.message_id = said["messageId"]
        self.metadata.update(said.get("messageMetadata", {}))

    def _begin(self, kind: str, said: JSON) -> None:
        part = {"type": kind, "text": "", "state": "streaming"}
        self._active[said["id"]] = part
        self.parts.append(part)

    def _grow(self, said: JSON) -> None:
        need(said["id"] in self._active, f"no part {said['id']}")
        assert said["delta"] != ""
        self._active[said["id"]]["text"] += said["delta"]

    def _end(self, said: JSON) -> None:
        need(said["id"] in self._active, f"no part {said['id']}")
        self._active.pop(said["id"])["state"] = "done"

    def _text_start(self, said: JSON) -> None:
        self._begin("text", said)

    def _reasoning_start(self, said: JSON) -> None:
        self._begin("reasoning", said)

    _text_delta = _reasoning_delta = _grow
    _text_end = _reasoning_end = _end

    def _call(self, call_id: str) -> JSON | None:
        return next((part for part in self.of_kind("dynamic-tool") if part["toolCallId"] == call_id), None)

    def _input(self, said: JSON, state: str) -> None:
        assert said["dynamic"] is True
        part = self._call(said["toolCallId"])
        if part is None:
            part = {"type": "dynamic-tool", "toolCallId": said["toolCallId"]}
            self.parts.append(part)
        part.update(toolName=said["toolName"], state=state, input=said.get("input"), output=None, error=None)
        part["providerExecuted"] = said.get("providerExecuted", part.get("providerExecuted", False))

    def _tool_input_start(self, said: JSON) -> None:
        self._input(said, "input-streaming")

    def _tool_input_available(self, said: JSON) -> None:
        self._input(said, "input-available")

    def _tool_output_available(self, said: JSON) -> None:
        part = self._call(said["toolCallId"])
        need(part, "no tool call")
        assert part is not None
        part.update(state="output-available", output=said["output"])

    def _tool_output_error(self, said: JSON) -> None:
        part = self._call(said["toolCallId"])
        need(part, "no tool call")
        assert part is not None
        part.update(state="output-error", error=said["errorText"])

    def _source_url(self, said: JSON) -> None:
        self.parts.append(said)

    _source_document = _source_url

    def _start_step(self, said: JSON) -> None:
        self.parts.append({"type": "step-start"})

    def _reset_step(self, said: JSON) -> None:
        places = [place for place, part in enumerate(self.parts) if part["type"] == "step-start"]
        del self.parts[(places[-1] if places else -1) + 1 :]
        self._active = {}

    def _finish_step(self, said: JSON) -> None: ...

    def _message_metadata(self, said: JSON) -> None:
        self.metadata.update(said["messageMetadata"])

    def _finish(self, said: JSON) -> None:
        assert not self._active
        self.metadata.update(said["messageMetadata"])
        self.ended.append("finish")

    def _abort(self, said: JSON) -> None:
        self.ended.append("abort")

    def _error(self, said: JSON) -> None:
        assert isinstance(said["errorText"], str)
        self.ended.append("error")

    def _data(self, said: JSON) -> None:
        if said.get("transient"):
            self.aside.append(said)
            return
        if "id" in said:
            for part in self.of_kind(said["type"]):
                if part["id"] == said["id"]:
                    part["data"] = said["data"]
                    return
        self.parts.append(said)

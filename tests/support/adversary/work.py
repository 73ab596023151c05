"""Tasks of the victims': one that waits for an agent, one that goes on, and one that asks something."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backplane.settings import Settings
from tests.support.adversary.wire import ask, bearer, talk

if TYPE_CHECKING:
    from tests.support.adversary.siege import Siege

AGENT = "agent-1"
KINDS = ("waiting", "going", "asking")
_KEYS = Settings().keys()


@dataclass
class Work:
    """Three tasks of ann's in one session.

    Attributes:
        tasks, names: their ids, and the ``client_message_id`` of their messages, by kind.
        input_id: of what the agent asks.
        told: what its session's log has of them: types and texts.
        records: what the store knew of them when it was looked at last.
    """

    session: str
    tasks: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    input_id: str = ""
    told: list[tuple[str, str]] = field(default_factory=list)
    records: dict[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """All that the tasks are known by."""
        return [*self.tasks.values(), *self.names.values(), self.input_id]


async def begin(siege: Siege, session: str) -> Work:
    """Have ann send three messages, and the agent take two of them; what is said is secret."""
    work = Work(session, input_id=f"input-{siege.word()}")
    token = siege.mint.token(siege.as_ann(session_id=session))
    for kind in KINDS:
        work.names[kind], question = f"message-{siege.word()}", siege.secret()
        body = json.dumps({"message": question, "client_message_id": work.names[kind]}).encode()
        asks = (*bearer(token), ("X-Agent-ID", AGENT))
        answer = await ask(siege.pod().port, "POST", "/api/chat/send", asks, body)
        assert answer.accepted, answer.received
        work.tasks[kind] = json.loads(answer.received.rpartition(b"\r\n\r\n")[2])["task_id"]
        work.told.append(("user_message", question))
    step, prompt = siege.secret(), siege.secret()
    _report(siege, work, "going", status="working", message=step)
    _say(siege, work, "going", siege.secret())
    _report(
        siege, work, "asking", status="input_required", input={"input_id": work.input_id, "prompt": prompt}
    )
    work.told += [("task_update", step), ("input_required", prompt)]
    siege.known += [one.encode() for one in work.ids]
    await _taken(siege, work, token)
    siege.take_actions()
    work.records = read(siege, work)
    return work


async def _taken(siege: Siege, work: Work, token: str) -> None:
    """Wait until the agent has taken the tasks."""
    socket = await talk(siege.pod().port, f"/ws/{work.session}?cursor=a:0", bearer(token))
    assert await socket.until(lambda _came: len(socket.logged) >= len(work.told))
    socket.drop()


def read(siege: Siege, work: Work) -> dict[str, Any]:
    """What the store knows of the tasks."""
    callbacks = _KEYS.callbacks(siege.blue)
    return {kind: siege.record(_KEYS.task(callbacks, task_id)) for kind, task_id in work.tasks.items()}


def touched(siege: Siege, work: Work) -> list[str]:
    """The tasks that are not as they were when they were looked at last."""
    now, before = read(siege, work), work.records
    work.records = now
    return [
        f"the {kind} task was {before[kind].get(b'status')!r} and is {now[kind].get(b'status')!r}"
        for kind in before
        if now[kind] != before[kind]
    ]


def _report(siege: Siege, work: Work, kind: str, **data: Any) -> None:
    _push(siege, work, kind, "execution.progress", data)


def _say(siege: Siege, work: Work, kind: str, text: str) -> None:
    _push(siege, work, kind, "execution.chunk", {"delta": text, "offset": 0, "part": "text"})


def _push(siege: Siege, work: Work, kind: str, action_type: str, data: dict[str, Any]) -> None:
    whose = {"tenant_id": siege.blue, "session_id": work.session, "task_id": work.tasks[kind]}
    siege.push({"action_type": action_type, "action_id": siege.word(), "data": data, **whose})

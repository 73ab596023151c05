"""The guards of tasks, events and event streams, and how to take each out of a process: see `guards`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1
from typing import Any

import msgspec

_OWNER = "if owner and owner ~= '' and owner ~= {user} and {user} ~= '*' then return {{'not_yours'}} end"


def no_task_tenant() -> None:
    """A task is found by its id, whichever tenant's it is."""
    from backplane.task import Found
    from backplane.tasks import Tasks

    find = Tasks.find

    async def find_anywhere(self: Tasks, tenant_id: str, task_id: str) -> Found | None:
        # Any key of a task's record: the id is enough to find it.
        names = await self._store.call("KEYS", self._keys.task("*", task_id).replace("{*}", "*"))
        tenants = [self._keys.tenant_of(name.split(b"{")[1].split(b"}")[0]) for name in names]
        return await find(self, next(filter(None, tenants), tenant_id), task_id)

    Tasks.find = find_anywhere  # type: ignore[method-assign]


def no_task_owner() -> None:
    """A task is everybody's of its tenant."""
    from backplane import scripts, tasks
    from backplane.session_log import SessionLog

    for name, script, user in (("CANCEL", scripts.CANCEL, "ARGV[2]"), ("INPUT", scripts.INPUT, "ARGV[1]")):
        guard = _OWNER.format(user=user)
        assert guard in script.text
        text = script.text.replace(guard, "")
        vars(tasks)[name] = replace(
            script, text=text, sha1=sha1(text.encode(), usedforsecurity=False).hexdigest()
        )

    async def belongs(self: SessionLog, *_whose: str) -> bool:
        return True

    SessionLog.belongs = belongs  # type: ignore[method-assign, assignment]


def no_topic_task() -> None:
    """Nobody is asked whether the task is his to whose topic he subscribes."""
    from gateway import conversation

    check: Callable[..., Any] = vars(conversation)["check_topic"]

    def check_name(*given: Any) -> None:
        check(*given)

    vars(conversation)["check_topic"] = check_name


def no_topic_tenant() -> None:
    """A topic is all tenants' that call it so."""
    from backplane.keys import Keys

    topics = Keys.topics

    def for_all(self: Keys, tenant_id: str, topic: str) -> list[str]:
        return [self.topic("all", topic), *topics(self, tenant_id, topic)]

    Keys.topics = for_all  # type: ignore[method-assign]


def no_topic_claims() -> None:
    """A socket keeps what it has subscribed to, whatever token it goes on under."""
    from gateway import conversation

    vars(conversation)["keeps_topic"] = lambda *_what: True


def no_announcement_tenant() -> None:
    """What a tenant is told, everybody is told."""
    from gateway import topics

    vars(topics)["_concerns"] = lambda _said, socket: socket.identity is not None


def no_broadcast_session() -> None:
    """Who may tell something of his tenant may tell it to each of its sessions."""
    from gateway import broadcast_endpoint

    vars(broadcast_endpoint)["check_session"] = lambda _grant, _session_id, _name: None


def no_stream_owner() -> None:
    """An event stream of a session is everybody's of its tenant."""
    from gateway.event_stream import EventStream
    from gateway.opening import Opening

    attach: Callable[..., Any] = Opening.attach

    async def attach_anybody(self: Opening, connection: Any, identity: Any, *where: Any) -> None:
        if isinstance(connection, EventStream):
            grant = identity.grant
            anybody = msgspec.structs.replace(grant, user_id=None, scopes=grant.scopes | {"admin"})
            identity = msgspec.structs.replace(identity, grant=anybody)
        await attach(self, connection, identity, *where)

    Opening.attach = attach_anybody  # type: ignore[method-assign, assignment]


def no_stream_given_twice() -> None:
    """Of what an event stream's request says twice, the last counts."""
    from gateway import event_request

    vars(event_request)["_either"] = lambda one, other, _name: one if other is None else other
    vars(event_request)["query"] = lambda request: dict(request.query_params.multi_items())


GUARDS: dict[str, Callable[[], None]] = {
    "task_tenant": no_task_tenant,
    "task_owner": no_task_owner,
    "topic_task": no_topic_task,
    "topic_tenant": no_topic_tenant,
    "topic_claims": no_topic_claims,
    "announcement_tenant": no_announcement_tenant,
    "broadcast_session": no_broadcast_session,
    "stream_owner": no_stream_owner,
    "stream_given_twice": no_stream_given_twice,
}
"""By the name that `tests.support.sabotage` knows."""

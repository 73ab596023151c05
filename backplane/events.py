"""Events: what somebody wants to tell a tenant's clients, beside the answers of its agents.

To one session they go through its log, like everything else there. To the subscribers of a topic, and to all
of a tenant, they are published: who is not there misses them.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from backplane.appending import Appending, Entry
from backplane.errors import RedisRefused
from backplane.keys import Keys
from backplane.messages import Message, timestamp, to_entry, to_json
from backplane.scripts import LOG_EVENT
from backplane.settings import Settings
from backplane.store import Store


class Announcement(msgspec.Struct, frozen=True):
    """What is said to all of a tenant, or of a tier.

    Attributes:
        tenant_id: None for all tenants.
        tenant_tier: None for all tiers.
        message: the whole message, JSON.
    """

    tenant_id: str | None
    tenant_tier: str | None
    message: msgspec.Raw


def event(topic: str, payload: Any, tenant_id: str | None, session_id: str | None, at: str) -> Message:
    """An ``event`` message.

    Args:
        payload: JSON values, or `msgspec.Raw`.
        at: from `backplane.messages.timestamp`.
    """
    data = {"topic": topic, "payload": payload}
    return Message(at, "event", None, session_id, tenant_id, None, data, {})


class Events:
    """Publishes events.

    Args:
        store: through which.
    """

    def __init__(self, store: Store, keys: Keys, settings: Settings) -> None:
        self._store = store
        self._keys = keys
        self._appending = Appending(settings, keys, store.publish_command)

    async def publish(self, tenant_id: str, topic: str, payload: Any) -> None:
        """Tell a topic's subscribers.

        Raises:
            RedisUnavailable: Redis did not answer; whether they were told is unknown.
        """
        channel = self._keys.topics(tenant_id, topic)[0]
        message = event(topic, payload, tenant_id, None, timestamp(time.time()))
        await self._store.publish(channel, b"~\n" + to_json(message))

    async def announce(
        self, tenant_id: str | None, tenant_tier: str | None, topic: str, payload: Any
    ) -> None:
        """Tell everybody of a tenant, of a tier, or of both.

        Raises:
            RedisUnavailable: as `publish`.
        """
        message = to_json(event(topic, payload, tenant_id, None, timestamp(time.time())))
        said = Announcement(tenant_id, tenant_tier, msgspec.Raw(message))
        await self._store.publish(self._keys.announcements, msgspec.json.encode(said))

    async def log(self, callback_list: str, tenant_id: str, session_id: str, payload: Any) -> None:
        """Tell a session, through its log; begins the session if there is none.

        Raises:
            RedisUnavailable: as `publish`.
            RedisRefused: the session's keys hold something else than a session.
        """
        now = time.time()
        message = event("session", payload, tenant_id, session_id, timestamp(now))
        entry = Entry(session_id, os.urandom(12), to_entry(message))
        base = self._keys.session(callback_list, session_id)
        names = [base]
        if self._store.clustered:
            names += [f"{base}:{part}" for part in ("log", "seen", "tasks", "streams")]
        args = [*self._appending.arguments(callback_list, now), *entry.arguments(0)]
        done, *told = await self._store.script(LOG_EVENT, names, args)
        if done < 0:
            raise RedisRefused(told[0].decode("utf-8", "replace"))

"""Topics: which sockets want to be told of what, and telling them.

The pod has one subscription per topic, and does all the rest by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from backplane.events import Announcement
from backplane.keys import Keys
from backplane.log import Logger
from backplane.store import Store
from gateway.errors import ClientError
from gateway.framing import Framing
from gateway.identity import TOPIC, Grant, Identity, allows, check_agent, valid_id

ANNOUNCEMENTS = "tenant:announcements"
_SOCKETS_A_TURN = 500
_decode_announcement = msgspec.json.Decoder(Announcement).decode


class Listener(Protocol):
    """A socket, as far as it is told of events.

    Attributes:
        topics: that it has subscribed to; None if there are none.
    """

    topics: set[str] | None

    @property
    def identity(self) -> Identity | None:
        """Whose it is."""

    @property
    def writable(self) -> bool:
        """Whether it takes more now."""

    @property
    def framing(self) -> Framing:
        """How messages are written to it."""

    def write(self, frames: bytes) -> None:
        """Send what its framing has made ready."""


def check_topic(grant: Grant, topic: str) -> str | None:
    """Refuse a topic that the token does not allow.

    Returns:
        The task whose owner has to be asked, if it is a task's topic.

    Raises:
        ClientError: 422 it is none, 403.
    """
    if not TOPIC.fullmatch(topic):
        detail = f"topic {ascii(topic)[:60]} must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ : / @ + -"
        raise ClientError(422, "invalid_field", detail)
    kind, colon, name = topic.partition(":")
    if colon and kind == "agent":
        check_agent(grant, valid_id(name, "the topic's agent"))
    elif colon and kind == "task":
        return valid_id(name, "the topic's task")
    elif colon and kind == "tenant" and topic != ANNOUNCEMENTS:
        raise ClientError(422, "invalid_field", f"the only topic of this kind is {ANNOUNCEMENTS}")
    elif (kind != "type" or not colon) and topic != ANNOUNCEMENTS and not allows(grant.topics, topic):
        raise ClientError(403, "forbidden", f"the token does not allow the topic {topic}")
    return None


def keeps_topic(topic: str, before: Grant, after: Grant) -> bool:
    """Whether a subscription outlives the token under which it was made.

    Args:
        before: the old token's; the new one is of the same tenant and user.
    """
    try:
        task_id = check_topic(after, topic)
    except ClientError:
        return False
    # Which session a task is of is not known here.
    return task_id is None or after.sessions in (None, before.sessions)


class Topics:
    """All subscriptions of a pod's sockets.

    Args:
        store: that carries subscriptions.
        everybody: all open sockets.
        most: topics that a socket may have.
        spawn: runs a coroutine.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        everybody: Callable[[], Iterable[Listener]],
        most: int,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        log: Logger,
    ) -> None:
        self._store = store
        self._keys = keys
        self._everybody = everybody
        self._most = most
        self._spawn = spawn
        self._log = log
        self._listeners: dict[bytes, dict[Listener, None]] = {}
        self._announcements = keys.announcements.encode()
        self.told = 0

    def channels(self) -> list[str]:
        """What has to be subscribed, for a connection that has to do it again."""
        return [self._keys.announcements, *(channel.decode() for channel in self._listeners)]

    async def subscribe(self, socket: Listener, tenant_id: str, topics: Sequence[str]) -> None:
        """Have a socket told of topics; what is published from the return on reaches it.

        Raises:
            ClientError: 422 it has too many.
            RedisUnavailable: Redis did not answer; the socket has the topics nevertheless, from when it does.
        """
        has = socket.topics or set()
        new = [topic for topic in dict.fromkeys(topics) if topic not in has]
        if len(has) + len(new) > self._most:
            raise ClientError(422, "invalid_field", f"a socket may have {self._most} topics at most")
        if not new:
            return
        socket.topics = has | set(new)
        channels = [channel for topic in new for channel in self._keys.topics(tenant_id, topic)]
        for channel in channels:
            self._listen(channel, socket)
        # Over the connection of the subscriptions, so that they have been made when it is answered.
        await asyncio.gather(*[self._store.call("EXISTS", channel) for channel in channels])

    def _listen(self, channel: str, socket: Listener) -> None:
        listeners = self._listeners.get(channel.encode())
        if listeners is None:
            listeners = self._listeners[channel.encode()] = {}
            self._store.subscribe([channel])
        listeners[socket] = None

    def unsubscribe(self, socket: Listener, tenant_id: str, topics: Iterable[str]) -> None:
        """Have a socket told no more of topics."""
        for topic in topics:
            if socket.topics is None or topic not in socket.topics:
                continue
            socket.topics.discard(topic)
            for channel in self._keys.topics(tenant_id, topic):
                self._leave(channel, socket)
        socket.topics = socket.topics or None

    def gone(self, socket: Listener) -> None:
        """A socket has closed."""
        if socket.topics and socket.identity is not None:
            self.unsubscribe(socket, socket.identity.tenant_id, list(socket.topics))

    def _leave(self, channel: str, socket: Listener) -> None:
        listeners = self._listeners.get(channel.encode(), {})
        listeners.pop(socket, None)
        if not listeners and self._listeners.pop(channel.encode(), None) is not None:
            self._store.unsubscribe(channel)

    # What is published.

    def heard(self, channel: bytes, payload: bytes) -> bool:
        """Tell those whom it concerns, if it was published on one of `channels`."""
        if channel == self._announcements:
            self._announce(payload)
            return True
        listeners = self._listeners.get(channel)
        if listeners is None:
            return False
        head, _, message = payload.partition(b"\n")
        if head == b"~":
            self._spawn(self._tell(list(listeners), message))
        else:
            self._log.warning("foreign_publish", channel=channel.decode("utf-8", "replace"))
        return True

    def _announce(self, payload: bytes) -> None:
        try:
            said = _decode_announcement(payload)
        except msgspec.DecodeError:
            self._log.warning("foreign_publish", channel=self._announcements.decode())
            return
        sockets = [socket for socket in self._everybody() if _concerns(said, socket)]
        self._spawn(self._tell(sockets, bytes(said.message)))

    async def _tell(self, sockets: list[Listener], message: bytes) -> None:
        """A turn for so many, lest the others' messages wait for thousands of writes."""
        ready: dict[Framing, bytes] = {}
        for number, socket in enumerate(sockets, 1):
            if socket.writable:
                data = ready.get(socket.framing)
                if data is None:
                    data = ready[socket.framing] = socket.framing.message(message)
                socket.write(data)
                self.told += 1
            if number % _SOCKETS_A_TURN == 0:
                await asyncio.sleep(0)


def _concerns(said: Announcement, socket: Listener) -> bool:
    identity = socket.identity
    return (
        identity is not None
        and said.tenant_id in (None, identity.tenant_id)
        and said.tenant_tier in (None, identity.tenant_tier)
    )

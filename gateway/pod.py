"""One pod, wired: its links to Redis, its hub, its endpoints' collaborators and its background tasks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from backplane.errors import RedisUnavailable
from backplane.link import Link
from backplane.log import get_logger
from backplane.ownership import Ownership
from backplane.presence import MISSED_BEATS, Presence, Summary
from backplane.redis_client import parse_redis_url
from backplane.router.app import member_id
from backplane.session_log import SessionLog
from backplane.settings import Settings
from backplane.task_queue import TaskQueue
from gateway.auth import Authenticator
from gateway.conversation import Conversation
from gateway.health import Health
from gateway.hub import Hub
from gateway.sender import Sender
from gateway.websocket_endpoint import WebSocketEndpoint

_RENEW_EVERY_S = 600.0


class Pod:
    """Everything that one gateway process holds.

    Raises:
        ConfigurationError: the settings do not fit together.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = member_id()
        self.log = get_logger(process="pod", pod_id=self.id)
        self.keys = settings.keys()
        self.authenticator = Authenticator(settings)
        target = parse_redis_url(settings.redis_url)
        self.redis_shown = target.shown
        timeout_s = settings.redis_timeout_s
        self.feed_link = Link(
            target,
            "orchestrator-pod-feed",
            timeout_s=timeout_s,
            on_push=self._on_push,
            on_connect=self._on_feed_connect,
            on_change=self._on_feed_change,
            on_failure=self._on_link_failure,
        )
        self.command_link = Link(
            target,
            "orchestrator-pod",
            timeout_s=timeout_s,
            on_change=self._on_command_change,
            on_failure=self._on_link_failure,
        )
        self.session_log = SessionLog(self.feed_link, self.command_link, self.keys, settings)
        self.health = Health(
            self.feed_link, self.command_link, self.keys.pod_channel(self.id), settings.probe_interval_s
        )
        self.hub = Hub(self.feed_link, self.session_log, self.log, self._on_other)
        self.queue = TaskQueue(self.command_link, settings.actions_queue_max)
        self.sender = Sender(settings, self.keys, self.session_log, self.queue)
        self.conversation = Conversation(settings, self.sender, self.log)
        ttl_ms = int(settings.presence_interval_s * MISSED_BEATS * 1000)
        self.ownership = Ownership(self.command_link, self.keys, self.id, ttl_ms, self.log)
        self.sockets = WebSocketEndpoint(
            settings,
            self.keys,
            self.authenticator,
            self.session_log,
            self.hub,
            self.conversation,
            self.ownership,
            self.health,
            self.log,
        )
        self.presence = Presence(
            self.command_link,
            self.keys,
            "pods",
            self.id,
            settings.presence_interval_s,
            self.summary,
            renew=self.ownership.keys,
            on_forgotten=self.sockets.rewrite_ownership,
        )
        self._background: set[asyncio.Task[None]] = set()

    def summary(self) -> Summary:
        """What the pod tells the cluster of itself."""
        return {
            "address": f"{self.settings.host}:{self.settings.port}",
            "connections": len(self.sockets.wheel),
            "sessions": self.hub.sessions,
            "ready": self.health.problem() is None,
            "opened": self.sockets.opened,
            "closed": {str(code): count for code, count in sorted(self.sockets.closed_by_code.items())},
            "delivered": self.hub.delivered,
            "gaps": self.hub.gaps,
            "sends_accepted": self.sender.accepted,
        }

    def tasks(self) -> dict[str, Any]:
        """The pod's long-lived coroutines, by name."""
        return {
            "feed_link": self.feed_link.run(),
            "command_link": self.command_link.run(),
            "wheel": self.sockets.wheel.run(),
            "probe": self.health.run(),
            "presence": self.presence.run(),
            "marks": self._mark_forever(),
            "positions": self._check_forever(),
        }

    async def drain(self) -> None:
        """Finish what is under way and close every socket with a code that says to come back."""
        self.health.draining = True
        settings = self.settings
        if self.conversation.sends_in_flight:
            await asyncio.wait(self.conversation.sends_in_flight, timeout=settings.drain_timeout_s / 2)
        try:
            # Before the sockets are closed: their clients may be on another pod a moment later.
            await self.hub.flush_marks()
        except RedisUnavailable as error:
            self.log.warning("marks_not_written", reason=str(error))
        await self.sockets.close_all(settings.drain_timeout_s / 2)
        try:
            await self.presence.leave()
        except RedisUnavailable as error:
            self.log.warning("left_without_goodbye", reason=str(error))

    # Links.

    def _on_push(self, push: list[Any]) -> None:
        self.hub.on_push(push)

    def _on_other(self, channel: bytes, payload: bytes) -> None:
        if channel == self.health.channel:
            self.health.heard(payload)

    async def _on_feed_connect(self) -> None:
        self.health.subscribe()
        await self.hub.on_connect()

    def _on_feed_change(self, up: bool) -> None:
        self._say(up, "subscriptions", self.feed_link)
        if up:
            self._spawn(self._check_at_once())

    def _on_command_change(self, up: bool) -> None:
        self._say(up, "commands", self.command_link)
        if up and self.command_link.connects > 1:
            self._spawn(self._enter_again())

    async def _enter_again(self) -> None:
        try:
            await self.sockets.rewrite_ownership()
            await self.presence.beat()
        except RedisUnavailable:
            pass  # it went away again; the next connect does this again

    def _on_link_failure(self, reason: str) -> None:
        self.log.error("redis_unreachable", redis=self.redis_shown, reason=reason)

    def _say(self, up: bool, what: str, link: Link) -> None:
        if up:
            self.log.info("redis_connected", link=what)
        else:
            self.log.warning("redis_lost", link=what, reason=link.last_error)

    # Background.

    async def _mark_forever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.mark_sent_interval_s)
            try:
                await self.hub.flush_marks()
            except RedisUnavailable:
                await self.command_link.wait_up()

    async def _check_forever(self) -> None:
        """Compare all positions with their logs, spread over the interval."""
        interval_s = self.settings.position_check_s
        renew_s = min(_RENEW_EVERY_S, self.settings.session_log_max_age_s / 4)
        renewed_at = time.monotonic()
        while True:
            renew = time.monotonic() - renewed_at >= renew_s
            try:
                await self.hub.check_positions(interval_s / 2, renew=renew)
            except RedisUnavailable as error:
                self.log.debug("positions_not_checked", reason=str(error))
            else:
                renewed_at = time.monotonic() if renew else renewed_at
            await asyncio.sleep(interval_s / 2)

    async def _check_at_once(self) -> None:
        """What was published while the feed link was away shows now, not with the next message."""
        try:
            await self.hub.check_positions(0)
        except RedisUnavailable as error:
            self.log.debug("positions_not_checked", reason=str(error))  # connecting again checks again

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("task_died", exc_info=task.exception())

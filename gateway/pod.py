"""One pod, wired: its links to Redis, its hub, its endpoints' collaborators and its background tasks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from backplane.connection_counts import ConnectionCounts
from backplane.errors import RedisUnavailable
from backplane.events import Events
from backplane.link import Link
from backplane.log import get_logger
from backplane.log_level import LevelSwitch
from backplane.open_store import open_store
from backplane.ownership import Ownership
from backplane.presence import MISSED_BEATS, Presence, Summary
from backplane.rate_limiter import RateLimiter
from backplane.redis_client import parse_redis_url
from backplane.router.app import member_id
from backplane.session_log import SessionLog
from backplane.settings import Settings
from backplane.task_queue import TaskQueue
from backplane.tasks import Tasks
from backplane.tracing import open_tracer
from gateway.access import AgentAccess
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.conversation import Conversation
from gateway.drain import close_paced, pause, unless
from gateway.enforcement import Enforcement
from gateway.event_start import EventStart
from gateway.events_endpoint import EventsEndpoint
from gateway.health import Health
from gateway.hub import Hub
from gateway.listener import Listener
from gateway.metrics import PodMetrics
from gateway.open_connections import OpenConnections
from gateway.opening import Opening
from gateway.origins import Origins
from gateway.send_trace import SendTraces
from gateway.sender import Sender
from gateway.tasks import TaskDesk
from gateway.topics import Topics
from gateway.websocket_endpoint import WebSocketEndpoint

_RENEW_EVERY_S = 600.0
_DEAF_CLOSE_S = 1.0
_DEAF_CLOSE_A_S = 2_000  # sockets a second at most: the other pods have to take them in
_BY_HAND_S = 1.0  # who presses Ctrl-C does not want to wait
_LAST_WORDS_S = 1.0  # a Redis that does not answer does not keep the process


class _Adrift:
    """A socket whose session's server cannot be heard; a `gateway.drain.Leaving` that waits for nothing."""

    __slots__ = ("_connection", "_sockets")

    def __init__(self, connection: Listener, sockets: OpenConnections) -> None:
        self._connection = connection
        self._sockets = sockets

    @property
    def attached(self) -> bool:
        return self._connection.attached

    @property
    def busy(self) -> bool:
        return False

    def retire(self, reason: str) -> None:
        self._sockets.ask_to_reconnect(self._connection, reason)


class Pod:
    """Everything that one gateway process holds.

    Raises:
        ConfigurationError: the settings do not fit together.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.id = member_id()
        self.log = get_logger(process="pod", pod_id=self.id)
        self.tracer = open_tracer(settings, "pod", self.id, self.log)
        self.level = LevelSwitch(settings.log_level, self.log)
        self.keys = settings.keys()
        self.metrics = PodMetrics(settings)
        self.refused = Counter[str]()  # what clients were told they may not do, by error code
        self._background: set[asyncio.Task[None]] = set()
        target = parse_redis_url(settings.redis_url)
        self.redis_shown = target.shown
        timeout_s = settings.redis_timeout_s
        self.feed = open_store(
            target,
            "orchestrator-pod-feed",
            timeout_s=timeout_s,
            on_push=self._on_push,
            channels=lambda: (
                *self.health.probes.names(),
                *self.enforcement.channels,
                *self.topics.channels(),
                *self.hub.channels(),
            ),
            on_change=self._on_feed_change,
            on_failure=self._on_failure,
            on_moved=self._check_soon,
        )
        self.commands = open_store(
            target,
            "orchestrator-pod",
            timeout_s=timeout_s,
            on_change=self._on_command_change,
            on_failure=self._on_failure,
        )
        self.enforcement = Enforcement(self.commands, self.keys, lambda: self.sockets, self._spawn, self.log)
        self.authenticator = Authenticator(settings, self.enforcement.revoked, self.log)
        self.session_log = SessionLog(self.feed, self.commands, self.keys, settings)
        self.health = Health(
            self.feed,
            self.commands,
            lambda number: self.keys.pod_channel(self.id, number),
            settings.probe_interval_s,
            self._unable,
        )
        merge_s = settings.stream_merge_ms / 1000
        self.hub = Hub(
            self.feed, self.session_log, self.log, self._heard, merge_s, self.tracer, self.metrics.delays
        )
        self.queue = TaskQueue(self.commands, self.keys, settings.actions_queue_max)
        tasks = Tasks(self.commands, self.keys, settings)
        self.desk = TaskDesk(tasks, self.queue, self.session_log, self.log, self.metrics.named.task_ended)
        self.origins = Origins(
            settings.allowed_origins, local=settings.auth == "none" and not settings.allow_insecure
        )
        limiter = RateLimiter(self.commands, self.keys)
        access = AgentAccess(settings, self.log)
        self.sender = Sender(
            settings,
            self.keys,
            self.session_log,
            self.queue,
            tasks,
            self.desk,
            limiter,
            access,
            SendTraces(settings, self.tracer, self.log),
            self.metrics,
        )
        self.events = Events(self.commands, self.keys, settings)
        self.topics = Topics(
            self.feed,
            self.keys,
            lambda: self.sockets.wheel.connections,
            settings.topics_per_connection,
            self._spawn,
            self.log,
        )
        self.conversation = Conversation(
            settings, self.authenticator, self.sender, self.desk, self.topics, self.refused, self.log
        )
        lease_s = settings.presence_interval_s * MISSED_BEATS
        self.ownership = Ownership(self.commands, self.keys, self.id, int(lease_s * 1000), self.log)
        self.counts = ConnectionCounts(
            self.commands, self.keys, self.id, lease_s, self.log, self._rewrite_counts
        )
        self.admission = Admission(settings, self.counts, limiter, time.monotonic)
        self.sockets = OpenConnections(
            settings, self.hub, self.admission, self.ownership, self.topics.gone, self.refused, self.log
        )
        opening = Opening(
            settings,
            self.authenticator,
            self.admission,
            self.session_log,
            self.health,
            self.sockets,
            self.metrics,
        )
        self.endpoint = WebSocketEndpoint(
            opening, self.sockets, self.admission, self.origins, self.conversation, self.log
        )
        self.event_streams = EventsEndpoint(
            self.sockets, opening, EventStart(self.session_log, tasks, self.sender, self.desk)
        )
        self.presence = Presence(
            self.commands,
            self.keys,
            "pods",
            self.id,
            settings.presence_interval_s,
            self.summary,
            renew=self.ownership.keys,
            on_forgotten=self.sockets.rewrite_ownership,
        )
        self._lag = self.metrics.watch(self)
        self._checking: asyncio.Task[None] | None = None
        self._check_again = False

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
            "events_told": self.topics.told,
            "streams_healed": self.hub.streams.healed,
            "sends_accepted": self.sender.accepted,
            "sends_repeated": self.sender.duplicates,
            "tasks_cancelled": self.desk.cancelled,
            "refused": dict(self.refused),
        }

    def tasks(self) -> dict[str, Any]:
        """The pod's long-lived coroutines, by name."""
        return {
            "feed": self.feed.run(),
            "commands": self.commands.run(),
            "wheel": self.sockets.wheel.run(),
            "probes": self.health.probes.run(),
            "presence": self.presence.run(),
            "marks": self._mark_forever(),
            "positions": self._check_forever(),
            "deafness": self._watch_deafness(),
            "expiries": self.sockets.expiries.run(),
            "revocations": self.enforcement.revocations.run(),
            "counts": self.counts.run(),
            "lag": self._lag.run(),
            **self.authenticator.tasks(),
        }

    async def drain(self, hurry: asyncio.Event, *, by_hand: bool = False) -> None:
        """Finish what is under way and close every socket with a code that says to come back.

        Args:
            hurry: once it is set, nothing more is waited for that need not be.
            by_hand: somebody waits for it; be quick.
        """
        self.health.draining = True
        settings = self.settings
        readiness_s = 0.0 if by_hand else settings.drain_readiness_s
        over_s = min(settings.drain_timeout_s, _BY_HAND_S) if by_hand else settings.drain_timeout_s
        self.log.info("pod_draining", sockets=len(self.sockets.wheel), readiness_s=readiness_s, over_s=over_s)
        await pause(readiness_s, hurry)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + over_s
        await self.sockets.close_all(over_s, "the pod restarts", hurry)
        if self.conversation.sends_in_flight:  # of sockets that are gone
            await unless(hurry, asyncio.wait(self.conversation.sends_in_flight), deadline - loop.time())
        reason = await self._say_last(self._note_all())
        if reason is not None:
            self.log.warning("marks_not_written", reason=reason)

    async def _note_all(self) -> None:
        await self.sockets.noted()
        await self.desk.finished()
        await self.hub.marks.flush()

    async def leave(self) -> None:
        """Tell the cluster that the pod is gone; last of all, as a beat behind it would enter it again."""
        reason = await self._say_last(self._say_goodbye())
        if reason is not None:
            self.log.warning("left_without_goodbye", reason=reason)

    async def _say_goodbye(self) -> None:
        await asyncio.gather(self.presence.leave(), self.counts.left())

    async def _say_last(self, words: Coroutine[Any, Any, None]) -> str | None:
        """Do something that Redis has to answer; returns why that was not done, if it was not."""
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await words
        except (RedisUnavailable, TimeoutError) as error:
            return str(error) or f"Redis did not answer within {_LAST_WORDS_S:g} s"
        return None

    # Redis.

    def _on_push(self, push: list[Any]) -> None:
        self.hub.on_push(push)

    def _unable(self) -> str | None:
        problem = self.authenticator.problem()
        return problem if self.settings.auth == "none" else problem or self.enforcement.problem()

    def _heard(self, channel: bytes, payload: bytes) -> None:
        if not (self.enforcement.heard(channel, payload) or self.topics.heard(channel, payload)):
            self.health.heard(channel, payload)

    async def _rewrite_counts(self) -> None:
        await self.sockets.rewrite_counts()

    def _on_feed_change(self, link: Link, up: bool) -> None:
        self._say(up, "subscriptions", link)
        if up:
            self._check_soon()
        else:
            self.health.probes.lost()

    def _on_command_change(self, link: Link, up: bool) -> None:
        self._say(up, "commands", link)
        if not up:
            self.health.probes.lost()
        elif self.commands.connects > len(self.commands.links):
            self._spawn(self._enter_again())

    async def _enter_again(self) -> None:
        try:
            await self.sockets.rewrite_ownership()
            await self.sockets.rewrite_counts()
            await self.presence.beat()
        except RedisUnavailable:
            pass  # it went away again; the next connect does this again

    def _on_failure(self, reason: str) -> None:
        self.log.error("redis_unreachable", redis=self.redis_shown, reason=reason)

    def _say(self, up: bool, what: str, link: Link) -> None:
        if up:
            self.log.info("redis_connected", connection=what, server=str(link.address))
        else:
            self.log.warning("redis_lost", connection=what, server=str(link.address), reason=link.last_error)

    # Background.

    async def _mark_forever(self) -> None:
        while True:
            await asyncio.sleep(self.settings.mark_sent_interval_s)
            try:
                await self.hub.marks.flush()
            except RedisUnavailable:
                await asyncio.sleep(self.settings.mark_sent_interval_s)

    async def _check_forever(self) -> None:
        """Compare all positions with their logs, spread over the interval."""
        interval_s = self.settings.position_check_s
        renew_s = min(_RENEW_EVERY_S, self.settings.session_log_max_age_s / 4)
        renewed_at = time.monotonic()
        while True:
            renew = time.monotonic() - renewed_at >= renew_s
            unread = await self.hub.check_positions(interval_s / 2, renew=renew)
            if renew and not unread:
                renewed_at = time.monotonic()
            await asyncio.sleep(interval_s / 2)

    async def _watch_deafness(self) -> None:
        """Send clients elsewhere whose sessions' server has not been heard for long, whatever was tried."""
        health, since = self.health, dict[Link, float]()
        while True:
            await asyncio.sleep(self.settings.probe_interval_s / 2)
            now, troubles = time.monotonic(), health.probes.troubles()
            # One that is connected has been silent since its last probe, and that shows only now.
            silent_s = health.probes.patience_s
            since = {link: since.get(link, now - silent_s * link.up) for link in troubles}
            lost = {link for link, at in since.items() if now - at >= self.settings.deaf_limit_s}
            newly, health.given_up = lost - health.given_up, lost
            if newly and not health.draining:
                sockets = [
                    socket
                    for socket in self.sockets.wheel.connections
                    if socket.feed is not None and self.feed.link_for(socket.feed.session) in newly
                ]
                self.log.error("pod_deaf", reason=[troubles[link] for link in newly], sockets=len(sockets))
                over_s = max(_DEAF_CLOSE_S, len(sockets) / _DEAF_CLOSE_A_S)
                adrift = [_Adrift(socket, self.sockets) for socket in sockets]
                await close_paced(adrift, over_s, "messages do not get through this pod", asyncio.Event())

    def _check_soon(self) -> None:
        """What was published while a connection was away shows now, not with the next message."""
        if self._checking is None or self._checking.done():
            self._checking = self._spawn(self._check_at_once())
        else:
            self._check_again = True

    async def _check_at_once(self) -> None:
        self._check_again = True
        while self._check_again:
            self._check_again = False
            unread = await self.hub.check_positions(0)
            if unread:  # connecting again checks again
                self.log.debug("positions_not_checked", sessions=unread)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("task_died", exc_info=task.exception())

"""The router process, wired."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

from backplane.errors import RedisUnavailable
from backplane.log import get_logger
from backplane.log_level import LevelSwitch
from backplane.presence import Presence, Summary
from backplane.redis_client import parse_redis_url
from backplane.router.consumer import Consumer
from backplane.settings import Settings
from backplane.supervise import calm_collector, run_until
from backplane.tracing import open_tracer

_GOODBYE_S = 2.0


def member_id() -> str:
    """An id for this process that no other process has had."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(3).hex()}"


class Router:
    """Everything that one router process holds.

    Raises:
        ConfigurationError: the settings do not fit together.
    """

    def __init__(self, settings: Settings) -> None:
        self.id = member_id()
        self.log = get_logger(process="router", router_id=self.id)
        keys, target = settings.keys(), parse_redis_url(settings.redis_url)
        self.redis_shown = target.shown
        self.tracer = open_tracer(settings, "router", self.id, self.log)
        self.consumer = Consumer(target, keys, settings, self.log, self.id, self.tracer)
        self.lag = self.consumer.metrics.watch(self.consumer)
        self.presence = Presence(
            self.consumer.commands, keys, "routers", self.id, settings.presence_interval_s, self.summary
        )

    def summary(self) -> Summary:
        """What the router tells the cluster of itself."""
        consumer = self.consumer
        problem = consumer.problem()
        return {
            **asdict(consumer.transfer.counts),
            "timeouts": consumer.deadlines.timeouts,
            "cancelled": consumer.deadlines.cancelled,
            "forgotten": consumer.deadlines.forgotten,
            "left_alone": consumer.deadlines.left_alone,
            "released": consumer.deadlines.released,
            "lists": consumer.lists_served,
            "lookout": consumer.lookout.on_duty,
            "oldest_s": round(consumer.oldest_s, 3),
            "ready": problem is None,
            "reason": problem,
        }

    def tasks(self) -> dict[str, Any]:
        """The router's long-lived coroutines, by name."""
        return {**self.consumer.tasks(), "presence": self.presence.run(), "lag": self.lag.run()}

    async def leave(self) -> None:
        """Say goodbye: the other routers take over at once."""
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self.consumer.leases.leave()
                await self.presence.leave()
        except (RedisUnavailable, TimeoutError) as error:
            self.log.warning("left_without_goodbye", reason=str(error) or "Redis did not answer")


async def run_router(
    settings: Settings, beside: Callable[[Router], dict[str, Coroutine[Any, Any, None]]] = lambda _router: {}
) -> int:
    """Route callbacks until SIGTERM or SIGINT.

    Args:
        beside: more tasks of the process, by name.

    Returns:
        The exit status: 0 after a clean stop.

    Raises:
        ConfigurationError: the settings do not fit together.
    """
    router = Router(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = {**router.tasks(), **beside(router)}
    LevelSwitch(settings.log_level, router.log).listen()
    calm_collector()
    router.log.info("router_started", redis=router.redis_shown)
    clean = await run_until(stop, tasks, router.log, router.leave)
    await router.tracer.close()
    router.log.info("router_stopped", clean=clean, **asdict(router.consumer.transfer.counts))
    return 0 if clean else 1

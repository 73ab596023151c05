"""The router process, wired."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import asdict

from backplane.log import get_logger
from backplane.presence import Presence
from backplane.redis_client import parse_redis_url
from backplane.router.consumer import Consumer
from backplane.settings import Settings
from backplane.supervise import calm_collector, run_until


def member_id() -> str:
    """An id for this process that no other process has had."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(3).hex()}"


async def run_router(settings: Settings) -> int:
    """Route callbacks until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a clean stop.
    """
    router_id = member_id()
    log = get_logger(process="router", router_id=router_id)
    keys = settings.keys()
    target = parse_redis_url(settings.redis_url)
    consumer = Consumer(target, keys, settings, log)
    presence = Presence(
        consumer.link,
        keys,
        "routers",
        router_id,
        settings.presence_interval_s,
        lambda: {**asdict(consumer.transfer.counts), "lists": consumer.lists_known},
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    calm_collector()
    log.info("router_started", redis=target.shown)
    tasks = {**consumer.tasks(), "presence": presence.run()}
    clean = await run_until(stop, tasks, log)
    log.info("router_stopped", clean=clean, **asdict(consumer.transfer.counts))
    return 0 if clean else 1

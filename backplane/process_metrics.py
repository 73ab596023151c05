"""What pods and routers have in common for Prometheus: readiness, their event loop, their way to Redis."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from backplane.log import OUTPUT
from backplane.metrics import FAST_S, Histogram, Registry
from backplane.probes import Probes
from backplane.store import Store
from backplane.tracing import Tracer

_LAG_EVERY_S = 0.25
_MEMORY_MAX = Path("/sys/fs/cgroup/memory.max")


class EventLoopLag:
    """How late the event loop comes to what is due: everything else in the process waits as long."""

    def __init__(self, lag: Histogram) -> None:
        self._lag = lag

    async def run(self) -> None:
        """Measure until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag.observe(max(0.0, loop.time() - due))


def memory_limit_bytes(path: Path = _MEMORY_MAX) -> int | None:
    """The limit of this process's control group (version 2); None if there is none."""
    try:
        said = path.read_text().strip()
    except OSError:
        return None
    return int(said) if said.isdecimal() else None


def process_metrics(
    registry: Registry,
    process: str,
    problem: Callable[[], str | None],
    stores: Mapping[str, Store],
    probes: Probes,
    tracer: Tracer,
) -> EventLoopLag:
    """Enter them.

    Args:
        process: ``gateway`` or ``router``; a label of all of them.
        problem: why the process does not do its work, if so.
        stores: its connections to Redis, by what they are for.
        probes: see `Probes`; they are given where to note what they measure.
    """
    built = (process, version("agent-orchestrator"), platform.python_version())
    registry.gauge(
        "orchestrator_build_info",
        "1, for the version and the Python that run.",
        lambda: {built: 1.0},
        "process",
        "version",
        "python",
    )
    registry.gauge(
        "orchestrator_ready",
        "1 while the process does its work (what /readyz says), else 0.",
        lambda: {(process,): float(problem() is None)},
        "process",
    )
    registry.gauge(
        "orchestrator_probe_silence_seconds",
        "Time since a probe came back through Redis, of the server from which that is longest ago.",
        lambda: {(process,): probes.silent_s},
        "process",
    )
    registry.gauge(
        "orchestrator_redis_up",
        "1 while all servers can be reached, by what the connections are for.",
        lambda: {(process, use): float(store.up) for use, store in stores.items()},
        "process",
        "connection",
    )
    registry.counted(
        "orchestrator_redis_connects_total",
        "Connections that were made to Redis.",
        lambda: {(process, use): float(store.connects) for use, store in stores.items()},
        "process",
        "connection",
    )
    registry.counted(
        "orchestrator_log_lines_missing_total",
        "Log lines that were not written: dropped (nobody took them), or suppressed (too many of one event).",
        lambda: {
            (process, "dropped"): float(OUTPUT.dropped),
            (process, "suppressed"): float(OUTPUT.floods.suppressed),
        },
        "process",
        "why",
    )
    registry.counted(
        "orchestrator_spans_dropped_total",
        "Spans that were not sent: the queue was full, or the collector did not take them.",
        lambda: {(process,): float(tracer.dropped)},
        "process",
    )
    limit = memory_limit_bytes()
    registry.gauge(
        "orchestrator_memory_limit_bytes",
        "Memory that the container may use; not there if there is no limit.",
        lambda: {} if limit is None else {(process,): float(limit)},
        "process",
    )
    trips = registry.histogram(
        "orchestrator_redis_round_trip_seconds",
        "Time from a probe's command to its reply (path command) and to the push that it causes (path push).",
        "process",
        "path",
        bounds=FAST_S,
    )
    probes.commands, probes.pushes = trips.of(process, "command"), trips.of(process, "push")
    lag = registry.histogram(
        "orchestrator_event_loop_lag_seconds", "How late the event loop came to what was due.", "process"
    )
    return EventLoopLag(lag.of(process))

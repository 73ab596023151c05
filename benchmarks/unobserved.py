"""``orchestrator``, with nothing counted, measured or logged: what `benchmarks.observing` compares with.

    python -m benchmarks.unobserved gateway|router …

It takes out by hand what hot paths tell of themselves; everything else is as it is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from backplane.metrics import Histogram
from backplane.named_metrics import NamedMetrics
from backplane.process_metrics import EventLoopLag
from backplane.router.depths import Depths
from backplane.router.metrics import RouterMetrics
from gateway.cli import main
from gateway.delays import Delays
from gateway.http_metrics import CountedRequests
from gateway.metrics import PodMetrics


def _nothing(*_arguments: Any, **_more: Any) -> None:
    """In place of what tells."""


async def _for_ever(_self: Any) -> None:
    await asyncio.Event().wait()


async def _pass_through(self: Any, scope: Any, receive: Any, send: Any) -> None:
    await self._app(scope, receive, send)


def blindfold() -> None:
    """Take it out of this process."""
    taken_out: list[tuple[type, tuple[str, ...]]] = [
        (Histogram, ("observe", "observe_traced")),
        (Delays, ("delivered", "missed", "acked")),
        (NamedMetrics, ("task_ended",)),
        (RouterMetrics, ("count_callbacks", "count_dead", "note")),
        (PodMetrics, ("count_send",)),
    ]
    for kind, names in taken_out:
        for name in names:
            getattr(kind, name)  # or a new name would make this comparison one with itself
            setattr(kind, name, _nothing)
    EventLoopLag.run = _for_ever  # type: ignore[method-assign, assignment]
    Depths.run = _for_ever  # type: ignore[method-assign, assignment]
    CountedRequests.__call__ = _pass_through  # type: ignore[method-assign]
    os.environ["ORCHESTRATOR_LOG_LEVEL"] = "error"


if __name__ == "__main__":
    blindfold()
    sys.exit(main())

"""What traces cost on a message's full path: CPU per message without a collector, and with one.

    python -m benchmarks.tracing [--rounds 9] [--messages 2000] [--sockets 100]

Clusters of two pods and a router stand side by side: one whose spans nobody collects, as is the default, and
one for each share of the tasks that is sampled. Clients send chat messages and acknowledge the answers of an
agent that passes no trace on, in turn on each cluster, so that all meet the same machine. Medians of
the rounds are told, and of their ratios to the first.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.observing import Side
from tests.support.otlp import Collector
from tests.support.processes import Cluster

RATIOS = ("", "0.01", "1")


async def compare(sides: list[Side], rounds: int, messages: int, sockets: int) -> None:
    """Run all rounds; the first only warms up."""
    async with AsyncExitStack() as stack:
        for side in sides:
            await stack.enter_async_context(side.open(sockets))
        for number in range(rounds + 1):
            for side in sides if number % 2 else reversed(sides):
                await side.round(messages)
    for side in sides:
        del side.cpu_us[0]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--sockets", type=int, default=100)
    options = parser.parse_args()
    sides = []
    with ExitStack() as stack:
        collector = stack.enter_context(Collector())
        for ratio in RATIOS:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            more: dict[str, Any] = (
                {"OTLP_ENDPOINT": collector.endpoint, "TRACE_SAMPLE_RATIO": ratio} if ratio else {}
            )
            cluster = Cluster(folder, unlimited=True, **more)
            sides.append(Side(stack.enter_context(cluster), addresses=[]))
        uvloop.run(compare(sides, options.rounds, options.messages, options.sockets))
        spans = len(collector.spans)
    off = sides[0].cpu_us
    for ratio, side in zip(RATIOS, sides, strict=True):
        shares = [one / other for one, other in zip(side.cpu_us, off, strict=True)]
        name = f"sampled {ratio}" if ratio else "no collector"
        print(
            f"{name}: {statistics.median(side.cpu_us):.1f} µs a message, "
            f"ratio {statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})"
        )
    print(f"{spans} spans were collected")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The console command with a limit taken out, to show that the tests of limits would see it.

python -m tests.support.limits_sabotage WHAT[,WHAT…] gateway …
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tests.support.processes import Process


def no_rate() -> None:
    """Every send is allowed."""
    from backplane.rate_limiter import Charged, Quota, RateLimiter

    async def charge(self: RateLimiter, tenant_id: str, session_id: str, quotas: Sequence[Quota]) -> Charged:
        return Charged(True, 0.0, (), ())

    RateLimiter.charge = charge  # type: ignore[method-assign]


def no_counts() -> None:
    """Every tenant, session and user may have as many sockets as it likes."""
    from backplane.connection_counts import ConnectionCounts, Full, Most, Place

    async def join(self: ConnectionCounts, place: Place, most: Most) -> Full | None:
        return None

    ConnectionCounts.join = join  # type: ignore[method-assign]


def no_pace() -> None:
    """Whatever key set is asked for is fetched at once, as often as tokens name keys that are not known."""
    from gateway import jwks

    jwks.COOLDOWN_S = 0.0


def sabotaged(process: Process, *what: str) -> None:
    """Have a process of `tests.support.processes` start without some of its limits."""
    name = "tests.support.limits_sabotage"
    process.command = [sys.executable, "-m", name, ",".join(what), *process.command[3:]]


if __name__ == "__main__":
    for name in sys.argv[1].split(","):
        {"rate": no_rate, "counts": no_counts, "pace": no_pace}[name]()
    from gateway.cli import main

    sys.argv = ["orchestrator", *sys.argv[2:]]
    sys.exit(main())

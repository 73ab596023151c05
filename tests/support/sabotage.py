"""The console command with one of its guards taken out, to show that a test would see it.

python -m tests.support.sabotage WHAT[,WHAT…] gateway|router …
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1
from typing import Any

from tests.support.processes import Process

MARKER = b"stop-before-moving"
"""In a callback: a router that is sabotaged with `pausing` stops itself between reading and moving it."""


def no_probe() -> None:
    """A connection that is up counts as proof enough."""
    from backplane.link import Link
    from backplane.probes import Probes

    def troubles(self: Probes) -> dict[Link, str]:
        return {link: "no connection" for link in self._store.links if not link.up}

    Probes.troubles = troubles  # type: ignore[method-assign]
    Probes._mend = lambda self, probe: None  # type: ignore[method-assign]


def no_fence() -> None:
    """A transfer goes through whatever has happened since the list was read."""
    guard = "if (redis.call('GET', fence) or '') ~= ARGV[2] then return {0} end"
    _change_transfer(guard, "")


def no_epoch() -> None:
    """A log goes on under its epoch, whichever server goes on with it."""
    _change_transfer("local same = record[6] == lineage", "local same = record[1] and true")


def _change_transfer(guard: str, instead: str) -> None:
    from backplane import scripts
    from backplane.router import transfer

    script = scripts.TRANSFER
    assert guard in script.text
    text = script.text.replace(guard, instead)
    digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
    transfer.__dict__["TRANSFER"] = replace(script, text=text, sha1=digest)


def no_gap_check() -> None:
    """Positions are never compared with the logs."""
    from gateway.hub import Hub

    async def check(self: Hub, pause_s: float, *, renew: bool = False) -> int:
        return 0

    Hub.check_positions = check  # type: ignore[method-assign]


def pausing() -> None:
    """The process stops itself (SIGSTOP) when it has read a callback with `MARKER`, before it moves it."""
    from backplane.router import transfer

    judge: Callable[..., Any] = transfer.judge

    def judge_and_pause(waiting: list[Any], *args: Any) -> Any:
        moves = judge(waiting, *args)
        if any(isinstance(raw, bytes) and MARKER in raw for raw in waiting):
            os.kill(os.getpid(), signal.SIGSTOP)
        return moves

    transfer.__dict__["judge"] = judge_and_pause


def dying_before_push() -> None:
    """A router kills itself (SIGKILL) when a task may go on that has waited, before its action is pushed."""
    from backplane.router.deadlines import Deadlines

    Deadlines._push = _die  # type: ignore[method-assign]


def dying_after_push() -> None:
    """It does so when the action was pushed, before that is noted."""
    from backplane.tasks import Tasks

    Tasks.settle = _die  # type: ignore[method-assign]


async def _die(*_arguments: Any, **_more: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sabotaged(process: Process, *what: str) -> None:
    """Have a process of `tests.support.processes` start without some of its guards."""
    process.command = [sys.executable, "-m", "tests.support.sabotage", ",".join(what), *process.command[3:]]


if __name__ == "__main__":
    from tests.support.adversary.guards import GUARDS

    for name in sys.argv[1].split(","):
        {
            "probe": no_probe,
            "fence": no_fence,
            "epoch": no_epoch,
            "gap_check": no_gap_check,
            "pausing": pausing,
            "dying_before_push": dying_before_push,
            "dying_after_push": dying_after_push,
            **GUARDS,
        }[name]()
    from gateway.cli import main

    sys.argv = ["orchestrator", *sys.argv[2:]]
    sys.exit(main())

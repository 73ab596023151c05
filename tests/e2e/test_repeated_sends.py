"""A message that is sent again and again under one key is one task and one action."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.processes import Cluster
from tests.support.repeated_sends import repeat


@pytest.mark.parametrize(("rounds", "kill"), [(10, False), (5, True)], ids=["all alive", "pods killed"])
def test_fifty_copies_on_two_pods(tmp_path: Path, rounds: int, kill: bool) -> None:
    """Also if a pod is killed between accepting it and pushing its action."""
    with Cluster(tmp_path, pods=2, routers=1, unlimited=True, SESSION_TASKS_MAX="1000") as cluster:
        told = asyncio.run(repeat(cluster, rounds, 50, kill=kill))
    print(told)
    assert told.right, told

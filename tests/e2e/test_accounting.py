"""Nothing lost, doubled or out of order, while sockets, pods and the router are cut down."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

from tests.support.accounting import Load, run
from tests.support.processes import Cluster


@pytest.mark.parametrize("seed", [11])
def test_full_speed_with_dropped_sockets(tmp_path: Path, seed: int) -> None:
    """50,000 callbacks at full speed, each of 500 sockets dropped 5 times and resumed on a random pod."""
    with Cluster(tmp_path) as cluster:
        report = uvloop.run(run(cluster, Load(), seed))
    print(f"\ndrops only: {report}")
    assert report.sent == 50_000
    assert report.clean, report


@pytest.mark.parametrize("seed", [12])
def test_pod_and_router_killed_five_times_each(tmp_path: Path, seed: int) -> None:
    """The same while a pod and the router are killed five times each, and the AES sends some twice."""
    with Cluster(tmp_path) as cluster:
        report = uvloop.run(run(cluster, Load(pace_s=20.0, duplicates=0.05), seed, kills=5))
    print(f"\n5 kills of a pod and of the router: {report}")
    assert report.sent == 50_000
    assert report.clean, report

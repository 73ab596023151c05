"""Connections that never become sockets are closed in time, and keep nobody out who has a token."""

from __future__ import annotations

from pathlib import Path

import pytest
import uvloop

from benchmarks.half_open import TIMEOUT_S, OnePod, Result, allow_files, measure

SOCKETS = 2_000
ATTACK_S = 8.0
CALM_S = 2.0
ROOM = 300
TOLERANCE_S = 1.5
"""For a machine that does other things too, and for the wait until a pod takes a connection in."""


def attacked(folder: Path, pause_s: float = 0.0, **settings: str) -> Result:
    """What an attack on a pod came to."""
    allow_files(2 * SOCKETS)
    with OnePod(folder, **settings) as cluster:
        result = uvloop.run(measure(cluster, SOCKETS, ATTACK_S, CALM_S, pause_s))
        assert "Traceback" not in cluster.pods[0].output
    swarm, during = result.swarm, result.during
    longest = ", ".join(f"{name} {kind.longest_s:.2f} s" for name, kind in swarm.kinds.items())
    print(
        f"\n{swarm.opened} opened; longest: {longest}; "
        f"connects p50 {result.ratio('connect_p50_ms'):.1f} times the usual, "
        f"p99 {during.connect_p99_ms:.0f} ms, worst {during.connect_worst_ms:.0f} ms; "
        f"callbacks p50 {result.ratio('callback_p50_ms'):.1f} times the usual; files {during.files}; "
        f"{result.before.rss_kib} KiB before, {result.after.rss_kib} KiB after"
    )
    return result


def check_closed(result: Result) -> None:
    """None that has no token stays longer than it may."""
    for name, kind in result.swarm.kinds.items():
        assert kind.longest_s < TIMEOUT_S + TOLERANCE_S, f"{name} lasted {kind.longest_s:.2f} s"
        assert len(kind.lasted) > 0.9 * SOCKETS / 3, name


def check_files(result: Result) -> None:
    """The pod had no more open than it may await heads on, and what else there is."""
    # Else: those that were told why they are refused, the sockets that stay, and the pod's own files.
    assert result.during.files < ROOM + SOCKETS / 3 + 200, "too many open files"


def check_others(result: Result) -> None:
    """Those with tokens got in and got their messages."""
    during = result.during
    for part in (result.before, during, result.after):
        assert part.refused == 0
        assert part.callbacks == part.pushed > 20
    assert during.connects > result.before.connects / 4, "hardly anybody got in"
    assert result.ratio("connect_p50_ms") < 30
    assert result.ratio("callback_p50_ms") < 30
    assert during.connect_p99_ms < 2_000


def test_idle_connections_are_closed_in_time(tmp_path: Path) -> None:
    """Two thousand that say nothing, too little or no token are gone after 5 s; others hardly notice."""
    result = attacked(tmp_path)
    check_closed(result)
    check_others(result)
    assert result.swarm.kinds["tokenless"].longest_s < TIMEOUT_S
    assert result.swarm.failed == 0
    assert result.after.files < result.before.files + 50
    assert result.after.rss_kib - result.before.rss_kib < 32 * 1024


def test_one_too_many_closes_the_oldest(tmp_path: Path) -> None:
    """With room for fewer than there are, a pod has no more open than that, and who has a token gets in."""
    result = attacked(tmp_path, pause_s=1.0, HALF_OPEN_MAX=str(ROOM))
    check_closed(result)
    check_others(result)
    check_files(result)


def test_without_the_guard_idle_connections_stay(tmp_path: Path) -> None:
    """Control: with no limit that matters, the check sees that nothing is closed and all files stay open."""
    result = attacked(tmp_path, HALF_OPEN_MAX=str(2 * SOCKETS), HANDSHAKE_TIMEOUT_S="120")
    with pytest.raises(AssertionError, match="silent lasted"):
        check_closed(result)
    with pytest.raises(AssertionError, match="too many open files"):
        check_files(result)

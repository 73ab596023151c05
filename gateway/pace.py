"""A token bucket in one number: [P] pure.

Source: the generic cell rate algorithm (ITU-T I.371), as in `backplane/lua/rate.lua`: what is kept is the
time at which the bucket is full again.
"""

from __future__ import annotations


def take(full_at: float, now: float, per_s: float, burst: int) -> tuple[float, float]:
    """Take one from a bucket.

    Args:
        full_at: when the bucket is full again, as returned before; 0.0 for a new one.
        now: in the same seconds.
        per_s: how many flow in each second.
        burst: how many it holds.

    Returns:
        When it is full again now, and the seconds until there is one: 0.0 if one was taken.
    """
    full_at = max(full_at, now)
    wait_s = full_at + 1 / per_s - burst / per_s - now
    if wait_s > 1e-9:
        return full_at, wait_s
    return full_at + 1 / per_s, 0.0

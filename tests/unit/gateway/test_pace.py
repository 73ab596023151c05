"""A token bucket in one number, beside a plain one that counts."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pace import take


class Bucket:
    """What `take` does, said plainly and exactly: so many tokens, and when that was."""

    def __init__(self, per_s: int, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = Fraction(burst)
        self._at = Fraction(0)

    def take(self, now: Fraction) -> Fraction:
        """How long to wait; 0 if one was taken."""
        self._tokens = min(Fraction(self._burst), self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return Fraction(0)
        return (1 - self._tokens) / self._per_s


@given(
    per_s=st.integers(1, 1_000),
    burst=st.integers(1, 50),
    steps=st.lists(st.integers(0, 2_000), max_size=60),
)
def test_it_is_a_bucket(per_s: int, burst: int, steps: list[int]) -> None:
    """However takes and pauses follow each other, it allows what a bucket allows, and waits as long."""
    bucket, full_at, now = Bucket(per_s, burst), 0.0, Fraction(0)
    for step in steps:
        now += Fraction(step, 7 * per_s)  # so that a token's time is met exactly, and missed narrowly
        full_at, wait_s = take(full_at, float(now), float(per_s), burst)
        wanted = bucket.take(now)
        assert wait_s == pytest.approx(float(wanted), abs=1e-9)
        assert (wait_s == 0) == (wanted == 0)


@given(per_s=st.floats(0.01, 1_000), burst=st.integers(1, 100), now=st.floats(0, 1e4))
def test_a_burst(per_s: float, burst: int, now: float) -> None:
    """After a pause all of it goes at once, and then one more has to wait for its time."""
    full_at = 0.0
    for _ in range(burst):
        full_at, wait_s = take(full_at, now, per_s, burst)
        assert wait_s == 0
    before = full_at
    full_at, wait_s = take(full_at, now, per_s, burst)

    assert wait_s == pytest.approx(1 / per_s, rel=1e-3, abs=1e-5)
    assert full_at == before  # a refusal costs nothing
    full_at, wait_s = take(full_at, now + wait_s + 1e-6, per_s, burst)
    assert wait_s == 0


def test_a_new_bucket_is_full() -> None:
    """Whatever the clock shows, also one that began long before 0."""
    for now in (-1e5, 0.0, 1e5):
        full_at = 0.0 if now >= 0 else now
        for _ in range(5):
            full_at, wait_s = take(full_at, now, 1.0, 5)
            assert wait_s == 0
        assert take(full_at, now, 1.0, 5)[1] == 1.0


def test_a_pause_fills_no_more_than_the_bucket() -> None:
    """Days of silence are no licence for a flood."""
    full_at, wait_s = take(0.0, 0.0, 10.0, 3)
    for _ in range(3):
        full_at, wait_s = take(full_at, 1e5, 10.0, 3)
        assert wait_s == 0

    assert take(full_at, 1e5, 10.0, 3)[1] > 0


def test_one_by_one() -> None:
    """Who waits as told is never refused, and gets exactly the rate."""
    full_at, now, taken = 0.0, 100.0, 0
    while now < 110.0:
        full_at, wait_s = take(full_at, now, 20.0, 1)
        taken += wait_s == 0
        now += wait_s or 0.001

    assert taken == pytest.approx(200, abs=2)

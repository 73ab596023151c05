"""Quotas in a real Redis: bursts and rates are exact over all pods together, and a refusal costs nothing.

Most tests hold the clock: the script reads one that only the test moves. The others go by Redis's own, which
they read before and after.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from fractions import Fraction
from hashlib import sha1

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.open_store import open_store
from backplane.rate_limiter import OVERRIDES, Charged, Quota, RateLimiter, Standing
from backplane.redis_client import parse_redis_url
from backplane.scripts import RATE, Script
from backplane.settings import Settings
from backplane.store import Store
from tests.support.topology import ValkeyCluster
from tests.support.valkey import Client, eventually, running

KEYS = Settings().keys()
LIMITS = KEYS.tenant_limits("acme")
BUCKETS = {
    "minute": KEYS.rate("acme", "minute"),
    "day": KEYS.rate("acme", "day"),
    "session": KEYS.session_rate("acme", "s-1"),
}
MINUTE = BUCKETS["minute"]
WINDOWS_S = {"minute": 60, "day": 86_400, "session": 3_600}
A_DAY = 86_400

IN_2100_US = 4_102_444_800_123_457  # ahead of Redis's own clock, so that no key expires
HELD = """
local real = redis
local redis = {call = function(command, ...)
  if command == 'TIME' then return real.call('HMGET', 'clock', 's', 'us') end
  return real.call(command, ...)
end}
"""


class Clock:
    """The clock that the script reads; it stands still unless it is moved."""

    def __init__(self, redis: Client) -> None:
        self._redis = redis
        self.us = IN_2100_US
        self.move(0)

    def move(self, by_us: int) -> None:
        """Forward, or back."""
        self.us += by_us
        self._redis.hset("clock", mapping={"s": self.us // 10**6, "us": self.us % 10**6})


@pytest.fixture
def clock(redis_client: Client, monkeypatch: pytest.MonkeyPatch) -> Clock:
    text = HELD + RATE.text
    digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr("backplane.rate_limiter.RATE", Script(text, digest))
    return Clock(redis_client)


@pytest.fixture
def limiter(store: Store) -> RateLimiter:
    return RateLimiter(store, KEYS)


def micros(seconds: float) -> int:
    """A whole number of microseconds that was made seconds."""
    return round(seconds * 10**6)


def time_us(redis: Client) -> int:
    """Redis's own clock."""
    seconds, us = redis.time()
    return int(seconds) * 10**6 + int(us)


def full_at_us(redis: Client, key: str) -> Fraction:
    """When a bucket will be full, by its key."""
    return Fraction(redis.get(key).decode())


def put_off(redis: Client, key: str, by_us: int) -> None:
    """Have a bucket be full so much later; by less than nothing is as if so much time had passed."""
    us, _, ns = redis.get(key).decode().partition(".")
    redis.set(key, f"{int(us) + by_us}.{ns}", keepttl=True)


async def charge(limiter: RateLimiter, *quotas: Quota, session: str = "s-1", tenant: str = "acme") -> Charged:
    return await limiter.charge(tenant, session, quotas)


async def spend(limiter: RateLimiter, times: int, *quotas: Quota) -> None:
    """Charge so often, and each time it is allowed."""
    done = await asyncio.gather(*[charge(limiter, *quotas) for _ in range(times)])
    assert [one.allowed for one in done] == [True] * times


async def left(limiter: RateLimiter, quota: Quota) -> int:
    """How many can be charged now; they are."""
    for allowed in range(1_000):
        if not (await charge(limiter, quota)).allowed:
            return allowed
    raise AssertionError("there is no end to it")


async def look(limiter: RateLimiter, quota: Quota) -> tuple[int, float]:
    """A quota's `remaining` and `reset_s`, without a change to it: another one refuses."""
    spent = Quota("day", 1, A_DAY)
    await charge(limiter, spent)
    looked = await charge(limiter, quota, spent)
    assert "day" in looked.violated
    return looked.standings[0].remaining, looked.standings[0].reset_s


class TestRates:
    @pytest.mark.parametrize(
        ("most", "window_s"), [(1, 1), (2, 60), (3, 60), (7, 60), (64, A_DAY), (599, 3_600), (1_100, 1)]
    )
    async def test_all_at_once_then_one_each_interval(
        self, limiter: RateLimiter, clock: Clock, most: int, window_s: int
    ) -> None:
        """A burst is exact, and so is the wait after it: a microsecond before it is too early."""
        quota = Quota("minute", most, window_s)
        await spend(limiter, most, quota)
        began_us = clock.us
        for number in (1, 2, 3):
            refused = await charge(limiter, quota)
            assert not refused.allowed
            free_at_us = began_us + math.ceil(Fraction(number * window_s * 10**6, most))
            assert micros(refused.retry_after_s) == free_at_us - clock.us
            clock.move(micros(refused.retry_after_s) - 1)
            assert micros((await charge(limiter, quota)).retry_after_s) == 1
            clock.move(1)
            assert await left(limiter, quota) == 1

    @pytest.mark.parametrize("elapsed_s", [6, 59, 60, 61, 100_000])
    async def test_after_a_pause(self, limiter: RateLimiter, clock: Clock, elapsed_s: int) -> None:
        """As many as time has brought back, and never more than all."""
        quota = Quota("minute", 10, 60)
        await spend(limiter, 10, quota)
        clock.move(elapsed_s * 10**6)
        assert await left(limiter, quota) == min(elapsed_s // 6, 10)

    @pytest.mark.parametrize("most", [1_000_000, 999_999, 997_000, 777_777])
    @pytest.mark.parametrize("window_s", [60, A_DAY])
    async def test_a_large_quota_is_exact(
        self, limiter: RateLimiter, clock: Clock, most: int, window_s: int
    ) -> None:
        """An interval of some microseconds does not suffer from the size of what it is added to."""
        quota = Quota("minute", most, window_s)
        for _ in range(5):
            await spend(limiter, 200, quota)
            clock.move(137)
        _, reset_s = await look(limiter, quota)
        assert reset_s + 5 * 137e-6 == pytest.approx(1_000 * window_s / most, rel=5e-5)

    async def test_more_than_one_a_microsecond(self, limiter: RateLimiter, clock: Clock) -> None:
        """Nobody can send as many; the quota counts as what can be counted."""
        charged = await charge(limiter, Quota("minute", 10**12, 60))
        assert charged.allowed
        assert charged.standings == (("minute", 60_000_000, 60, 59_999_999, 1e-6),)

    async def test_exact_over_connections(
        self, limiter: RateLimiter, redis_url: str, redis_client: Client
    ) -> None:
        """Of many at once from two pods, exactly as many as the quota has are allowed; neither gets all."""
        quotas = (Quota("minute", 400, A_DAY), Quota("day", 1_000, A_DAY), Quota("session", 1_000, A_DAY))
        async with running(open_store(parse_redis_url(redis_url), "another", timeout_s=30)) as store:
            pods = (limiter, RateLimiter(store, KEYS))
            done = await asyncio.gather(*[charge(pods[n % 2], *quotas) for n in range(600)])
        assert sum(one.allowed for one in done) == 400
        minute, day, session = (await charge(limiter, *quotas)).standings
        assert (minute.remaining, day.remaining, session.remaining) == (0, 600, 600)

    async def test_the_rate_under_overload(
        self, limiter: RateLimiter, redis_url: str, redis_client: Client
    ) -> None:
        """Two pods that send many times too much get the burst and the rate, to the last one."""
        quota, rate = Quota("minute", 100, 5), 100 / 5
        tried = allowed = 0
        ends = time.monotonic() + 3

        async def flood(limiter: RateLimiter) -> None:
            nonlocal tried, allowed
            while time.monotonic() < ends:
                charged = await charge(limiter, quota)
                tried, allowed = tried + 1, allowed + charged.allowed

        began = time_us(redis_client)
        allowed += (await charge(limiter, quota)).allowed
        has_begun = time_us(redis_client)
        async with running(open_store(parse_redis_url(redis_url), "another", timeout_s=30)) as store:
            await asyncio.gather(
                *[flood(pod) for pod in (limiter, RateLimiter(store, KEYS)) for _ in range(4)]
            )
        ending = time_us(redis_client)
        allowed += await left(limiter, quota)
        ended = time_us(redis_client)

        assert tried > 20 * allowed
        assert allowed <= 100 + (ended - began) / 1e6 * rate
        assert allowed > 100 + (ending - has_begun) / 1e6 * rate - 1

    async def test_the_wait_by_redis_own_clock(self, limiter: RateLimiter, redis_client: Client) -> None:
        """It ends when it was said to, and the next one is allowed."""
        quota = Quota("minute", 100, A_DAY)
        interval_us = A_DAY * 10**6 // 100
        began = time_us(redis_client)
        await spend(limiter, 100, quota)
        ended = time_us(redis_client)
        assert began <= full_at_us(redis_client, MINUTE) - 100 * interval_us <= ended

        free_at = full_at_us(redis_client, MINUTE) - 99 * interval_us
        before = time_us(redis_client)
        refused = await charge(limiter, quota)
        after = time_us(redis_client)
        assert free_at - after <= micros(refused.retry_after_s) <= free_at - before

        put_off(redis_client, MINUTE, -micros(refused.retry_after_s))
        assert (await charge(limiter, quota)).allowed
        assert not (await charge(limiter, quota)).allowed


class TestAllOrNone:
    @pytest.mark.parametrize("tight", BUCKETS)
    async def test_a_refusal_charges_nothing(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, tight: str
    ) -> None:
        """Whichever quota refuses, the others keep what they have, however often it is tried."""
        quotas = [Quota(name, 3 if name == tight else 10, WINDOWS_S[name]) for name in BUCKETS]
        await spend(limiter, 3, *quotas)
        before = {key: redis_client.get(key) for key in BUCKETS.values()}
        for _ in range(20):
            refused = await charge(limiter, *quotas)
            assert not refused.allowed
            assert refused.violated == (tight,)
            assert refused.retry_after_s == WINDOWS_S[tight] / 3
            of = {standing.name: standing.remaining for standing in refused.standings}
            assert of == {"minute": 7, "day": 7, "session": 7} | {tight: 0}
        assert {key: redis_client.get(key) for key in BUCKETS.values()} == before

    @pytest.mark.parametrize("order", [("minute", "session"), ("session", "minute")])
    async def test_the_wait_is_that_of_the_slowest(
        self, limiter: RateLimiter, clock: Clock, order: tuple[str, str]
    ) -> None:
        """With two quotas used up, the next is allowed when both allow it; one that is not does not count."""
        both = [Quota(name, 2, WINDOWS_S[name]) for name in order]
        await spend(limiter, 2, *both)
        refused = await charge(limiter, *both, Quota("day", 5, A_DAY))
        assert refused.violated == order
        assert refused.retry_after_s == 1_800
        clock.move(30 * 10**6)
        refused = await charge(limiter, *both)
        assert refused.violated == ("session",)
        assert refused.retry_after_s == 1_770
        clock.move(1_770 * 10**6)
        assert (await charge(limiter, *both)).allowed

    async def test_an_allowed_one_is_told_as_such(self, limiter: RateLimiter, clock: Clock) -> None:
        """Also the last one: what it used up refuses the next, not this."""
        assert await charge(limiter, Quota("minute", 1, 60), Quota("day", 4, A_DAY)) == (
            True, 0.0, (), (("minute", 1, 60, 0, 60.0), ("day", 4, A_DAY, 3, 21_600.0)), "",
        )  # fmt: skip

    async def test_what_remains_and_until_when(self, limiter: RateLimiter, clock: Clock) -> None:
        """It comes back one by one, each when its time is full; at `reset_s` all of it is there."""
        quota = Quota("minute", 10, 60)
        await spend(limiter, 3, quota)
        assert await look(limiter, quota) == (7, 18.0)
        clock.move(5_999_999)
        assert await look(limiter, quota) == (7, 12.000001)
        clock.move(1)
        assert await look(limiter, quota) == (8, 12.0)
        clock.move(11_999_999)
        assert await look(limiter, quota) == (9, 0.000001)
        clock.move(1)
        assert await look(limiter, quota) == (10, 0.0)
        clock.move(1_000_000)
        assert await look(limiter, quota) == (10, 0.0)

    async def test_the_end_of_an_interval_of_no_whole_microseconds(
        self, limiter: RateLimiter, clock: Clock
    ) -> None:
        """What is told is the first whole one at which the bucket is full."""
        quota = Quota("minute", 7, 60)
        assert (await charge(limiter, quota)).standings[0].reset_s == 8.571429
        clock.move(8_571_428)
        assert await look(limiter, quota) == (6, 0.000001)
        clock.move(1)
        assert await look(limiter, quota) == (7, 0.0)

    async def test_what_a_busy_session_does(self, limiter: RateLimiter, redis_client: Client) -> None:
        """A tenant's own policy is told with each charge, allowed or not; it is none of the quotas."""
        quota = Quota("minute", 1, 60)
        redis_client.hset(
            KEYS.tenant_limits("acme"), mapping={"busy_policy": "enqueue", "sends_per_minute": 2}
        )
        told = [await charge(limiter, quota) for _ in range(3)]
        assert [(one.allowed, one.busy_policy) for one in told] == [
            (True, "enqueue"), (True, "enqueue"), (False, "enqueue")
        ]  # fmt: skip
        await limiter.refund("acme", "s-1", [quota])
        assert (await charge(limiter, quota)).allowed
        assert (await charge(limiter, quota, tenant="other")).busy_policy == ""
        redis_client.hset(KEYS.tenant_limits("acme"), "busy_policy", b"\xff")
        assert (await charge(limiter, quota)).busy_policy == "\ufffd"


class TestRefund:
    async def test_one_is_given_back_to_each(self, limiter: RateLimiter, clock: Clock) -> None:
        """To all quotas of the send, and the next one is allowed at once."""
        quotas = [Quota(name, 4, WINDOWS_S[name]) for name in BUCKETS]
        await spend(limiter, 4, *quotas)
        await limiter.refund("acme", "s-1", quotas)
        allowed, refused = await charge(limiter, *quotas), await charge(limiter, *quotas)
        assert (allowed.allowed, refused.allowed) == (True, False)
        assert refused.violated == tuple(BUCKETS)

    async def test_never_beyond_full(self, limiter: RateLimiter, clock: Clock, redis_client: Client) -> None:
        """A refund too many gives nobody more than the quota, and leaves no key."""
        quota = Quota("minute", 3, 60)
        await spend(limiter, 2, quota)
        clock.move(30 * 10**6)  # half of one is left to come back
        for _ in range(3):
            await limiter.refund("acme", "s-1", [quota])
            assert not redis_client.exists(MINUTE)
        assert await left(limiter, quota) == 3

    async def test_of_part_of_an_interval(self, limiter: RateLimiter, clock: Clock) -> None:
        """What time has brought back meanwhile stays."""
        quota = Quota("minute", 3, 60)
        await spend(limiter, 3, quota)
        clock.move(5 * 10**6)
        await limiter.refund("acme", "s-1", [quota])
        refused = [await charge(limiter, quota) for _ in range(2)][1]
        assert refused.retry_after_s == 15

    async def test_unlimited(self, limiter: RateLimiter, clock: Clock, redis_client: Client) -> None:
        """There is nothing to give back, and what a limit remembered before stays."""
        await spend(limiter, 2, Quota("minute", 3, 60))
        before = redis_client.get(MINUTE)
        await limiter.refund("acme", "s-1", [Quota("minute", 0, 60), Quota("day", 0, A_DAY)])
        assert redis_client.get(MINUTE) == before
        assert not redis_client.exists(BUCKETS["day"])


class TestOverrides:
    @pytest.mark.parametrize("name", BUCKETS)
    async def test_in_force_with_the_next_send(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, name: str
    ) -> None:
        """Set, changed and taken away; the other quotas are as they were."""
        quotas = [Quota(other, 20, WINDOWS_S[other]) for other in BUCKETS]
        for override, in_force in (("4", 4), ("40", 40), ("007", 7), (None, 20)):
            redis_client.delete(LIMITS, *BUCKETS.values())
            if override is not None:
                redis_client.hset(LIMITS, OVERRIDES[name], override)
            charged = await charge(limiter, *quotas)
            assert {one.name: (one.most, one.remaining) for one in charged.standings} == dict.fromkeys(
                BUCKETS, (20, 19)
            ) | {name: (in_force, in_force - 1)}

    def test_the_fields(self) -> None:
        """An operator sets them by name."""
        assert OVERRIDES == {
            "minute": "sends_per_minute",
            "day": "sends_per_day",
            "session": "sends_per_session_hour",
        }

    async def test_of_an_unlimited_tier(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client
    ) -> None:
        """A tenant can have a limit where its tier has none, and none where it has one."""
        free, bound = Quota("minute", 0, 60), Quota("day", 2, A_DAY)
        redis_client.hset(LIMITS, mapping={"sends_per_minute": 5, "sends_per_day": 0})
        await spend(limiter, 5, free, bound)
        assert (await charge(limiter, free, bound)).violated == ("minute",)
        assert not redis_client.exists(BUCKETS["day"])
        redis_client.hset(LIMITS, "sends_per_minute", "00")
        charged = await charge(limiter, free, bound)
        assert (charged.allowed, charged.standings) == (True, ())

    @pytest.mark.parametrize(
        "garbage", [b"", b" 5", b"5 ", b"5\n", b"5\0", b"+5", b"-1", b"5.0", b"1e3", b"0x10", b"x", b"\xff"]
    )  # fmt: skip
    async def test_garbage(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, garbage: bytes
    ) -> None:
        """What is not a whole number is as if it were not there."""
        redis_client.hset(LIMITS, "sends_per_minute", garbage)
        assert (await charge(limiter, Quota("minute", 2, 60))).standings == (("minute", 2, 60, 1, 30.0),)
        assert (await charge(limiter, Quota("day", 0, A_DAY))).standings == ()

    @pytest.mark.parametrize("digits", [16, 30, 400])
    async def test_a_monster(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, digits: int
    ) -> None:
        """It is a whole number, and there is no harm in it."""
        redis_client.hset(LIMITS, "sends_per_minute", "9" * digits)
        charged = await charge(limiter, Quota("minute", 2, 60))
        assert charged.standings == (("minute", 60_000_000, 60, 59_999_999, 1e-6),)
        await limiter.refund("acme", "s-1", [Quota("minute", 2, 60)])
        assert not redis_client.exists(MINUTE)

    @pytest.mark.parametrize(
        ("used", "override", "stays"),
        [(5, 100, 50), (5, 4, 2), (5, 3, 1), (9, 3, 0), (1, 1, 0), (0, 1, 1), (10, 100, 0), (10, 3, 0)],
    )
    async def test_the_share_that_is_used_stays(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, used: int, override: int, stays: int
    ) -> None:
        """Of ten, so many were used when the limit changed: at once it is as if the same share of it were."""
        quota = Quota("minute", 10, 60)
        await spend(limiter, used, quota)
        redis_client.hset(LIMITS, "sends_per_minute", override)
        assert await look(limiter, quota) == (stays, used * 6.0)
        assert await left(limiter, quota) == stays
        refused = await charge(limiter, quota)
        assert 0 < refused.retry_after_s <= 60 / override
        clock.move(micros(refused.retry_after_s))
        assert await left(limiter, quota) == 1
        clock.move(60 * 10**6)
        assert await left(limiter, quota) == override

    @pytest.mark.parametrize("first", [7, 999_983])
    @pytest.mark.parametrize("second", [1, 3, 7, 11, 999_983])
    async def test_nobody_waits_longer_than_an_interval(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, first: int, second: int
    ) -> None:
        """Limits by which a window cannot be divided have no rest that adds to the wait."""
        quota = Quota("minute", first, 60)
        redis_client.set(MINUTE, f"{clock.us + 10**9}.000")
        assert not (await charge(limiter, quota)).allowed
        redis_client.hset(LIMITS, "sends_per_minute", second)
        refused = await charge(limiter, quota)
        assert micros(refused.retry_after_s) <= math.ceil(60 * 10**6 / second)
        assert refused.standings[0].reset_s <= 60

    async def test_a_shorter_window(self, limiter: RateLimiter, clock: Clock) -> None:
        """What was remembered by the longer one ends with the shorter."""
        await spend(limiter, 5, Quota("minute", 5, 3_600))
        quota = Quota("minute", 5, 60)
        refused = await charge(limiter, quota)
        assert (refused.retry_after_s, refused.standings[0].reset_s) == (12, 60)
        clock.move(12 * 10**6)
        assert await left(limiter, quota) == 1

    async def test_limits_that_are_no_hash(self, limiter: RateLimiter, redis_client: Client) -> None:
        """A mistake that is told, and nothing is charged by it."""
        redis_client.set(LIMITS, "5")
        with pytest.raises(RedisRefused, match="WRONGTYPE"):
            await charge(limiter, Quota("minute", 2, 60))
        assert redis_client.keys() == [LIMITS.encode()]


class TestWhose:
    async def test_sessions_have_their_own_and_share_the_tenants(
        self, limiter: RateLimiter, clock: Clock
    ) -> None:
        """Each session's quota is its own; the minute and the day are the tenant's."""
        quotas = [Quota("minute", 5, 60), Quota("session", 3, 3_600)]
        allowed = [(await charge(limiter, *quotas, session=session)).allowed for session in ["s-1"] * 4]
        assert allowed == [True, True, True, False]
        others = [await charge(limiter, *quotas, session="s-2") for _ in range(3)]
        assert [other.allowed for other in others] == [True, True, False]
        assert [other.standings[1].remaining for other in others] == [2, 1, 1]
        assert others[-1].violated == ("minute",)

    async def test_tenants_have_nothing_in_common(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client
    ) -> None:
        """Not quotas, not limits, not sessions of the same name."""
        quotas = [Quota(name, 2, WINDOWS_S[name]) for name in BUCKETS]
        await spend(limiter, 2, *quotas)
        redis_client.hset(LIMITS, mapping=dict.fromkeys(OVERRIDES.values(), 1))
        other = [await charge(limiter, *quotas, tenant="globex") for _ in range(3)]
        assert [one.allowed for one in other] == [True, True, False]
        assert [standing.most for standing in other[-1].standings] == [2, 2, 2]

    async def test_a_spread_tenant(self, store: Store, clock: Clock, redis_client: Client) -> None:
        """Its sessions have several callback lists, and together one minute."""
        keys = Settings(callback_lists="acme=4").keys()
        sessions = [f"s-{n}" for n in range(12)]
        assert len({keys.callbacks_of("acme", session) for session in sessions}) == 4
        redis_client.hset(LIMITS, "sends_per_minute", 10)
        quotas = [Quota("minute", 100, 60), Quota("session", 1, 3_600)]
        done = [await charge(RateLimiter(store, keys), *quotas, session=session) for session in sessions]
        assert [one.violated for one in done] == [()] * 10 + [("minute",)] * 2

    async def test_only_its_own_keys(self, limiter: RateLimiter, redis_client: Client) -> None:
        """One for each quota that is not full, none for an unlimited one."""
        await charge(limiter, Quota("minute", 0, 60), Quota("day", 0, A_DAY), Quota("session", 0, 3_600))
        assert redis_client.keys() == []
        await charge(limiter, Quota("minute", 0, 60), Quota("day", 9, A_DAY), Quota("session", 9, 3_600))
        assert set(redis_client.keys()) == {BUCKETS["day"].encode(), BUCKETS["session"].encode()}


class TestMemory:
    @pytest.mark.parametrize(("most", "window_s"), [(3, 60), (1_000, 7), (600_000, 60)])
    async def test_a_key_expires_when_its_bucket_is_full(
        self, limiter: RateLimiter, redis_client: Client, most: int, window_s: int
    ) -> None:
        """By the millisecond: neither does it forget a send too early, nor stay."""
        quota, other = Quota("minute", most, window_s), Quota("day", 2, A_DAY)
        for _ in range(2):
            with redis_client.pipeline() as reads:
                await charge(limiter, quota, other)
                for key in (MINUTE, BUCKETS["day"]):
                    reads.get(key).pexpiretime(key)
                minute, minute_ends_ms, day, day_ends_ms = reads.execute()
            assert day_ends_ms == math.ceil(Fraction(day.decode()) / 1000)
            if minute is not None:  # it may be full again already
                assert minute_ends_ms == math.ceil(Fraction(minute.decode()) / 1000)
        await limiter.refund("acme", "s-1", [other])
        assert redis_client.pexpiretime(BUCKETS["day"]) == math.ceil(
            full_at_us(redis_client, BUCKETS["day"]) / 1000
        )

    async def test_a_full_bucket_has_no_key(self, limiter: RateLimiter, redis_client: Client) -> None:
        """Redis forgets it by itself."""
        await spend(limiter, 60, Quota("minute", 100, 1))
        assert redis_client.exists(MINUTE)
        await eventually(lambda: not redis_client.exists(MINUTE))

    @pytest.mark.parametrize(
        "garbage",
        ["", "x", "inf", "-5.000", "1e30", f"{10**18}", f"{10**18} .000", f"{10**18}.0", "0x7ffff.000"],
    )  # fmt: skip
    async def test_garbage(
        self, limiter: RateLimiter, clock: Clock, redis_client: Client, garbage: str
    ) -> None:
        """What cannot be read counts as a full bucket, and is replaced."""
        redis_client.set(MINUTE, garbage)
        await spend(limiter, 3, Quota("minute", 3, 60))
        assert not (await charge(limiter, Quota("minute", 3, 60))).allowed

    async def test_another_type(self, limiter: RateLimiter, clock: Clock, redis_client: Client) -> None:
        """The same."""
        redis_client.rpush(MINUTE, "x")
        await spend(limiter, 3, Quota("minute", 3, 60))
        assert not (await charge(limiter, Quota("minute", 3, 60))).allowed

    async def test_a_redis_that_is_away(self, redis_url: str) -> None:
        """The caller is told; what it makes of it is its own."""
        limiter = RateLimiter(open_store(parse_redis_url(redis_url), "down", timeout_s=5), KEYS)
        with pytest.raises(RedisUnavailable):
            await charge(limiter, Quota("minute", 3, 60))
        with pytest.raises(RedisUnavailable):
            await limiter.refund("acme", "s-1", [Quota("minute", 3, 60)])


class TestClockPutBack:
    async def test_nobody_is_locked_out(self, limiter: RateLimiter, clock: Clock) -> None:
        """A bucket counts as empty then, and is refilled from then on, however far the clock went back."""
        quota = Quota("minute", 10, 60)
        await spend(limiter, 10, quota)
        clock.move(-3_600 * 10**6)
        refused = await charge(limiter, quota)
        assert (refused.retry_after_s, refused.standings[0].reset_s) == (6, 60)
        clock.move(6 * 10**6)
        assert await left(limiter, quota) == 1
        clock.move(60 * 10**6)
        assert await left(limiter, quota) == 10

    async def test_a_quota_that_does_not_refuse(self, limiter: RateLimiter, clock: Clock) -> None:
        """It too is brought back by a send that another refuses."""
        minute, day = Quota("minute", 10, 60), Quota("day", 1, A_DAY)
        await spend(limiter, 1, minute, day)
        clock.move(-3_600 * 10**6)
        assert await look(limiter, minute) == (0, 60)
        clock.move(12 * 10**6)
        assert await look(limiter, minute) == (2, 48)

    async def test_a_refund(self, limiter: RateLimiter, clock: Clock) -> None:
        """It is one of the quota, not one of what the clock made of it."""
        quota = Quota("minute", 10, 60)
        await spend(limiter, 3, quota)
        clock.move(-3_600 * 10**6)
        await limiter.refund("acme", "s-1", [quota])
        assert await left(limiter, quota) == 1

    async def test_by_redis_own_clock(self, limiter: RateLimiter, redis_client: Client) -> None:
        """The same with what the script really reads."""
        quota = Quota("minute", 3, 600)
        await spend(limiter, 3, quota)
        put_off(redis_client, MINUTE, 10**12)
        refused = await charge(limiter, quota)
        assert refused.retry_after_s == 200
        assert full_at_us(redis_client, MINUTE) <= time_us(redis_client) + 600 * 10**6
        assert 0 < redis_client.pttl(MINUTE) <= 600_001
        put_off(redis_client, MINUTE, -200 * 10**6)
        assert (await charge(limiter, quota)).allowed


class Model:
    """GCRA in fractions of seconds, of one tenant with one session."""

    def __init__(self) -> None:
        self.limits = {"minute": 3, "session": 8}
        self._full_at = dict.fromkeys(self.limits, Fraction(0))

    def change(self, now: Fraction, step: int) -> tuple[bool, float, list[Standing]]:
        """Charge (1) or refund (-1): whether it was allowed, the wait (s), and what then remains."""
        limited = [name for name in self.limits if self.limits[name]]
        ahead = {name: max(self._full_at[name] - now, Fraction(0)) for name in limited}
        waits = [self._clamp(name, now, ahead) + self._interval(name) - WINDOWS_S[name] for name in limited]
        wait = max([Fraction(0), *waits]) if step > 0 else Fraction(0)
        if wait == 0:
            for name in limited:
                before, ahead[name] = ahead[name], max(ahead[name] + step * self._interval(name), Fraction(0))
                if ahead[name] != before:
                    self._full_at[name] = now + ahead[name] if ahead[name] else Fraction(0)
        return wait == 0, ceiling(wait), [self._standing(name, ahead[name]) for name in limited]

    def _clamp(self, name: str, now: Fraction, ahead: dict[str, Fraction]) -> Fraction:
        if ahead[name] > WINDOWS_S[name]:
            ahead[name] = Fraction(WINDOWS_S[name])
            self._full_at[name] = now + ahead[name]
        return ahead[name]

    def _standing(self, name: str, ahead: Fraction) -> Standing:
        most = self.limits[name]
        remaining = math.floor(most - ahead / self._interval(name))
        return Standing(name, most, WINDOWS_S[name], remaining, ceiling(ahead))

    def _interval(self, name: str) -> Fraction:
        return Fraction(WINDOWS_S[name], self.limits[name])


def ceiling(seconds: Fraction) -> float:
    """Up to the next microsecond."""
    return math.ceil(seconds * 10**6) / 1e6


# Limits by which the windows are whole nanoseconds, so that model and script agree to the last digit.
steps = st.one_of(
    st.just(("charge", 1)),
    st.just(("charge", 1)),
    st.just(("refund", -1)),
    st.tuples(st.just("move"), st.integers(0, 90 * 10**6) | st.integers(0, 4_000 * 10**6)),
    st.tuples(st.just("move"), st.sampled_from([-(10**6), -(10**9), -(10**12)])),
    st.tuples(st.sampled_from(["minute", "session"]), st.sampled_from([0, 1, 2, 3, 5, 8, 10, 1_000])),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(steps, min_size=5, max_size=40))
async def test_as_the_model(
    limiter: RateLimiter, clock: Clock, redis_client: Client, history: list[tuple[str, int]]
) -> None:
    """Any mix of sends, refunds, pauses, changed limits and jumps of the clock goes by the textbook."""
    redis_client.delete(*BUCKETS.values(), LIMITS)
    clock.move(IN_2100_US - clock.us)
    model = Model()
    quotas = [Quota(name, most, WINDOWS_S[name]) for name, most in model.limits.items()]
    for what, value in history:
        if what == "move":
            clock.move(value)
        elif what in model.limits:
            redis_client.hset(LIMITS, OVERRIDES[what], value)
            model.limits[what] = value
        elif what == "refund":
            await limiter.refund("acme", "s-1", quotas)
            model.change(Fraction(clock.us, 10**6), value)
        else:
            charged = await charge(limiter, *quotas)
            expected = model.change(Fraction(clock.us, 10**6), value)
            assert (charged.allowed, charged.retry_after_s, list(charged.standings)) == expected


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    """Three primaries."""
    with ValkeyCluster(tmp_path_factory.mktemp("cluster"), replicas=0) as cluster:
        yield cluster


class TestCluster:
    async def test_each_tenants_quotas_are_on_one_node(self, cluster: ValkeyCluster) -> None:
        """Wherever that is, one script reaches its limits and all its quotas; of a spread tenant too."""
        keys = Settings(callback_lists="t-0=4,t-1=4").keys()
        tenants = [f"t-{n}" for n in range(12)]
        assert len({cluster.node_of(keys.tenant_limits(tenant)) for tenant in tenants}) == 3
        lists = {cluster.node_of(keys.callbacks_of("t-0", f"s-{n}")) for n in range(20)}
        assert len(lists) > 1
        quotas = [Quota("minute", 100, A_DAY), Quota("day", 200, A_DAY), Quota("session", 1, A_DAY)]
        for number, tenant in enumerate(tenants):
            limits = keys.tenant_limits(tenant)
            cluster.node_of(limits).ask("HSET", limits, "sends_per_minute", number)
        async with running(open_store(parse_redis_url(cluster.url), "under-test", timeout_s=30)) as store:
            limiter = RateLimiter(store, keys)
            for number, tenant in enumerate(tenants):
                sends = [charge(limiter, *quotas, tenant=tenant, session=f"s-{n}") for n in range(20)]
                done = await asyncio.gather(*sends)
                assert sum(one.allowed for one in done) == (number or 20)
                assert {one.violated for one in done} == ({(), ("minute",)} if number else {()})

    async def test_a_slot_that_moves_takes_them_along(self, cluster: ValkeyCluster) -> None:
        """What was charged before counts after."""
        source = cluster.node_of(LIMITS)
        target = next(node for node, _ in cluster.primaries() if node is not source)
        quotas = [Quota(name, 3, A_DAY) for name in BUCKETS]
        async with running(open_store(parse_redis_url(cluster.url), "under-test", timeout_s=30)) as store:
            limiter = RateLimiter(store, KEYS)
            await spend(limiter, 2, *quotas)
            slots = [cluster.slot_of(LIMITS)]
            await asyncio.to_thread(cluster.move_slots, slots, source, target, atomic=False)
            assert [(await charge(limiter, *quotas)).allowed for _ in range(2)] == [True, False]
        assert all(target.ask("EXISTS", key) for key in BUCKETS.values())

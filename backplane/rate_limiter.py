"""How much a tenant and a session may send: counted in Redis, so that all pods together keep to it exactly.

Each quota is a bucket that is refilled evenly: after a pause all of it may go at once, then one each
``window_s / most``. A bucket remembers only when it will be full; so when its quota changes, the share that
is used up stays: where 5 of 10 were left, 50 of 100 are.

An operator changes a tenant's quotas in the hash `Keys.tenant_limits`; pods go by it from the next send on.

Sources: ITU-T I.371 (the generic cell rate algorithm); Brandur Leach, "Rate limiting, cells, and GCRA", 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from backplane.keys import Keys
from backplane.scripts import RATE
from backplane.store import Store
from backplane.wire import Argument

OVERRIDES = {
    "minute": "sends_per_minute",
    "day": "sends_per_day",
    "session": "sends_per_session_hour",
}
"""By quota, the field of a tenant's limits that overrides it: a whole number, 0 for unlimited."""


class Quota(NamedTuple):
    """A limit as the tenant's tier has it.

    Attributes:
        name: one of `OVERRIDES`; ``session`` is each session's own, the others are the tenant's.
        most: at once, and in each window; 0: unlimited.
        window_s: in which an empty bucket is full again, 1 to 8,640,000 (100 days).
    """

    name: str
    most: int
    window_s: int


class Standing(NamedTuple):
    """A quota as it stands.

    Attributes:
        most: that is in force: the tier's, or the tenant's own.
        remaining: that would be allowed now.
        reset_s: time until `remaining` is `most`.
    """

    name: str
    most: int
    window_s: int
    remaining: int
    reset_s: float


class Charged(NamedTuple):
    """What came of a charge.

    Attributes:
        retry_after_s: time until all violated quotas will allow one; 0 if it was allowed.
        violated: names of the quotas that are used up, if it was not.
        standings: after it, without unlimited quotas.
        busy_policy: that the tenant has instead of `Settings.busy_policy`; empty: none. It stands beside the
            quotas, so a send asks for both at once.
    """

    allowed: bool
    retry_after_s: float
    violated: tuple[str, ...]
    standings: tuple[Standing, ...]
    busy_policy: str = ""


class RateLimiter:
    """Charges sends to quotas."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def charge(self, tenant_id: str, session_id: str, quotas: Sequence[Quota]) -> Charged:
        """Charge one send to all quotas, or to none if one of them is used up.

        Args:
            quotas: at least one, each name once.

        Raises:
            RedisUnavailable: Redis did not answer; whether the send was charged is unknown.
        """
        wait_us, *numbers, policy = await self._run(1, tenant_id, session_id, quotas)
        rows = zip(quotas, numbers[0::3], numbers[1::3], numbers[2::3], strict=True)
        standings = tuple(
            Standing(quota.name, most, quota.window_s, remaining, full_in_us / 1e6)
            for quota, most, remaining, full_in_us in rows
            if most
        )
        used_up = tuple(standing.name for standing in standings if standing.remaining == 0)
        return Charged(
            wait_us == 0,
            wait_us / 1e6,
            used_up if wait_us else (),
            standings,
            policy.decode("utf-8", "replace"),
        )

    async def charge_address(self, address: str, most: int, window_s: int) -> float:
        """Charge one handshake to a client address.

        Returns:
            The seconds until one will be allowed; 0.0 if this one was.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys = [self._keys.address_limits(address), self._keys.address_rate(address)]
        wait_us, *_ = await self._store.script(RATE, keys, [1, "handshakes", most, window_s])
        return float(wait_us) / 1e6

    async def refund(self, tenant_id: str, session_id: str, quotas: Sequence[Quota]) -> None:
        """Give one back to all quotas, because a send that was charged did not happen; never beyond full.

        Raises:
            RedisUnavailable: Redis did not answer; whether it was given back is unknown.
        """
        await self._run(-1, tenant_id, session_id, quotas)

    async def _run(self, step: int, tenant_id: str, session_id: str, quotas: Sequence[Quota]) -> list[Any]:
        keys = [self._keys.tenant_limits(tenant_id)]
        args: list[Argument] = [step, *[OVERRIDES[quota.name] for quota in quotas]]
        for quota in quotas:
            keys.append(self._key(quota, tenant_id, session_id))
            args += (quota.most, quota.window_s)
        reply: list[Any] = await self._store.script(RATE, keys, args)
        return reply

    def _key(self, quota: Quota, tenant_id: str, session_id: str) -> str:
        if quota.name == "session":
            return self._keys.session_rate(tenant_id, session_id)
        return self._keys.rate(tenant_id, quota.name)

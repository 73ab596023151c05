"""Which server is the primary, as Sentinel sees it.

All sentinels are asked at once, and the one with the highest configuration epoch is believed: a sentinel that
was cut off from the others still names the primary of before.
"""

from __future__ import annotations

import asyncio

from backplane.errors import RedisUnavailable
from backplane.link import hello, open_wire
from backplane.redis_client import RedisTarget
from backplane.slots import Address


class Sentinels:
    """The sentinels of one service.

    Args:
        target: of kind ``sentinel``.
        name: shown by the sentinels' ``CLIENT LIST``.
        patience_s: for how long a sentinel that does not answer is waited for.
    """

    def __init__(self, target: RedisTarget, name: str, patience_s: float = 1.0) -> None:
        self._target = target
        self._name = name
        self._patience_s = patience_s

    async def primary(self) -> Address:
        """Where the primary is now.

        Raises:
            RedisUnavailable: no sentinel knows.
        """
        answers = await asyncio.gather(*map(self._ask, self._target.seeds), return_exceptions=True)
        known = [answer for answer in answers if isinstance(answer, tuple)]
        if not known:
            reasons = "; ".join(
                f"{seed}: {error or type(error).__name__}"
                for seed, error in zip(self._target.seeds, answers, strict=True)
            )
            raise RedisUnavailable(f"no sentinel names a primary for {self._target.service!r}: {reasons}")
        return max(known, key=lambda answer: answer[0])[1]

    async def _ask(self, seed: Address) -> tuple[int, Address]:
        target = self._target
        login = hello(target.sentinel_username, target.sentinel_password, self._name)
        async with asyncio.timeout(self._patience_s):
            wire = await open_wire(target, seed)
            try:
                # The sentinel that leads a failover names the new primary by the second a while before it
                # does so by the first, which alone tells the epoch.
                _, told, address = await asyncio.gather(
                    wire.call(login),
                    wire.call(("SENTINEL", "MASTER", target.service)),
                    wire.call(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.service)),
                )
            finally:
                wire.abort("answered")
        facts = {key.decode(): value.decode() for key, value in told.items()}
        return int(facts["config-epoch"]), Address(address[0].decode(), int(address[1]))

"""Keys from an identity provider's JWKS address: kept, renewed, and never waited for while they do.

A token may name a key that the provider has only just begun to use. Then the set is fetched again, at most
once in `COOLDOWN_S` whatever many tokens name, and who brought such a token waits for that fetch: so a
rotated key refuses nobody, and made-up names cost the provider little. A provider that is down changes
nothing for the keys that are known.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Callable

from backplane.log import Logger
from gateway.fetch import Fetcher, FetchError
from gateway.signing_keys import Key, jwks_keys

COOLDOWN_S = 2.0
_UNKNOWN_FOR_S = 5.0  # a key may be used a moment before it is published
_UNKNOWN_MOST = 1_000
_RETRY_S = 2.0


class Jwks:
    """One provider's keys.

    Args:
        fetcher: of the set.
        refresh_s: time between two fetches.
        on_keys: told when there are other keys than before.
        log: for operators.

    Attributes:
        keys: the newest set; None until one was had.
        problem: why the last fetch failed; empty if it did not.
    """

    def __init__(self, fetcher: Fetcher, refresh_s: float, on_keys: Callable[[], None], log: Logger) -> None:
        self._fetcher = fetcher
        self._refresh_s = refresh_s
        self._on_keys = on_keys
        self._log = log
        self._began = float("-inf")
        self._had = float("-inf")  # when the fetch began whose keys are in use
        self._fetching: asyncio.Task[bool] | None = None
        self._tasks: set[asyncio.Task[bool]] = set()
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self.keys: list[Key] | None = None
        self.problem = "not fetched yet"

    async def run(self) -> None:
        """Fetch the set again and again until cancelled."""
        try:
            while True:
                fetched = await asyncio.shield(self._fetch())
                await asyncio.sleep(self._refresh_s * random.uniform(0.8, 1.0) if fetched else _RETRY_S)
        finally:
            await self._fetcher.close()

    async def look_for(self, kid: str) -> bool:
        """Fetch the set for the sake of a key that is not known.

        Returns:
            Whether the provider answered: if so, a key that is still not known does not exist.
        """
        if time.monotonic() - self._unknown.get(kid, float("-inf")) < _UNKNOWN_FOR_S:
            return True
        fetched = await asyncio.shield(self._fetch())
        if fetched and kid not in {key.kid for key in self.keys or ()}:
            self._unknown[kid] = time.monotonic()
            self._unknown.move_to_end(kid)
            if len(self._unknown) > _UNKNOWN_MOST:
                self._unknown.popitem(last=False)
        return fetched

    def _fetch(self) -> asyncio.Task[bool]:
        """The next fetch, shared by all who wait for one that begins after they have come."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_when_due())
            self._tasks.add(self._fetching)
            self._fetching.add_done_callback(self._tasks.discard)
        return self._fetching

    async def _fetch_when_due(self) -> bool:
        # Shared only until it begins: who comes later may know of a newer key.
        await asyncio.sleep(max(0.0, self._began + COOLDOWN_S - time.monotonic()))
        began = self._began = time.monotonic()
        self._fetching = None
        try:
            answer = await self._fetcher.ask()
            if answer.status != 200:
                raise FetchError(f"HTTP status {answer.status}")
            keys = jwks_keys(answer.document)
        except (FetchError, ValueError) as error:
            self._fail(str(error))
            return False
        except Exception as error:  # noqa: BLE001  # somebody else's document must not end a pod
            self._log.exception("jwks_not_understood")
            self._fail(type(error).__name__)
            return False
        if began < self._had:
            return True  # a fetch that began later has been answered before
        self._had = began
        if self.problem:
            self._log.info("jwks_fetched", keys=len(keys))
        self.problem = ""
        known, self.keys = self.keys, keys
        if known != keys:
            self._unknown.clear()
            self._on_keys()
        return True

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            self._log.warning("jwks_not_fetched", reason=problem, keys_kept=len(self.keys or ()))
        self.problem = problem

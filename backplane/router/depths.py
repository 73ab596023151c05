"""How much waits in Redis, for operators: actions that no agent takes, dead letters that nobody sees to.

One router reads it for all (see `backplane.router.leases`), so the numbers stand once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from backplane.errors import RedisUnavailable
from backplane.keys import TIERS, Keys
from backplane.store import Store

_EVERY_S = 5.0
_LISTS_AT_ONCE = 500
_PLAUSIBLE_S = 30 * 86_400.0  # other producers may push to the queue, with any time
_DUTY = b"depths"


class _QueueMetadata(msgspec.Struct):
    enqueued_at: datetime


class _Action(msgspec.Struct):
    queue_metadata: _QueueMetadata


_decode = msgspec.json.Decoder(_Action).decode


class Depths:
    """Looks now and then, while it is this router's duty.

    Args:
        mine: whether something is this router's duty.

    Attributes:
        actions: that wait, by tier.
        actions_oldest_s: for how long the next one has been waiting, by tier.
        dead_letters: that are kept; None if this router does not know.
    """

    def __init__(self, store: Store, keys: Keys, mine: Callable[[bytes], bool]) -> None:
        self._store = store
        self._keys = keys
        self._mine = mine
        self.actions: dict[str, int] = {}
        self.actions_oldest_s: dict[str, float] = {}
        self.dead_letters: int | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                if self._mine(_DUTY):
                    await self.look()
                else:
                    self._forget()
            except RedisUnavailable:
                self._forget()  # an old number would look like a new one
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Look once.

        Raises:
            RedisUnavailable: Redis did not answer, or a key is of a wrong type.
        """
        queues = {tier: self._keys.actions(tier) for tier in TIERS}
        states = await asyncio.gather(*[self._queue(queue) for queue in queues.values()])
        self.actions = {tier: length for tier, (length, _) in zip(queues, states, strict=True)}
        self.actions_oldest_s = {tier: age_s for tier, (_, age_s) in zip(queues, states, strict=True)}
        members = await self._store.call("SMEMBERS", self._keys.dead_letter_lists)
        lists = [name.decode("utf-8", "replace") for name in members]  # others may have written to it
        letters = 0
        for start in range(0, len(lists), _LISTS_AT_ONCE):
            streams = map(self._keys.dead_letters, lists[start : start + _LISTS_AT_ONCE])
            letters += sum(await asyncio.gather(*[self._store.call("XLEN", stream) for stream in streams]))
        self.dead_letters = letters

    async def _queue(self, queue: str) -> tuple[int, float]:
        length, oldest = await asyncio.gather(
            self._store.call("LLEN", queue), self._store.call("LINDEX", queue, -1)
        )
        return int(length), 0.0 if oldest is None else age_s(oldest, time.time())

    def _forget(self) -> None:
        self.actions, self.actions_oldest_s, self.dead_letters = {}, {}, None


def age_s(action: bytes, now: float) -> float:
    """How long ago an action was pushed, by its own word; 0 if it does not say, or cannot be right.

    Args:
        now: seconds since 1970.
    """
    try:
        at = _decode(action).queue_metadata.enqueued_at
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0.0
    age = now - (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    return age if 0.0 < age < _PLAUSIBLE_S else 0.0

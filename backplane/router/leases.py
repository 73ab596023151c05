"""Which router serves which callback list.

Every router renews a lease and is told who else has one. From that each works out by itself who serves a
list (rendezvous hashing: the router whose hash with the list is highest), so that a router that comes or goes
moves only its own share. Two routers whose views differ for a moment may both serve a list; the list's fence
lets only one of them move each callback, so leases decide about work and never about what is right.

Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from hashlib import blake2b

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.scripts import LEASE
from backplane.store import Store

_RENEWALS_A_LEASE = 5


def owner(routers: Iterable[str], name: bytes) -> str:
    """The one of ``routers``, of which there is one at least, that serves a list or has another duty."""
    return max(routers, key=lambda router: blake2b(name, digest_size=8, key=router.encode()[:64]).digest())


class Leases:
    """This router's lease, and its view of the others.

    Args:
        store: through which it is renewed.
        router_id: at most 64 bytes.
        lease_s: a router that does not renew for so long has lost its lists to the others.
        on_view: called when routers have come or gone.

    Attributes:
        routers: those that have a lease, this one included.
        refused: why Redis does not give this one its lease, if it says so.
    """

    def __init__(
        self, store: Store, keys: Keys, router_id: str, lease_s: float, on_view: Callable[[], None]
    ) -> None:
        self._store = store
        self._key = keys.leases
        self._router_id = router_id
        self._lease_s = lease_s
        self._on_view = on_view
        self.routers = frozenset({router_id})
        self.refused = ""
        self._left = False

    def mine(self, name: bytes) -> bool:
        """Whether a list is this router's."""
        return len(self.routers) == 1 or owner(self.routers, name) == self._router_id

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            try:
                await self.renew()
                self.refused = ""
            except RedisRefused as error:
                self.refused = str(error)
            except RedisUnavailable:
                pass  # others may take over meanwhile; the next renewal tells
            await asyncio.sleep(self._lease_s / _RENEWALS_A_LEASE)

    async def renew(self) -> None:
        """Renew once, and learn who is there; nothing after `leave`.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        if self._left:
            return
        told = await self._store.script(LEASE, [self._key], [self._router_id, int(self._lease_s * 1000)])
        routers = frozenset(name.decode() for name in told) | {self._router_id}
        if routers != self.routers:
            self.routers = routers
            self._on_view()

    async def leave(self) -> None:
        """Give the lease back: the others take over at their next renewal.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        self._left = True
        await self._store.call("ZREM", self._key, self._router_id)

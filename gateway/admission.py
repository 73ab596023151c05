"""Whether there is room for one more socket: on the pod, and for its address, tenant, session and user.

What costs nothing comes first, and Redis is asked only for clients whose token was found right (the counts)
or whose address is within what this pod alone would allow it (the handshakes).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from backplane.connection_counts import ConnectionCounts, Most, Place
from backplane.errors import RedisUnavailable
from backplane.rate_limiter import RateLimiter
from backplane.settings import Settings
from gateway.addresses import Proxies
from gateway.errors import ClientError
from gateway.identity import Identity
from gateway.listener import Listener, State
from gateway.pace import take

_ADDRESSES = 50_000  # whose handshakes a pod remembers; the longest silent go first
_RETRY_S = 5.0
_WINDOW_S = 60


class Admission:
    """Lets sockets in, and counts them out.

    Args:
        clock: seconds, for buckets in this process.

    Attributes:
        most: sockets that the pod may hold.
    """

    def __init__(
        self,
        settings: Settings,
        counts: ConnectionCounts,
        limiter: RateLimiter,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._counts = counts
        self._limiter = limiter
        self._clock = clock
        self._proxies = Proxies(settings.trusted_proxies)
        self._knocks: OrderedDict[str, float] = OrderedDict()
        self._by_address: dict[str, int] = {}
        self.most = settings.connections_max
        self._entering: set[Listener] = set()
        self._sockets = 0

    # Before anything is known but the address.

    async def knock(self, connection: Listener, forwarded: str | None) -> None:
        """Take a socket in as far as the pod and its address are concerned; `gone` counts it out.

        Args:
            forwarded: the request's ``X-Forwarded-For``.

        Raises:
            ClientError: 503 the pod is full, 429 the address has too many sockets or opens them too fast.
        """
        if self._sockets >= self.most:
            detail = f"this pod holds {self._sockets} sockets, as many as it may; connect again"
            raise ClientError(503, "pod_full", detail, retry_after_s=1, limit="pod")
        address = self._proxies.client(connection.peer, forwarded)
        if address is not None:
            self._pace(address)
            self._check_address(address)
        self._sockets += 1
        connection.admitted = True
        if address is not None:
            connection.address = address
            self._by_address[address] = self._by_address.get(address, 0) + 1
            await self._pace_everywhere(address)

    def _pace(self, address: str) -> None:
        most = self._settings.handshakes_per_address
        if not most:
            return
        full_at = self._knocks.pop(address, 0.0)
        self._knocks[address], wait_s = take(full_at, self._clock(), most / _WINDOW_S, most)
        if len(self._knocks) > _ADDRESSES:
            self._knocks.popitem(last=False)
        if wait_s:
            raise _too_fast(most, wait_s)

    async def _pace_everywhere(self, address: str) -> None:
        most = self._settings.handshakes_per_address
        if not most:
            return
        try:
            wait_s = await self._limiter.charge_address(address, most, _WINDOW_S)
        except RedisUnavailable:
            if self._settings.rate_limit_failure == "open":
                return
            raise
        if wait_s:
            raise _too_fast(most, wait_s)

    def _check_address(self, address: str) -> None:
        most = self._settings.connections_per_address
        if most and self._by_address.get(address, 0) >= most:
            raise _too_many("address", most)

    # Once it is known who it is.

    async def join(self, connection: Listener, identity: Identity) -> None:
        """Count a socket among those of its tenant, session and user, on all pods; `gone` counts it out.

        Args:
            connection: knows its identity already.

        Raises:
            ClientError: 429 one of them has too many.
            RedisUnavailable: Redis did not answer.
        """
        settings, tier = self._settings, identity.tenant_tier
        most = Most(
            settings.for_tier("connections_per_tenant", tier),
            settings.connections_per_session,
            settings.connections_per_user,
        )
        full = await self._counts.join(place_of(identity), most)
        if full is not None:
            raise _too_many(full.what, full.most)
        connection.counted = True
        self._entering.add(connection)
        if connection.state == State.CLOSED:  # it has gone meanwhile
            self.leave(connection)

    def entered(self, connection: Listener) -> None:
        """A socket that has joined is among the open ones now."""
        self._entering.discard(connection)

    async def rewrite(self, connections: Iterable[Listener]) -> None:
        """Set this pod's counts in Redis right.

        Args:
            connections: the open ones.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self._counts.rewrite(
            place_of(one.identity)
            for one in (*connections, *self._entering)
            if one.counted and one.identity is not None
        )

    # Afterwards.

    def gone(self, connection: Listener) -> None:
        """Count a socket out, as far as it was counted."""
        if connection.admitted:
            connection.admitted = False
            self._sockets -= 1
        address, connection.address = connection.address, None
        if address is not None:
            left = self._by_address.get(address, 0) - 1
            if left > 0:
                self._by_address[address] = left
            else:
                self._by_address.pop(address, None)
        self.leave(connection)

    def leave(self, connection: Listener) -> None:
        """Count a socket out in Redis, if it was counted there."""
        self._entering.discard(connection)
        if connection.counted and connection.identity is not None:
            connection.counted = False
            self._counts.leave(place_of(connection.identity))


def place_of(identity: Identity) -> Place:
    """Where a socket counts; a user only if its token says so."""
    return Place(identity.tenant_id, identity.session_id, identity.grant.user_id)


def _too_fast(most: int, wait_s: float) -> ClientError:
    detail = f"this address opens more than {most} sockets in a minute"
    return ClientError(429, "rate_limited", detail, retry_after_s=wait_s, limit="handshakes")


def _too_many(what: str, most: int) -> ClientError:
    detail = f"the {what} has {most} open sockets already; close one, or connect again later"
    return ClientError(429, "too_many_connections", detail, retry_after_s=_RETRY_S, limit=what)

"""What is decided elsewhere and has to be carried out on every pod: revoked tokens, connections to close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from backplane.keys import Keys
from backplane.log import Logger
from backplane.revocations import Revocation, Revocations
from backplane.store import Store
from gateway import control
from gateway.control import CloseOrder
from gateway.errors import ClientError, redis_unavailable
from gateway.identity import Grant, Identity
from gateway.open_connections import OpenConnections

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Enforcement:
    """One pod's.

    Args:
        sockets: those that may have to be closed; known only after this, as they need `revoked`.
        spawn: runs a coroutine beside.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        sockets: Callable[[], OpenConnections],
        spawn: Spawn,
        log: Logger,
    ) -> None:
        self._sockets = sockets
        self._spawn = spawn
        self._log = log
        self.revocations = Revocations(store, keys, self._on_revoked, log)
        self._ending: asyncio.Task[None] | None = None
        self._again = False
        self._control = keys.control_channel
        self._changed = keys.revocation_channel
        self.channels = (self._control, self._changed)

    def heard(self, channel: bytes, payload: bytes) -> bool:
        """Deal with what was published, if it was on one of `channels`."""
        name = channel.decode()
        if name == self._changed:
            self.revocations.look()
            return True
        if name != self._control:
            return False
        order = control.decode(payload)
        if order is None:
            self._log.warning("foreign_publish", channel=name)
        else:
            self._spawn(self._close(order))
        return True

    def revoked(self, grant: Grant) -> bool:
        """Whether a token counts no more.

        Raises:
            ClientError: 503, the revocations could not be read yet.
        """
        if not self.revocations.loaded:
            raise redis_unavailable()
        return self._is_revoked(grant)

    def _is_revoked(self, grant: Grant) -> bool:
        if grant.tenant_id is None:
            return False
        return self.revocations.hits(grant.tenant_id, grant.user_id, grant.token_id, grant.issued_at)

    def problem(self) -> str | None:
        """Why nobody can be let in; None if that can be told."""
        return None if self.revocations.loaded else f"revocations: {self.revocations.problem}"

    def _on_revoked(self, _new: list[Revocation]) -> None:
        self._again = True
        if self._ending is None or self._ending.done():
            self._ending = self._spawn(self._end_revoked())

    async def _end_revoked(self) -> None:
        """One walk over all sockets at a time, however many revocations come."""
        while self._again:
            self._again = False
            await self._end_once()

    async def _end_once(self) -> None:
        def is_revoked(identity: Identity, _connection_id: str) -> bool:
            return self._is_revoked(identity.grant)

        error = ClientError(401, "token_revoked", "the token was revoked; get a new one")
        ended = await self._sockets().end_where(is_revoked, error)
        self._log.info("tokens_revoked", revocations=len(self.revocations), sockets=ended)

    async def _close(self, order: CloseOrder) -> None:
        sockets = self._sockets()
        if order.reconnect:
            ended = await sockets.retire_where(order.fits, order.reason)
        else:
            ended = await sockets.end_where(order.fits, ClientError(403, "closed_by_admin", order.reason))
        self._log.info("connections_closed", sockets=ended, reconnect=order.reconnect)

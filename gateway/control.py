"""What is said to all pods at once: close these connections."""

from __future__ import annotations

import msgspec

from gateway.identity import Identity


class CloseOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which connections to close; all that are given must fit, and one of them is given at least.

    Attributes:
        reconnect: whether the clients are asked to come back (1012) or told to stay away (4503).
        reason: for the clients.
    """

    tenant_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    connection_id: str | None = None
    reconnect: bool = True
    reason: str = "an administrator closed the connection"

    @property
    def is_for_all(self) -> bool:
        """Whether it names nothing, and so would close everything."""
        return not any((self.tenant_id, self.session_id, self.user_id, self.connection_id))

    def fits(self, identity: Identity, connection_id: str) -> bool:
        """Whether a connection is one of them."""
        pairs = (
            (self.tenant_id, identity.tenant_id),
            (self.session_id, identity.session_id),
            (self.user_id, identity.user_id),
            (self.connection_id, connection_id),
        )
        return all(wanted is None or wanted == has for wanted, has in pairs)


def encode(order: CloseOrder) -> bytes:
    """As it is published."""
    return msgspec.json.encode(order)


def decode(payload: bytes) -> CloseOrder | None:
    """What was published; None if it is nothing of ours."""
    try:
        return msgspec.json.decode(payload, type=CloseOrder)
    except msgspec.DecodeError:
        return None

"""Why a socket is closed; the range says whether to come back (contract, section 2): [P]."""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Close codes that clients see from this service."""

    DONE = 1000
    GOING_AWAY = 1001
    """Come back."""
    RESTART = 1012
    """Come back: the pod restarts, or the session's log began anew."""
    TRY_LATER = 1013
    """Come back after a while."""
    SLOW_CONSUMER = 4001
    """Come back with the cursor: the socket did not read what it was sent."""
    HEARTBEAT_MISSED = 4002
    """Come back: nothing was heard of the socket for two heartbeats."""
    REPLACED = 4003
    """Don't: a newer connection of the session took over (SESSION_POLICY=replace)."""
    RATE_LIMITED = 4029
    """Come back after the time told: too many messages, and more after being told so."""
    BAD_TOKEN = 4501
    """Don't, without a new token: it is missing, bad or expired."""
    FORBIDDEN = 4503
    """Don't: the token does not allow it."""
    BAD_REQUEST = 4504
    """Don't: session, tier or parameters are wrong."""
    BAD_FRAME = 4505
    """Don't: too many binary or too large messages, or one beyond every limit."""


COME_BACK = frozenset(
    {
        CloseCode.GOING_AWAY,
        CloseCode.RESTART,
        CloseCode.TRY_LATER,
        CloseCode.SLOW_CONSUMER,
        CloseCode.HEARTBEAT_MISSED,
    }
)
"""Those of a client that has done nothing wrong."""

"""Sessions, as connections find or begin them."""

from __future__ import annotations

from backplane.position import Position
from backplane.session_log import SessionLog


async def begun(log: SessionLog, session: str, user: str = "") -> Position:
    """The newest position of a session's log; begins the session if there is none.

    Raises:
        NotYours, RedisUnavailable: as `SessionLog.resume`.
    """
    resumed = await log.resume(session, None, user)
    return Position(resumed.page.epoch, resumed.head)

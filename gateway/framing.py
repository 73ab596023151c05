"""How messages are put on a connection's wire: [P] pure.

The hub makes a message ready once for all connections of a session that share a framing, and each is written
the same bytes. A framing that depends on what its client was told is of one connection alone.
"""

from __future__ import annotations

from typing import Protocol

from gateway.frames import encode_text
from gateway.outgoing import log_frames


class Framing(Protocol):
    """Makes messages ready for the transport; compared by identity."""

    def message(self, payload: bytes) -> bytes:
        """A message that is in no log.

        Args:
            payload: its JSON, on one line.
        """

    def log(self, epoch: str, first: int, entries: list[bytes]) -> bytes:
        """Consecutive messages of a session's log.

        Args:
            epoch: the log's.
            first: the seq of the first.
            entries: as they stand in the log.
        """

    def caught_up(self) -> bytes:
        """All that was said before the client came was written; what follows is live."""


class _SocketFraming:
    message = staticmethod(encode_text)
    log = staticmethod(log_frames)

    def caught_up(self) -> bytes:
        return b""


SOCKET_FRAMING: Framing = _SocketFraming()
"""Each message is a text frame."""

"""Changes the level of a running process, for a while or for good.

SIGUSR1 is `debug` for ten minutes, SIGUSR2 is the level of the settings again.
"""

from __future__ import annotations

import asyncio
import signal

from backplane.log import LEVEL, Logger

SIGNAL_S = 600.0


class LevelSwitch:
    """The process's level, and when it goes back.

    Args:
        configured: by the settings.
        log: told of each change.
    """

    def __init__(self, configured: str, log: Logger) -> None:
        self.configured = configured
        self._log = log
        self._timer: asyncio.TimerHandle | None = None

    def listen(self) -> None:
        """Do as signals say."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.change, "debug", SIGNAL_S)
        loop.add_signal_handler(signal.SIGUSR2, self.back)

    def change(self, level: str, for_s: float | None = None) -> None:
        """Print from this level on, all the time or for ``for_s`` seconds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if for_s is not None:
            self._timer = asyncio.get_running_loop().call_later(for_s, self.back)
        before = LEVEL.name
        LEVEL.set(level)
        self._log.warning("log_level_changed", to=level, before=before, for_s=for_s)

    def back(self) -> None:
        """Print what the settings say."""
        self.change(self.configured)

    @property
    def left_s(self) -> float | None:
        """After which it goes back; None if it does not."""
        if self._timer is None:
            return None
        return max(0.0, self._timer.when() - asyncio.get_running_loop().time())

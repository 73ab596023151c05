"""Whether messages really get through this pod.

Ready means: a message that the pod published to itself came back through its own subscription a moment ago.
That proves the command link, Redis, the feed link and the pod's reading of it, in one; a look at open
connections proves none of them.
"""

from __future__ import annotations

import asyncio
import time

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link

_MISSED_PROBES = 2


class Health:
    """A pod's state for ``/readyz``.

    Args:
        feed_link: on which the pod hears.
        command_link: through which it publishes.
        channel: the pod's own channel.
        interval_s: time between probes.
    """

    def __init__(self, feed_link: Link, command_link: Link, channel: str, interval_s: float) -> None:
        self._feed = feed_link
        self._commands = command_link
        self._channel = channel
        self._interval_s = interval_s
        self._sent = 0
        self._heard_at: float | None = None
        self._refused = ""
        self.draining = False
        self.round_trip_s: float | None = None
        self._sent_at = 0.0

    @property
    def channel(self) -> bytes:
        """The pod's own channel."""
        return self._channel.encode()

    def problem(self) -> str | None:
        """Why the pod is not ready; None if it is."""
        if self.draining:
            return "draining"
        for name, link in (("commands", self._commands), ("subscriptions", self._feed)):
            if not link.up:
                return f"no connection to Redis for {name}: {link.last_error}"
        if self._refused:
            return f"Redis refuses the probe: {self._refused}"
        if self._heard_at is None:
            return "the first probe has not come back yet"
        silent_s = time.monotonic() - self._heard_at
        if silent_s > self._interval_s * (_MISSED_PROBES + 1):
            return f"probes have not come back through the subscription for {silent_s:.1f} s"
        return None

    def subscribe(self) -> None:
        """Hear the own channel; after every connect of the feed link."""
        self._feed.tell("SUBSCRIBE", self._channel)

    def heard(self, payload: bytes) -> None:
        """A probe came back."""
        if payload == str(self._sent).encode():
            self._heard_at = time.monotonic()
            self.round_trip_s = self._heard_at - self._sent_at

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            self._sent += 1
            self._sent_at = time.monotonic()
            try:
                await self._commands.call("PUBLISH", self._channel, str(self._sent))
            except RedisRefused as error:
                self._refused = str(error)
            except RedisUnavailable:
                self._heard_at = None
                await self._commands.wait_up()
                continue
            else:
                self._refused = ""
            await asyncio.sleep(self._interval_s)

"""Whether messages really get through this pod.

Ready means: a message that the pod published to itself came back through its own subscription a moment ago,
from every server. That proves the commands' connection, Redis, the feed's connection and the pod's reading of
it, in one.
"""

from __future__ import annotations

from collections.abc import Callable

from backplane.link import Link
from backplane.probes import Probes
from backplane.store import Store


class Health:
    """A pod's state for ``/readyz``.

    Args:
        feed: on which the pod hears.
        commands: through which it publishes.
        channel: the name of the pod's n-th own channel.
        interval_s: time between probes.
        unable: why the pod cannot let anybody in, whatever gets through it; None if it can.

    Attributes:
        draining: whether the pod is about to stop.
        given_up: servers from which nothing has come for so long that the sockets of their sessions are
            better off on another pod.
    """

    def __init__(
        self,
        feed: Store,
        commands: Store,
        channel: Callable[[int], str],
        interval_s: float,
        unable: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._commands = commands
        self._unable = unable
        self.draining = False
        self.given_up: set[Link] = set()
        self._feed = feed
        self.probes = Probes(
            feed,
            channel,
            interval_s,
            lambda _link, name, text: commands.publish(name, text),
            begin=lambda name: feed.subscribe([name]),
            end=feed.unsubscribe,
        )

    def problem(self) -> str | None:
        """Why the pod is not ready; None if it is."""
        return "draining" if self.draining else self.deafness() or self._unable()

    def deafness(self) -> str | None:
        """Why messages do not get through this pod; None if they do."""
        if not any(link.up for link in self._commands.links):
            return f"no connection to Redis for commands: {self._commands.last_error}"
        return self.probes.problem()

    def impairment(self) -> str | None:
        """What does not get through, although the rest does; None if all does."""
        return self.probes.impairment()

    def deaf_to(self, session: str) -> bool:
        """Whether a session's server has been given up."""
        if not self.given_up:
            return False
        link = self._feed.link_for(session)
        return link in self.given_up and link in self.probes.troubles()

    def heard(self, channel: bytes, payload: bytes) -> None:
        """A message came on a channel that is no session's: perhaps a probe."""
        self.probes.heard(channel, payload)

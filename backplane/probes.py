"""Proof that what is written to Redis comes back to this process, from every server, over and over.

An open connection proves nothing: it may be subscribed to nothing, or end at a proxy that has lost its other
side.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from backplane.errors import RedisRefused, RedisUnavailable
from backplane.link import Link
from backplane.metrics import FAST_S, Histogram
from backplane.store import Store

_MISSED = 2
_MOST_TRIES = 20_000

Send = Callable[[Link, str, str], "asyncio.Future[Any]"]


class _Probe:
    """What one server is asked over and over: to bring back a number."""

    def __init__(self, link: Link, name: str) -> None:
        self.link = link
        self.name = name
        self.sent = 0
        self.sent_at = 0.0
        self.heard_at: float | None = None  # on this connection
        self.last_heard_at = self.waiting_since = time.monotonic()
        self.refused = ""


class Probes:
    """One probe for each server of a store.

    Args:
        store: whose pushes are proved.
        name: of the n-th key or channel that this process may use for it; on a cluster it takes a few to have
            one on each node.
        interval_s: time between probes.
        send: has Redis push something on the link because of the name; the text is to come back.
        begin, end: told of names that are used from now on, or no more.

    Attributes:
        patience_s: for how long nothing may come back before that is a trouble.
        round_trip_s: of the last probe that came back.
        commands: times until Redis answered a probe's command.
        pushes: times until a probe came back.
    """

    def __init__(
        self,
        store: Store,
        name: Callable[[int], str],
        interval_s: float,
        send: Send,
        begin: Callable[[str], None] = lambda _name: None,
        end: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._store = store
        self._name = name
        self._interval_s = interval_s
        self.patience_s = interval_s * (_MISSED + 1)
        self._send_one = send
        self._begin = begin
        self._end = end
        self._probes: dict[bytes, _Probe] = {}
        self._began_at = time.monotonic()
        self._slotless: set[Link] = set()  # nodes with next to no slots, so that no name of ours is there
        self.round_trip_s: float | None = None
        self.commands = Histogram(FAST_S)
        self.pushes = Histogram(FAST_S)

    def names(self) -> list[str]:
        """What is used now."""
        return [probe.name for probe in self._probes.values()]

    def troubles(self) -> dict[Link, str]:
        """The servers from which nothing comes back, and why."""
        probes = {probe.link: probe for probe in self._probes.values()}
        found = {link: self._trouble(link, probes.get(link)) for link in self._store.links}
        return {link: trouble for link, trouble in found.items() if trouble is not None}

    def _trouble(self, link: Link, probe: _Probe | None) -> str | None:
        if not link.up:
            return f"no connection to Redis at {link.address}: {link.last_error}"
        if link in self._slotless:
            return None
        if probe is None or probe.heard_at is None:
            return f"the first probe of {link.address} has not come back yet"
        if probe.refused:
            return f"Redis at {link.address} refuses the probe: {probe.refused}"
        silent_s = time.monotonic() - probe.heard_at
        if silent_s > self.patience_s:
            return f"probes have not come back from Redis at {link.address} for {silent_s:.1f} s"
        return None

    def problem(self) -> str | None:
        """Why this process does not do its work; None if it does.

        A node of a cluster that cannot be reached, while others can, is no reason: most likely it cannot be
        reached from anywhere, and its share is small. One that is connected and brings nothing is.
        """
        if not any(link.up for link in self._store.links):
            return f"no connection to Redis: {self._store.last_error}"
        return "; ".join(trouble for link, trouble in self.troubles().items() if link.up) or None

    def impairment(self) -> str | None:
        """What does not work, although the rest does; None if all does."""
        missing = None if self._store.up else self._store.last_error
        return "; ".join(self.troubles().values()) or missing

    def heard(self, name: bytes, payload: bytes | None = None) -> bool:
        """Redis pushed something for a name; False if it is no probe's.

        Args:
            payload: what came back, where Redis says it.
        """
        probe = self._probes.get(name)
        if probe is None:
            return False
        if payload is None or payload == str(probe.sent).encode():
            probe.heard_at = probe.last_heard_at = time.monotonic()
            self.round_trip_s = probe.heard_at - probe.sent_at
            self.pushes.observe(self.round_trip_s)
        return True

    @property
    def silent_s(self) -> float:
        """How long ago a probe came back, of the server from which that is longest ago."""
        now = time.monotonic()
        return max(
            (now - probe.last_heard_at for probe in self._probes.values()), default=now - self._began_at
        )

    def lost(self) -> None:
        """A connection was lost: that it all gets through has to be proved anew."""
        for probe in self._probes.values():
            probe.heard_at = None

    async def run(self) -> None:
        """Probe until cancelled."""
        while True:
            self._choose()
            for probe in self._probes.values():
                self._mend(probe)
                self._send(probe)
            await asyncio.sleep(self._interval_s)

    def _choose(self) -> None:
        """Have one name on each server."""
        links = self._store.links
        kept = {
            key: probe
            for key, probe in self._probes.items()
            if probe.link in links and self._store.link_for(probe.name) is probe.link
        }
        gone, self._probes = self._probes.keys() - kept.keys(), kept
        for key in gone:
            self._end(key.decode())
        self._slotless.clear()
        for link in links:
            if link.up and not any(probe.link is link for probe in kept.values()):
                name = self._name_at(link)
                if name is None:
                    self._slotless.add(link)
                else:
                    kept[name.encode()] = _Probe(link, name)
                    self._begin(name)

    def _name_at(self, link: Link) -> str | None:
        for number in count():
            name = self._name(number)
            served_by = self._store.link_for(name)
            if served_by is link:
                return name
            if number > _MOST_TRIES:
                return None
        return None

    def _mend(self, probe: _Probe) -> None:
        """A connection that is up and brings nothing is made anew."""
        now = time.monotonic()
        if not probe.link.up:
            probe.waiting_since = now
        elif now - max(probe.waiting_since, probe.heard_at or 0.0) > self.patience_s:
            probe.waiting_since = now
            probe.link.abort("probes do not come back")

    def _send(self, probe: _Probe) -> None:
        probe.sent += 1
        probe.sent_at = time.monotonic()
        try:
            sent = self._send_one(probe.link, probe.name, str(probe.sent))
        except RedisUnavailable:
            return  # the store says so itself
        sent.add_done_callback(lambda done: self._sent(probe, done))

    def _sent(self, probe: _Probe, done: asyncio.Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        probe.refused = str(error) if isinstance(error, RedisRefused) else ""
        if error is None and not done.cancelled():
            self.commands.observe(time.monotonic() - probe.sent_at)

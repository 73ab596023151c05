"""Names that may stand in a metric's label: a few of any number, the rest are ``other``: [P].

Whoever has most traffic is found with a bounded count (Misra and Gries, "Finding repeated elements", 1982):
with room for k names, each that makes up more than 1/k of all is among them. Who has a label keeps it for a
while: a series that comes and goes is of no use to anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

OTHER = "other"
_ROOM = 8  # names that are counted for each that can have a label


class TopNames:
    """Which names have a label of their own.

    Args:
        pinned: these always have.
        most: as many more, by traffic.
        clock: seconds.
        window_s: labels change hands that often at most.

    Attributes:
        folded: how often a name was counted as ``other``.
        on_out: called with a name that has no label any more.
    """

    def __init__(
        self,
        pinned: Iterable[str],
        most: int,
        clock: Callable[[], float],
        window_s: float = 600.0,
    ) -> None:
        self._pinned = frozenset(pinned)
        self._most = most
        self._clock = clock
        self._window_s = window_s
        self._elected_at = clock()
        self._counts: dict[str, int] = {}
        self._shown: set[str] = set()
        self.folded = 0
        self.on_out: list[Callable[[str], None]] = []

    def label(self, name: str) -> str:
        """Count a name once, and return it, or ``other``."""
        if name in self._pinned:
            return name
        if self._most:
            self._count(name)
            if name in self._shown:
                return name
            if len(self._shown) < self._most and name != OTHER:
                self._shown.add(name)
                return name
        self.folded += 1
        return OTHER

    def elect(self) -> None:
        """Give the labels to those who have most traffic; call it now and then."""
        now = self._clock()
        if now - self._elected_at < self._window_s:
            return
        self._elected_at = now
        counts = self._counts
        ranked = sorted(
            counts, key=lambda name: counts[name] * (2 if name in self._shown else 1), reverse=True
        )
        chosen = {name for name in ranked[: self._most] if name != OTHER}
        # Who has said nothing for a window keeps its label as long as nobody else wants it.
        chosen.update(sorted(self._shown - chosen)[: self._most - len(chosen)])
        for name in self._shown - chosen:
            for forget in self.on_out:
                forget(name)
        self._shown = chosen
        self._counts = {name: count // 2 for name, count in counts.items() if count > 1}

    def _count(self, name: str) -> None:
        counts = self._counts
        if name in counts:
            counts[name] += 1
        elif len(counts) < self._most * _ROOM:
            counts[name] = 1
        else:
            self._counts = {known: count - 1 for known, count in counts.items() if count > 1}

"""What a process counts and measures: [P] plain numbers that hot paths write and a scrape reads.

A counter is an attribute that grows, a histogram a list of counts: writing to one costs a fraction of a
microsecond, and nothing is locked, as everything runs on one event loop. What objects count for themselves is
read from them when it is asked for. How all this is told to Prometheus is `gateway.exposition`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, NamedTuple, TypeVar

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[str, ...]
Read = Callable[[], "float | Mapping[Labels, float]"]

FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Upper bounds of what takes milliseconds, and has gone wrong after a second."""
SLOW_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 3_600.0)
"""Upper bounds of what agents and people take their time for."""


_TRACE_ID_LENGTH = 32  # a task that was not given its id by a pod has none; exemplars have little room


class Exemplar(NamedTuple):
    """A single observation by which a trace is found.

    Attributes:
        at: seconds since 1970.
    """

    trace_id: str
    value: float
    at: float


class Counter:
    """What only grows; `value` is written to as it is."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Histogram:
    """How often values lay between bounds.

    Args:
        bounds: upper ones, growing; what is beyond the last is counted too.
    """

    __slots__ = ("bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, or as many equal ones."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def observe_traced(self, value: float, trace_id: str, at: float) -> None:
        """Count a value that belongs to a trace; the last one of each bucket can be looked up.

        Args:
            trace_id: empty, or of another length than it should be, if there is none.
            at: seconds since 1970.
        """
        place = bisect_left(self.bounds, value)
        self.counts[place] += 1
        self.total += value
        if len(trace_id) == _TRACE_ID_LENGTH:
            self.exemplars[place] = Exemplar(trace_id, value, at)


T = TypeVar("T", Counter, Histogram)


@dataclass(frozen=True, slots=True)
class About:
    """What a family of time series is.

    Attributes:
        name: as Prometheus knows it, with its unit, and ``_total`` at the end of a counter's.
        meaning: one sentence.
        labels: names of its labels.
    """

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


class Family(Generic[T]):
    """Time series that differ in their labels.

    Attributes:
        make: makes one that stands at 0.
        members: by the values of their labels.
    """

    __slots__ = ("about", "make", "members")

    def __init__(self, about: About, make: Callable[[], T]) -> None:
        self.about = about
        self.make: Callable[[], T] = make
        self.members: dict[Labels, T] = {}

    def of(self, *labels: str) -> T:
        """The one with these labels; keep it where it is used often."""
        member = self.members.get(labels)
        if member is None:
            member = self.members[labels] = self.make()
        return member

    def forget(self, first: str) -> None:
        """Drop all whose first label is this."""
        for labels in [labels for labels in self.members if labels[0] == first]:
            del self.members[labels]


class Seen:
    """Values that are read from where they are, when somebody asks.

    Args:
        read: returns a number, or one for each combination of labels.
    """

    __slots__ = ("about", "read")

    def __init__(self, about: About, read: Read) -> None:
        self.about = about
        self.read = read


class Registry:
    """All of a process's families, in the order in which they were made.

    Attributes:
        before: called each time before everything is read.

    Raises:
        ValueError: a name is taken, or against Prometheus's conventions (when it is made).
    """

    def __init__(self) -> None:
        self.families: dict[str, Family[Counter] | Family[Histogram] | Seen] = {}
        self.before: list[Callable[[], None]] = []

    def counter(self, name: str, meaning: str, *labels: str) -> Family[Counter]:
        """A family of counters."""
        return self._enter(Family(About(name, "counter", meaning, labels), Counter))

    def histogram(
        self, name: str, meaning: str, *labels: str, bounds: tuple[float, ...] = FAST_S
    ) -> Family[Histogram]:
        """A family of histograms."""
        return self._enter(Family(About(name, "histogram", meaning, labels), partial(Histogram, bounds)))

    def gauge(self, name: str, meaning: str, read: Read, *labels: str) -> None:
        """A family that goes up and down, and is read when somebody asks."""
        self._enter(Seen(About(name, "gauge", meaning, labels), read))

    def counted(self, name: str, meaning: str, read: Read, *labels: str) -> None:
        """A family of counters that stand elsewhere, and are read when somebody asks."""
        self._enter(Seen(About(name, "counter", meaning, labels), read))

    def _enter(self, family: F) -> F:
        about = family.about
        base = about.name.removesuffix("_total")  # OpenMetrics calls a family of counters so
        if base in self.families or f"{base}_total" in self.families:
            raise ValueError(f"two metrics are called {base}")
        if (about.kind == "counter") is not about.name.endswith("_total"):
            raise ValueError(f"{about.name}: counters end in _total, and nothing else does")
        if not about.name.startswith("orchestrator_"):
            raise ValueError(f"{about.name} must begin with orchestrator_")
        self.families[about.name] = family
        return family


F = TypeVar("F", Family[Counter], Family[Histogram], Seen)

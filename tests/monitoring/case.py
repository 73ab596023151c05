"""A disturbance of a world in which all is well, and the alerts that fire at it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.monitoring.worlds import Place, Series

HERE = Place()
FREE = {"tenant_tier": "free"}


@dataclass(frozen=True, slots=True)
class Case:
    """One world, and all that fires in it at one time.

    Attributes:
        about: the alert that it is about.
        what: what is wrong, or nearly.
        changed: time series that differ from, or come to, those of the world.
        firing: severities with which the alert fires.
        beside: other alerts, with their severities, that rightly fire too.
        at: when, on Prometheus's clock, in minutes.
        step: between two samples.
        places: where all was well.
    """

    about: str
    what: str
    changed: Series
    firing: tuple[str, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    at: int = 12
    step: str = "15s"
    places: tuple[Place, ...] = (HERE,)
    broken: Place = field(default=HERE)


def each(name: str, targets: tuple[str, ...], values: str, **labels: str) -> Series:
    """The same values for one time series of several targets."""
    return {HERE.series(name, target, **labels): values for target in targets}


PODS, ROUTERS = ("pod-0", "pod-1"), ("router-0",)
PAGE, TICKET, BOTH = ("page",), ("ticket",), ("page", "ticket")

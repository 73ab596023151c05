"""Attempts, and how they are counted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.adversary.wire import Answer

SILENCE = "nobody answered"

Act = Callable[[], Awaitable[Answer]]


class Attempt(NamedTuple):
    """One try.

    Attributes:
        name: says what was tried, and where.
        fair: it may be granted, as it asks for nothing that is not its own; but it must reach nothing else.
    """

    name: str
    act: Act
    fair: bool = False


@dataclass
class Tally:
    """The count of one class; but for ``attempts`` by the names of those that should not have been."""

    name: str
    attempts: int = 0
    got_in: set[str] = field(default_factory=set)
    crashed: set[str] = field(default_factory=set)
    leaked: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        return (
            f"class={self.name} attempts={self.attempts} got_in={len(self.got_in)} "
            f"crashed={len(self.crashed)} leaked={len(self.leaked)}"
        )

    @property
    def clean(self) -> bool:
        """Whether nothing happened that must not."""
        return self.attempts > 0 and not (self.got_in or self.crashed or self.leaked)

    @property
    def offences(self) -> list[str]:
        """What happened that must not, some of it."""
        kinds = {"got in": self.got_in, "crashed": self.crashed, "leaked": self.leaked}
        return [
            f"{kind}: {name}" for kind, names in kinds.items() for name in sorted(names, key=_weight)[:40]
        ]


def _weight(name: str) -> tuple[bool, str]:
    """Causes first: where one attempt has ended a process, hundreds get no answer."""
    return SILENCE in name, name

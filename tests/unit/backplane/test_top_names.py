"""Who has a label of its own: few of any number, those with most traffic, and not by turns."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.top_names import OTHER, TopNames


class World:
    """Names that say something, and a clock."""

    def __init__(self, most: int, pinned: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        self.names = TopNames(pinned, most, lambda: self.now, window_s=60.0)
        self.out: list[str] = []
        self.names.on_out.append(self.out.append)

    def say(self, name: str, times: int = 1) -> list[str]:
        return [self.names.label(name) for _ in range(times)]

    def elect(self) -> None:
        self.now += 60.0
        self.names.elect()


def test_the_first_have_labels_and_the_rest_are_other() -> None:
    """Nobody waits for an election while there is room; what is folded is counted."""
    world = World(2)
    labels = [label for name in ("a", "b", "c", "a", "d") for label in world.say(name)]

    assert labels == ["a", "b", OTHER, "a", OTHER]
    assert world.names.folded == 2


def test_pinned_names_always_have_one() -> None:
    """However little they say, and without taking the place of another."""
    world = World(1, pinned=("vip",))
    assert world.say("a") + world.say("b") + world.say("vip") == ["a", OTHER, "vip"]
    assert World(0, pinned=("vip",)).say("vip") == ["vip"]


def test_without_room_all_are_other() -> None:
    """0 means none; nothing is remembered then."""
    world = World(0)
    assert world.say("a", 3) == [OTHER] * 3
    world.elect()
    assert world.say("a") == [OTHER]


def test_whoever_has_most_traffic_gets_the_label() -> None:
    """The one that came first loses its series, and that is told."""
    world = World(1)
    world.say("early", 2)
    world.say("busy", 50)
    assert world.say("busy") == [OTHER]
    world.elect()

    assert world.say("busy") == ["busy"]
    assert world.say("early") == [OTHER]
    assert world.out == ["early"]


def test_a_label_is_kept_against_one_that_is_as_busy() -> None:
    """Two that take turns would both have half a series."""
    world = World(1)
    world.say("a", 10)
    world.say("b", 15)
    world.elect()

    assert world.say("a") == ["a"]
    assert world.out == []


def test_who_is_silent_keeps_its_label_while_nobody_wants_it() -> None:
    """A night without traffic ends no series."""
    world = World(2)
    world.say("a", 3)
    for _ in range(5):
        world.elect()
    assert world.say("b") == ["b"]
    assert world.say("a") == ["a"]
    assert world.out == []


def test_labels_change_hands_once_a_window() -> None:
    """However often metrics are read: each change is a new series for Prometheus."""
    world = World(1)
    world.say("a")
    world.say("b", 100)
    world.now = 59.0
    world.names.elect()
    assert world.out == []


def test_a_name_like_the_rest() -> None:
    """A tenant that is called ``other`` is counted there, and has no series that looks like all of them."""
    world = World(3)
    world.say(OTHER, 100)
    world.elect()
    assert world.say("a") == ["a"]
    assert world.names.folded == 100


@given(st.lists(st.sampled_from([f"t{n}" for n in range(40)])), st.integers(1, 5))
def test_never_more_than_there_is_room_for(said: list[str], most: int) -> None:
    """Labels that are in use at one time, and what is remembered of names."""
    world, shown = World(most), set[str]()
    for number, name in enumerate(said):
        shown |= set(world.say(name)) - {OTHER}
        shown -= set(world.out)
        assert len(shown) <= most
        assert len(world.names._counts) <= most * 8
        if number % 7 == 0:
            world.elect()


@pytest.mark.parametrize("seed", range(5))
def test_the_busiest_are_found_among_thousands(seed: int) -> None:
    """Each with a tenth of all traffic is among the 20, of 5,000 that take the rest."""
    rng = random.Random(seed)
    world = World(20)
    busy = [f"busy-{n}" for n in range(5)]
    for _ in range(40_000):
        world.names.label(rng.choice(busy) if rng.random() < 0.5 else f"t-{rng.randrange(5_000)}")
    world.elect()

    labels = Counter(label for name in busy for label in world.say(name))
    assert set(labels) == set(busy)

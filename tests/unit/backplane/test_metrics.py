"""What is counted and measured: plain numbers, in families with names that Prometheus takes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.metrics import FAST_S, SLOW_S, Exemplar, Histogram, Registry
from backplane.process_metrics import memory_limit_bytes

BOUNDS = (0.1, 1.0, 10.0)
values = st.lists(st.floats(min_value=0, max_value=100))


@given(values)
def test_a_histogram_counts_what_lies_between_its_bounds(given: list[float]) -> None:
    """A value on a bound is below it, as Prometheus's ``le`` says."""
    histogram = Histogram(BOUNDS)
    for value in given:
        histogram.observe(value)

    edges = (-1.0, *BOUNDS, float("inf"))
    expected = [sum(low < value <= high for value in given) for low, high in pairwise(edges)]
    assert histogram.counts == expected
    assert histogram.total == pytest.approx(sum(given))


def test_several_equal_values() -> None:
    """They may be counted in one go."""
    histogram = Histogram(BOUNDS)
    histogram.observe(0.5, 3)

    assert (histogram.counts, histogram.total) == ([0, 3, 0, 0], 1.5)


def test_the_last_trace_of_each_bucket_is_kept() -> None:
    """One is enough to look at; there are as many as buckets at most."""
    histogram = Histogram(BOUNDS)
    for number, value in enumerate((0.5, 0.6, 20.0)):
        histogram.observe_traced(value, f"{number:032x}", at=100.0 + number)

    assert histogram.exemplars == {
        1: Exemplar(f"{1:032x}", 0.6, 101.0),
        3: Exemplar(f"{2:032x}", 20.0, 102.0),
    }
    assert sum(histogram.counts) == 3


@pytest.mark.parametrize("bounds", [FAST_S, SLOW_S])
def test_bounds_grow(bounds: tuple[float, ...]) -> None:
    """A search by halves finds nothing else."""
    assert list(bounds) == sorted(set(bounds))


def test_members_are_made_once() -> None:
    """Who keeps one and who asks for it again count together."""
    family = Registry().counter("orchestrator_things_total", "Things.", "colour", "size")
    kept = family.of("red", "big")
    family.of("red", "big").value += 2
    family.of("blue", "big").value += 1

    assert kept.value == 2
    family.forget("red")
    assert list(family.members) == [("blue", "big")]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("counter", "orchestrator_things"), ("gauge", "orchestrator_things_total"), ("gauge", "things")],
)
def test_names_are_checked_when_they_are_given(kind: str, name: str) -> None:
    """What Prometheus's conventions do not allow does not get into a release."""
    registry = Registry()
    enter = registry.counted if kind == "counter" else registry.gauge
    with pytest.raises(ValueError, match=name):
        enter(name, "Things.", lambda: 1.0)


def test_a_name_is_given_once() -> None:
    """OpenMetrics has one family for a counter and its ``_total``."""
    registry = Registry()
    registry.counter("orchestrator_things_total", "Things.")
    with pytest.raises(ValueError, match="two metrics"):
        registry.counted("orchestrator_things_total", "Things.", lambda: 1.0)
    with pytest.raises(ValueError, match="two metrics"):
        registry.gauge("orchestrator_things", "Things.", lambda: 1.0)


@pytest.mark.parametrize(("said", "limit"), [("1073741824\n", 2**30), ("max\n", None), ("", None)])
def test_the_containers_memory_limit(tmp_path: Path, said: str, limit: int | None) -> None:
    """As the kernel says it; there is none on most machines without containers."""
    (tmp_path / "memory.max").write_text(said)
    assert memory_limit_bytes(tmp_path / "memory.max") == limit
    assert memory_limit_bytes(tmp_path / "absent") is None

"""Whatever strangers send: the inputs that fuzzing found worth keeping, and fresh ones (`tests.fuzz`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.run import CORPUS, MOST_BYTES, MOST_FILES
from tests.fuzz.seeds import SEEDS, WORDS
from tests.fuzz.strategies import STRATEGIES
from tests.fuzz.targets import TARGETS


def kept(name: str) -> list[Path]:
    return sorted(path for path in (CORPUS / name).iterdir() if path.is_file())


def known_inputs(name: str) -> Iterator[tuple[str, bytes]]:
    for number, seed in enumerate(SEEDS[name]()):
        yield f"seed {number}", seed
    for path in kept(name):
        yield str(path), path.read_bytes()


@pytest.mark.parametrize("name", TARGETS)
def test_known_inputs_do_no_harm(name: str) -> None:
    """Every seed, and every input that added coverage or once raised."""
    for where, data in known_inputs(name):
        try:
            TARGETS[name](data)
        except BaseException as error:
            error.add_note(f"{name}: {where}: {data[:200]!r}")
            raise


@settings(max_examples=250, deadline=None, print_blob=True)
@given(data=st.data())
@pytest.mark.parametrize("name", TARGETS)
def test_fresh_inputs_do_no_harm(name: str, data: st.DataObject) -> None:
    """Inputs that are nearly right end in what is documented, and in nothing else."""
    TARGETS[name](data.draw(STRATEGIES[name]))


def test_each_target_can_be_fuzzed() -> None:
    """It has seeds, words, a strategy and a kept corpus, and that is small."""
    assert TARGETS.keys() == SEEDS.keys() == WORDS.keys() == STRATEGIES.keys()
    for name in TARGETS:
        sizes = [path.stat().st_size for path in kept(name)]
        assert 0 < len(sizes) <= MOST_FILES, name
        assert sum(sizes) <= MOST_BYTES, name

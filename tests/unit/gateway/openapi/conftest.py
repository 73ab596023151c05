"""What requests of these tests change of the process is put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backplane.log import LEVEL


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    before = LEVEL.name
    yield
    LEVEL.set(before)

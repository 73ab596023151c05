"""What a build does not notice: each check yields what is wrong with an image's source, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tests.image.checks.files import context, labels, secrets, settings, sources
from tests.image.checks.instructions import base, hashes, last_stage, linter, process, reproducible, user
from tests.image.source import Source

CHECKS: dict[str, Callable[[Source], Iterable[str]]] = {
    check.__name__: check
    for check in (
        base,
        context,
        hashes,
        labels,
        last_stage,
        linter,
        process,
        reproducible,
        secrets,
        settings,
        sources,
        user,
    )
}

"""The rules of direction and purity that the README promises, read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {
    package: sorted((ROOT / package).rglob("*.py")) for package in ("backplane", "gateway", "benchmarks")
}
IMPURE = {"asyncio", "redis", "hiredis", "starlette"}
CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"}


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported anywhere in a file, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that this test can read them"
            yield node.module or ""
        elif isinstance(node, ast.Call) and _name(node.func) in {"__import__", "importlib.import_module"}:
            yield from (str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(parse(path))}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def _name(node: ast.expr) -> str:
    """``a.b.c`` of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def reads_clock(tree: ast.AST) -> Iterator[str]:
    """Calls and imports that take the time from anywhere but an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (f"time.{alias.name}" for alias in node.names if alias.name in CLOCKS)
        elif isinstance(node, ast.Call):
            owner, _, called = _name(node.func).rpartition(".")
            told = {"datetime": {"now", "utcnow", "today"}, "date": {"today"}, "time": CLOCKS}
            if called in told.get(owner.rpartition(".")[2], ()):
                yield f"{owner}.{called}"


def pure_modules() -> list[Path]:
    """Those that call themselves pure in the first words of their docstring."""
    return [
        path
        for package in ("backplane", "gateway")
        for path in SOURCES[package]
        if "[P]" in (ast.get_docstring(parse(path)) or "")
    ]


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_sources_are_found() -> None:
    """The rules below are about something."""
    assert len(SOURCES["backplane"]) > 10
    assert len(SOURCES["gateway"]) > 5
    names = set(map(shown, pure_modules()))
    assert {"backplane/keys.py", "backplane/position.py", "backplane/messages.py"} <= names
    assert {"backplane/router/dispatch.py", "backplane/router/callback.py", "gateway/frames.py"} <= names


@pytest.mark.parametrize("path", SOURCES["backplane"], ids=shown)
def test_backplane_does_not_know_the_gateway(path: Path) -> None:
    """One direction: gateway imports backplane, never the reverse."""
    assert "gateway" not in roots(path)
    assert "starlette" not in roots(path)


@pytest.mark.parametrize("path", SOURCES["gateway"], ids=shown)
def test_only_backplane_speaks_to_redis(path: Path) -> None:
    """What Redis is like is known in one package."""
    assert not roots(path) & {"redis", "hiredis", "valkey"}


@pytest.mark.parametrize("path", SOURCES["backplane"] + SOURCES["gateway"], ids=shown)
def test_sources_do_not_import_tests(path: Path) -> None:
    """Nothing that is shipped needs what is not."""
    assert not roots(path) & {"tests", "benchmarks", "pytest", "hypothesis", "fakeredis"}


@pytest.mark.parametrize("path", pure_modules(), ids=shown)
def test_pure_modules_are_pure(path: Path) -> None:
    """[P]: no event loop, no Redis, no web framework, and the time comes in as an argument."""
    tree = parse(path)
    assert not roots(path) & IMPURE
    assert not list(reads_clock(tree))


def test_every_module_says_what_it_is() -> None:
    """A reader finds the reason for a file in its first line."""
    paths = [path for group in SOURCES.values() for path in group if path.stat().st_size]
    assert not [shown(path) for path in paths if not (ast.get_docstring(parse(path)) or "").strip()]

"""The Dockerfile and what it is built from: as they are, and with every mistake that we could think of."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.image.breaks import BREAKS, Break
from tests.image.checks import CHECKS
from tests.image.source import ROOT, Source

PARTS = (".dockerignore", "pyproject.toml", "README.md", "gateway", "backplane", "deploy/docker")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The sources, where they may be spoilt."""
    for part in (*PARTS, "deploy/helm/values.yaml"):
        (tmp_path / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, tmp_path / part)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize("check", CHECKS)
def test_nothing_is_wrong(check: str) -> None:
    """No check has anything to say."""
    assert list(CHECKS[check](Source())) == []


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: re.sub(r"[^a-z]+", "-", broken.name.lower()))
def test_mistakes_are_noticed(broken: Break, copy: Path) -> None:
    """The check is silent on the sources as they are, and speaks with the mistake in them."""
    check = CHECKS[broken.caught_by]
    assert list(check(Source(copy))) == []
    file = copy / broken.file
    text = file.read_text("utf-8") if broken.before else ""
    assert broken.before in text
    file.write_text(text.replace(broken.before, broken.after) if broken.before else broken.after, "utf-8")
    found = list(check(Source(copy)))
    assert any(broken.says in problem for problem in found), found


def test_every_check_is_shown_at_work() -> None:
    """Each has a mistake that it notices."""
    assert {broken.caught_by for broken in BREAKS} == set(CHECKS)
    assert len({broken.name for broken in BREAKS}) == len(BREAKS)


def test_the_build_sees_what_git_has() -> None:
    """Of the packages the build sees every file that is tracked, and nothing else."""
    command = ["git", "-C", str(ROOT), "ls-files", "gateway", "backplane"]
    tracked = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    seen = {path for path in Source().context if path.startswith(("gateway/", "backplane/"))}
    assert seen == set(tracked)
    assert len(seen) > 100

"""`make image`: what it asks Docker for, and what it says where there is none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.image.lock import project
from tests.image.source import ROOT, Source

DOCKER = """#!/bin/sh
case $1 in info) exit {status};; esac
printf '%s\\n' "$@" > {asked}
"""


def _make(docker: str, *more: str) -> tuple[int, str]:
    command = ["make", "--no-print-directory", "-C", str(ROOT), "image", f"DOCKER={docker}", *more]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return run.returncode, run.stdout


def _docker(folder: Path, status: int) -> Path:
    program = folder / "docker"
    program.write_text(DOCKER.format(status=status, asked=folder / "asked"))
    program.chmod(0o755)
    return program


def test_what_docker_is_asked_for(tmp_path: Path) -> None:
    """The Dockerfile, the sources, the name that the chart pulls, and arguments that the Dockerfile knows."""
    status, said = _make(str(_docker(tmp_path, 0)), "EXTRAS=dev", "IMAGE_ARGS=--pull")
    assert status == 0, said
    asked = (tmp_path / "asked").read_text().split("\n")
    assert asked[0] == "build"
    assert ROOT / asked[asked.index("--file") + 1] == Source().dockerfile
    assert asked[asked.index("--tag") + 1] == f"agent-orchestrator:{project()['project']['version']}"
    given = dict(asked[n + 1].split("=", 1) for n, word in enumerate(asked) if word == "--build-arg")
    known = {name for stage in Source().stages for name in stage.pairs("ARG")}
    assert given.keys() <= known
    assert (given["EXTRAS"], len(given["REVISION"])) == ("dev", 40)
    assert int(given["SOURCE_DATE_EPOCH"]) > 1_700_000_000
    assert asked[-3:] == ["--pull", ".", ""]


@pytest.mark.parametrize("installed", [True, False])
def test_no_docker(tmp_path: Path, installed: bool) -> None:
    """One line says so, whether there is no program or no daemon behind it, and nothing is built."""
    docker = _docker(tmp_path, 1) if installed else tmp_path / "nowhere"
    status, said = _make(str(docker))
    assert status == 2
    assert said.startswith(f"{docker} does not work here" if installed else f"There is no {docker}")
    assert not (tmp_path / "asked").exists()

"""Locks what the image installs, with hashes: ``make lock``, and ``make lock UPGRADE=1`` for newer versions.

One file for no extra, one for each extra that an image may have (all of pyproject.toml but the tests' own),
and one for what builds the wheel. Each is whole, fits every machine and every Python of the project, and has
the versions that the first one has.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
NOT_IN_IMAGES = {"test"}
MAIN, BUILD = "requirements.txt", "build-requirements.txt"


def project(root: Path = ROOT) -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


def lock_folder(root: Path = ROOT) -> Path:
    """Where the lock files are."""
    return root / "deploy" / "docker"


def locked(root: Path = ROOT) -> dict[str, list[str]]:
    """For each lock file what it must satisfy, as pyproject.toml words it."""
    told = project(root)
    needed, name = told["project"]["dependencies"], told["project"]["name"]
    files = {BUILD: told["build-system"]["requires"], MAIN: needed}
    for extra, more in told["project"].get("optional-dependencies", {}).items():
        if extra not in NOT_IN_IMAGES:
            assert not any(each.startswith(name) for each in more), f"{extra} is an extra of extras"
            files[f"requirements-{extra}.txt"] = [*needed, *more]
    return files


def _compile(file: Path, needed: list[str], constraints: Path | None, upgrade: bool) -> None:
    command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-config", "--system-certs", "--universal"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header", "-"]
    command += ["--output-file", str(file), *(["--upgrade"] if upgrade else [])]
    command += ["--constraint", str(constraints)] if constraints else []
    subprocess.run(command, input="\n".join(needed), text=True, check=True)


def lock(upgrade: bool, root: Path = ROOT) -> Iterator[Path]:
    """Write the lock files; yields each.

    Args:
        upgrade: whether versions that still fit may become newer ones.

    Raises:
        subprocess.CalledProcessError: nothing fits.
    """
    folder = lock_folder(root)
    for name, needed in locked(root).items():
        _compile(folder / name, needed, folder / MAIN if name not in (MAIN, BUILD) else None, upgrade)
        yield folder / name
    for stale in {*folder.glob("*.txt")} - {folder / name for name in locked(root)}:
        stale.unlink()


if __name__ == "__main__":
    for written in lock("--upgrade" in sys.argv[1:]):
        print(written.relative_to(ROOT))

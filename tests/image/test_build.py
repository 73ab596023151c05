"""What a build makes of the Dockerfile as it stands, on a base that has this machine's Python."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.image.conftest import Built
from tests.image.lock import MAIN, lock_folder, project
from tests.image.source import ROOT
from tests.image.test_lock import entries, versions

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PACKAGES = f"opt/orchestrator/lib/{PYTHON}/site-packages"
NOT_COMPILED = re.compile(r"/(idlelib|lib2to3|tkinter|turtle)")
UNCHECKED_HASH = b"\x01\x00\x00\x00"


def installed(root: Path) -> dict[str, str]:
    """The packages that the image has, and their versions."""
    found: list[Distribution] = list(distributions(path=[str(root / PACKAGES)]))
    return {canonicalize_name(each.metadata["Name"]): each.version for each in found}


def test_what_is_installed_is_what_is_locked(built: Built) -> None:
    """Each package that this Python wants, in the version of the lock, the project itself, and no other."""
    pins = [Requirement(each) for each in entries(lock_folder() / MAIN)]
    wanted = {canonicalize_name(pin.name) for pin in pins if pin.marker is None or pin.marker.evaluate()}
    told = project()["project"]
    locked = {name: version for name, version in versions(lock_folder() / MAIN).items() if name in wanted}
    assert installed(built.root) == locked | {told["name"]: told["version"]}
    assert len(locked) >= len(told["dependencies"])


def test_all_of_the_project_is_in_it(built: Built) -> None:
    """Every file of the packages that git has, byte for byte."""
    command = ["git", "-C", str(ROOT), "ls-files", "gateway", "backplane"]
    for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split():
        assert (built.root / PACKAGES / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_two_builds_give_the_same_bytes(built: Built) -> None:
    """Another place, time, umask and rubbish around: the same wheel, and the same files, rights and times."""
    wheels = [
        re.findall(r"\.whl size=\d+ sha256=(\w+)", said) for said in (built.image.said, built.again.said)
    ]
    assert wheels[0] == wheels[1]
    assert len(wheels[0]) == 1
    assert built.again_entries.items() >= built.entries.items(), (
        built.entries.items() - built.again_entries.items()
    )
    assert built.image.layers[0] == built.again.layers[0]


def test_an_extra_adds_its_packages_and_nothing_else(built: Built) -> None:
    """The image with `dev` has what its lock adds."""
    more = versions(lock_folder() / "requirements-dev.txt").keys() - versions(lock_folder() / MAIN).keys()
    folders = {
        path.split("/")[5] for path in built.again_entries.keys() - built.entries.keys() if PACKAGES in path
    }
    assert {name.partition("-")[0] for name in folders if name.endswith(".dist-info")} == more
    assert len(more) > 0


def test_nothing_installs_or_was_left_behind(built: Built) -> None:
    """No pip, no setuptools, no compiler, no cache, no wheel, no sources, no secrets."""
    left = re.compile(
        r"(^|/)(pip[\d.]*|setuptools|ensurepip|wheel|pkg_resources|gcc|cc|ld|uv)(-[\d.]+\.dist-info)?$"
    )
    assert [path for path in built.entries if left.search(path)] == []
    assert [
        path for path in built.entries if path.startswith(("src", "root/.cache", "var/cache", "tmp/"))
    ] == []
    assert [path for path in built.entries if re.search(r"\.whl$|requirements.*\.txt$|\.git$", path)] == []


def test_nobody_but_root_may_change_it(built: Built) -> None:
    """What runs belongs to root, only its owner may write, and no file lends its owner's rights."""
    ours = {path: entry for path, entry in built.entries.items() if path.startswith(("opt", "usr/local"))}
    assert {entry.owner for entry in ours.values()} == {(0, 0)}
    links = {path for path, entry in ours.items() if entry.kind == b"2"}
    assert [path for path in ours.keys() - links if ours[path].mode & 0o022] == []
    assert [path for path, entry in built.entries.items() if entry.mode & 0o6000] == []
    assert [path for path, entry in built.entries.items() if entry.owner[0] == 10001] == []
    assert len(ours) > 1_000


def test_all_is_compiled_for_good(built: Built) -> None:
    """Each source has its .pyc, known by a hash that is not checked, what is installed as the library."""
    sources = [
        path for path in built.entries if path.endswith(".py") and re.match(r"opt|usr/local/lib", path)
    ]
    compiled = {path for path in built.entries if path.endswith(".pyc")}
    for path in sources:
        folder, _, name = path.rpartition("/")
        pyc = f"{folder}/__pycache__/{name[:-3]}.{sys.implementation.cache_tag}.pyc"
        if not NOT_COMPILED.search(path):
            assert pyc in compiled, path
            assert (built.root / pyc).read_bytes()[4:8] == UNCHECKED_HASH, path
            compiled.remove(pyc)
    assert compiled == set()
    assert len(sources) > 500


def test_how_it_is_run(built: Built) -> None:
    """The builder understood the instructions as they were meant."""
    config, told = built.image.config, project()["project"]
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")
    assert (config["Entrypoint"], config["Cmd"]) == (["orchestrator"], ["gateway"])
    assert config["Healthcheck"]["Test"] == ["CMD", "orchestrator", "probe"]
    assert config["ExposedPorts"] == {"8080/tcp": {}, "8081/tcp": {}}
    labels = {key.removeprefix("org.opencontainers.image."): text for key, text in config["Labels"].items()}
    assert (labels["title"], labels["version"]) == (told["name"], told["version"])
    assert labels["base.name"] == "localhost/base:1"
    assert b"orchestrator:x:10001:10001:" in (built.root / "etc/passwd").read_bytes()
    assert b"orchestrator:x:10001:" in (built.root / "etc/group").read_bytes()

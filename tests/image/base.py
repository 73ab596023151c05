"""What stands in for the image's base, as tests ask no registry of images: this machine's Python.

It is laid out as the official images of Python are (`python` in /usr/local/bin, with pip, without .pyc
files), so that the Dockerfile is built as it stands. Beside it there is a shell, `chmod` and `rm`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.image.lock import MAIN, locked

_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_TOOLS = ("sh", "chmod", "rm")
_NOT_COPIED = shutil.ignore_patterns(
    "__pycache__",
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "config-*",
    "_tkinter*",
    "EXTERNALLY-MANAGED",
)
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_WHERE = "import os, site, sys; print(sys.executable, os.__file__, site.getsitepackages(['/usr/local'])[-1])"


def lay_out(root: Path) -> None:
    """Write the base's file system.

    Args:
        root: an empty folder.

    Raises:
        subprocess.CalledProcessError: this machine's Python or `ldd` does not run.
    """
    executable = Path(sys.executable).resolve()
    told = subprocess.run([executable, "-I", "-c", _WHERE], capture_output=True, text=True, check=True)
    _, module, packages = told.stdout.split()
    for folder in ("bin", "lib", "lib64", "sbin"):
        (root / "usr" / folder).mkdir(parents=True)
        (root / folder).symlink_to(f"usr/{folder}")
    for folder in ("etc", "usr/local/bin", "tmp", "proc", "sys", "dev"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    library = root / "usr/local/lib" / _VERSION
    shutil.copytree(Path(module).parent, library, ignore=_NOT_COPIED, ignore_dangling_symlinks=True)
    binary = root / "usr/local/bin" / _VERSION
    shutil.copy(executable, binary)
    for name in ("python3", "python"):
        binary.with_name(name).symlink_to(_VERSION)
    _copy_pip(root / packages[1:], binary.with_name("pip3"))
    tools = [Path(shutil.which(tool) or tool).resolve() for tool in _TOOLS]
    for name, tool in zip(_TOOLS, tools, strict=True):
        shutil.copy(tool, root / "usr/bin" / name)
    _copy_libraries(root, [executable, *tools, *library.rglob("*.so"), *_wheels_libraries()])
    _write_settings(root / "etc")


def _copy_pip(packages: Path, command: Path) -> None:
    pip = distribution("pip")
    for name in ("pip", f"pip-{pip.version}.dist-info"):
        shutil.copytree(str(pip.locate_file(name)), packages / name, ignore=_NOT_COPIED)
    command.write_text('#!/bin/sh\nexec python -m pip "$@"\n')
    command.chmod(0o755)


def _wheels_libraries() -> Iterator[Path]:
    """Those of the packages that the project needs: the official images have what they are linked against."""
    for needed in map(Requirement, locked()[MAIN]):
        found = distribution(needed.name)
        yield from (Path(str(found.locate_file(each))) for each in found.files or () if each.suffix == ".so")


def _copy_libraries(root: Path, binaries: list[Path]) -> None:
    linked = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    for library in sorted(set(re.findall(r"(/\S+) \(0x", linked))):
        copy = root / library[1:]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, copy)


def _write_settings(etc: Path) -> None:
    """Users, and whatever pip is told on this machine about its index."""
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\n")
    command = [sys.executable, "-m", "pip", "config", "list"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(
        re.findall(r"^(?:global|:env:)\.(index-url|extra-index-url|trusted-host|cert)='(.*)'$", told, re.M)
    )
    if certificates := found.pop("cert", None):
        (etc / "certificates.pem").write_bytes(Path(certificates).read_bytes())
        found["cert"] = "/etc/certificates.pem"
    (etc / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{key} = {value}" for key, value in found.items())])
    )

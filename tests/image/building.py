"""Builds the image with Podman, as it stands but for its base, and unpacks it: no registry, no daemon."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.image.base import lay_out
from tests.image.source import ROOT

BASE = "localhost/base:1"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or link of the image.

    Attributes:
        kind: as tar has it.
        mode: rights.
        owner: user and group.
        mtime: seconds since 1970.
        content: its SHA-256, or where a link leads.
    """

    kind: bytes
    mode: int
    owner: tuple[int, int]
    mtime: float
    content: str


@dataclass(frozen=True, slots=True)
class Image:
    """A built image.

    Attributes:
        name: by which Podman knows it.
        config: how it is run, as Docker has it.
        layers: digests of its layers.
        said: what the build printed.
    """

    name: str
    config: dict[str, Any]
    layers: tuple[str, ...]
    said: str


class Builder:
    """Podman with a storage of its own.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        storage = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        self._podman = ["podman", *storage, "--storage-opt", "overlay.skip_mount_home=true"]
        if "STORAGE_DRIVER" in os.environ:
            self._podman = ["podman", *storage]

    def run(self, *arguments: str) -> str:
        """What a command of Podman prints.

        Raises:
            AssertionError: it fails; with what it said.
        """
        run = subprocess.run([*self._podman, *arguments], capture_output=True, text=True, check=False)
        assert run.returncode == 0, (
            f"podman {' '.join(arguments)}:\n{run.stdout[-4000:]}\n{run.stderr[-4000:]}"
        )
        return run.stdout + run.stderr

    def make_base(self) -> None:
        """Make `BASE` of this machine's Python."""
        lay_out(root := self._folder / "base")
        archive = self._folder / "base.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(root, ".", filter=_of_root)
        shutil.rmtree(root)
        self.run("import", "--quiet", str(archive), BASE)
        archive.unlink()

    def build(self, name: str, *options: str, context: Path = ROOT) -> Image:
        """Build, from nothing that an earlier build left.

        Args:
            name: for the image.
            options: more of them.
            context: the folder with the sources.
        """
        plain = [
            "--format",
            "docker",
            "--isolation",
            "chroot",
            "--network",
            "host",
            "--no-cache",
            "--layers=false",
        ]
        dockerfile = context / "deploy" / "docker" / "Dockerfile"
        given = ["--build-arg", f"PYTHON_IMAGE={BASE}", *options, "--tag", name, "--file", str(dockerfile)]
        said = self.run("build", *plain, *given, str(context))
        [told] = json.loads(self.run("image", "inspect", name))
        return Image(
            name,
            told["Config"] | {"Healthcheck": told.get("Healthcheck")},
            (*told["RootFS"]["Layers"],),
            said,
        )

    def unpack(self, image: Image, folder: Path | None = None) -> dict[str, Entry]:
        """What is in its file system, by path; written into a folder as well if there is one.

        Raises:
            AssertionError: Podman fails.
        """
        container = self.run("create", "--cgroups=disabled", image.name).split()[0]
        archive = self._folder / f"{container}.tar"
        self.run("export", "--output", str(archive), container)
        self.run("rm", container)
        with tarfile.open(archive) as tar:
            entries = {member.name: _entry(tar, member) for member in tar}
        if folder is not None:
            subprocess.run(["tar", "-xpf", archive, "-C", folder], check=True)
        archive.unlink()
        return entries

    def close(self) -> None:
        """Take the storage away."""
        self.run("rmi", "--all", "--force")
        shutil.rmtree(self._folder, ignore_errors=True)


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _entry(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    file = tar.extractfile(member) if member.isreg() else None
    content = hashlib.sha256(file.read()).hexdigest() if file else member.linkname
    return Entry(member.type, member.mode, (member.uid, member.gid), member.mtime, content)

"""The image, built once for all tests of this folder: as it is by default, and another time elsewhere."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image.building import Builder, Entry, Image
from tests.image.source import ROOT, Source

AT = "--timestamp=1700000000"  # what files of the layers bear; Docker takes it from SOURCE_DATE_EPOCH


@dataclass(frozen=True, slots=True)
class Built:
    """The images.

    Attributes:
        image: as a plain build makes it.
        root: its file system, unpacked.
        entries: what is in that.
        again: the one that was built elsewhere, with the extra `dev`.
        again_entries: what is in its file system.
    """

    image: Image
    root: Path
    entries: dict[str, Entry]
    again: Image
    again_entries: dict[str, Entry]

    @property
    def environ(self) -> dict[str, str]:
        """The variables that the image sets."""
        return dict(variable.split("=", 1) for variable in self.image.config["Env"])


def _elsewhere(folder: Path) -> Path:
    """The sources at another place, of another time, with other rights, and with rubbish around them."""
    for name in Source().context | {".dockerignore", "deploy/docker/Dockerfile"}:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
        copy.chmod(0o666)
    for rubbish in (
        "gateway/__pycache__/pod.cpython-311.pyc",
        "gateway.egg-info/PKG-INFO",
        "build/lib/gateway/x.py",
    ):
        (folder / rubbish).parent.mkdir(parents=True)
        (folder / rubbish).write_text("rubbish")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Two builds at the same time, which is as long as one of them."""
    builder = Builder(tmp_path_factory.mktemp("podman"))
    elsewhere = _elsewhere(tmp_path_factory.mktemp("elsewhere"))
    root = Path(tempfile.mkdtemp(prefix="image-"))  # pytest's own folders are closed to other users
    builder.make_base()
    try:
        with ThreadPoolExecutor() as pool:
            plain = pool.submit(builder.build, "localhost/plain:1", AT)
            again = pool.submit(
                builder.build, "localhost/again:1", AT, "--build-arg=EXTRAS=dev", context=elsewhere
            )
        image, other = plain.result(), again.result()
        root.chmod(0o755)
        yield Built(image, root, builder.unpack(image, root), other, builder.unpack(other))
    finally:
        builder.close()
        shutil.rmtree(root, ignore_errors=True)

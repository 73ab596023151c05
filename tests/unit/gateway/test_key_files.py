"""Keys in a directory: read when the pod starts, and again every few seconds, whatever is done to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from backplane.errors import ConfigurationError
from gateway import key_files
from gateway.key_files import KeyFiles
from tests.unit.gateway.fakes import Clock, FakeLogger, settle
from tests.unit.gateway.signing import OTHER, SECRET, pem


class Watched:
    """A directory that is being looked at.

    Attributes:
        told: the names of the keys, each time that others were told of.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder = folder
        self.clock = clock
        self.logger = FakeLogger()
        self.told: list[list[str | None]] = []
        self.files = KeyFiles(folder, lambda: self.told.append(self.kids), self.logger.as_logger())
        self.task = asyncio.create_task(self.files.run())

    @property
    def kids(self) -> list[str | None]:
        return [key.kid for key in self.files.keys]

    async def look(self) -> None:
        """Let it look once."""
        await self.clock.forward(2.0)
        assert not self.task.done()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The loop's; files are read without a thread, so that nothing has to be waited for."""
    clock = Clock()

    async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    clock.sleeping.to_thread = at_once
    monkeypatch.setattr(key_files, "asyncio", clock.sleeping)
    return clock


@pytest.fixture
async def watched(tmp_path: Path, clock: Clock) -> AsyncIterator[Watched]:
    (tmp_path / "a.pem").write_bytes(pem("RS256"))
    watched = Watched(tmp_path, clock)
    yield watched
    watched.task.cancel()


def read(folder: Path) -> list[str | None]:
    return [key.kid for key in KeyFiles(folder, lambda: None, FakeLogger().as_logger()).keys]


# When the pod starts.


def test_a_directory(tmp_path: Path) -> None:
    """Public keys and secrets are taken, whatever else lies about is not."""
    (tmp_path / "b.pem").write_bytes(pem("ES256"))
    (tmp_path / "a.secret").write_text(SECRET)
    (tmp_path / ".hidden.pem").write_text("hello")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "c.pem.swp").write_text("hello")
    (tmp_path / "folder.pem").mkdir()

    assert read(tmp_path) == ["a", "b"]


def test_no_directory(tmp_path: Path) -> None:
    """A pod whose keys cannot be read does not start, and says which directory it is."""
    (tmp_path / "file").write_text("")
    for name in ("missing", "file"):
        with pytest.raises(ConfigurationError, match=f"{name} cannot be read"):
            read(tmp_path / name)


def test_a_link_to_nowhere(tmp_path: Path) -> None:
    """A key that was promised and is not there is no key."""
    (tmp_path / "a.pem").symlink_to(tmp_path / "nowhere")

    with pytest.raises(ConfigurationError, match="cannot be read"):
        read(tmp_path)


def test_a_bad_key(tmp_path: Path) -> None:
    """It is named."""
    (tmp_path / "a.pem").write_bytes(pem("RS256"))
    (tmp_path / "b.secret").write_text("short")

    with pytest.raises(ConfigurationError, match=r"b\.secret must have 32 bytes"):
        read(tmp_path)


def test_bounds(tmp_path: Path) -> None:
    """A directory of something else is not read into memory."""
    for number in range(100):
        (tmp_path / f"{number:03}.secret").write_text(SECRET)
    assert len(read(tmp_path)) == 100
    (tmp_path / "100.secret").write_text(SECRET)
    with pytest.raises(ConfigurationError, match="more than 100"):
        read(tmp_path)


@pytest.mark.parametrize(("size", "ok"), [(64 * 1024, True), (64 * 1024 + 1, False)])
def test_large_files(tmp_path: Path, size: int, ok: bool) -> None:
    """Nor is a file that is no key."""
    (tmp_path / "a.secret").write_text("x" * size)
    if ok:
        assert read(tmp_path) == ["a"]
    else:
        with pytest.raises(ConfigurationError, match=r"a\.secret is over 65536 bytes"):
            read(tmp_path)


# While it runs.


async def test_nothing_changes(watched: Watched) -> None:
    """Nobody is told of keys that are the same, and nothing is logged."""
    keys = watched.files.keys
    for _ in range(5):
        await watched.look()

    assert watched.files.keys is keys
    assert (watched.told, watched.logger.names) == ([], [])


async def test_rotation(watched: Watched) -> None:
    """A new key comes, the old one goes, a third is replaced: each is there with the next look."""
    (watched.folder / "b.secret").write_text(SECRET)
    assert watched.kids == ["a"]
    await watched.look()
    assert watched.told == [["a", "b"]]
    (watched.folder / "a.pem").unlink()
    await watched.look()
    assert watched.told[1:] == [["b"]]
    (watched.folder / "b.secret").write_text(OTHER)
    await watched.look()

    assert watched.told[2:] == [["b"]]
    assert [key.material for key in watched.files.keys] == [OTHER.encode()]
    assert watched.logger.events[-1] == ("info", "keys_read", {"kids": ["b"]})


async def test_how_often(watched: Watched) -> None:
    """Every two seconds, not all the time."""
    await settle()
    assert watched.clock.waits == [2.0]
    (watched.folder / "b.secret").write_text(SECRET)
    await watched.clock.forward(1.9)
    assert watched.told == []
    await watched.clock.forward(0.1)

    assert watched.told == [["a", "b"]]


async def test_a_secret_as_kubernetes_mounts_it(tmp_path: Path, clock: Clock) -> None:
    """Names lead through a link that is put on another directory in one step."""
    for number, kid in enumerate(("old", "new")):
        folder = tmp_path / f"..2026_{number}"
        folder.mkdir()
        (folder / f"{kid}.pem").write_bytes(pem("RS256", number))
    (tmp_path / "..data").symlink_to("..2026_0")
    (tmp_path / "old.pem").symlink_to("..data/old.pem")
    watched = Watched(tmp_path, clock)
    assert watched.kids == ["old"]
    (tmp_path / "..tmp").symlink_to("..2026_1")
    (tmp_path / "..tmp").rename(tmp_path / "..data")
    (tmp_path / "new.pem").symlink_to("..data/new.pem")
    await watched.look()
    assert watched.kids == ["old"]  # its link leads nowhere until it is removed too
    (tmp_path / "old.pem").unlink()
    await watched.look()

    assert watched.told == [["new"]]
    watched.task.cancel()


@pytest.mark.parametrize("trouble", ["bad file", "large file", "no directory"])
async def test_what_cannot_be_used(watched: Watched, trouble: str) -> None:
    """The keys stay as they are, the operator is told once, and again when it comes again."""
    away = watched.folder.with_name("away")

    def begin() -> None:
        if trouble == "no directory":
            watched.folder.rename(away)
        else:
            (watched.folder / "b.pem").write_text("x" * (70_000 if trouble == "large file" else 10))

    def end() -> None:
        if trouble == "no directory":
            away.rename(watched.folder)
        else:
            (watched.folder / "b.pem").unlink()

    for times in (1, 2):
        begin()
        for _ in range(3):
            await watched.look()
        assert watched.logger.names == ["keys_not_read"] * times
        assert watched.logger.events[0][2]["keys_kept"] == 1
        end()
        for _ in range(3):
            await watched.look()
    assert (watched.kids, watched.told) == (["a"], [])


async def test_another_trouble_is_told_too(watched: Watched) -> None:
    """One line for each."""
    (watched.folder / "b.pem").write_text("hello")
    await watched.look()
    (watched.folder / "a.secret").write_text("short")
    await watched.look()
    reasons = [values["reason"] for _level, _event, values in watched.logger.events]

    assert ["b.pem" in reasons[0], "a.secret" in reasons[1]] == [True, True]


async def test_a_bad_file_that_is_mended(watched: Watched) -> None:
    """What was wrong is looked at again."""
    (watched.folder / "b.pem").write_bytes(pem("ES256")[:50])
    await watched.look()
    (watched.folder / "b.pem").write_bytes(pem("ES256"))
    await watched.look()

    assert watched.told == [["a", "b"]]


async def test_no_keys_are_left(watched: Watched) -> None:
    """Who takes the last one away means it: it may have been stolen."""
    (watched.folder / "a.pem").unlink()
    await watched.look()

    assert watched.told == [[]]

"""The Lua scripts, one file each in ``lua/``; each file's head says what it takes, does and returns."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the digest by which EVALSHA calls it."""

    text: str
    sha1: str


def _load(name: str, *includes: str) -> Script:
    folder = files("backplane").joinpath("lua")
    text = "\n".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in (*includes, name))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


PEEK = _load("peek", "_take")
TRANSFER = _load("transfer", "_take", "_session")
RESUME = _load("resume", "_session", "_page")
READ = _load("read", "_page")
MARK_SENT = _load("mark_sent")
ENSURE = _load("ensure", "_session")
ENQUEUE = _load("enqueue")
REDRIVE = _load("redrive")
OWN = _load("own")
DISOWN = _load("disown")

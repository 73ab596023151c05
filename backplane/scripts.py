"""The Lua scripts, one file each in ``lua/``; each file's head says what it takes, does and returns."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text and the digest by which EVALSHA calls it.

    Attributes:
        lineage: whether its first argument is the lineage of the server that runs it (see `Link.lineage`).
    """

    text: str
    sha1: str
    lineage: bool = False


def _load(name: str, *includes: str, lineage: bool = False) -> Script:
    folder = files("backplane").joinpath("lua")
    text = "\n".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in (*includes, name))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest(), lineage)


PEEK = _load("peek", "_take")
TRANSFER = _load("transfer", "_take", "_epoch", "_task", "_stream", "_append", lineage=True)
ACCEPT = _load("accept", "_session", "_task", "_cancel", lineage=True)
CANCEL = _load("cancel", "_task", "_cancel")
INPUT = _load("input", "_task")
END_TASK = _load("end_task", "_epoch", "_task", "_stream", "_append", lineage=True)
LOG_EVENT = _load("log_event", "_epoch", "_task", "_stream", "_append", lineage=True)
STREAMS = _load("streams")
DUE = _load("due")
DUE_LISTS = _load("due_lists")
CATCH_UP = _load("catch_up", "_epoch", "_task", "_stream", "_append", lineage=True)
RELEASE = _load("release", "_task")
LEFT = _load("left", "_task")
SETTLE = _load("settle", "_epoch", "_task", "_stream", "_append", lineage=True)
PUT_OFF = _load("put_off")
RESUME = _load("resume", "_epoch", "_session", "_task", "_page", lineage=True)
READ = _load("read", "_epoch", "_page")
MARK_SENT = _load("mark_sent", "_epoch")
ENQUEUE = _load("enqueue")
REDRIVE = _load("redrive")
LEASE = _load("lease")
LIVING = _load("living")
RATE = _load("rate")
REVOKE = _load("revoke")
REVOCATIONS = _load("revocations")
JOIN = _load("join")
LEAVE = _load("leave")

"""Tokens that count no more before their time: by token id, by user, by tenant.

Every pod has all of them in its memory, so that a look-up costs nothing. A change is published, and each pod
then reads what is new; and it asks every half second besides, because what is published can be lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec

from backplane.errors import LimitReached, RedisUnavailable
from backplane.keys import Keys
from backplane.scripts import REVOCATIONS, REVOKE
from backplane.store import Store

Kind = Literal["token", "user", "tenant"]

_MOST = 100_000
_NEWS = 1_000
_ASK_EVERY_S = 0.5


class Revocation(msgspec.Struct, frozen=True):
    """What is revoked.

    Attributes:
        name: the token's ``jti`` or the user's id; empty for a whole tenant.
        issued_before: tokens issued up to then, seconds since 1970; of no meaning for a single token.
        until: when it may be forgotten, because all such tokens have expired; seconds since 1970.
    """

    kind: Kind
    tenant_id: str
    name: str
    issued_before: float
    until: float

    @property
    def what(self) -> str:
        """Its key among the others."""
        return f"{self.kind} {self.tenant_id} {self.name}"


class Revocations:
    """All revocations, as a pod knows them.

    Args:
        store: through which they are read and written.
        keys: names.
        on_new: told of each that was not known before.

    Attributes:
        loaded: whether they were read at all; until then nobody can be let in.
    """

    def __init__(self, store: Store, keys: Keys, on_new: Callable[[list[Revocation]], None]) -> None:
        self._store = store
        self._keys = keys
        self._on_new = on_new
        self._known: dict[str, Revocation] = {}
        self._version: int | None = None
        self._news = asyncio.Event()
        self.loaded = False

    def __len__(self) -> int:
        return len(self._known)

    def hits(self, tenant_id: str, user_id: str | None, token_id: str | None, issued_at: float) -> bool:
        """Whether a token is revoked.

        Args:
            issued_at: seconds since 1970; 0 if the token does not say, then any revocation hits it.
        """
        if not self._known:
            return False
        if token_id is not None and f"token {tenant_id} {token_id}" in self._known:
            return True
        for what in (f"tenant {tenant_id} ", None if user_id is None else f"user {tenant_id} {user_id}"):
            entry = None if what is None else self._known.get(what)
            if entry is not None and issued_at <= entry.issued_before:
                return True
        return False

    def look(self) -> None:
        """Read what is new, soon: it was published that there is something."""
        self._news.set()

    async def run(self) -> None:
        """Keep up until cancelled."""
        while True:
            self._news.clear()
            with suppress(RedisUnavailable):  # what is known stays in force; the next look finds the rest
                await self.read()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_EVERY_S):
                    await self._news.wait()

    async def read(self) -> None:
        """Read what is new once.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys = [self._keys.revocations, self._keys.revocation_news, self._keys.revocation_version]
        known = "" if self._version is None else self._version
        version, whole, *told = await self._store.script(REVOCATIONS, keys, [known, _NEWS])
        before = self._known
        if whole:
            entries = [_decode(raw) for raw in told[1::2]]
            self._known = {entry.what: entry for entry in entries}
        elif told:
            before = dict(before)
            for news in reversed(told):
                self._apply(news)
        self._version, self.loaded = version, True
        new = [entry for what, entry in self._known.items() if before.get(what) != entry] if told else []
        if new:
            self._on_new(new)

    def _apply(self, news: bytes) -> None:
        if news.startswith(b"-"):
            self._known.pop(news[1:].decode(), None)
        else:
            what, _, raw = news[1:].partition(b"\n")
            self._known[what.decode()] = _decode(raw)

    async def revoke(self, revocation: Revocation, now: float) -> None:
        """Put a revocation in force on all pods.

        Raises:
            LimitReached: there are as many as there may be.
            RedisUnavailable: Redis did not answer.
        """
        await self._write(revocation.what, msgspec.json.encode(revocation), revocation.until, now)

    async def lift(self, kind: Kind, tenant_id: str, name: str, now: float) -> bool:
        """End a revocation; returns whether there was one.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        what = f"{kind} {tenant_id} {name}"
        there = await self._store.call("HEXISTS", self._keys.revocations, what)
        await self._write(what, b"", 0.0, now)
        return bool(there)

    async def everything(self) -> list[Revocation]:
        """All of them, as Redis has them.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self.read()
        return sorted(self._known.values(), key=lambda entry: entry.what)

    async def _write(self, what: str, entry: bytes, until: float, now: float) -> None:
        names = self._keys
        keys = [names.revocations, names.revocation_ends, names.revocation_news, names.revocation_version]
        version = await self._store.script(REVOKE, keys, [what, entry, int(until), int(now), _MOST, _NEWS])
        if version < 0:
            raise LimitReached(f"there are {_MOST} revocations already; lift some, or revoke whole users")
        await self._store.publish(self._keys.revocation_channel, str(version))
        await self.read()


def _decode(raw: bytes) -> Revocation:
    return msgspec.json.decode(raw, type=Revocation)

"""Tokens that count no more before their time: by token id, by user, by tenant.

Every pod has all of them in its memory, so that a look-up costs nothing. A change is published, and each pod
then reads what is new; and it asks every half second besides, because what is published can be lost. What
Redis has lost (a failover, a flush), a pod that still knows it writes back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Literal, cast, get_args

import msgspec

from backplane.errors import LimitReached, RedisRefused, RedisUnavailable
from backplane.keys import Keys
from backplane.log import Logger
from backplane.position import new_epoch
from backplane.scripts import REVOCATIONS, REVOKE
from backplane.store import Store
from backplane.wire import Argument

Kind = Literal["token", "user", "tenant"]

MOST_OF_A_TENANT = 10_000
_MOST = 100_000
_NEWS = 1_000
_ASK_EVERY_S = 0.5
_PRUNE_EVERY_S = 60.0
_NOTHING_KNOWN = ("", -1)


class Revocation(msgspec.Struct, frozen=True):
    """What is revoked; no part of it has a space or a line end.

    Attributes:
        name: the token's ``jti`` or the user's id; empty for a whole tenant.
        issued_before: tokens issued up to then, seconds since 1970; of no meaning for a single token.
        until: when it may be forgotten, because all such tokens have expired; seconds since 1970.
    """

    kind: Kind
    tenant_id: str
    name: str
    issued_before: float
    until: int

    @property
    def what(self) -> str:
        """Its name among the others."""
        return f"{self.kind} {self.tenant_id} {self.name}"


class Revocations:
    """All revocations, as a pod knows them.

    Args:
        store: through which they are read and written.
        keys: names.
        on_new: told of each that was not known before.
        log: for operators.

    Attributes:
        loaded: whether they were read at all; until then nobody can be let in.
        problem: why they cannot be read now; empty if they can.
    """

    def __init__(
        self, store: Store, keys: Keys, on_new: Callable[[list[Revocation]], None], log: Logger
    ) -> None:
        self._store = store
        self._keys = keys
        self._on_new = on_new
        self._log = log
        self._known: dict[str, Revocation] = {}
        self._version: tuple[str, int] = _NOTHING_KNOWN
        self._news = asyncio.Event()
        self._prune_at = 0.0
        self.loaded = False
        self.problem = "not read yet"

    def __len__(self) -> int:
        return len(self._known)

    def hits(self, tenant_id: str, user_id: str | None, token_id: str | None, issued_at: float) -> bool:
        """Whether a token is revoked.

        Args:
            issued_at: seconds since 1970; 0 if the token does not say, then any revocation hits it.
        """
        if not self._known:
            return False
        now = time.time()
        if token_id is not None:
            entry = self._known.get(f"token {tenant_id} {token_id}")
            if entry is not None and entry.until > now:
                return True
        for what in (f"tenant {tenant_id} ", None if user_id is None else f"user {tenant_id} {user_id}"):
            entry = None if what is None else self._known.get(what)
            if entry is not None and issued_at <= entry.issued_before and entry.until > now:
                return True
        return False

    def look(self) -> None:
        """Read what is new, soon: it was published that there is something."""
        self._news.set()

    async def run(self) -> None:
        """Keep up until cancelled."""
        while True:
            self._news.clear()
            try:
                await self.read()
            except RedisRefused as error:
                self._fail(str(error))
            except RedisUnavailable:
                pass  # what is known stays in force; the next look finds the rest
            with suppress(TimeoutError):
                async with asyncio.timeout(_ASK_EVERY_S):
                    await self._news.wait()

    def _fail(self, problem: str) -> None:
        if problem != self.problem:
            self._log.error("revocations_not_read", reason=problem)
        self.problem = problem

    async def read(self) -> None:
        """Read what is new once.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        keys = [self._keys.revocations, self._keys.revocation_news, self._keys.revocation_version]
        asked = self._version
        raw_lineage, changes, whole, *told = await self._store.script(REVOCATIONS, keys, list(asked))
        version = (raw_lineage.decode(), changes)
        before = self._known
        if whole:
            found = zip(told[0::2], told[1::2], strict=True)
            entries = [self._decode(what + b" " + entry) for what, entry in found]
            self._known = {entry.what: entry for entry in entries if entry is not None}
        elif told:
            before = dict(before)
            for news in reversed(told):
                self._apply(news)
        self._version, self.loaded, self.problem = version, True, ""
        self._prune()
        new = [entry for what, entry in self._known.items() if before.get(what) != entry] if told else []
        if new:
            self._on_new(new)
        lost = asked != _NOTHING_KNOWN and whole and (version[0] != asked[0] or changes < asked[1])
        if lost:
            await self._restore([entry for what, entry in before.items() if what not in self._known])

    async def _restore(self, lost: list[Revocation]) -> None:
        """Write back what Redis has lost; it stays in force here meanwhile."""
        now = time.time()
        lost = [entry for entry in lost if entry.until > now]
        if not lost:
            return
        self._known |= {entry.what: entry for entry in lost}
        self._log.error("revocations_lost", by="Redis", written_back=len(lost))
        for entry in lost:
            with suppress(LimitReached):
                await self._enter(entry, now)

    def _apply(self, news: bytes) -> None:
        if news.startswith(b"-"):
            self._known.pop(news[1:].decode("ascii", "replace"), None)
            return
        entry = self._decode(news[1:])
        if entry is not None:
            self._known[entry.what] = entry

    def _decode(self, raw: bytes) -> Revocation | None:
        """None for what nobody of ours has written: that must not end a pod."""
        words = raw.decode("ascii", "replace").split(" ")
        try:
            kind, tenant_id, name, before, until = words
            if kind not in get_args(Kind):
                raise ValueError
            return Revocation(cast("Kind", kind), tenant_id, name, float(before), int(until))
        except ValueError:
            self._log.warning("foreign_revocation", words=len(words))
            return None

    def _prune(self) -> None:
        now = time.time()
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_EVERY_S
            self._known = {what: entry for what, entry in self._known.items() if entry.until > now}

    async def revoke(self, revocation: Revocation, now: float) -> None:
        """Put a revocation in force on all pods.

        Raises:
            LimitReached: there are as many as there may be.
            RedisUnavailable: Redis did not answer.
        """
        await self._enter(revocation, now)
        await self._tell()

    async def lift(self, kind: Kind, tenant_id: str, name: str, now: float) -> bool:
        """End a revocation; returns whether there was one.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        done = await self._write(f"{kind} {tenant_id} {name}", "", 0, now)
        await self._tell()
        return done == 1

    async def everything(self, tenant_id: str | None = None) -> list[Revocation]:
        """All that are in force, or a tenant's, as Redis has them.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        await self.read()
        now = time.time()
        return sorted(
            (one for one in self._known.values() if one.until > now and tenant_id in (None, one.tenant_id)),
            key=lambda entry: entry.what,
        )

    async def _enter(self, entry: Revocation, now: float) -> None:
        if await self._write(entry.what, repr(entry.issued_before), entry.until, now) < 0:
            raise LimitReached(
                f"no room for more revocations ({MOST_OF_A_TENANT} of a tenant, {_MOST} in all); "
                "revoke users in place of their tokens"
            )

    async def _write(self, what: str, before: str, until: int, now: float) -> int:
        names = self._keys
        keys = [
            names.revocations,
            names.revocation_ends,
            names.revocation_counts,
            names.revocation_news,
            names.revocation_version,
        ]
        limits: Iterable[Argument] = (MOST_OF_A_TENANT, _MOST, _NEWS)
        args: list[Argument] = [what, before, until, int(now), *limits, new_epoch(now)]
        return int(await self._store.script(REVOKE, keys, args))

    async def _tell(self) -> None:
        await self._store.publish(self._keys.revocation_channel, "")
        await self.read()

"""Callbacks that could not be understood: list them, look at them, put them back in line, drop them.

The router writes them (``lua/transfer.lua``); this is the operator's side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, cast

from redis.exceptions import RedisError, ResponseError

from backplane.errors import InvalidId, OrchestratorError, RedisRefused, RedisUnavailable
from backplane.keys import Keys, check_id
from backplane.redis_client import Client
from backplane.scripts import REDRIVE

_STREAM_ID = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})", re.ASCII)
_LIST_NUMBER = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)
_LARGEST_PART = 2**64 - 1
_PAGE = 100  # letters read at a time; each may be as large as CALLBACK_MAX_BYTES


class InvalidDeadLetterId(OrchestratorError):
    """A dead letter's id is not of the form ``<tenant>/<stream-id>`` or ``<tenant>:<list>/<stream-id>``."""


class Source(NamedTuple):
    """The callback list from which a dead letter was taken: a tenant's only or first one, or its n-th."""

    tenant_id: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.tenant_id}:{self.number}" if self.number else self.tenant_id


class RedriveResult(StrEnum):
    """What became of the wish to put a dead letter back in line."""

    REDRIVEN = "redriven"
    """It is on its callback list again, and no longer a dead letter."""
    NOT_FOUND = "not_found"
    CUT = "cut"
    """It was too large to be kept whole, so it can only be looked at and dropped."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A callback that could not be understood.

    Attributes:
        id: ``<tenant>/<stream-id>``; of a tenant with several lists ``<tenant>:<list>/<stream-id>``.
        at: when it became a dead letter, in seconds since 1970.
        reason: one of ``backplane.router.dispatch.REASONS``.
        size: bytes that the callback had; more than ``raw`` holds if it was kept cut.
        raw: the callback as the AES pushed it, or its beginning.
    """

    id: str
    tenant_id: str
    at: float
    reason: str
    detail: str
    size: int
    raw: bytes

    @property
    def cut(self) -> bool:
        """Whether only the beginning was kept."""
        return self.size != len(self.raw)


Letters = list[DeadLetter]  # inside the class below, `list` is its method
_Entries = list[tuple[bytes, dict[bytes, bytes]]]  # what a client that does not decode returns of a stream


class DeadLetters:
    """The dead letters of all tenants.

    A list whose name does not follow the present CALLBACKS_QUEUE_TEMPLATE is left alone: it belongs to
    another deployment, or to this one's past.

    Args:
        redis: a client that does not decode replies and does not retry.
        keys: names.
    """

    def __init__(self, redis: Client, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def list(self, tenant_id: str | None, limit: int) -> Letters:
        """Up to ``limit`` dead letters: tenant by tenant, newest first within each.

        Raises:
            InvalidId: ``tenant_id`` is not a valid id.
            RedisUnavailable: Redis did not answer.
        """
        sources = await self._sources()
        if tenant_id is not None:
            first = Source(check_id(tenant_id, "tenant"))
            sources = (first, *(one for one in sources if one.tenant_id == tenant_id and one != first))
        letters: Letters = []
        for source in sources:
            letters += await self._newest(source, limit - len(letters))
            if len(letters) >= limit:
                break
        return letters

    async def show(self, letter_id: str) -> DeadLetter | None:
        """One dead letter; None if there is no such one (any more).

        Raises:
            InvalidDeadLetterId, InvalidId: the id cannot be read.
            RedisUnavailable: Redis did not answer.
        """
        source, stream_id = parse_id(letter_id)
        with _redis_errors():
            found = await self._redis.xrange(self._stream(source), stream_id, stream_id)
        entries = cast("_Entries", found)
        return _letter(source, *entries[0]) if entries else None

    async def redrive(self, letter_id: str) -> RedriveResult:
        """Put a dead letter back on its callback list, as if the AES had just pushed it.

        Raises:
            InvalidDeadLetterId, InvalidId: the id cannot be read.
            RedisUnavailable: Redis did not answer; if the letter is gone, it was redriven.
        """
        source, stream_id = parse_id(letter_id)
        reply = await self._take(source, stream_id, self._keys.callbacks(*source))
        return {1: RedriveResult.REDRIVEN, 0: RedriveResult.NOT_FOUND, -1: RedriveResult.CUT}[reply]

    async def drop(self, letter_id: str) -> bool:
        """Delete a dead letter; False if there is no such one.

        Raises:
            InvalidDeadLetterId, InvalidId: the id cannot be read.
            RedisUnavailable: Redis did not answer.
        """
        return await self._take(*parse_id(letter_id)) == 1

    async def count(self) -> int:
        """How many dead letters there are, of all tenants.

        Raises:
            RedisUnavailable: Redis did not answer.
        """
        sources = await self._sources()
        with _redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for source in sources:
                    pipeline.xlen(self._stream(source))
                return sum(await pipeline.execute())

    def _stream(self, source: Source) -> str:
        return self._keys.dead_letters(self._keys.callbacks(*source))

    async def _sources(self) -> tuple[Source, ...]:
        with _redis_errors():
            lists = await self._redis.smembers(self._keys.dead_letter_lists)
        sources = []
        for name in lists:
            tenant_id = self._keys.tenant_of(cast("bytes", name))
            if tenant_id is not None:
                sources.append(Source(tenant_id, self._keys.number_of(cast("bytes", name))))
        return tuple(sorted(sources))

    async def _newest(self, source: Source, limit: int) -> Letters:
        letters: Letters = []
        newest = "+"
        while len(letters) < limit:
            count = min(_PAGE, limit - len(letters))
            with _redis_errors():
                found = await self._redis.xrevrange(self._stream(source), newest, "-", count)
            page = cast("_Entries", found)
            letters += [_letter(source, *entry) for entry in page]
            if len(page) < count:
                break
            newest = f"({page[-1][0].decode()}"
        return letters

    async def _take(self, source: Source, stream_id: str, *back_to: str) -> int:
        stream = self._stream(source)
        keys = (stream, f"{stream}:bytes", *back_to)
        with _redis_errors():
            reply = int(await self._redis.eval(REDRIVE.text, len(keys), *keys, stream_id))
            if reply == 1:
                await self._tidy(stream, self._keys.callbacks(*source))
        return reply

    async def _tidy(self, stream: str, callback_list: str) -> None:
        """Take a list out of the index when its last dead letter has gone.

        A router enters a list before it writes the letter, in two steps, as the index may be on another
        node of a cluster. So look again after removing: a letter that came in between stays listed.
        """
        index = self._keys.dead_letter_lists
        if await self._redis.xlen(stream) == 0:
            await self._redis.srem(index, callback_list)
            if await self._redis.xlen(stream) > 0:
                await self._redis.sadd(index, callback_list)


def parse_id(letter_id: str) -> tuple[Source, str]:
    """A dead letter's callback list and stream id.

    Raises:
        InvalidDeadLetterId: it is not of the form ``<tenant>/<stream-id>`` or ``<tenant>:<list>/…``.
        InvalidId: the tenant is not a valid id.
    """
    named, slash, stream_id = letter_id.partition("/")
    tenant_id, colon, number = named.partition(":")
    match = _STREAM_ID.fullmatch(stream_id)
    if (
        not slash
        or match is None
        or max(int(match[1]), int(match[2])) > _LARGEST_PART
        or (colon and not _LIST_NUMBER.fullmatch(number))
    ):
        shown = ascii(letter_id[:80]) + ("…" if len(letter_id) > 80 else "")
        raise InvalidDeadLetterId(
            f"{shown} is not the id of a dead letter; ids are listed as tenant/number-number, "
            "for example acme/1769860800000-0"
        )
    try:
        return Source(check_id(tenant_id, "tenant"), int(number or 0)), stream_id
    except InvalidId:
        raise InvalidId("the dead letter's tenant", tenant_id) from None


def _letter(source: Source, entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    stream_id = entry_id.decode()
    return DeadLetter(
        id=f"{source}/{stream_id}",
        tenant_id=source.tenant_id,
        at=int(stream_id.partition("-")[0]) / 1000,
        reason=fields[b"reason"].decode(),
        # A detail quotes what the router was sent, and Redis's own errors; it need not be text.
        detail=fields[b"detail"].decode(errors="backslashreplace"),
        size=int(fields[b"size"]),
        raw=fields[b"raw"],
    )


@contextmanager
def _redis_errors() -> Iterator[None]:
    """redis-py's errors as the project's own, since only `backplane` knows redis-py."""
    try:
        yield
    except ResponseError as error:
        raise RedisRefused(str(error)) from error
    except RedisError as error:
        raise RedisUnavailable(str(error) or type(error).__name__) from error

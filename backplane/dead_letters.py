"""Callbacks that could not be understood: list them, look at them, put them back in line, drop them.

The router writes them (``lua/transfer.lua``); this is the operator's side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from backplane.errors import InvalidId, OrchestratorError, RedisRefused, RedisUnavailable
from backplane.keys import Keys, check_id
from backplane.scripts import REDRIVE

_STREAM_ID = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,19})", re.ASCII)
_LARGEST_PART = 2**64 - 1
_PAGE = 100  # letters read at a time; each may be as large as CALLBACK_MAX_BYTES


class InvalidDeadLetterId(OrchestratorError):
    """A dead letter's id is not of the form ``<tenant>/<stream-id>``."""


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
        id: ``<tenant>/<stream-id>``.
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

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def list(self, tenant_id: str | None, limit: int) -> Letters:
        """Up to ``limit`` dead letters: tenant by tenant, newest first within each.

        Raises:
            InvalidId: ``tenant_id`` is not a valid id.
            RedisUnavailable: Redis did not answer.
        """
        tenants = await self._tenants() if tenant_id is None else [check_id(tenant_id, "tenant")]
        letters: Letters = []
        for tenant in tenants:
            letters += await self._newest(tenant, limit - len(letters))
            if len(letters) >= limit:
                break
        return letters

    async def show(self, letter_id: str) -> DeadLetter | None:
        """One dead letter; None if there is no such one (any more).

        Raises:
            InvalidDeadLetterId, InvalidId: the id cannot be read.
            RedisUnavailable: Redis did not answer.
        """
        tenant_id, stream_id = parse_id(letter_id)
        with _redis_errors():
            found = await self._redis.xrange(self._stream(tenant_id), stream_id, stream_id)
        entries = cast("_Entries", found)
        return _letter(tenant_id, *entries[0]) if entries else None

    async def redrive(self, letter_id: str) -> RedriveResult:
        """Put a dead letter back on its callback list, as if the AES had just pushed it.

        Raises:
            InvalidDeadLetterId, InvalidId: the id cannot be read.
            RedisUnavailable: Redis did not answer; if the letter is gone, it was redriven.
        """
        tenant_id, stream_id = parse_id(letter_id)
        reply = await self._take(tenant_id, stream_id, self._keys.callbacks(tenant_id))
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
        tenants = await self._tenants()
        with _redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for tenant_id in tenants:
                    pipeline.xlen(self._stream(tenant_id))
                return sum(await pipeline.execute())

    def _stream(self, tenant_id: str) -> str:
        return self._keys.dead_letters(self._keys.callbacks(tenant_id))

    async def _tenants(self) -> tuple[str, ...]:
        with _redis_errors():
            lists = await self._redis.smembers(self._keys.dead_letter_lists)
        tenants = (self._keys.tenant_of(cast("bytes", name)) for name in lists)
        return tuple(sorted(tenant for tenant in tenants if tenant is not None))

    async def _newest(self, tenant_id: str, limit: int) -> Letters:
        letters: Letters = []
        newest = "+"
        while len(letters) < limit:
            count = min(_PAGE, limit - len(letters))
            with _redis_errors():
                found = await self._redis.xrevrange(self._stream(tenant_id), newest, "-", count)
            page = cast("_Entries", found)
            letters += [_letter(tenant_id, *entry) for entry in page]
            if len(page) < count:
                break
            newest = f"({page[-1][0].decode()}"
        return letters

    async def _take(self, tenant_id: str, stream_id: str, *back_to: str) -> int:
        stream = self._stream(tenant_id)
        keys = (stream, f"{stream}:bytes", *back_to)
        with _redis_errors():
            reply = int(await self._redis.eval(REDRIVE.text, len(keys), *keys, stream_id))
            if reply == 1:
                await self._tidy(stream, self._keys.callbacks(tenant_id))
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


def parse_id(letter_id: str) -> tuple[str, str]:
    """A dead letter's tenant and stream id.

    Raises:
        InvalidDeadLetterId: it is not of the form ``<tenant>/<stream-id>``.
        InvalidId: the tenant is not a valid id.
    """
    tenant_id, slash, stream_id = letter_id.partition("/")
    match = _STREAM_ID.fullmatch(stream_id)
    if not slash or match is None or max(int(match[1]), int(match[2])) > _LARGEST_PART:
        shown = ascii(letter_id[:80]) + ("…" if len(letter_id) > 80 else "")
        raise InvalidDeadLetterId(
            f"{shown} is not the id of a dead letter; ids are listed as tenant/number-number, "
            "for example acme/1769860800000-0"
        )
    try:
        return check_id(tenant_id, "tenant"), stream_id
    except InvalidId:
        raise InvalidId("the dead letter's tenant", tenant_id) from None


def _letter(tenant_id: str, entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    stream_id = entry_id.decode()
    return DeadLetter(
        id=f"{tenant_id}/{stream_id}",
        tenant_id=tenant_id,
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

"""``orchestrator dead-letters list|show|redrive|drop``."""

from __future__ import annotations

from collections.abc import Sequence

from backplane.dead_letters import DeadLetter, DeadLetters, RedriveResult
from backplane.errors import OrchestratorError
from backplane.messages import timestamp
from backplane.redis_client import parse_redis_url
from backplane.router.dispatch import REASONS
from backplane.settings import Settings

_SHOWN_BYTES = 65_536
_OUTCOMES = {
    RedriveResult.REDRIVEN: "back on its callback list",
    RedriveResult.NOT_FOUND: "there is no such dead letter",
    RedriveResult.CUT: "only its beginning was kept, so it cannot be put back; drop it",
}


class UsageError(OrchestratorError):
    """The command's words do not fit together."""


async def run_dead_letters(
    settings: Settings, action: str, ids: Sequence[str], *, tenant_id: str | None, limit: int
) -> int:
    """Run one action.

    Returns:
        The exit status: 0 if everything named was found and done, else 1.

    Raises:
        UsageError: ids are missing, or given where none belong.
        OrchestratorError: an id cannot be read, or Redis did not answer.
    """
    if (action == "list") == bool(ids):
        raise UsageError(
            "list takes no ids" if ids else f"{action} needs ids, as `dead-letters list` prints them"
        )
    redis = parse_redis_url(settings.redis_url).client()
    try:
        letters = DeadLetters(redis, settings.keys())
        if action == "list":
            return await _list(letters, tenant_id, limit)
        outcomes = [await _one(letters, action, letter_id) for letter_id in ids]
        return 0 if all(outcomes) else 1
    finally:
        await redis.aclose()


async def _list(letters: DeadLetters, tenant_id: str | None, limit: int) -> int:
    found = await letters.list(tenant_id, limit)
    for letter in found:
        print(f"{letter.id}  {timestamp(letter.at)}  {letter.reason}  {letter.size} bytes  {letter.detail}")
    more = await letters.count() - len(found) if tenant_id is None else 0
    print(f"{len(found)} dead letters" + (f", {more} more (--limit)" if more > 0 else ""))
    return 0


async def _one(letters: DeadLetters, action: str, letter_id: str) -> bool:
    if action == "show":
        letter = await letters.show(letter_id)
        print(f"{letter_id}: there is no such dead letter" if letter is None else _shown(letter))
        return letter is not None
    if action == "redrive":
        result = await letters.redrive(letter_id)
        print(f"{letter_id}: {_OUTCOMES[result]}")
        return result is RedriveResult.REDRIVEN
    dropped = await letters.drop(letter_id)
    print(f"{letter_id}: {'dropped' if dropped else 'there is no such dead letter'}")
    return dropped


def _shown(letter: DeadLetter) -> str:
    kept = f", {len(letter.raw)} of them kept" if letter.cut else ""
    return "\n".join(
        (
            f"id      {letter.id}",
            f"at      {timestamp(letter.at)}",
            f"reason  {letter.reason}: {REASONS.get(letter.reason, '')}",
            f"detail  {letter.detail}",
            f"size    {letter.size} bytes{kept}",
            "",
            letter.raw[:_SHOWN_BYTES].decode(errors="backslashreplace"),
        )
    )

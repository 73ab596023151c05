"""What clients are told of rate limits: [P] pure.

Source: RateLimit header fields for HTTP (draft-ietf-httpapi-ratelimit-headers-10): ``RateLimit-Policy`` says
the quotas (``q`` in ``w`` seconds), ``RateLimit`` what is left (``r``) and in how many seconds it is whole
again (``t``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from backplane.rate_limiter import Charged, Standing
from gateway.errors import ClientError

_WORDS = {"minute": "a minute", "day": "a day", "session": "an hour in one session"}

Headers = tuple[tuple[str, str], ...]


def rate_headers(standings: Sequence[Standing]) -> Headers:
    """The two headers; none where nothing is limited."""
    if not standings:
        return ()
    policy = ", ".join(f'"{one.name}";q={one.most};w={one.window_s}' for one in standings)
    left = ", ".join(f'"{one.name}";r={one.remaining};t={ceil(one.reset_s)}' for one in standings)
    return (("RateLimit-Policy", policy), ("RateLimit", left))


def over_the_limit(charged: Charged) -> ClientError:
    """The error for a send that was not allowed; it names the quota that lets the next one through last."""
    violated = [one for one in charged.standings if one.name in charged.violated]
    worst = max(violated, key=lambda one: one.window_s)
    limit = f"{worst.most} {'send' if worst.most == 1 else 'sends'} {_WORDS[worst.name]}"
    detail = f"the limit of {limit} is reached; wait {charged.retry_after_s:.3g} s"
    return ClientError(
        429,
        "rate_limited",
        detail,
        retry_after_s=charged.retry_after_s,
        limit=worst.name,
        headers=rate_headers(charged.standings),
    )

"""Tokens signed with ``JWT_SECRET``: for development, tests, and deployments without a provider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import jwt

from backplane.errors import ConfigurationError
from backplane.keys import check_id, check_user_id
from backplane.settings import Settings
from gateway.identity import OPERATOR, SCOPES
from gateway.signing_keys import LEAST_SECRET_BYTES, secret_key


def issue_token(
    settings: Settings,
    now: float,
    *,
    tenant_id: str,
    tier: str,
    sessions: Sequence[str] = (),
    user_id: str | None = None,
    agents: Sequence[str] = (),
    scopes: Sequence[str] = (),
    ttl_s: int = 86_400,
) -> str:
    """A token that the pods of the same settings accept.

    Args:
        now: seconds since 1970.
        tenant_id: ``*`` for an operator's.
        sessions: and ``agents``: those that it allows, ``web-*`` for a beginning; none: any.
        scopes: none: those of ``JWT_DEFAULT_SCOPES``.

    Raises:
        ConfigurationError: there is no usable JWT_SECRET, or JWT_ALGORITHMS has no HMAC.
        InvalidId: an id is not valid.
    """
    secret = settings.jwt_secret.encode()
    usable = secret_key(secret, None, "").algorithms if len(secret) >= LEAST_SECRET_BYTES else frozenset()
    allowed = [name.strip() for name in settings.jwt_algorithms.split(",")]
    algorithm = next((name for name in allowed if name in usable), "")
    if not algorithm:
        raise ConfigurationError(
            f"tokens are signed with ORCHESTRATOR_JWT_SECRET of {LEAST_SECRET_BYTES} bytes or more, "
            "and JWT_ALGORITHMS must have HS256"
        )
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown:
        raise ConfigurationError(f"{unknown[0]!r} is no scope; scopes are {', '.join(SCOPES)}")
    claims: dict[str, Any] = {"jti": uuid4().hex, "iat": int(now), "exp": int(now) + ttl_s}
    claims[settings.jwt_claim_tenant] = tenant_id if tenant_id == OPERATOR else check_id(tenant_id, "tenant")
    claims[settings.jwt_claim_tier] = tier
    if sessions:
        claims[settings.jwt_claim_sessions] = _patterns(sessions, "session")
    if user_id is not None and not settings.jwt_claim_user:
        raise ConfigurationError("JWT_CLAIM_USER is empty: tokens name no user")
    if user_id is not None:
        claims[settings.jwt_claim_user] = check_user_id(user_id, "user")
    if agents:
        claims[settings.jwt_claim_agents] = _patterns(agents, "agent")
    if scopes:
        claims[settings.jwt_claim_scopes] = " ".join(scopes)
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    return jwt.encode(claims, settings.jwt_secret, algorithm=algorithm)


def _patterns(values: Sequence[str], what: str) -> list[str]:
    for value in values:
        check_id(value.removesuffix("*"), what)
    return list(values)

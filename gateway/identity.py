"""Who a client is, and what it may do: [P] a verified token's grant, settled with what the request says.

What the token says stands. A header or query value may leave it out, and is refused where it contradicts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from backplane.errors import InvalidId
from backplane.keys import ANY_USER, TIERS, check_id, check_user_id
from gateway.errors import ClientError

SCOPES = ("chat", "listen", "broadcast", "admin", "stats")
OPERATOR = "*"
"""In place of a tenant: a token for those who run the service. It opens no session, and sees all tenants."""


TOPIC = re.compile(r"[A-Za-z0-9._~:/@+-]{1,128}", re.ASCII)
"""What a topic may be called."""


class Stated(NamedTuple):
    """What a request says of itself; ``names`` are the client's words for the fields, for error texts."""

    tenant_id: str | None
    tenant_tier: str | None
    session_id: str | None
    user_id: str | None
    agent_id: str | None
    names: tuple[str, str, str, str, str]


class Grant(msgspec.Struct, frozen=True):
    """What a token allows.

    Attributes:
        tenant_id: None for any (AUTH=none), `OPERATOR` for those who run the service.
        tenant_tier: None only where ``tenant_id`` is none of a tenant.
        user_id: None: the token speaks for the tenant and for no user of it.
        sessions: those that it may use, ``web-*`` for all that begin with ``web-``; None for any.
        agents: those that it may speak to, likewise.
        scopes: of `SCOPES`.
        token_id: its ``jti``, by which it can be revoked.
        issued_at: seconds since 1970; 0.0 if the token does not say.
        expires_at: seconds since 1970; None for never (AUTH=none).
        topics: free ones to which it may subscribe, as ``sessions``.
    """

    tenant_id: str | None
    tenant_tier: str | None
    user_id: str | None
    sessions: tuple[str, ...] | None
    agents: tuple[str, ...] | None
    scopes: frozenset[str]
    token_id: str | None
    issued_at: float
    expires_at: float | None
    topics: tuple[str, ...] | None = None


ANYONE = Grant(None, None, None, None, None, frozenset(SCOPES), None, 0.0, None)
"""What AUTH=none grants to everybody."""


class Identity(msgspec.Struct, frozen=True):
    """Who a request or socket speaks for; every id is valid.

    Attributes:
        user_id: as the token says, else as the request says; only `owner` is proved.
    """

    tenant_id: str
    tenant_tier: str
    session_id: str
    user_id: str | None
    agent_id: str | None
    grant: Grant

    @property
    def owner(self) -> str:
        """As whom it uses sessions (`SessionLog.resume`): a user its own, an administrator its tenant's."""
        if self.grant.user_id is None and "admin" in self.grant.scopes and self.grant is not ANYONE:
            return ANY_USER
        return self.grant.user_id or ""


def settle(grant: Grant, stated: Stated) -> Identity:
    """The identity of a request that shows a grant and says something of itself.

    Raises:
        ClientError: 403 for what the grant does not allow, 400 for ids and tiers.
    """
    if grant.tenant_id == OPERATOR:
        raise ClientError(403, "forbidden", "the token is an operator's; it speaks for no tenant")
    names = stated.names
    identity = Identity(
        tenant_id=_id(_agreed(grant.tenant_id, stated.tenant_id, names[0]), names[0]),
        tenant_tier=_tier(_agreed(grant.tenant_tier, stated.tenant_tier, names[1]), names[1]),
        session_id=_session(grant, stated.session_id, names[2]),
        user_id=_user_or_none(_agreed(grant.user_id, stated.user_id, names[3]), names[3]),
        agent_id=None if stated.agent_id is None else _id(stated.agent_id, names[4]),
        grant=grant,
    )
    if identity.agent_id is not None:
        check_agent(grant, identity.agent_id)
    return identity


def renewed(identity: Identity, grant: Grant) -> Identity:
    """The identity of a socket that shows a new token, of the same tenant, session and user.

    Raises:
        ClientError: 403.
    """
    if grant is ANYONE:
        return identity
    if (grant.tenant_id, grant.user_id) != (identity.grant.tenant_id, identity.grant.user_id):
        raise ClientError(403, "forbidden", "the new token is of another tenant or user; open a new socket")
    if identity.owner == ANY_USER and "admin" not in grant.scopes:
        detail = "the new token does not allow all of the tenant's sessions; open a new socket"
        raise ClientError(403, "forbidden", detail)
    if not allows(grant.sessions, identity.session_id):
        raise ClientError(403, "forbidden", "the new token does not allow this session; open a new socket")
    check_scope(grant, "listen")
    tier = _tier(grant.tenant_tier, "the token's tier")
    return msgspec.structs.replace(identity, tenant_tier=tier, grant=grant)


def check_agent(grant: Grant, agent_id: str) -> None:
    """Refuse an agent that the token does not allow.

    Raises:
        ClientError: 403.
    """
    if not allows(grant.agents, agent_id):
        raise ClientError(403, "forbidden", f"the token does not allow the agent {agent_id}")


def check_session(grant: Grant, session_id: str, name: str) -> None:
    """Refuse a session that the token does not allow.

    Args:
        name: what it is, in the client's words.

    Raises:
        ClientError: 403.
    """
    if not allows(grant.sessions, session_id):
        raise ClientError(403, "forbidden", f"{name} contradicts the token: it does not allow this session")


def check_scope(grant: Grant, scope: str) -> None:
    """Refuse what needs a scope that the token has not.

    Raises:
        ClientError: 403.
    """
    if scope not in grant.scopes:
        raise ClientError(403, "scope_missing", f"the token lacks the scope {scope}")


def check_tenant(grant: Grant, tenant_id: str | None) -> str | None:
    """Whose affairs an administrator may see: its own tenant's, or with `OPERATOR` (and AUTH=none) anyone's.

    Args:
        tenant_id: whose are asked for; None for all that the token allows.

    Returns:
        The tenant, None for all.

    Raises:
        ClientError: 403 another tenant's, 400 it is no id.
    """
    if tenant_id is not None:
        _id(tenant_id, "tenant_id")
    if grant.tenant_id in (None, OPERATOR):
        return tenant_id
    if tenant_id not in (None, grant.tenant_id):
        raise ClientError(403, "forbidden", "the token does not allow another tenant's affairs")
    return grant.tenant_id


def allows(patterns: Iterable[str] | None, value: str) -> bool:
    """Whether a value is one of those allowed: exactly, or by a beginning (``web-*``)."""
    if patterns is None:
        return True
    return any(
        value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern for pattern in patterns
    )


def _agreed(granted: str | None, stated: str | None, name: str) -> str | None:
    if granted is None:
        return stated
    if stated is not None and stated != granted:
        raise ClientError(403, "forbidden", f"{name} contradicts the token; leave it out or use the token's")
    return granted


def _session(grant: Grant, stated: str | None, name: str) -> str:
    if stated is None and grant.sessions is not None and len(grant.sessions) == 1:
        stated = grant.sessions[0]  # a beginning is no valid id, and is refused as such
    session_id = _id(stated, name)
    check_session(grant, session_id, name)
    return session_id


def _id(value: str | None, name: str) -> str:
    if value is None:
        raise ClientError(400, "missing_id", f"{name} is needed")
    return valid_id(value, name)


def valid_id(value: str, name: str) -> str:
    """An id other than a user's, checked.

    Args:
        name: what it is, in the client's words.

    Raises:
        ClientError: 400.
    """
    try:
        return check_id(value, name)
    except InvalidId as error:
        raise ClientError(400, "invalid_id", str(error)) from None


def _user_or_none(value: str | None, name: str) -> str | None:
    return None if value is None else valid_user(value, name)


def valid_user(value: str, name: str) -> str:
    """A user id, checked.

    Args:
        name: what it is, in the client's words.

    Raises:
        ClientError: 400.
    """
    try:
        return check_user_id(value, name)
    except InvalidId as error:
        raise ClientError(400, "invalid_id", str(error)) from None


def _tier(value: str | None, name: str) -> str:
    if value not in TIERS:
        shown = "is needed" if value is None else f"is {ascii(value)[:60]}, which is no tier"
        raise ClientError(400, "unknown_tier", f"{name} {shown}; tiers are {', '.join(TIERS)}")
    return value

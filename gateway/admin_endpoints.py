"""``/api/admin/…`` for tokens with the scope ``admin``: connections, revocations, limits and the log level.

A tenant's administrator sees and changes what is its tenant's; an operator (tenant ``*``), all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from backplane.errors import LimitReached
from backplane.log import LEVEL, OUTPUT
from backplane.ownership import list_connections
from backplane.rate_limiter import OVERRIDES
from backplane.revocations import Kind, Revocation
from backplane.settings import BUSY_POLICIES
from gateway import control
from gateway.chat import invalid_field
from gateway.control import CloseOrder
from gateway.errors import ClientError
from gateway.http import bearer_token, json_response, query, read_body
from gateway.identity import OPERATOR, Grant, check_scope, check_tenant, valid_id, valid_user
from gateway.pod import Pod

MOST_LISTED = 1_000
NUMERIC_LIMITS = (*OVERRIDES.values(), "connections")
TENANT_LIMITS = (*NUMERIC_LIMITS, "busy_policy")
LIMIT_MAX = 10**9
TOKEN_ID = re.compile(r"[!-~]{1,256}")
_TokenId = Annotated[str, msgspec.Meta(pattern=f"^{TOKEN_ID.pattern}$")]
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class RevocationBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/admin/revocations``: a token, a user's tokens, or (if it is named) a tenant's."""

    tenant_id: _Text | None = None
    token_id: _TokenId | None = None
    user_id: _Text | None = None
    issued_before: float | None = None


class CloseBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/admin/connections/close``: all that are given must fit."""

    tenant_id: _Text | None = None
    session_id: _Text | None = None
    user_id: _Text | None = None
    connection_id: _Text | None = None
    reconnect: bool = True
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=100)] = CloseOrder().reason


class LogLevelBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PUT /api/admin/log-level``."""

    level: Literal["debug", "info", "warning", "error"]
    for_s: Annotated[float, msgspec.Meta(gt=0, le=86_400)] | None = None


class AdminEndpoints:
    """The endpoints of one pod."""

    def __init__(self, pod: Pod) -> None:
        self._pod = pod

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/api/admin/connections", self.connections),
            Route("/api/admin/connections/close", self.close, methods=["POST"]),
            Route("/api/admin/revocations", self.revocations),
            Route("/api/admin/revocations", self.revoke, methods=["POST"]),
            Route("/api/admin/revocations", self.lift, methods=["DELETE"]),
            Route("/api/admin/log-level", self.log_level),
            Route("/api/admin/log-level", self.set_log_level, methods=["PUT"]),
            Route("/api/admin/tenants/{tenant_id}/limits", self.limits),
            Route("/api/admin/tenants/{tenant_id}/limits", self.set_limits, methods=["PUT"]),
        ]

    async def connections(self, request: Request) -> Response:
        """List connections of the whole cluster, by ``tenant_id``, ``session_id`` and ``user_id``."""
        grant = await self._admin(request)
        asked = query(request)
        wanted = {
            "tenant_id": check_tenant(grant, asked.get("tenant_id")),
            "session_id": _checked(asked.get("session_id"), "session_id", valid_id),
            "user_id": _checked(asked.get("user_id"), "user_id", valid_user),
        }
        limit = _whole(asked.get("limit", "100"), "limit", 1, MOST_LISTED)
        found, more = await list_connections(
            self._pod.commands,
            self._pod.keys,
            {name: value for name, value in wanted.items() if value is not None},
            limit,
        )
        return json_response({"connections": found, "more": more})

    async def close(self, request: Request) -> Response:
        """Close connections on all pods."""
        grant = await self._admin(request)
        asked = await self._body(request, CloseBody)
        whose = {
            "tenant_id": check_tenant(grant, asked.tenant_id),
            "session_id": _checked(asked.session_id, "session_id", valid_id),
            "user_id": _checked(asked.user_id, "user_id", valid_user),
            "connection_id": _checked(asked.connection_id, "connection_id", valid_id),
        }
        order = CloseOrder(**(msgspec.structs.asdict(asked) | whose))
        if order.is_for_all:
            detail = "say which: tenant_id, session_id, user_id or connection_id"
            raise ClientError(422, "invalid_field", detail)
        await self._pod.commands.publish(self._pod.keys.control_channel, control.encode(order))
        return json_response({"success": True}, 202)

    async def revocations(self, request: Request) -> Response:
        """List what is revoked."""
        tenant_id = check_tenant(await self._admin(request), query(request).get("tenant_id"))
        return json_response({"revocations": await self._pod.enforcement.revocations.everything(tenant_id)})

    async def revoke(self, request: Request) -> Response:
        """Revoke a token (``token_id``), a user's tokens (``user_id``) or all of a tenant."""
        grant = await self._admin(request)
        asked = await self._body(request, RevocationBody)
        kind, tenant_id, name = self._which(grant, asked.tenant_id, asked.token_id, asked.user_id)
        now = time.time()
        before = now if asked.issued_before is None else min(asked.issued_before, now)
        until = int(now) + self._pod.settings.revocations_kept_s
        revocation = Revocation(kind, tenant_id, name, before, until)
        try:
            await self._pod.enforcement.revocations.revoke(revocation, now)
        except LimitReached as error:
            raise ClientError(503, "too_many_revocations", str(error), retry_after_s=60) from None
        return json_response(revocation, 201)

    async def lift(self, request: Request) -> Response:
        """End a revocation, with ``?tenant_id=`` and ``token_id=`` or ``user_id=``."""
        grant = await self._admin(request)
        asked = query(request)
        unknown = [name for name in asked if name not in ("tenant_id", "token_id", "user_id")]
        if unknown:
            raise ClientError(400, "invalid_field", "say which by tenant_id, token_id and user_id")
        which = self._which(grant, asked.get("tenant_id"), asked.get("token_id"), asked.get("user_id"))
        if not await self._pod.enforcement.revocations.lift(*which, time.time()):
            raise ClientError(404, "not_found", "there is no such revocation")
        return json_response({"success": True})

    def _which(
        self, grant: Grant, tenant_id: str | None, token_id: str | None, user_id: str | None
    ) -> tuple[Kind, str, str]:
        of_operators = tenant_id == OPERATOR and grant.tenant_id in (None, OPERATOR)
        tenant = OPERATOR if of_operators else check_tenant(grant, tenant_id)
        if tenant is None:
            raise ClientError(422, "missing_id", "say whose: tenant_id")
        if token_id is not None and user_id is not None:
            raise ClientError(422, "invalid_field", "token_id or user_id, not both")
        if token_id is not None:
            if TOKEN_ID.fullmatch(token_id) is None:
                raise ClientError(422, "invalid_id", "token_id must be visible ASCII, 256 characters at most")
            return "token", tenant, token_id
        if user_id is not None:
            return "user", tenant, valid_user(user_id, "user_id")
        if tenant_id is None:  # all of a tenant's tokens: never by leaving something out
            raise ClientError(422, "missing_id", "say which: token_id, user_id, or tenant_id for all of it")
        return "tenant", tenant, ""

    async def limits(self, request: Request) -> Response:
        """The limits that a tenant has instead of its tier's."""
        tenant_id = check_tenant(await self._admin(request), request.path_params["tenant_id"])
        assert tenant_id is not None
        replies = await self._pod.commands.call(
            "HMGET", self._pod.keys.tenant_limits(tenant_id), *TENANT_LIMITS
        )
        found = zip(TENANT_LIMITS, replies, strict=True)
        return json_response(
            {name: _limit(name, value.decode()) for name, value in found if value is not None}
        )

    async def set_limits(self, request: Request) -> Response:
        """Set them, all at once: what is left out is the tier's again. For operators only."""
        grant = await self._operator(request, "change a tenant's limits")
        tenant_id = check_tenant(grant, request.path_params["tenant_id"])
        assert tenant_id is not None
        asked = await self._body(request, dict[str, Annotated[int, msgspec.Meta(ge=0, le=LIMIT_MAX)] | str])
        if any(name not in TENANT_LIMITS for name in asked):
            raise ClientError(422, "invalid_field", f"limits are {', '.join(TENANT_LIMITS)}")
        for name, value in asked.items():
            if name in NUMERIC_LIMITS and not isinstance(value, int):
                raise ClientError(422, "invalid_field", f"{name} must be a whole number from 0")
            if name not in NUMERIC_LIMITS and value not in BUSY_POLICIES:
                raise ClientError(422, "invalid_field", f"{name} is one of {', '.join(BUSY_POLICIES)}")
        key, call = self._pod.keys.tenant_limits(tenant_id), self._pod.commands.call
        if asked:  # first: a send in between must not go by no limits at all
            await call("HSET", key, *[part for pair in asked.items() for part in pair])
        await call("HDEL", key, *[name for name in TENANT_LIMITS if name not in asked], "none")
        return json_response(asked)

    async def log_level(self, request: Request) -> Response:
        """The level of this pod's log. For operators only."""
        await self._operator(request, "see the log level")
        return self._told_level()

    async def set_log_level(self, request: Request) -> Response:
        """Change it, all the time or for ``for_s`` seconds. For operators only."""
        await self._operator(request, "change the log level")
        asked = await self._body(request, LogLevelBody)
        self._pod.level.change(asked.level, asked.for_s)
        return self._told_level()

    def _told_level(self) -> Response:
        switch = self._pod.level
        return json_response(
            {
                "pod_id": self._pod.id,
                "level": LEVEL.name,
                "configured": switch.configured,
                "left_s": None if switch.left_s is None else round(switch.left_s, 3),
                "lines_dropped": OUTPUT.dropped,
                "suppressed": OUTPUT.floods.suppressed,
            }
        )

    async def _operator(self, request: Request, what: str) -> Grant:
        grant = await self._admin(request)
        if grant.tenant_id not in (None, OPERATOR):
            raise ClientError(403, "forbidden", f"only an operator's token may {what}")
        return grant

    async def _admin(self, request: Request) -> Grant:
        grant = await self._pod.authenticator.grant(bearer_token(request))
        check_scope(grant, "admin")
        return grant

    async def _body(self, request: Request, kind: Any) -> Any:
        try:
            return msgspec.json.decode(await read_body(request, self._pod.settings), type=kind)
        except msgspec.ValidationError as error:
            raise invalid_field(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ClientError(400, "not_json", f"the body is not JSON: {error}") from None


def _limit(name: str, value: str) -> int | str:
    return int(value) if name in NUMERIC_LIMITS else value


def _checked(value: str | None, name: str, check: Callable[[str, str], str]) -> str | None:
    return None if value is None else check(value, name)


def _whole(text: str, name: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise ClientError(400, "invalid_field", f"{name} must be a whole number from {least} to {most}")
    return int(text)

"""``POST /api/broadcast``: an event for many."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from backplane.keys import TIERS
from gateway.chat import check_depth, invalid_field
from gateway.errors import ClientError
from gateway.http import Endpoint, bearer_token, header, json_response, read_body
from gateway.identity import OPERATOR, Grant, check_scope, check_session, check_tenant, valid_id
from gateway.pod import Pod
from gateway.topics import ANNOUNCEMENTS, check_topic

_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class BroadcastTo(msgspec.Struct, forbid_unknown_fields=True):
    """Whom it is for: one of them."""

    tenant: bool = False
    tier: str | None = None
    agent_id: _Id | None = None
    topic: _Id | None = None
    session_id: _Id | None = None


class BroadcastBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /api/broadcast``."""

    to: BroadcastTo
    payload: msgspec.Raw
    tenant_id: str | None = None


def broadcast_endpoint(pod: Pod) -> Endpoint:
    """The endpoint."""

    async def broadcast(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        check_scope(grant, "broadcast")
        said = _decode(await read_body(request, pod.settings), pod.settings.json_depth_max)
        stated = said.tenant_id if said.tenant_id is not None else header(request, "X-Tenant-ID")
        tenant_id = check_tenant(grant, stated)
        await _publish(pod, grant, tenant_id, said.to, said.payload)
        return json_response({"success": True})

    return broadcast


async def _publish(pod: Pod, grant: Grant, tenant_id: str | None, to: BroadcastTo, payload: Any) -> None:
    if to.tier is not None:
        if to.tier not in TIERS:
            raise ClientError(400, "unknown_tier", f"to.tier must be one of {', '.join(TIERS)}")
        await pod.events.announce(tenant_id, to.tier, f"tier:{to.tier}", payload)
    elif tenant_id is None and not (to.tenant and grant.tenant_id == OPERATOR):
        raise ClientError(400, "missing_id", "tenant_id is needed")
    elif to.tenant:
        await pod.events.announce(tenant_id, None, ANNOUNCEMENTS, payload)
    elif to.session_id is not None:
        session_id = valid_id(to.session_id, "to.session_id")
        check_session(grant, session_id, "to.session_id")
        callbacks = await pod.session_log.callback_list(str(tenant_id), session_id)
        await pod.events.log(callbacks, str(tenant_id), session_id, payload)
    else:
        topic = f"agent:{to.agent_id}" if to.agent_id is not None else str(to.topic)
        check_topic(grant, topic)
        await pod.events.publish(str(tenant_id), topic, payload)


def _decode(raw: bytes, depth: int) -> BroadcastBody:
    check_depth(raw, depth)
    try:
        said = msgspec.json.decode(raw, type=BroadcastBody)
        msgspec.json.decode(said.payload)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(400, "not_json", f"the body is not JSON: {error}") from None
    to = said.to
    if [to.tenant, to.tier, to.agent_id, to.topic, to.session_id].count(None) + (not to.tenant) != 4:
        detail = "to must be one of tenant: true, tier, agent_id, topic, session_id"
        raise ClientError(422, "invalid_field", detail)
    return said

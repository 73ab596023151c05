"""``GET /api/chat/tasks/{task_id}`` and ``POST /api/chat/tasks/{task_id}/cancel``."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.chat import check_depth, invalid_field
from gateway.errors import ClientError
from gateway.http import bearer_token, json_response, read_body
from gateway.pod import Pod
from gateway.send_endpoint import stated

PATH = "/api/chat/tasks/{task_id}"


class _Cancel(msgspec.Struct):
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""


def task_routes(pod: Pod) -> list[Route]:
    """The routes."""

    async def show(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        return json_response(await pod.desk.show(grant, stated(request), request.path_params["task_id"]))

    async def cancel(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        raw = await read_body(request, pod.settings)
        reason = _reason(raw, pod.settings.json_depth_max) if raw else ""
        task_id = request.path_params["task_id"]
        return json_response(await pod.desk.cancel(grant, stated(request), task_id, None, reason))

    return [Route(PATH, show), Route(f"{PATH}/cancel", cancel, methods=["POST"])]


def _reason(raw: bytes, depth: int) -> str:
    check_depth(raw, depth)
    try:
        return msgspec.json.decode(raw, type=_Cancel).reason
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(400, "not_json", f"the body is not JSON: {error}") from None

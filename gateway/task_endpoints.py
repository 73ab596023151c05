"""``/api/chat/tasks/{task_id}``: how a task goes, its cancel, and answers to what its agent asks.

``/api/chat/cancel`` is for who knows only the ``client_message_id`` with which it was sent.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

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


class CancelBody(msgspec.Struct):
    """Body of ``POST /api/chat/tasks/{task_id}/cancel``; it may be left out."""

    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""


class NamedCancelBody(msgspec.Struct):
    """Body of ``POST /api/chat/cancel``: which message or task."""

    task_id: str | None = None
    client_message_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    reason: Annotated[str, msgspec.Meta(max_length=256)] = ""


class InputBody(msgspec.Struct):
    """Body of ``POST /api/chat/tasks/{task_id}/input``."""

    input_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    value: msgspec.Raw


T = TypeVar("T")


def task_routes(pod: Pod) -> list[Route]:
    """The routes."""

    async def show(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        return json_response(await pod.desk.show(grant, stated(request), request.path_params["task_id"]))

    async def cancel(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        raw = await read_body(request, pod.settings)
        reason = _decode(raw, CancelBody, pod.settings.json_depth_max).reason if raw else ""
        task_id = request.path_params["task_id"]
        return json_response(await pod.desk.cancel(grant, stated(request), task_id, None, reason))

    async def cancel_named(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        said = _decode(await read_body(request, pod.settings), NamedCancelBody, pod.settings.json_depth_max)
        told = await pod.desk.cancel(
            grant, stated(request), said.task_id, said.client_message_id, said.reason
        )
        return json_response(told)

    async def answer(request: Request) -> Response:
        grant = await pod.authenticator.grant(bearer_token(request))
        said = _decode(await read_body(request, pod.settings), InputBody, pod.settings.json_depth_max)
        task_id = request.path_params["task_id"]
        told = await pod.desk.answer(grant, stated(request), task_id, said.input_id, said.value)
        return json_response(told)

    return [
        Route(PATH, show),
        Route(f"{PATH}/cancel", cancel, methods=["POST"]),
        Route("/api/chat/cancel", cancel_named, methods=["POST"]),
        Route(f"{PATH}/input", answer, methods=["POST"]),
    ]


def _decode(raw: bytes, kind: type[T], depth: int) -> T:
    check_depth(raw, depth)
    try:
        msgspec.json.decode(raw)  # what is passed on unread has to be JSON, too
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise invalid_field(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ClientError(400, "not_json", f"the body is not JSON: {error}") from None

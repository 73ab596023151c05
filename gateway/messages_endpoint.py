"""``GET /api/chat/sessions/{session_id}/messages``: a session's log, page by page, without a socket."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from backplane.errors import InvalidCursor, NotYours
from backplane.messages import with_position
from backplane.position import Position, parse_cursor
from backplane.session_log import History
from gateway.errors import ClientError, session_taken
from gateway.http import Endpoint, bearer_token, header, json_bytes, query
from gateway.identity import Stated, check_scope
from gateway.pod import Pod

_NAMES = ("X-Tenant-ID", "X-Tenant-Tier", "session_id", "X-User-ID", "X-Agent-ID")


def messages_endpoint(pod: Pod) -> Endpoint:
    """The endpoint. With ``?cursor=`` the messages behind it, else from the oldest on."""

    async def messages(request: Request) -> Response:
        stated = Stated(
            header(request, "X-Tenant-ID"),
            header(request, "X-Tenant-Tier"),
            request.path_params["session_id"],
            header(request, "X-User-ID"),
            header(request, "X-Agent-ID"),
            _NAMES,
        )
        identity = await pod.authenticator.identify(bearer_token(request), stated)
        check_scope(identity.grant, "listen")
        cursor = _cursor(query(request).get("cursor"))
        session = await pod.session_log.locate(identity.tenant_id, identity.session_id)
        try:
            return json_bytes(_encode(await pod.session_log.history(session, cursor, identity.owner)))
        except NotYours:
            raise session_taken() from None

    return messages


def _cursor(text: str | None) -> Position | None:
    try:
        return parse_cursor(text) if text else None
    except InvalidCursor as error:
        raise ClientError(400, "invalid_cursor", str(error)) from None


def _encode(history: History) -> bytes:
    """The answer: its messages are copied as they stand in the log."""
    batch = history.batch
    found = [with_position(entry, batch.epoch, seq) for seq, entry in enumerate(batch.entries, batch.first)]
    last = batch.last if batch.entries else history.start
    more = b"true" if last < history.head else b"false"
    return b'{"messages":[%b],"status":"%b","cursor":"%b","oldest":%d,"head":%d,"more":%b}' % (
        b",".join(found),
        history.status.encode(),
        str(Position(batch.epoch, last)).encode() if batch.epoch else b"",
        history.oldest,
        history.head,
        more,
    )

"""What a client is told when something is wrong: [P].

`ERROR_CODES` is the closed list of ``error_code``, in problem documents (HTTP) and ``error`` messages alike.
"""

from __future__ import annotations

from gateway.close_codes import CloseCode

ERROR_CODES = {
    "not_json": "the body or message is not JSON",
    "not_an_object": "it is JSON, but not an object",
    "unknown_type": "a message's type is none that clients may send",
    "invalid_field": "a field is missing, has a wrong type or is out of bounds; the text says which",
    "missing_id": "an id that is needed was not given",
    "invalid_id": "an id is empty, too long or has characters that are not allowed",
    "unknown_tier": "the tier is none of free, advance, professional, enterprise",
    "invalid_cursor": "the cursor is not epoch:seq as the server sent it",
    "bad_request": "the request cannot be understood; the text says why",
    "unsupported_version": "the upgrade asks for another version of the WebSocket protocol than 13",
    "not_text": "a binary message was sent; messages are JSON text",
    "message_too_large": "a message or body is over the size limit",
    "token_missing": "there is no token",
    "token_invalid": "the token's signature, audience, issuer or claims are not right",
    "token_expired": "the token has expired, or is not valid yet",
    "token_revoked": "the token was revoked before its time",
    "scope_missing": "the token lacks the scope that this needs",
    "origin_not_allowed": "pages of this web origin may not use the service",
    "keys_unavailable": "the keys by which tokens are verified cannot be had now; try again shortly",
    "session_taken": "the session belongs to another user",
    "agent_forbidden": "the tenant or user may not speak to this agent",
    "access_unknown": "who may speak to which agent cannot be told now; try again shortly",
    "forbidden": "the token does not allow this tenant, tier, session, user or agent",
    "rate_limited": "a rate limit is reached; limit says which, retry_after_ms or Retry-After how long",
    "too_many_connections": "the tenant, session, user or address has too many sockets; limit says which",
    "pod_full": "this pod holds as many sockets as it may; connect again, to another",
    "request_timeout": "the request did not come in time",
    "unsupported_encoding": "the body is compressed; send it as it is",
    "too_many_in_flight": "the socket has too many sends that are not answered yet; wait for their acks",
    "not_found": "there is nothing here",
    "method_not_allowed": "this address does not take that method",
    "replaced": "a newer connection of the session took over",
    "closed_by_admin": "an administrator closed the connection; the text says why",
    "too_many_revocations": "there is no room for one more revocation",
    "unknown_task": "there is no such task, or it ended too long ago",
    "input_not_wanted": "the task does not wait for this input, or it was answered already",
    "input_expired": "the input came too late",
    "idempotency_conflict": "the Idempotency-Key or client_message_id was used for another message",
    "session_busy": "a task of the session still runs, and its policy refuses another one",
    "too_many_tasks": "too many tasks of the session run",
    "queue_full": "the agents' queue is full; try again later",
    "redis_unavailable": "the message store cannot be reached; try again shortly",
    "draining": "this pod is about to stop; connect again",
    "internal_error": "a mistake of ours; it has been logged",
    "agent_failed": "the agent ended the task with an error",
    "agent_timeout": "the agent did not finish the task in time",
    "cancelled": "the task was cancelled",
}


class ClientError(Exception):
    """Something that the client has to be told.

    Attributes:
        status: HTTP status.
        error_code: of `ERROR_CODES`.
        detail: what is wrong and what to do, in the client's words.
        retry_after_s: when it may be tried again; None where that does not help.
        limit: the name of the limit that was reached, if it was one.
        headers: what an HTTP answer carries besides.
    """

    def __init__(
        self,
        status: int,
        error_code: str,
        detail: str,
        *,
        retry_after_s: float | None = None,
        limit: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        assert error_code in ERROR_CODES, error_code
        self.status = status
        self.error_code = error_code
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.limit = limit
        self.headers = headers
        super().__init__(detail)

    @property
    def is_for_later(self) -> bool:
        """Whether it may go well at another time, as the same request."""
        return self.status in (429, 503)

    @property
    def close_code(self) -> CloseCode:
        """How a socket ends for which this is the reason."""
        if self.status == 401:
            return CloseCode.BAD_TOKEN
        if self.status == 429:
            return CloseCode.RATE_LIMITED
        return CloseCode.FORBIDDEN if self.status == 403 else CloseCode.BAD_REQUEST


def redis_unavailable() -> ClientError:
    """For whatever needed Redis while it was away."""
    return ClientError(
        503, "redis_unavailable", "the message store cannot be reached; try again shortly", retry_after_s=1
    )


def session_taken() -> ClientError:
    """For who wants to use a session of another user."""
    return ClientError(403, "session_taken", "the session belongs to another user; use one of your own")

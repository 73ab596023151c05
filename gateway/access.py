"""Whether a tenant and user may speak to an agent, where another service knows that.

Asked with ``POST ACCESS_CHECK_URL`` and ``{"tenant_id", "tenant_tier", "user_id", "agent_id"}``. A 200 with
``{"allowed": true}`` or ``false``, or a 403 or 404 (which deny), is an answer; all else is a failure, and
then nobody is let through, unless ``ACCESS_CHECK_FAILURE=open``. The user is the one that the token names,
never a header's.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from typing import NamedTuple

from backplane.log import Logger
from backplane.settings import Settings
from gateway.errors import ClientError
from gateway.fetch import Fetcher, FetchError
from gateway.identity import Identity

_MOST_ANSWERS = 10_000
_MOST_WAITING = 256
_MOST_OF_A_TENANT = 32
_AT_ONCE = 16  # an HTTP client with a queue of its own gets slow long before that is long


class _Who(NamedTuple):
    tenant_id: str
    tenant_tier: str
    user_id: str | None
    agent_id: str


class AgentAccess:
    """Asks, and remembers the answers for a while.

    Raises:
        ConfigurationError: the address is none.
    """

    def __init__(self, settings: Settings, log: Logger) -> None:
        self._log = log
        self._ttl_s = settings.access_check_ttl_s
        self._open = settings.access_check_failure == "open"
        self._answers: OrderedDict[_Who, tuple[bool, float]] = OrderedDict()
        self._asking: dict[_Who, asyncio.Task[bool]] = {}
        self._waiting = Counter[str]()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._told = ""
        self._fetcher: Fetcher | None = None
        if settings.access_check_url:
            self._fetcher = Fetcher(
                settings.access_check_url, "ACCESS_CHECK_URL", settings.access_check_timeout_s
            )

    async def check(self, identity: Identity, agent_id: str) -> None:
        """Refuse an agent to which the tenant or user may not speak.

        Raises:
            ClientError: 403, or 503 where that is not known.
        """
        if self._fetcher is None:
            return
        who = _Who(identity.tenant_id, identity.tenant_tier, identity.grant.user_id, agent_id)
        allowed, until = self._answers.get(who, (False, 0.0))
        if until <= time.monotonic():
            try:
                allowed = await asyncio.shield(self._ask(self._fetcher, who))
            except FetchError as error:
                allowed = self._on_failure(str(error))
        if not allowed:
            raise ClientError(403, "agent_forbidden", f"you may not speak to the agent {agent_id}")

    def _ask(self, fetcher: Fetcher, who: _Who) -> asyncio.Task[bool]:
        """One question at a time for the same; who comes meanwhile shares its answer.

        Raises:
            ClientError: 503, too many questions wait: one tenant must not keep the others from asking. That
                we are busy says nothing of who may do what, so it never lets anybody through.
        """
        asking = self._asking.get(who)
        if asking is None:
            of_tenant = self._waiting[who.tenant_id]
            if of_tenant >= _MOST_OF_A_TENANT or len(self._asking) >= _MOST_WAITING:
                raise _unknown("too many questions about agents wait for their answers; try again shortly")
            self._waiting[who.tenant_id] += 1
            asking = self._asking[who] = asyncio.create_task(self._answer(fetcher, who))
            asking.add_done_callback(lambda done: self._asked(who, done))
        return asking

    async def _answer(self, fetcher: Fetcher, who: _Who) -> bool:
        async with self._slots:
            answer = await fetcher.ask(who._asdict())
        if answer.status in (403, 404):
            return False
        document = answer.document
        allowed = document.get("allowed") if isinstance(document, dict) else None
        if answer.status != 200 or not isinstance(allowed, bool):
            raise FetchError(f"HTTP status {answer.status} without an answer")
        return allowed

    def _asked(self, who: _Who, done: asyncio.Task[bool]) -> None:
        del self._asking[who]
        self._waiting[who.tenant_id] -= 1
        if not self._waiting[who.tenant_id]:
            del self._waiting[who.tenant_id]
        if done.cancelled() or done.exception() is not None:
            return
        self._told = ""
        self._answers[who] = (done.result(), time.monotonic() + self._ttl_s)
        self._answers.move_to_end(who)
        if len(self._answers) > _MOST_ANSWERS:
            self._answers.popitem(last=False)

    def _on_failure(self, reason: str) -> bool:
        if reason != self._told:
            self._told = reason
            self._log.error("access_check_failed", reason=reason, let_through=self._open)
        if self._open:
            return True
        raise _unknown("it cannot be told now whether you may speak to this agent; try again shortly")


def _unknown(detail: str) -> ClientError:
    return ClientError(503, "access_unknown", detail, retry_after_s=2)

"""How a task ends that the AES does not end, and what the AES is told."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from backplane.messages import with_position
from backplane.task_end import cancel_action, end_entry, restarted
from gateway.errors import ERROR_CODES

NOW = 1_769_860_800.25
AT = "2026-01-31T12:00:00.250"


def message(status: str = "timeout", tier: str = "free", why: str = "") -> dict[str, Any]:
    """As a client reads it."""
    entry = end_entry(status, "t-1", "s-1", "acme", tier, why, NOW)
    whole: dict[str, Any] = json.loads(with_position(entry.body, "e1", 7))
    return whole


def action(**changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "action_id": UUID(int=1),
        "task_id": "t-1",
        "session_id": "s-1",
        "tenant_id": "acme",
        "tier": "free",
        "agent_id": "sales",
        "context": "agent-sales",
        "queue_name": "q",
        "callback_queue": "c",
        "reason": "enough",
        "now": NOW,
        **changes,
    }
    decoded: dict[str, Any] = json.loads(cancel_action(**said))
    return decoded


# The last message.


@pytest.mark.parametrize(
    ("status", "code", "retryable"), [("timeout", "agent_timeout", True), ("cancelled", "cancelled", False)]
)
def test_a_last_message(status: str, code: str, retryable: bool) -> None:
    """An error of the contract, with a code of the closed list, and a place in the log."""
    told = message(status)
    data = told.pop("data")

    assert told == {
        "timestamp": f"{AT}Z",
        "type": "error",
        "task_id": "t-1",
        "session_id": "s-1",
        "tenant_id": "acme",
        "tenant_tier": "free",
        "metadata": {"epoch": "e1", "seq": 7},
    }
    assert (data["task_id"], data["status"]) == ("t-1", status)
    assert (data["error_code"], data["retryable"], data["error_type"]) == (code, retryable, None)
    assert data["error"]
    assert code in ERROR_CODES


def test_why() -> None:
    """What a client gave as its reason is told to all who listen; without one nothing is."""
    assert message("cancelled", why='en"ough\n')["data"]["metadata"] == {"reason": 'en"ough\n'}
    assert message("cancelled")["data"]["metadata"] == {}


def test_a_tier_that_is_not_known() -> None:
    """Is null, as in every message."""
    assert message(tier="")["tenant_tier"] is None


def test_what_a_last_message_is_known_by() -> None:
    """Task and status, whoever makes it and when: two routers that do it write one."""
    entry = end_entry("timeout", "t-1", "s-1", "acme", "free", "", NOW)
    again = end_entry("timeout", "t-1", "s-1", "acme", "", "late", NOW + 9)
    others = [
        end_entry(status, task, "s-1", "acme", "free", "", NOW)
        for status, task in (("cancelled", "t-1"), ("timeout", "t-2"))
    ]

    assert entry.digest == again.digest
    assert len({entry.digest, *(other.digest for other in others)}) == 3
    assert len(entry.digest) == 12
    assert (entry.session_id, entry.kind, entry.task_id, entry.detail) == ("s-1", "t", "t-1", "timeout")


# The word to the AES.


def test_a_cancel_action() -> None:
    """The base fields of the contract's actions, and the reason."""
    at = f"{AT}000+00:00"
    base = {"tenant_id": "acme", "tenant_tier": "free", "session_id": "s-1"}

    assert action() == {
        "action_id": str(UUID(int=1)),
        "action_type": "chat.cancel",
        "task_id": "t-1",
        **base,
        "execution_context": {
            "context_id": "agent-sales",
            "context_type": "agent",
            **base,
            "primary_agent_id": "sales",
            "agents": ["sales"],
            "collections": [],
            "metadata": {},
            "created_at": at,
        },
        "data": {},
        "metadata": {"headers": {}, "created_at": at},
        "callback_queue": "c",
        "queue_metadata": {"enqueued_at": at, "target_domain": "execution", "queue_name": "q"},
        "timestamp": at,
        "reason": "enough",
    }


@pytest.mark.parametrize("kind", ["agent", "workflow", "collection"])
def test_a_cancel_action_of_each_context(kind: str) -> None:
    """The type is that of the action which it cancels, also where the name has dashes."""
    context = action(context=f"{kind}-a-b")["execution_context"]

    assert (context["context_id"], context["context_type"]) == (f"{kind}-a-b", kind)


def test_a_cancel_action_with_any_reason() -> None:
    """What a client says stays text."""
    assert action(reason='","x":"\n\0é')["reason"] == '","x":"\n\0é'


# An action that has waited.


def test_an_action_that_has_waited() -> None:
    """Its time begins when it is pushed; nothing else of it changes."""
    waited = {
        "task_id": "t-1",
        "message": "hello",
        "timeout": 30,
        "deadline_at": "2026-01-31T11:00:30+00:00",
        "queue_metadata": {"enqueued_at": "2026-01-31T11:00:00+00:00", "queue_name": "q"},
        "more": {"a": [1]},
    }
    assert json.loads(restarted(json.dumps(waited), NOW, NOW + 30)) == {
        **waited,
        "deadline_at": "2026-01-31T12:00:30.250000+00:00",
        "queue_metadata": {"enqueued_at": f"{AT}000+00:00", "queue_name": "q"},
    }


@pytest.mark.parametrize(("left_s", "timeout"), [(12.4, 12), (0.2, 1), (-5.0, 1)])
def test_the_time_of_an_action_that_found_no_room(left_s: float, timeout: int) -> None:
    """What of it is left, in whole seconds, and one at least."""
    action = restarted('{"timeout":30,"queue_metadata":{}}', NOW, NOW + left_s)
    assert json.loads(action)["timeout"] == timeout

"""What a pod itself says on a socket: whole frames, with the fields that the contract names."""

from __future__ import annotations

import json

import pytest

from backplane.messages import Message, timestamp, to_entry
from gateway import outgoing
from gateway.errors import ClientError
from gateway.frames import encode_text
from gateway.identity import ANYONE, Identity
from gateway.protocol import BadMessage
from tests.unit.gateway.fakes import messages, split_frames

IDENTITY = Identity("acme", "advance", "s-1", "ann@example.org", None, ANYONE)
NOW = 1_769_860_800.25
ENVELOPE = ["timestamp", "type", "task_id", "session_id", "tenant_id", "tenant_tier", "data", "metadata"]


def entry(text: str) -> bytes:
    return to_entry(Message(timestamp(NOW), "agent_response", "t", "s", "a", "free", {"r": text}, {}))


def test_message_has_the_contracts_fields() -> None:
    """One JSON text frame, with every field of the envelope, and no position: it is in no log."""
    message = json.loads(outgoing.message(IDENTITY, NOW, "ping", {"a": 1}))

    assert list(message) == ENVELOPE
    assert message == {
        "timestamp": "2026-01-31T12:00:00.250Z",
        "type": "ping",
        "task_id": None,
        "session_id": "s-1",
        "tenant_id": "acme",
        "tenant_tier": "advance",
        "data": {"a": 1},
        "metadata": {},
    }


def test_message_about_a_task_says_so_outside_too() -> None:
    """A task's id stands where all messages have it."""
    message = json.loads(outgoing.message(IDENTITY, NOW, "ack", {"task_id": "t-1"}))

    assert message["task_id"] == message["data"]["task_id"] == "t-1"


def test_message_to_somebody_unknown() -> None:
    """Who was refused is told so without an identity."""
    message = json.loads(outgoing.error(None, NOW, ClientError(401, "token_missing", "a token is needed")))

    assert (message["session_id"], message["tenant_id"], message["tenant_tier"]) == (None, None, None)
    assert message["data"]["error_code"] == "token_missing"


@pytest.mark.parametrize("ref", ["r-1", 7, 0, "", 2**70])
def test_answer_carries_the_ref(ref: str | int) -> None:
    """A client knows by its own ref what an answer belongs to, also by one that is empty, zero or huge."""
    message = json.loads(outgoing.answer(IDENTITY, NOW, "pong", ref, {}))

    assert message["data"] == {"ref": ref}


def test_answer_without_a_ref() -> None:
    """Who gave none is told none."""
    message = json.loads(outgoing.answer(IDENTITY, NOW, "pong", None, {"seq": 1}))

    assert message["data"] == {"seq": 1}


def test_error_has_the_contracts_fields() -> None:
    """An error says what, under which code, whose fault it is, and that trying again does not help."""
    message = json.loads(
        outgoing.error(IDENTITY, NOW, ClientError(400, "not_json", "the message is not JSON"), "r-1")
    )

    assert message["type"] == "error"
    assert message["data"] == {
        "ref": "r-1",
        "error": "the message is not JSON",
        "error_code": "not_json",
        "error_type": "client",
        "task_id": None,
        "status": "failed",
        "retryable": False,
        "metadata": {},
    }


def test_error_that_passes() -> None:
    """What may be tried again says so, and when."""
    message = json.loads(
        outgoing.error(IDENTITY, NOW, ClientError(503, "redis_unavailable", "away", retry_after_s=2))
    )

    assert message["data"]["error_type"] == "server"
    assert message["data"]["retryable"] is True
    assert message["data"]["retry_after_ms"] == 2_000
    assert "limit" not in message["data"]


@pytest.mark.parametrize(
    ("retry_after_s", "ms"),
    [(0, 0), (0.0001, 1), (0.05, 50), (0.0501, 51), (1.5, 1_500), (86_400, 86_400_000)],
)
def test_error_over_a_limit(retry_after_s: float, ms: int) -> None:
    """Which limit was reached, and when to come back: in whole milliseconds, never too early."""
    problem = ClientError(429, "rate_limited", "slower", retry_after_s=retry_after_s, limit="messages")
    message = json.loads(outgoing.error(IDENTITY, NOW, problem))
    data = message["data"]

    assert (data["retryable"], data["retry_after_ms"], data["limit"]) == (True, ms, "messages")


def test_error_of_a_message_carries_its_ref() -> None:
    """The ref of a message that could not be taken is the message's own; so is when to try again."""
    bad = BadMessage(ClientError(429, "too_many_in_flight", "wait", retry_after_s=1, limit="sends"), "mine")
    message = json.loads(outgoing.error(IDENTITY, NOW, bad))

    assert message["data"]["ref"] == "mine"
    assert message["data"]["retryable"] is True
    assert message["data"]["retry_after_ms"] == 1_000
    assert message["data"]["limit"] == "sends"


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_log_frames_carry_their_positions(count: int) -> None:
    """Consecutive entries become as many frames, each with its own seq and the epoch."""
    entries = [entry(f"text {number}") for number in range(count)]
    data = outgoing.log_frames("e1", 41, entries)

    assert [message["metadata"] for message in messages(data)] == [
        {"epoch": "e1", "seq": 41 + number} for number in range(count)
    ]
    assert [message["data"]["r"] for message in messages(data)] == [f"text {n}" for n in range(count)]


@pytest.mark.parametrize("size", [0, 100, 126, 65_535, 70_000])
def test_frames_of_every_length(size: int) -> None:
    """The length of a frame is that of its message in bytes, not in characters."""
    text = "ü" * size
    data = outgoing.log_frames("e1", 1, [entry(text), entry("end")])
    first, second = split_frames(data)

    assert json.loads(first.payload)["data"]["r"] == text
    assert json.loads(second.payload)["data"]["r"] == "end"
    assert data.startswith(encode_text(first.payload))

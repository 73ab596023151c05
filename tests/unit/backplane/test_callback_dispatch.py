"""What each callback becomes: every shape of the contract, and bad input of every kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hiredis import pack_command
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backplane.appending import ARGUMENTS_AN_ENTRY, Entry
from backplane.errors import BadCallback
from backplane.keys import is_id
from backplane.messages import with_position
from backplane.router import dispatch as module
from backplane.router.dispatch import REASONS, dispatch
from backplane.router.transfer import judge

TENANT = "acme"
AT = "2026-01-31T12:00:00.000Z"
Json = dict[str, Any]


def completed(**changes: Any) -> Json:
    """A callback as the AES documents it; a change to ``...`` leaves the field out."""
    whole: Json = {
        "action_id": "a-1",
        "action_type": "execution.callback",
        "task_id": "t-1",
        "tenant_id": TENANT,
        "tenant_tier": "professional",
        "session_id": "s-1",
        "execution_context": {"context_id": "agent-7", "context_type": "agent", "agents": ["7"]},
        "data": {},
        "metadata": {"headers": {"x": "y"}, "created_at": "2026-01-31T11:59:59+01:00"},
        "callback_queue": "orchestrator:acme:callbacks",
        "timeout": 120,
        "queue_metadata": {"enqueued_at": "2026-01-31T11:59:59", "tier_priority": 2},
        "timestamp": "2026-01-31T11:59:59.123456Z",
        "status": "completed",
        "result": {
            "response": "The answer.",
            "sources": [{"id": 1, "title": "A page"}],
            "agent_info": {"model_used": "m-4", "provider": "p"},
        },
        "execution_time": 2.5,
        "tokens_used": {"prompt": 10, "completion": 20},
    }
    whole.update(changes)
    return {name: value for name, value in whole.items() if value is not ...}


def failed(**changes: Any) -> Json:
    result = {"error": {"type": "ToolError", "message": "No tool.", "tool": "search"}}
    return completed(**{"status": "failed", "result": result, **changes})


def chunk(data: Json | None = None, **changes: Any) -> Json:
    text = {"delta": "Hello", "offset": 0, "part": "text"} | (data or {})
    gone = {"status": ..., "result": ..., "execution_time": ..., "tokens_used": ...}
    return completed(**{"action_type": "execution.chunk", "data": text, **gone, **changes})


def progress(data: Json | None = None, **changes: Any) -> Json:
    said = {"status": "working", "step": "search", "message": "Looking.", "progress": 0.5} | (data or {})
    return chunk(**{"action_type": "execution.progress", "data": said, **changes})


def encode(callback: object) -> bytes:
    return json.dumps(callback).encode()


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def whole(entry: Entry) -> Json:
    """The message as a client gets it; checked for what every message of the contract has."""
    if entry.kind == "c":
        return piece(entry)
    sent = with_position(entry.body, "e1", 7)
    assert b"\n" not in sent
    assert b"\r" not in sent
    message: Json = json.loads(sent.decode(), parse_constant=_no_constant)
    assert message["timestamp"] == AT
    assert entry.body[14:38] == AT.encode()
    assert message["tenant_id"] == TENANT
    assert message["session_id"] == entry.session_id
    assert message["tenant_tier"] in {None, "free", "advance", "professional", "enterprise"}
    assert message["metadata"] == {"epoch": "e1", "seq": 7}
    assert message["type"] in {"agent_response", "error", "task_update"}
    return message


def piece(entry: Entry) -> Json:
    """A piece of an answer, which is in no log; checked for what the scripts rely on."""
    assert (entry.digest, b"\n" in entry.body) == (b"", False)
    attempt, part, offset, chars = str(entry.detail).split(" ")
    delta = json.loads(b'"%b"' % entry.body, parse_constant=_no_constant)
    assert entry.body == msgspec.json.encode(delta)[1:-1]
    assert len(delta) == int(chars)
    assert is_id(entry.task_id)
    assert int(attempt) >= 1
    return {
        "task_id": entry.task_id, "delta": delta, "offset": None if offset == "-" else int(offset),
        "attempt": int(attempt), "part": part,
    }  # fmt: skip


def sent(callback: Json) -> Json:
    return whole(dispatch(encode(callback), TENANT, AT))


def refusal(raw: bytes | Json) -> str:
    with pytest.raises(BadCallback) as caught:
        dispatch(raw if isinstance(raw, bytes) else encode(raw), TENANT, AT)
    assert caught.value.reason in REASONS
    return caught.value.reason


def message_or_refusal(raw: bytes) -> Json | None:
    """What every input must end in: a whole message, or a reason of the closed list; never anything else."""
    entry = entry_or_refusal(raw)
    return whole(entry) if isinstance(entry, Entry) else None


def entry_or_refusal(raw: bytes) -> Entry | str:
    try:
        return dispatch(raw, TENANT, AT)
    except BadCallback as error:
        reason, detail = error.reason, error.detail
    assert reason in REASONS
    assert detail
    return reason


# What the contract describes.


class TestCompleted:
    def test_the_documented_callback(self) -> None:
        """An answer with all that the contract's agent_response has."""
        assert sent(completed()) == {
            "timestamp": AT,
            "type": "agent_response",
            "task_id": "t-1",
            "session_id": "s-1",
            "tenant_id": TENANT,
            "tenant_tier": "professional",
            "data": {
                "response": "The answer.",
                "sources": [{"id": 1, "title": "A page"}],
                "agent_info": {"model_used": "m-4", "provider": "p"},
                "task_id": "t-1",
                "status": "completed",
                "metadata": {
                    "processing_time": 2.5,
                    "tokens_used": {"prompt": 10, "completion": 20},
                    "model_used": "m-4",
                },
            },
            "metadata": {"epoch": "e1", "seq": 7},
        }

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"timestamp": "2026-01-31T11:59:59"}, id="naive timestamp"),
            pytest.param({"timestamp": "2026-01-31 11:59:59.5-05:30"}, id="offset timestamp"),
            pytest.param({"timestamp": 1769860799}, id="timestamp as a number"),
            pytest.param({"timestamp": "yesterday"}, id="no timestamp at all"),
            pytest.param({"unknown": {"a": [1, {"b": None}]}, "": 1}, id="unknown fields"),
            pytest.param(
                dict.fromkeys(
                    ["execution_context", "data", "metadata", "callback_queue", "timeout", "queue_metadata",
                     "timestamp", "tenant_id"], ...
                ),
                id="optional fields missing",
            ),
            pytest.param(
                dict.fromkeys(
                    ["execution_context", "data", "metadata", "callback_queue", "timeout", "queue_metadata",
                     "timestamp", "tenant_id", "attempt"]
                ),
                id="optional fields null",
            ),
            pytest.param({"action_id": "exec_cb_t-1"}, id="fixed action_id"),
            pytest.param({"action_id": ...}, id="no action_id"),
            pytest.param({"action_type": ...}, id="no action_type"),
            pytest.param({"action_type": None}, id="action_type null"),
            pytest.param({"action_type": ""}, id="action_type empty"),
            pytest.param({"action_type": "agent_execution_callback"}, id="action_type …_callback"),
            pytest.param({"action_type": "agent.callback"}, id="action_type ….callback"),
            pytest.param({"status": ...}, id="no status"),
            pytest.param({"status": "COMPLETED"}, id="status in capitals"),
            pytest.param({"status": "success"}, id="status success"),
            pytest.param({"tenant_tier": "professional"}, id="unchanged"),
        ],
    )  # fmt: skip
    def test_the_same_answer_from_liberal_producers(self, changes: Json) -> None:
        """What real producers do differently changes nothing of the message."""
        assert sent(completed(**changes)) == sent(completed())

    @pytest.mark.parametrize("name", ["result", "execution_result", "data"])
    def test_the_answer_under_another_name(self, name: str) -> None:
        """``result`` may be absent or null, with the answer under ``execution_result`` or ``data``."""
        answer = completed()["result"]
        for missing in (..., None):
            changes = {"result": missing, "execution_result": missing, "data": missing, name: answer}
            assert sent(completed(**changes)) == sent(completed())

    def test_result_comes_first(self) -> None:
        """Of two answers the documented place's is taken."""
        other = {"response": "other"}
        assert sent(completed(execution_result=other, data=other)) == sent(completed())

    def test_optional_numbers_may_be_null_or_missing(self) -> None:
        """Time and tokens are told as null, not invented."""
        for value in (None, ...):
            data = sent(completed(execution_time=value, tokens_used=value))["data"]
            assert data["metadata"]["processing_time"] is None
            assert data["metadata"]["tokens_used"] is None

    def test_an_answer_without_anything_else(self) -> None:
        """Clients find every documented key whatever the AES left out."""
        data = sent({"session_id": "s-1", "result": {"response": "hi"}})["data"]
        assert data == {
            "response": "hi", "sources": [], "agent_info": {}, "task_id": None, "status": "completed",
            "metadata": {"processing_time": None, "tokens_used": None, "model_used": None},
        }  # fmt: skip

    @pytest.mark.parametrize("result", [{}, {"response": None}, {"response": ""}])
    def test_an_empty_answer_is_an_answer(self, result: Json) -> None:
        """A run that ends without text still ends its task."""
        assert sent(completed(result=result))["data"]["response"] == ""

    def test_every_other_key_of_the_result_comes_as_it_is(self) -> None:
        """Digits, order, escapes and nesting of unknown keys are not decoded and encoded again."""
        extra = (
            '"cost": 0.10000000000000000001, "big": 123456789012345678901234567890, "exp": 1E+2, '
            '"text": "\\u00e9\\/\\ud83d\\ude00é", "z": {"b": 1, "a": [true, null, -0.0]}, "confidence": null'
        )
        entry = dispatch(
            f'{{"session_id": "s-1", "result": {{"response": "x", {extra}}}}}'.encode(), TENANT, AT
        )
        assert whole(entry)["data"]["confidence"] is None
        for part in extra.split(", "):
            value = part.partition(": ")[2].rstrip("}]").encode()
            assert value in entry.body

    def test_the_answers_text_comes_as_it_is(self) -> None:
        """The answer's escapes are not decoded: a large answer costs no time."""
        entry = dispatch(rb'{"session_id":"s-1","result":{"response":"\u00e9\/\n\ud83d\ude00"}}', TENANT, AT)
        assert rb'"response":"\u00e9\/\n\ud83d\ude00"' in entry.body
        assert whole(entry)["data"]["response"] == "é/\n\N{GRINNING FACE}"

    def test_what_the_router_says_wins_over_result_keys_of_the_same_name(self) -> None:
        """A result cannot claim another task, status or timing; its other metadata stay."""
        result = {
            "response": "x",
            "task_id": "t-9",
            "status": "failed",
            "metadata": {"k": 1, "model_used": "z"},
        }
        data = sent(completed(result=result))["data"]
        assert (data["task_id"], data["status"]) == ("t-1", "completed")
        assert data["metadata"] == {
            "k": 1, "processing_time": 2.5, "model_used": None,
            "tokens_used": {"prompt": 10, "completion": 20},
        }  # fmt: skip

    def test_pretty_printed_json_becomes_one_line(self) -> None:
        """Line ends between tokens would break published batches apart."""
        for callback in (completed(), failed(), progress({"tool": {"args": [1, 2]}}), chunk()):
            raw = json.dumps(callback, indent=2).replace("\n", "\r\n").encode()
            pretty = whole(dispatch(raw, TENANT, AT))
            assert pretty == sent(callback)

    def test_an_unknown_tier_is_left_out(self) -> None:
        """The tier adorns a message; a new or wrong one loses no answer."""
        tiers: list[Any] = ["gold", 3, None, ["free"], {}]
        for tier in tiers:
            assert sent(completed(tenant_tier=tier))["tenant_tier"] is None


class TestFailed:
    def test_the_documented_callback(self) -> None:
        """An error with all that the contract's error has."""
        message = sent(failed())
        assert message["type"] == "error"
        assert message["data"] == {
            "error": "No tool.",
            "error_code": "agent_failed",
            "error_type": "ToolError",
            "task_id": "t-1",
            "status": "failed",
            "retryable": False,
            "metadata": {
                "tool": "search", "processing_time": 2.5, "model_used": None,
                "tokens_used": {"prompt": 10, "completion": 20},
            },
        }  # fmt: skip

    @pytest.mark.parametrize(
        ("status", "told", "code", "retryable"),
        [
            ("failed", "failed", "agent_failed", False),
            ("error", "failed", "agent_failed", False),
            ("Failure", "failed", "agent_failed", False),
            ("timeout", "timeout", "agent_timeout", True),
            ("timed_out", "timeout", "agent_timeout", True),
            ("cancelled", "cancelled", "cancelled", False),
            ("canceled", "cancelled", "cancelled", False),
        ],
    )
    def test_statuses(self, status: str, told: str, code: str, retryable: bool) -> None:
        """Each way to fail has its status, code, whether to try again, and some words."""
        data = sent(failed(status=status, result={}))["data"]
        assert (data["status"], data["error_code"], data["retryable"]) == (told, code, retryable)
        assert data["error"]

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            pytest.param({"result": {"error": "Just text."}}, "Just text.", id="error as text"),
            pytest.param({"result": {"error": {"message": "M"}}}, "M", id="message alone"),
            pytest.param({"result": {"error": {"message": ""}}}, "The agent failed", id="empty message"),
            pytest.param({"result": {"error": {"message": 5}}}, "The agent failed", id="message is a number"),
            pytest.param({"result": {"error": {}}}, "The agent failed", id="empty error"),
            pytest.param({"result": {"error": None}}, "The agent failed", id="null error"),
            pytest.param({"result": {}}, "The agent failed", id="empty result"),
            pytest.param({"result": ...}, "The agent failed", id="no result"),
            pytest.param({"result": None, "error": {"message": "Top"}}, "Top", id="error beside the result"),
            pytest.param({"result": {}, "error": "Top"}, "Top", id="error text beside the result"),
            pytest.param({"action_type": "execution.error", "status": ..., "result": ...,
                          "data": {"error": "E"}}, "E", id="execution.error"),
            pytest.param({"action_type": "execution.error", "status": ..., "result": ..., "data": ...},
                         "The agent failed", id="bare execution.error"),
            pytest.param({"action_type": "agent_execution_callback", "status": ..., "result": ...,
                          "data": {"error": "E", "success": False}}, "E", id="…_callback with error"),
            pytest.param({"action_type": "agent_execution_callback", "status": ..., "result": ...,
                          "data": {"error": {"message": "E"}, "success": False}},
                         "E", id="…_callback with object"),
            pytest.param({"action_type": "agent_execution_callback", "status": ..., "result": ...,
                          "data": {"success": False}}, "The agent failed", id="…_callback without words"),
        ],
    )  # fmt: skip
    def test_the_words_of_every_shape(self, changes: Json, said: str) -> None:
        """Wherever a producer puts its error, it is an error message with its words, or with ours."""
        data = sent(failed(**changes))["data"]
        assert data["error"].startswith(said)
        assert (data["status"], data["error_code"]) == ("failed", "agent_failed")

    def test_success_true_with_null_error_is_an_answer(self) -> None:
        """Producers that always send ``error`` and ``success`` are not mistaken."""
        data = {"error": None, "success": True, "response": "fine"}
        message = sent(completed(status=..., result=..., data=data))
        assert message["type"] == "agent_response"
        assert message["data"]["response"] == "fine"

    def test_the_aes_may_say_that_a_retry_helps(self) -> None:
        """Its word stands if it is a yes or no."""
        assert sent(failed(result={"error": {"retryable": True}}))["data"]["retryable"] is True
        assert (
            sent(failed(status="timeout", result={"error": {"retryable": False}}))["data"]["retryable"]
            is False
        )
        assert (
            sent(failed(status="timeout", result={"error": {"retryable": "no"}}))["data"]["retryable"] is True
        )


class TestProgress:
    def test_the_documented_callback(self) -> None:
        """A task_update with the contract's keys; it is in the log."""
        tool = {"call_id": "c", "name": "search", "status": "running", "args": {"q": 1.0}, "result": None}
        message = sent(progress({"tool": tool}))
        assert message["type"] == "task_update"
        assert message["data"] == {
            "task_id": "t-1", "status": "working", "step": "search", "message": "Looking.", "progress": 0.5,
            "tool": tool,
        }  # fmt: skip

    @pytest.mark.parametrize("data", [{}, None, ...])
    def test_all_of_it_is_optional(self, data: Any) -> None:
        """A bare sign of life is working."""
        callback = progress()
        callback["data"] = data
        assert sent(completed(**callback, status=..., result=...))["data"] == {
            "task_id": "t-1", "status": "working", "step": None, "message": None, "progress": None,
            "tool": None,
        }  # fmt: skip

    @pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, 0.333])
    def test_fractions(self, value: float) -> None:
        """Both ends count."""
        assert sent(progress({"progress": value}))["data"]["progress"] == value

    @pytest.mark.parametrize(
        "data",
        [{"progress": 1.01}, {"progress": -0.1}, {"progress": True}, {"progress": "half"}, {"status": 1},
         {"message": []}, {"tool": "search"}, {"tool": []}],
    )  # fmt: skip
    def test_wrong_types_are_refused(self, data: Json) -> None:
        """What a client would stumble over does not reach it."""
        assert refusal(progress(data)) == "wrong_type"


class TestChunk:
    def test_the_documented_callback(self) -> None:
        """Its text, and its place in the answer; it is published and not logged."""
        assert sent(chunk({"offset": 12, "part": "reasoning"}, attempt=2)) == {
            "task_id": "t-1", "delta": "Hello", "offset": 12, "attempt": 2, "part": "reasoning",
        }  # fmt: skip

    @pytest.mark.parametrize("offset", [12, 12.0, "12"])
    @pytest.mark.parametrize("attempt", [2, 2.0, "2"])
    def test_numbers_as_producers_write_them(self, offset: object, attempt: object) -> None:
        """A whole number is one."""
        data = sent(chunk({"offset": offset}, attempt=attempt))
        assert (data["offset"], data["attempt"]) == (12, 2)

    def test_without_an_offset(self) -> None:
        """It follows what was said last."""
        assert sent(chunk({"offset": None}))["offset"] is None

    def test_attempt_and_part_have_defaults(self) -> None:
        """The first attempt's text, unless it says otherwise."""
        data = sent(chunk({"part": None}, attempt=None))
        assert (data["attempt"], data["part"]) == (1, "text")

    @pytest.mark.parametrize(
        "data",
        [{"delta": None}, {"delta": 1}, {"delta": ["a"]}, {"offset": -1}, {"offset": 0.5}, {"offset": True},
         {"offset": "x"}, {"offset": "-1"}, {"offset": 2**53}, {"part": 1}, {"part": "image"}],
    )  # fmt: skip
    def test_wrong_types_are_refused(self, data: Json) -> None:
        """A chunk that cannot be put in its place is no chunk."""
        assert refusal(chunk(data)) == "wrong_type"

    @pytest.mark.parametrize(
        "changes", [{"task_id": ...}, {"attempt": 0}, {"attempt": -1}, {"attempt": 2**53}]
    )
    def test_of_no_task_or_attempt(self, changes: Json) -> None:
        """Nobody could tell whose it is."""
        assert refusal(chunk(**changes)) == "wrong_type"

    @pytest.mark.parametrize(
        "delta", ["", "w\u00f6rld", "\U0001f680", '"\\/\b\f\n\r\t', "\x00\x1f\x7f", "\u2028"]
    )
    def test_any_text(self, delta: str) -> None:
        """Counted in characters, and kept in one line."""
        assert sent(chunk({"delta": delta}))["delta"] == delta


class TestRefusals:
    @pytest.mark.parametrize(
        ("callback", "reason"),
        [
            (completed(session_id=...), "no_session"),
            (completed(session_id=None), "no_session"),
            (completed(session_id=""), "no_session"),
            (completed(session_id=7), "wrong_type"),
            (completed(session_id="a:b"), "wrong_type"),
            (completed(session_id="a\n"), "wrong_type"),
            (completed(session_id="a" * 129), "wrong_type"),
            (completed(task_id=""), "wrong_type"),
            (completed(task_id="../t"), "wrong_type"),
            (completed(task_id=7), "wrong_type"),
            (completed(tenant_id="other"), "wrong_tenant"),
            (completed(tenant_id="ACME"), "wrong_tenant"),
            (completed(tenant_id=""), "wrong_tenant"),
            (completed(tenant_id=7), "wrong_type"),
            (completed(action_type="execution.unknown"), "unknown_action"),
            (completed(action_type="callback"), "unknown_action"),
            (completed(action_type=7), "wrong_type"),
            (completed(status="half"), "unknown_status"),
            (completed(status=7), "wrong_type"),
            (completed(result="text"), "wrong_type"),
            (completed(result=[]), "wrong_type"),
            (completed(result={"response": {"text": "x"}}), "wrong_type"),
            (completed(result={"response": 5}), "wrong_type"),
            (failed(result={"error": 5}), "wrong_type"),
            (failed(result={"error": ["x"]}), "wrong_type"),
        ],
    )
    def test_reasons(self, callback: Json, reason: str) -> None:
        """What cannot be understood says why, for the operator's list."""
        assert refusal(callback) == reason

    @pytest.mark.parametrize(
        "raw",
        [b"", b" ", b"{", b"}", b"nonsense", b"{}x", b'{"session_id":"s-1",}', b"\xef\xbb\xbf{}", b"\x00",
         b"\xff\xfe",
         b'{"session_id":"s-1","result":{"response":"x","n":01}}',
         b'{"session_id":"s-1","result":{"response":"x","n":NaN}}',
         b'{"session_id":"s-1","result":{"response":"\x01"}}',
         b'{"session_id":"s-1","result":{"response":"a\nb"}}',
         b"{'session_id':'s-1'}"],
    )  # fmt: skip
    def test_what_is_not_json(self, raw: bytes) -> None:
        """Text that is no JSON is refused also in the parts that are passed on unread."""
        assert refusal(raw) == "not_json"

    @pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", [], [{}]])
    def test_json_that_is_no_object(self, value: object) -> None:
        """A callback is an object."""
        assert refusal(encode(value)) in {"not_json", "wrong_type"}

    @pytest.mark.parametrize(
        "raw",
        [
            b'{"session_id":"s-1","result":{"response":"\xff"}}',
            b'{"session_id":"s-1","result":{"response":"x","other":"\xc3\x28"}}',
            b'{"session_id":"s-1","result":{"response":"x","\xff":1}}',
            b'{"session_id":"s-1","result":{"response":"x","other":"\xed\xa0\x80"}}',
            b'{"session_id":"s-1","result":{"metadata":{"\xff":1}}}',
            b'{"session_id":"s-1","result":{"agent_info":{"model_used":"\xff"}}}',
            b'{"session_id":"s-1","status":"failed","result":{"error":{"message":"\xff"}}}',
            b'{"session_id":"s-1","status":"failed","error":"\xff"}',
            b'{"session_id":"s-1","action_type":"execution.chunk","data":{"delta":"\xff","offset":0}}',
            b'{"session_id":"s-1","action_type":"execution.progress","data":{"step":"\xff"}}',
            b'{"session_id":"\xff"}',
        ],
    )
    def test_invalid_utf8(self, raw: bytes) -> None:
        """One such byte in a text frame would end the sockets of the whole session."""
        assert refusal(raw) == "not_json"

    @pytest.mark.parametrize(
        "template",
        [
            '{"session_id":"s-1","result":{"response":"%s"}}',
            '{"session_id":"s-1","result":{"response":"x","other":"%s"}}',
            '{"session_id":"s-1","result":{"%s":1}}',
            '{"session_id":"s-1","result":{"metadata":{"%s":"%s"}}}',
            '{"session_id":"s-1","result":{"agent_info":{"model_used":"%s"}}}',
            '{"session_id":"s-1","status":"failed","result":{"error":"%s"}}',
            '{"session_id":"s-1","status":"%s"}',
            '{"session_id":"s-1","task_id":"%s"}',
            '{"session_id":"s-1","action_id":"%s"}',
            '{"session_id":"s-1","action_type":"%s"}',
            '{"session_id":"%s"}',
            '{"session_id":"s-1","action_type":"execution.chunk","data":{"delta":"%s","offset":0}}',
            '{"session_id":"s-1","action_type":"execution.progress","data":{"%s":"%s"}}',
        ],
    )
    @pytest.mark.parametrize("surrogate", [r"\ud800", r"\udc00", r"\udc00\ud800", r"a\ud83dz"])
    def test_lone_surrogates(self, template: str, surrogate: str) -> None:
        """Half a character is refused or passed on as the escape it came as; nothing else breaks."""
        message_or_refusal(template.replace("%s", surrogate).encode())

    @pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
    def test_a_hundred_thousand_levels(self, brackets: str) -> None:
        """Nesting does not exhaust the stack, wherever it is."""
        for place in PLACES:
            assert refusal(nested(place, brackets, 100_000)) in {"not_json", "wrong_type"}

    @pytest.mark.parametrize("brackets", ["[]", '{"a":}'])
    def test_nesting_near_the_limit(self, brackets: str) -> None:
        """Nor where decoding just succeeds and something later does not."""
        for place in PLACES:
            taken, refused = 1, 100_000
            while refused - taken > 1:
                depth = (taken + refused) // 2
                if too_deep(nested(place, brackets, depth)):
                    refused = depth
                else:
                    taken = depth
            for depth in range(taken - 10, taken + 10):
                too_deep(nested(place, brackets, depth))


PLACES = (
    '{"session_id":"s-1","x":%s}',
    '{"session_id":"s-1","result":{"response":"x","k":%s}}',
    '{"session_id":"s-1","result":{"agent_info":%s}}',
    '{"session_id":"s-1","result":{"agent_info":{"model_used":%s}}}',
    '{"session_id":"s-1","result":{"metadata":{"k":%s}}}',
    '{"session_id":"s-1","status":"failed","result":{"error":{"k":%s}}}',
    '{"session_id":"s-1","status":"failed","error":{"k":%s}}',
    '{"session_id":"s-1","tokens_used":{"k":%s}}',
    '{"session_id":"s-1","execution_time":%s}',
    '{"session_id":"s-1","tenant_tier":%s}',
    '{"session_id":"s-1","action_type":"execution.progress","data":{"step":%s}}',
    '{"session_id":"s-1","action_type":"execution.progress","data":{"tool":{"args":%s}}}',
    '{"session_id":"s-1","action_type":"execution.progress","data":{"progress":%s}}',
    '{"session_id":"s-1","action_type":"execution.chunk","data":{"delta":"","offset":0,"x":%s}}',
    "%s",
)


def nested(place: str, brackets: str, depth: int) -> bytes:
    opening, closing = brackets[:-1], brackets[-1]
    return (place % (opening * depth + "1" + closing * depth)).encode()


def too_deep(raw: bytes) -> bool:
    """Whether it is refused for its nesting; a message is not read back, Python could not."""
    entry = entry_or_refusal(raw)
    assert isinstance(entry, Entry) or entry in {"not_json", "wrong_type", "no_session"}
    return entry == "not_json"


# What is noted with the task.


def noted(callback: Json) -> tuple[str, str, str]:
    entry = dispatch(encode(callback), TENANT, AT)
    detail = entry.detail.decode() if isinstance(entry.detail, bytes) else entry.detail
    return entry.kind, entry.task_id, detail


def test_an_answer_ends_its_task() -> None:
    """Its status, and what the task has used, as its message tells it."""
    kind, task_id, detail = noted(completed())
    status, _, usage = detail.partition(" ")

    assert (kind, task_id, status) == ("t", "t-1", "completed")
    assert json.loads(usage) == sent(completed())["data"]["metadata"]


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_an_error_ends_its_task(status: str) -> None:
    """Under the status that its message has."""
    kind, _, detail = noted(failed(status=status))

    assert (kind, detail.split()[0]) == ("t", status)


def test_usage_that_is_too_large_is_not_noted() -> None:
    """The record is not for that; the message has it whole."""
    callback = completed(tokens_used={"x" * 5_000: 1})

    assert noted(callback) == ("t", "t-1", "completed")
    assert "x" * 5_000 in sent(callback)["data"]["metadata"]["tokens_used"]


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        ({}, "working"),
        ({"status": "input_required"}, "input_required"),
        ({"status": "whatever"}, "working"),
        ({"status": None}, "working"),
        ({"timeout": 30}, "working 30000"),
        ({"timeout": 0.5, "status": "input_required"}, "input_required 500"),
        ({"timeout": 10**30}, "working 604800000"),
        ({"timeout": 0}, "working"),
        ({"timeout": -1}, "working"),
        ({"timeout": True}, "working"),
        ({"timeout": "30"}, "working"),
        ({"timeout": None}, "working"),
        ({"timeout": [30]}, "working"),
    ],
    ids=str,
)
def test_a_report_says_how_its_task_goes(data: Json, detail: str) -> None:
    """Its status, one of two, and the time for which it asks; what is no time is none."""
    kind, task_id, told = noted(progress(data))
    assert (kind, task_id, str(told).partition("   ")[0].rstrip()) == ("p", "t-1", detail)


@pytest.mark.parametrize("attempt", [0, 1.5, "two", True, [], {}, -1, 2**53])
def test_an_attempt_that_is_none(attempt: object) -> None:
    """An answer is not lost for that."""
    assert noted(completed(attempt=attempt))[2] == noted(completed())[2]
    assert noted(progress(attempt=attempt))[2] == noted(progress())[2]


def step(**data: Any) -> str:
    """What a report says that it is about."""
    said = {"status": "working", **data}
    return str(noted(progress(None) | {"data": said})[2]).rpartition(" ")[2]


def test_which_reports_are_about_the_same() -> None:
    """A step's; without one, those that say the same; of a tool, those of one call that is as far."""
    read = step(step="read", message="page 1", progress=0.1)
    assert step(step="read", message="page 2", progress=0.2, timeout=5) == read
    assert step(step="write", message="page 1", progress=0.1) != read
    assert step(message="page 1", progress=0.1) == step(message="page 1", progress=0.2)
    assert step(message="page 1") != step(message="page 2")
    assert len({step(message="read"), step(step="read"), step(step=None)}) == 3
    calls = [{"call_id": call, "status": status} for call in ("c-1", "c-2") for status in ("called", "done")]
    assert len({step(step="read", tool=call) for call in calls} | {read}) == 5
    assert step(tool={**calls[0], "args": {"q": "a"}}) == step(tool={**calls[0], "args": {"q": "ab"}})


def test_what_is_asked_stands_for_itself() -> None:
    """No later report takes the place of a question."""
    detail = noted(progress({"status": "input_required", "step": "ask", "input": {"input_id": "i-1"}}))[2]
    assert detail == "input_required 0 i-1 0"
    assert noted(progress({"status": "input_required", "step": "ask"}))[2] == "input_required"


@pytest.mark.parametrize("callback", [completed(), failed(), progress()])
def test_what_is_of_no_task(callback: Json) -> None:
    """Is noted with none."""
    assert noted({**callback, "task_id": None}) == ("", "", "")


def test_a_piece_of_an_answer_says_where_it_belongs() -> None:
    """Attempt, part, offset and length."""
    assert noted(chunk()) == ("c", "t-1", "1 text 0 5")


def test_as_the_scripts_take_it() -> None:
    """So many arguments that the scripts count with, in their order."""
    assert ARGUMENTS_AN_ENTRY == 6
    entry = Entry("s-1", b"d", b"{", "t", "t-1", "failed")
    assert entry.arguments(3) == (3, b"d", b"{", "t", "t-1", "failed")
    assert Entry("s-1", b"d", b"{").arguments(0) == (0, b"d", b"{", "", "", "")


def test_a_batch_names_its_tasks() -> None:
    """Each callback's, where it has one: a cluster wants the keys before."""
    batch = [completed(task_id="t-1"), progress(task_id="t-2"), completed(task_id=None), chunk(task_id="t-3")]

    assert judge([encode(one) for one in batch], TENANT, AT, 1_000_000).tasks == ["t-1", "t-2", "t-3"]


# A wrong type in every field in turn.

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 1e300, 10**30, -(10**30),
    "", "x", "completed", "é\n\u2028\x00", "a" * 200,
    [], [1], ["x"], [[]], {}, {"a": 1}, {"error": 1}, {"message": {}}, {"model_used": [1]},
]  # fmt: skip


def paths(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*at, name)
            yield from paths(inner, (*at, name))


def with_value(callback: Json, path: tuple[str, ...], value: Any) -> Json:
    changed = copy.deepcopy(callback)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


SHAPES = {
    "completed": completed(attempt=1, error=None, execution_result=None),
    "failed": failed(error=None),
    "error": completed(action_type="execution.error", status=..., result=..., data={"error": {"type": "T"}}),
    "callback": completed(action_type="agent_execution_callback", status=..., result=...,
                          data={"error": "E", "success": False}),
    "progress": progress({"tool": {"call_id": "c", "args": {}}}, attempt=1),
    "chunk": chunk(attempt=1),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_type_in_every_field(shape: str) -> None:
    """Any value anywhere gives a whole message or a reason of the closed list, never another exception."""
    for path in paths(SHAPES[shape]):
        for value in VALUES:
            message_or_refusal(encode(with_value(SHAPES[shape], path, value)))


# Duplicates.


def digest(callback: Json | bytes) -> bytes:
    return dispatch(callback if isinstance(callback, bytes) else encode(callback), TENANT, AT).digest


class TestDigest:
    @pytest.mark.parametrize(
        "again",
        [
            pytest.param({}, id="the same bytes"),
            pytest.param({"timestamp": "2026-01-31T12:34:56"}, id="sent later"),
            pytest.param({"execution_time": 9.0, "result": {"response": "Other."}}, id="other content"),
            pytest.param({"status": "success"}, id="another word for its status"),
            pytest.param({"status": ...}, id="status left out"),
            pytest.param({"action_type": ...}, id="action_type left out"),
        ],
    )
    def test_the_same_callback_again(self, again: Json) -> None:
        """Same action, task and status are one callback, whatever else differs."""
        assert digest(completed(**again)) == digest(completed())

    @pytest.mark.parametrize(
        "other",
        [
            {"action_id": "a-2"},
            {"task_id": "t-2"},
            {"task_id": None},
            {"status": "failed"},
            {"status": "timeout"},
        ],
    )
    def test_another_callback(self, other: Json) -> None:
        """Another action, task or status is another callback."""
        assert digest(completed(**other)) != digest(completed())

    def test_a_fixed_action_id_per_task(self) -> None:
        """Producers with one action_id per task still say failed and completed apart, and tasks apart."""
        fixed = [
            completed(action_id=f"exec_cb_{task}", task_id=task, status=status)
            for task in ("t-1", "t-2")
            for status in ("completed", "failed")
        ]
        assert len({digest(callback) for callback in fixed}) == 4

    def test_without_an_action_id_the_bytes_decide(self) -> None:
        """Nothing else tells two answers of such a producer apart."""
        for missing in (..., None, ""):
            one = completed(action_id=missing)
            assert digest(one) == digest(completed(action_id=missing))
            assert digest(one) != digest(completed(action_id=missing, execution_time=9.0))

    def test_progress_with_one_action_id(self) -> None:
        """Steps that share an action_id are told apart by what they say; the same step twice is one."""
        assert digest(progress()) == digest(progress())
        assert digest(progress()) != digest(progress({"step": "write"}))
        assert digest(progress()) != digest(progress(task_id="t-2"))
        assert digest(progress()) != digest(completed())

    def test_chunks_have_none(self) -> None:
        """They are published only; their offset tells a double."""
        assert digest(chunk()) == b""

    def test_length(self) -> None:
        """Twelve bytes: what thousands of remembered callbacks cost is bounded."""
        for callback in (completed(), failed(), progress(), completed(action_id=...)):
            assert len(digest(callback)) == 12


# Whatever comes.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
known = st.sampled_from(
    ["session_id", "task_id", "tenant_id", "tenant_tier", "action_id", "action_type", "status", "attempt",
     "result", "execution_result", "data", "error", "execution_time", "tokens_used"]
)  # fmt: skip
actions = st.sampled_from(
    ["execution.callback", "execution.error", "execution.chunk", "execution.progress", "x_callback"]
)
parts = st.sampled_from(
    ["response", "error", "success", "metadata", "agent_info", "delta", "offset", "part", "status", "step",
     "message", "progress", "tool", "sources"]
)  # fmt: skip
callbacks = st.builds(
    lambda base, **own: base | own,
    st.dictionaries(known, json_values, max_size=6),
    session_id=st.just("s-1") | json_values,
    action_type=actions,
    result=st.dictionaries(parts, json_values, max_size=4) | json_values,
    data=st.dictionaries(parts, json_values, max_size=6) | json_values,
)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes(raw: bytes) -> None:
    """Whatever bytes a producer pushes, the outcome is a message or a reason."""
    message_or_refusal(raw)


@given(json_values)
@settings(max_examples=200, deadline=None)
def test_any_json(value: Any) -> None:
    """Whatever JSON a producer pushes, the outcome is a message or a reason."""
    message_or_refusal(encode(value))


@given(callbacks)
@settings(max_examples=400, deadline=None)
def test_any_fields(callback: Json) -> None:
    """Whatever a callback's fields hold, the outcome is a message or a reason."""
    message_or_refusal(encode(callback))


@given(
    st.sampled_from(list(SHAPES)),
    st.lists(
        st.tuples(st.integers(0, 600), st.sampled_from(b'"{}[]:,\\\n0-+.eEnu\x00\x80\xff ')), max_size=3
    ),
)
@settings(max_examples=600, deadline=None)
def test_any_damage(shape: str, damage: list[tuple[int, int]]) -> None:
    """A damaged callback is refused, or still a whole message: nothing unread goes on as broken JSON."""
    raw = bytearray(encode(SHAPES[shape]))
    for at, byte in damage:
        raw[at % len(raw)] = byte
    message_or_refusal(bytes(raw))


@given(st.lists(st.binary(max_size=80) | callbacks.map(encode), max_size=5))
@example([rb'{"session_id":"\ud800"}', rb'{"\ud800":1}', b'{"status":"\xff"}', b'{"tenant_id":"\x00\n"}'])
@settings(deadline=None)
def test_a_judged_batch_can_be_sent_to_redis(batch: list[bytes]) -> None:
    """Every callback is moved or buried, and no reason holds what cannot be sent."""
    moves = judge(list(batch), TENANT, AT, 1_000_000)
    positions = [
        position for entries in moves.sessions.values() for position in entries[::ARGUMENTS_AN_ENTRY]
    ]
    positions += moves.dead[::3]
    assert sorted(map(int, positions)) == list(range(len(batch)))
    assert set(moves.dead[1::3]) <= set(REASONS)
    assert not moves.mistakes
    for args in (*moves.sessions.values(), moves.dead):
        pack_command(("EVALSHA", *args))  # type: ignore[arg-type]  # the stub knows one-tuples only


def test_a_mistake_of_our_own_is_one_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that nobody foresaw buries its callback with a traceback; the others go on."""

    def mistaken(raw: bytes, tenant_id: str, at: str, sampled: str) -> Entry:
        if raw == b"bad":
            raise KeyError("surprise")
        return dispatch(raw, tenant_id, at, sampled)

    monkeypatch.setattr("backplane.router.transfer.dispatch", mistaken)
    moves = judge([encode(completed()), b"bad", encode(failed())], TENANT, AT, 1_000_000)
    assert moves.dead == [1, "router_error", "KeyError: 'surprise'"]
    assert moves.sessions["s-1"][::ARGUMENTS_AN_ENTRY] == [0, 2]
    assert "surprise" in moves.mistakes[0]


def test_an_oversized_callback_is_judged_by_its_size() -> None:
    """Only its size and beginning were read: it is a dead letter with the size in its detail."""
    moves = judge([[2_000_000, b'{"session'], encode(completed())], TENANT, AT, 1_000_000)
    assert moves.dead[:2] == [0, "too_large"]
    assert "2000000" in str(moves.dead[2])
    assert moves.sessions["s-1"][::ARGUMENTS_AN_ENTRY] == [1]


def test_every_reason_is_documented() -> None:
    """The closed list says what each reason means, in one sentence."""
    assert all(meaning and "\n" not in meaning for meaning in module.REASONS.values())

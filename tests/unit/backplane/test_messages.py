"""Messages as log entries: cut where their position belongs, one line, the time at a fixed place."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from backplane.messages import Message, MessageData, timestamp, to_entry, to_json, to_live, with_position

AT = "2026-01-31T12:00:00.000Z"


def message(data: MessageData | None = None, metadata: MessageData | None = None) -> Message:
    return Message(AT, "agent_response", "t1", "s1", "acme", "free", data or {}, metadata or {})


class TestTimestamp:
    def test_the_contracts_form(self) -> None:
        """UTC, milliseconds, a Z."""
        assert timestamp(1_769_860_800.0) == AT
        assert timestamp(1_769_860_800.0425) == "2026-01-31T12:00:00.042Z"

    def test_milliseconds_never_round_up_past_their_second(self) -> None:
        """The last instant of a second still shows that second, not the next one with 999 ms."""
        assert timestamp(math.nextafter(1_769_860_800.0, 0)) == "2026-01-31T11:59:59.999Z"

    @given(st.integers(0, 4_000_000_000_000))
    def test_any_millisecond_reads_back(self, millisecond: int) -> None:
        """Within a millisecond of the truth, 24 characters long, in the order of time."""
        shown = timestamp(millisecond / 1000)
        read = datetime.fromisoformat(shown)
        assert len(shown) == 24
        assert abs(read.timestamp() * 1000 - millisecond) <= 1.001

    @given(st.floats(0, 4e9), st.floats(0, 4e9))
    def test_text_order_is_time_order(self, one: float, other: float) -> None:
        """The transfer script compares ages as text."""
        earlier, later = sorted((one, other))
        assert timestamp(earlier) <= timestamp(later)
        assert datetime.fromisoformat(timestamp(one)).tzinfo == UTC


class TestEntries:
    def test_a_position_completes_an_entry(self) -> None:
        """The message that goes over the socket is whole JSON with seq and epoch in its metadata."""
        whole = json.loads(with_position(to_entry(message({"response": "hi"})), "e1", 42))
        assert whole == {
            "timestamp": AT, "type": "agent_response", "task_id": "t1", "session_id": "s1",
            "tenant_id": "acme", "tenant_tier": "free", "data": {"response": "hi"},
            "metadata": {"epoch": "e1", "seq": 42},
        }  # fmt: skip

    def test_metadata_of_its_own_stays(self) -> None:
        """A position is added to other metadata, it does not replace them."""
        whole = json.loads(with_position(to_entry(message(metadata={"a": {}, "b": [1]})), "e1", 1))
        assert whole["metadata"] == {"a": {}, "b": [1], "epoch": "e1", "seq": 1}

    def test_the_time_stands_where_the_transfer_script_reads_it(self) -> None:
        """Characters 15 to 38 of an entry (as Lua counts) are its timestamp."""
        assert to_entry(message())[14:38] == AT.encode()

    def test_every_field_is_there_even_if_empty(self) -> None:
        """Clients find the same fields in every message."""
        whole = json.loads(to_json(Message(AT, "pong", None, "s1", "acme", None, {}, {})))
        assert whole["task_id"] is None
        assert whole["tenant_tier"] is None
        assert list(whole)[-1] == "metadata"

    def test_line_ends_between_raw_tokens_become_spaces(self) -> None:
        """Published batches are separated by line ends, so an entry must not have one."""
        raw = Raw(b'{\r\n  "a": [\n    1,\n    "x\\ny"\n  ]\n}')
        for encoded in (
            with_position(to_entry(message({"tool": raw})), "e1", 1),
            to_live(message({"tool": raw})),
        ):
            assert b"\n" not in encoded
            assert b"\r" not in encoded
            assert json.loads(encoded)["data"]["tool"] == {"a": [1, "x\ny"]}

    @pytest.mark.parametrize("encode", [to_entry, to_live])
    def test_raw_bytes_that_are_not_utf8_are_refused(self, encode: object) -> None:
        """One such byte would end every socket of the session: text frames are UTF-8."""
        assert callable(encode)
        with pytest.raises(UnicodeDecodeError):
            encode(message({"response": Raw(b'"\xff"')}))

    @given(
        text=st.text(),
        metadata=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3),
        seq=st.integers(1, 10**15),
    )
    def test_any_message_is_one_line_of_json(self, text: str, metadata: MessageData, seq: int) -> None:
        """Whatever it says, a message keeps its text and has its position."""
        metadata = {name: value for name, value in metadata.items() if name not in {"epoch", "seq"}}
        whole = with_position(to_entry(message({"response": text}, metadata)), "e1", seq)
        assert b"\n" not in whole
        assert json.loads(whole)["data"]["response"] == text
        assert json.loads(whole)["metadata"] == {**metadata, "epoch": "e1", "seq": seq}

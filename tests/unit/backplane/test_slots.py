"""Redis Cluster's arithmetic: slots as the server computes them, and its words about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.slots import SLOTS, Address, Range, key_slot, parse_redirection, parse_slots

ASKED = Address("asked.test", 7000)


@pytest.mark.parametrize(
    ("key", "slot"),
    [  # as a Valkey 9 answers CLUSTER KEYSLOT
        (b"", 0),
        (b"123456789", 0x31C3),  # the check value of CRC16 (XMODEM)
        (b"foo", 12182),
        (b"bar", 5061),
        (b"hello", 866),
        (b"foo{hash_tag}", 2515),
        (b"{user1000}.following", 3443),
        (b"{user1000}.followers", 3443),
        (b"user1000", 3443),
        (b"foo{}{bar}", 8363),  # an empty tag is none, and the next one is not looked at
        (b"foo{{bar}}zap", 4015),  # from the first { to the first } behind it
        (b"{bar", 4015),
        (b"foo{bar}{zap}", 5061),
        (b"}{a}", 15495),
        (b"a}b", 7866),
        (b"{", 4092),
        (b"{}", 15257),
        ("ключ", 10303),
        (b"\xff\x00{\xfe}", 3793),
        ("orchestrator:acme:callbacks", 15213),
        ("ao:{orchestrator:acme:callbacks}:s:s-1:log", 15213),
        ("orchestrator:acme:callbacks:3", 2058),
    ],
)
def test_slots_are_the_servers(key: str | bytes, slot: int) -> None:
    """A key is looked for where Redis has put it."""
    assert key_slot(key) == slot


@given(st.binary(max_size=40))
def test_every_key_has_a_slot(key: bytes) -> None:
    """Whatever its bytes; and another key with its tag has the same."""
    assert 0 <= key_slot(key) < SLOTS
    if key and b"}" not in key:
        assert key_slot(b"before{" + key + b"}behind{x}") == key_slot(b"{" + key + b"}")


@pytest.mark.parametrize(
    ("words", "ask", "slot", "address"),
    [
        ("MOVED 3999 127.0.0.1:6381", False, 3999, Address("127.0.0.1", 6381)),
        ("ASK 0 host.example:6381", True, 0, Address("host.example", 6381)),
        ("MOVED 16383 :6381", False, 16383, Address("asked.test", 6381)),
        ("MOVED 1 ::1:6381", False, 1, Address("::1", 6381)),
        ("ASK 1 2001:db8::1:7", True, 1, Address("2001:db8::1", 7)),
    ],
)
def test_redirections(words: str, ask: bool, slot: int, address: Address) -> None:
    """Where to ask instead: for this one command, or from now on; no host means the one that was asked."""
    assert parse_redirection(words, ASKED) == (ask, slot, address)


@pytest.mark.parametrize(
    "words",
    ["", "ERR unknown command", "TRYAGAIN Multiple keys request during rehashing of slot", "MOVED",
     "MOVED 3999", "MOVED x 127.0.0.1:6381", "MOVED 3999 127.0.0.1", "MOVED 3999 127.0.0.1:x",
     "MOVED 16384 127.0.0.1:6381", "moved 3999 127.0.0.1:6381", "CLUSTERDOWN The cluster is down",
     "WRONGTYPE MOVED 3999 127.0.0.1:6381", "MOVED -1 127.0.0.1:6381"],
)  # fmt: skip
def test_other_errors_redirect_nobody(words: str) -> None:
    """They are told to the caller."""
    assert parse_redirection(words, ASKED) is None


def test_the_slot_table() -> None:
    """Each range with its primary; replicas do not count, and a node may not know its own name."""
    replica = [b"127.0.0.1", 7009, b"id", []]
    reply = [
        [0, 5460, [b"127.0.0.1", 7001, b"id", []], replica],
        [5461, 5461, [b"", 7002, b"id", []], replica, replica],
        [5462, 9000, [None, 7003, b"id", []]],
        [9001, 16383, [b"?", 7004, b"id", []]],
    ]
    assert parse_slots(reply, ASKED) == [
        Range(0, 5460, Address("127.0.0.1", 7001)),
        Range(5461, 5461, Address("asked.test", 7002)),
        Range(5462, 9000, Address("asked.test", 7003)),
        Range(9001, 16383, Address("asked.test", 7004)),
    ]
    assert parse_slots([], ASKED) == []


def test_addresses_are_shown_as_one_writes_them() -> None:
    """In messages for operators."""
    assert str(Address("127.0.0.1", 6379)) == "127.0.0.1:6379"

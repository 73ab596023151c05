"""Orders to all pods: which connections they mean, and what is no order."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control import CloseOrder, decode, encode
from gateway.identity import ANYONE, Identity

ANN = Identity("acme", "free", "s-1", "ann", None, ANYONE)
NOBODY = Identity("acme", "free", "s-1", None, None, ANYONE)


@pytest.mark.parametrize(
    ("order", "fits"),
    [
        (CloseOrder(tenant_id="acme"), True),
        (CloseOrder(tenant_id="evil"), False),
        (CloseOrder(session_id="s-1"), True),
        (CloseOrder(session_id="s-10"), False),
        (CloseOrder(user_id="ann"), True),
        (CloseOrder(user_id="an"), False),
        (CloseOrder(connection_id="c-1"), True),
        (CloseOrder(connection_id="c-2"), False),
        (CloseOrder("acme", "s-1", "ann", "c-1"), True),
        (CloseOrder("evil", "s-1", "ann", "c-1"), False),
        (CloseOrder("acme", "s-2", "ann", "c-1"), False),
        (CloseOrder("acme", "s-1", "bob", "c-1"), False),
        (CloseOrder("acme", "s-1", "ann", "c-2"), False),
    ],
)
def test_which_connections_are_meant(order: CloseOrder, fits: bool) -> None:
    """All that is given has to fit; one that does not spares the connection."""
    assert order.fits(ANN, "c-1") is fits


def test_a_connection_without_a_user() -> None:
    """It is no user's."""
    assert not CloseOrder(user_id="ann").fits(NOBODY, "c-1")
    assert CloseOrder(tenant_id="acme").fits(NOBODY, "c-1")


def test_orders_for_everybody() -> None:
    """Who names nothing would close everything, and that can be seen before."""
    for tenant, session, user, connection in product([None, "x"], repeat=4):
        named = (tenant, session, user, connection) != (None,) * 4
        assert CloseOrder(tenant, session, user, connection).is_for_all is not named
    assert CloseOrder(reconnect=False, reason="why").is_for_all


TEXTS = st.none() | st.text(min_size=1, max_size=10)


ORDERS = st.builds(CloseOrder, TEXTS, TEXTS, TEXTS, TEXTS, st.booleans(), st.text(max_size=20))


@given(ORDERS.filter(lambda order: not order.is_for_all))
def test_orders_are_read_as_they_were_written(order: CloseOrder) -> None:
    """Whatever stands in them."""
    assert decode(encode(order)) == order


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"{",
        b"null",
        b"[]",
        b'"acme"',
        b'{"tenant_id":5}',
        b'{"tenant_id":["acme"]}',
        b'{"tenant_id":"acme","reconnect":"no"}',
        b'{"tenant_id":"acme","reason":null}',
        b"\xff",
        b"[" * 100_000,
    ],
    ids=lambda payload: ascii(payload[:30]),
)
def test_what_is_no_order(payload: bytes) -> None:
    """Nothing is closed for the sake of something that was not understood."""
    assert decode(payload) is None

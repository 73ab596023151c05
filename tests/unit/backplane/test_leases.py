"""Who serves which list: the same answer in every router, and as little change as can be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.router.leases import owner

LISTS = [f"orchestrator:tenant-{n}:callbacks".encode() for n in range(3_000)]

ids = st.text("abcdefghij0123456789.-", min_size=1, max_size=60)
routers = st.lists(ids, min_size=1, max_size=8, unique=True)


def shares(of: list[str]) -> dict[bytes, str]:
    return {name: owner(of, name) for name in LISTS}


@given(routers, st.binary(min_size=1, max_size=60), st.randoms())
def test_all_routers_agree(team: list[str], name: bytes, random: object) -> None:
    """In whatever order they learned of each other."""
    shuffled = sorted(team, key=lambda _router: random.random())  # type: ignore[attr-defined]
    assert owner(team, name) == owner(shuffled, name) == owner(frozenset(team), name)
    assert owner(team, name) in team


@given(routers, st.binary(min_size=1, max_size=60))
def test_only_the_lists_of_one_that_leaves_move(team: list[str], name: bytes) -> None:
    """Whoever stays keeps what it had, whoever else goes."""
    serving = owner(team, name)
    for leaving in set(team) - {serving}:
        assert owner([router for router in team if router != leaving], name) == serving


@pytest.mark.parametrize("others", [1, 2, 3, 5, 9])
def test_one_that_comes_takes_its_share_from_all(others: int) -> None:
    """About one list of each n, and none moves between the others."""
    team = [f"router-{n}" for n in range(others)]
    before, after = shares(team), shares([*team, "new"])
    moved = [name for name in LISTS if before[name] != after[name]]
    assert {after[name] for name in moved} == {"new"}
    expected = len(LISTS) / (others + 1)
    assert 0.85 * expected < len(moved) < 1.15 * expected
    taken = Counter(before[name] for name in moved)
    assert set(taken) == set(team)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_shares_are_even(count: int) -> None:
    """No router has much more to do than another."""
    team = [f"host-{n}-{7000 + n}-{n * 7919:06x}" for n in range(count)]
    sizes = Counter(shares(team).values())
    assert set(sizes) == set(team)
    expected = len(LISTS) / count
    assert all(0.8 * expected < size < 1.2 * expected for size in sizes.values())


def test_a_single_router_has_all() -> None:
    """However it is called."""
    assert set(shares(["only"]).values()) == {"only"}
    assert owner(["x" * 200], b"list") == "x" * 200


def test_ids_as_they_are_made_are_told_apart() -> None:
    """An id ends with what makes it unique; the hash must not stop before that."""
    from backplane.router.app import member_id

    team = [member_id() for _ in range(4)]
    assert max(len(router.encode()) for router in team) <= 64
    longest = f"{'h' * 40}-{4_194_304}-"
    assert len(longest) + 6 <= 64
    assert set(shares([longest + f"{n:06x}" for n in range(4)]).values()) == {
        longest + f"{n:06x}" for n in range(4)
    }

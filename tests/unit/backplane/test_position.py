"""Cursors, and history joined with what came live: each entry once, or a gap, never a hole."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import InvalidCursor
from backplane.position import Batch, Gap, Position, merge, new_epoch, newer, parse_cursor

EPOCH = "e1"


def entries(first: int, last: int) -> list[bytes]:
    """The entries of the one true log, which are their own seqs."""
    return [b"%d" % seq for seq in range(first, last + 1)]


def batch(first: int, last: int, epoch: str = EPOCH) -> Batch:
    return Batch(epoch, first, entries(first, last))


def spans(most: int = 30) -> st.SearchStrategy[tuple[int, int]]:
    """First and last seq of a batch; an empty one ends before it begins."""
    return st.integers(1, most).flatmap(
        lambda first: st.tuples(st.just(first), st.integers(first - 1, first + 8))
    )


class TestNewer:
    def test_a_batch_that_follows_is_taken_whole(self) -> None:
        """The ordinary live message."""
        assert newer(batch(4, 6), 3) == entries(4, 6)

    def test_what_the_reader_has_is_left_out(self) -> None:
        """An overlap of history and live doubles nothing."""
        assert newer(batch(2, 6), 4) == entries(5, 6)

    def test_a_batch_that_is_all_old_gives_nothing(self) -> None:
        """A message published again disturbs nobody."""
        assert newer(batch(2, 4), 4) == []
        assert newer(batch(2, 4), 9) == []

    def test_a_hole_in_front_is_a_gap_that_says_from_where(self) -> None:
        """A lost message is found by the next one, and the reader knows where to read on."""
        assert newer(batch(6, 7), 4) == Gap(4)

    def test_an_empty_batch_says_nothing_but_its_place(self) -> None:
        """An empty page at the head is no gap."""
        assert newer(Batch(EPOCH, 5, []), 4) == []

    @given(span=spans(), after=st.integers(0, 40))
    def test_any_batch_continues_the_log_or_is_a_gap(self, span: tuple[int, int], after: int) -> None:
        """Whatever arrives: exactly what follows ``after``, or a gap, and that only for a real hole."""
        fresh = newer(batch(*span), after)
        if isinstance(fresh, Gap):
            assert fresh == Gap(after)
            assert span[0] > after + 1
        else:
            assert fresh == entries(after + 1, max(span[1], after))


class TestMerge:
    def test_live_batches_follow_history(self) -> None:
        """What came while history was read is appended to it."""
        assert merge(EPOCH, 3, [batch(4, 4), batch(5, 7)]) == entries(4, 7)

    def test_overlaps_with_history_and_each_other_count_once(self) -> None:
        """Each exactly once, however the batches overlap."""
        assert merge(EPOCH, 3, [batch(1, 4), batch(2, 5), batch(5, 6), batch(3, 3)]) == entries(4, 6)

    def test_nothing_came(self) -> None:
        """The ordinary quiet session."""
        assert merge(EPOCH, 3, []) == []

    def test_a_hole_is_a_gap_after_what_could_be_joined(self) -> None:
        """History has to be read again, from the place up to which all is known."""
        assert merge(EPOCH, 3, [batch(4, 5), batch(8, 9), batch(6, 7)]) == Gap(5)

    def test_another_epoch_is_a_gap(self) -> None:
        """A log that was lost and begun anew is never joined to the old one."""
        assert merge(EPOCH, 3, [batch(4, 4), batch(5, 5, epoch="e2")]) == Gap(4)

    @given(after=st.integers(0, 20), live=st.lists(spans(), max_size=8))
    def test_any_overlap_yields_each_entry_once_or_a_gap(
        self, after: int, live: list[tuple[int, int]]
    ) -> None:
        """Never a hole, never a double: the entries after ``after`` without a break, or the gap's place."""
        merged = merge(EPOCH, after, [batch(*span) for span in live])
        reached = after
        for first, last in live:
            if first > reached + 1:
                assert merged == Gap(reached)
                return
            reached = max(reached, last)
        assert merged == entries(after + 1, reached)

    @given(
        head=st.integers(1, 25),
        read_to=st.integers(0, 25),
        cuts=st.lists(st.integers(1, 25), max_size=6),
        overlap=st.integers(0, 5),
    )
    def test_a_subscription_older_than_the_read_leaves_no_gap(
        self, head: int, read_to: int, cuts: list[int], overlap: int
    ) -> None:
        """Subscribe, then read: with every message since the subscription, history always joins."""
        read_to = min(read_to, head)
        since = max(1, read_to + 1 - overlap)
        bounds = sorted({since, *(cut for cut in cuts if since < cut <= head), head + 1})
        live = [batch(first, last - 1) for first, last in pairwise(bounds)]
        assert merge(EPOCH, read_to, live) == entries(read_to + 1, head)


class TestBatch:
    def test_last_is_the_seq_of_the_last_entry(self) -> None:
        """The cursor after a batch is its last entry's."""
        assert batch(4, 6).last == 6

    def test_last_of_an_empty_batch_is_what_stands_before_it(self) -> None:
        """An empty page does not move a reader."""
        assert Batch(EPOCH, 5, []).last == 4


class TestCursor:
    @given(epoch=st.from_regex(r"\A[0-9a-z]{1,32}\Z"), seq=st.integers(0, 10**16 - 1))
    def test_what_is_shown_is_read_again(self, epoch: str, seq: int) -> None:
        """A client hands back what it was given and stands where it stood."""
        assert parse_cursor(str(Position(epoch, seq))) == Position(epoch, seq)

    def test_an_epoch_that_the_server_makes_can_be_read(self) -> None:
        """The epochs of `new_epoch` fit the form of a cursor."""
        position = Position(new_epoch(1_769_860_800.123456), 7)
        assert parse_cursor(str(position)) == position

    @pytest.mark.parametrize(
        "text",
        [
            "", ":", "e1", "e1:", ":1", "e1:-1", "e1:+1", "e1:01", "e1:1.0", "e1:1 ", " e1:1", "e1:1\n",
            "E1:1", "e_1:1", "e1:e1:1", "e1:١", "é:1", "e1:0x1", "e1:1e3", "\ud800:1", "e" * 33 + ":1",
            "e1:" + "9" * 17, "e1:1\x00",
        ],
    )  # fmt: skip
    def test_anything_else_is_refused(self, text: str) -> None:
        """A cursor of another form never becomes a position by chance."""
        with pytest.raises(InvalidCursor):
            parse_cursor(text)

    @given(st.text(max_size=40))
    def test_any_text_is_a_cursor_or_invalid(self, text: str) -> None:
        """No text raises anything else, and what is accepted reads back the same."""
        try:
            position = parse_cursor(text)
        except InvalidCursor:
            return
        assert str(position) == text


def test_epochs_differ_at_the_same_instant() -> None:
    """Two logs begun in the same microsecond are still told apart."""
    assert len({new_epoch(1_769_860_800.0) for _ in range(100)}) == 100

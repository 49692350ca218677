"""A fetched batch and its pieces: the positions join, whatever gaps the log has."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ebbtide.stream.batch import FetchedBatch, first_timestamp
from tests.support.seams.streams import LogRecord


@st.composite
def batches(draw: st.DrawFn) -> FetchedBatch:
    """Any number of records, with gaps before, between and after them."""
    start = draw(st.integers(0, 1000))
    offsets, position = [], start
    for gap in draw(st.lists(st.integers(0, 3), max_size=30)):
        offsets.append(position + gap)
        position += gap + 1
    end = max(position + draw(st.integers(0, 3)), start + 1)
    return FetchedBatch("t", 3, 7, start, end, [LogRecord(offset, 0, b"k", b"v") for offset in offsets])


def pieces_of(batch: FetchedBatch, size: int) -> list[FetchedBatch]:
    """As one fetch after the other would bring it, each of a newer leader."""
    pieces, start = list[FetchedBatch](), batch.start
    for first in range(0, max(len(batch.records), 1), size):
        records = batch.records[first : first + size]
        end = records[-1].offset + 1 if first + size < len(batch.records) else batch.end
        pieces.append(FetchedBatch("t", 3, 7, start, end, records, leader_epoch=first))
        start = end
    return pieces


@given(batches(), st.integers(1, 10))
def test_batches_that_follow_join_and_lose_nothing(batch: FetchedBatch, size: int) -> None:
    """Each begins where the last one ended; together they are one, of the last one's leader epoch."""
    pieces = pieces_of(batch, size)
    assert pieces[0].start == batch.start
    assert pieces[-1].end == batch.end
    assert all(later.follows(batch.seek_id, earlier.end) for earlier, later in pairwise(pieces))
    assert list(pieces[0].joined(pieces[1:]).records) == list(batch.records)
    assert pieces[0].joined(pieces[1:]).end == batch.end
    assert pieces[0].joined(pieces[1:]).leader_epoch == pieces[-1].leader_epoch


def test_no_age_follows_from_a_missing_timestamp() -> None:
    """-1 is none; taken for a time it would be an age of half a century."""
    records = [LogRecord(n, ms, b"k", b"v") for n, ms in enumerate((-1, -1, 5_000, 4_000))]
    assert first_timestamp(records) == 5_000
    assert first_timestamp(records[:2]) is first_timestamp([]) is None


def test_what_follows() -> None:
    """The seek and the position, both."""
    batch = FetchedBatch("t", 3, 7, 10, 20, [])
    assert batch.follows(7, 10)
    assert not batch.follows(6, 10)
    assert not batch.follows(7, 11)

"""Opening a partition: what its checkpoint is held against, and which log it belongs to."""

from dataclasses import replace

import numpy as np
import pytest

from ebbtide.featurestore.errors import Fenced, LayoutError
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.stream.batch import CommittedOffset, FetchedBatch, lost_tail
from ebbtide.stream.decision.suppression import NO_SUPPRESSION
from ebbtide.stream.errors import AnotherLog, CheckpointOutsideLog
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.opened import LogState, Opened, open_partition
from tests.support.seams.scoring import LAYOUT

LOG = LogState(partitions=2, begin=10, end=100, committed=CommittedOffset(40, ""), topic_id="topic-a")
STORED = Checkpoint(40, 7, 0, LAYOUT.id, 2)._replace(topic_id="topic-a", leader_epoch=3)


async def opened(stored: Checkpoint | None, log: LogState = LOG) -> Opened:
    store = MemoryStore(LAYOUT.dtype, 2)
    if stored is not None:
        await store.apply(Commit(1, None, stored, [], LAYOUT.empty(0), np.empty(0, np.int64)))
    found = await store.checkpoint(1)
    return await open_partition(store, LAYOUT.id, 1, log, found, NO_SUPPRESSION, FloodGuard(1.0))


async def test_a_partition_opens_where_it_was_with_a_nonce_of_its_own() -> None:
    """Two owners of one checkpoint write different ones: equal numbers of two histories never pass the fence."""
    first, second = await opened(STORED), await opened(STORED)
    assert first.stored == second.stored == STORED
    assert first.checkpoint.nonce != second.checkpoint.nonce
    assert first.checkpoint._replace(nonce="") == STORED
    fresh = await opened(None)
    assert (fresh.stored, fresh.checkpoint.offset, fresh.checkpoint.topic_id) == (None, 10, "topic-a")


@pytest.mark.parametrize(
    ("log", "error", "words"),
    [
        (replace(LOG, topic_id="topic-b"), AnotherLog, "deleted and made again.*topic-b.*topic-a"),
        (replace(LOG, begin=41), CheckpointOutsideLog, r"at offset 40, the log holds \[41, 100\)"),
        (replace(LOG, end=39), CheckpointOutsideLog, r"at offset 40, the log holds \[10, 39\)"),
        (replace(LOG, committed=CommittedOffset(101, "")), CheckpointOutsideLog, "sent up to offset 101"),
        (replace(LOG, partitions=4), LayoutError, "2 partitions, this one has 4"),
    ],
)
async def test_another_log_is_refused(log: LogState, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        await opened(STORED, log)


async def test_a_broker_that_cannot_say_is_unknown_and_no_error() -> None:
    unknown = await opened(STORED, replace(LOG, topic_id=""))
    assert unknown.checkpoint.topic_id == "topic-a"
    assert lost_tail(1, 40, 3, None) is None


def test_a_lost_tail_is_refused_by_its_leader_epoch() -> None:
    """The log was refilled beyond what was read, so offsets alone say nothing (KIP-320)."""
    assert lost_tail(1, 40, 3, 40) is None
    for end in (39, 0, -1):
        error = lost_tail(1, 40, 3, end)
        assert isinstance(error, AnotherLog)
        assert "leader epoch 3" in str(error) and "its tail was lost" in str(error)


async def test_a_batch_that_does_not_follow_is_a_gap() -> None:
    at_40 = await opened(STORED)
    at_40.seek_id = 5
    at_40.check_follows(FetchedBatch("t", 1, 5, 40, 41, []))
    for seek_id, start in ((5, 41), (5, 39), (6, 40)):
        with pytest.raises(Fenced, match="expected 40"):
            at_40.check_follows(FetchedBatch("t", 1, seek_id, start, 50, []))

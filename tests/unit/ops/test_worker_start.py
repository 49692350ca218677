"""What a worker finds out before it joins its group, so that nobody who serves is disturbed by one that cannot."""

import pytest

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.ops.worker.connect import check_state
from tests.support.seams.scoring import LAYOUT


async def begun(layout: str, partitions: int) -> MemoryStore:
    """A store of four partitions, of which the last has state of that layout, made when there were so many."""
    store = MemoryStore(LAYOUT.dtype, 4)
    checkpoint = Checkpoint(7, 1, 0, layout, partitions)
    await store.apply(Commit(3, None, checkpoint, [], LAYOUT.empty(0), LAYOUT.empty(0)["last_seen"]))
    return store


async def test_state_of_another_spec_is_met_before_joining() -> None:
    await check_state(MemoryStore(LAYOUT.dtype, 4), LAYOUT)
    await check_state(await begun(LAYOUT.id, 4), LAYOUT)
    with pytest.raises(LayoutError):
        await check_state(await begun("fold:0123456789abcdef/policy:0123456789abcdef", 4), LAYOUT)
    with pytest.raises(LayoutError, match="3"):
        await check_state(await begun(LAYOUT.id, 3), LAYOUT)

"""A state given to another log on purpose: the identity in its checkpoints is changed, and nothing else.

After a restore, or when a mirror takes over (MirrorMaker, cluster linking), the topic holds the same events at the same
offsets and is another topic all the same. Workers refuse it, since they cannot tell it from one that was made anew; a
person can. Each partition's checkpoint is moved by an ordinary fenced commit, so a worker that still runs is fenced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.checkpoint import Checkpoint, check_checkpoint, draw_nonce
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.errors import CheckpointOutsideLog


@dataclass(frozen=True, slots=True)
class Adopted:
    """One partition: it is at `offset`, and belonged to topic `before` ("" unknown)."""

    partition: int
    offset: int
    before: str


async def adopt(
    store: Store, layout: Layout, ranges: Mapping[int, tuple[int, int]], topic_id: str
) -> Sequence[Adopted]:
    """Let every checkpoint belong to the topic `topic_id`, whatever its leader epochs were. `ranges`: of each
    partition's
    log, [begin, end).

    All are looked at before one is changed. Raises CheckpointOutsideLog for a checkpoint that this log does not reach,
    LayoutError for one of another layout or number of partitions; Fenced when a worker moves a partition meanwhile: run
    it again.
    """
    found: dict[int, Checkpoint] = {}
    for number, (begin, end) in sorted(ranges.items()):
        checkpoint = await store.checkpoint(number)
        check_checkpoint(checkpoint, layout.id, len(ranges))
        if checkpoint is None:
            continue
        if not begin <= checkpoint.offset <= end:
            raise CheckpointOutsideLog(
                f"partition {number} is at offset {checkpoint.offset}, this log holds [{begin}, {end}):"
                " it is another one",
                hint="make the state again from this log: `ebbtide rebuild --prefix NEW`, then set redis.prefix to it",
            )
        found[number] = checkpoint
    adopted = []
    for number, before in found.items():
        after = before._replace(
            sequence=before.sequence + 1, topic_id=topic_id, leader_epoch=-1, nonce=draw_nonce()
        )
        await store.apply(Commit(number, before, after, [], layout.empty(0), np.empty(0, np.int64)))
        adopted.append(Adopted(number, before.offset, before.topic_id))
    return adopted

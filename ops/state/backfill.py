"""History straight into the store: the state a worker would have, had it read the events as they came.

The very fold of the worker, over a file, and then one atomic step after another. What was due by then is taken, as time
would have taken it, and no decision is made: nobody is alerted about the past. The checkpoint says where the topic goes
on (`ops/state/junction.py`), so that a worker folds what comes after the file, and that once; and that timers go on
from the file's end: what came due since is taken and not alerted about (`stream/decision/suppression.py`). Beside it
stands how much came by hour, by the events' times, so that a worker knows what is usual (`stream/turn/volume.py`). It
refuses a store that holds state already: history folded over what is there would count twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.engine import Engine
from ebbtide.featurestore.parts.processes import HERE
from ebbtide.featurestore.parts.states import states_by
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import arrived_before
from ebbtide.featurestore.store.checkpoint import BACKFILLING, Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.errors import OpsError
from ebbtide.ops.state.junction import Junction
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.turn.volume import Volume

Progress = Callable[[float, float, str], None]


class StateExists(OpsError):
    """The store holds state of this topic already."""


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What was written: events folded, customers stored."""

    events: int
    customers: int


async def backfill(
    log: EventBatch,
    layout: Layout,
    store: Store,
    junctions: Mapping[int, Junction],
    before_ms: int,
    *,
    reset: bool = False,
    engine: Engine = HERE,
    progress: Progress = lambda *_: None,
) -> Backfilled:
    """Store every customer's record as of all events that arrived before `before_ms` (ms UTC).

    junctions: the input topic's partitions, and where the worker is to go on in each. A customer belongs to the
    partition that Kafka's default partitioner gives its key, as a producer with a key would have it. `reset` deletes
    what the store holds of the topic first. `engine` folds; it is we who write. Raises StateExists, StoreUnavailable,
    JobFailed.
    """
    for partition in junctions:
        if reset:
            await store.reset(partition)
        elif await store.checkpoint(partition) is not None:
            raise StateExists(
                f"the store holds state of partition {partition} already",
                hint="use --reset to delete it first, or another redis.prefix",
            )
    keys = layout.spec.keys_of(log.customers)
    homes = np.array([partition_for(key, len(junctions)) for key in keys], np.int64)
    home = homes[log.customer] if len(log) else np.empty(0, np.int64)
    volumes = {p: Volume.of_history(log.time[home == p], before_ms) for p in junctions}
    # From the first step to the last of its partition a worker refuses it: half a history is no state.
    begun = {
        p: Checkpoint(
            each.offset, 1, before_ms, BACKFILLING, len(junctions), history=each.history, hour=volumes[p].hour
        )
        for p, each in junctions.items()
    }
    for partition, checkpoint in begun.items():
        none, hours = layout.empty(0), volumes[partition].ended or None
        await store.apply(Commit(partition, None, checkpoint, [], none, np.empty(0, np.int64), hours=hours))
    of_file = replace(
        log, position=np.full(len(log), -1, np.int64)
    )  # a row's number is no offset of the topic
    rows = states_by(engine, layout, of_file, before_ms)
    known = np.flatnonzero(rows["event_time"] != 0)
    done = 0
    for partition, checkpoint in begun.items():
        mine: NDArray[np.intp] = known[homes[known] == partition]
        before = checkpoint
        for first in range(0, max(len(mine), 1), CUSTOMERS_MAX):
            part = mine[first : first + CUSTOMERS_MAX]
            last = first + CUSTOMERS_MAX >= len(mine)
            after = checkpoint._replace(
                sequence=before.sequence + 1, layout=layout.id if last else BACKFILLING
            )
            own = np.ascontiguousarray(rows[part])
            customers = [log.customers[i] for i in part]
            await store.apply(Commit(partition, before, after, customers, own, Folder(layout).due(own)))
            before = after
            done += len(part)
            progress(done, len(known), f"{done:,} customers")
    return Backfilled(arrived_before(log, before_ms), len(known))

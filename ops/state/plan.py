"""What a rebuild would begin with, and every reason not to begin: found before anything is folded, without TensorFlow.

    mark of the group     none anywhere: nobody has decided anything, and a first start makes the state by itself
                          outside the log: the log it belongs to is gone
    checkpoint under the prefix: none: from the log's begin · below the committed offset: it goes on there · else it is
    not ours

It reads and changes nothing.
"""

from dataclasses import dataclass

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.store.checkpoint import Checkpoint, check_checkpoint
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.errors import OpsError
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.errors import HeadOutsideLog
from ebbtide.stream.kafka.committed_log import CommittedLog

ANEW = "delete it with `ebbtide drop --prefix NEW --yes` and begin again, or choose another prefix"


class NothingToRebuild(OpsError):
    """The group has no committed offset: nobody has decided anything yet."""


class NotOurs(OpsError):
    """What is stored under the prefix is not what this rebuild could go on with, or somebody else moves it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """By partition, for those that the group has a committed offset of: where the log begins, and where the rebuild
    does."""

    begin: dict[int, int]
    start: dict[int, int]


async def plan(settled: CommittedLog, store: Store, group: str, layout_id: str) -> Plan:
    """What there is to do. Raises NothingToRebuild, NotOurs, HeadOutsideLog; StoreUnavailable, BrokerUnavailable."""
    committed, ranges = await settled.committed(), await settled.ranges()
    if not committed:
        raise NothingToRebuild(
            f"group {group!r} has no committed offset: no worker of it has ever run",
            hint="start a worker with the new redis.prefix: a first start makes the state by itself",
        )
    begins, starts = {}, {}
    for number, each in sorted(committed.items()):
        begin, end = ranges[number]
        check_committed(number, each, begin, end)
        checkpoint = await head_of(store, number, layout_id, settled.partitions)
        begins[number], starts[number] = begin, begin if checkpoint is None else checkpoint.offset
        if starts[number] < begin:
            raise NotOurs(
                f"partition {number} under this prefix is at offset {starts[number]}, the log begins at {begin}",
                hint=ANEW,
            )
        if starts[number] > each.offset:
            raise NotOurs(
                f"partition {number} under this prefix is at offset {starts[number]}, beyond"
                f" the committed offset {each.offset}",
                hint="a worker uses this prefix already: choose another one",
            )
    return Plan(begins, starts)


def check_committed(partition: int, committed: CommittedOffset, begin: int, end: int) -> None:
    """Raises HeadOutsideLog when the committed offset belongs to a log that is no longer there."""
    if committed.offset < begin:
        raise HeadOutsideLog(
            f"partition {partition} was sent up to offset {committed.offset}, the log begins at {begin}",
            hint="what lay between is gone: start workers with the new redis.prefix, they fold what is retained",
        )
    if committed.offset > end:
        raise HeadOutsideLog(
            f"partition {partition} was sent up to offset {committed.offset}, the log ends at {end}",
            hint="the topic was made anew: workers need another kafka.group and another redis.prefix",
        )


async def head_of(store: Store, partition: int, layout_id: str, partitions: int) -> Checkpoint | None:
    """The checkpoint under the new prefix. Raises NotOurs when it belongs to another layout, topic or reset."""
    try:
        checkpoint = await store.checkpoint(partition)
        check_checkpoint(checkpoint, layout_id, partitions)
    except LayoutError as error:
        raise NotOurs(f"this prefix holds another state: {error.args[0]}", hint=ANEW) from error
    return checkpoint

"""What a rebuild would begin with, and every reason not to begin: found before anything is folded, without TensorFlow.

    mark of the group     none anywhere: nobody has decided anything, and a first start makes the state by itself
                          outside the log: the log it belongs to is gone
    checkpoint under the prefix: none: from the log's begin · below the committed offset: it goes on there · else it is
    not ours

It reads and changes nothing.
"""

from dataclasses import dataclass

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.errors import OpsError
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.decision.suppression import SUPPRESS_ALL
from ebbtide.stream.errors import CheckpointOutsideLog
from ebbtide.stream.kafka.committed_log import CommittedLog
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.opened import LogState, Opened, open_partition

ANEW = "delete it with `ebbtide drop --prefix NEW --yes` and begin again, or choose another prefix"


class NothingToRebuild(OpsError):
    """The group has no committed offset: nobody has decided anything of this log yet."""


class NotOurs(OpsError):
    """What is stored under the prefix is not what this rebuild could go on with, or somebody else moves it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """By partition, for those that the group has a committed offset of: where the rebuild begins."""

    start: dict[int, int]


async def plan(settled: CommittedLog, store: Store, group: str, layout_id: str) -> Plan:
    """What there is to do.

    Raises NothingToRebuild, NotOurs, CheckpointOutsideLog; StoreUnavailable, BrokerUnavailable.
    """
    committed, ranges = await settled.committed(), await settled.ranges()
    if not committed:
        raise NothingToRebuild(
            f"group {group!r} has no committed offset: no worker of it has ever run, or the topic was deleted, and"
            " Kafka took them away with it",
            hint="start a worker with the new redis.prefix: a first start makes the state by itself",
        )
    starts = {}
    for number, each in sorted(committed.items()):
        begin, end = ranges[number]
        check_committed(number, each, begin, end)
        log = LogState(settled.partitions, begin, end, None)
        opened = await open_ours(store, layout_id, number, log, FloodGuard(1.0))
        starts[number] = opened.checkpoint.offset
        if starts[number] > each.offset:
            raise NotOurs(
                f"partition {number} under this prefix is at offset {starts[number]}, beyond"
                f" the committed offset {each.offset}",
                hint="a worker uses this prefix already: choose another one",
            )
    return Plan(starts)


def check_committed(partition: int, committed: CommittedOffset, begin: int, end: int) -> None:
    """Raises CheckpointOutsideLog when the committed offset belongs to a log that is no longer there."""
    if committed.offset < begin:
        raise CheckpointOutsideLog(
            f"partition {partition} was sent up to offset {committed.offset}, the log begins at {begin}",
            hint="what lay between is gone: start workers with the new redis.prefix, they fold what is retained",
        )
    if committed.offset > end:
        raise CheckpointOutsideLog(
            f"partition {partition} was sent up to offset {committed.offset}, the log ends at {end}",
            hint="the topic was made anew: workers need another kafka.group and another redis.prefix",
        )


async def open_ours(store: Store, layout_id: str, number: int, log: LogState, flood: FloodGuard) -> Opened:
    """The partition under the new prefix, all of it suppressed. Raises NotOurs when what is stored belongs to another
    layout, topic or reset, or lies outside the log."""
    try:
        stored = await store.checkpoint(number)
        return await open_partition(store, layout_id, number, log, stored, SUPPRESS_ALL, flood)
    except (LayoutError, CheckpointOutsideLog) as error:
        raise NotOurs(f"this prefix holds another state: {error.args[0]}", hint=ANEW) from error

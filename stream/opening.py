"""The way to an open partition: whose it is, what was said of it, where its state is, and what is left to say.

    1 take over ─▶ 2 committed offset ─▶ 3 checkpoint ─▶ 4 the log's ends ─▶ 5 outbox, sent ─▶ 6 it may be fetched

The order is the point. The committed offset is read once nobody else can move it; the log's ends behind both: whoever
had the partition before, and has not heard that it is not theirs, may go on until our first commit.
"""

from typing import Literal

from ebbtide.stream.batch import Source
from ebbtide.stream.decision.suppression import NO_SUPPRESSION, Suppression
from ebbtide.stream.errors import TopicRepartitioned
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.opened import LogState, Opened, check_tail, commit_first, open_partition


async def open_from_store(
    number: int,
    pipeline: Pipeline,
    tools: Tools,
    source: Source,
    alerts_from: Literal["now", "start"],
    flood: FloodGuard,
    *,
    timers_off: bool,
) -> tuple[Opened, int]:
    """Steps 1 to 5: the partition, and where its log ends. `alerts_from`: what a first start takes for news, and the
    first one whose timers are on.

    Raises TopicRepartitioned, a PartitionFault, LayoutError: for a person; Fenced, StoreUnavailable, BrokerUnavailable,
    PartitionRevoked.
    """
    partitions = await source.partition_count()
    await tools.sink.take_over(number)
    committed = await source.committed(number)
    if partitions != tools.store.partitions:
        raise TopicRepartitioned(
            f"topic {tools.topic!r} has {partitions} partitions, and had {tools.store.partitions} when this"
            " worker started: customers moved away from their state, so nothing is folded",
            hint="send all events anew, by key, to another topic, with another kafka.group and redis.prefix",
        )
    topic_id = await source.topic_id()
    stored = await tools.store.checkpoint(number)
    begin, end = await source.log_range(number)
    log_state = LogState(partitions, begin, end, committed, topic_id)
    suppression = NO_SUPPRESSION if committed is None else Suppression.by(committed)
    opened = await open_partition(tools.store, tools.layout.id, number, log_state, stored, suppression, flood)
    if opened.checkpoint.leader_epoch >= 0:
        check_tail(opened, await source.epoch_end(number, opened.checkpoint.leader_epoch))
    if alerts_from == "now" and not (committed and suppression.timers_known):
        opened.suppression, asked = suppression.from_now(
            opened.stored, committed, begin, end, tools.clock.now_ms()
        )
        await commit_first(source, number, asked)
    news_from_ms = tools.clock.now_ms() if alerts_from == "now" else 0
    opened.suppression = opened.suppression.with_timers(off=timers_off, news_from_ms=news_from_ms)
    await pipeline.send_outbox(opened)
    if opened.stored is not None:
        # Applied and, just now, sent: the owner that applied it may not have lived to say so.
        source.advance_committed(number, *opened.committed)
    return opened, end

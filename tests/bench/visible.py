"""When a record could be read by whoever reads committed records only: when every transaction that had begun by then in
its partition was over, as the broker's markers tell. Of a record that is in no transaction, when it was appended.
"""

import bisect
from collections import defaultdict
from typing import Any

from aiokafka import TopicPartition
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

from ebbtide.stream.kafka.reader import reader
from ebbtide.stream.kafka.settings import KafkaSettings

FETCH_BYTES = 4 << 20


class Markers:
    """Of a topic: `at_ms(partition, offset)` is when its transactions up to that offset were over, 0 without any."""

    def __init__(self, over: dict[int, list[tuple[int, int]]]) -> None:
        self._firsts, self._latest_ms = dict[int, list[int]](), dict[int, list[int]]()
        for partition, transactions in over.items():
            transactions.sort()
            self._firsts[partition] = [first for first, _ in transactions]
            latest, running = 0, []
            for _, over_ms in transactions:
                latest = max(latest, over_ms)
                running.append(latest)
            self._latest_ms[partition] = running

    def at_ms(self, partition: int, offset: int) -> int:
        at = bisect.bisect_right(self._firsts.get(partition, []), offset)
        return self._latest_ms[partition][at - 1] if at else 0


async def markers(settings: KafkaSettings, topic: str) -> Markers:
    """Read from the raw log, since a client hides them."""
    over: dict[int, list[tuple[int, int]]] = defaultdict(list)
    async with reader(settings, topic) as (consumer, partitions):
        begin, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        for tp in partitions:
            begun: dict[int, int] = {}  # by producer id: the first offset of its open transaction
            at = begin[tp]
            while at < end[tp]:
                for batch in await _batches(consumer._client, tp, at):
                    at = batch.next_offset
                    if batch.is_control_batch:
                        first = begun.pop(batch.producer_id, None)
                        if first is not None:
                            over[tp.partition].append((first, batch.max_timestamp))
                    elif batch.is_transactional:
                        begun.setdefault(batch.producer_id, batch.base_offset)
    return Markers(over)


async def _batches(client: Any, tp: TopicPartition, at: int) -> list[Any]:
    leader = client.cluster.leader_for_partition(tp)
    request = FetchRequest(100, 1, FETCH_BYTES, 0, [(tp.topic, [(tp.partition, at, FETCH_BYTES)])])
    answer = await client.send(leader, request)
    records = MemoryRecords(answer.topics[0][1][0][-1])
    found = []
    while records.has_next():
        found.append(records.next_batch())
    return found

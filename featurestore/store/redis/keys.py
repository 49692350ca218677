"""The keys of a partition in Redis.

    {prefix}{topic}:{p7}:checkpoint     string  where the partition is, in words (`Checkpoint.text`)
    {prefix}{topic}:{p7}:c:<customer>   string  the record, packed (`codec.py`)
    {prefix}{topic}:{p7}:due            zset    customer → ms UTC, one entry for each record
    {prefix}{topic}:{p7}:out            hash    id → entry of the outbox, until Kafka has acknowledged it: sequence,
                                                place in it, length of the key; then key and value
    {prefix}{topic}:{p7}:risk           zset    customer → p as of the last decision, of those at risk, AT_RISK_MAX at
                                                most; and b"\\xff" → the highest p that found no room, if any did
    {prefix}{topic}:{p7}:parts          zset    only where customers are composite: each of them, all with 0, so that
                                                those of a first part are a range (BYLEX)
    {prefix}{topic}:{p7}:hours          string  records of its log by hour, in words, once an hour has ended

The braces are a hash tag: all keys of a partition live in one slot, so one script may change them together on a
Cluster, too. What stands for a customer is their id, or hidden by a key (`names.py`).
"""

from collections.abc import Sequence

from ebbtide.featurestore.errors import StoreMisconfigured
from ebbtide.featurestore.store.redis.names import Names


class Keys:
    """Of one topic's partitions. `tags`: by partition, what all of its keys begin with. Raises StoreMisconfigured."""

    def __init__(self, prefix: str, topic: str, partitions: int, names: Names) -> None:
        if {"{", "}"} & {*prefix, *topic}:
            raise StoreMisconfigured(f"prefix {prefix!r} and topic {topic!r} must not contain braces")
        self._names = names
        self.tags = [f"{prefix}{topic}:{{p{partition}}}:" for partition in range(partitions)]

    def records(self, partition: int, customers: Sequence[str]) -> list[str]:
        """Of the customers' records."""
        record, stored = self.tags[partition] + "c:", self._names.stored
        return [record + stored(customer) for customer in customers]

    def fixed(self, partition: int) -> tuple[str, ...]:
        """Those that every commit names."""
        tag = self.tags[partition]
        return tag + "checkpoint", tag + "due", tag + "out", tag + "risk"

    def parts(self, partition: int) -> tuple[str, ...]:
        """One where customers are composite, else none."""
        return (self.tags[partition] + "parts",) if self._names.composite else ()

    def hours(self, partition: int) -> str:
        """Of the counts of its log."""
        return self.tags[partition] + "hours"

    def all(self, partition: int) -> tuple[str, ...]:
        """All but records and hours that a partition may have, of whatever spec its state was."""
        return *self.fixed(partition), self.tags[partition] + "parts"

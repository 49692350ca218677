"""What can go wrong between Kafka and an alert, and what whoever catches it has to do.

    EbbtideError (featurestore.errors)
    └── StreamError
        ├── BrokerUnavailable      no broker answers, or not in time        retry in service, crash at start
        ├── BrokerMisconfigured    wrong password, topic missing or cut     crash: a person has to act
        │                          otherwise, no right to it
        ├── RecordTooLarge         no broker would take what we send        stop the partition: a topic accepts too
        │                                                                   little
        ├── TopicRepartitioned     the topic has another number of          crash: customers have moved
        │                          partitions than at the start
        ├── ScorerUnavailable      the model fails for what it is asked     retry: the partition waits
        ├── PartitionRevoked       the partition is another worker's now    drop the work, it is theirs
        └── PartitionFault         one partition cannot go on               stop that one, loudly; the others go on
            ├── CheckpointOutsideLog  the log no longer has what the     ask for a rebuild
            │                      state says comes next
            ├── AnotherLog         the topic was made anew, or the log    adopt it on purpose, or rebuild
            │                      lost its tail
            ├── UnreadableBatch    what lies there cannot be read:          a person has to look at the log
            │                      corrupt, or too large once decompressed
            └── DeadLetterFlood    most of what arrives is bad              better stopped than buried

A bad input record is a value (`stream/outputs/dead_letter.py`), not an exception.
"""

from ebbtide.featurestore.errors import EbbtideError


class StreamError(EbbtideError):
    """Root of the package's tree."""


class BrokerUnavailable(StreamError):
    """Kafka did not answer: what was asked may or may not have happened. Ask again."""


class BrokerMisconfigured(StreamError):
    """Kafka answers and says no, and will say no again: a setting or the cluster has to change."""


class RecordTooLarge(StreamError):
    """What was to be produced exceeds what the producer or its topic accept: it was not sent and never will be.
    A dead letter is as large as the record it carries, so its topic has to accept what the input's topic does."""


class PartitionRevoked(StreamError):
    """The partition is not ours (any more). Nothing is wrong: its new owner starts from the stored checkpoint."""


class TopicRepartitioned(StreamError):
    """The input topic has another number of partitions than when the worker started: customers have moved away from
    their
    state, so nothing may be folded."""


class ScorerUnavailable(StreamError):
    """The model raised. The batch's customers stay as they were; it is asked again."""


class PartitionFault(StreamError):
    """About one partition, and no retry mends it. Another owner would meet the same, so it stays ours and stops."""


class UnreadableBatch(PartitionFault):
    """A record batch is corrupt, or larger than `kafka.fetch_uncompressed_bytes_max` once decompressed."""


class AnotherLog(PartitionFault):
    """The log is not the one that the state was folded from: its topic was deleted and made again, or its tail was lost
    and filled anew. Going on would skip what lies below the checkpoint now."""


class CheckpointOutsideLog(PartitionFault):
    """The stored checkpoint lies outside the retained log (retention passed it, the topic was made anew), or the
    number of partitions changed. Going on would skip events or fold them into another customer's partition."""


class DeadLetterFlood(PartitionFault):
    """More than `dead_letter_share_max` of what arrives is bad: a wrong mapping, most likely."""

"""Messages as record batches of a transactional producer: order, size, and the numbers that let each be there once."""

from aiokafka import TopicPartition
from aiokafka.record.memory_records import MemoryRecords

from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.kafka.transactions.batches import SEQUENCES, Producer, placed, rounds
from ebbtide.stream.outputs.message import Message

PRODUCER = Producer(4711, 3)
TP = TopicPartition("t", 0)


def read(batch: bytes) -> tuple[int, int, int, list[bytes | None]]:
    """Producer id, epoch, first number and values."""
    found = MemoryRecords(batch).next_batch()
    assert found.is_transactional and not found.is_control_batch and found.validate_crc()
    return found.producer_id, found.producer_epoch, found.base_sequence, [r.value for r in found]


def test_a_message_lies_where_its_key_belongs() -> None:
    """As Kafka's default partitioner has it, unless it names its partition; one without a key anywhere."""
    messages = [Message("t", b"k%d" % n, b"") for n in range(50)]
    messages += [Message("t", b"k1", b"named", partition=2), Message("other", None, b"no key")]
    found = placed(messages, {"t": [0, 1, 2], "other": [0]})
    for tp, those in found.items():
        for message in those:
            if message.key is not None and message.partition is None:
                assert tp == ("t", partition_for(message.key, 3))
    assert found["t", 2][-1].value == b"named"
    assert [message.value for message in found["other", 0]] == [b"no key"]


def test_a_round_has_one_batch_of_each_in_order() -> None:
    """In the order given, at most so large; a record that is larger is alone."""
    values = [b"%03d" % n + b"." * 97 for n in range(30)]
    values[10] = b"010" + b"." * 5_000
    sequences: dict[TopicPartition, int] = {}
    made = rounds({TP: [Message("t", b"k", v) for v in values]}, PRODUCER, sequences, 1_000)
    found = [read(batch) for batches in made for batch in batches.values()]
    assert [value for *_, those in found for value in those] == values
    assert all(
        len(batch) <= 1_000
        for n, b in enumerate(made)
        for batch in b.values()
        if values[10] not in found[n][3]
    )
    assert [(pid, epoch) for pid, epoch, *_ in found] == [PRODUCER] * len(found)
    numbers = [first for *_, first, _ in found]
    assert numbers == [sum(len(those) for *_, those in found[:n]) for n in range(len(found))]
    assert sequences == {TP: 30}


def test_numbers_go_on_and_begin_again_at_their_end() -> None:
    """From one transaction to the next, a topic partition's own; after the last there is the first."""
    sequences = {TP: SEQUENCES - 2}
    ((batches,),) = [rounds({TP: [Message("t", b"k", b"v")] * 3}, PRODUCER, sequences, 1_000)]
    assert read(batches[TP])[2] == SEQUENCES - 2
    assert sequences == {TP: 1}

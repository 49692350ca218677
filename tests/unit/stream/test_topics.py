"""Which partition a key belongs to, and whether it lies there."""

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from ebbtide.featurestore.hashing import misplaced
from ebbtide.stream.kafka.topics import partition_for

# Kafka's own test vectors (org.apache.kafka.common.utils.UtilsTest.testMurmur2), signed as Java has them.
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), VECTORS.items())
def test_keys_are_hashed_as_kafka_does(key: bytes, hashed: int) -> None:
    """Compared by the partition of 1,000,003, a prime, so that nearly every bit counts."""
    right = (hashed & 0x7FFFFFFF) % 1_000_003
    assert partition_for(key, 1_000_003) == right
    assert not misplaced([key], right, 1_000_003).any()


@given(st.lists(st.none() | st.binary(max_size=40), max_size=30), st.integers(1, 2000))
def test_what_another_partitioner_put_elsewhere_is_found(keys: list[bytes | None], partitions: int) -> None:
    """Against the client library's own partitioner, key by key; what has no key is nowhere wrong."""
    everywhere = list(range(partitions))
    for partition in {0, partitions - 1}:
        right = [
            key is not None and DefaultPartitioner()(key, everywhere, everywhere) != partition for key in keys
        ]
        found = misplaced(keys, partition, partitions)
        assert found.dtype == np.bool_
        assert found.tolist() == right

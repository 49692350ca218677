"""Stable 64-bit hashes of text: of event ids, so that a record can remember them, and of customers, for sticky shares.

XXH3 (Collet) over the UTF-8 bytes: one call into C a text, nothing to compile, and all its bits are even. Python's own
`hash` is salted anew in every process; this one is the same for ever, in stored records too: changing it is a new
FOLD_VERSION. It knows nothing of what it hashes. 0 means *none*: only the empty text hashes to it.
"""

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """uint64[n], the hash of each text; 0 for the empty text and for no other."""
    return np.fromiter(
        ((xxh3_64_intdigest(t.encode()) or 1) if t else 0 for t in texts), np.uint64, len(texts)
    )


def murmur2_texts(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    """uint32[n], MurmurHash2 of each text under Kafka's seed: what its default partitioner takes the partition from."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    hashes = np.empty(len(texts), np.uint32)
    _murmur2(np.frombuffer(b"".join(texts), np.uint8), ends, hashes)
    return hashes


def misplaced(
    keys: Sequence[bytes | None], partition: int | NDArray[np.int64], partitions: int
) -> NDArray[np.bool_]:
    """bool[n]: which of `keys`, found in `partition` (one, or int64[n]), Kafka's default partitioner puts elsewhere,
    in a topic of `partitions`.

    A record without a key is where its producer wanted it, and is never misplaced. Whoever asks leaves tombstones out:
    they are sent to whichever partitions hold the customer.
    """
    hashes = murmur2_texts([key or b"" for key in keys]) & np.uint32(0x7FFFFFFF)
    wrong: NDArray[np.bool_] = hashes % np.uint32(partitions) != partition
    if None in keys:
        wrong &= np.fromiter((key is not None for key in keys), np.bool_, len(keys))
    return wrong


@numba.njit(cache=True, nogil=True)
def _murmur2(data, ends, hashes):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    m = np.uint32(0x5BD1E995)
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        h = np.uint32(0x9747B28C) ^ np.uint32(end - start)
        whole = start + (end - start) // 4 * 4
        for j in range(start, whole, 4):
            k = np.uint32(data[j]) | np.uint32(data[j + 1]) << np.uint32(8)
            k |= np.uint32(data[j + 2]) << np.uint32(16) | np.uint32(data[j + 3]) << np.uint32(24)
            k = np.uint32(k * m)
            k = np.uint32((k ^ (k >> np.uint32(24))) * m)
            h = np.uint32(np.uint32(h * m) ^ k)
        if end > whole:
            for j in range(end - 1, whole - 1, -1):
                h ^= np.uint32(data[j]) << np.uint32(8 * (j - whole))
            h = np.uint32(h * m)
        h = np.uint32((h ^ (h >> np.uint32(13))) * m)
        hashes[i] = h ^ (h >> np.uint32(15))
        start = end

"""Stable 64-bit hashes of text: of event ids, so that a record can remember them, and of customers, for sticky shares.

FNV-1a over the UTF-8 bytes (Fowler, Noll, Vo; offset basis and prime of the 64-bit variant), then the finaliser of
MurmurHash3, since FNV alone leaves the high bits of short texts nearly alike and shares are cut from the high bits.
Python's own `hash` is salted anew in every process; this one is the same for ever, in stored records too: changing it
is a new record layout. It knows nothing of what it hashes. 0 means *none*: only the empty text hashes to it.
"""

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint64]:
    """uint64[n], the hash of each text; 0 for the empty text and for no other."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    hashes = np.empty(len(encoded), np.uint64)
    _hash(np.frombuffer(b"".join(encoded), np.uint8), ends, hashes)
    return hashes


def murmur2_texts(texts: Sequence[bytes]) -> NDArray[np.uint32]:
    """uint32[n], MurmurHash2 of each text under Kafka's seed: what its default partitioner takes the partition from."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    hashes = np.empty(len(texts), np.uint32)
    _murmur2(np.frombuffer(b"".join(texts), np.uint8), ends, hashes)
    return hashes


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


@numba.njit(cache=True, nogil=True)
def _hash(data, ends, hashes):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        h = np.uint64(0xCBF29CE484222325)
        for j in range(start, end):
            h = (h ^ np.uint64(data[j])) * np.uint64(0x100000001B3)
        h ^= h >> np.uint64(33)
        h *= np.uint64(0xFF51AFD7ED558CCD)
        h ^= h >> np.uint64(33)
        h *= np.uint64(0xC4CEB9FE1A85EC53)
        h ^= h >> np.uint64(33)
        if end == start:
            hashes[i] = 0
        else:
            hashes[i] = h if h != 0 else np.uint64(1)
        start = end

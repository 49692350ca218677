"""Records without their zeros: half the bytes, for a microsecond.

A record is times whose upper bytes are zero, small counts in wide fields, and rings and tiles that are mostly empty. So
of each 8 bytes only those that are not zero are kept, behind a byte that says which; 8 bytes of zeros are counted:

    1 to 255   bit b is set: byte b follows (little-endian, lowest bit first)
    0, k       k times 8 bytes of zeros, 1 <= k <= 255

LZ4 packs as small, and takes three times as long with its call from Python a record. In front of each packed record
stands one byte of the caller's.
"""

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
"""Records as 8-byte words, [n, w], little-endian."""


def pack(words: Words, tag: int) -> list[bytes]:
    """The packed form of each record, behind the byte `tag`."""
    n, w = words.shape
    if n == 0:
        return []
    # A word takes 9 bytes at most, and a lone word of zeros 2.
    out, ends = np.empty(n * (9 * w + 1), np.uint8), np.empty(n, np.int64)
    # Read-only like every array over bytes: Numba compiles for one type.
    _pack(np.frombuffer(words.tobytes(), np.uint64).reshape(n, w), np.uint8(tag), out, ends)
    packed, at = out[: ends[-1]].tobytes(), ends.tolist()
    return [packed[start:end] for start, end in zip([0, *at[:-1]], at, strict=True)]


def unpack(values: Sequence[bytes], w: int, tag: int, kept: int) -> tuple[Words, int]:
    """Words [n, w] of packed records, and how many of them are none.

    A record behind another byte than `tag` gives its first `kept` words, and zeros behind them, whatever its length.
    """
    out = np.zeros((len(values), w), np.uint64)
    if not values:
        return out, 0
    ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
    data = np.frombuffer(b"".join(values) or b"\0", np.uint8)
    return out, int(_unpack(data, ends, np.uint8(tag), kept, out))


@numba.njit(cache=True, nogil=True)
def _pack(words, tag, out, ends):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    at = 0
    for i in range(words.shape[0]):
        out[at] = tag
        at += 1
        j = 0
        while j < words.shape[1]:
            word = words[i, j]
            if word == 0:
                run = 1
                while run < 255 and j + run < words.shape[1] and words[i, j + run] == 0:
                    run += 1
                out[at] = 0
                out[at + 1] = run
                at += 2
                j += run
                continue
            mask, head = 0, at
            at += 1
            for b in range(8):
                byte = np.uint8(word >> np.uint64(8 * b))
                if byte != 0:
                    mask |= 1 << b
                    out[at] = byte
                    at += 1
            out[head] = mask
            j += 1
        ends[i] = at


@numba.njit(cache=True, nogil=True)
def _unpack(data, ends, tag, kept, out):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    bad, start = 0, 0
    for i in range(len(ends)):
        end = ends[i]
        ours = end > start and data[start] == tag
        wanted = out.shape[1] if ours else kept
        at, j = start + 1, 0
        while at < end and j < wanted:
            mask = data[at]
            at += 1
            if mask == 0:
                if at >= end or data[at] == 0:
                    j = -1
                    break
                j += data[at]
                at += 1
                continue
            word = np.uint64(0)
            for b in range(8):
                if mask >> b & 1:
                    if at >= end:
                        j = -1
                        break
                    word |= np.uint64(data[at]) << np.uint64(8 * b)
                    at += 1
            if j < 0:
                break
            out[i, j] = word
            j += 1
        # Ours end with their last word, not before it and not behind it.
        whole = j == wanted and at == end if ours else j >= wanted and end > start
        if not whole:
            bad += 1
        start = end
    return bad

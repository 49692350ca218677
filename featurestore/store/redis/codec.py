"""Records and outbox entries as the server keeps them. A record: one byte that says whose policy section it is, then
itself without its zeros.

The packed bytes (`record/packing.py`) are the store's own business: caches, folds and golden vectors see whole records.
What was written under another version of the policy's section is read without it: the fold's section as it was, the
rest zero, so that the policy's state can grow without a rebuild.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.record.layout import POLICY_VERSION, Rows, fold_bytes
from ebbtide.featurestore.record.packing import pack, unpack
from ebbtide.featurestore.store.checkpoint import REBUILD
from ebbtide.featurestore.store.commit import HourCounts, Loaded, OutboxEntry

_ENTRY = struct.Struct(">QII")  # sequence, place in it, length of the key


class RecordCodec:
    """Packs records of one dtype. `policy_version`: 1 to 255, of the policy's section in what is written."""

    def __init__(self, dtype: np.dtype[Any], policy_version: int = POLICY_VERSION) -> None:
        self._dtype, self._tag = dtype, policy_version
        self._words = -(-dtype.itemsize // 8)
        self._kept = -(-fold_bytes(dtype) // 8)

    def warm(self) -> None:
        """Compile what Numba compiles, or read it from the cache."""
        self.unpack(self.pack(np.zeros(1, self._dtype)), 0)

    def pack(self, rows: Rows) -> list[bytes]:
        """The stored form of each row."""
        n, size = len(rows), self._dtype.itemsize
        records = (
            np.frombuffer(rows.tobytes(), np.uint8).reshape(n, size) if n else np.empty((0, size), np.uint8)
        )
        if size % 8:
            records = np.pad(records, ((0, 0), (0, 8 * self._words - size)))
        return pack(records.view(np.uint64), self._tag)

    def unpack(self, values: Sequence[bytes | None], partition: int) -> Loaded:
        """Stored records as one writable structured array, zeros for None, and which were there. Raises LayoutError."""
        found = np.fromiter((value is not None for value in values), np.bool_, len(values))
        words, bad = unpack([v for v in values if v is not None], self._words, self._tag, self._kept)
        if bad:
            raise LayoutError(
                f"{bad} of {len(values)} customers' records of partition {partition} are none of this layout",
                hint=REBUILD,
            )
        if not found.all():
            present, words = words, np.zeros((len(values), self._words), np.uint64)
            words[found] = present
        records = words.view(np.uint8)[:, : self._dtype.itemsize]
        return np.ascontiguousarray(records).reshape(-1).view(self._dtype), found


def hours_of(text: bytes | None, partition: int) -> HourCounts:
    """Counts as they stand there, in words. Raises LayoutError."""
    try:
        return tuple(map(int, (text or b"").split()))
    except ValueError:
        said = f"the hours of partition {partition} are no counts"
        raise LayoutError(said, hint=REBUILD) from None


def packed(at: int, entry: OutboxEntry) -> bytes:
    """An entry of the outbox, the `at`-th of its commit."""
    header = _ENTRY.pack(entry.sequence, at, len(entry.key))
    return b"".join((header, entry.key, entry.value))


def unpacked(identity: bytes, stored: bytes) -> tuple[int, OutboxEntry]:
    """An entry and its place in its commit. Raises struct.error for what is too short to be one."""
    sequence, at, length = _ENTRY.unpack_from(stored)
    value_at = _ENTRY.size + length
    return at, OutboxEntry(identity, sequence, stored[_ENTRY.size : value_at], stored[value_at:])

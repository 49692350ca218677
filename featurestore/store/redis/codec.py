"""Records as the server keeps them: one byte that says whose policy section it is, then the record packed with LZ4.

Most of a record is zeros and small numbers: packed it takes half, for two microseconds. The bytes are the store's own
business: caches, folds and golden vectors see whole records. What was written under another version of the policy's
section is read without it: the fold's section as it was, the rest zero, so that the policy's state can grow without a
rebuild.
"""

from collections.abc import Sequence
from typing import Any

import cramjam
import numpy as np

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.record.layout import POLICY_VERSION, Rows, fold_bytes
from ebbtide.featurestore.store.checkpoint import REBUILD
from ebbtide.featurestore.store.commit import Loaded, join_records

RECORD_BYTES_MAX = 2**20
"""What stands in a value's head as its length is not believed beyond this: a foreign value would ask for gigabytes."""


class RecordCodec:
    """Packs records of one dtype. `policy_version`: 1 to 255, of the policy's section in what is written."""

    def __init__(self, dtype: np.dtype[Any], policy_version: int = POLICY_VERSION) -> None:
        self._dtype, self._tag = dtype, bytes([policy_version])
        self._kept, self._size = fold_bytes(dtype), dtype.itemsize
        self._reset = bytes(self._size - self._kept)

    def pack(self, rows: Rows) -> list[bytes]:
        """The stored form of each row."""
        blob, size, tag = rows.tobytes(), self._size, self._tag
        compress = cramjam.lz4.compress_block
        return [tag + bytes(compress(blob[at : at + size])) for at in range(0, len(blob), size)]

    def unpack(self, values: Sequence[bytes | None], partition: int) -> Loaded:
        """Stored records as `join_records` gives them. Raises LayoutError for what is not one of this layout."""
        try:
            return join_records(
                [None if value is None else self._unpacked(value) for value in values], self._dtype, partition
            )
        except (cramjam.DecompressionError, OverflowError):
            said = (
                f"a customer's record of partition {partition} cannot be unpacked: another release wrote it"
            )
            raise LayoutError(said, hint=REBUILD) from None

    def _unpacked(self, value: bytes) -> bytes:
        if int.from_bytes(value[1:5], "little") > RECORD_BYTES_MAX:
            raise OverflowError
        record = bytes(cramjam.lz4.decompress_block(value[1:]))
        if value[:1] == self._tag or len(record) < self._kept:
            return record
        return record[: self._kept] + self._reset

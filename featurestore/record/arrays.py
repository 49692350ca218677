"""What the compiled fold reads and writes, made of what there is: the records as arrays, the room for points.

The loop in `loop.py` is compiled once, for one set of array types. NumPy would give it others as chance has it: a
batch of one customer, a field of no entries and a read-only column each make another type, and each new type costs
seconds of compiling in the middle of service. So everything that enters the loop passes here, and is of the same types
whatever the spec and whatever the batch.
"""

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ebbtide.featurestore.record.arguments import FIELDS, Fields, PointBuffer
from ebbtide.featurestore.record.layout import Layout, Rows

SPARE_ROWS = 2
"""Of one row, NumPy calls a strided column contiguous: with two more rows than asked for, a column never is."""


def writable_fields(layout: Layout, rows: Rows) -> tuple[Rows, Fields, NDArray[np.uint64]]:
    """A copy of the rows, its fields, and the same memory as words uint64[n, itemsize / 8]."""
    n, width = len(rows), layout.itemsize // 8
    as_u64 = np.empty((n + SPARE_ROWS, width), np.uint64)
    as_u64[:n] = np.ascontiguousarray(rows).view(np.uint64).reshape(n, width)
    copy = as_u64.reshape(-1).view(layout.dtype)
    return copy[:n], Fields(*(_field(copy, name) for name in FIELDS)), as_u64


def column(values: Any, dtype: DTypeLike) -> NDArray[Any]:
    """The same values, contiguous, writeable and of the dtype; a copy only where they are not."""
    return np.require(values, dtype, ["C", "W"])


def point_buffer(layout: Layout, m: int) -> PointBuffer:
    """Room for m points; memory that is never written to costs nothing."""
    return PointBuffer(
        np.empty((m, layout.itemsize // 8), np.uint64), np.empty(m, np.int32), np.empty(m, np.int64),
        np.empty(m, np.uint8), np.empty(m, np.int32), np.zeros(1, np.int64), np.zeros(3, np.int64),
    )  # fmt: skip


def grow(layout: Layout, room: PointBuffer) -> PointBuffer:
    """Twice the room, with the points and counts there are."""
    m = int(room.used[0])
    larger = point_buffer(layout, 2 * len(room.as_of))
    for old, new in zip(room[:-2], larger[:-2], strict=True):
        new[:m] = old[:m]
    return larger._replace(used=room.used, counts=room.counts)


def _field(rows: Rows, name: str) -> NDArray[Any]:
    field = rows[name]
    if field.size:
        return field
    # Never read nor written: only its type matters, which has to be that of a field with entries.
    return np.zeros((2,) * field.ndim, field.dtype)[:, :1]

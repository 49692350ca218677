"""What can be kept of an event's values: one aggregation is one entry of one table, and all else follows from it.

    AGGREGATIONS ─▶ spec.py             the names that `aggregate` takes, and what kind of value each reads
                 ─▶ record/layout.py    the record's fields, a row of cells for each value that asks for one
                 ─▶ record/loop.py      `Store.add`, compiled, for each value of an event
                 ─▶ record/features.py  names, units and words of the features, in the table's order
                 ─▶ model/graph         `Store.merge` and `Aggregation.figure`, on tensors, in the same order

A *store* is what the record keeps, an *aggregation* what is made of it: `sum` and `mean` share the store of sums. The
functions are plain: `add` is compiled by Numba and works on one cell; `merge` and `figure` are written in NumPy's words
for whichever library is given as `xp` (keras.ops in the graph). A tile that nobody has written to counts for nothing,
whatever its bytes, so a new customer is all zero bytes here too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Reads = Literal["number", "category", "text", "date"]
"""What a value is to us: a number as it is; one of listed categories; any text, told apart by a hash; a date."""
Transform = Literal["log", "linear"]

DISTINCT_BITS = 64
"""Bits of a linear counter (Whang, Vander-Zanden & Taylor 1990), 8 bytes a tile: the standard error of a figure is at
most 11 % up to 64 distinct values and 15 % up to 128; no figure is above 64 ln 128 = 310."""
COUNT_MAX = 65_535


@dataclass(frozen=True, slots=True)
class Store:
    """What a record keeps of a value.

    field, dtype: of the record        tiled: a row has a cell for each tile of each window; else just one
    empty:  what a cell is emptied to  by_category: a value takes a row for each of its categories
    words:  what a row is, for the drawing of a record
    add(cells, i, row, cell, value):   puts a value into the cell of record i, compiled; value is finite
    merge(xp, cells [n, rows, tiles]): the cells of some tiles as one, [n, rows]; tiles out of the window are `empty`;
                                       words of bits come as [n, rows, tiles, 64], 0 or 1
    """

    field: str
    dtype: str
    words: str
    add: Callable[..., None]
    merge: Callable[[Any, Any], Any]
    tiled: bool = True
    empty: float = 0
    by_category: bool = False


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What the model is told. figure(xp, merged [n, rows], counts [n, rows]): float32[n, rows], finite; `counts` are
    the events of the row's kind in the same window, with a value or not. sentence: of a reason, with {what} for the
    value's noun, {noun} for the kind's, {category}; a window's length and the figure are put behind it."""

    name: str
    store: Store
    reads: Reads
    unit: str
    transform: Transform
    sentence: str
    figure: Callable[[Any, Any, Any], Any]


def _add_sum(cells: Any, i: int, row: int, cell: int, value: float) -> None:
    cells[i, row, cell] += np.float32(value)


def _add_max(cells: Any, i: int, row: int, cell: int, value: float) -> None:
    cells[i, row, cell] = max(cells[i, row, cell], np.float32(value))


def _add_distinct(cells: Any, i: int, row: int, cell: int, value: float) -> None:
    cells[i, row, cell] |= np.int64(1) << (np.int64(value) & np.int64(DISTINCT_BITS - 1))


def _add_share(cells: Any, i: int, row: int, cell: int, value: float) -> None:
    of = row + np.int64(value) - 1
    if value >= 1 and cells[i, of, cell] < COUNT_MAX:
        cells[i, of, cell] += 1


def _set_last(cells: Any, i: int, row: int, cell: int, value: float) -> None:  # noqa: ARG001 - it has one cell
    cells[i, row] = np.float32(value)


def _total(xp: Any, cells: Any) -> Any:
    return xp.sum(cells, axis=2)


def _largest(xp: Any, cells: Any) -> Any:
    return xp.max(cells, axis=2)


def _bits(xp: Any, cells: Any) -> Any:
    """How many bits are set in any of the tiles."""
    return xp.sum(xp.max(cells, axis=2), axis=2)


def _itself(xp: Any, merged: Any, counts: Any) -> Any:  # noqa: ARG001 - a figure of its own
    return merged


def _by_event(xp: Any, merged: Any, counts: Any) -> Any:
    """0 where there is no event."""
    return xp.where(counts > 0, merged / xp.maximum(counts, 1.0), xp.zeros_like(merged))


def _if_any(xp: Any, merged: Any, counts: Any) -> Any:  # noqa: ARG001 - events without a value are none
    return xp.where(merged > np.float32(-np.inf), merged, xp.zeros_like(merged))


def _distinct(xp: Any, bits: Any, counts: Any) -> Any:  # noqa: ARG001 - a figure of its own
    """Linear counting: with half a bit left where none is, so that the figure stays finite."""
    clear = xp.maximum(np.float32(DISTINCT_BITS) - bits, np.float32(0.5))
    return np.float32(DISTINCT_BITS) * xp.log(np.float32(DISTINCT_BITS) / clear)


SUMS = Store("tile_sum", "<f4", "value that is summed", _add_sum, _total)
LARGEST = Store("tile_max", "<f4", "value whose largest is kept", _add_max, _largest, empty=-np.inf)
DISTINCT = Store("tile_distinct", "<i8", "value told apart", _add_distinct, _bits)
SHARES = Store("tile_share", "<u2", "category", _add_share, _total, by_category=True)
LASTS = Store("value_last", "<f4", "value whose last is kept", _set_last, _total, tiled=False)
STORES = (LASTS, SUMS, LARGEST, DISTINCT, SHARES)

AGGREGATIONS = (
    Aggregation("sum", SUMS, "number", "value", "log", "total {what} of {noun}", _itself),
    Aggregation("mean", SUMS, "number", "value", "log", "mean {what} of {noun}", _by_event),
    Aggregation("max", LARGEST, "number", "value", "log", "largest {what} of {noun}", _if_any),
    Aggregation("distinct", DISTINCT, "text", "values", "log", "different {what}s of {noun}", _distinct),
    Aggregation(
        "share", SHARES, "category", "share", "linear", "share of {category} among {noun}", _by_event
    ),
    Aggregation("last", LASTS, "number", "value", "log", "last {what} of {noun}", _itself),
)
"""In the order of the features."""
BY_NAME = {aggregation.name: aggregation for aggregation in AGGREGATIONS}

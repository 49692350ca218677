"""A record's windows become figures: what lies in the tiles that are in their window as of now.

A window of n tiles as of some time, n = 4, `tile_head` = 9: slot s holds the tile index head - ((head - s)
mod n).

    slot            0   1   2   3        as_of // hop = 10: tiles 7..10 are in the window, that is > 10 - 4.
    tile index      8   9   6   7        Tile 6 fell out though no event emptied it.
    in the window   ●   ●   ·   ●

What is kept in a tile, and what is made of several, is the table's (`featurestore/aggregations.py`).
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ebbtide.featurestore.aggregations import STORES, Aggregation
from ebbtide.featurestore.record.features import aggregated
from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.graph.record_bytes import Tensor


class Windows:
    """The figures over the tiles that are in their window as of some time: [n, rows x windows] each."""

    def __init__(self, layout: Layout, record: dict[str, Tensor], as_of: Tensor) -> None:
        self._layout, self._spec, self._record = layout, layout.spec, record
        sizes = np.array([window.tiles for window in self._spec.windows], np.int64)
        hop = np.array([window.hop_ms for window in self._spec.windows], np.int64)
        window, slot = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])
        head = tf.gather(record["tile_head"], window, axis=1)
        index = head - tf.math.floormod(head - slot, sizes[window])
        # When a tile falls out of its window: `index > as_of // hop - size`, without a division.
        ends = (index + sizes[window]) * hop[window]
        self._live, self._sizes = (ends > as_of[:, None])[:, None, :], sizes.tolist()
        self._stores: dict[str, Tensor] = {}

    @cached_property
    def _counts(self) -> Tensor:
        """float32[n, counted kinds, windows]."""
        return self._merged("tile_count", 0, lambda xp, cells: xp.sum(cells, axis=2))

    def counted(self, *_: Tensor) -> list[Tensor]:
        return [flat(self._counts)]

    def trends(self, *_: Tensor) -> list[Tensor]:
        """Events a day in the short window over those in the long one, 0 where there are none: by kind, then pair."""
        lengths = [window.length_ms for window in self._spec.windows]
        pairs = []
        for short, long in self._spec.trends:
            ratio = tf.math.divide_no_nan(
                self._counts[:, :, lengths.index(short)], self._counts[:, :, lengths.index(long)]
            )
            pairs.append(ratio * np.float32(long / short))
        return [flat(tf.stack(pairs, axis=2))]

    def aggregated(self, aggregation: Aggregation) -> list[Tensor]:
        """By value (and category), then window."""
        store, slot = aggregation.store, STORES.index(aggregation.store)
        rows: list[int] = []
        kinds: list[int] = []
        for k, c in aggregated(self._spec, aggregation):
            first = int(self._layout.row[slot, k, c])
            own = range(first, first + self._spec.kinds[k].readings[c].rows(store))
            rows += own
            kinds += [int(self._layout.count_slot[k])] * len(own)
        if not store.tiled:
            return [tf.gather(self._record[store.field], rows, axis=1)]
        merged = self._stored(aggregation)
        picked, counts = tf.gather(merged, rows, axis=1), tf.gather(self._counts, kinds, axis=1)
        return [flat(aggregation.figure(keras.ops, picked, counts))]

    def _stored(self, aggregation: Aggregation) -> Tensor:
        store = aggregation.store
        if store.field not in self._stores:
            self._stores[store.field] = self._merged(store.field, store.empty, store.merge)
        return self._stores[store.field]

    def _merged(self, field: str, empty: float, merge: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """[n, rows, T] -> float32[n, rows, windows]: the live tiles of each window as one."""
        cells = self._record[field]
        cells = tf.cast(cells, tf.int32) if cells.dtype == tf.uint16 else cells
        cells = tf.where(self._live, cells, tf.constant(empty, cells.dtype))
        kept = tf.split(bits_of(cells) if cells.dtype == tf.int64 else cells, self._sizes, axis=2)
        return tf.cast(tf.stack([merge(keras.ops, part) for part in kept], axis=2), tf.float32)


def bits_of(words: Tensor) -> Tensor:
    """int64[…] -> int32[…, 64], 0 or 1, the lowest first. Of 32 at a time: LiteRT shifts no 64. What `words` come from
    may not be a bitcast: of two in a row XLA and TensorFlow's optimizer make one, of the wrong shape."""
    halves = tf.bitcast(words, tf.int32)
    bits = tf.math.floormod(tf.bitwise.right_shift(halves[..., None], np.arange(32, dtype=np.int32)), 2)
    return tf.reshape(bits, (-1, *words.shape[1:], 64))


def flat(table: Tensor) -> Tensor:
    """[n, rows, m] -> [n, rows * m]."""
    return tf.reshape(table, (-1, table.shape[1] * table.shape[2]))

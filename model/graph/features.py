"""A record becomes numbers: the one place where the features of a spec are computed.

    record fields [n, …] + as_of [n] ──FeatureLayer──▶ features f4[n, F]   kind, count, value, gap [n, L]

The layer is generated from the spec and lives inside the SavedModel, so training, the worker, TF Serving and
a notebook all run these lines and no others. It knows the record layout and the order of
`featurestore/record/features.py`; it knows nothing of normalisation or networks: what leaves it is in natural units
(days, events, the log's own values). It has no weights.

Invariants:
  * time is int64 milliseconds until a difference has been taken: only differences become floats, since an epoch
    time in float32 is off by minutes.
  * everything that leaves is finite, also for a record of zero bytes. What does not exist is 0 and its flag is 1.
  * a row's figures depend on that row alone.

A window of n tiles as of some time, n = 4, `tile_head` = 9: slot s holds the tile index head - ((head - s)
mod n).

    slot            0   1   2   3        as_of // hop = 10: tiles 7..10 are in the window, that is > 10 - 4.
    tile index      8   9   6   7        Tile 6 fell out though no event emptied it.
    in the window   ●   ●   ·   ●
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.features import aggregated_kinds, counted_kinds, decayed_kinds, features
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS

Tensor = Any
"""A tf.Tensor; TensorFlow publishes no types."""

DAY_S = DAY_MS / 1000.0
SEQUENCE_FIELDS = ("kind", "count", "value", "gap")
"""The sequence's columns, each [n, L], as the layer names them."""


class FeatureLayer(keras.layers.Layer):
    """`layer(record, as_of)`: the features and the sequence of n records; see `call`."""

    def __init__(self, layout: Layout, **kwargs: Any) -> None:
        # Keras would cast float64 inputs (gap_mean) to float32 on the way in.
        super().__init__(autocast=False, trainable=False, dtype="float32", **kwargs)
        self.layout = layout
        self.spec = spec = layout.spec
        self.feature_count = len(features(spec))
        tiles = np.array([window.tiles for window in spec.windows], np.int64)
        self._window_of_tile = np.repeat(np.arange(len(tiles)), tiles)
        self._slot_of_tile = np.concatenate([_arange64(n) for n in tiles])
        self._tiles = tiles
        self._hop = np.array([window.hop_ms for window in spec.windows], np.int64)

    def call(self, record: dict[str, Tensor], as_of: Tensor) -> dict[str, Tensor]:
        """n records as of n times, n >= 0.

        record: {field: [n, …]} with at least `layout.model_fields`, in the layout's dtypes and shapes; zero bytes are
        a customer of whom nothing is known. as_of: int64[n], ms UTC, not before the record's `clock`.

        features  float32[n, F]  natural units (days, events, the log's own values; flags 0 or 1), finite, in the order
                                 of `featurestore.record.features.features(spec)`, which names the unit of each
        kind      int32[n, L]    0 where the ring holds nothing yet, else 1 + index of the kind: 0 … K
        count     float32[n, L]  events in the entry, >= 1; 0 for padding
        value     float32[n, L]  their summed value, in the log's units; 0 where none has one
        gap       float32[n, L]  seconds since the activity before, >= 0

        The sequence is chronological: padding first, the latest entry last. Row i depends on record i and as_of[i]
        alone. A graph's function: no side effect, no error of its own; it may be traced for any n.
        """
        parts = [
            *self._rhythm(record, as_of),
            *self._active_days(record, as_of),
            *self._windows(record, as_of),
            *self._lasts(record, as_of),
            *self._decays(record, as_of),
            *self._attributes(record, as_of),
        ]
        # A column of one figure is [n], a group of them [n, m].
        columns = [part[:, None] if part.shape.rank == 1 else part for part in parts]
        return {"features": tf.concat(columns, axis=1), **self._sequence(record)}

    def _rhythm(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        seen = record["last_seen"] > 0
        silence = _days_since(as_of, record["last_seen"])
        tenure = _days_since(as_of, record["first_seen"])
        gaps = tf.cast(record["gap_count"], tf.float64)
        known = gaps > 0
        usual = tf.cast(tf.math.expm1(record["gap_mean"]) / DAY_S, tf.float32)
        spread = tf.cast(tf.sqrt(tf.maximum(record["gap_m2"], 0.0) / tf.maximum(gaps, 1.0)), tf.float32)
        ratio = tf.math.divide_no_nan(silence, usual)
        return [
            silence,
            tenure,
            tf.cast(record["activity_count"], tf.float32),
            _where(known, usual),
            _where(known, spread),
            tf.cast(~known, tf.float32),
            _where(known & seen, ratio),
        ]

    def _active_days(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """Days in (today - D, today] whose bit is set; bit j of the words is the day `day_head - j`."""
        if not self.spec.days_active:
            return []
        bits = tf.bitwise.right_shift(record["day_bits"][:, :, None], _arange64(64)) & 1
        bits = tf.reshape(bits, (-1, 64 * bits.shape[1]))
        today = as_of // DAY_MS
        age = (today - tf.cast(record["day_head"], tf.int64))[:, None] + _arange64(bits.shape[1])
        return [
            tf.cast(tf.reduce_sum(tf.where((age >= 0) & (age < days), bits, 0), axis=1), tf.float32)
            for days in self.spec.days_active
        ]

    def _windows(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """Counts, sums and means over the tiles that are in their window as of now: [n, kinds x windows] each."""
        tiles = self._tiles[self._window_of_tile]
        head = tf.gather(record["tile_head"], self._window_of_tile, axis=1)
        oldest = tf.gather(as_of[:, None] // self._hop - self._tiles, self._window_of_tile, axis=1)
        index = head - tf.math.floormod(head - self._slot_of_tile, tiles)
        live = (index > oldest)[:, None, :]

        def total(cells: Tensor) -> Tensor:
            kept = tf.split(tf.where(live, cells, tf.zeros((), cells.dtype)), list(self._tiles), axis=2)
            return tf.cast(tf.stack([tf.reduce_sum(part, axis=2) for part in kept], axis=2), tf.float32)

        counts = total(tf.cast(record["tile_count"], tf.int32))
        out = [_pick(counts, counted_kinds(self.spec))]
        summed, averaged = (aggregated_kinds(self.spec, aggregate) for aggregate in ("sum", "mean"))
        if summed or averaged:
            sums = total(record["tile_sum"])
            out += [_pick(sums, self.layout.value_slot[summed])] if summed else []
        if averaged:
            out.append(
                tf.math.divide_no_nan(_pick(sums, self.layout.value_slot[averaged]), _pick(counts, averaged))
            )
        return out

    def _lasts(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """Last values, then days since each counted kind, then whether it never came."""
        lasts, counted = aggregated_kinds(self.spec, "last"), counted_kinds(self.spec)
        out = [tf.gather(record["value_last"], self.layout.value_slot[lasts], axis=1)] if lasts else []
        came = tf.gather(tf.cast(record["kind_count"], tf.int64) > 0, counted, axis=1)
        since = _days_since(as_of[:, None], tf.gather(record["kind_last"], counted, axis=1))
        return [*out, _where(came, since), tf.cast(~came, tf.float32)]

    def _decays(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """The record keeps them as of its `event_time`; here they decay on until now."""
        kinds = decayed_kinds(self.spec)
        if not kinds:
            return []
        passed = tf.cast(tf.maximum(as_of - record["event_time"], 0), tf.float64)
        rate = np.log(2.0) / np.array(self.spec.half_lives_ms, np.float64)
        keep = tf.cast(tf.exp(-passed[:, None] * rate), tf.float32)
        return [_pick(record["decay"] * keep[:, None, :], self.layout.decay_slot[kinds])]

    def _attributes(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        out: list[Tensor] = []
        for k, kind in enumerate(self.spec.kinds):
            if kind.role != "attribute":
                continue
            slot = int(self.layout.attribute_slot[k])
            value, known = record["attribute_value"][:, slot], record["attribute_at"][:, slot] > 0
            if kind.attribute == "category":
                codes = np.arange(1, len(kind.categories) + 1, dtype=np.float32)
                out.append(tf.cast(known[:, None] & (value[:, None] == codes), tf.float32))
            elif kind.attribute == "date":
                today = tf.cast(as_of, tf.float64) / DAY_MS
                out.append(_where(known, tf.cast(tf.cast(value, tf.float64) - today, tf.float32)))
            else:
                out.append(_where(known, value))
            out.append(tf.cast(~known, tf.float32))
        return out

    def _sequence(self, record: dict[str, Tensor]) -> dict[str, Tensor]:
        """The ring, unrolled: the slot after `ring_head` is the oldest."""
        length = self.spec.sequence.length
        oldest = tf.cast(record["ring_head"], tf.int32)[:, None] + 1
        order = (oldest + np.arange(length, dtype=np.int32)) % length
        columns = {
            "kind": tf.cast(record["ring_kind"], tf.int32),
            "count": tf.cast(record["ring_count"], tf.float32),
            "value": record["ring_value"],
            "gap": record["ring_gap"],
        }
        return {name: tf.gather(column, order, axis=1, batch_dims=1) for name, column in columns.items()}


def _arange64(n: int) -> NDArray[np.int64]:
    return np.arange(n, dtype=np.int64)


def _where(flag: Tensor, value: Tensor) -> Tensor:
    return tf.where(flag, value, tf.zeros((), value.dtype))


def _days_since(as_of: Tensor, then: Tensor) -> Tensor:
    """float32 days from `then` to `as_of`; 0 where `then` is never."""
    return _where(then > 0, tf.cast(tf.cast(as_of - then, tf.float64) / DAY_MS, tf.float32))


def _pick(table: Tensor, slots: Any) -> Tensor:
    """Rows `slots` of table [n, slots, m], flattened to [n, len(slots) * m]."""
    chosen = tf.gather(table, np.asarray(slots, np.int32), axis=1)
    return tf.reshape(chosen, (-1, len(slots) * table.shape[2]))

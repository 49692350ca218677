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
  * every op has a LiteRT kernel once `wide` is float32 (`model/exporting/`): times are compared and not divided, bits
    are taken from 32 at a time.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.aggregations import BY_NAME
from ebbtide.featurestore.record.features import (
    PARTS,
    counted_kinds,
    decayed_kinds,
    features,
    features_by_part,
)
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.zones import MONDAY_MS, WEEK_MS, offsets
from ebbtide.model.graph.record_bytes import Tensor
from ebbtide.model.graph.windows import Windows, bits_of, flat

DAY_S = DAY_MS / 1000.0
SEQUENCE_FIELDS = ("kind", "count", "value", "gap")
"""The sequence's columns, each [n, L], as the layer names them."""


class FeatureLayer(keras.layers.Layer):
    """`layer(record, as_of)`: the features and the sequence of n records; see `call`."""

    def __init__(self, layout: Layout, wide: str = "float64", **kwargs: Any) -> None:
        """wide: what a figure is computed in before it becomes float32. LiteRT has no arithmetic in float64: there it
        is float32, and a figure differs in its last bits."""
        # Keras would cast float64 inputs (gap_mean) to float32 on the way in.
        super().__init__(autocast=False, trainable=False, dtype="float32", **kwargs)
        self.layout, self.wide = layout, tf.as_dtype(wide)
        self.spec = spec = layout.spec
        self.feature_count = len(features(spec))
        self._widths = {part: len(listed) for part, listed in features_by_part(spec).items()}

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
        windows = Windows(self.layout, record, as_of)
        own = {
            "rhythm": self._rhythm, "target": self._target, "week": self._week, "active_days": self._active_days,
            "counts": windows.counted, "trends": windows.trends, "since": self._since, "never": self._never,
            "decays": self._decays, "attributes": self._attributes, "targets": self._targets,
        }  # fmt: skip
        columns = []
        for part in PARTS:
            if not self._widths[part]:
                continue
            made = own[part](record, as_of) if part in own else windows.aggregated(BY_NAME[part])
            # A column of one figure is [n], a group of them [n, m].
            grouped = [column[:, None] if column.shape.rank == 1 else column for column in made]
            assert sum(column.shape[1] for column in grouped) == self._widths[part], part
            columns += grouped
        return {"features": tf.concat(columns, axis=1), **self._sequence(record)}

    def _rhythm(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        seen = record["last_seen"] > 0
        silence = self._days_since(as_of, record["last_seen"])
        tenure = self._days_since(as_of, record["first_seen"])
        mean, squares, gaps = (
            tf.cast(record[name], self.wide) for name in ("gap_mean", "gap_m2", "gap_count")
        )
        known = gaps > 0
        usual = tf.cast(tf.math.expm1(mean) / DAY_S, tf.float32)
        spread = tf.cast(tf.sqrt(tf.maximum(squares, 0.0) / tf.maximum(gaps, 1.0)), tf.float32)
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
        # Who was never active has no bit: a choice that no optimizer takes away, see `bits_of`.
        words = bits_of(_where((record["last_seen"] > 0)[:, None], record["day_bits"]))
        bits = tf.reshape(words, (-1, 64 * words.shape[1]))
        begin = (tf.cast(record["day_head"], tf.int64)[:, None] - _arange64(bits.shape[1])) * DAY_MS
        begun, now = begin <= as_of[:, None], as_of[:, None]
        return [
            tf.cast(
                tf.reduce_sum(tf.where(begun & (now < begin + days * DAY_MS), bits, 0), axis=1), tf.float32
            )
            for days in self.spec.days_active
        ]

    def _target(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        return [self._days_since(as_of, record["target_last"][:, 0])]

    def _targets(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """Of each further target the days since its last event, and whether there was none."""
        latest = [record["further_last"][:, n] for n in range(len(self.spec.further))]
        return [
            column
            for last in latest
            for column in (self._days_since(as_of, last), tf.cast(last == 0, tf.float32))
        ]

    def _week(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """How busy the customer usually is now, and how much of a usual week's activity their silence has lasted."""
        assert self.spec.week is not None
        buckets = self.spec.week.buckets
        counts = tf.cast(record["week_count"], tf.float32)
        share = tf.math.divide_no_nan(counts, tf.reduce_sum(counts, axis=1, keepdims=True))
        # The share of a week that lies before each bucket's begin, and, last, the whole of it.
        before = tf.pad(tf.cumsum(share, axis=1), [[0, 0], [1, 0]])
        armed = record["target_last"][:, 0] if self.spec.arms_apart else record["last_seen"]
        # In float32 only a difference of weeks is exact enough; in float64 none need be taken.
        since = tf.zeros_like(as_of) if self.wide == tf.float64 else self._in_week(as_of)[0]
        bucket, now = self._week_parts(as_of, since, share, before)
        _, then = self._week_parts(armed, since, share, before)
        passed = _where(tf.reduce_any(counts > 0, axis=1) & (armed > 0), now - then)
        return [
            tf.gather(share, bucket, batch_dims=1) * buckets,
            tf.cast(tf.maximum(passed, 0.0), tf.float32),
        ]

    def _week_parts(
        self, time: Tensor, since: Tensor, share: Tensor, before: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The bucket that a time falls into, and the weeks of usual activity from the Monday `since` to it."""
        assert self.spec.week is not None
        monday, in_week = self._in_week(time)
        length = WEEK_MS // self.spec.week.buckets
        bucket = tf.cast(in_week, tf.int32) // length
        inside = tf.cast(tf.cast(in_week, tf.int32) % length, self.wide) / length
        weeks = tf.cast(monday - since, self.wide) / WEEK_MS
        part = tf.cast(tf.gather(before, bucket, batch_dims=1), self.wide)
        part += inside * tf.cast(tf.gather(share, bucket, batch_dims=1), self.wide)
        return bucket, weeks + part

    def _in_week(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """The begin of a time's week and how much of it has passed, int64 ms from the first Monday, local time."""
        assert self.spec.week is not None
        table = offsets(self.spec.week.zone)
        since, offset = (np.array(column, np.int64) for column in zip(*table, strict=True))
        zone = tf.maximum(tf.reduce_sum(tf.cast(time[:, None] >= since, tf.int32), axis=1) - 1, 0)
        local = time + tf.gather(offset, zone) - MONDAY_MS
        in_week = tf.math.floormod(local, WEEK_MS)
        return local - in_week, in_week

    def _since(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """Days since each counted kind; 0 where it never came."""
        last = tf.gather(record["kind_last"], counted_kinds(self.spec), axis=1)
        return [_where(self._came(record), self._days_since(as_of[:, None], last))]

    def _never(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:  # noqa: ARG002 - one form for all parts
        return [tf.cast(~self._came(record), tf.float32)]

    def _came(self, record: dict[str, Tensor]) -> Tensor:
        return tf.gather(tf.cast(record["kind_count"], tf.int64) > 0, counted_kinds(self.spec), axis=1)

    def _decays(self, record: dict[str, Tensor], as_of: Tensor) -> list[Tensor]:
        """The record keeps them as of its `event_time`; here they decay on until now."""
        kinds = decayed_kinds(self.spec)
        if not kinds:
            return []
        passed = tf.cast(tf.maximum(as_of - record["event_time"], 0), self.wide)
        rate = (np.log(2.0) / np.array(self.spec.half_lives_ms)).astype(self.wide.as_numpy_dtype)
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
                out.append(_where(known, self._days_until(value, as_of)))
            else:
                out.append(_where(known, value))
            out.append(tf.cast(~known, tf.float32))
        return out

    def _days_since(self, as_of: Tensor, then: Tensor) -> Tensor:
        """float32 days from `then` to `as_of`; 0 where `then` is never."""
        return _where(then > 0, tf.cast(tf.cast(as_of - then, self.wide) / DAY_MS, tf.float32))

    def _days_until(self, date: Tensor, as_of: Tensor) -> Tensor:
        """float32 days from `as_of` to a date in days since 1970, below 0 once it has passed."""
        if self.wide == tf.float64:
            return tf.cast(tf.cast(date, tf.float64) - tf.cast(as_of, tf.float64) / DAY_MS, tf.float32)
        # A moment of today is minutes off in float32: today as a whole number first, its part after the difference.
        part = tf.math.floormod(as_of, DAY_MS)
        today = tf.round(tf.cast(as_of - part, tf.float32) / DAY_MS)
        return (date - today) - tf.cast(part, tf.float32) / DAY_MS

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


def _pick(table: Tensor, slots: Any) -> Tensor:
    """Rows `slots` of table [n, slots, m], flattened to [n, len(slots) * m]."""
    return flat(tf.gather(table, np.asarray(slots, np.int32), axis=1))

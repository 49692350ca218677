"""A record's bytes in the graph: cut into the fields that a model reads, and unpacked from the form that a store keeps.

    string[n], as `GET` returns it ──unpack──▶ uint8[n, fold section] ─┐
    uint8[n, size], a record as it is ─────────────────────────────────┴─fields─▶ {field: tensor [n, …]}

The stored form is that of `featurestore/record/packing.py` behind the tag of `store/redis/codec.py`: of each 8 bytes
those that are not zero behind a byte that says which, runs of zeros counted. It is walked a word at a time, all rows
at once. The invariant: what the codec refuses is refused here, by an error that names the row; nothing is guessed.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from ebbtide.featurestore.record.layout import POLICY_VERSION, Layout, fold_bytes

Tensor = Any
"""A tf.Tensor; TensorFlow publishes no types."""
REFUSAL = (
    "record is none of layout {}: send the bytes that GET returns for a customer's key, of a state with the spec that "
    "this model was trained with. First wrong row, and its bytes:"
)
BIT = np.arange(8, dtype=np.int32)


def fields(layout: Layout, raw: Tensor) -> dict[str, Tensor]:
    """uint8[n, at least the fold's section] -> {field: tensor[n, …]} for `layout.model_fields`: the bytes, cut where
    the layout says."""
    out = {}
    for name in layout.model_fields:
        kind, offset = layout.dtype.fields[name][:2]  # type: ignore[index]  # a structured dtype has fields
        cut, width = raw[:, offset : offset + kind.itemsize], kind.base.itemsize
        if width > 1:
            cut = tf.bitcast(tf.reshape(cut, (-1, kind.itemsize // width, width)), tf.as_dtype(kind.base))
        out[name] = tf.reshape(cut, (-1, *kind.shape))
    return out


def unpack(layout: Layout, stored: Tensor) -> Tensor:
    """string[n], records as a store keeps them -> uint8[n, fold section]. Written under another version of the policy's
    section, a record gives its fold section alone, which is all that a model reads. Raises InvalidArgumentError, in the
    graph, for what is no record of this layout."""
    words, kept = -(-layout.itemsize // 8), -(-fold_bytes(layout.dtype) // 8)
    # Two bytes more than the longest: where a record ends too soon, zeros are read, and a run of none is no run.
    data = tf.cast(tf.io.decode_raw(stored, tf.uint8, fixed_length=9 * words + 3), tf.int32)
    length = tf.strings.length(stored)
    zero = tf.zeros_like(length)
    fold, at, left, whole = _walk(data, zero + 1, zero, zero == 0, kept)
    fits = whole & (at <= length)
    _, at, left, whole = _walk(data, at, left, whole, words - kept)
    ours = data[:, 0] == POLICY_VERSION
    # Ours end with their last word, not before it and not behind it.
    good = (length > 0) & tf.where(ours, whole & (at == length) & (left == 0), fits)
    wrong = tf.argmax(tf.concat([tf.cast(~good, tf.int32), [0]], 0), output_type=tf.int32)
    tf.debugging.Assert(
        tf.reduce_all(good),
        [
            REFUSAL.format(layout.fold_id),
            wrong,
            tf.gather(tf.concat([length, [0]], 0), wrong),
        ],
    )
    return fold


def _walk(
    data: Tensor, at: Tensor, left: Tensor, whole: Tensor, words: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next `words` of 8 bytes of packed records int32[n, m], read from `at` on. left: of a run of zeros, how many
    are still to come. whole: no run was of none. Returns uint8[n, 8 * words] and the three as they are behind them."""
    last = data.shape[1] - 1
    found = tf.TensorArray(tf.int32, words, element_shape=(None, 8))

    def taken(place: Tensor) -> Tensor:
        return tf.gather(data, tf.minimum(place, last), batch_dims=1)

    def word(
        j: Tensor, at: Tensor, left: Tensor, whole: Tensor, found: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        inside, mask, run = left > 0, taken(at), taken(at + 1)
        begins = ~inside & (mask == 0)
        there = tf.where(inside[:, None], 0, tf.bitwise.right_shift(mask[:, None], BIT) % 2)
        read = taken(at[:, None] + 1 + tf.cumsum(there, axis=1, exclusive=True)) * there
        step = tf.where(begins, 2, 1 + tf.reduce_sum(there, axis=1))
        return (
            j + 1,
            tf.where(inside, at, at + step),
            tf.where(inside, left - 1, tf.where(begins, run - 1, 0)),
            whole & ~(begins & (run == 0)),
            found.write(j, read),
        )

    _, at, left, whole, found = tf.while_loop(
        lambda j, *_: j < words, word, (tf.constant(0), at, left, whole, found), maximum_iterations=words
    )
    read = tf.transpose(found.stack(), (1, 0, 2))
    return tf.cast(tf.reshape(read, (-1, 8 * words)), tf.uint8), at, left, whole

"""Records as Redis holds them, taken apart in the graph: byte for byte what the store's own codec makes of them."""

import numpy as np
import pytest
import tensorflow as tf

from ebbtide.featurestore.errors import LayoutError
from ebbtide.featurestore.record.layout import POLICY_VERSION, fold_bytes
from ebbtide.featurestore.store.redis.codec import RecordCodec
from ebbtide.model.graph.record_bytes import fields, unpack
from tests.support.seams.models import LAYOUT, TINY, sample

FOLD = fold_bytes(LAYOUT.dtype)
CODEC = RecordCodec(LAYOUT.dtype)


UNPACKED = tf.function(lambda stored: unpack(LAYOUT, stored))


def by_the_graph(stored: list[bytes]) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    found: np.ndarray[tuple[int, int], np.dtype[np.uint8]] = UNPACKED(tf.constant(stored, tf.string)).numpy()
    return found


def test_stored_records_come_out_as_they_went_in() -> None:
    rows = sample(300, seed=3).rows
    rows["episode_opened_at"] = 1_700_000_000_000  # the policy's section is behind, and is not read
    raw = rows.view(np.uint8).reshape(len(rows), -1)
    assert by_the_graph(CODEC.pack(rows)).tobytes() == raw[:, :FOLD].tobytes()
    assert by_the_graph([]).shape == (0, FOLD)


def test_any_bytes_of_a_fold_come_out_as_they_went_in() -> None:
    """Also what no customer has: words without a zero, and nothing but zeros."""
    rng = np.random.default_rng(4)
    raw = rng.integers(0, 256, (64, LAYOUT.itemsize), np.uint8) * (rng.random((64, LAYOUT.itemsize)) < 0.5)
    raw[0], raw[1] = 255, 0
    rows = raw.astype(np.uint8).reshape(-1).view(LAYOUT.dtype)
    assert by_the_graph(CODEC.pack(rows)).tobytes() == raw.astype(np.uint8)[:, :FOLD].tobytes()


def test_another_policy_section_gives_the_fold_alone() -> None:
    rows = sample(20, seed=5).rows
    other = RecordCodec(LAYOUT.dtype, POLICY_VERSION + 1).pack(rows)
    cut = [packed + bytes([7, 7, 7]) for packed in other]
    want = rows.view(np.uint8).reshape(len(rows), -1)[:, :FOLD].tobytes()
    assert by_the_graph(other).tobytes() == by_the_graph(cut).tobytes() == want


def test_fields_are_cut_where_the_layout_says() -> None:
    rows = sample(9).rows
    found = fields(LAYOUT, tf.constant(rows.view(np.uint8).reshape(len(rows), -1)))
    for name in LAYOUT.model_fields:
        np.testing.assert_array_equal(found[name].numpy(), rows[name])


GOOD = CODEC.pack(sample(2, seed=6).rows[1:])[0]  # the first one is all zeros


@pytest.mark.parametrize(
    "wrong",
    [
        b"", b"\x01", GOOD[:-1], GOOD + b"\x00", GOOD + GOOD, GOOD[:40], bytes([POLICY_VERSION, 0, 0]),
        bytes([POLICY_VERSION, 0, 255]), bytes([POLICY_VERSION]) + b"\xff" * 5_000, sample(2).rows[1:].tobytes(),
    ],
    ids=["nothing", "a tag", "cut", "longer", "twice", "half", "a run of none", "a run too far", "noise", "plain"],
)  # fmt: skip
def test_what_is_no_record_is_refused_and_named(wrong: bytes) -> None:
    with pytest.raises(LayoutError):
        CODEC.unpack([wrong], 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s)GET returns.*\[2\] \[{len(wrong)}\]"):
        by_the_graph([GOOD, GOOD, wrong])


def test_a_record_of_another_spec_is_refused() -> None:
    other = sample(4, spec=TINY).rows
    with pytest.raises(tf.errors.InvalidArgumentError, match=LAYOUT.fold_id):
        by_the_graph(RecordCodec(other.dtype).pack(other))

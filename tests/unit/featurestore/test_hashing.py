"""Hashes of text: the same for ever."""

import numpy as np

from ebbtide.featurestore.hashing import hash_texts


def test_the_empty_text_alone_is_none() -> None:
    hashes = hash_texts(["", "a", "", "\x00", "é"]).tolist()
    assert [value == 0 for value in hashes] == [True, False, True, False, False]
    assert len(set(hashes)) == 4
    assert hash_texts([]).tolist() == []


def test_stored_hashes_stay_what_they_are() -> None:
    """Records remember them: another value here is another FOLD_VERSION.."""
    texts = ["a", "event-1", "é" * 200]
    assert hash_texts(texts).tolist() == [16629034431890738719, 3581690227577427428, 9402942649966525927]


def test_shares_are_cut_evenly_from_the_high_bits() -> None:
    """Customer ids are short and alike; a share of 10 % by hash is 10 % of them."""
    high = hash_texts([f"customer-{i:06d}" for i in range(100_000)]) >> np.uint64(54)
    counts = np.bincount((high * np.uint64(10) >> np.uint64(10)).astype(np.int64), minlength=10)
    assert np.abs(counts - 10_000).max() < 400

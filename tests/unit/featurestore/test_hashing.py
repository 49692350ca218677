"""Hashes of text: the published algorithms, spelt out in plain Python, and the same for ever."""

import random

import numpy as np

from ebbtide.featurestore.hashing import hash_texts

MASK = (1 << 64) - 1


def oracle(text: str) -> int:
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        h = (h ^ h >> 33) * multiplier & MASK
    h ^= h >> 33
    return (h or 1) if text else 0


def test_a_hash_equals_the_plain_algorithm() -> None:
    rng = random.Random(1)
    words = ["".join(chr(rng.randrange(1, 0x300)) for _ in range(rng.randrange(60))) for _ in range(500)]
    texts = ["", "a", "e-1", "", "é", "😀", "\x00", *words]
    assert hash_texts(texts).tolist() == [oracle(text) for text in texts]
    assert hash_texts([]).tolist() == []


def test_stored_hashes_stay_what_they_are() -> None:
    """Records remember them: another value here is another record layout."""
    assert hash_texts(["a", "event-1"]).tolist() == [9413272369427828315, oracle("event-1")]


def test_shares_are_cut_evenly_from_the_high_bits() -> None:
    """Customer ids are short and alike; a share of 10 % by hash is 10 % of them."""
    high = hash_texts([f"customer-{i:06d}" for i in range(100_000)]) >> np.uint64(54)
    counts = np.bincount((high * np.uint64(10) >> np.uint64(10)).astype(np.int64), minlength=10)
    assert np.abs(counts - 10_000).max() < 400

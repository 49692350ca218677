"""Packed records: every byte comes back, and what is none is told from what is one."""

import numpy as np
import pytest

from ebbtide.featurestore.record.packing import pack, unpack

TAG = 3


def sparse(rng: np.random.Generator, n: int, w: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """Random bytes, of which a random share is zero, in runs and one by one."""
    raw = rng.integers(0, 256, (n, 8 * w), np.uint8)
    raw[rng.random(raw.shape) < rng.random()] = 0
    words = raw.view(np.uint64)
    words[rng.random(words.shape) < rng.random()] = 0
    return words


@pytest.mark.parametrize("seed", range(20))
def test_every_record_comes_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, w = int(rng.integers(0, 40)), int(rng.choice([1, 2, 7, 124, 300, 700]))
    words = sparse(rng, n, w)
    packed = pack(words, TAG)
    assert [value[0] for value in packed] == [TAG] * n
    back, bad = unpack(packed, w, TAG, w)
    assert bad == 0
    assert back.tobytes() == words.tobytes()


def test_the_form_is_the_documented_one() -> None:
    """It lies in installed stores: another form is another policy version, or a rebuild."""
    words = np.array([[0, 0, 0x0100_0000_0000_00FF, 0], [2**64 - 1, 0, 0, 0]], np.uint64)
    assert pack(words, 1) == [b"\1\0\2\x81\xff\x01\0\1", b"\1\xff" + b"\xff" * 8 + b"\0\3"]
    assert pack(np.zeros((1, 300), np.uint64), 1) == [b"\1\0\xff\0\x2d"]


@pytest.mark.parametrize("seed", range(10))
def test_another_tag_gives_the_kept_words(seed: int) -> None:
    """Whether the record behind it is longer or shorter than ours."""
    rng = np.random.default_rng(seed)
    words = sparse(rng, 9, 20)
    for w in (12, 20, 30):
        back, bad = unpack(pack(words, TAG + 1), w, TAG, 12)
        assert bad == 0
        assert back[:, :12].tobytes() == words[:, :12].tobytes()
        assert not back[:, 12:].any()
    assert unpack(pack(words, TAG + 1), 30, TAG, 21)[1] == 9, "the kept part itself is too short"


@pytest.mark.parametrize("seed", range(10))
def test_what_is_cut_or_longer_is_no_record(seed: int) -> None:
    rng = np.random.default_rng(seed)
    (whole,) = pack(sparse(rng, 1, 9) | np.uint64(1), TAG)
    for wrong in (b"", whole[:1], whole[:-1], whole + b"\1", whole + b"\0\1", b"\3\0\0", b"\3\0"):
        assert unpack([wrong], 9, TAG, 9)[1] == 1
    assert unpack([whole], 8, TAG, 8)[1] == unpack([whole], 10, TAG, 10)[1] == 1


@pytest.mark.parametrize("seed", range(10))
def test_any_bytes_are_a_record_or_none(seed: int) -> None:
    """Nothing is written beyond the rows, whatever is read."""
    rng = np.random.default_rng(seed)
    values = [rng.bytes(int(rng.integers(0, 60))) for _ in range(200)]
    values += [bytes([TAG, *rng.integers(0, 3, int(rng.integers(0, 30))).tolist()]) for _ in range(200)]
    back, bad = unpack(values, 4, TAG, 2)
    assert back.shape == (400, 4)
    assert 0 < bad <= 400

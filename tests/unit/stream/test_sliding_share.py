"""A share over a sliding window, against the definition: the last additions that together reach the length."""

import numpy as np
import pytest

from ebbtide.stream.sliding_share import SlidingShare


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_sum_of_the_last_ones(seed: int) -> None:
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 300))
    recent, added = SlidingShare(length), []
    for _ in range(500):
        of = int(rng.integers(1, 60))
        added.append((of, int(rng.integers(0, of + 1))))
        recent.add(*added[-1])
        kept = next(
            (added[-k:] for k in range(1, len(added) + 1) if sum(n for n, _ in added[-k:]) >= length), added
        )
        assert (recent.of, recent.bad) == tuple(map(sum, zip(*kept, strict=True)))
        assert len(recent) == len(kept) <= length

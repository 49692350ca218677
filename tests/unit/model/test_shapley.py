"""The forest's part of an explanation beside brute force: every subset of at most eight features, by definition."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import factorial

import numpy as np
import pytest
import tensorflow as tf

from ebbtide.model.explaining.shapley import shapley

TREES, DEPTH = 6, 4
Tree = tuple[list[int], list[float], list[float]]
"""Feature and threshold of the inner nodes and value of all, in heap order."""


def random_trees(seed: int, features: int) -> list[Tree]:
    """Complete trees, some of whose questions nobody passes, as where a tree ended sooner; features repeat on a way."""
    rng = np.random.default_rng(seed)
    trees = []
    for _ in range(TREES):
        inner = 2**DEPTH - 1
        threshold = np.where(rng.random(inner) < 0.2, np.inf, rng.normal(size=inner).round(1))
        trees.append(
            (
                rng.integers(0, features, inner).tolist(),
                threshold.tolist(),
                rng.normal(size=2 * inner + 1).tolist(),
            )
        )
    return trees


def answer(trees: Sequence[Tree], row: Sequence[float]) -> float:
    total = 0.0
    for feature, threshold, value in trees:
        node = 0
        while node < len(feature):
            node = 2 * node + (2 if row[feature[node]] > threshold[node] else 1)
        total += value[node]
    return total


def by_definition(trees: Sequence[Tree], x: Sequence[float], z: Sequence[float]) -> list[float]:
    n = len(x)

    def v(subset: frozenset[int]) -> float:
        return answer(trees, [x[i] if i in subset else z[i] for i in range(n)])

    values = {frozenset(s): v(frozenset(s)) for size in range(n + 1) for s in combinations(range(n), size)}
    parts = []
    for i in range(n):
        part = 0.0
        for subset, worth in values.items():
            if i not in subset:
                weight = factorial(len(subset)) * factorial(n - len(subset) - 1) / factorial(n)
                part += weight * (values[subset | {i}] - worth)
        parts.append(part)
    return parts


def as_float32(figures: Iterable[float]) -> list[float]:
    return [float(np.float32(figure)) for figure in figures]


@pytest.mark.parametrize("features", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", [1, 2, None], ids=lambda seed: "fresh" if seed is None else f"seed{seed}")
def test_shapley_values_are_those_of_the_definition(seed: int | None, features: int) -> None:
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
    print(f"seed {seed}")
    trees, rng = random_trees(seed, features), np.random.default_rng(seed + 1)
    x, z = rng.normal(size=(4, features)).round(1), rng.normal(size=features).round(1)
    x[0] = z  # nothing to explain
    columns = [
        np.array([tree[part] for tree in trees], np.int32 if part == 0 else np.float32) for part in range(3)
    ]
    feature, threshold, value = map(tf.constant, columns)
    found = shapley(
        feature, threshold, value, tf.constant(x, tf.float32), tf.constant(z, tf.float32), DEPTH
    ).numpy()
    # A threshold and a figure are compared as float32 there.
    exact = [(asked, as_float32(above), worth) for asked, above, worth in trees]
    wanted = [by_definition(exact, as_float32(row), as_float32(z)) for row in x]
    np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert not found[0].any()

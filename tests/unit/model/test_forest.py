"""The forest as tensors beside scikit-learn's own trees: the same leaves, one sum of bits in every size."""

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from ebbtide.featurestore.record.fold import EVENT
from ebbtide.featurestore.record.replay import SNAPSHOT
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.trees import GROWN, LEAF_ROWS_MAX, as_forest, grow
from ebbtide.model.graph.forest import DEPTH, INNER, NODES, TREES, Forest, ForestGraph

F4 = NDArray[np.float32]
COLUMNS = 12


def figures(n: int, seed: int = 0) -> F4:
    """Heavy tails, counts with many ties, a flag and a constant."""
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 2, (n, COLUMNS)).astype(np.float32)
    x[:, 1] = np.round(x[:, 1])
    x[:, 2] = x[:, 2] > 1
    x[:, 3] = 5.0
    return x


@pytest.fixture(scope="module")
def trees() -> HistGradientBoostingClassifier:
    x, rng = figures(8_000), np.random.default_rng(1)
    y = np.log(x[:, 0]) + np.log1p(x[:, 1]) * (x[:, 2] - 0.5) + rng.normal(0, 1, len(x)) > 0.3
    return HistGradientBoostingClassifier(**GROWN, min_samples_leaf=20, random_state=0).fit(x, y)


@pytest.fixture(scope="module")
def graph(trees: HistGradientBoostingClassifier) -> ForestGraph:
    return ForestGraph(as_forest(trees))


@pytest.mark.parametrize("n", [60, 5_000])
def test_grown_on_bins_they_are_the_same_trees(n: int) -> None:
    """As scikit-learn grows them by itself of the same weighted rows: the same questions and leaves, to the bit."""
    rng, x = np.random.default_rng(6), figures(n, 5)
    cause = np.where(rng.random(n) < 0.3, SNAPSHOT, EVENT).astype(np.uint8)
    churned = (np.log(x[:, 0]) + rng.normal(0, 1, n) > 0.3).astype(np.int8)
    who, when = rng.integers(0, n // 4, n).astype(np.int32), rng.permutation(n).astype(np.int64)
    rows = Examples(who, when, cause, churned, {"features": x})
    assert len(np.unique(rows.weights())) > 5
    leaf = max(1, min(n // 50, LEAF_ROWS_MAX))
    own = HistGradientBoostingClassifier(**GROWN, min_samples_leaf=leaf, random_state=3)
    ours, theirs = as_forest(grow(rows, 3)), as_forest(own.fit(x, churned, rows.weights()))
    np.testing.assert_array_equal(ours.feature, theirs.feature)
    np.testing.assert_array_equal(ours.threshold, theirs.threshold)
    np.testing.assert_array_equal(ours.value, theirs.value)
    assert ours.base == theirs.base


def at_the_edges(trees: HistGradientBoostingClassifier, n: int = 4_000) -> F4:
    """Rows on the thresholds themselves, and one float32 to either side."""
    rng, x = np.random.default_rng(2), figures(n, 3)
    nodes = np.concatenate([each[0].nodes for each in trees._predictors])
    inner = nodes[nodes["is_leaf"] == 0]
    for row in x:
        for node in inner[rng.integers(0, len(inner), 3)]:
            near = np.float32(node["num_threshold"])
            beside = [np.nextafter(near, np.float32(to)) for to in (-9e9, 9e9)]
            row[node["feature_idx"]] = rng.choice([near, *beside])
    return x


def test_every_row_reaches_scikit_learns_leaf(trees: HistGradientBoostingClassifier) -> None:
    """Leaf by leaf, also where a figure lies on a threshold that float32 cannot hold."""
    x, forest = at_the_edges(trees), as_forest(trees)
    for tree, grown in enumerate(trees._predictors):
        here = np.zeros(len(x), np.int64)
        for _ in range(DEPTH):
            asked = x[np.arange(len(x)), forest.feature[tree, here]]
            here = 2 * here + 1 + (asked > forest.threshold[tree, here])
        theirs = grown[0].predict(
            x.astype(np.float64),
            trees._bin_mapper.make_known_categories_bitsets()[0],
            np.zeros(COLUMNS, np.uint32),
            1,
        )
        np.testing.assert_array_equal(forest.value[tree, here], theirs.astype(np.float32))


def test_the_sum_is_scikit_learns(trees: HistGradientBoostingClassifier, graph: ForestGraph) -> None:
    x = at_the_edges(trees)
    np.testing.assert_allclose(graph.logit(tf.constant(x)).numpy(), trees.decision_function(x), atol=2e-5)


def test_a_row_has_the_same_bits_in_every_size_of_forest(graph: ForestGraph) -> None:
    x = figures(512, 9)
    bits = set()
    for size in (1, 8, 32, 128, 512):
        compiled = tf.function(graph.logit, jit_compile=True)
        parts = [compiled(tf.constant(x[at : at + size])).numpy() for at in range(0, len(x), size)]
        bits.add(np.concatenate(parts).tobytes())
    assert len(bits) == 1


def test_contributions_add_up_to_the_way_from_the_baseline(graph: ForestGraph) -> None:
    x, baseline = tf.constant(figures(200, 4)), tf.constant(np.median(figures(200, 5), axis=0))
    contributions = graph.contributions(x, baseline).numpy()
    apart = (graph.logit(x) - graph.logit(baseline[None])).numpy()
    np.testing.assert_allclose(contributions.sum(axis=1), apart, atol=2e-5)
    assert not contributions[:, 3].any(), "a constant was never asked for"
    assert np.abs(contributions[:, 0]).mean() > np.abs(contributions[:, 7]).mean()


def test_an_empty_forest_says_nothing() -> None:
    empty = Forest.empty()
    assert empty.value.shape == (TREES, NODES)
    assert empty.threshold.shape == (TREES, INNER)
    assert not ForestGraph(empty).logit(tf.constant(figures(5))).numpy().any()

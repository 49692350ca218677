"""Boosted trees: how they are grown, as a baseline and as the forest of the published graph.

They are scikit-learn's, on features in natural units; here its trees are taken apart into the arrays of
`model/graph/forest.py`. The edges of its bins are found here, since it sorts a feature anew for each of 254 edges where
rows have weights: four fifths of the time that a forest took. They are its own edges, and so the trees its own.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from ebbtide.model.examples.examples import Examples
from ebbtide.model.graph.forest import DEPTH, INNER, TREES, Forest

GROWN: dict[str, Any] = {
    "max_iter": TREES,
    "max_depth": DEPTH,
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "l2_regularization": 1.0,
    "early_stopping": False,
    # Of features that say much the same (a count over 30, 90, 180 days) each split takes another: what one of them will
    # mean once it lies beyond all that was learned from weighs less.
    "max_features": 0.25,
}
LEAF_ROWS_MAX = 100
BINS = 255
"""As many as scikit-learn makes of a feature by default."""


def grow(train: Examples, seed: int = 0) -> HistGradientBoostingClassifier:
    """Boosted trees of usable rows. One thread: the rows are few, and OpenMP's threads spin while they wait for one
    another (measured on two busy cores: 3.5 s with one thread, 36 s with two)."""
    leaf = int(np.clip(len(train) // 50, 1, LEAF_ROWS_MAX))
    weights = train.weights().astype(np.float64)
    edges = [bin_edges(column, weights) for column in train.features.T.astype(np.float64)]
    bins = [np.searchsorted(each, column) for each, column in zip(edges, train.features.T, strict=True)]
    with threadpool_limits(1):
        trees = HistGradientBoostingClassifier(**GROWN, min_samples_leaf=leaf, random_state=seed)
        trees.fit(np.stack(bins, axis=1), train.churned, weights)
    _in_natural_units(trees, edges, [np.unique(each) for each in bins])
    return trees


def bin_edges(column: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64[k], ascending, k < BINS: bin i holds what is above edge i - 1 and not above edge i. As scikit-learn has
    them: between any two values if they are few, else quantiles of the weighted rows. No NaN."""
    distinct = np.unique(column)
    if len(distinct) <= BINS:
        middle: NDArray[np.float64] = (distinct[:-1] + distinct[1:]) / 2
        return middle
    order = np.argsort(column)
    values, total = column[order], np.cumsum(weights[order])
    ranks = np.linspace(0, 100, BINS + 1)[1:-1] / 100 * total[-1]
    at = np.minimum(np.searchsorted(total, ranks), len(values) - 1)
    next_to = values[np.minimum(at + 1, len(values) - 1)]
    inside = total[at] - ranks > np.finfo(np.float64).eps
    return np.unique(np.where(inside, values[at], (values[at] + next_to) / 2))


def _in_natural_units(
    trees: HistGradientBoostingClassifier, edges: list[NDArray[np.float64]], seen: list[NDArray[np.int64]]
) -> None:
    """Have trees that were grown on bins ask for the bins' edges. seen: of each feature, the bins that some row is
    in."""
    for trees_of in trees._predictors:  # noqa: SLF001 - see `as_forest`
        nodes = trees_of[0].nodes
        for node in np.flatnonzero(nodes["is_leaf"] == 0):
            feature = nodes["feature_idx"][node]
            last = seen[feature][nodes["bin_threshold"][node]]
            nodes["num_threshold"][node] = edges[feature][last]


def tree_logits(trees: HistGradientBoostingClassifier, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64[n], nats, of features float32[n, F]."""
    with threadpool_limits(1):
        logit: NDArray[np.float64] = trees.decision_function(values)
    return logit


def as_forest(trees: HistGradientBoostingClassifier) -> Forest:
    """The same trees as arrays: the same leaf for every float32 row, its value in float32."""
    # scikit-learn keeps its grown trees in attributes that have no public name; the tests hold every leaf to it.
    grown = [trees_of[0].nodes for trees_of in trees._predictors]  # noqa: SLF001 - see above
    base = trees._baseline_prediction  # noqa: SLF001 - see above
    empty = Forest.empty()
    feature, threshold, value = empty.feature, empty.threshold, empty.value
    for t, nodes in enumerate(grown):
        means = _means(nodes)
        stack = [(0, 0)]
        while stack:
            node, place = stack.pop()
            if nodes["is_leaf"][node]:
                _fill(value[t], place, means[node])
                continue
            value[t, place] = means[node]
            feature[t, place] = nodes["feature_idx"][node]
            threshold[t, place] = _down(float(nodes["num_threshold"][node]))
            stack += [(int(nodes["left"][node]), 2 * place + 1), (int(nodes["right"][node]), 2 * place + 2)]
    return Forest(feature, threshold, value, float(np.ravel(base)[0]))


def _means(nodes: Any) -> NDArray[np.float64]:
    """Each node's value: a leaf's own, an inner node's the mean over the training rows below it."""
    means: NDArray[np.float64] = nodes["value"].astype(np.float64).copy()
    for node in range(len(nodes) - 1, -1, -1):  # children are numbered after their parent
        if not nodes["is_leaf"][node]:
            below = [int(nodes["left"][node]), int(nodes["right"][node])]
            means[node] = np.average(means[below], weights=nodes["count"][below])
    return means


def _fill(values: NDArray[np.float32], place: int, value: float) -> None:
    """A leaf above the last depth stands for everything below it."""
    values[place] = value
    if place < INNER:
        _fill(values, 2 * place + 1, value)
        _fill(values, 2 * place + 2, value)


def _down(threshold: float) -> np.float32:
    """The largest float32 that is not above it."""
    near = np.float32(threshold)
    return near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf))

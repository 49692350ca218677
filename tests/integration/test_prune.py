"""Pruned weights are the smallest of their matrix, and stay zero while the others learn on."""

import numpy as np

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.examples.dataset import History, draw
from ebbtide.model.fitting.fit import Trainer
from ebbtide.model.fitting.prune import Pruned, masked
from ebbtide.model.graph.network import build_network
from tests.integration.test_train import CONFIG, KNOWN_UNTIL, demo_spec, simulated
from tests.support.seams.models import TINY


def zeros(network: object) -> list[float]:
    return [float((np.asarray(weights) == 0).mean()) for weights in masked(network)]


def test_the_smallest_of_each_matrix_are_zero() -> None:
    network = build_network(TINY)
    before = [np.asarray(weights).copy() for weights in masked(network)]
    assert len(before) == 4  # of the GRU two, of the deep path two; not the embedding, not the last layer
    chosen = {id(weights) for weights in masked(network)}
    others = [weights for weights in network.weights if id(weights) not in chosen]
    kept_as_they_were = [np.asarray(weights).copy() for weights in others]
    Pruned(network, 0.75, 1e-3, 10)
    for was, weights in zip(before, masked(network), strict=True):
        now = np.asarray(weights)
        kept = now != 0
        assert kept.mean() == 0.25
        assert np.abs(was[kept]).min() >= np.abs(was[~kept]).max()
        np.testing.assert_array_equal(now[kept], was[kept])
    for was, weights in zip(kept_as_they_were, others, strict=True):
        np.testing.assert_array_equal(np.asarray(weights), was)


def test_a_pruned_training_learns_on_and_stays_pruned() -> None:
    rows = draw(
        History(Layout(demo_spec()), simulated(demo_spec()), KNOWN_UNTIL), examples_max=2_000
    ).usable()
    config = CONFIG.model_copy(update={"prune": 0.5, "prune_epochs": 1})
    trainer = Trainer(demo_spec(), config, len(rows))
    pruned = trainer.fit(rows, 1)
    assert len(pruned.loss) == 1, "epochs of fine-tuning are none of the recipe's"
    assert all(0.49 < share < 0.52 for share in zeros(pruned.network))
    plain = Trainer(demo_spec(), CONFIG, len(rows)).fit(rows, 1)
    assert max(zeros(plain.network)) < 0.01
    kept = [np.asarray(w) != 0 for w in masked(pruned.network)]
    moved = [
        np.abs(np.asarray(a) - np.asarray(b))[k].max()
        for a, b, k in zip(masked(pruned.network), masked(plain.network), kept, strict=True)
    ]
    assert min(moved) > 1e-5, "what is left has learned on"
    watched = trainer.fit(rows, 1, watched=rows)
    assert max(zeros(watched.network)) < 0.01, "the recipe is found without"

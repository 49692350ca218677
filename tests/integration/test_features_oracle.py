"""The features of the graph beside the oracle's, at random decision points of random streams and some time after.

Two readings of the same list: the layer sees only the record that the fold left, the oracle only the events. Float
columns agree to what 32-bit sums allow, counts and flags exactly.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.graph.features import FeatureLayer
from tests import golden
from tests.support.oracle.figures import features as oracle_features
from tests.support.oracle.histories import columns, of, random_history, random_spec
from tests.support.oracle.oracle import Life, walk

SEEDS = range(30)
SPECS = Path(__file__).resolve().parents[2] / "ops" / "specs"
EXAMPLES = ("demo", "cdnow", "complete_journey")


def spec_of(name: int | str) -> Spec:
    return random_spec(name) if isinstance(name, int) else load_spec(SPECS / f"{name}.yaml")


def computed(spec: Spec, rows: Rows, as_of: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    record = {name: np.ascontiguousarray(rows[name]) for name in Layout(spec).model_fields}
    return {name: np.asarray(column) for name, column in FeatureLayer(Layout(spec))(record, as_of).items()}


@pytest.mark.parametrize("name", [*golden.MADE, *EXAMPLES])
def test_features_of_the_golden_records_are_the_golden_ones(name: str) -> None:
    kept = golden.read()["specs"][name]
    got = golden.features_of(golden.spec_of(name), kept["events"])
    assert got.keys() == kept["features"].keys()
    for customer, values in got.items():
        assert values == pytest.approx(kept["features"][customer], rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("name", [*SEEDS, *EXAMPLES])
def test_features_are_the_oracles(name: int | str) -> None:
    """At every tenth point and at each customer's end, as of then, a minute, a day, a month and a year later."""
    spec = spec_of(name)
    seed = name if isinstance(name, int) else 99
    history = random_history(spec, seed, 120, customers=2)
    layout, batch = Layout(spec), columns(history)
    rows, points = Folder(layout).fold(layout.empty(len(batch.customers)), batch)
    cases: list[tuple[np.void, Life, int]] = []
    for i, customer in enumerate(batch.customers):
        wanted, life = walk(spec, of(history, customer))
        own = np.flatnonzero(points.customer == i)
        pairs = [(points.rows[m], point.life) for m, point in zip(own, wanted, strict=True)][::10]
        for row, then in [*pairs, (rows[i], life)]:
            cases += [
                (row, then, then.clock + later) for later in (0, 60_000, DAY_MS, 30 * DAY_MS, 365 * DAY_MS)
            ]
    names = [feature.name for feature in features(spec)]
    as_of = np.array([time for _, _, time in cases], np.int64)
    got = computed(spec, np.array([row for row, _, _ in cases], layout.dtype), as_of)
    want = [oracle_features(life, time) for _, life, time in cases]
    assert set(names) == set(want[0])
    for f, feature in enumerate(names):
        wanted_column = np.array([one[feature] for one in want])
        np.testing.assert_allclose(
            got["features"][:, f], wanted_column, rtol=3e-5, atol=2e-3, err_msg=feature
        )
    for m, (_, life, _) in enumerate(cases):
        ring = life.sequence
        padding = spec.sequence.length - len(ring)
        assert got["kind"][m].tolist() == [0] * padding + [entry.kind + 1 for entry in ring]
        assert got["count"][m].tolist() == [0] * padding + [entry.events for entry in ring]
        np.testing.assert_allclose(
            got["value"][m, padding:], [entry.value for entry in ring], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(got["gap"][m, padding:], [entry.gap_s for entry in ring], rtol=1e-6)


@pytest.mark.parametrize("name", [*SEEDS, *EXAMPLES])
def test_of_nothing_known_every_feature_is_finite(name: int | str) -> None:
    """The row of zero bytes, as a new customer's or a forgotten one's."""
    spec = spec_of(name)
    got = computed(spec, Layout(spec).empty(1), np.array([20_000 * DAY_MS], np.int64))["features"][0]
    want = oracle_features(Life(spec), 20_000 * DAY_MS)
    assert np.isfinite(got).all()
    assert dict(zip((feature.name for feature in features(spec)), got.tolist(), strict=True)) == want


@pytest.mark.parametrize("length", [1, 2, 7])
def test_a_ring_that_has_gone_round_many_times_is_read_in_order(length: int) -> None:
    spec = random_spec(3)
    spec = spec.model_copy(update={"sequence": spec.sequence.model_copy(update={"length": length})})
    history = random_history(spec, 3, 200, customers=1)
    layout, batch = Layout(spec), columns(history)
    rows, _ = Folder(layout).fold(layout.empty(1), batch)
    _, life = walk(spec, of(history, "c0"))
    got = computed(spec, rows, np.array([life.clock], np.int64))
    assert got["kind"][0].tolist()[-len(life.sequence) :] == [entry.kind + 1 for entry in life.sequence]

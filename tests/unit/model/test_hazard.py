"""The time to the next event: ordered on every row, around the very probability, and found from what was seen."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, logit

from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.labels import NEVER
from ebbtide.model.fitting.hazard import Waits, fit_hazard
from ebbtide.model.graph.hazard import Hazard, time_to_next_ms
from ebbtide.model.graph.head import HazardGraph

HORIZONS = tuple(day * DAY_MS for day in (1, 2, 4, 8, 12))
H = 4 * DAY_MS


def drawn(seed: int, n: int = 20_000) -> tuple[Waits, np.ndarray]:
    """Waits of a known law: exponential, at a rate that one of two features says; some are seen for a short time."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    rate = np.exp(0.7 * x[:, 0] - 1.0) / DAY_MS
    wait = rng.exponential(1 / rate).astype(np.int64) + 1
    seen = rng.integers(DAY_MS // 2, 30 * DAY_MS, n)
    return Waits(x, logit(np.exp(-rate * H)), wait, seen, np.ones(n)), rate


@pytest.mark.parametrize("absence", [True, False])
def test_survival_falls_on_every_row_and_is_p_at_the_horizon(absence: bool) -> None:
    rng = np.random.default_rng(3)
    columns, rows = 7, 5_000
    kernel = rng.normal(0, 3, (columns + 1, 4)).astype(np.float32)
    hazard = Hazard(HORIZONS, 2, absence, kernel, rng.normal(0, 3, 4).astype(np.float32))
    x = np.clip(rng.normal(0, 3, (rows, columns)), -8, 8).astype(np.float32)
    z = rng.normal(0, 12, rows).astype(np.float32)
    p = tf.sigmoid(z)
    found = HazardGraph(hazard).survival(tf.constant(x), tf.constant(z), p).numpy()
    assert (np.diff(found, axis=1) <= 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (found[:, 2] == (p.numpy() if absence else 1 - p.numpy())).all()
    assert np.allclose(found, hazard.survival(x, z), atol=2e-6)


def test_what_was_seen_of_waits_gives_their_law() -> None:
    """Rows that are censored before their horizon are half of them, and no bias comes of it."""
    waits, rate = drawn(1)
    hazard = fit_hazard(waits, HORIZONS, H, absence=True)
    found = hazard.survival(waits.x, waits.logit)
    for k, horizon in enumerate(HORIZONS):
        assert abs(found[:, k].mean() - np.exp(-rate * horizon).mean()) < 0.01
        assert np.abs(found[:, k] - np.exp(-rate * horizon)).mean() < 0.02


def test_who_comes_is_the_other_side_of_who_stays_away() -> None:
    waits, _ = drawn(2, 4_000)
    away = fit_hazard(waits, HORIZONS, H, absence=True)
    coming = Waits(waits.x, -waits.logit, waits.wait_ms, waits.seen_ms, waits.weight)
    other = fit_hazard(coming, HORIZONS, H, absence=False)
    assert np.allclose(away.survival(waits.x, waits.logit), other.survival(waits.x, -waits.logit), atol=1e-5)


def test_nothing_seen_leaves_the_order_and_p() -> None:
    x, z = np.zeros((5, 2)), np.linspace(-2, 2, 5)
    unseen = Waits(x, z, np.full(5, NEVER), np.ones(5, np.int64), np.ones(5))
    found = fit_hazard(unseen, HORIZONS, H, absence=True).survival(x, z)
    assert (np.diff(found, axis=1) < 0).all()
    assert np.allclose(found[:, 2], expit(z))


def test_a_quantile_lies_between_horizons_or_beyond_the_last() -> None:
    """At a constant rate P50 is ln 2 over it; who is likelier than not to stay away for longer has none."""
    rate = np.array([0.5, 0.01]) / DAY_MS
    survival = np.exp(-rate[:, None] * np.array(HORIZONS))
    found = time_to_next_ms(HORIZONS, survival, 0.5)
    assert found[0] == pytest.approx(np.log(2) / rate[0], rel=1e-9)
    assert found[1] == np.inf
    assert time_to_next_ms(HORIZONS, np.zeros((1, 5)), 0.9)[0] <= HORIZONS[0]

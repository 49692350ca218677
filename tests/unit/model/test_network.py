"""What the network keeps whatever its weights: the sequence apart from time, padding without effect, safe figures."""

import numpy as np
import pytest
import tensorflow as tf

from ebbtide.featurestore.record.features import features
from ebbtide.model.graph.calibrator import KNOTS_S, Calibrator
from ebbtide.model.graph.features import FeatureLayer
from ebbtide.model.graph.network import (
    adapt,
    build_network,
    has_sequence,
    in_float32,
    multiplications,
)
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.graph.standard import STANDARD_MAX, logs, times
from tests.support.seams.models import LAYOUT, SPEC, network_of, sample


def parts(n: int = 128, later_ms: int = 0) -> dict[str, tf.Tensor]:
    data = sample(n)
    record = {name: tf.constant(data.rows[name]) for name in LAYOUT.model_fields}
    out: dict[str, tf.Tensor] = FeatureLayer(LAYOUT)(record, tf.constant(data.as_of + later_ms))
    return out


def test_one_logit_a_row_from_the_seed_alone() -> None:
    inputs = parts()
    first, again, other = (build_network(SPEC, NetworkConfig(seed=seed))(inputs) for seed in (7, 7, 8))
    assert first.shape == (128,)
    assert first.dtype == tf.float32
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_padding_changes_nothing() -> None:
    """
    kind    0 0 V P    the state passes over the zeros: whatever else stands there is never read
    """
    network, inputs = network_of(), parts()
    empty = inputs["kind"] == 0
    assert empty.numpy().any()
    noise = {name: tf.where(empty, 99.0, inputs[name]) for name in ("count", "value", "gap")}
    np.testing.assert_array_equal(network(inputs), network({**inputs, **noise}))


def test_adapted_features_have_mean_0_and_deviation_1() -> None:
    network, inputs = build_network(SPEC), parts(256)
    adapt(network, inputs)
    x = network.get_layer("standardise")(inputs["features"]).numpy().astype(np.float64)
    varied = x.std(axis=0) > 0
    unclipped = (np.abs(x) < STANDARD_MAX).all(axis=0)
    assert varied.sum() > 0.8 * x.shape[1]
    np.testing.assert_allclose(x.mean(axis=0)[unclipped], 0.0, atol=1e-4)
    np.testing.assert_allclose(x.std(axis=0)[varied & unclipped], 1.0, atol=1e-3)


def test_constant_features_stay_silent_extremes_are_clipped() -> None:
    network, inputs = build_network(SPEC), parts()
    constant = tf.concat([tf.ones((128, 1)), inputs["features"][:, 1:]], axis=1)
    adapt(network, {**inputs, "features": constant})
    standardise = network.get_layer("standardise")
    extreme = standardise(tf.fill((1, constant.shape[1]), 1e30)).numpy()[0]
    assert extreme[0] == 0.0
    assert np.abs(extreme).max() == STANDARD_MAX


def test_what_trained_in_bfloat16_is_served_in_float32() -> None:
    config = NetworkConfig(precision="mixed_bfloat16", dropout=0.3)
    trained, inputs = build_network(SPEC, config), parts()
    adapt(trained, inputs)
    served = in_float32(trained, SPEC, config)
    assert not [v.path for v in served.variables if v.dtype in ("bfloat16", "float16", "float64")]
    assert served.get_layer("recurrent").get_layer("gru").compute_dtype == "float32"
    np.testing.assert_allclose(served(inputs), trained(inputs), atol=0.05)
    np.testing.assert_array_equal(served(inputs), served(inputs, training=True))


SHIFTS = tuple(np.linspace(0.5, -0.8, len(KNOTS_S)).tolist())


@pytest.mark.parametrize(
    "calibrator",
    [Calibrator(), Calibrator(a=0.5, b=0.5, c=1.0), Calibrator(a=0.4, b=2.0, c=-1.0, by_silence=SHIFTS)],
)
def test_the_calibrator_is_the_same_in_and_out_of_the_graph(calibrator: Calibrator) -> None:
    logits = np.linspace(-30, 30, 2_001).astype(np.float32)
    silence_s = np.geomspace(1e-3, 1e8, len(logits)).astype(np.float32)
    numbers = tf.constant(calibrator.numbers, tf.float32)
    outside = calibrator.logit(logits, silence_s)
    inside = calibrator.beta_in_graph(tf.constant(logits), numbers)
    inside += calibrator.shift_in_graph(tf.constant(silence_s), numbers)
    np.testing.assert_allclose(inside.numpy(), outside, rtol=1e-5, atol=1e-5)
    assert (np.diff(calibrator.logit(logits, np.full(len(logits), 3_600.0))) > 0).all()
    p = calibrator.probability(logits, silence_s)
    assert ((p >= 0) & (p <= 1)).all()
    if calibrator == Calibrator():
        np.testing.assert_allclose(outside, logits, atol=1e-6)


def test_the_calibrator_has_no_step_in_silence() -> None:
    """Around every knot as elsewhere: a thousandth more of log silence moves the logit by a thousandth of what the
    steepest stretch allows, and the slope has no jump either."""
    calibrator = Calibrator(by_silence=tuple((-1.0) ** k for k in range(len(KNOTS_S))))
    u = np.arange(0.0, 18.0, 1e-3)
    shift = calibrator.logit(np.zeros(len(u)), np.expm1(u))
    slope = np.diff(shift) / 1e-3
    narrowest = np.diff(np.log1p(KNOTS_S)).min()
    assert np.abs(slope).max() <= 1.5 * 2.0 / narrowest + 1e-6, (
        "a smooth step of height 2 is 1.5 times as steep"
    )
    assert np.abs(np.diff(slope)).max() < 0.05, "no bend"
    for knot, height in zip(KNOTS_S, calibrator.by_silence, strict=True):
        at = calibrator.logit(np.zeros(1), np.array([knot]))
        assert at[0] == pytest.approx(height, abs=1e-9)
    assert shift[-1] == pytest.approx(calibrator.by_silence[-1]), "beyond the last knot nothing moves"


def test_shifts_by_silence_are_all_or_none() -> None:
    with pytest.raises(ValueError, match="shifts or none"):
        Calibrator(by_silence=(0.1, 0.2))


def test_a_network_without_a_sequence_does_not_read_it() -> None:
    blind, inputs = build_network(SPEC, NetworkConfig(sequence=False)), parts()
    adapt(blind, inputs)
    other = {name: tf.zeros_like(column) if name != "features" else column for name, column in inputs.items()}
    np.testing.assert_array_equal(blind(inputs), blind(other))
    assert not has_sequence(blind)
    assert has_sequence(build_network(SPEC))
    assert multiplications(SPEC, NetworkConfig(sequence=False)) < multiplications(SPEC, NetworkConfig()) / 10


def test_minutes_and_months_are_told_apart() -> None:
    """A minute, an hour and six hours of silence lie further apart than a week and a month do."""
    network, inputs = build_network(SPEC), parts(256)
    adapt(network, inputs)
    standardise = network.get_layer("standardise")
    days = np.array([1 / 1440, 1 / 24, 1 / 4, 7.0, 30.0, 365.0], np.float32)
    rows = np.repeat(inputs["features"].numpy()[:1], len(days), axis=0)
    rows[:, 0] = days
    x = standardise(rows).numpy()
    width, silence = rows.shape[1], times(SPEC).index(0)
    in_days, in_seconds = np.diff(x[:, 0]), np.diff(x[:, width + silence])
    assert in_days[0] < in_days[3] / 10, "days alone do not tell a minute from an hour"
    assert (in_seconds[:2] > in_seconds[3]).all()
    assert x.shape[1] == width + len(times(SPEC)) == len(logs(SPEC))
    named = [features(SPEC)[i].name for i in times(SPEC)]
    assert "visit_since" in named
    assert "renewal_until" in named
    assert "active_days_7d" not in named

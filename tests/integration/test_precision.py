"""A training in another precision: near the same curve, the same network served in float32."""

import numpy as np
import pytest

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.examples.dataset import History, draw
from ebbtide.model.examples.examples import Examples
from ebbtide.model.fitting.fit import Fit, Trainer
from ebbtide.model.graph.sizes import NetworkConfig
from tests.integration.test_train import CONFIG, KNOWN_UNTIL, demo_spec, simulated


@pytest.fixture(scope="module")
def rows() -> Examples:
    log, spec = simulated(demo_spec()), demo_spec()
    return draw(History(Layout(spec), log, KNOWN_UNTIL), examples_max=2_000).usable()


def trained(rows: Examples, precision: str) -> Fit:
    network = {**CONFIG.network.model_dump(), "precision": precision, "dropout": 0.0}
    config = CONFIG.model_copy(update={"network": NetworkConfig.model_validate(network)})
    odd = rows.customer % 2 == 1
    return Trainer(demo_spec(), config, int((~odd).sum())).fit(rows.take(~odd), 2, watched=rows.take(odd))


@pytest.fixture(scope="module")
def plain(rows: Examples) -> Fit:
    return trained(rows, "float32")


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns_the_same(rows: Examples, plain: Fit, precision: str) -> None:
    found = trained(rows, precision)
    assert found.loss == pytest.approx(plain.loss, abs=5e-3)
    assert np.abs(found.watched[-1] - plain.watched[-1]).mean() < 0.05
    assert found.watched[-1].tobytes() != plain.watched[-1].tobytes(), "it is another precision"
    assert {str(weight.dtype) for weight in found.network.weights} <= {"float32", "int32", "uint32"}


def test_a_manifest_that_says_mixed_precision_is_read() -> None:
    assert NetworkConfig.model_validate({"mixed_precision": True}).precision == "mixed_bfloat16"
    assert NetworkConfig.model_validate({"mixed_precision": False}) == NetworkConfig()

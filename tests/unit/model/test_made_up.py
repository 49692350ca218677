"""The made-up customers of a model's warm-up: every field in use, plausible, and nobody's."""

import numpy as np
import pytest

from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec
from ebbtide.model.examples.dataset import Inputs
from ebbtide.model.examples.made_up import ROWS, made_up
from tests.support.oracle.histories import random_spec
from tests.support.seams.models import SPEC, TINY

SPECS = [SPEC, TINY, *(random_spec(seed) for seed in range(12))]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_every_field_that_a_model_reads_is_in_use(spec: Spec) -> None:
    layout = Layout(spec)
    rows, as_of = made_up(layout)
    assert (len(rows), len(as_of)) == (ROWS, ROWS)
    idle = {name for name in layout.model_fields if not np.asarray(rows[name]).any()}
    never = {"terminated_at"}  # who has left for good is not scored
    never |= set() if spec.days_active else {"day_head"}
    never |= set() if spec.sequence.length > 1 else {"ring_head"}
    never |= set() if any(kind.value and kind.role == "activity" for kind in spec.kinds) else {"ring_value"}
    assert idle <= never
    assert (as_of >= rows["row_watermark"]).all(), "nobody is scored before they were last looked at"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_they_are_records_of_customers_who_may_be_scored(spec: Spec) -> None:
    layout = Layout(spec)
    rows, as_of = made_up(layout)
    assert Folder(layout).eligible(rows, rows["row_watermark"]).all()
    assert len(np.unique(rows.view(f"V{layout.itemsize}"))) > ROWS // 2, "no two alike, or few"
    assert made_up(layout)[0].tobytes() == rows.tobytes()
    assert made_up(layout, seed=1)[0].tobytes() != rows.tobytes()
    assert (as_of > 0).all()


def test_most_features_vary_among_them() -> None:
    """What the comparison of padded sizes is worth: a constant would hide a difference."""
    layout = Layout(SPEC)
    features = Inputs(layout)(*made_up(layout))["features"]
    assert np.isfinite(features).all()
    assert (features.std(axis=0) > 0).mean() > 0.9

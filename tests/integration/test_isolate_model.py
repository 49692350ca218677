"""Bad rows beside a real SavedModel: what the search takes for granted of a model is true of ours."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.model.serving.scorer import Scorer
from ebbtide.stream.scoring.guard import Guarded, stand_in
from tests.support.seams.models import TINY, publish, sample

MARK = 2**32 - 1


def test_a_real_model_keeps_the_bits_of_good_rows(tmp_path: Path) -> None:
    """Some rows make the call raise, by a rule of ours; the rest is a SavedModel."""

    class Marked:
        """A real scorer behind one rule of ours."""

        def __init__(self, scorer: Scorer) -> None:
            self.scorer, self.sizes, self.version = scorer, scorer.sizes, scorer.version
            self.explain = scorer.explain

        def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
            if (rows["activity_count"] == MARK).any():
                raise RuntimeError("marked")
            return self.scorer.score(rows, as_of)

    scorer = Scorer.load(publish(tmp_path, spec=TINY, sizes=(8,)), Layout(TINY))
    data = sample(100, spec=TINY, seed=3)
    right = scorer.score(data.rows, data.as_of)
    bad = np.array([0, 40, 41, 99])
    data.rows["activity_count"][bad] = MARK
    model = Marked(scorer)
    found = Guarded(model).score(data.rows, data.as_of)
    right[bad] = np.nan
    assert found.answer.tobytes() == right.tobytes()
    nobody = stand_in(data.rows)
    assert (scorer.score(nobody.rows, nobody.as_of) >= 0).all()
    assert np.isfinite(scorer.explain(nobody.rows, nobody.as_of).packed).all()

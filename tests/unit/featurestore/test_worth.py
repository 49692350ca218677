"""What a customer is worth beside the oracle, which sees the events alone."""

import numpy as np
import pytest

from ebbtide.featurestore.record.features import aggregated
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.worth import SUM, Worth
from ebbtide.featurestore.spec import parse_spec
from ebbtide.featurestore.times.durations import DAY_MS
from tests.support.oracle.histories import columns, of, random_history, random_spec
from tests.support.oracle.oracle import walk


@pytest.mark.parametrize("seed", range(20))
def test_worth_is_the_oracles_sum_over_the_longest_window(seed: int) -> None:
    spec = random_spec(seed)
    layout, summed = Layout(spec), aggregated(spec, SUM)
    if not summed:
        with pytest.raises(ValueError, match="sums no value"):
            Worth(layout)
        return
    worth, (kind, column) = Worth(layout), summed[0]
    longest = max(range(len(spec.windows)), key=lambda w: spec.windows[w].length_ms)
    history = random_history(spec, seed, 120, customers=2)
    batch = columns(history)
    rows, _ = Folder(layout).fold(layout.empty(len(batch.customers)), batch)
    for i, customer in enumerate(batch.customers):
        life = walk(spec, of(history, customer))[1]
        for later in (0, 60_000, DAY_MS, 30 * DAY_MS):
            as_of = int(rows["row_watermark"][i]) + later
            wanted = life.sum(kind, longest, as_of, column)
            assert worth(rows[i : i + 1], np.array([as_of]))[0] == pytest.approx(
                wanted, rel=1e-5, abs=1e-4
            ), seed


def test_worth_says_what_it_is() -> None:
    spec = parse_spec({
        "name": "shop", "horizon": "7d", "memory": "60d", "windows": {"7d": 7, "30d": 6},
        "kinds": [{"name": "visit"}, {"name": "purchase", "aggregate": ["mean", "sum"]}],
    })  # fmt: skip
    assert Worth(Layout(spec)).words == "total value of purchases in the last 30d"

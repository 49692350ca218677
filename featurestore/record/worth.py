"""What a customer is worth, as far as a record knows: the first value that the spec sums, over its longest window.

The same tiles as the feature of that name (`model/graph/windows.py`), in NumPy, for lists that no model is asked for.
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.aggregations import BY_NAME, STORES
from ebbtide.featurestore.record.features import aggregated
from ebbtide.featurestore.record.layout import Layout, Rows

SUM = BY_NAME["sum"]


class Worth:
    """`Worth(layout)`: raises ValueError for a spec that sums no value."""

    def __init__(self, layout: Layout) -> None:
        spec = layout.spec
        summed = aggregated(spec, SUM)
        if not summed:
            raise ValueError(
                "the spec sums no value: `aggregate: [sum]` of a kind says what a customer is worth"
            )
        k, c = summed[0]
        kind, value = spec.kinds[k], spec.kinds[k].readings[c]
        self._window = max(range(len(spec.windows)), key=lambda w: spec.windows[w].length_ms)
        window = spec.windows[self._window]
        self._row = int(layout.row[STORES.index(SUM.store), k, c])
        self._start, self._tiles, self._hop_ms = (
            int(layout.tile_start[self._window]), window.tiles, window.hop_ms
        )  # fmt: skip
        self.words = f"{SUM.sentence.format(what=value.noun, noun=kind.noun)} in the last {window.words}"

    def __call__(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64[n], in the log's units, of records[n] as of int64[n] ms UTC."""
        head = rows["tile_head"][:, self._window, None]
        index = head - (head - np.arange(self._tiles)) % self._tiles
        live = index > as_of[:, None] // self._hop_ms - self._tiles
        cells = rows["tile_sum"][:, self._row, self._start : self._start + self._tiles]
        total: NDArray[np.float64] = np.where(live, cells, 0.0).sum(axis=1, dtype=np.float64)
        return total

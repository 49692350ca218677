"""All labelled examples of a log on disk, written as they are found: never more than a piece of them is held.

    replay ─points─▶ labelled? ─▶ piece (PIECE_ROWS) ─feature layer, labeller─▶ shard

It is another walk through the log, in this process: what it costs is features and disk, some 1.5 KB a row. What of it
is learned from, and what each row weighs, is for whoever reads it (`training/prepare.py`).
"""

from pathlib import Path

import numpy as np

from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.replay import SNAPSHOT, replay
from ebbtide.model.examples.dataset import FEATURE_CHUNK_ROWS, History
from ebbtide.model.examples.sample import Wanted
from ebbtide.model.examples.shards import Shards, ShardWriter

PIECE_ROWS = FEATURE_CHUNK_ROWS


def stream_out(folder: Path, history: History, wanted: Wanted) -> Shards:
    """Every decision point and snapshot whose horizon is over, in a new folder; `wanted` says until when labels are
    known, and the snapshots' dates. Raises OSError."""
    layout, horizon = history.layout, history.layout.spec.horizon_ms
    until = wanted.known_until_ms - horizon
    writer = ShardWriter(folder)
    waiting: list[Points] = []
    for points in replay(layout, history.log, until, snapshots=wanted.snapshots):
        labelled = points.as_of + horizon < wanted.known_until_ms
        waiting.append(points.take(np.flatnonzero((points.scored | (points.cause == SNAPSHOT)) & labelled)))
        if sum(map(len, waiting)) >= PIECE_ROWS:
            waiting = _write(writer, history, Points.joined(layout, waiting), PIECE_ROWS)
    _write(writer, history, Points.joined(layout, waiting), 1)
    return writer.done()


def _write(writer: ShardWriter, history: History, points: Points, rows_min: int) -> list[Points]:
    """Write whole pieces, and what is left if it has `rows_min` rows; gives back what was not written."""
    start = 0
    while len(points) - start >= rows_min:
        writer.append(history.examples(points.take(np.arange(start, min(start + PIECE_ROWS, len(points))))))
        start = min(start + PIECE_ROWS, len(points))
    return [points.take(np.arange(start, len(points)))]
